"""A few extreme eigenpairs of a symmetric operator: block thick-restart Lanczos with full reorthogonalization.

Wu & Simon 2000; Zhou & Saad 2008 (thick restart, in restart.py). Stop at ||A v - theta v|| <= tol x largest |Ritz value|. A Krylov space of one
vector holds one copy of a multiple eigenvalue, and may miss a member of a cluster, so pairs are accepted only after a random vector, orthogonal to
everything found, has made a missed one improbable by the recurrence of its own Krylov space.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.counters import gaussian
from ..results import Result, Status
from .arrays import as_float64, is_torch, like
from .krylov import BASIS_DTYPES, F64, Krylov, Share, check_operator, product_of, uninterrupted
from .restart import SEARCH_ROWS, Budget, Ends, Ritz, basis_size, before_search, converge, look_for_missed, ritz_of
from .saved import SavedRun
from .spread import Spread, spread_of

__all__ = ["EigenResult", "Pairs", "basis_dtype_for", "eigsh", "extreme_pairs", "pairs_so_far", "result_of"]

DENSE_BELOW = 24
POLISH_ROUNDS = 3
SHARE_OF_TOL = 0.9  # what the Krylov relation's residuals may take; the rest is for the error of the relation itself
SEARCH_ROUNDS = 12
EARLY = 4.0
# A normal number is smaller than this with probability 0.01: what a product of a random combination shows of an error is rarely less.
UNLUCKY = 0.0125
# Eigenvectors found in parts by several processes are put together in all of them up to so many bytes
GATHERED = 1 << 30
# Noise of length e in the products shows e / sqrt(n) in each entry of T, and the largest of the hundreds or thousands of them at least as much.
NOISE_IN_DEFECT = 1.0


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class EigenResult(Result):
    """values (k,) descending; residuals (k,): ||A v - theta v||, converged (k,): residual <= tol x scale; vectors (n, k) orthonormal columns; scale:
    largest |Ritz value| seen; matvecs: products used, shared with other results of the same run.

    Residuals are those of the Krylov relation, whose own error is ``residual_error``: the noise of products as the asymmetry of the projected matrix shows
    it; where that is not small beside tol, a bound (with probability 0.99) from the product of a random combination of the vectors; and where that is not
    small either, or for a pair or two, each residual is that of a product with the returned vector, and residual_error 0. symmetry_defect: largest |uᵀAv -
    vᵀAu| met for unit vectors, over scale: the operator's asymmetry and noise, below which eigenvalues cannot be told from zero. Pairs never reached are
    NaN. status "incomplete": the budget ended first, or Ctrl-C, after which residuals may be the Krylov basis's own estimates; "unresolved": the residuals
    stopped falling above tol, or the operator is not symmetric to tol. Arrays are torch tensors on the operator's device where it was a torch matrix.
    vectors have the precision of the basis (float32 for "bfloat16").

    columns: None; where several processes found them and k n entries take more than 1 GiB, (first, last + 1) of the n entries of the vectors which
    this process holds: vectors is (last + 1 - first, k) then."""

    values: F64
    residuals: F64
    converged: NDArray[np.bool_]
    matvecs: int
    vectors: NDArray[Any] = field(repr=False)
    tol: float
    scale: float
    symmetry_defect: float = 0.0
    residual_error: float = 0.0
    columns: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.values)


@dataclass
class Pairs:
    """Ritz pairs ascending: values (k,), rows (k, n), residuals (k,)."""

    values: F64
    rows: NDArray[Any]
    residuals: F64


def _start_vectors(v0: Any, n: int) -> F64:
    v = as_float64(v0)
    v = v[:, None] if v.ndim == 1 else v
    if v.ndim != 2 or v.shape[0] != n or v.shape[1] < 1 or not np.isfinite(v).all():
        raise ValueError(f"v0: wanted finite vectors of shape ({n},) or ({n}, b), got shape {np.shape(v0)}")
    return np.array(v.T, order="C")


class _Search:
    """One run. ``pairs`` and ``scale`` are at any time the best there is, so that an interrupt can hand them back."""

    def __init__(self, budget: Budget, n: int, ends: Ends, tol: float, seed: int, share: Share, polish: bool = True) -> None:
        self.budget, self.n, self.ends, self.tol, self.seed, self.share, self.polish = budget, n, ends, tol, seed, share, polish
        self.pairs = Pairs(np.zeros(0), np.zeros((0, share.width)), np.zeros(0))
        self.scale = self.defect = self.error = 0.0
        self.status: Status = "ok"
        self.reason = ""
        self.interrupted = False
        self.saved: SavedRun | None = None
        self._basis: Krylov | None = None  # while ``pairs`` are still to come from it

    def dense(self) -> None:
        """The whole matrix by n products; for operators as small as the number of pairs wanted."""
        a = np.concatenate([self.budget(e[None, :]) for e in np.eye(self.n)]).T.astype(np.float64)
        if not np.isfinite(a).all():
            raise ArithmeticError(f"op: its products with unit vectors hold {int((~np.isfinite(a)).sum())} NaN or Inf of {a.size} entries")
        self.defect = float(np.abs(a - a.T).max())
        values, vectors = np.linalg.eigh((a + a.T) / 2)
        wanted = self.ends.pick(values)
        residuals = np.linalg.norm(a @ vectors[:, wanted] - vectors[:, wanted] * values[wanted], axis=0)
        self.pairs = Pairs(values[wanted], np.ascontiguousarray(vectors[:, wanted].T), residuals)
        self.scale = float(np.abs(values).max())
        self._judge()

    def krylov(self, kry: Krylov) -> None:
        """Converge, look for what was missed, measure the residuals and polish where they ask for it. ``kry`` is used up."""
        self._basis = kry
        found = self._settle(kry)
        self.scale, self.defect = float(np.abs(found.values).max(initial=0.0)), kry.defect
        wanted = found.wanted
        few = len(wanted) <= 2
        small = 0.05 * self.tol * self.scale
        self.error = NOISE_IN_DEFECT * kry.defect * float(np.sqrt(self.n))
        if self.error > small and not few and self.budget.used < self.budget.limit:
            self.error = self._relation_error(kry, found)
        self.pairs = self._taken(kry, found)
        self._basis = None
        if few or (self.error > 0.1 * self.tol * self.scale and self.status == "ok"):
            self.error = 0.0
            self._measured(kry)
        self._judge()

    def _settle(self, kry: Krylov) -> Ritz:
        """Wanted pairs that have converged and of which none is likely to be missed, or what there is when the budget ends."""
        tol = SHARE_OF_TOL * self.tol
        save = None if self.saved is None else self.saved.save
        if self.saved is not None and self.saved.settled:
            return ritz_of(kry, self.ends, tol)
        crowded = False
        for _ in range(SEARCH_ROUNDS):
            # the search's products bring the pairs further too, so it comes a little early
            found = before_search(kry, self.ends) if kry.chain else converge(kry, self.ends, EARLY * tol, self.budget, save)
            if not found.converged and not kry.full:
                self._stop(f"{self.budget.limit} products did not suffice")
                return found
            verdict = look_for_missed(kry, self.ends, found, tol, self.budget, save, all_rows=crowded)
            if verdict == "none" or kry.full:
                found = converge(kry, self.ends, tol, self.budget, save)
                if not (found.converged or kry.full):
                    self._stop(f"{self.budget.limit} products did not suffice")
                elif self.saved is not None:
                    self.saved.save(kry, settled=True)
                return found
            if verdict == "undecided" or (verdict == "crowded" and crowded):
                break
            crowded = verdict == "crowded"
        what = f"{len(kry.rows)} rows of the basis are too few for" if crowded else "the budget ended before"
        self._stop(f"{what} the search for missed multiple eigenvalues{'' if crowded else ' did'}")
        return ritz_of(kry, self.ends, tol)

    def _relation_error(self, kry: Krylov, found: Ritz) -> float:
        """Bound (0.99) of ||A v_i - Σ_j T_ji v_j|| over the wanted vectors v_i, from one product with a Gaussian combination of them."""
        omega = found.s[:, found.wanted] @ gaussian(len(found.wanted), self.seed, 2**40)
        c = np.zeros(kry.t)
        c[kry.order] = omega
        size = float(np.linalg.norm(omega))
        v = kry.combination(c / size)
        w = self.budget(v)
        kry.combination(kry.T[: kry.t, kry.order] @ (omega / size), into=v)
        w -= v
        return self.share.norm(w[0]) * size / UNLUCKY

    def _taken(self, kry: Krylov, found: Ritz) -> Pairs:
        """The wanted pairs, their vectors in the memory of the basis's first rows: it is a basis no more."""
        s = np.ascontiguousarray(found.s[:, found.wanted])
        with uninterrupted():
            rows = kry.taken(s)
        return Pairs(found.values[found.wanted], rows, found.residuals[found.wanted])

    def _measured(self, kry: Krylov) -> None:
        """The residual of every pair from its own product, and better pairs while that helps."""
        products = self._products()
        for _ in range(POLISH_ROUNDS):
            worst = self.pairs.residuals.max(initial=0.0)
            if not self.polish or self.status != "ok" or worst <= self.tol * self.scale:
                return
            count = len(self.pairs.values)
            dtype = "float32" if kry.dtype == "bfloat16" else kry.dtype  # that of the rows, whose products are known
            again = Krylov(self.budget, self.n, 3 * count, seed=self.seed, stream=10_000, dtype=dtype, spare=0, share=self.share, backend=kry.backend)
            again.scale = self.scale
            again.load(self.pairs.rows, products)
            better = converge(again, self.ends, 0.3 * self.tol, self.budget)
            self.defect = max(self.defect, again.defect)
            if self.budget.left < 0:
                self._stop(f"{self.budget.limit} products did not suffice")
                return
            self.scale = max(self.scale, float(np.abs(better.values).max(initial=0.0)))
            self.pairs = self._taken(again, better)
            products = self._products()
            if self.pairs.residuals.max() > 0.5 * worst:  # they have stopped falling
                return

    def _products(self) -> NDArray[Any]:
        """Each residual becomes that of its product, infinite where the budget ends first."""
        pairs = self.pairs
        products = np.zeros_like(pairs.rows)
        for i, row in enumerate(pairs.rows):
            if self.budget.used >= self.budget.limit:
                pairs.residuals[i:] = np.inf
                break
            products[i] = self.budget(row[None, :])[0]
            pairs.residuals[i] = self.share.norm(products[i].astype(np.float64) - pairs.values[i] * row)
        return products

    def interrupt(self) -> None:
        """Keep what the run has: the residuals are the basis's own estimates where no product has measured them."""
        self.interrupted = True
        if self._basis is not None and self._basis.m:
            found = ritz_of(self._basis, self.ends, self.tol)
            self.scale, self.defect = float(np.abs(found.values).max()), max(self.defect, self._basis.defect)
            self.pairs = self._taken(self._basis, found)
        self._basis = None
        self._stop(f"interrupted after {self.budget.used} products")

    def unscale(self, factor: float) -> None:
        """Back from the multiples the budget gave."""
        self.pairs = Pairs(self.pairs.values / factor, self.pairs.rows, self.pairs.residuals / factor)
        self.scale, self.defect, self.error = self.scale / factor, self.defect / factor, self.error / factor

    def outcome(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "reason": self.reason,
            "interrupted": self.interrupted,
            "matvecs": self.budget.used,
            "scale": self.scale,
            "tol": self.tol,
            "defect": self.defect / self.scale if self.scale > 0.0 else 0.0,
            "error": self.error,
        }

    def _stop(self, why: str) -> None:
        self.status, self.reason = "incomplete", why

    def _judge(self) -> None:
        """Residuals and asymmetry above tol: the numbers are not eigenvalues to that accuracy."""
        worst, limit = float(self.pairs.residuals.max(initial=0.0)) + self.error, self.tol * self.scale
        if self.status != "ok" or max(worst, self.defect) <= limit:
            return
        why = f"residuals stay at {worst / self.scale:.2g}" if worst > limit else f"products are symmetric only to {self.defect / self.scale:.2g}"
        self.status, self.reason = "unresolved", f"{why} of the largest eigenvalue: the operator is noisy or not symmetric"


def basis_dtype_for(op: Any, tol: float, basis_dtype: Any) -> str:
    """The name of the basis's format: the one asked for, else float32 where products are float32 and tol is coarse, else float64."""
    if basis_dtype is None:
        return "float32" if str(getattr(op, "dtype", "")).endswith("float32") and tol >= 1e-5 else "float64"
    name = str(basis_dtype).removeprefix("torch.") if not isinstance(basis_dtype, type) else np.dtype(basis_dtype).name
    name = {"bf16": "bfloat16"}.get(name, name)
    if name not in BASIS_DTYPES:
        raise ValueError(f"basis_dtype: unknown {name}; known: {', '.join(BASIS_DTYPES)}")
    return name


def tol_of(tol: float, dtype: str) -> float:
    """At least what the basis's rounding allows."""
    if not 0.0 < tol < 1.0:
        raise ValueError(f"tol: wanted 0 < tol < 1, got {tol}")
    return max(tol, 10.0 * {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-11}[dtype])


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
    checkpoint: Any = None,
    share: Share | None = None,
    polish: bool = True,
    backend: str = "auto",
) -> tuple[Pairs, dict[str, Any]]:
    """The pairs of both ends from one run. -> (pairs ascending, {status, reason, interrupted, matvecs, scale, tol, defect, error, columns}).

    An operator with ``sharded`` (see spread.Spread) has its basis spread over its processes, all of which get the same pairs; columns: see EigenResult.
    capacity: rows of the basis, at least ends.total + 12; None: basis_size. start: a Krylov basis of the same operator already at hand
    (its products are not counted again); it is used up. polish: compute the pairs again from their products where residuals ask for it, which takes the
    memory of as many vectors once more. KeyboardInterrupt ends the run, not the caller: see ``interrupted``.
    """
    n = check_operator(op)
    dtype = start.dtype if start is not None else basis_dtype_for(op, tol, basis_dtype)
    tol = tol_of(tol, dtype)
    block = 1 if block is None else int(block)
    if not 1 <= block <= n:
        raise ValueError(f"block: wanted 1..{n}, got {block}")
    k = min(ends.total, n)
    limit = max(1000, 40 * k) if max_matvecs is None else int(max_matvecs)
    small = n <= max(DENSE_BELOW, ends.total) and share is None and start is None
    whole = small or share is not None or (start is not None and start.share.reduce is None)
    spread = None if whole else spread_of(op)
    if spread is not None and checkpoint is not None:
        raise ValueError("checkpoint: not available for a basis that is spread over processes")
    if limit < (n if small else k + 3):
        raise ValueError(f"max_matvecs: {k} pairs of an operator of size {n} need at least {n if small else k + 3} products, got {limit}")
    if checkpoint is not None and not Path(checkpoint).parent.is_dir():
        raise ValueError(f"checkpoint: there is no folder {str(Path(checkpoint).parent)!r}")
    starts = None if v0 is None else _start_vectors(v0, n)
    share = share or (start.share if start is not None else spread.share if spread is not None else Share(n))
    budget = Budget(spread or product_of(op), limit, 0 if small else min(k, 2), share.reduce)
    search = _Search(budget, n, ends, tol, seed, share, polish)
    rows = basis_size(n, ends) if capacity is None else max(capacity, min(n, ends.total + SEARCH_ROWS))
    try:
        if small:
            search.dense()
        else:
            kry = start
            if kry is None:
                if checkpoint is not None:
                    identity = {"n": n, "ends": (ends.top, ends.bottom, ends.magnitude), "tol": tol, "dtype": dtype, "seed": seed, "block": block}
                    saved = SavedRun(checkpoint, identity, budget, n, rows, seed=seed, dtype=dtype, spare=block, backend=backend)
                    kry, search.saved = saved.kry, saved
                else:
                    kry = Krylov(budget, n, rows, seed=seed, stream=block, dtype=dtype, spare=block, share=share, backend=backend)
                if not kry.t:
                    kry.add(np.concatenate([kry.random(i) for i in range(block)]) if starts is None else np.ascontiguousarray(starts[:, share.columns]))
            else:
                kry.apply, budget.factor = budget, 1.0  # its products are unscaled
            # a model is put into the state of a product once, not for each of them
            running = getattr(op, "running", nullcontext)
            with nullcontext() if spread is None else spread.one_interrupt(), running():
                search.krylov(kry)
    except KeyboardInterrupt:
        search.interrupt()
    search.unscale(budget.factor or 1.0)
    return _gathered(search, spread)


def _gathered(search: _Search, spread: Spread | None) -> tuple[Pairs, dict[str, Any]]:
    """The pairs of a finished search, in all processes, and what is to be said of them."""
    pairs, outcome = search.pairs, {**search.outcome(), "columns": None}
    if spread is not None:
        if len(pairs.rows) * search.n * pairs.rows.itemsize <= GATHERED:
            pairs.rows = spread.gather(pairs.rows)
        else:
            outcome["columns"] = (spread.share.columns.start, spread.share.columns.stop)
    return pairs, outcome


def pairs_so_far(kry: Krylov, ends: Ends, tol: float, used: int) -> tuple[Pairs, dict[str, Any]]:
    """What a basis holds whose run was interrupted; it is used up."""
    search = _Search(Budget(kry.apply, used, 0), kry.n, ends, tol_of(tol, kry.dtype), kry.seed, kry.share)
    search.budget.used, search._basis = used, kry
    search.interrupt()
    return _gathered(search, kry.apply if isinstance(kry.apply, Spread) else None)


def result_of(pairs: Pairs, run: dict[str, Any], select: NDArray[Any] | slice, k: int) -> EigenResult:
    """The selected pairs, descending, padded with NaN to ``k`` where the budget reached fewer."""
    values, rows, residuals = pairs.values[select][::-1], pairs.rows[select][::-1], pairs.residuals[select][::-1]
    short = k - len(values)
    if short > 0:
        values, residuals = np.pad(values, (0, short), constant_values=np.nan), np.pad(residuals, (0, short), constant_values=np.nan)
        rows = np.pad(rows, ((0, short), (0, 0)), constant_values=np.nan)
    with np.errstate(invalid="ignore"):
        converged = residuals + run["error"] <= run["tol"] * run["scale"]
    return EigenResult(
        values=values.copy(),
        residuals=residuals.copy(),
        converged=converged,
        vectors=rows.T,
        matvecs=run["matvecs"],
        tol=run["tol"],
        scale=run["scale"],
        symmetry_defect=run["defect"],
        residual_error=run["error"],
        columns=run.get("columns"),
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
    checkpoint: str | Path | None = None,
) -> EigenResult:
    """``k`` eigenpairs of a symmetric operator, descending.

    op:    (n, n) array, torch tensor, scipy LinearOperator, ModelOperator: anything with .shape and @ on numpy vectors.
    k:     number of pairs; all n of them when k >= n.
    which: "LA" largest, "SA" smallest, "LM" largest in magnitude, "BE" from both ends (the odd one from the top).
    tol:   relative residual, ||A v - theta v|| <= tol x largest |Ritz value|; at least 10 eps of the basis dtype.
    max_matvecs: budget of products, max(1000, 40 k) by default; where it ends first the status is "incomplete".
    block: number of start vectors (1). v0: start vectors (n,) or (n, b) instead.
    basis_dtype: "float64", "float32" or "bfloat16" (half the memory; tol at least 5e-3); None: float32 for an operator of float32 and tol >= 1e-5.
    checkpoint: path of a file that keeps the run (its basis beside it): killed and called again, it goes on where it was.

    A ModelOperator on several processes (process_group=) spreads the basis over them: call it on all; every one gets the result, without checkpoint=.
    A torch matrix gives torch tensors on its device, everything else, ModelOperators too, numpy arrays. Ctrl-C returns the pairs as
    they stand, status "incomplete". Raises TypeError, ValueError naming the argument; ArithmeticError when a product holds NaN or Inf.
    """
    n = check_operator(op)
    if which not in _WHICH:
        raise ValueError(f"which: unknown {which!r}; known: {', '.join(_WHICH)}")
    if int(k) != k or k < 1:
        raise ValueError(f"k: wanted a positive integer, got {k}")
    wanted = min(int(k), n)
    pairs, run = extreme_pairs(
        op, _WHICH[which](wanted), tol=tol, max_matvecs=max_matvecs, block=block, v0=v0, seed=seed, basis_dtype=basis_dtype, checkpoint=checkpoint
    )
    result = result_of(pairs, run, slice(None), wanted)
    if is_torch(op):
        names = ("values", "residuals", "converged", "vectors")
        result = replace(result, **{name: like(op, getattr(result, name)) for name in names})
    return result
