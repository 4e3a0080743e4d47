"""Class moments in one pass, and the neural-collapse numbers made from them.

Notation: N samples, C classes that occur, features h (N x d); A (C x d) the class means minus the global mean; W the classifier.
Nothing of size C x d x d or N x N is formed; C x C matrices are swept in tiles of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.select import select
from ..linalg.arrays import as_tensor

__all__ = [
    "ClassMoments",
    "NC1",
    "NC2",
    "between_rank_tolerance",
    "cdnv",
    "feature_covariance",
    "nc1",
    "nc2",
    "nc3",
    "nearest_mean",
    "norm_spread",
    "relative_spread",
]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
_TILE, _TILE_NUMBERS = 1024, 1 << 22  # rows of a C x C matrix held at once, and numbers, at most
_CLOSE = 1e-3  # of |a|² + |b|²: three digits of |a - b|² are lost in products, no more
_BLOCK_ROWS = 8192  # merged at once, at most


class ClassMoments:
    """Counts, means and centred scatter of labelled vectors, merged block by block (Chan, Golub & LeVeque 1983, eq. 2.1).

    counts (C,), means (C, d), scatter (d, d) = sum_n (h - mu_c)(h - mu_c)ᵀ pooled over classes, spread (C,) = sum |h - mu_c|²
    per class. Each block is centred by its own class means before anything is squared, so a common shift of the features costs
    no digits; raw second moments are never formed. Small batches are gathered to blocks of 2 d rows, no larger than the scatter.
    backend: of the kernel ``class_moments``; see :func:`spectral_fast.kernels.select.select`. device: where the vectors to come are, as tensors where that
    is not "cpu"; the moments stay there until they are asked for, which is when all has been added.
    """

    def __init__(self, n_classes: int, dim: int, *, backend: str = "auto", device: str = "cpu") -> None:
        self._kernel, self.backend = select("class_moments", backend, device)
        self.device, self.dim = device, dim
        state: tuple[I64, F64, F64, F64] = (np.zeros(n_classes, dtype=np.int64), np.zeros((n_classes, dim)), np.zeros((dim, dim)), np.zeros(n_classes))
        self._state: Any = state if device == "cpu" else tuple(as_tensor(part).to(device) for part in state)
        self._rows = min(2 * dim, _BLOCK_ROWS)
        self._block: Any = np.zeros((0, dim))
        self._labels = np.zeros(self._rows, dtype=np.int64)
        self._filled = 0

    @staticmethod
    def nbytes(n_classes: int, dim: int) -> int:
        """Bytes at most at any time: scatter, the products of a block and its rows, means and those of a block."""
        return 8 * (3 * dim * dim + 2 * n_classes * dim)

    def add(self, features: Any, targets: I64) -> None:
        """features (B, d) float64, float32 or float16, on another device a tensor, of bfloat16 too; targets (B,) int64 in [0, C), negative ones left out.
        Raises ValueError for others."""
        n_classes, dim = self._state[1].shape
        if tuple(features.shape) != (len(targets), dim):
            raise ValueError(f"features: wanted {(len(targets), dim)}, got {tuple(features.shape)}")
        if len(targets) and targets.max() >= n_classes:
            raise ValueError(f"targets: wanted classes below {n_classes}, got {targets.max()}")
        if self._filled and (features.dtype != self._block.dtype or self._filled + len(targets) > self._rows):
            self._merge_block()
        if len(targets) >= self._rows:
            self._add_block(features, np.ascontiguousarray(targets, dtype=np.int64))
            return
        if features.dtype != self._block.dtype or len(self._block) == 0:
            self._block = np.empty((self._rows, dim), dtype=features.dtype) if self.device == "cpu" else features.new_empty((self._rows, dim))
        place = slice(self._filled, self._filled + len(targets))
        self._block[place], self._labels[place] = features, targets
        self._filled = place.stop

    def _merge_block(self) -> None:
        filled, self._filled = self._filled, 0
        if filled:
            self._add_block(self._block[:filled], self._labels[:filled])

    def _add_block(self, features: Any, labels: I64) -> None:
        self._kernel(features, labels if self.device == "cpu" else as_tensor(labels).to(self.device), *self._state)

    def _host(self) -> Any:
        """The state with all that has been added, as arrays; from now on here."""
        self._merge_block()
        if self.device != "cpu":
            self._state = tuple(np.array(part.cpu().numpy()) for part in self._state)
            self._kernel, self.device, self._block = select("class_moments")[0], "cpu", np.zeros((0, self.dim))
        return self._state

    @property
    def counts(self) -> I64:
        out: I64 = self._host()[0]
        return out

    @property
    def means(self) -> F64:
        out: F64 = self._host()[1]
        return out

    @property
    def scatter(self) -> F64:
        out: F64 = self._host()[2]
        return out

    @property
    def spread(self) -> F64:
        out: F64 = self._host()[3]
        return out

    def merge(self, other: ClassMoments) -> None:
        """Add the samples of ``other`` (of the same C and d), by the same formula: as if they had been added here. Raises ValueError for other shapes."""
        if other.means.shape != self.means.shape:
            raise ValueError(f"other: wanted means of shape {self.means.shape}, got {other.means.shape}")
        old, new = self.counts, other.counts
        factor = np.sqrt(old * (new / np.maximum(old + new, 1)))
        for rows in _tiles(len(old)):
            step = np.where(((old[rows] > 0) & (new[rows] > 0))[:, None], other.means[rows] - self.means[rows], 0.0)
            self._add_steps(rows, factor[rows], step)
            share = (new[rows] / np.maximum(old[rows] + new[rows], 1))[:, None]
            self.means[rows] = np.where((old[rows] == 0)[:, None], other.means[rows], self.means[rows] + share * step)
        self.scatter[...] += other.scatter
        self.spread[...] += other.spread
        old += new

    def add_over(self, reduce: Callable[[NDArray[Any]], None]) -> None:
        """Merge the samples of all processes, each of which calls this: afterwards all hold the moments of all of them.

        reduce: adds up an array, float64 or int64, over all processes, in place. Shards may be of any size and empty. Each process takes its share of the
        scatter about the common means, so that here too everything is centred before it is squared, and no process holds more than its own and the sum.
        """
        mine, means = self.counts.copy(), self.means.copy()
        reduce(self.counts)
        total = np.maximum(self.counts, 1)[:, None]
        self.means[...] *= mine[:, None] / total
        reduce(self.means)
        left = (means - self.means) * (mine[:, None] / total)  # what rounding of the large means left out
        reduce(left)
        self.means[...] += left
        for rows in _tiles(len(mine)):
            self._add_steps(rows, np.sqrt(mine[rows]), np.where((mine[rows] > 0)[:, None], means[rows] - self.means[rows], 0.0))
        reduce(self.scatter)
        reduce(self.spread)

    def _add_steps(self, rows: slice, factor: F64, step: F64) -> None:
        weighted = factor[:, None] * step
        self.scatter[...] += weighted.T @ weighted
        self.spread[rows] += np.einsum("ij,ij->i", weighted, weighted)


@dataclass(frozen=True)
class NC1:
    """value = tr(S_W S_B^+) (/ C), rank of S_B used, tolerance on the singular values of A below which a direction was dropped.

    values: (min(C, d),) singular values of A, descending.
    """

    value: float
    rank: int
    tolerance: float
    values: F64


def between_rank_tolerance(means: F64, feature_eps: float) -> float:
    """Norm that rounding can put into the class means (C x d): 10 eps max|mu| (sqrt C + sqrt d).

    Independent entrywise errors of relative size feature_eps, bounded as a random matrix; the factor 10 allows for what a
    forward pass accumulates. Means of many samples are better than that, never worse.
    """
    c, d = means.shape
    return 10.0 * feature_eps * float(np.abs(means).max(initial=0.0)) * (math.sqrt(c) + math.sqrt(d))


def nc1(scatter: F64, n_samples: int, centred_means: F64, tolerance: float, *, per_class: bool = True) -> NC1:
    """NC1 = tr(S_W S_B^+)/C (Papyan, Han & Donoho 2020, eq. 1; per_class=False: without /C), S_W = scatter/N, S_B = AᵀA/C.

    scatter (d, d), centred_means A (C, d). S_B^+ keeps the singular directions of A above `tolerance`, at most C - 1 (the rows
    of A are dependent). No direction left: NaN.
    """
    n_classes = centred_means.shape[0]
    s, vt = np.linalg.svd(centred_means, full_matrices=False)[1:]
    rank = min(int(np.count_nonzero(s > tolerance)), n_classes - 1)
    if rank == 0:
        return NC1(math.nan, 0, tolerance, s)
    kept = vt[:rank]
    within = np.einsum("ij,ij->i", kept @ scatter, kept) / n_samples
    value = n_classes * float(np.sum(within / s[:rank] ** 2))
    return NC1(value / n_classes if per_class else value, rank, tolerance, s)


def cdnv(spread: F64, counts: I64, centred_means: F64) -> float:
    """Class-distance normalized variance: mean over pairs of (var_c + var_c')/(2 |mu_c - mu_c'|²) (Galanti, Gyorgy & Hutter 2021).

    Distances come from products of the means; those of close means, which would lose digits, from their differences. inf when two means coincide.
    """
    var, squares = spread / counts, np.einsum("ij,ij->i", centred_means, centred_means)
    n_classes, total = len(var), 0.0
    for rows in _tiles(n_classes):
        later = slice(rows.start, n_classes)
        scale = squares[rows, None] + squares[later]
        distance2 = scale - 2.0 * (centred_means[rows] @ centred_means[later].T)
        pairs = np.triu(np.ones(distance2.shape, dtype=bool), 1)  # a pair once
        first, second = np.nonzero(pairs & ~(distance2 > _CLOSE * scale))
        for some in (slice(k, k + _TILE) for k in range(0, len(first), _TILE)):
            difference = centred_means[rows.start + first[some]] - centred_means[rows.start + second[some]]
            distance2[first[some], second[some]] = np.einsum("ij,ij->i", difference, difference)
        if not np.all(distance2[pairs] > 0.0):
            return math.inf
        total += float(np.sum((var[rows, None] + var[later])[pairs] / (2.0 * distance2[pairs])))
    return total / (n_classes * (n_classes - 1) / 2)


def relative_spread(scatter: F64, means: F64, counts: I64) -> float:
    """Root mean square distance of the samples to their mean over the length of that mean: 0 where all features are one point.

    scatter (d, d) within the classes, means (C, d) and counts (C,) of the classes that occur. inf for features of mean zero.
    """
    n_samples = int(counts.sum())
    centre = (counts / n_samples) @ means
    between = counts @ np.einsum("ij,ij->i", means - centre, means - centre)
    distance = math.sqrt(max(0.0, float(np.trace(scatter) + between) / n_samples))
    length = float(np.linalg.norm(centre))
    return 0.0 if distance == 0.0 else distance / length if length > 0.0 else math.inf


def feature_covariance(scatter: F64, means: F64, counts: I64) -> F64:
    """sum over all samples of (h - mu)(h - mu)ᵀ / N (d, d), within and between the classes; arguments as in :func:`relative_spread`."""
    n_samples = int(counts.sum())
    centred = means - (counts / n_samples) @ means
    weighted = np.sqrt(counts)[:, None] * centred
    covariance: F64 = weighted.T @ weighted
    covariance += scatter
    covariance /= n_samples
    return covariance


@dataclass(frozen=True)
class NC2:
    """norms: std/mean (population) of the rows' norms; angles: mean over pairs |cos + 1/(C-1)|; etf: Frobenius distance to the simplex."""

    norms: float
    angles: float
    etf: float


def norm_spread(rows: F64) -> float:
    """std / mean of the norms of rows (population std); NaN when all rows are zero."""
    norms = np.linalg.norm(rows, axis=1)
    mean = float(norms.mean())
    return float(norms.std()) / mean if mean > 0.0 else math.nan


def nc2(centred_means: F64) -> NC2:
    """Distance of the rows of A (C, d) from a simplex equiangular tight frame (Papyan, Han & Donoho 2020, eq. 2, 3).

    etf = ||AAᵀ/||AAᵀ||_F - (I - 11ᵀ/C)/sqrt(C-1)||_F. angles is NaN when a class mean equals the global mean.
    """
    a = centred_means
    n_classes = a.shape[0]
    norms = np.linalg.norm(a, axis=1)
    frobenius = math.sqrt(sum(float(np.sum((a[rows] @ a.T) ** 2)) for rows in _tiles(n_classes)))
    if frobenius == 0.0:
        return NC2(math.nan, math.nan, math.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = a / norms[:, None]
    deviation = 0.0
    distance2 = 0.0
    for rows in _tiles(n_classes):
        index = np.arange(rows.start, rows.stop)
        off = np.abs(unit[rows] @ unit.T + 1.0 / (n_classes - 1))
        off[np.arange(len(index)), index] = 0.0
        deviation += float(off.sum())
        simplex = np.full((len(index), n_classes), -1.0 / n_classes)
        simplex[np.arange(len(index)), index] += 1.0
        distance2 += float(np.sum((a[rows] @ a.T / frobenius - simplex / math.sqrt(n_classes - 1)) ** 2))
    return NC2(norm_spread(a), deviation / (n_classes * (n_classes - 1)), math.sqrt(distance2))


def _tiles(n: int) -> Iterator[slice]:
    rows = min(_TILE, max(16, _TILE_NUMBERS // max(n, 1)))
    return (slice(i, min(i + rows, n)) for i in range(0, n, rows))


def nc3(classifier: F64, centred_means: F64) -> float:
    """Self-duality ||W/||W||_F - A/||A||_F||_F (Papyan, Han & Donoho 2020, eq. 4); W and A (C, d). NaN when one of them is zero."""
    w_norm, a_norm = float(np.linalg.norm(classifier)), float(np.linalg.norm(centred_means))
    if w_norm == 0.0 or a_norm == 0.0:
        return math.nan
    return float(np.linalg.norm(classifier / w_norm - centred_means / a_norm))


def nearest_mean(features: F64, global_mean: F64, centred_means: F64) -> NDArray[np.intp]:
    """Index of the nearest class mean of each feature (B, d); the first of equal ones. Everything is shifted by global_mean (d) first."""
    shifted = features - global_mean
    half = 0.5 * np.einsum("ij,ij->i", centred_means, centred_means)
    return np.asarray(np.argmax(shifted @ centred_means.T - half, axis=1))
