"""What every checkpoint reader gives: names, shapes, dtypes, and the bytes of one tensor when asked for.

A reader parses and checks its file's directory when it is opened and touches no tensor data before :meth:`Checkpoint.read` (but for what stands
beside that directory in the last window of a GGUF file's header).
Anything a file can do wrong ends in :class:`CheckpointError`; anything in a good file that is no readable tensor is listed
in :attr:`Checkpoint.skipped` with its reason.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spectral_fast.linalg.arrays import FORMATS, CodedArray, RawArray

__all__ = ["ITEM_SIZES", "Checkpoint", "CheckpointError", "Skipped", "StorageKey", "TensorInfo", "array_from_bytes", "contiguous_strides", "shape_fits"]

# Every dtype a reader may give, with its bytes per element. The names are numpy's, or linalg.arrays.FORMATS's where numpy has none.
ITEM_SIZES: dict[str, int] = {name: f.bits // 8 for name, f in FORMATS.items()} | {
    "complex64": 8,
    "complex128": 16,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "bool": 1,
}

_NUMPY_NATIVE = frozenset(name for name in ITEM_SIZES if name != "bfloat16" and not name.startswith("float8"))


class CheckpointError(ValueError):
    """A file that cannot be read as a checkpoint: the message names the path, what was found and what would be right."""


class StorageKey(NamedTuple):
    """Where a tensor's elements lie. Two tensors with equal keys are the same memory seen the same way, that is, tied.

    file:    file name, so that shards never collide.
    storage: the storage's key inside the file ("" for formats without shared storages).
    offset:  bytes from the beginning of the storage (of the data section where there are no storages).
    strides: in elements.
    """

    file: str
    storage: str
    offset: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the file declares it.

    dtype:   a key of :data:`ITEM_SIZES`; "float32" for block formats, which are decoded to that.
    nbytes:  bytes of its own elements in the file (a view of a large storage counts only itself).
    storage: hashable; equal for two tensors exactly when they are tied. Weights that lie side by side in one flat storage
             (LSTM weights saved on a GPU) differ in offset and are not tied. Tensors without elements are never tied.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    storage: StorageKey


@dataclass(frozen=True)
class Skipped:
    """An entry of the file that is not offered as a tensor, and why."""

    name: str
    reason: str


class Checkpoint(ABC):
    """An open checkpoint. Use as a context manager, or call :meth:`close`.

    path:    what was opened.
    format:  "safetensors", "torch-zip", "torch-legacy", "torchscript", "torch-distributed", "npz", "npy", "gguf", or "sharded" followed by the
             shards' format, e.g. "sharded safetensors".
    tensors: every readable tensor, in the file's order.
    skipped: every other entry that is more than a plain number, string or list of those.
    """

    path: Path
    format: str
    tensors: tuple[TensorInfo, ...]
    skipped: tuple[Skipped, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that what it gives depends on."""
        return (self.path,)

    @abstractmethod
    def read(self, name: str) -> NDArray[Any] | RawArray | CodedArray:
        """The elements of tensor ``name``: a new C-contiguous array of its shape, a RawArray for bfloat16 and 8-bit floats, a CodedArray for block formats.

        Reads this tensor's bytes only. May be called from several threads.
        Raises KeyError for an unknown name, CheckpointError when the file has changed since it was opened or was closed.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the file. May be called twice."""

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self.path)!r}: {self.format}, {len(self.tensors)} tensors, {len(self.skipped)} skipped>"


def shape_fits(shape: tuple[int, ...], item_size: int) -> bool:
    """Whether numpy can hold such an array: at most 32 dimensions, and below 2**63 bytes even where a dimension is zero."""
    return len(shape) <= 32 and math.prod(max(n, 1) for n in shape) * item_size < 2**63


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def array_from_bytes(
    data: NDArray[np.uint8], dtype: str, shape: tuple[int, ...], strides: tuple[int, ...] | None = None, byteorder: str = "little"
) -> NDArray[Any] | RawArray:
    """Bytes of a file as an array of ``shape``.

    data: one-dimensional uint8, from the tensor's first element to its last. strides: in elements, None = row-major.
    """
    order: Literal["<", ">"] = "<" if byteorder == "little" else ">"
    size = ITEM_SIZES[dtype]
    if dtype == "bool":
        flat: NDArray[Any] = data != 0  # a file may hold any byte; numpy's bool must be 0 or 1
    elif dtype in _NUMPY_NATIVE:
        flat = data.view(np.dtype(dtype).newbyteorder(order))
    else:
        flat = data.view(np.dtype(f"{order}u{size}"))
    flat = flat.astype(flat.dtype.newbyteorder("="), copy=False)
    if strides is None or math.prod(shape) == 0 or all(n == 1 or s == c for n, s, c in zip(shape, strides, contiguous_strides(shape), strict=True)):
        array = flat.reshape(shape)
    else:
        view = np.lib.stride_tricks.as_strided(flat, shape, tuple(s * size for s in strides), writeable=False)
        array = np.array(view, order="C")
    return array if dtype in _NUMPY_NATIVE else RawArray(array, dtype)
