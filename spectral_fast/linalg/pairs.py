"""One run for the pairs of both ends: converge, search for missed ones, measure the residuals, polish where they ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.counters import gaussian
from ..results import Status
from .krylov import F64, Krylov, uninterrupted
from .missed import look_for_missed
from .restart import Budget, Ends, Ritz, before_search, converge, ritz_of
from .saved import SavedRun
from .share import Share

__all__ = ["PairRun", "Pairs"]

POLISH_ROUNDS = 3  # each takes three products of every pair; residuals that do not halve end them sooner
SHARE_OF_TOL = 0.9  # what the Krylov relation's residuals may take; the rest is for the error of the relation itself
SEARCH_ROUNDS = 12  # beyond one for every wanted pair: a search that finds something puts a missed pair in the place of another, or was cut short
EARLY = 4.0  # times tol: residuals at which the search for missed pairs begins, since its products bring the pairs further too
STRANGE = 1e-2  # of the operator's norm: a product that differs by so much is not the same operator's
# A normal number is smaller than this with probability 0.01: what a product of a random combination shows of an error is rarely less.
UNLUCKY = 0.0125


@dataclass
class Pairs:
    """Ritz pairs ascending: values (k,), rows (k, n), residuals (k,)."""

    values: F64
    rows: NDArray[Any]
    residuals: F64


class PairRun:
    """One run. ``pairs`` and ``scale`` are at any time the best there is, so that an interrupt can hand them back."""

    def __init__(self, budget: Budget, n: int, ends: Ends, tol: float, seed: int, share: Share, polish: bool = True) -> None:
        self.budget, self.n, self.ends, self.tol, self.seed, self.share, self.polish = budget, n, ends, tol, seed, share, polish
        self.pairs = Pairs(np.zeros(0), np.zeros((0, share.width)), np.zeros(0))
        self.scale = self.defect = self.error = 0.0
        self.status: Status = "ok"
        self.reason = ""
        self.interrupted = False
        self.saved: SavedRun | None = None
        self.basis: Krylov | None = None  # while ``pairs`` are still to come from it

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
        if self.saved is not None and kry.m:
            self._check_operator(kry)
        self.basis = kry
        found = self._settle(kry)
        self.scale, self.defect = float(np.abs(found.values).max(initial=0.0)), kry.defect
        wanted = found.wanted
        few = len(wanted) <= 2
        small = 0.05 * self.tol * self.scale
        # noise of length e in the products shows e / sqrt(n) in each entry of T, and the largest of hundreds of entries at least as much
        self.error = kry.defect * float(np.sqrt(self.n))
        if self.error > small and not few and self.budget.used < self.budget.limit:
            self.error = self._relation_error(kry, found)
        self._take(kry, found)
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
        verdict = ""
        for _ in range(self.ends.total + SEARCH_ROUNDS):
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
        search = "the search for missed multiple eigenvalues"
        if crowded:
            self._stop(f"{len(kry.rows)} rows of the basis are too few for {search}")
        elif verdict == "undecided":
            self._stop(f"the budget ended before {search} did")
        else:
            self._stop(f"{search} found further ones each of {self.ends.total + SEARCH_ROUNDS} times")
        return ritz_of(kry, self.ends, tol)

    def _relation_error(self, kry: Krylov, found: Ritz) -> float:
        """Bound (0.99) of ||A v_i - Σ_j T_ji v_j|| over the wanted vectors v_i, from one product with a Gaussian combination of them."""
        omega = found.s[:, found.wanted] @ gaussian(len(found.wanted), self.seed, 2**40)
        size = float(np.linalg.norm(omega))
        return kry.relation_error(omega / size, self.budget) * size / UNLUCKY

    def _check_operator(self, kry: Krylov) -> None:
        """Are a run's rows and numbers those of this operator? One product of a Gaussian combination of all rows says so. ValueError where they are not.

        A search's random vector is among the rows, so that a difference outside of the wanted pairs shows too, if not much above the noise."""
        omega = gaussian(kry.m, self.seed, 2**41)
        error = kry.relation_error(omega / np.linalg.norm(omega), self.budget)
        if not np.isfinite(error):
            raise ArithmeticError("op: its product with a unit vector holds NaN or Inf, or numbers whose squares overflow")
        noise = 2.0 * kry.defect * float(np.sqrt(self.n))  # as in ``krylov``: at least that of the products
        # of so few products too little is known; if those to come are another operator's, the projected matrix is not symmetric in the end
        floor = STRANGE if kry.m < 4 else 1e3 * kry.eps
        if error > min(max(noise, floor * kry.scale), 10 * STRANGE * kry.scale):
            raise ValueError(
                f"checkpoint: the file is of another operator: a product differs from what it holds by {error / max(kry.scale, 1e-300):.2g} of the largest one;"
                " name another file for this operator, or delete that one"
            )

    def _take(self, kry: Krylov, found: Ritz) -> None:
        """``pairs`` become the wanted ones, their vectors in the memory of the basis's first rows: it is a basis no more."""
        s = np.ascontiguousarray(found.s[:, found.wanted])
        residuals = np.maximum(found.residuals[found.wanted], kry.eps * self.scale)  # of products that round nothing less can be said
        with uninterrupted():
            self.pairs = Pairs(found.values[found.wanted], kry.taken(s), residuals)
            self.basis = None

    def _measured(self, kry: Krylov) -> None:
        """The residual of every pair from its own product, and better pairs while that helps."""
        products = self._products()
        for _ in range(POLISH_ROUNDS):
            worst = self.pairs.residuals.max(initial=0.0)
            if not self.polish or self.status != "ok" or worst <= self.tol * self.scale:
                return
            count = len(self.pairs.values)
            dtype = "float32" if kry.dtype == "bfloat16" else kry.dtype  # that of the rows, whose products are known
            where: dict[str, Any] = {"backend": kry.backend, "place": kry.place}
            again = Krylov(self.budget, self.n, 3 * count, seed=self.seed, stream=10_000, dtype=dtype, spare=0, share=self.share, **where)
            again.scale = self.scale
            again.load(self.pairs.rows, products)
            better = converge(again, self.ends, 0.3 * self.tol, self.budget)
            self.defect = max(self.defect, again.defect)
            if self.budget.left < 0:
                self._stop(f"{self.budget.limit} products did not suffice")
                return
            self.scale = max(self.scale, float(np.abs(better.values).max(initial=0.0)))
            self._take(again, better)
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
        if self.basis is not None and self.basis.m:
            found = ritz_of(self.basis, self.ends, self.tol)
            self.scale, self.defect = float(np.abs(found.values).max()), max(self.defect, self.basis.defect)
            self._take(self.basis, found)
        self.basis = None
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
