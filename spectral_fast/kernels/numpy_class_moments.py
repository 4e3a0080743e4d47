"""Counts, means and scatter of labelled vectors, merged into what is known of those before. Definition and fallback in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["class_moments"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
_CHUNK = 2048  # rows held as float64 at once


def class_moments(features: NDArray[Any], labels: I64, counts: I64, means: F64, scatter: F64, spread: F64) -> None:
    """Merge a block of labelled vectors into the running moments of their classes, in place.

    features: (B, d) float64, float32 or float16, finite. labels: (B,) int64, the class of each row, 0 .. C - 1; a row of a negative label is left out.
    counts: (C,) int64. means: (C, d) float64, of classes that have not occurred anything. scatter: (d, d) float64, symmetric. spread: (C,) float64.
    All four are C-contiguous, zeros before the first block, and afterwards those of all rows so far:

        counts_c = n_c,  means_c = mu_c,  scatter = sum over all rows of (h - mu_c)(h - mu_c)ᵀ,  spread_c = sum over rows of class c of |h - mu_c|²

    Pairwise merge (Chan, Golub & LeVeque 1983, eq. 2.1): the block is centred by its own class means before anything is squared, in float64, and where a
    class had rows before, w (m - mu)(m - mu)ᵀ with w = n n' / (n + n') is added, m and n' being the block's mean and count. A common shift of all
    features costs no digits but those the features themselves lose; equal vectors have no spread at all, to the bit, and the means of a class's first
    block are those of the block, to the bit.

    Accuracy: with every block entry (i, j) of the scatter may go wrong by 500 eps sqrt(scatter_ii scatter_jj) (sums are closed after a few hundred terms), and
    by the error of the means, eps max|h|, times the deviations; errors of the means enter squared. A NaN or infinity spoils its column of its class's
    mean, its row and column of the scatter, and the spread of its class.
    Errors: ValueError for a label of C or more and for shapes that do not fit, naming the argument; nothing has changed then.
    """
    _check(features, labels, counts, means, scatter, spread)
    order = np.flatnonzero(labels >= 0)
    if len(order) == 0:
        return
    order = order[np.argsort(labels[order], kind="stable")]
    present, starts, new = np.unique(labels[order], return_index=True, return_counts=True)
    local = np.repeat(np.arange(len(present)), new)
    # the sum is taken after removing one member of each class: sums of equal vectors then come out exactly
    first = features[order[starts]].astype(np.float64)
    block = np.zeros_like(first)
    parts = [slice(i, min(i + _CHUNK, len(order))) for i in range(0, len(order), _CHUNK)]
    with np.errstate(invalid="ignore", over="ignore"):
        for part in parts:
            at = local[part]
            runs = np.flatnonzero(np.r_[True, at[1:] != at[:-1]])
            block[at[runs]] += np.add.reduceat(features[order[part]] - first[at], runs, axis=0)
        block = first + block / new[:, None]
        products, squares = np.zeros_like(scatter), np.zeros(len(present))
        for part in parts:
            at = local[part]
            centred = features[order[part]] - block[at]
            products += centred.T @ centred
            squares += np.bincount(at, weights=np.einsum("ij,ij->i", centred, centred), minlength=len(present))
        old = counts[present]
        known = old > 0
        total = (old + new).astype(np.float64)
        step = np.where(known[:, None], block - means[present], 0.0)
        for i in range(0, len(present), _CHUNK):
            part = slice(i, i + _CHUNK)
            weighted = np.sqrt(old[part] * (new[part] / total[part]))[:, None] * step[part]
            products += weighted.T @ weighted
            squares[part] += np.einsum("ij,ij->i", weighted, weighted)
        scatter += products
        spread[present] += squares
        # exact for a first block, where new / total = 1 must not round
        means[present] = np.where(known[:, None], means[present] + step * (new / total)[:, None], block)
        counts[present] += new


def _check(features: NDArray[Any], labels: I64, counts: I64, means: F64, scatter: F64, spread: F64) -> None:
    if features.ndim != 2 or features.dtype.kind != "f":
        raise ValueError(f"features: wanted a (B, d) array of floating-point numbers, got {features.shape} of {features.dtype}")
    rows, dim = features.shape
    n_classes = len(counts)
    wanted = {
        "labels": (labels, (rows,), np.int64),
        "counts": (counts, (n_classes,), np.int64),
        "means": (means, (n_classes, dim), np.float64),
        "scatter": (scatter, (dim, dim), np.float64),
        "spread": (spread, (n_classes,), np.float64),
    }
    for name, (array, shape, dtype) in wanted.items():
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{name}: wanted {shape} of {np.dtype(dtype).name}, got {array.shape} of {array.dtype}")
    if rows and labels.max() >= n_classes:
        row = int(np.argmax(labels >= n_classes))
        raise ValueError(f"labels: wanted classes below {n_classes}, got {labels[row]} in row {row}")
