"""Gram-Schmidt and linear combinations of a basis in torch's functions; part of ``torch_kernels``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["orthogonalize", "recombine", "sums_of"]

F64 = NDArray[np.float64]
Reduce = Callable[[F64], None]
Sums = Callable[[Tensor, Tensor, "Tensor | None", bool], Tensor]

_STRIPE_BYTES = 1 << 26  # of all rows of a stripe of columns, as float64
_LOST = 0.01  # of the squared norm: nine tenths of a vector


def _stripes(n: int, rows: int) -> list[slice]:
    width = max(256, _STRIPE_BYTES // max(1, 8 * rows))
    return [slice(a, min(n, a + width)) for a in range(0, n, width)]


def sums_of(v: Tensor, w: Tensor, minus: Tensor | None, dots: bool) -> Tensor:
    """w -= minusᵀ v where given (t, b), then -> (t + 1, b): the dots v wᵀ, zeros without ``dots``, and below them the squared norms of w; float64."""
    sums = torch.zeros((len(v) + 1, len(w)), dtype=torch.float64, device=w.device)
    for part in _stripes(w.shape[1], len(v) + len(w)):
        rows, x = v[:, part].double(), w[:, part].double()
        if minus is not None:
            x = x - minus.mT @ rows
            w[:, part] = x
        if dots:
            sums[:-1] += rows @ x.mT
        sums[-1] += (x * x).sum(1)
    return sums


class _Sweep:
    """``sums`` by a kernel, over all processes: what comes back to the host."""

    def __init__(self, sums: Sums, reduce: Reduce | None) -> None:
        self._sums, self._reduce = sums, reduce

    def __call__(self, v: Tensor, w: Tensor, minus: F64 | None, dots: bool = True) -> tuple[F64, F64]:
        """-> dots (t, b), squared norms (b,)."""
        less = None if minus is None else torch.from_numpy(np.ascontiguousarray(minus)).to(w.device)
        out: F64 = self._sums(v, w, less, dots).cpu().numpy()
        if self._reduce is not None:
            self._reduce(out)
        return out[:-1], out[-1]


def orthogonalize(
    basis: Tensor,
    t: int,
    w: Tensor,
    floor: F64,
    *,
    relative: float = 0.0,
    reduce: Reduce | None = None,
    threads: int = 0,
    sums: Sums = sums_of,
) -> tuple[F64, NDArray[np.bool_]]:
    """See :func:`spectral_fast.kernels.numpy_kernels.orthogonalize`. basis: (rows, n) float64, float32 or bfloat16 and w: (b, n) float64 or float32 on one
    device; ``floor`` and what is returned are arrays of the host. One transfer of (t + 1) b numbers for each pass of the basis. sums: see :func:`sums_of`.
    """
    sweep = _Sweep(sums, reduce)
    b = len(w)
    coefficients = np.zeros((t + b, b))
    kept = np.zeros(b, dtype=bool)
    v = basis[:t]
    dots, squares = sweep(v, w, None)
    if not (np.isfinite(squares).all() and np.isfinite(dots).all()):
        coefficients[:] = np.nan
        return coefficients, kept
    came, least = squares, np.maximum(floor, relative * np.sqrt(squares))
    coefficients[:t] = dots
    if t:
        dots, _ = sweep(v, w, dots)
        coefficients[:t] += dots
        _, squares = sweep(v, w, dots, dots=False)
    narrow = basis.dtype == torch.bfloat16
    new = 0
    for i in range(b):
        one, square = w[i : i + 1], squares[i]
        first = 0 if narrow and square <= _LOST * came[i] else t
        for _ in range(4 if narrow else 2):
            if first == t + new:  # no rows that it has not been taken against
                break
            before = square
            for _ in range(2):
                rows = basis[first : t + new]
                dots, _ = sweep(rows, one, None)
                coefficients[first : t + new, i] += dots[:, 0]
                _, (square,) = sweep(rows, one, dots, dots=False)
            if square > _LOST * before or np.sqrt(square) <= least[i]:
                break
            first = 0
        norm = float(np.sqrt(square))
        if norm > least[i] and t + new < len(basis):
            for part in _stripes(w.shape[1], 2):
                basis[t + new, part] = one[0, part].double() * (1.0 / norm)
            coefficients[t + new, i] = norm
            kept[i] = True
            new += 1
    return coefficients, kept


def recombine(basis: Tensor, m: int, s: F64, into: Tensor, *, threads: int = 0) -> None:
    """See :func:`spectral_fast.kernels.numpy_kernels.recombine`. basis and into are tensors of one device, ``s`` is an array of the host."""
    q = s.shape[1]
    weights = torch.from_numpy(np.ascontiguousarray(s.T)).to(basis.device)
    for part in _stripes(basis.shape[1], m + q):
        into[:q, part] = weights @ basis[:m, part].double()
