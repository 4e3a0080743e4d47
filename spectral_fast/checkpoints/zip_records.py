"""The directory of a zip archive, with stored (uncompressed) records as positions in the file."""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from typing import NoReturn

from spectral_fast.checkpoints.byte_source import ByteSource
from spectral_fast.checkpoints.reader import CheckpointError

__all__ = ["ZipRecord", "read_zip_directory"]

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., length of the name, length of the extra field


@dataclass(frozen=True)
class ZipRecord:
    """stored: its bytes lie in the file as they are. Compressed and encrypted records are never unpacked: torch writes no tensor so."""

    position: int
    size: int
    stored: bool


def read_zip_directory(source: ByteSource) -> dict[str, ZipRecord]:
    """Name -> record. Raises CheckpointError for damaged directories, duplicate names, records that overlap or leave the file."""
    try:
        with source.stream() as handle, zipfile.ZipFile(handle) as archive:
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
        records[name] = ZipRecord(entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length, entry.compress_size, stored)
    end = 0
    for name, record in sorted(records.items(), key=lambda item: (item[1].position, item[1].size)):
        if record.position < end or record.position + record.size > source.size:
            _bad(source, f"record {name!r} overlaps another or leaves the file")
        end = record.position + record.size
    return records


def _bad(source: ByteSource, what: str) -> NoReturn:
    raise CheckpointError(f"{source.path}: zip archive refused: {what[:600]}")
