"""Readers for numpy's files: .npz archives (stored or deflated) and single .npy arrays; written from the format's description.

A .npy file or record: 6 bytes of magic, a version, the length of a header that is a Python literal of descr, fortran_order and shape,
then the elements. Pickled objects, structured arrays and text are listed, never decoded.
"""

from __future__ import annotations

import ast
import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
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
from spectral_fast.checkpoints.zip_records import ZipRecord, inflate
from spectral_fast.linalg.arrays import RawArray

__all__ = ["NPY_MAGIC", "NumpyCheckpoint", "open_npy", "open_npz"]

NPY_MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000  # bytes; numpy's own limit for a literal that is parsed
USUAL = 128  # bytes of a whole header of numpy's
FREE_HEADERS = 2**18  # bytes; deflated, thousands of long headers fit into a small file, and each takes milliseconds

# letter and bytes of numpy's dtype strings
_DTYPES = {
    **{f"f{ITEM_SIZES[name]}": name for name in ("float16", "float32", "float64")},
    **{f"c{ITEM_SIZES[name]}": name for name in ("complex64", "complex128")},
    **{f"{kind[0]}{bits // 8}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    "b1": "bool",
}


class _Header(NamedTuple):
    """length: of everything before the elements, bytes. order: strides as numpy's "C" or "F"."""

    dtype: str
    byteorder: str
    shape: tuple[int, ...]
    order: str
    length: int


class _Array(NamedTuple):
    header: _Header
    record: ZipRecord


class NumpyCheckpoint(Checkpoint):
    """The arrays of a .npz archive by their names in it, or the one of a .npy file by the file's name."""

    def __init__(self, source: ByteSource, kind: str, records: dict[str, ZipRecord]) -> None:
        self.path = source.path
        self.format = kind
        self._source = source
        self._arrays: dict[str, _Array] = {}
        self._left = source.size + FREE_HEADERS
        tensors: list[TensorInfo] = []
        skipped: list[Skipped] = []
        for record_name, record in records.items():
            name = record_name.removesuffix(".npy")
            header = self._header(name, record)
            if isinstance(header, str):
                skipped.append(Skipped(name, header))
                continue
            self._arrays[name] = _Array(header, record)
            nbytes = math.prod(header.shape) * ITEM_SIZES[header.dtype]
            key = StorageKey(self.path.name, name, 0, header.dtype, header.shape, _strides(header))
            tensors.append(TensorInfo(name, header.shape, header.dtype, nbytes, key))
        self.tensors = tuple(tensors)
        self.skipped = tuple(skipped)

    def _header(self, name: str, record: ZipRecord) -> _Header | str:
        """The header of a record, or why it is skipped."""
        if not (record.stored or record.deflated):
            return "compressed by another method than deflate, or encrypted: not read"
        start = inflate(self._source, record, min(record.unpacked, USUAL))
        if not start.startswith(NPY_MAGIC):
            return "no numpy array"
        try:
            needed = min(_length(start), record.unpacked)
            self._left -= needed
            if self._left < 0:
                raise ValueError("its header and those before it are longer than the file")
            if needed > len(start):
                start = inflate(self._source, record, needed)
            header = _parse(start)
        except ValueError as error:
            _bad(self.path, f"array {name!r}: {error}")
        if isinstance(header, str):
            return header
        size = header.length + math.prod(header.shape) * ITEM_SIZES[header.dtype]
        if size != record.unpacked:
            _bad(self.path, f"array {name!r} of shape {list(header.shape)} takes {size} bytes with its header, its record has {record.unpacked}")
        return header

    def read(self, name: str) -> NDArray[Any] | RawArray:
        header, record = self._arrays[name]
        if record.stored:
            data = self._source.read(record.position + header.length, record.size - header.length)
        else:
            data = np.frombuffer(inflate(self._source, record, record.unpacked), np.uint8)[header.length :]
        if header.order == "C":
            return array_from_bytes(data, header.dtype, header.shape, byteorder=header.byteorder)
        turned = array_from_bytes(data, header.dtype, header.shape[::-1], byteorder=header.byteorder)
        return np.ascontiguousarray(np.asarray(turned).T)

    def close(self) -> None:
        self._source.close()


def open_npz(source: ByteSource, records: dict[str, ZipRecord]) -> NumpyCheckpoint:
    """records: the archive's directory."""
    return NumpyCheckpoint(source, "npz", records)


def open_npy(source: ByteSource) -> NumpyCheckpoint:
    return NumpyCheckpoint(source, "npy", {source.path.stem: ZipRecord(0, source.size, True, source.size)})


def _begin(start: bytes) -> int:
    """Where the literal begins."""
    return 10 if start[6] == 1 else 12


def _length(start: bytes) -> int:
    """Of everything before the elements, bytes. start: the first bytes of an array. Raises ValueError for an unknown version, or a length too large."""
    if len(start) < 12:
        raise ValueError(f"ends after {len(start)} bytes")
    version, begin = start[6], _begin(start)
    if version not in (1, 2, 3) or start[7] != 0:
        raise ValueError(f"version {version}.{start[7]} of the format; known are 1.0, 2.0 and 3.0")
    length = int.from_bytes(start[8:begin], "little")
    if length > MAX_HEADER:
        raise ValueError(f"header of {length} bytes, at most {MAX_HEADER} are read")
    return begin + length


def _parse(start: bytes) -> _Header | str:
    """The header at the beginning of an array, or why it is skipped. Raises ValueError where it breaks the format."""
    version, begin, end = start[6], _begin(start), _length(start)
    if end > len(start):
        raise ValueError(f"header of {end - begin} bytes, {len(start) - begin} follow (truncated?)")
    try:
        with warnings.catch_warnings():  # of strange escapes and numbers
            warnings.simplefilter("ignore")
            found = ast.literal_eval(start[begin:end].decode("utf-8" if version == 3 else "latin-1"))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"header is no literal: {str(error)[:200]}") from error
    if not isinstance(found, dict) or found.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError("header is no dict of descr, fortran_order and shape")
    descr, fortran, shape = found["descr"], found["fortran_order"], found["shape"]
    if not isinstance(fortran, bool) or not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise ValueError("fortran_order has to be a bool, shape a tuple of integers >= 0")
    if not isinstance(descr, str):
        return "structured array: not read"
    dtype = _DTYPES.get(descr[1:])
    if dtype is None or descr[0] not in "<>|=":
        return "pickled Python objects: refused, they could run code" if descr[1:2] == "O" else f"dtype {descr[:40]!r}: not decoded"
    if not shape_fits(shape, ITEM_SIZES[dtype]):
        raise ValueError("shape of more than 32 dimensions, or 2**63 bytes or more")
    return _Header(dtype, "big" if descr[0] == ">" else "little", shape, "F" if fortran and len(shape) > 1 else "C", end)


def _strides(header: _Header) -> tuple[int, ...]:
    return contiguous_strides(header.shape) if header.order == "C" else contiguous_strides(header.shape[::-1])[::-1]


def _bad(path: Path, what: str) -> NoReturn:
    raise CheckpointError(f"{path}: not a readable numpy file: {what[:600]}")
