"""The directory of a zip archive, with records as positions in the file, and what they hold."""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

from spectral_fast.checkpoints.byte_source import ByteSource
from spectral_fast.checkpoints.reader import CheckpointError

__all__ = ["ZipRecord", "inflate", "read_zip_directory"]

_STEP = 1 << 20  # bytes unpacked at a time
_MAX_DIRECTORY = 1 << 24  # bytes; a record takes some 70, and 10 times as many as an object
_LEAST = 512  # bytes of the file read at a time
_TIGHTEST = 1032  # times as long as its deflated form can a record be
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., length of the name, length of the extra field


@dataclass(frozen=True)
class ZipRecord:
    """stored: its ``size`` bytes lie in the file as they are; deflated: they are to be unpacked to ``unpacked`` bytes, of which the directory says so
    and no more than deflate can pack that tightly. Neither: encrypted, or compressed in another way."""

    position: int
    size: int
    stored: bool
    unpacked: int
    deflated: bool = False


class _Directory:
    """A file of which no more is read at once than a directory may have: ``zipfile`` takes the length that the archive declares."""

    def __init__(self, handle: BinaryIO) -> None:
        self.seek, self.tell, self.close = handle.seek, handle.tell, handle.close
        self._read = handle.read

    def read(self, count: int = -1) -> bytes:
        data = self._read(_MAX_DIRECTORY + 1 if count < 0 else min(count, _MAX_DIRECTORY + 1))
        if len(data) > _MAX_DIRECTORY:
            raise ValueError(f"a directory of more than {_MAX_DIRECTORY} bytes")
        return data


def read_zip_directory(source: ByteSource) -> dict[str, ZipRecord]:
    """Name -> record. Raises CheckpointError for damaged directories, duplicate names, records that overlap or leave the file."""
    try:
        with source.stream() as handle, zipfile.ZipFile(_Directory(handle)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, OverflowError, struct.error) as error:
        raise CheckpointError(f"{source.path}: zip directory cannot be read ({error}); truncated?") from error
    records: dict[str, ZipRecord] = {}
    for entry in entries:
        name = entry.filename
        if name in records:
            _bad(source, f"two records named {name!r}")
        stored = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
        if stored and entry.compress_size != entry.file_size:
            _bad(source, f"stored record {name!r} declares two sizes, {entry.compress_size} and {entry.file_size}")
        if entry.header_offset < 0 or entry.header_offset + _LOCAL_HEADER.size > source.size:
            _bad(source, f"record {name!r} lies outside of the file")
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(source.read(entry.header_offset, _LOCAL_HEADER.size).tobytes())
        if signature != b"PK\x03\x04":
            _bad(source, f"record {name!r} has no local header")
        deflated = entry.compress_type == zipfile.ZIP_DEFLATED and not entry.flag_bits & 1
        if deflated and entry.file_size > _TIGHTEST * entry.compress_size + 64:
            _bad(source, f"record {name!r} of {entry.compress_size} bytes declares {entry.file_size} unpacked ones")
        position = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        records[name] = ZipRecord(position, entry.compress_size, stored, entry.file_size, deflated)
    end = 0
    for name, record in sorted(records.items(), key=lambda item: (item[1].position, item[1].size)):
        if record.position < end or record.position + record.size > source.size:
            _bad(source, f"record {name!r} overlaps another or leaves the file")
        end = record.position + record.size
    return records


def inflate(source: ByteSource, record: ZipRecord, count: int) -> bytes:
    """The first ``count`` bytes of a stored or deflated record, as they were before they were packed. count: at most ``record.unpacked``."""
    if record.stored:
        return source.read(record.position, count).tobytes()
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    parts: list[bytes] = []
    position, end = record.position, record.position + record.size
    while count:
        more = machine.unconsumed_tail
        if not more:
            step = min(_STEP, max(count, _LEAST), end - position)  # of a header that is looked at no more than can be its bytes
            more = source.read(position, step).tobytes()
            position += step
        try:
            part = machine.decompress(more, count)
        except zlib.error as error:
            _bad(source, f"a deflated record is damaged: {error}")
        if not part and (machine.eof or (position == end and not machine.unconsumed_tail)):
            _bad(source, f"a deflated record ends {count} bytes early")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _bad(source: ByteSource, what: str) -> NoReturn:
    raise CheckpointError(f"{source.path}: zip archive refused: {what[:600]}")
