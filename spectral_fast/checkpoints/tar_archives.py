"""Checkpoints packed into a .tar.gz beside settings and vocabularies (AllenNLP's archives): the one checkpoint in it is unpacked to a temporary file.

The tar headers are read here: 512 bytes with the name at 0, the size in octal at 124, the type at 156, a prefix of the name at 345; contents follow in
whole blocks. Nothing is written under a name from the archive, and no more is unpacked than weights can have been packed from.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, NoReturn

from spectral_fast.checkpoints.byte_source import ByteSource
from spectral_fast.checkpoints.reader import Checkpoint, CheckpointError, Skipped

__all__ = ["GZIP_MAGIC", "open_tar_gz"]

GZIP_MAGIC = b"\x1f\x8b"
BLOCK = 512
STEP = 1 << 20  # bytes unpacked at a time
RATIO = 20  # weights are hardly compressible; zeros would be a thousandfold
FREE = 64 << 20  # bytes unpacked whatever the ratio
MAX_MEMBERS = 10_000
MAX_NAME = 1 << 16
MAX_RECORDS = 64  # of a member that say more of it; usual are three
SHOWN = 4  # names in a message


class _TemporarySource(ByteSource):
    """A temporary file that is gone when it is closed. The path is the archive's."""

    def __init__(self, archive: ByteSource, handle: IO[bytes]) -> None:
        self.path = archive.path
        handle.flush()
        self._fd = os.dup(handle.fileno())
        self.size = os.fstat(self._fd).st_size


class _Unpacked:
    """The unpacked bytes, from the first to the last."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._machine = zlib.decompressobj(31)  # a gzip header and checksum
        self._position = 0
        self._ahead = memoryview(b"")  # a slice of it costs nothing
        self._total = 0
        self._allowed = RATIO * source.size + FREE

    def read(self, count: int) -> bytes:
        """``count`` bytes, fewer only at the end."""
        parts = []
        while count and (self._ahead or self._more()):
            part = self._ahead[:count]
            self._ahead = self._ahead[len(part) :]
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _more(self) -> bool:
        """Unpack some more; False at the end."""
        while not self._ahead:
            packed = self._machine.unconsumed_tail
            if not packed:
                if self._machine.eof or self._position == self._source.size:
                    return False
                step = min(STEP, self._source.size - self._position)
                packed = self._source.read(self._position, step).tobytes()
                self._position += step
            try:
                self._ahead = memoryview(self._machine.decompress(packed, STEP))
            except zlib.error as error:
                _bad(self._source, f"damaged ({error})")
            self._total += len(self._ahead)
            if self._total > self._allowed:
                _bad(self._source, f"unpacks to more than {self._allowed} bytes, {RATIO} times its size and more: no archive of weights does")
        return True


def open_tar_gz(source: ByteSource, open_source: Callable[[ByteSource], Checkpoint], suffixes: tuple[str, ...]) -> Checkpoint:
    """The checkpoint in an archive, which holds exactly one file with one of these suffixes. Closes ``source``.

    open_source: opens what was unpacked. Raises CheckpointError, also for a gzip file that is no tar archive.
    """
    unpacked = _Unpacked(source)
    found: list[str] = []  # the first few
    count = others = 0
    with tempfile.TemporaryFile() as handle:
        for name, size, regular in _members(source, unpacked):
            wanted = regular and name.endswith(suffixes)
            if wanted and len(found) < SHOWN:
                found.append(name)
            count += wanted
            others += not wanted
            left = size
            while left:
                part = unpacked.read(min(STEP, left))
                if not part:
                    _bad(source, f"ends inside of {name[:100]!r} (truncated?)")
                if wanted and count == 1:
                    handle.write(part)
                left -= len(part)
            unpacked.read(-size % BLOCK)
        if count != 1:
            _bad(source, f"holds {count} checkpoints among {count + others} files{': ' + ', '.join(n[:100] for n in found) if found else ''}; wanted one")
        inner = _TemporarySource(source, handle)
    try:
        checkpoint = open_source(inner)
    except BaseException:
        inner.close()
        raise
    source.close()
    checkpoint.format = f"{checkpoint.format} in a tar archive"
    if others:
        checkpoint.skipped = (*checkpoint.skipped, Skipped("(archive)", f"{others} other files beside {found[0]}"))
    return checkpoint


def _members(source: ByteSource, unpacked: _Unpacked) -> Iterator[tuple[str, int, bool]]:
    """Name, size and whether it is a regular file, of every member; the caller takes the contents before it asks for the next."""
    long_name = ""
    later: dict[bytes, bytes] = {}
    for _ in range(MAX_MEMBERS):
        block = unpacked.read(BLOCK)
        if not block.strip(b"\0"):
            return
        checksum = _number(source, block[148:156])
        if len(block) < BLOCK or checksum != sum(block) - sum(block[148:156]) + 8 * 32:
            _bad(source, "a gzip file, but no tar archive in it: unpack it first")
        size, kind = _number(source, block[124:136]), block[156:157]
        if kind == b"x" and size <= MAX_NAME:  # POSIX: records "length key=value" for the next member
            later = dict(_records(unpacked.read(size + -size % BLOCK)[:size]))
            continue
        if later.get(b"size", b"").isdigit():
            size = int(later[b"size"][:20])
        long_name = long_name or later.get(b"path", b"").decode("utf-8", "replace")
        name = long_name or "/".join(p.decode("utf-8", "replace") for p in (block[345:500].split(b"\0")[0], block[:100].split(b"\0")[0]) if p)
        long_name, later = "", {}
        if kind == b"L" and size <= MAX_NAME:  # GNU: the next member's name
            long_name = unpacked.read(size + -size % BLOCK)[:size].rstrip(b"\0").decode("utf-8", "replace")
            continue
        yield name, size, kind in (b"0", b"\0")
    _bad(source, f"more than {MAX_MEMBERS} files")


def _records(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    for _ in range(MAX_RECORDS):
        if at >= len(raw):
            return
        length, _, _ = raw[at : at + 20].partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(raw) - at:
            return
        key, _, value = raw[at + len(length) + 1 : at + int(length)].rstrip(b"\n").partition(b"=")
        yield key, value
        at += int(length)


def _number(source: ByteSource, field: bytes) -> int:
    text = field.strip(b" \0")
    if field[:1] and field[0] & 0x80:  # GNU: sizes of 8 GB and more in base 256
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    if not text or not set(text) <= set(b"01234567"):
        _bad(source, "a gzip file, but no tar archive in it: unpack it first")
    return int(text, 8)


def _bad(source: ByteSource, what: str) -> NoReturn:
    raise CheckpointError(f"{source.path}: not a readable archive: {what[:600]}")
