"""A few extreme eigenpairs of a symmetric operator: thick-restart Lanczos with full reorthogonalization.

Wu & Simon 2000 (thick restart, in restart.py). Stop at ||A v - theta v|| <= tol x largest |Ritz value|. A Krylov space of one vector holds one
copy of a multiple eigenvalue, and may miss a member of a cluster, so pairs are accepted only after a second run from a random
vector, orthogonal to them, has made a missed one improbable (Kuczynski & Wozniakowski 1992, bound for a random start).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..results import Result
from .arrays import as_float64
from .krylov import F64, Krylov, check_operator, product_of
from .probes import rademacher
from .restart import Budget, Ends, Pairs, basis_size, converge, find_missed, merge

__all__ = ["EigenResult", "eigsh", "extreme_pairs", "result_of"]

DENSE_BELOW = 24
POLISH_ROUNDS = 3
_BASIS_DTYPES = ("float64", "float32")


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class EigenResult(Result):
    """values (k,) descending; residuals (k,): ||A v - theta v|| from a product with the returned vector; converged (k,): residual
    <= tol x scale; vectors (n, k) orthonormal columns; scale: largest |Ritz value| seen; matvecs: products used, shared with
    other results of the same run; symmetry_defect: largest |uᵀAv - vᵀAu| met for unit vectors, over scale: the operator's asymmetry
    and noise, below which eigenvalues cannot be told from zero. Pairs never reached are NaN. status "incomplete": the budget ended first; "unresolved": the
    residuals stopped falling above tol (noise of the operator)."""

    values: F64
    residuals: F64
    converged: NDArray[np.bool_]
    matvecs: int
    vectors: F64 = field(repr=False)
    tol: float
    scale: float
    symmetry_defect: float = 0.0

    def __len__(self) -> int:
        return len(self.values)


def _true_residuals(budget: Budget, pairs: Pairs) -> tuple[F64, F64]:
    """(products (k, n), residual norms (k,)); pairs the budget does not reach get an infinite residual."""
    products = np.zeros_like(pairs.rows)
    residuals = np.full(len(pairs.values), np.inf)
    for i, row in enumerate(pairs.rows):
        if budget.used >= budget.limit:
            break
        products[i] = budget(row)
        residuals[i] = np.linalg.norm(products[i] - pairs.values[i] * row)
    return products, residuals


def _dense(budget: Budget, n: int, ends: Ends) -> tuple[Pairs, float]:
    """The whole matrix by n products; for operators as small as the number of pairs wanted."""
    a = np.stack([budget(e) for e in np.eye(n)], axis=1)
    budget.defect = float(np.abs(a - a.T).max())
    values, vectors = np.linalg.eigh((a + a.T) / 2)
    wanted = ends.pick(values)
    rows = np.ascontiguousarray(vectors[:, wanted].T)
    residuals = np.linalg.norm(a @ rows.T - rows.T * values[wanted], axis=0)
    return Pairs(values[wanted], rows, residuals), float(np.abs(values).max())


def _start_vectors(v0: Any, n: int, block: int, seed: int) -> list[F64]:
    if v0 is None:
        return [rademacher(n, seed, stream) for stream in range(block)]
    v = as_float64(v0)
    v = v[:, None] if v.ndim == 1 else v
    if v.ndim != 2 or v.shape[0] != n or v.shape[1] < 1 or not np.isfinite(v).all():
        raise ValueError(f"v0: wanted finite vectors of shape ({n},) or ({n}, b), got shape {np.shape(v0)}")
    return [np.array(column) for column in v.T]


def extreme_pairs(
    op: Any,
    ends: Ends,
    *,
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    block: int | None = None,
    v0: Any = None,
    seed: int = 0,
    basis_dtype: Any = None,
    start: Krylov | None = None,
) -> tuple[Pairs, dict[str, Any]]:
    """The pairs of both ends from one run. -> (pairs ascending with true residuals, {status, reason, matvecs, scale, tol, defect}).

    start: a Krylov basis of the same operator already at hand (its products are not counted again).
    """
    n = check_operator(op)
    dtype = np.dtype("float64" if basis_dtype is None else basis_dtype)
    if dtype.name not in _BASIS_DTYPES:
        raise ValueError(f"basis_dtype: unknown {dtype.name}; known: {', '.join(_BASIS_DTYPES)}")
    if not 0.0 < tol < 1.0:
        raise ValueError(f"tol: wanted 0 < tol < 1, got {tol}")
    block = 1 if block is None else int(block)
    if not 1 <= block <= n:
        raise ValueError(f"block: wanted 1..{n}, got {block}")
    k = min(ends.total, n)
    limit = max(1000, 40 * k) if max_matvecs is None else int(max_matvecs)
    small = n <= max(DENSE_BELOW, ends.total)
    if limit < (n if small else 2 * k + 2):
        raise ValueError(f"max_matvecs: {k} pairs of an operator of size {n} need at least {n if small else 2 * k + 2} products, got {limit}")
    starts = _start_vectors(v0, n, block, seed)
    tol = max(tol, 10.0 * float(np.finfo(dtype).eps))
    budget = Budget(product_of(op), limit, 0 if small else k)
    if small:
        pairs, scale = _dense(budget, n, ends)
        defect = budget.defect / scale if scale > 0.0 else 0.0
        return pairs, {"status": "ok", "reason": "", "matvecs": budget.used, "scale": scale, "tol": tol, "defect": defect}

    capacity = basis_size(n, ends)
    if start is not None:
        kry, kry.apply = start, budget
    else:
        kry = Krylov(budget, n, capacity, seed=seed, stream=len(starts), dtype=dtype)
        for v in starts:
            kry.append(v)
    status, reason = "ok", ""
    pairs, scale, converged = converge(kry, ends, 0.5 * tol, budget, 0.0)
    if not converged:
        status, reason = "incomplete", f"{budget.limit} products did not suffice"
    known, stream = pairs, 10_000
    while converged and len(known.values) < n and kry.m < kry.space:
        missed, decided = find_missed(budget, n, known, ends, 0.5 * tol, scale, capacity, seed, stream, dtype)
        stream += 10_000
        if missed is None:
            if not decided:
                status, reason = "incomplete", "the budget ended before the search for missed multiple eigenvalues did"
            break
        known = merge(known, missed)
    chosen = ends.pick(known.values)
    pairs = Pairs(known.values[chosen], known.rows[chosen], known.residuals[chosen])
    products, residuals = _true_residuals(budget, pairs)
    del kry
    worst = residuals.max(initial=0.0)
    for _ in range(POLISH_ROUNDS):
        if status != "ok" or worst <= tol * scale:
            break
        again = Krylov(budget, n, max(capacity, 3 * k), seed=seed, stream=stream, dtype=dtype)
        again.load(pairs.rows, products)
        better, scale, _ = converge(again, ends, 0.3 * tol, budget, scale)
        del again
        if budget.left < 0:
            status, reason = "incomplete", f"{budget.limit} products did not suffice"
            break
        pairs = better
        products, residuals = _true_residuals(budget, pairs)
        stalled, worst = residuals.max() > 0.5 * worst, residuals.max()
        if stalled and worst > tol * scale:
            status, reason = "unresolved", f"residuals stay at {worst / scale:.2g} of the largest eigenvalue: the operator is noisy or not symmetric"
            break
    pairs.residuals = residuals
    defect = budget.defect / scale if scale > 0.0 else 0.0
    return pairs, {"status": status, "reason": reason, "matvecs": budget.used, "scale": scale, "tol": tol, "defect": defect}


def result_of(pairs: Pairs, run: dict[str, Any], select: NDArray[Any] | slice, k: int) -> EigenResult:
    """The selected pairs, descending, padded with NaN to ``k`` where the budget reached fewer."""
    values, rows, residuals = pairs.values[select][::-1], pairs.rows[select][::-1], pairs.residuals[select][::-1]
    short = k - len(values)
    if short > 0:
        values, residuals = np.pad(values, (0, short), constant_values=np.nan), np.pad(residuals, (0, short), constant_values=np.nan)
        rows = np.pad(rows, ((0, short), (0, 0)), constant_values=np.nan)
    with np.errstate(invalid="ignore"):
        converged = residuals <= run["tol"] * run["scale"]
    return EigenResult(
        values=values.copy(),
        residuals=residuals.copy(),
        converged=converged,
        vectors=np.ascontiguousarray(rows).T,
        matvecs=run["matvecs"],
        tol=run["tol"],
        scale=run["scale"],
        symmetry_defect=run["defect"],
        status=run["status"],
        reason=run["reason"],
    )


_WHICH: dict[str, Callable[[int], Ends]] = {
    "LA": lambda k: Ends(top=k),
    "SA": lambda k: Ends(bottom=k),
    "LM": lambda k: Ends(magnitude=k),
    "BE": lambda k: Ends(top=k - k // 2, bottom=k // 2),
}


def eigsh(
    op: Any,
    k: int = 6,
    *,
    which: str = "LA",
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    block: int | None = None,
    v0: Any = None,
    seed: int = 0,
    basis_dtype: Any = None,
    checkpoint: Any = None,
) -> EigenResult:
    """``k`` eigenpairs of a symmetric operator, descending.

    op:    (n, n) array, torch tensor, scipy LinearOperator, ModelOperator: anything with .shape and @ on numpy vectors.
    k:     number of pairs; all n of them when k >= n.
    which: "LA" largest, "SA" smallest, "LM" largest in magnitude, "BE" from both ends (the odd one from the top).
    tol:   relative residual, ||A v - theta v|| <= tol x largest |Ritz value|; at least 10 eps of the basis dtype.
    max_matvecs: budget of products, max(1000, 40 k) by default; where it ends first the status is "incomplete".
    block: number of start vectors (1). v0: start vectors (n,) or (n, b) instead. basis_dtype: "float64" or "float32".

    Raises TypeError, ValueError naming the argument; ArithmeticError when a product holds NaN or Inf.
    """
    n = check_operator(op)
    if which not in _WHICH:
        raise ValueError(f"which: unknown {which!r}; known: {', '.join(_WHICH)}")
    if int(k) != k or k < 1:
        raise ValueError(f"k: wanted a positive integer, got {k}")
    if checkpoint is not None:
        raise ValueError("checkpoint: not available yet")
    wanted = min(int(k), n)
    pairs, run = extreme_pairs(op, _WHICH[which](wanted), tol=tol, max_matvecs=max_matvecs, block=block, v0=v0, seed=seed, basis_dtype=basis_dtype)
    return result_of(pairs, run, slice(None), wanted)
