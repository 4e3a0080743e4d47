"""Leading singular triplets of a batch from random products, in numpy; part of ``numpy_kernels``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .counters import rademacher, random_words, uniform

__all__ = ["METHODS", "LowRank", "Plan", "plan", "randomized_svd", "signed"]

F64 = NDArray[np.float64]

METHODS = ("auto", "subspace", "krylov", "sketch")
_LEFT_FILL, _RIGHT_FILL, _SPARSE = 2 << 32, 3 << 32, 4 << 32  # streams of the counters; test matrices take 0, 1, ...
_WORTH_IT = 4096  # entries for each column from which the products saved outweigh the decomposition of a larger B
_SHORTER = 6  # times as many rows as their sketch has, from which it saves more than it costs
_PARTS = 4  # of a sketch, to each of which every row is added once
_BLOCK = 16  # columns by which an adaptive rank grows
_DROWNED = 1e-11  # share of |A|^2 below which what is left is formed, not subtracted
_ROOM = 2e-14  # of |A|^2, what |A|^2 - |B|^2 is uncertain by


class Sketch(NamedTuple):
    """``rows`` random combinations of the longer side's rows (0: none), whose leading right singular vectors are found from a Krylov space of
    ``blocks`` blocks of ``width`` columns."""

    rows: int
    width: int
    blocks: int


class Plan(NamedTuple):
    """How a basis grows: ``blocks`` blocks of ``width`` columns (with ``tol`` as many as it takes), each A times the last block of the rows' basis
    (krylov), or A times new random vectors and n_iter times A A^T. With a sketch its vectors are the first block of the rows' basis."""

    width: int
    blocks: int
    krylov: bool
    sketch: Sketch = Sketch(0, 0, 0)


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
    method: "subspace": Q = orth(A Omega) of l = min(rank + oversample, m, n) columns, then n_iter times Q = orth(A orth(A^T Q)) (their algorithm 4.4).
    "krylov": Q spans Omega's Krylov space (Musco & Musco 2015) by block Golub-Kahan bidiagonalization: each further block is A times the last part of A^T
    Q's basis. Narrow blocks bring more for as many products (Meyer, Musco & Musco 2024), so that :func:`plan` takes n_iter + 1 or more blocks of 8, 16 or
    24 that have 1.5 l columns together (more for n_iter > 2). "auto": "krylov" where that is at most half of min(m, n), n_iter > 0 and the matrix has 4096
    l entries or more, so that the products are what takes time. "sketch": Q = orth(A V), V the l leading right singular vectors of S A (Clarkson & Woodruff
    2009), which has r random combinations of A's rows, r = 6 l rounded up to a multiple of 32 (of its columns, with the roles of both sides exchanged,
    where these are more) and is decomposed by "krylov" with 2 l columns or up to a block more: two products leave as much, but where values fall slowly
    each is found less closely. S is sparse, every row of A being added to, or taken from, one random row of each quarter of S A (Cohen 2016): of the
    counters' stream 2^34, word 4 i + t gives in its lowest bit the sign and in the others the place, of row i in quarter t. "auto" takes it for n_iter 1
    where it would take "krylov" and the longer side is at least 6 r. With omega or tol it is "krylov". Then B = Q^T A and its singular value decomposition,
    cut at ``rank``. Where l is min(m, n) nothing is random and the values are exact to rounding.
    omega: (n, l) test matrix, the same for all matrices, instead of Rademacher entries from the counters of ``seed``, stream 0, entry (j, c) being
    number j times width + c; "krylov" then has n_iter + 1 blocks of its width.
    tol: the rank grows by blocks of 16 until |A - Q B|_F <= tol |A|_F, at most to ``rank``, and is then cut to the least that keeps this; a matrix
    that does not get there has ``rank`` triplets. "subspace" draws every block anew, from stream 1 on (randQB_EI, Yu, Gu & Li 2018), "krylov"
    and "auto" go on with the Krylov space. Norms are float64, of the residual itself where their difference does not tell.

    Columns of a block that vanish to rounding against those before (4 eps of their length, or eps of |A|_F) are replaced by A times random vectors,
    or by random ones where A has nothing else. With ``tol``, "krylov" adds n_iter blocks to those that suffice: fewer triplets then do.

    Signs: the entry of largest magnitude in every column of u is positive (the first of equal ones). error: the Frobenius norm of A - u s vt,
    a bound on its spectral norm, as sqrt(|A|_F^2 - s_1^2 - s_2^2 - ...) with room for rounding, or from the difference itself where that would
    be nothing but rounding. Matrices are scaled by a power of two first. One with a NaN or an infinity gives NaN; the others are unaffected.
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
    how = plan(m, n, rank, oversample=oversample, n_iter=n_iter, method=method, tol=tol, omega=omega)
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
        turned = how.sketch.rows > 0 and m < n
        x = x.T if turned else x
        q, b, lost = _basis(x, how, n_iter, tol, k, seed, _leading(x, how, seed) if how.sketch.rows else omega)
        keep = k
        left, values, right = np.linalg.svd(b, full_matrices=False)
        if tol is not None:
            keep, reached[i] = _least(values, lost, tol**2 * float(np.vdot(x, x)), k)
        left, values, right = q @ left[:, :keep], values[:keep], right[:keep]
        left, values, right = signed(right.T, values, left.T) if turned else signed(left, values, right)
        ranks[i] = keep
        u[i, :, :keep], vt[i, :keep] = left, right
        s[i, :keep] = np.ldexp(values, exponent)
        error[i] = np.ldexp(_error(x.T if turned else x, u[i, :, :keep], values, vt[i, :keep]), exponent)
    return LowRank(u, s, vt, error, ranks, reached)


def _error(x: F64, u: NDArray[Any], s: F64, vt: NDArray[Any]) -> float:
    """|x - u s vt|_F from the norms of both, at least, with room for the rounding of u, s and vt; from the difference where little is left."""
    total, kept = float(np.vdot(x, x)), float(np.vdot(s, s))
    left, eps = max(total - kept, 0.0), float(np.finfo(u.dtype).eps)
    if left < _DROWNED * total:
        rounding = 2.0 * float(np.finfo(np.float64).eps) * math.sqrt(total)
        return float(np.linalg.norm(x - (u.astype(np.float64) * s.astype(u.dtype)) @ vt.astype(np.float64))) + rounding
    return float(np.sqrt(left + 64.0 * np.finfo(np.float64).eps * total) + 2.0 * eps * np.sqrt(kept))


def _random(n: int, columns: int, seed: int, stream: int) -> F64:
    return rademacher(n * columns, seed, stream).reshape(n, columns)


def _fill(n: int, columns: int, seed: int, stream: int) -> F64:
    return uniform(n * columns, seed, stream).reshape(n, columns)  # unlike signs never in a space by coincidence


def plan(m: int, n: int, rank: int, *, oversample: int, n_iter: int, method: str, tol: float | None, omega: NDArray[Any] | None) -> Plan:
    """What :func:`randomized_svd` does, for every backend."""
    d = min(m, n)
    if tol is not None:
        return Plan(min(_BLOCK, d), 1, method != "subspace")
    columns = min(rank + oversample, d) if omega is None else omega.shape[1]
    if omega is None:
        if columns == d:
            return Plan(d, 1, False)
        width = 8 if columns <= 24 else 16 if columns <= 64 else 24
        wanted = (9 + max(n_iter - 2, 0)) * columns / 6
        krylov = Plan(min(width, d), max(n_iter + 1, math.ceil(wanted / width)), True)
        rows = -(-6 * columns // 32) * 32
        shorter = min(rows, d)
        sketch = Plan(columns, 1, True, Sketch(rows, min(width, shorter), math.ceil(2 * columns / min(width, shorter))))
    else:
        krylov = sketch = Plan(columns, n_iter + 1, True)
    if method == "sketch":
        return sketch
    if method == "krylov" or (method == "auto" and n_iter > 0 and 2 * krylov.width * krylov.blocks <= d and m * n >= _WORTH_IT * columns):
        return sketch if method == "auto" and n_iter == 1 and max(m, n) >= _SHORTER * sketch.sketch.rows > 0 else krylov
    return Plan(columns, 1, False)


def _leading(x: F64, how: Plan, seed: int) -> F64:
    """(n, l): the leading right singular vectors of a sketch of the (m, n) matrix ``x``."""
    m, n = x.shape
    rows, width, blocks = how.sketch
    part = rows // _PARTS
    words = random_words(_PARTS * m, seed, _SPARSE).reshape(m, _PARTS).astype(np.int64)
    places, signed = ((words >> 1) * part) >> 31, np.where(words & 1, -1.0, 1.0)
    sums = np.zeros((rows, n))
    for t in range(_PARTS):
        order = np.argsort(places[:, t], kind="stable")
        taken, first = np.unique(places[order, t], return_index=True)
        sums[t * part + taken] = np.add.reduceat(x[order] * signed[order, t, None], first, axis=0)
    b = _basis(sums, Plan(width, blocks, True), 0, None, how.width, seed, None)[1]
    leading: F64 = np.linalg.svd(b, full_matrices=False)[2][: how.width].T
    return leading


def _basis(x: F64, how: Plan, n_iter: int, tol: float | None, most: int, seed: int, omega: NDArray[Any] | None) -> tuple[F64, F64, float]:
    """Orthonormal Q (m, r), B = Q^T x (r, n) and |x - Q B|_F^2; with ``tol`` Q has ``most`` columns, or a few more, at most."""
    m, n = x.shape
    d = min(m, n)
    q, b, v = np.zeros((m, 0)), np.zeros((0, n)), np.zeros((n, 0))
    total = lost = float(np.vdot(x, x))
    norm = total**0.5
    whole = how.width == d and omega is None  # no chance is taken
    block, further = 0, n_iter if how.krylov else 0

    def refill(draw: int, columns: int) -> F64:
        stream = _LEFT_FILL + (draw << 20) + block
        return x @ _fill(n, columns, seed, stream) if draw == 0 else _fill(m, columns, seed, stream)

    def refill_rows(draw: int, columns: int) -> F64:
        return _fill(n, columns, seed, _RIGHT_FILL + (draw << 20) + block)

    while True:
        width = min(how.width, d - q.shape[1])
        if how.krylov and block:
            z = _apart_from(v, b[-how.width :].T.copy(), norm, refill_rows)
            v = np.concatenate((v, z), axis=1)
            test = z[:, :width]
        elif whole:
            test = np.eye(n, n if n == d else 0)
        elif omega is not None:
            test = np.asarray(omega, dtype=np.float64)
        else:
            test = _random(n, width, seed, block + (tol is not None))
        fresh = np.eye(m) if whole and m == d else _apart_from(q, x @ test, norm, refill)
        for _ in range(0 if how.krylov or whole else n_iter):
            fresh = _apart_from(q, x @ np.linalg.qr(x.T @ fresh)[0], norm, refill)
        rows = fresh.T @ x
        q, b = np.concatenate((q, fresh), axis=1), np.concatenate((b, rows), axis=0)
        lost = max(lost - float(np.vdot(rows, rows)), 0.0)
        block += 1
        full = q.shape[1] == d
        if tol is None:
            if full or block == how.blocks:
                return q, b, lost
            continue
        allowed = tol**2 * total
        if full or abs(lost - allowed) < _ROOM * total:  # the difference of the norms does not tell
            lost = float(np.linalg.norm(x - q @ b)) ** 2
        if full and lost > allowed and not whole:  # the columns do not span A to rounding: those of A do
            return _basis(x, Plan(d, 1, False), 0, None, most, seed, None)
        if full or lost <= allowed or q.shape[1] >= most:
            if full or further == 0:
                return q, b, lost
            further -= 1


def _apart_from(known: F64, y: F64, norm: float, refill: Callable[[int, int], F64]) -> F64:
    """Orthonormal columns that with ``known`` span what ``y``, a product with a matrix of this norm, adds to it; in the place of those that add
    nothing refill(draw, columns), for draw = 0, 1, ... Twice, as one pass leaves what rounding puts back; what the second takes half of was rounding."""
    size = np.linalg.norm(y, axis=0)
    for draw in range(8):
        once, r = np.linalg.qr(y - known @ (known.T @ y))
        twice, kept = np.linalg.qr(once - known @ (known.T @ once))
        gone = (np.abs(np.diag(r)) <= np.finfo(np.float64).eps * np.maximum(4.0 * size, norm)) | (np.abs(np.diag(kept)) <= 0.5)
        if not gone.any():
            break
        y[:, gone] = refill(draw, int(gone.sum()))
        size[gone], norm = np.linalg.norm(y[:, gone], axis=0), 0.0
    return twice


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
