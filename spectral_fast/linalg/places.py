"""Where the rows of a Krylov basis lie: in the host's memory as arrays, or on a device as tensors."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.counters import gaussian, rademacher
from ..memory import SHARE
from .arrays import RawArray, as_numpy, as_tensor, is_torch

__all__ = ["BASIS_DTYPES", "DevicePlace", "HostPlace", "place_of"]

F64 = NDArray[np.float64]
BASIS_DTYPES = {"float64": "float64", "float32": "float32", "bfloat16": "uint16"}  # name -> what numpy holds it in


class HostPlace:
    """Arrays; bfloat16 is kept as its bits."""

    device = "cpu"

    def zeros(self, shape: tuple[int, int], dtype: str) -> NDArray[Any]:
        return np.zeros(shape, dtype=BASIS_DTYPES[dtype])

    def vectors(self, shape: tuple[int, int], dtype: str) -> NDArray[Any]:
        """Memory for vectors in the precision of products: float64 for a basis of float64, else float32."""
        return np.empty(shape, dtype=np.float64 if dtype == "float64" else np.float32)

    def draw(self, kind: str, n: int, seed: int, stream: int, start: int) -> NDArray[Any]:
        """Numbers start ... start + n - 1 of a stream of kernels' ``counters``; kind: "rademacher" or "gaussian"."""
        return (gaussian if kind == "gaussian" else rademacher)(n, seed, stream, start)

    def take(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The rows here."""
        return rows

    def chosen(self, rows: NDArray[Any], indices: Sequence[int]) -> NDArray[Any]:
        """A copy of these rows."""
        return np.asarray(rows[list(indices)])

    def host(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The rows as an array of the host."""
        return rows

    def readable(self, rows: NDArray[Any], dtype: str) -> NDArray[Any]:
        """Stored rows as operators take them."""
        return np.asarray(as_numpy(RawArray(rows, "bfloat16"))) if dtype == "bfloat16" else rows

    def products(self, x: NDArray[Any], y: NDArray[Any]) -> F64:
        """x yᵀ in float64."""
        return np.asarray(x.astype(np.float64) @ y.astype(np.float64).T)


class DevicePlace:
    """Tensors of one device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._torch = sys.modules["torch"]

    def zeros(self, shape: tuple[int, int], dtype: str) -> Any:
        return self._torch.zeros(shape, dtype=getattr(self._torch, dtype), device=self.device)

    def vectors(self, shape: tuple[int, int], dtype: str) -> Any:
        return self._torch.empty(shape, dtype=self._torch.float64 if dtype == "float64" else self._torch.float32, device=self.device)

    def draw(self, kind: str, n: int, seed: int, stream: int, start: int) -> Any:
        from ..kernels import torch_counters

        return (torch_counters.gaussian if kind == "gaussian" else torch_counters.rademacher)(n, seed, stream, start, device=self.device)

    def take(self, rows: Any) -> Any:
        return rows if is_torch(rows) else as_tensor(rows).to(self.device)

    def chosen(self, rows: Any, indices: Sequence[int]) -> Any:
        return self._torch.stack([rows[i] for i in indices])

    def host(self, rows: Any) -> NDArray[Any]:
        return np.asarray(rows.cpu().numpy())

    def readable(self, rows: Any, dtype: str) -> Any:
        return rows.float() if dtype == "bfloat16" else rows

    def products(self, x: Any, y: Any) -> F64:
        return self.host(x.double() @ y.double().mT)


_HOST = HostPlace()


def place_of(apply: object, numbers: int = 0, dtype: str = "float64") -> HostPlace | DevicePlace:
    """Where the vectors are that products of ``apply`` take and give; the host, with a warning, where a basis of so many numbers does not fit there."""
    device = str(getattr(apply, "device", "cpu"))
    if device == "cpu":
        return _HOST
    need, free = numbers * np.dtype(BASIS_DTYPES[dtype]).itemsize, _free(device)
    if need > SHARE * free:
        said = f"op: a Krylov basis of {need / 1e9:.3g} GB does not fit on {device}, of which {free / 1e9:.3g} GB are free: it is kept on the host"
        warnings.warn(said, RuntimeWarning, stacklevel=2)
        return _HOST
    return DevicePlace(device)


def _free(device: str) -> float:
    """Bytes free on a device; infinite where torch cannot tell."""
    torch = sys.modules["torch"]
    if not device.startswith("cuda"):
        return math.inf
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for whoever asks next
    return float(torch.cuda.mem_get_info(torch.device(device))[0] + held)
