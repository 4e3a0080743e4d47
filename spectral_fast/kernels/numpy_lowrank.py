"""Leading singular triplets of a batch from random products, in numpy; part of ``numpy_kernels``."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .counters import gaussian, rademacher

__all__ = ["ERROR_VECTORS", "METHODS", "LowRank", "randomized_svd", "signed"]

F64 = NDArray[np.float64]

METHODS = ("auto", "subspace", "krylov")
ERROR_VECTORS = 6
_SKETCH, _ERROR = 0, 1 << 32  # streams of the counters; blocks of an adaptive rank take those after the first
_BLOCK = 16  # columns by which an adaptive rank grows
_PASS_BELOW = 3e-7  # |A|^2 - |B|^2 has lost its digits: the residual is formed


class LowRank(NamedTuple):
    """u (b, m, k), s (b, k) descending, vt (b, k, n) in the working precision; error (b,) float64; ranks (b,): the triplets of each matrix, zeros
    behind them; reached (b,): whether ``tol`` was met, where there is one."""

    u: NDArray[Any]
    s: NDArray[Any]
    vt: NDArray[Any]
    error: F64
    ranks: NDArray[np.int64]
    reached: NDArray[np.bool_]


def randomized_svd(
    a: NDArray[Any],
    *,
    rank: int,
    oversample: int = 8,
    n_iter: int = 2,
    method: str = "auto",
    tol: float | None = None,
    seed: int = 0,
    omega: NDArray[Any] | None = None,
) -> LowRank:
    """Leading ``rank`` singular triplets of every matrix of a batch (Halko, Martinsson & Tropp 2011).

    a: (batch, m, n) real, of any dtype and strides; the working precision is float64 for float64 and integers, else float32.
    omega: (n, l) test matrix, the same for all matrices; None: Rademacher from the counters of ``seed``, stream 0, entry (j, c) being number
    j l + c, l = min(rank + oversample, m, n).
    method: "subspace": Q = orth(A Omega), then n_iter times Q = orth(A orth(A^T Q)) (their algorithm 4.4); "krylov": Q spans all n_iter + 1 of
    these blocks (Musco & Musco 2015), as many products with A; "auto": "krylov" where three times l columns are at most half of min(m, n).
    Then B = Q^T A and its singular value decomposition, cut at ``rank``; where Q is the whole space the values are exact to rounding.
    tol: the rank grows by blocks until |A - Q B|_F <= tol |A|_F, at most to ``rank`` (randQB_EI, Yu, Gu & Li 2018), and is then cut to the least
    that keeps this; a matrix that does not get there has ``rank`` triplets. Norms are float64, below 3e-7 from the residual itself.

    Signs: the entry of largest magnitude in every column of u is positive (the first of equal ones). error: of the spectral norm of
    A - u s vt, the smaller of two bounds: its Frobenius norm, sqrt(|A|_F^2 - s_1^2 - s_2^2 - ...), with room for rounding; and 10 sqrt(2 / pi)
    times the largest |(A - u s vt) g| of six Gaussian vectors (stream 2^32), which fails with probability 1e-6 (their equation 4.3, which
    holds for Gaussian vectors only) and still tells something where the first is nothing but rounding. Matrices are scaled by a power of
    two first. One with a NaN or an infinity gives NaN; the others are unaffected.
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}; known: {', '.join(METHODS)}")
    batch, m, n = a.shape
    working = np.dtype(np.float32 if a.dtype.kind == "f" and a.dtype.itemsize <= 4 else np.float64)
    k = min(rank, m, n)
    u, s, vt = np.zeros((batch, m, k), working), np.zeros((batch, k), working), np.zeros((batch, k, n), working)
    error, ranks, reached = np.zeros(batch), np.zeros(batch, np.int64), np.ones(batch, np.bool_)
    if k == 0 or batch == 0:
        return LowRank(u, s, vt, error, ranks, reached)
    test = _sketch(n, min(rank + oversample, m, n), seed, 0) if omega is None else np.asarray(omega, dtype=np.float64)
    probes = gaussian(n * ERROR_VECTORS, seed, _ERROR).reshape(n, ERROR_VECTORS)
    for i in range(batch):
        w = a[i]
        top = max(float(w.max()), -float(w.min()))
        if not np.isfinite(top):
            u[i], s[i], vt[i], error[i] = np.nan, np.nan, np.nan, np.nan
            continue
        if top == 0.0:  # any orthonormal vectors will do
            ranks[i] = 0 if tol is not None else k
            u[i], vt[i] = np.eye(m, k), np.eye(k, n)
            continue
        exponent = int(np.frexp(top)[1])
        half = exponent // 2  # two steps: 2^-exponent alone may overflow
        x = np.multiply(w, 2.0**-half, dtype=np.float64) * 2.0 ** (half - exponent)
        if tol is None:
            q, b = _basis(x, test, n_iter, _chosen(method, n_iter, test.shape[1], min(m, n)))
            keep, lost = k, 0.0
        else:
            q, b, lost = _grown(x, k, tol, n_iter, seed)
        left, values, right = np.linalg.svd(b, full_matrices=False)
        if tol is not None:
            keep, reached[i] = _least(values, lost, tol**2 * float(np.vdot(x, x)), k)
        left, values, right = signed(q @ left[:, :keep], values[:keep], right[:keep])
        ranks[i] = keep
        u[i, :, :keep], vt[i, :keep] = left, right
        s[i, :keep] = np.ldexp(values, exponent)
        kept = (u[i, :, :keep].astype(np.float64) * values.astype(working).astype(np.float64)) @ (vt[i, :keep].astype(np.float64) @ probes)
        likely = 10.0 * np.sqrt(2.0 / np.pi) * float(np.linalg.norm(x @ probes - kept, axis=0).max())
        error[i] = np.ldexp(min(likely, _frobenius(x, values, np.finfo(working).eps)), exponent)
    return LowRank(u, s, vt, error, ranks, reached)


def _frobenius(x: F64, s: F64, eps: float) -> float:
    """|x - u s vt|_F from the norms of both, at least; eps: to which u, s and vt are rounded when they are stored."""
    total, kept = float(np.vdot(x, x)), float(np.vdot(s, s))
    return float(np.sqrt(max(total - kept, 0.0) + 64.0 * np.finfo(np.float64).eps * total) + 2.0 * eps * np.sqrt(kept))


def _sketch(n: int, columns: int, seed: int, block: int) -> F64:
    return rademacher(n * columns, seed, _SKETCH + block).reshape(n, columns)


def _chosen(method: str, n_iter: int, columns: int, d: int) -> str:
    if method != "auto":
        return method
    return "krylov" if n_iter > 0 and 6 * columns <= d else "subspace"


def _basis(x: F64, test: F64, n_iter: int, method: str) -> tuple[F64, F64]:
    """Orthonormal Q (m, r) and B = Q^T x (r, n)."""
    q = np.linalg.qr(x @ test)[0]
    all_q, all_b = [q], [q.T @ x]
    for _ in range(n_iter):
        y = x @ np.linalg.qr(all_b[-1].T)[0]
        if method == "krylov":
            known = np.concatenate(all_q, axis=1)
            room = min(x.shape) - known.shape[1]
            if room <= 0:
                break
            q = _apart_from(known, y)[:, :room]
            all_q.append(q)
            all_b.append(q.T @ x)
        else:
            q = np.linalg.qr(y)[0]
            all_q, all_b = [q], [q.T @ x]
    return np.concatenate(all_q, axis=1), np.concatenate(all_b, axis=0)


def _apart_from(known: F64, y: F64) -> F64:
    """Orthonormal columns that with ``known`` span what ``y`` adds to it; twice, as one pass leaves what rounding puts back."""
    for _ in range(2):
        y = np.linalg.qr(y - known @ (known.T @ y))[0]
    return y


def _grown(x: F64, most: int, tol: float, n_iter: int, seed: int) -> tuple[F64, F64, float]:
    """Q and B that keep ``tol``, or ``most`` and a few columns, and |x - Q B|_F^2."""
    m, n = x.shape
    total = float(np.vdot(x, x))
    q, b = np.zeros((m, 0)), np.zeros((0, n))
    lost, block = total, 0
    while lost > tol**2 * total and q.shape[1] < min(most, m, n):
        width = min(_BLOCK, min(m, n) - q.shape[1])
        block += 1
        test = _sketch(n, width, seed, block)
        fresh = _apart_from(q, x @ test - q @ (b @ test))
        for _ in range(n_iter):
            z = np.linalg.qr(x.T @ fresh)[0]  # of x less Q B: fresh is orthogonal to Q
            fresh = _apart_from(q, x @ z)
        rows = fresh.T @ x
        q, b = np.concatenate((q, fresh), axis=1), np.concatenate((b, rows), axis=0)
        lost = max(lost - float(np.vdot(rows, rows)), 0.0)
        if tol < _PASS_BELOW:
            residual = x - q @ b
            lost = float(np.vdot(residual, residual))
    return q, b, lost


def _least(values: F64, lost: float, allowed: float, most: int) -> tuple[int, bool]:
    """The least number of values without which, and without what is ``lost`` already, at most ``allowed`` is left; or ``most``, and False."""
    tails = np.concatenate((np.cumsum(values[::-1] ** 2)[::-1], [0.0])) + lost
    fits = np.flatnonzero(tails <= allowed)
    least = int(fits[0]) if len(fits) else len(values)
    return min(least, most), len(fits) > 0 and least <= most


def signed(u: F64, s: F64, vt: F64) -> tuple[F64, F64, F64]:
    """The same triplets, the entry of largest magnitude in every column of u positive."""
    at = np.abs(u).argmax(axis=0)
    signs = np.where(u[at, np.arange(u.shape[1])] < 0.0, -1.0, 1.0)
    return u * signs, s, vt * signs[:, None]
