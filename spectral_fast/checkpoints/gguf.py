"""Reader for GGUF files (versions 2 and 3), written from the format's description; numpy only.

Layout: "GGUF", version (uint32), number of tensors and of metadata entries (uint64 each); the metadata entries (key, type, value); the
tensors' names, shapes, types and offsets; padding up to the alignment; the data section. A string is a uint64 length and its bytes. All
numbers are little-endian, or, since version 3, all big-endian: the version tells which. Dimensions are written fastest first; the
shapes given here are numpy's, slowest first.

The header's length is written nowhere, so it is read in windows, of which the last may reach into the data section.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from spectral_fast.checkpoints.block_formats import BLOCK_FORMATS, PLAIN, TYPES
from spectral_fast.checkpoints.byte_source import ByteSource
from spectral_fast.checkpoints.reader import (
    ITEM_SIZES,
    Checkpoint,
    CheckpointError,
    Skipped,
    StorageKey,
    TensorInfo,
    array_from_bytes,
    contiguous_strides,
    shape_fits,
)
from spectral_fast.linalg.arrays import CodedArray, RawArray, decode

__all__ = ["MAGIC", "GgufCheckpoint"]

MAGIC = b"GGUF"

# Limits of this reader, far above what models have (some 50 entries, 10,000 tensors, 1,000,000 strings, 30 MB).
MAX_HEADER = 2**28  # bytes before the data section
MAX_ENTRIES = 2**16
MAX_TENSORS = 100_000
MAX_STEPS = 5_000_000  # strings and inner arrays passed over: each costs a turn of a loop
MAX_NAME = 2**16  # bytes, of keys and of tensor names
MAX_TEXT = 2**26  # bytes, of all names and kept strings together
MAX_KEPT = 1024  # bytes, of a metadata string that is kept
MAX_NESTING = 4  # arrays in arrays
MAX_DIMENSIONS = 4  # the format's own limit
MAX_ALIGNMENT = 2**20

WINDOW = 2**16  # bytes per read of the header
SLICE = 2**19  # elements decoded at a time: at most 0.6 MB of codes, which stay in the cache

# metadata types: struct's letter for each number; strings and arrays besides
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
UINT32, BOOL, STRING, ARRAY = 4, 7, 8, 9


class GgufCheckpoint(Checkpoint):
    """One .gguf file.

    version, byteorder: 2 or 3; "little" or "big".
    metadata: the header's numbers, booleans and strings of at most 1024 bytes; arrays and longer strings are passed over.
    formats:  tensor name -> the file's name of its type, e.g. "Q4_K", for tensors and skipped entries alike.

    A tensor of a block format (kernels/numpy_decode.py) is given as a CodedArray; its ``nbytes`` are those in the file. Types without a decoder
    here do not spoil the file: these tensors are listed in ``skipped``. Raises CheckpointError for every header that breaks the format.
    """

    format = "gguf"

    def __init__(self, source: ByteSource) -> None:
        self.path, self._source = source.path, source
        header = _Header(source)
        self.version, self.byteorder = header.version, header.byteorder
        self.metadata, alignment = _metadata(header)
        declared = _declared(header)  # moves the position to the end of the header
        self._data_begin = -(-header.position // alignment) * alignment
        self.formats: dict[str, str] = {}
        tensors: list[TensorInfo] = []
        skipped: list[Skipped] = []
        spans: list[tuple[int, int, str]] = []
        for name, (shape, number, offset) in declared.items():
            self.formats[name] = kind = TYPES.get(number, str(number))
            nbytes = _nbytes(name, shape, kind, self.path)
            if offset % alignment:
                _bad(self.path, f"tensor {name!r}: offset {offset} is no multiple of the alignment {alignment}")
            if math.prod(shape):
                spans.append((offset, offset + (nbytes or 1), name))  # 1: of an unknown size
            if nbytes is None:
                skipped.append(Skipped(name, f"type {kind}: not decoded"))
                continue
            key = StorageKey(self.path.name, "" if nbytes else name, offset, kind, shape, contiguous_strides(shape))
            tensors.append(TensorInfo(name, shape, PLAIN.get(kind, "float32"), nbytes, key))
        _check_spans(spans, source.size - self._data_begin, self.path)
        self.tensors, self.skipped = tuple(tensors), tuple(skipped)
        self._by_name = {t.name: t for t in tensors}

    def read(self, name: str) -> NDArray[Any] | RawArray | CodedArray:
        info = self._by_name[name]
        kind = self.formats[name]
        begin = self._data_begin + info.storage.offset if info.nbytes else 0  # where nothing is stored, the file may end earlier
        if kind in PLAIN or not info.nbytes:
            return array_from_bytes(self._source.read(begin, info.nbytes), info.dtype, info.shape, byteorder=self.byteorder)
        block = BLOCK_FORMATS[kind]
        out = np.empty((info.nbytes // block.nbytes, block.elements), dtype=np.float32)
        steps = np.empty((len(out), block.runs), dtype=np.float32)
        step = SLICE // block.elements
        for i in range(0, len(out), step):
            part = out[i : i + step]
            raw = self._source.read(begin + i * block.nbytes, len(part) * block.nbytes).reshape(-1, block.nbytes)
            decode(raw, part, format=kind, steps=steps[i : i + step], byteorder=self.byteorder)
        return CodedArray(out.reshape(info.shape), steps.reshape(*info.shape[:-1], -1), kind, block.bits)

    def close(self) -> None:
        self._source.close()


def _bad(path: Path, what: str) -> NoReturn:
    raise CheckpointError(f"{path}: not a valid GGUF file: {what if len(what) < 600 else what[:300] + ' ... ' + what[-300:]}")


class _Header:
    """A position that moves through the header, never past the end of the file or MAX_HEADER.

    Holds one window of the file. Everything that could make a small file cost much is counted here: steps and text.
    """

    def __init__(self, source: ByteSource) -> None:
        self.path, self._source = source.path, source
        self.position = 0
        self._end = min(source.size, MAX_HEADER)
        self._window, self._begin = b"", 0
        self._steps = self._text = 0
        if self.take(4) != MAGIC:
            self.bad(f"does not begin with {MAGIC!r}")
        version = self.take(4)
        self.byteorder: Literal["little", "big"] = "big" if version[:3] == bytes(3) else "little"
        self._order = ">" if self.byteorder == "big" else "<"
        self._length = struct.Struct(f"{self._order}Q")
        self.version = int.from_bytes(version, self.byteorder)
        if self.version not in (2, 3) or (self.version, self.byteorder) == (2, "big"):
            self.bad(f"version {self.version} ({self.byteorder}-endian); 2 (little-endian) and 3 are read")
        self.tensor_count, self.entry_count = self.numbers("QQ")

    def bad(self, what: str) -> NoReturn:
        _bad(self.path, what)

    def check_count(self, count: int, least: int, limit: int, what: str) -> None:
        """Refuse ``count`` things of at least ``least`` bytes each that the rest of the header cannot hold, or above ``limit``."""
        left = self._end - self.position
        if count > limit or count * least > left:
            self.bad(f"{count} {what} in the {left} bytes after byte {self.position} (at most {limit} are read, of {least} bytes at least)")

    def _need(self, count: int) -> None:
        if count > self._end - self.position:
            why = "the file is truncated" if self._end < MAX_HEADER else f"at most {MAX_HEADER} bytes of header are read"
            self.bad(f"header: {count} bytes wanted at byte {self.position}, {self._end - self.position} left ({why})")

    def _fill(self, count: int) -> int:
        """Make the next ``count`` bytes lie in the window; where in it."""
        self._need(count)
        if not self._begin <= self.position <= self.position + count <= self._begin + len(self._window):
            self._window = self._source.read(self.position, min(max(count, WINDOW), self._source.size - self.position)).tobytes()
            self._begin = self.position
        return self.position - self._begin

    def take(self, count: int) -> bytes:
        at = self._fill(count)
        self.position += count
        return self._window[at : at + count]

    def numbers(self, letters: str) -> tuple[Any, ...]:
        layout = self._order + letters
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def text(self, limit: int, what: str) -> str | None:
        """A string, which has to be UTF-8; one longer than ``limit`` is passed over and gives None."""
        (length,) = self.numbers("Q")
        if length > limit:
            self._need(length)
            self.position += length
            return None
        raw = self.take(length)
        self._text += length
        if self._text > MAX_TEXT:
            self.bad(f"more than {MAX_TEXT} bytes of names")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.bad(f"{what} is not UTF-8: {error.reason}")

    def name(self, what: str) -> str:
        found = self.text(MAX_NAME, what)
        return self.bad(f"{what} of more than {MAX_NAME} bytes") if found is None else found

    def skip_array(self, depth: int = 1) -> None:
        kind, count = self.numbers("IQ")
        if kind in NUMBERS:
            size = count * struct.calcsize(NUMBERS[kind])
            self._need(size)
            self.position += size
            return
        if kind not in (STRING, ARRAY) or depth > MAX_NESTING:
            self.bad(f"a metadata array of type {kind}, {depth} deep")
        self.check_count(count, 8 if kind == STRING else 12, MAX_STEPS - self._steps, "strings or arrays in a metadata array")
        self._steps += count
        if kind == STRING:
            self._skip_strings(count)
        else:
            for _ in range(count):
                self.skip_array(depth + 1)

    def _skip_strings(self, count: int) -> None:
        unpack = self._length.unpack_from
        for _ in range(count):
            at = self.position - self._begin
            if at > len(self._window) - 8:
                at = self._fill(8)
            self.position += 8 + unpack(self._window, at)[0]
            if self.position > self._end:
                self.bad(f"a string in a metadata array ends at byte {self.position}, the header has at most {self._end}")


def _metadata(header: _Header) -> tuple[dict[str, int | float | bool | str], int]:
    """The kept entries, and the alignment of the data section."""
    header.check_count(header.entry_count, 13, MAX_ENTRIES, "metadata entries")
    keys: set[str] = set()
    kept: dict[str, int | float | bool | str] = {}
    alignment = 32
    for _ in range(header.entry_count):
        key = header.name("a metadata key")
        if key in keys:
            header.bad(f"metadata {key!r} occurs twice")
        keys.add(key)
        (kind,) = header.numbers("I")
        if kind in NUMBERS:
            (value,) = header.numbers(NUMBERS[kind])
            if kind == BOOL and value > 1:
                header.bad(f"metadata {key!r}: {value} is no boolean")
            kept[key] = bool(value) if kind == BOOL else value
        elif kind == STRING:
            text = header.text(MAX_KEPT, f"metadata {key!r}")
            if text is not None:
                kept[key] = text
        elif kind == ARRAY:
            header.skip_array()
        else:
            header.bad(f"metadata {key!r}: unknown type {kind}")
        if key == "general.alignment":
            alignment = int(kept[key]) if kind == UINT32 else 0
            if alignment.bit_count() != 1 or not 8 <= alignment <= MAX_ALIGNMENT:
                header.bad(f"general.alignment has to be a uint32, a power of two from 8 to {MAX_ALIGNMENT}; got {kept.get(key, 'no number')!r}")
    return kept, alignment


def _declared(header: _Header) -> dict[str, tuple[tuple[int, ...], int, int]]:
    """Name -> shape, type, offset."""
    header.check_count(header.tensor_count, 24, MAX_TENSORS, "tensors")
    found: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(header.tensor_count):
        name = header.name("a tensor name")
        if name in found:
            header.bad(f"tensor {name!r} occurs twice")
        (dimensions,) = header.numbers("I")
        if dimensions > MAX_DIMENSIONS:
            header.bad(f"tensor {name!r}: {dimensions} dimensions; the format allows {MAX_DIMENSIONS}")
        shape = header.numbers(f"{dimensions}Q")[::-1]
        kind, offset = header.numbers("IQ")
        found[name] = (shape, kind, offset)
    return found


def _nbytes(name: str, shape: tuple[int, ...], kind: str, path: Path) -> int | None:
    """Bytes of a tensor in the file, None for a type that is not decoded."""
    size = ITEM_SIZES[PLAIN.get(kind, "float32")]
    if not shape_fits(shape, size):
        _bad(path, f"tensor {name!r}: shape {list(shape)} of {kind} is beyond 2**63 bytes")
    count = math.prod(shape)
    if kind in PLAIN:
        return count * size
    if kind not in BLOCK_FORMATS:
        return None
    block = BLOCK_FORMATS[kind]
    row = shape[-1] if shape else 1
    if row % block.elements:
        _bad(path, f"tensor {name!r}: rows of {row} elements; {kind} has blocks of {block.elements}")
    return count // block.elements * block.nbytes


def _check_spans(spans: list[tuple[int, int, str]], size: int, path: Path) -> None:
    """The tensors have to lie inside the data section without overlap; holes are padding."""
    position = 0
    for begin, end, name in sorted(spans):
        if begin < position:
            _bad(path, f"tensor {name!r} at data offset {begin} overlaps the tensor before it, which ends at {position}")
        if end > size:
            _bad(path, f"tensor {name!r} takes data bytes {begin} to {end}, the data section has {max(size, 0)} (truncated?)")
        position = end
