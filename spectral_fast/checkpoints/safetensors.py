"""Reader for .safetensors files, written from the format's description; numpy only.

Layout: 8 bytes header length n (unsigned, little-endian), n bytes of JSON, then the data section. The JSON maps a name to
{"dtype", "shape", "data_offsets": [begin, end)} with offsets relative to the data section; "__metadata__" maps strings to
strings. Tensors are row-major, little-endian, and cover the data section without hole or overlap.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any, NoReturn

from numpy.typing import NDArray

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
from spectral_fast.linalg.arrays import RawArray

__all__ = ["MAX_HEADER", "SafetensorsCheckpoint"]

MAX_HEADER = 100_000_000  # the format's own limit, bytes
MAX_WIDE = 25_000_000  # bytes, where it is not all ASCII: one character can make all others take four bytes
# JSON of n bytes may become some 25 n bytes of Python objects; what makes objects is counted before parsing. A tensor needs about 10.
MAX_STRUCTURE = 2_000_000

DTYPES: dict[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


class SafetensorsCheckpoint(Checkpoint):
    """One .safetensors file.

    metadata: the header's "__metadata__".
    Raises CheckpointError for every header that breaks the format. A dtype unknown here (4- and 6-bit floats, scale formats)
    does not spoil the file: that tensor is listed in ``skipped``.
    """

    format = "safetensors"

    def __init__(self, source: ByteSource) -> None:
        self.path = source.path
        self._source = source
        header, self._data_begin = _read_header(source)
        self.metadata = _metadata(header.pop("__metadata__", {}), self.path)
        tensors: list[TensorInfo] = []
        skipped: list[Skipped] = []
        spans: list[tuple[int, int, str]] = []
        for name, entry in header.items():
            dtype, shape, begin, end = _entry(name, entry, self.path)
            spans.append((begin, end, name))
            known = DTYPES.get(dtype)
            if known is None:
                skipped.append(Skipped(name, f"dtype {dtype!r}: not decoded"))
                continue
            nbytes = math.prod(shape) * ITEM_SIZES[known]
            if nbytes != end - begin:
                _bad(self.path, f"tensor {name!r}: {dtype} of shape {list(shape)} takes {nbytes} bytes, data_offsets hold {end - begin}")
            identity = "" if nbytes else name
            key = StorageKey(self.path.name, identity, begin, known, shape, contiguous_strides(shape))
            tensors.append(TensorInfo(name, shape, known, nbytes, key))
        _check_cover(spans, source.size - self._data_begin, self.path)
        self.tensors = tuple(tensors)
        self.skipped = tuple(skipped)
        self._by_name = {t.name: t for t in tensors}

    def read(self, name: str) -> NDArray[Any] | RawArray:
        info = self._by_name[name]
        data = self._source.read(self._data_begin + info.storage.offset, info.nbytes)
        return array_from_bytes(data, info.dtype, info.shape)

    def close(self) -> None:
        self._source.close()


def _bad(path: Path, what: str) -> NoReturn:
    raise CheckpointError(f"{path}: not a valid safetensors file: {what[:600]}")


def _read_header(source: ByteSource) -> tuple[dict[str, Any], int]:
    """The parsed header and the position of the data section."""
    path = source.path
    if source.size < 8:
        _bad(path, f"{source.size} bytes; 8 are needed for the header's length")
    (length,) = struct.unpack("<Q", source.read(0, 8).tobytes())
    if length > MAX_HEADER:
        _bad(path, f"header length {length}, the format allows {MAX_HEADER}")
    if length > source.size - 8:
        _bad(path, f"header length {length}, but only {source.size - 8} bytes follow (truncated?)")
    raw = source.read(8, length).tobytes()
    if not raw.startswith(b"{"):
        _bad(path, "the header does not begin with '{'")
    if length > MAX_WIDE and not raw.isascii():
        _bad(path, f"header length {length} with characters beyond ASCII, at most {MAX_WIDE} are read")
    structure = sum(raw.count(c) for c in b"{[,")
    if structure > MAX_STRUCTURE:
        _bad(path, f"header with {structure} JSON elements, at most {MAX_STRUCTURE} are read")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_checked_object, parse_constant=_no_constant)
    except RecursionError:
        _bad(path, "header nested too deeply")
    except ValueError as error:  # JSON and UTF-8 errors, duplicates, integers of thousands of digits
        _bad(path, f"header is not valid JSON: {error}")
    return header, 8 + length


def _checked_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without duplicate names and without text that is not Unicode (an escaped lone surrogate)."""
    found = dict(pairs)
    for key, value in pairs:
        key.encode("utf-8")
        if isinstance(value, str):
            value.encode("utf-8")
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate name {key!r}")
            seen.add(key)
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _metadata(found: Any, path: Path) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        _bad(path, "__metadata__ has to map strings to strings")
    return found


def _entry(name: str, entry: Any, path: Path) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape, begin, end of one header entry, each of the right type and sign."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _bad(path, f"tensor {name!r}: wanted an object of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        _bad(path, f"tensor {name!r}: dtype has to be a string")
    if not _counts(shape) or not shape_fits(tuple(shape), ITEM_SIZES.get(DTYPES.get(dtype, ""), 1)):
        _bad(path, f"tensor {name!r}: shape has to be a list of at most 32 integers >= 0, the whole below 2**63 bytes")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _bad(path, f"tensor {name!r}: data_offsets has to be [begin, end] with 0 <= begin <= end")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _counts(values: Any) -> bool:
    """True for a list of integers in 0..2**63-1; True and 1.0 are not integers here."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _check_cover(spans: list[tuple[int, int, str]], size: int, path: Path) -> None:
    """The tensors have to cover the data section exactly."""
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            what = "overlaps the tensor before it" if begin < position else "leaves a hole before it"
            _bad(path, f"tensor {name!r} at data offset {begin} {what} (expected {position})")
        position = end
    if position != size:
        _bad(path, f"tensors end at data byte {position}, the data section has {size} bytes (truncated, or bytes too many)")
