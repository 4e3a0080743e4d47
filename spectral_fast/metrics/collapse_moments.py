"""Class moments in one pass, and the neural-collapse numbers made from them (numpy only).

Notation: N samples, C classes that occur, features h (N x d); A (C x d) the class means minus the global mean; W the classifier.
Nothing of size C x d x d or N x N is formed; C x C matrices are swept in tiles of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ClassMoments", "NC1", "NC2", "between_rank_tolerance", "cdnv", "nc1", "nc2", "nc3", "nearest_mean", "norm_spread", "relative_spread"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
_TILE = 1024  # rows of a C x C matrix held at once


class ClassMoments:
    """Counts, means and centred scatter of labelled vectors, merged block by block (Chan, Golub & LeVeque 1983, eq. 2.1).

    counts (C,), means (C, d), scatter (d, d) = sum_n (h - mu_c)(h - mu_c)ᵀ pooled over classes, spread (C,) = sum |h - mu_c|²
    per class. Each block is centred by its own class means before anything is squared, so a common shift of the features costs
    no digits; raw second moments are never formed.
    """

    def __init__(self, n_classes: int, dim: int) -> None:
        self.counts: I64 = np.zeros(n_classes, dtype=np.int64)
        self.means: F64 = np.zeros((n_classes, dim))
        self.scatter: F64 = np.zeros((dim, dim))
        self.spread: F64 = np.zeros(n_classes)

    def add(self, features: F64, targets: I64) -> None:
        """features (B, d) float64, targets (B,) in [0, C)."""
        if len(targets) == 0:
            return
        present, local = np.unique(targets, return_inverse=True)
        n_new = np.bincount(local).astype(np.float64)
        # the sum is taken after removing one member of each class: sums of equal vectors then come out exactly
        first = features[_first_rows(local, len(present))]
        block_means = first + _class_sums(features - first[local], local, len(present)) / n_new[:, None]
        centred = features - block_means[local]
        self.scatter += centred.T @ centred
        self.spread[present] += np.bincount(local, weights=np.einsum("ij,ij->i", centred, centred))
        n_old = self.counts[present].astype(np.float64)
        total = n_old + n_new
        delta = block_means - self.means[present]
        weighted = np.sqrt(n_old * n_new / total)[:, None] * delta
        self.scatter += weighted.T @ weighted
        self.spread[present] += np.einsum("ij,ij->i", weighted, weighted)
        # exact for a first block, where n_new / total = 1 must not round
        self.means[present] = np.where((n_old == 0)[:, None], block_means, self.means[present] + delta * (n_new / total)[:, None])
        self.counts[present] += n_new.astype(np.int64)


def _first_rows(local: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    rows = np.zeros(n, dtype=np.intp)
    rows[local[::-1]] = np.arange(len(local) - 1, -1, -1)
    return rows


def _class_sums(x: F64, local: NDArray[np.intp], n: int) -> F64:
    order = np.argsort(local, kind="stable")
    starts = np.searchsorted(local[order], np.arange(n))
    return np.asarray(np.add.reduceat(x[order], starts, axis=0))


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

    Differences are taken directly, not from a Gram matrix, so close means keep their digits. inf when two means coincide.
    """
    var = spread / counts
    n_classes = len(var)
    total = 0.0
    for c in range(n_classes - 1):
        diff = centred_means[c + 1 :] - centred_means[c]
        distance2 = np.einsum("ij,ij->i", diff, diff)
        if not np.all(distance2 > 0.0):
            return math.inf
        total += float(np.sum((var[c + 1 :] + var[c]) / (2.0 * distance2)))
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
    return (slice(i, min(i + _TILE, n)) for i in range(0, n, _TILE))


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
