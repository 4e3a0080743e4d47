"""A few extreme eigenpairs of a symmetric operator: thick-restart Lanczos with full reorthogonalization.

Wu & Simon 2000 (thick restart, in restart.py). Stop at ||A v - theta v|| <= tol x largest |Ritz value|. A Krylov space of one vector holds one
copy of a multiple eigenvalue, and may miss a member of a cluster, so pairs are accepted only after a second run from a random
vector, orthogonal to them, has made a missed one improbable (Kuczynski & Wozniakowski 1992, bound for a random start).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.counters import rademacher
from ..results import Result, Status
from .arrays import as_float64, is_torch, like
from .krylov import F64, Krylov, check_operator, product_of
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
    and noise, below which eigenvalues cannot be told from zero. Pairs never reached are NaN. status "incomplete": the budget ended
    first, or Ctrl-C, after which residuals may be the Krylov basis's own estimates; "unresolved": the residuals stopped falling above
    tol, or the operator is not symmetric to tol. Arrays are torch tensors on the operator's device where it was a torch matrix."""

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


def _start_vectors(v0: Any, n: int, block: int, seed: int) -> list[F64]:
    if v0 is None:
        return [rademacher(n, seed, stream) for stream in range(block)]
    v = as_float64(v0)
    v = v[:, None] if v.ndim == 1 else v
    if v.ndim != 2 or v.shape[0] != n or v.shape[1] < 1 or not np.isfinite(v).all():
        raise ValueError(f"v0: wanted finite vectors of shape ({n},) or ({n}, b), got shape {np.shape(v0)}")
    return [np.array(column) for column in v.T]


class _Search:
    """One run. ``pairs`` and ``scale`` are at any time the best there is, so that an interrupt can hand them back."""

    def __init__(self, budget: Budget, n: int, ends: Ends, tol: float, seed: int) -> None:
        self.budget, self.n, self.ends, self.tol, self.seed = budget, n, ends, tol, seed
        self.pairs = Pairs(np.zeros(0), np.zeros((0, n)), np.zeros(0))
        self._products = self.pairs.rows  # of ``pairs``, once made
        self.scale = 0.0
        self.status: Status = "ok"
        self.reason = ""
        self.interrupted = False
        self._basis: Krylov | None = None  # of the first run, while ``pairs`` are still to come from it

    def dense(self) -> None:
        """The whole matrix by n products; for operators as small as the number of pairs wanted."""
        a = np.stack([self.budget(e) for e in np.eye(self.n)], axis=1)
        self.budget.defect = float(np.abs(a - a.T).max())
        values, vectors = np.linalg.eigh((a + a.T) / 2)
        wanted = self.ends.pick(values)
        residuals = np.linalg.norm(a @ vectors[:, wanted] - vectors[:, wanted] * values[wanted], axis=0)
        self.pairs = Pairs(values[wanted], np.ascontiguousarray(vectors[:, wanted].T), residuals)
        self.scale = float(np.abs(values).max())
        self._judge()

    def krylov(self, kry: Krylov, capacity: int, polish_capacity: int, stream: int) -> None:
        """Converge, look for what was missed, measure the residuals and polish where they ask for it. ``kry`` is used up."""
        self._basis = kry
        dtype = kry.rows.dtype
        self.pairs, self.scale, converged = converge(kry, self.ends, 0.5 * self.tol, self.budget, 0.0)
        self._basis = None
        whole = kry.m >= kry.space
        kry.free()  # the search below makes a basis of its own
        if not converged:
            self._stop(f"{self.budget.limit} products did not suffice")
        known = self.pairs
        search = 10_000
        while converged and not whole and len(known.values) < self.n:
            missed, decided = find_missed(self.budget, self.n, known, self.ends, 0.5 * self.tol, self.scale, capacity, self.seed, search, dtype)
            search += 10_000
            if missed is None:
                if not decided:
                    self._stop("the budget ended before the search for missed multiple eigenvalues did")
                break
            known = merge(known, missed)
            chosen = self.ends.pick(known.values)
            self.pairs = Pairs(known.values[chosen], known.rows[chosen], known.residuals[chosen])
        del known
        self._true_residuals(self.pairs)
        worst = self.pairs.residuals.max(initial=0.0)
        for _ in range(POLISH_ROUNDS):
            if self.status != "ok" or worst <= self.tol * self.scale:
                break
            count = len(self.pairs.values)
            again = Krylov(self.budget, self.n, polish_capacity, seed=self.seed, stream=stream, dtype=dtype, spare=count)
            again.load(self.pairs.rows, self._products)
            self._products = np.zeros((0, self.n))  # they are in the basis now
            better, self.scale, _ = converge(again, self.ends, 0.3 * self.tol, self.budget, self.scale)
            del again
            if self.budget.left < 0:
                self._stop(f"{self.budget.limit} products did not suffice")
                break
            self.pairs = better
            self._true_residuals(better)
            before, worst = worst, better.residuals.max()
            if worst > 0.5 * before:  # they have stopped falling
                break
        self._judge()

    def interrupt(self) -> None:
        """Keep what the run has: the residuals are the basis's own estimates where no product has measured them."""
        self.interrupted = True
        if self._basis is not None and self._basis.m:
            values, s, residuals = self._basis.ritz()
            wanted = self.ends.pick(values)
            self.pairs = Pairs(values[wanted], self._basis.vectors(s[:, wanted]), residuals[wanted])
            self.scale = float(np.abs(values).max())
            self.budget.defect = max(self.budget.defect, self._basis.defect)
        self._basis = None
        self._stop(f"interrupted after {self.budget.used} products")

    def outcome(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "reason": self.reason,
            "interrupted": self.interrupted,
            "matvecs": self.budget.used,
            "scale": self.scale,
            "tol": self.tol,
            "defect": self.budget.defect / self.scale if self.scale > 0.0 else 0.0,
        }

    def _true_residuals(self, pairs: Pairs) -> None:
        """Each residual becomes that of its product, infinite where the budget ends first."""
        self._products = products = np.zeros_like(pairs.rows)
        for i, row in enumerate(pairs.rows):
            if self.budget.used >= self.budget.limit:
                pairs.residuals[i:] = np.inf
                break
            products[i] = self.budget(row)
            pairs.residuals[i] = np.linalg.norm(products[i] - pairs.values[i] * row)

    def _stop(self, why: str) -> None:
        self.status, self.reason = "incomplete", why

    def _judge(self) -> None:
        """Residuals and asymmetry above tol: the numbers are not eigenvalues to that accuracy."""
        worst, limit = float(self.pairs.residuals.max(initial=0.0)), self.tol * self.scale
        if self.status != "ok" or max(worst, self.budget.defect) <= limit:
            return
        why = f"residuals stay at {worst / self.scale:.2g}" if worst > limit else f"products are symmetric only to {self.budget.defect / self.scale:.2g}"
        self.status, self.reason = "unresolved", f"{why} of the largest eigenvalue: the operator is noisy or not symmetric"


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
    capacity: int | None = None,
    start: Krylov | None = None,
) -> tuple[Pairs, dict[str, Any]]:
    """The pairs of both ends from one run. -> (pairs ascending with true residuals, {status, reason, interrupted, matvecs, scale, tol, defect}).

    capacity: rows of the bases, at least ends.total + 2; None: basis_size. start: a Krylov basis of the same operator already at hand
    (its products are not counted again); it is used up. KeyboardInterrupt ends the run, not the caller: see ``interrupted``.
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
    search = _Search(budget, n, ends, tol, seed)
    rows = basis_size(n, ends) if capacity is None else max(capacity, min(n, ends.total + 2))
    try:
        if small:
            search.dense()
        else:
            if start is not None:
                kry, kry.apply = start, budget
            else:
                kry = Krylov(budget, n, rows, seed=seed, stream=len(starts), dtype=dtype, spare=len(starts))
                for v in starts:
                    kry.append(v)
            search.krylov(kry, rows, rows if capacity is not None else max(rows, 3 * k), 10_000)
    except KeyboardInterrupt:
        search.interrupt()
    return search.pairs, search.outcome()


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

    A torch matrix gives torch tensors on its device, everything else, ModelOperators too, numpy arrays. Ctrl-C returns the pairs as
    they stand, status "incomplete". Raises TypeError, ValueError naming the argument; ArithmeticError when a product holds NaN or Inf.
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
    result = result_of(pairs, run, slice(None), wanted)
    if is_torch(op):
        names = ("values", "residuals", "converged", "vectors")
        result = replace(result, **{name: like(op, getattr(result, name)) for name in names})
    return result
