"""A few extreme eigenpairs of a symmetric operator: block thick-restart Lanczos with full reorthogonalization.

Wu & Simon 2000; Zhou & Saad 2008 (thick restart, in restart.py). Stop at ||A v - theta v|| <= tol x largest |Ritz value|. A Krylov space of one
vector holds one copy of a multiple eigenvalue, and may miss a member of a cluster, so pairs are accepted only after a random vector, orthogonal to
everything found, has made a missed one improbable by the recurrence of its own Krylov space (missed.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..results import Result
from .arrays import as_float64, is_torch, like
from .krylov import F64, Krylov, dtype_of_basis
from .options import seed_number, whole_number
from .pairs import PairRun, Pairs
from .products import check_operator, product_of
from .restart import SEARCH_ROWS, Budget, Ends, basis_size
from .saved import SavedRun
from .share import Share
from .spread import Spread, spread_of

__all__ = ["EigenResult", "Pairs", "basis_dtype_for", "eigsh", "extreme_pairs", "pairs_so_far", "result_of", "tol_of"]

DENSE_BELOW = 24  # n products give all pairs of so small an operator: no more than a Krylov space takes, with its search, for two or three of them
# Eigenvectors found in parts by several processes are put together in all of them up to so many bytes
GATHERED = 1 << 30


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


def _start_vectors(v0: Any, n: int) -> F64:
    v = as_float64(v0)
    v = v[:, None] if v.ndim == 1 else v
    if v.ndim != 2 or v.shape[0] != n or v.shape[1] < 1 or not np.isfinite(v).all():
        raise ValueError(f"v0: wanted finite vectors of shape ({n},) or ({n}, b), got shape {np.shape(v0)}")
    return np.array(v.T, order="C")


def basis_dtype_for(op: Any, tol: float, basis_dtype: Any) -> str:
    """The name of the basis's format: the one asked for, else float32 where products are float32 and tol is coarse, else float64."""
    return dtype_of_basis(basis_dtype) or ("float32" if str(getattr(op, "dtype", "")).endswith("float32") and tol >= 1e-5 else "float64")


def tol_of(tol: float, dtype: str) -> float:
    """At least what the basis's rounding allows."""
    if isinstance(tol, bool) or not isinstance(tol, (int, float, np.number)) or not 0.0 < tol < 1.0:
        raise ValueError(f"tol: wanted 0 < tol < 1, got {tol!r}")
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
    tol_of(tol, "float64")
    dtype = start.dtype if start is not None else basis_dtype_for(op, tol, basis_dtype)
    tol = tol_of(tol, dtype)
    if block is not None and v0 is not None:
        raise ValueError("block: v0 gives the start vectors; wanted one of the two")
    block = 1 if block is None else whole_number("block", block)
    if block > n:
        raise ValueError(f"block: wanted 1..{n}, got {block}")
    seed_number(seed)
    k = min(ends.total, n)
    limit = max(1000, 40 * k) if max_matvecs is None else whole_number("max_matvecs", max_matvecs)
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
    run = PairRun(budget, n, ends, tol, seed, share, polish)
    rows = basis_size(n, ends) if capacity is None else max(capacity, min(n, ends.total + SEARCH_ROWS))
    try:
        if small:
            run.dense()
        else:
            kry = start
            if kry is None:
                if checkpoint is not None:
                    identity = {"n": n, "ends": (ends.top, ends.bottom, ends.magnitude), "tol": tol, "dtype": dtype, "seed": seed, "block": block}
                    identity["v0"] = None if starts is None else hashlib.sha256(starts.tobytes()).hexdigest()[:16]
                    saved = SavedRun(checkpoint, identity, budget, n, rows, seed=seed, dtype=dtype, spare=block, backend=backend)
                    kry, run.saved = saved.kry, saved
                else:
                    kry = Krylov(budget, n, rows, seed=seed, stream=block, dtype=dtype, spare=block, share=share, backend=backend)
                if not kry.t:
                    kry.add(kry.drawn(range(block), size=float(n) ** -0.5) if starts is None else np.ascontiguousarray(starts[:, share.columns]))
            else:
                kry.apply, budget.factor = budget, 1.0  # its products are unscaled
            # a model is put into the state of a product once, not for each of them
            running = getattr(op, "running", nullcontext)
            with nullcontext() if spread is None else spread.one_interrupt(), running():
                run.krylov(kry)
    except KeyboardInterrupt:
        run.interrupt()
    run.unscale(budget.factor or 1.0)
    return _gathered(run, spread)


def _gathered(run: PairRun, spread: Spread | None) -> tuple[Pairs, dict[str, Any]]:
    """The pairs of a finished search, in all processes, and what is to be said of them."""
    pairs, outcome = run.pairs, {**run.outcome(), "columns": None}
    if spread is not None:
        if len(pairs.rows) * run.n * pairs.rows.itemsize <= GATHERED:
            pairs.rows = spread.gather(pairs.rows)
        else:
            outcome["columns"] = (spread.share.columns.start, spread.share.columns.stop)
    return pairs, outcome


def pairs_so_far(kry: Krylov, ends: Ends, tol: float, used: int) -> tuple[Pairs, dict[str, Any]]:
    """What a basis holds whose run was interrupted; it is used up."""
    run = PairRun(Budget(kry.apply, used, 0), kry.n, ends, tol_of(tol, kry.dtype), kry.seed, kry.share)
    run.budget.used, run.basis = used, kry
    run.interrupt()
    return _gathered(run, kry.apply if isinstance(kry.apply, Spread) else None)


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
    checkpoint: path of a file that keeps the run (its basis beside it): killed and called again, it goes on where it was, after one product, of the budget
        but never refused by it, that shows whether ``op`` is the file's; a ValueError says if not. Not used where all of the operator is computed at once,
        for n <= 24 and k >= n.

    A ModelOperator on several processes (process_group=) spreads the basis over them: call it on all; every one gets the result, without checkpoint=.
    A torch matrix gives torch tensors on its device, everything else, ModelOperators too, numpy arrays. Ctrl-C returns the pairs as
    they stand, status "incomplete". Raises TypeError, ValueError naming the argument; ArithmeticError when a product holds NaN or Inf.
    """
    n = check_operator(op)
    if which not in _WHICH:
        raise ValueError(f"which: unknown {which!r}; known: {', '.join(_WHICH)}")
    wanted = min(whole_number("k", k), n)
    pairs, run = extreme_pairs(
        op, _WHICH[which](wanted), tol=tol, max_matvecs=max_matvecs, block=block, v0=v0, seed=seed, basis_dtype=basis_dtype, checkpoint=checkpoint
    )
    result = result_of(pairs, run, slice(None), wanted)
    if is_torch(op):
        names = ("values", "residuals", "converged", "vectors")
        result = replace(result, **{name: like(op, getattr(result, name)) for name in names})
    return result
