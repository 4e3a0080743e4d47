"""Estimators of tr A and of the traces of diagonal blocks from a fixed number of products with a symmetric A (n, n).

P = Q Qᵀ projects on the span of a sketch A Omega. Two identities carry Hutch++ and XTrace, by block too (E the rows of a block):

    A = P A + A P - P A P + (I - P) A (I - P),      tr(E (I - P) A (I - P)) = E[u_lᵀ ((I - P) A u)_l],   u = (I - P) z,

z a Rademacher vector independent of P. The first three terms are known from A Q, so what is random is the last alone, in all and in
every block, and block estimates add up to the whole. Rademacher probes are not rotation invariant: conditional on P, (I - P) z is
not uniform on a sphere and scaling it to one ("resphering", Epperly, Tropp & Webber 2024) would bias the estimate; it is not done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from scipy import sparse

from ..kernels.counters import rademacher
from .arrays import is_torch, multipliable, times
from .krylov import F64
from .leave_two_out import LeaveTwoOut, RowGrams
from .products import finite, real, vector_product

__all__ = ["METHODS", "Estimate", "Estimates", "block_product", "exact", "hutchinson", "hutchpp", "mean_error", "rounding_of_forms", "takes_blocks", "xtrace"]

EPS = float(np.finfo(np.float64).eps)
BLOCK = 16  # vectors in a product of blocks
ROWS = 2**12  # rows worked on at a time
SKETCH_STREAM = 2**33  # of Hutch++'s sketch: streams of no other probes


@dataclass
class Estimate:
    """A trace: ``mean`` and its standard error, ``samples`` (c,) whose mean it is; count - 1 degrees of freedom."""

    mean: float
    stderr: float
    samples: F64


@dataclass
class Estimates:
    whole: Estimate
    by_block: dict[str, Estimate]
    products: int


def mean_error(samples: F64 | list[float], rounding: float = 0.0, extra: float = 0.0) -> Estimate:
    """Mean of samples; its variance is that of independent samples plus ``extra`` plus that of rounding. NaN error for fewer than two."""
    x = np.asarray(samples, dtype=np.float64)
    if len(x) == 0:
        return Estimate(float("nan"), float("nan"), x)
    variance = float(x.var(ddof=1)) / len(x) if len(x) > 1 else float("nan")
    return Estimate(float(x.mean()), float(np.sqrt(variance + max(extra, 0.0) + rounding**2)), x)


def rounding_of_forms(n: int, squared_norms: F64 | list[float]) -> float:
    """Rounding of zᵀ(Az) in float64, |z_i| = 1: at most eps sum |(Az)_i| <= eps sqrt(n) ||Az||. Keeps the error of a diagonal matrix, whose
    samples all agree, from being nothing at all."""
    return EPS * float(np.sqrt(n * np.mean(squared_norms))) if len(squared_norms) else 0.0


# -- products ----------------------------------------------------------------------------------------------------------------


def takes_blocks(op: Any) -> bool:
    """Whether ``op @ V`` with V (n, b) is one product of blocks: arrays, tensors, scipy's operators and what says ``takes_blocks = True``.
    Anything else gets its vectors one by one, so that what counts or reports products counts them right."""
    return is_torch(op) or isinstance(op, np.ndarray) or sparse.issparse(op) or hasattr(op, "matmat") or getattr(op, "takes_blocks", False) is True


def products(op: Any, n: int, count: int, vector: Callable[[int], F64]) -> Iterator[tuple[int, F64, F64]]:
    """(first index, V (n, b), A V) for the vectors 0 ... count - 1. Raises ArithmeticError for NaN or Inf, ValueError for a wrong shape."""
    if not takes_blocks(op):
        apply = vector_product(op)
        for i in range(count):
            v = vector(i)
            yield i, v[:, None], apply(v)[:, None]
        return
    if is_torch(op):
        op = multipliable(op)  # once
    for start in range(0, count, BLOCK):
        v = np.empty((n, min(BLOCK, count - start)), order="F")
        for j in range(v.shape[1]):
            v[:, j] = vector(start + j)
        yield start, v, block_product(op, v)


def block_product(op: Any, v: F64) -> F64:
    """op @ v for v (n, b), float64. Raises ArithmeticError for NaN or Inf, TypeError for complex numbers, ValueError for a wrong shape."""
    w = times(multipliable(op), v) if is_torch(op) else real(op @ v).astype(np.float64, copy=False)
    if w.shape != v.shape:
        raise ValueError(f"op: its product with vectors of shape {v.shape} has shape {w.shape}")
    return finite(w)


def _orthonormal(y: F64) -> tuple[F64, F64]:
    """Y (n, k), overwritten -> (Q, R). Columns of Q stay orthonormal where Y is rank deficient (Householder)."""
    q, r = scipy.linalg.qr(y, mode="economic", overwrite_a=True, check_finite=False)
    return np.asarray(q), np.asarray(r)


def _chunks(rows: slice) -> Iterator[slice]:
    for start in range(rows.start, rows.stop, ROWS):
        yield slice(start, min(start + ROWS, rows.stop))


def _noise(h: F64) -> float:
    """Error of the trace of ``h`` = Qᵀ A Q (k, k), symmetric but for the rounding of the products, which its asymmetry measures."""
    k = len(h)
    return float(np.sqrt(k) * np.linalg.norm(h - h.T) / np.sqrt(2 * k * (k - 1))) if k > 1 else 0.0


# -- methods -----------------------------------------------------------------------------------------------------------------


def exact(op: Any, n: int, blocks: Mapping[str, slice], budget: int, seed: int) -> Estimates:
    """All n diagonal entries by products with unit vectors."""
    diagonal = np.empty(n)

    def unit(i: int) -> F64:
        e = np.zeros(n)
        e[i] = 1.0
        return e

    for start, v, w in products(op, n, n, unit):
        diagonal[start : start + v.shape[1]] = w[np.arange(start, start + v.shape[1]), np.arange(v.shape[1])]

    def known(x: F64) -> Estimate:
        return Estimate(float(x.sum()), 0.0, np.array([x.sum()]))

    return Estimates(known(diagonal), {name: known(diagonal[s]) for name, s in blocks.items()}, n)


def hutchinson(op: Any, n: int, blocks: Mapping[str, slice], budget: int, seed: int) -> Estimates:
    """Hutchinson 1990: E[zᵀAz] = tr A, E[z_lᵀ(Az)_l] = tr A_ll; probe i is that of spectral_density. Memory: a block of vectors."""
    whole, squared = np.empty(budget), np.empty(budget)
    local = {name: np.empty(budget) for name in blocks}
    for start, z, w in products(op, n, budget, lambda i: rademacher(n, seed, i)):
        where = slice(start, start + z.shape[1])
        squared[where] = np.einsum("ij,ij->j", w, w)
        for name, s in blocks.items():
            local[name][where] = np.einsum("ij,ij->j", z[s], w[s])
        whole[where] = np.einsum("ij,ij->j", z, w)
    rounding = rounding_of_forms(n, squared)
    return Estimates(mean_error(whole, rounding), {name: mean_error(x, rounding) for name, x in local.items()}, budget)


def hutchpp(op: Any, n: int, blocks: Mapping[str, slice], budget: int, seed: int) -> Estimates:
    """Hutch++ (Meyer, Musco, Musco & Woodruff 2021): a third of the products for Q, a third for A Q, the others for the residual.

    The residual's samples are independent given Q, so Student's t holds for them. Memory: 2/3 n x budget float64.
    """
    k = budget // 3
    y = np.empty((n, k), order="F")
    for start, v, w in products(op, n, k, lambda i: rademacher(n, seed, SKETCH_STREAM + i)):
        y[:, start : start + v.shape[1]] = w
    q, _ = _orthonormal(y)
    del y
    z = np.empty((n, k), order="F")
    for start, v, w in products(op, n, k, lambda i: np.ascontiguousarray(q[:, i])):
        z[:, start : start + v.shape[1]] = w
    h = np.asarray(q.T @ z)
    rounding = float(np.hypot(_noise(h), EPS * np.sqrt(n) * np.linalg.norm(z)))

    def known(rows: slice) -> float:
        return sum(float(2.0 * np.vdot(q[c], z[c]) - np.vdot(q[c], q[c] @ h)) for c in _chunks(rows))

    count = budget - 2 * k
    whole = np.full(count, float(np.trace(h)))
    local = {name: np.full(count, known(s)) for name, s in blocks.items()}

    def residual_probe(i: int) -> F64:
        g = rademacher(n, seed, i)
        return np.asarray(g - q @ (q.T @ g))

    for start, u, w in products(op, n, count, residual_probe):
        where = slice(start, start + u.shape[1])
        w = w - q @ (q.T @ w)
        for name, s in blocks.items():
            local[name][where] += np.einsum("ij,ij->j", u[s], w[s])
        whole[where] += np.einsum("ij,ij->j", u, w)
    return Estimates(mean_error(whole, rounding), {name: mean_error(x, rounding) for name, x in local.items()}, budget)


def xtrace(op: Any, n: int, blocks: Mapping[str, slice], budget: int, seed: int) -> Estimates:
    """XTrace (Epperly, Tropp & Webber 2024): every probe is both sketch and sample, sample i using the sketch without probe i.

    k = budget // 2 probes; sample t_i is unbiased given the other probes, but the samples share their sketches. The paper's error
    (s²/k of the samples) leaves their covariance out, which is positive: its t intervals cover 134 to 192 of 200 in our tests, and no
    one multiplier mends flat and steep spectra alike. The covariance can be had without products. Let t_ij be sample i with probe j
    left out of its sketch too, and d_ij = t_i - t_ij. Given the other probes t_ij and t_ji are independent and unbiased, and d_ji has
    mean zero given all but probe i, so cov(t_i, t_j) = E[d_ij d_ji], and

        Var(mean) = E[s²/k + mean of d_ij d_ji over i != j]      (unbiased, in all and by block; negative means count as 0).

    Student's t with k - 1 degrees of freedom. Memory: n x budget float64, and a byte for every entry of the probes.
    """
    k = budget // 2
    omega = np.empty((n, k), dtype=np.int8, order="F")
    y = np.empty((n, k), order="F")
    for start, v, w in products(op, n, k, lambda i: rademacher(n, seed, i)):
        omega[:, start : start + v.shape[1]] = v
        y[:, start : start + v.shape[1]] = w
    q, r = _orthonormal(y)
    del y
    z = np.empty((n, k), order="F")
    for start, v, w in products(op, n, k, lambda i: np.ascontiguousarray(q[:, i])):
        z[:, start : start + v.shape[1]] = w
    h, w_ = np.zeros((k, k)), np.zeros((k, k))
    for c in _chunks(slice(0, n)):
        h += q[c].T @ z[c]
        w_ += q[c].T @ omega[c].astype(np.float64)
    rounding = float(np.hypot(_noise(h), EPS * np.sqrt(n) * np.linalg.norm(z)))
    left_out = LeaveTwoOut(r, h, w_)

    def of(rows: slice) -> RowGrams:
        total = RowGrams.zeros(k)
        for c in _chunks(rows):
            total += left_out.grams(q[c], z[c], omega[c].astype(np.float64))
        return total

    def estimate(rows: RowGrams) -> Estimate:
        t = left_out.samples(rows)
        samples = np.diag(t).copy()
        d = samples[:, None] - t
        return mean_error(samples, rounding, extra=float(np.sum(d * d.T)) / (k * (k - 1)))

    whole = RowGrams.zeros(k)
    by_block: dict[str, Estimate] = {}
    tiled = _tiles(n, blocks)
    for name, s in blocks.items():
        part = of(s)
        by_block[name] = estimate(part)
        if tiled:
            whole += part
    return Estimates(estimate(whole if tiled else of(slice(0, n))), by_block, 2 * k)


def _tiles(n: int, blocks: Mapping[str, slice]) -> bool:
    """Whether the blocks cover 0 ... n - 1 once each."""
    at = 0
    for s in sorted(blocks.values(), key=lambda s: (s.start, s.stop)):
        if s.start != at:
            return False
        at = s.stop
    return at == n


Method = Callable[[Any, int, Mapping[str, slice], int, int], Estimates]
# name -> (estimator, fewest products it needs for an error)
METHODS: dict[str, tuple[Method, int]] = {"hutchinson": (hutchinson, 1), "hutch++": (hutchpp, 4), "xtrace": (xtrace, 4)}
