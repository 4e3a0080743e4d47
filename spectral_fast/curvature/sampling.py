"""How far eigenvalues of a curvature matrix would move on another sample of the data: a jackknife over batches.

The matrix is A = sum_b w_b A_b over batches, w_b = terms_b / sum terms. With V (n, k) the converged eigenvectors, M_b = Vᵀ A_b V and
M = sum_b w_b M_b, the eigenvalues without batch b are to second order those of (M - w_b M_b)/(1 - w_b): Rayleigh quotients
v_iᵀ A_b v_i for eigenvalues that stand apart, and right within clusters too, where the vectors turn. The jackknife for groups of unequal
size m_b (Busing, Meijer & van der Leeden 1999), h_b = 1/w_b, of an eigenvalue theta with theta_(b) without group b:

    pseudo-value  t_b = h_b theta - (h_b - 1) theta_(b),     stderr² = mean_b (t_b - theta_J)² / (h_b - 1),
    theta_J = g theta - sum_b (1 - w_b) theta_(b),

for a mean exactly unbiased. What it leaves out: the upward bias of the largest eigenvalue of a sample, and curvature outside V.
Batches are taken to be independent samples of the data; five or more of a loader sorted by class differ more than that, and the error
is then too large, not too small.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..kernels.counters import random_words
from ..linalg.arrays import as_float64
from ..linalg.trace import student_interval
from ..probing.batches import Batch, Batches, chosen_samples
from ..probing.distributed import Ranks
from ..probing.operator import ModelOperator

__all__ = ["SamplingErrors", "jackknife", "random_pieces", "sampling_errors"]

F64 = NDArray[np.float64]

FEWEST = 5  # batches, in the sense of 1 / sum w²; fewer are split
PIECES = 16  # that many; an error bar from g groups is itself known to about 1 in sqrt(2 (g - 1))
AGREE = 1e-3  # of the largest |eigenvalue|: by how much the batches' products may miss the whole


@dataclass(frozen=True, eq=False, kw_only=True)
class SamplingErrors:
    """values: Rayleigh-Ritz values (k,) in the order of the vectors given; stderr: their standard errors from the sampling of the data,
    NaN where ``reason`` says why there is none. groups: batches or pieces compared; effective_groups = 1 / sum w²; pieces: whether
    samples were dealt anew. products: with the whole data."""

    values: F64
    stderr: F64
    groups: int
    effective_groups: float
    pieces: bool
    products: int
    reason: str = ""

    def interval(self, i: int, level: float = 0.95) -> tuple[float, float]:
        """Student t interval of eigenvalue i, effective_groups - 1 degrees of freedom, rounded down."""
        return student_interval(float(self.values[i]), float(self.stderr[i]), int(self.effective_groups + 1e-9), level)


def jackknife(theta: F64, without: F64, weights: F64) -> F64:
    """Standard errors (k,) from ``theta`` (k,), ``without`` (g, k) leaving a group out, ``weights`` (g,) of sum 1; NaN for one group."""
    g = len(weights)
    if g < 2:
        return np.full(np.shape(theta), np.nan)
    h = 1.0 / weights[:, None]
    pseudo = h * theta - (h - 1.0) * without
    centre = g * theta - np.sum((1.0 - weights[:, None]) * without, axis=0)
    return np.asarray(np.sqrt(np.mean((pseudo - centre) ** 2 / (h - 1.0), axis=0)))


def random_pieces(batches: Sequence[Batch], wanted: int, seed: int = 0) -> list[list[Batch]]:
    """All samples dealt at random to ``wanted`` pieces of equal size (fewer where there are fewer samples), each a list of parts of batches.
    At random over all batches, because data sets come sorted by class."""
    bounds = np.cumsum([0, *(batch.size for batch in batches)])
    order = np.argsort(random_words(int(bounds[-1]), seed, 0), kind="stable")
    pieces: list[list[Batch]] = []
    for members in np.array_split(order, min(wanted, len(order))):
        piece = []
        for batch, start, stop in zip(batches, bounds, bounds[1:], strict=False):
            inside = np.sort(members[(members >= start) & (members < stop)]) - start
            if len(inside):
                piece.append(chosen_samples(batch, torch.from_numpy(inside)))
        pieces.append(piece)
    return pieces


def _on(op: ModelOperator, batch: Batch) -> ModelOperator:
    """``op`` on one batch: same model, parameters and loss. Its graph is built once, kept for all vectors and goes with it."""
    single = copy.copy(op)
    changes: dict[str, Any] = {"batches": Batches([batch], device=op.device), "weights": [1.0], "keep": True, "_kept": {}, "_chooser": None}
    for name, value in changes.items():
        setattr(single, name, value)
    single.ranks = Ranks(None)  # other ranks have other numbers of batches
    return single


def _projected(op: Any, q: F64, pieces: list[list[Batch]] | None) -> Iterator[tuple[float, F64]]:
    """(weight, Qᵀ A_b Q (k, k)) of every batch or piece of this process that counts; q: (n, k). k products with all the data, one graph at a time.
    The weights of a ModelOperator's are in any unit."""
    columns = [np.ascontiguousarray(column) for column in q.T]
    own = getattr(op, "batch_products", None)
    if own is not None:
        found = [[(float(weight), q.T @ as_float64(product)) for weight, product in own(v)] for v in columns]
        for group in zip(*found, strict=True):
            yield group[0][0], np.stack([product for _, product in group], axis=1)
        return
    if not isinstance(op, ModelOperator):
        raise TypeError(f"op: wanted a Hessian or GGN, or something with batch_products(v), got {type(op).__name__}")
    used = [[batch] for batch in op.batches] if pieces is None else pieces
    terms = [[weight] for weight in op.weights] if pieces is None else [[op.loss.terms(part) for part in piece] for piece in used]
    for piece, counts in zip(used, terms, strict=True):
        if sum(counts) > 0.0:
            whole: F64 = np.zeros((len(columns), len(columns)))
            for part, count in zip(piece, counts, strict=True):
                if count > 0.0:
                    single = _on(op, part)
                    whole += count / sum(counts) * np.stack([q.T @ as_float64(single.matvec(torch.from_numpy(v))) for v in columns], axis=1)
            yield sum(counts), whole


def _groups(op: Any, seed: int) -> list[list[Batch]] | None:
    """Pieces, where the operator's batches are too few or too unequal; None: the batches as they are. Each of several ranks deals its own samples."""
    if not isinstance(op, ModelOperator) or hasattr(op, "batch_products"):
        return None
    w = op.ranks.concatenated(np.asarray(op.weights, dtype=np.float64))
    return random_pieces(list(op.batches), -(-PIECES // op.ranks.size), seed) if 1.0 / np.sum(w**2) < FEWEST - 1e-9 else None


def sampling_errors(op: Any, vectors: Any, *, seed: int = 0) -> SamplingErrors:
    """Standard errors of the eigenvalues of ``op`` that belong to ``vectors`` (n, k), converged (EigenResult.vectors), from the sampling of
    the data. Costs k + 1 products with the whole data and one graph of every batch.

    op: Hessian, GGN, or anything with ``batch_products(v)`` -> iterator over (weight, product with that batch's matrix), weights of sum 1.
    Fewer than 5 batches (by 1 / sum w²) of a ModelOperator are dealt anew, at random (``seed``), into 16 pieces.
    Raises TypeError, ValueError naming the argument; ArithmeticError for NaN or Inf, or where batches do not add up to ``op``.
    """
    v = as_float64(vectors)
    shape = getattr(op, "shape", None)
    if v.ndim != 2 or shape is None or v.shape[0] != shape[0] or not 1 <= v.shape[1] <= v.shape[0]:
        raise ValueError(f"vectors: wanted shape (n, k) with 1 <= k <= n, n of op's shape {shape}, got {v.shape}")
    k = v.shape[1]
    q, r = np.linalg.qr(v)
    if not np.isfinite(v).all() or np.abs(np.diag(r)).min() < 1e-6 * np.abs(np.diag(r)).max():
        raise ValueError("vectors: wanted finite, linearly independent columns")
    q = q * np.sign(np.diag(r))  # near the columns given
    pieces = _groups(op, seed)
    ranks = op.ranks if isinstance(op, ModelOperator) else Ranks(None)
    with ranks.agreed("products with single batches"):
        parts = list(_projected(op, q, pieces))
    w, m = ranks.concatenated(np.array([weight for weight, _ in parts])), ranks.concatenated(np.array([part for _, part in parts]).reshape(-1, k, k))
    if not len(w):
        raise ValueError("op: none of its batches has a weight")
    if isinstance(op, ModelOperator):
        w = w / w.sum()
    if not np.isfinite(m).all():
        raise ArithmeticError(f"op: the products of {int((~np.isfinite(m)).any(axis=(1, 2)).sum())} of {len(m)} batches hold NaN or Inf")
    m = (m + m.transpose(0, 2, 1)) / 2
    whole = np.tensordot(w, m, axes=1)
    _check_sum(op, q, whole)
    order = np.argsort(np.argsort(-np.diag(whole), kind="stable"), kind="stable")  # rank of each column's Rayleigh quotient
    theta = np.linalg.eigvalsh(whole)[::-1]
    rest = 1.0 - w[:, None, None]
    alone = len(w) < 2
    without = np.zeros((len(w), k)) if alone else np.linalg.eigvalsh((whole - w[:, None, None] * m) / rest)[:, ::-1]
    return SamplingErrors(
        values=np.asarray(theta[order]),
        stderr=jackknife(theta, without, w)[order],
        groups=len(w),
        effective_groups=float(1.0 / np.sum(w**2)),
        pieces=pieces is not None,
        products=k + 1,
        reason="one sample has no sampling error" if alone else "",
    )


def _check_sum(op: Any, q: F64, whole: F64) -> None:
    """The batches' products have to add up to the operator's: a piece may be treated differently (a loss that is no mean over samples)."""
    if not hasattr(op, "__matmul__"):
        return
    direct = q.T @ as_float64(op @ np.ascontiguousarray(q[:, 0]))
    off = float(np.abs(direct - whole[:, 0]).max())
    if not off <= AGREE * float(np.abs(whole).max(initial=0.0)) + np.finfo(np.float64).tiny:
        raise ArithmeticError(f"op: the products with its batches miss its own product by {off:.2g}; their mean is not the whole")
