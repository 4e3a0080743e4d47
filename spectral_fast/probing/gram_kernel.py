"""The compiled product of a layer's gradients, by the algorithm that takes fewer operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..kernels.select import select
from ..linalg.arrays import device_of_name
from .layer_grams import GramKernel, flops_of

__all__ = ["gram_kernel"]

F64 = NDArray[np.float64]


def gram_kernel(device: torch.device | str = "cpu", backend: str = "auto") -> tuple[GramKernel, str]:
    """The kernel for factors on ``device`` and its backend's name. Its algorithm "auto" is the cheaper one."""
    where = device_of_name(device)
    compute, name = select("gradient_gram", backend, where)
    return _Kernel(compute) if where == "cpu" else _DeviceKernel(compute), name


class _Kernel:
    """With one position for each sample the products of a weight are those of its inputs times those of its output gradients, entry by entry, and the
    latter are the products of the bias too: the last ones are kept, until :meth:`forget`."""

    def __init__(self, compute: Callable[..., None]) -> None:
        self._compute = compute
        self._last: tuple[NDArray[Any], F64] | None = None

    def __call__(self, gram: F64, a: Any, b: Any = None, a2: Any = None, b2: Any = None, *, algorithm: str = "auto") -> None:
        if a2 is None and b is None:
            gram += self._rows(a)
        elif a2 is None and a.ndim == 3 and a.shape[1] == 1 and algorithm != "gradients":
            self._compute(gram, a[:, 0], algorithm="positions", times=self._rows(b[:, 0]))
        else:
            self._add(gram, a, b, a2, b2, algorithm=_cheaper(a, b, a2) if algorithm == "auto" and b is not None else algorithm)

    def forget(self) -> None:
        """Before memory that products were made of may have been written to."""
        self._last = None

    def _rows(self, x: NDArray[Any]) -> F64:
        if self._last is None or not _same(self._last[0], x):
            self._last = x, self._products(x)
        return self._last[1]

    def _products(self, x: NDArray[Any]) -> F64:
        out = np.zeros((len(x), len(x)))
        self._compute(out, x, algorithm="positions")
        return out

    def _add(self, gram: F64, *factors: Any, algorithm: str) -> None:
        target = np.ascontiguousarray(gram)
        self._compute(target, *factors, algorithm="gradients" if algorithm == "auto" else algorithm)
        if target is not gram:
            gram[:] = target


class _DeviceKernel:
    """Factors are tensors of a device, ``gram`` is the host's: the finished products are all that comes back."""

    def __init__(self, compute: Callable[..., None]) -> None:
        self._compute = compute

    def __call__(self, gram: F64, a: Any, b: Any = None, a2: Any = None, b2: Any = None, *, algorithm: str = "auto") -> None:
        out = torch.zeros(gram.shape, dtype=torch.float64, device=a.device)
        if algorithm == "auto":
            algorithm = "positions" if b is None else _cheaper(a, b, a2)
        self._compute(out, a, b, a2, b2, algorithm=algorithm)
        gram += out.cpu().numpy()


def _same(x: NDArray[Any], y: NDArray[Any]) -> bool:
    """The same numbers: in the same memory, which nobody writes to while ``x`` is held, or one by one."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    return (x.ctypes.data == y.ctypes.data and x.strides == y.strides) or np.array_equal(x, y)


def _cheaper(a: Any, b: Any, a2: Any) -> str:
    t = a.shape[1] if a.ndim == 3 else 1
    m, s = (None, t) if a2 is None else (len(a2), a2.shape[1] if a2.ndim == 3 else 1)
    return min(("positions", "gradients"), key=lambda name: flops_of(name, len(a), t, m, s, a.shape[-1], b.shape[-1]))
