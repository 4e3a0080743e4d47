"""Which part of every long vector a process holds, and how it is gone through."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import is_torch

__all__ = ["PIECE", "Share"]

F64 = NDArray[np.float64]

PIECE = 1 << 20  # entries that are made or looked at at once, so that what is in between stays small


class Share:
    """Which columns of every vector this process holds, and how sums over all columns come about; alone, it holds all of them.

    columns: of the n; reduce: adds up the given float64 array over the processes, in place; agree: replaces it by that of the first process,
    for another processor's eigenvectors of the same matrix may have other signs.
    """

    def __init__(self, n: int, columns: slice | None = None, reduce: Callable[[F64], None] | None = None, agree: Callable[[F64], None] | None = None) -> None:
        self.n = n
        self.columns = slice(0, n) if columns is None else columns
        self.reduce = reduce
        self.agree = agree

    @property
    def width(self) -> int:
        return int(self.columns.stop - self.columns.start)

    def norm(self, x: Any) -> float:
        """|x| of all columns; x (width,) of this process, an array, or a tensor of any device."""
        if is_torch(x):
            total = np.array([float(x.norm(dtype=sys.modules["torch"].float64)) ** 2])
        else:
            total = np.array([float(np.dot(x, x)) if x.dtype == np.float64 else sum(float(np.square(p, dtype=np.float64).sum()) for p in _pieces(x))])
        if self.reduce is not None:
            self.reduce(total)
        return float(np.sqrt(total[0]))


def _pieces(x: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for a in range(0, len(x), PIECE):
        yield x[a : a + PIECE]
