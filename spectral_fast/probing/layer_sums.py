"""Sums over parameters that the spectra and noise scales of gradients need, built up block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .gradient_gram import GradientGram

__all__ = ["LayerSums"]

F64 = NDArray[np.float64]


def _sums(tile: F64, w: F64) -> F64:
    """tile w, on this thread: BLAS would wake its own for it, and leave them waiting by spinning beside torch's."""
    return np.asarray(np.einsum("ij,j->i", tile, w))


class LayerSums:
    """gram: (n, n) float64 over all parameters, lower triangle of what is done (see full). grams: name -> (n, n) of one parameter; moments: name -> sum w g gᵀ
    (P_l, P_l) with means: sum w g (P_l), instead, for parameters of fewer numbers than samples whose gradients are formed anyway. bad: unit -> the first
    parameter whose gradient is not finite. weights: (n,). done: the first so many units are complete.
    """

    def __init__(self, weights: F64, sizes: dict[str, int]) -> None:
        """sizes: parameter name -> P_l."""
        self.weights, self.sizes = weights, sizes
        self._order = {name: i for i, name in enumerate(sizes)}
        self.reset()

    def reset(self) -> None:
        n = len(self.weights)
        self.done = 0
        self.gram = np.zeros((n, n))
        self.grams: dict[str, F64] = {}
        self.moments: dict[str, F64] = {}
        self.means: dict[str, F64] = {}
        self._norms2 = {name: np.zeros(n) for name in self.sizes}
        self._second: dict[str, float] = {}  # sum w |g|² of another accumulator
        self._summed = dict.fromkeys(self.sizes, 0)  # units that moments and means are the sums of
        self._before = {name: np.zeros(n) for name in self.sizes}  # sum of w_j K_ij over earlier blocks' j, and half of it over the own block's
        self._formed = False
        self.bad: dict[int, str] = {}

    def keep_layers(self, few: Sequence[str]) -> None:
        """Keep what eigenvalues per parameter need; few: parameters whose moments are kept instead of their Grams."""
        n = len(self.weights)
        self.grams = {name: np.zeros((n, n)) for name in self.sizes if name not in few}
        self.moments = {name: np.zeros((self.sizes[name], self.sizes[name])) for name in few}
        self.means = {name: np.zeros(self.sizes[name]) for name in few}

    def add_over(self, add_up: Callable[[Tensor], None]) -> None:
        """The parts that all ranks have computed; add_up: t <- sum of the ranks' t."""
        second = np.array([self._second.get(name, 0.0) for name in self.sizes])
        kept = (self.grams, self.moments, self.means, self._norms2, self._before)
        for x in (self.gram, second, *(x for one in kept for x in one.values())):
            add_up(torch.from_numpy(x))
        self._second = dict(zip(self.sizes, second.tolist(), strict=True))
        self.done = len(self.weights)

    def adopt(self, sums: GradientGram) -> None:
        """What another accumulator found."""
        self.done, self.gram, self.bad, self._second, self.grams = sums.done, sums.gram, sums.bad, sums.second, sums.grams
        self.moments = {name: m.double().cpu().numpy() for name, m in sums.moments.items()}
        self.means = {name: m.double().cpu().numpy() for name, m in sums.mean.items()}
        self._formed = True

    def add_own(self, name: str, tile: F64, lo: int) -> None:
        """tile: (c, c) products of the units from lo on with themselves."""
        self._add(name, tile, lo, lo)
        hi = lo + len(tile)
        w, norms2 = self.weights[lo:hi], np.diagonal(tile)
        self._norms2[name][lo:hi] = norms2
        self._before[name][lo:hi] += 0.5 * _sums(tile, w)
        for i in np.flatnonzero(~np.isfinite(norms2)).tolist():
            self.bad[lo + i] = min(name, self.bad.get(lo + i, name), key=self._order.__getitem__)

    def add_products(self, name: str, tile: F64, row: int, column: int) -> None:
        """tile: products of the units from ``row`` on with earlier ones from ``column`` on."""
        self._add(name, tile, row, column)
        self._before[name][row : row + tile.shape[0]] += _sums(tile, self.weights[column : column + tile.shape[1]])

    def add_rows(self, name: str, rows: Tensor, lo: int) -> None:
        """rows: (c, P_l) gradients of the units from lo on."""
        g, w = rows.double().cpu().numpy(), self.weights[lo : lo + len(rows)]
        self._summed[name] = lo + len(rows)
        self.moments[name] += g.T @ (w[:, None] * g)
        self.means[name] += w @ g

    def _add(self, name: str, tile: F64, row: int, column: int) -> None:
        where = (slice(row, row + tile.shape[0]), slice(column, column + tile.shape[1]))
        self.gram[where] += tile
        if name in self.grams:
            self.grams[name][where] = tile

    def interrupted(self) -> None:
        """Moments that are ahead of what is done are given up."""
        for name in [name for name in self.moments if self._summed[name] > self.done]:
            del self.moments[name], self.means[name]

    def layer_moments(self, name: str) -> tuple[float, float]:
        """(weighted mean of |g|², |weighted mean of g|²) of one parameter over the units that are done, weights of sum 1."""
        w = self.weights[: self.done]
        total = float(w.sum())
        if self._formed:
            mean = self.means[name] / total
            return self._second[name] / total, float(mean @ mean)
        return float(w @ self._norms2[name][: self.done]) / total, max(2.0 * float(w @ self._before[name][: self.done]) / total**2, 0.0)

    def layer_moment(self, name: str) -> tuple[F64, F64]:
        """(weighted mean of g gᵀ, of g) of one of ``moments``."""
        total = float(self.weights[: self.done].sum())
        return self.moments[name] / total, self.means[name] / total

    def full(self, gram: F64) -> F64:
        """The lower triangle of what is done, mirrored."""
        lower = np.tril(gram[: self.done, : self.done])
        return np.asarray(lower + np.tril(lower, -1).T)
