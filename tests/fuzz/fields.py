"""Valid files cut into their fields, so that a mutation can replace a length by another length and a name by another name.

Every function takes a valid input and gives its pieces, whose concatenation is the input again.
"""

from __future__ import annotations

import io
import pickletools
import re

__all__ = ["gguf_fields", "npy_fields", "pickle_fields", "pickles_fields", "safetensors_fields", "tar_fields", "text_fields", "zip_fields"]

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|\'[^\']*\'|[A-Za-z0-9_.+-]+|\s+|.', re.DOTALL)
_ZIP_WIDTHS = {  # of the fixed part after the signature; the names of the lengths that follow are in _ZIP_TAILS
    b"PK\x03\x04": (2, 2, 2, 2, 2, 4, 4, 4, 2, 2),
    b"PK\x01\x02": (2, 2, 2, 2, 2, 2, 4, 4, 4, 2, 2, 2, 2, 2, 4, 4),
    b"PK\x05\x06": (2, 2, 2, 2, 4, 4, 2),
    b"PK\x06\x06": (8, 2, 2, 4, 4, 8, 8, 8, 8),
    b"PK\x06\x07": (4, 8, 4),
}
_ZIP_TAILS = {b"PK\x03\x04": (8, 9), b"PK\x01\x02": (9, 10, 11), b"PK\x05\x06": (6,)}
_TAR_WIDTHS = (100, 8, 8, 8, 12, 12, 8, 1, 100, 6, 2, 32, 32, 8, 8, 155, 12)
_GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class _Cut:
    """A position in ``raw``; ``fields`` are the pieces before it."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.position = raw, 0
        self.fields: list[bytes] = []

    def take(self, count: int) -> bytes:
        piece = self.raw[self.position : self.position + count]
        self.position += count
        if piece:
            self.fields.append(piece)
        return piece

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def rest(self) -> list[bytes]:
        self.take(len(self.raw))
        return self.fields


def text_fields(raw: bytes) -> list[bytes]:
    """JSON and Python literals: strings, numbers, words, single signs."""
    return _TOKEN.findall(raw)


def safetensors_fields(raw: bytes) -> list[bytes]:
    cut = _Cut(raw)
    length = cut.number(8)
    return [*cut.fields, *text_fields(raw[8 : 8 + length]), raw[8 + length :]]


def npy_fields(raw: bytes) -> list[bytes]:
    cut = _Cut(raw)
    cut.take(6)
    version = cut.number(1)
    cut.take(1)
    length = cut.number(2 if version == 1 else 4)
    begin = cut.position
    return [*cut.fields, *text_fields(raw[begin : begin + length]), raw[begin + length :]]


def pickle_fields(raw: bytes) -> list[bytes]:
    """One pickle, operation by operation."""
    starts = [position for _, _, position in pickletools.genops(raw)]
    return [raw[a:b] for a, b in zip(starts, [*starts[1:], len(raw)], strict=True)]


def pickles_fields(raw: bytes) -> list[bytes]:
    """The five pickles at the beginning of a legacy torch file, then the storages in pieces of 8 bytes."""
    handle = io.BytesIO(raw)
    fields: list[bytes] = []
    for _ in range(5):
        begin = handle.tell()
        for _ in pickletools.genops(handle):
            pass
        fields += pickle_fields(raw[begin : handle.tell()])
    rest = raw[handle.tell() :]
    return fields + [rest[i : i + 8] for i in range(0, len(rest), 8)]


def zip_fields(raw: bytes) -> list[bytes]:
    """Headers field by field, contents whole. For archives in whose contents no signature occurs."""
    fields: list[bytes] = []
    for part in re.split(rb"(?=PK(?:\x01\x02|\x03\x04|\x05\x06|\x06\x06|\x06\x07))", raw):
        cut = _Cut(part)
        widths = _ZIP_WIDTHS.get(part[:4])
        if widths:
            cut.take(4)
            numbers = [cut.number(width) for width in widths]
            for which in _ZIP_TAILS.get(part[:4], ()):
                cut.take(numbers[which])
        fields += cut.rest()
    return fields


def tar_fields(raw: bytes) -> list[bytes]:
    cut = _Cut(raw)
    while cut.position < len(raw):
        begin = cut.position
        if not raw[begin : begin + 512].strip(b"\0"):
            break
        for width in _TAR_WIDTHS:
            cut.take(width)
        size = int(raw[begin + 124 : begin + 135], 8)
        cut.take(size)
        cut.take(-size % 512)
    return cut.rest()


def gguf_fields(raw: bytes) -> list[bytes]:
    """Of a little-endian file."""
    cut = _Cut(raw)
    cut.take(4)
    cut.take(4)
    tensors, entries = cut.number(8), cut.number(8)

    def value(kind: int) -> None:
        if kind == 8:
            cut.take(cut.number(8))
        elif kind == 9:
            inner, count = cut.number(4), cut.number(8)
            for _ in range(count):
                value(inner)
        else:
            cut.take(_GGUF_SIZES[kind])

    for _ in range(entries):
        cut.take(cut.number(8))
        value(cut.number(4))
    for _ in range(tensors):
        cut.take(cut.number(8))
        for _ in range(cut.number(4)):
            cut.take(8)
        cut.take(4)
        cut.take(8)
    return cut.rest()
