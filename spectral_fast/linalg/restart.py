"""Thick-restart Lanczos until the wanted pairs have converged (Wu & Simon 2000), within a budget of products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import is_torch
from .krylov import F64, Krylov
from .products import Apply

__all__ = ["Budget", "Ends", "Ritz", "basis_size", "before_search", "converge", "ritz_of"]

MORE_ROWS = 320
LEAST_ROWS = 64
SEARCH_ROWS = 12  # of the basis that a search for missed pairs needs at least


@dataclass(frozen=True)
class Ends:
    """How many pairs are wanted: largest, smallest, or largest in magnitude."""

    top: int = 0
    bottom: int = 0
    magnitude: int = 0

    @property
    def total(self) -> int:
        return self.top + self.bottom + self.magnitude

    def pick(self, values: F64, extra: int = 0) -> NDArray[np.intp]:
        """Indices (ascending) of the wanted ones among ascending ``values``, and about ``extra`` more of their neighbours."""
        m = len(values)
        if self.magnitude:
            return np.sort(np.argsort(-np.abs(values), kind="stable")[: self.magnitude + extra])
        top = self.top + (extra * self.top) // self.total
        bottom = self.bottom + (extra * self.bottom) // self.total
        if top + bottom >= m:
            return np.arange(m)
        return np.concatenate([np.arange(bottom), np.arange(m - top, m)]).astype(np.intp)

    def limits(self, values: F64) -> tuple[float, float]:
        """(lower, upper): an eigenvalue outside is one that belongs among the wanted ``values`` (ascending)."""
        if self.magnitude:
            least = float(np.abs(values).min())
            return -least, least
        lower = float(values[self.bottom - 1]) if self.bottom else -np.inf
        upper = float(values[len(values) - self.top]) if self.top else np.inf
        return lower, upper


class Budget:
    """Counts products; ``left`` keeps ``reserve`` of them for the final residuals. Products come times ``factor``, a power of two (1) that the first
    of them sets where the squares of its entries would leave float64's range. reduce: see Share."""

    def __init__(self, apply: Apply, limit: int, reserve: int, reduce: Callable[[F64], None] | None = None) -> None:
        self._apply, self.limit, self.reserve, self._reduce = apply, limit, reserve, reduce
        self.device = str(getattr(apply, "device", "cpu"))
        self.used = 0
        self.factor = 0.0

    @property
    def left(self) -> int:
        return self.limit - self.reserve - self.used

    def __call__(self, v: Any) -> Any:
        self.used += len(v)
        w = self._apply(v)
        if self.factor == 0.0:
            most = np.array([float(w.abs().max()) if is_torch(w) else np.abs(w).max(initial=0.0)], dtype=np.float64)
            if self._reduce is not None:
                self._reduce(most)  # of the processes' largest entries the sum is as good as the largest
            largest = float(most[0])
            far = np.isfinite(largest) and largest > 0.0 and not 1e-100 < largest < 1e100
            self.factor = 2.0 ** -np.floor(np.log2(largest)) if far else 1.0
        if self.factor == 1.0:
            return w
        return (w.double() if is_torch(w) else w.astype(np.float64)) * self.factor


@dataclass(frozen=True)
class Ritz:
    """values ascending (m,), coefficients s (m, m) by column, residuals (m,), indices of the wanted ones; whether those have converged."""

    values: F64
    s: F64
    residuals: F64
    wanted: NDArray[np.intp]
    converged: bool


def ritz_of(kry: Krylov, ends: Ends, tol: float) -> Ritz:
    values, s, residuals = kry.ritz()
    wanted = ends.pick(values)
    scale = float(np.abs(values).max(initial=0.0))
    enough = len(wanted) >= min(ends.total, kry.n)
    return Ritz(values, s, residuals, wanted, enough and bool((residuals[wanted] <= tol * scale).all()))


def before_search(kry: Krylov, ends: Ends) -> Ritz:
    """What had been found when the search began that a kill cut off."""
    rows = [j for j in kry.order if j not in kry.chain]
    values = np.asarray(np.linalg.eigvalsh(kry.T[np.ix_(rows, rows)]), dtype=np.float64)
    return Ritz(values, np.zeros((len(rows), 0)), np.zeros(len(rows)), ends.pick(values), True)


def converge(kry: Krylov, ends: Ends, tol: float, budget: Budget, saved: Callable[[Krylov], None] | None = None) -> Ritz:
    """Expand and restart until the wanted pairs have converged or the budget ends. saved: called after every step and restart."""
    next_check = max(ends.total, 1)
    while True:
        while kry.m < min(next_check, kry.capacity) and budget.left > 0:
            kry.chain = []  # of a search that a kill cut off: its vector's recurrence ends here
            if not kry.step(_most_coupled(kry, ends)):
                break
            if saved is not None:
                saved(kry)
        found = ritz_of(kry, ends, tol)
        if found.converged or kry.full or budget.left <= 0:
            return found
        if kry.m >= kry.capacity:
            _shrink(kry, ends, found, kry.capacity)
            if saved is not None:
                saved(kry)
        # the small eigenproblem is not solved after every product: where it takes long, a check late by a twelfth of the basis costs less
        next_check = kry.m + (1 if kry.m < 64 else kry.m // 12)


def _most_coupled(kry: Krylov, ends: Ends) -> list[int] | None:
    """Of several rows that wait the one on which the wanted pairs' residuals depend most."""
    if len(kry.pending) < 2 or not kry.m:
        return None
    values, s, _ = kry.ritz()
    coupling = np.linalg.norm(kry.T[np.ix_(kry.pending, kry.order)] @ s[:, ends.pick(values)], axis=1)
    return [kry.pending[int(np.argmax(coupling))]]


def _shrink(kry: Krylov, ends: Ends, found: Ritz, rows: int) -> None:
    """A restart with the wanted pairs and about half of the rows there are beyond them."""
    extra = max(0, rows - ends.total - 1) // 2
    kept = ends.pick(found.values, extra)
    kry.compress(found.values[kept], np.ascontiguousarray(found.s[:, kept]))


def basis_size(n: int, ends: Ends) -> int:
    """Rows of the Krylov basis before a restart.

    At least as many again as the wanted pairs and some room, or restarts cost more products than they save, and LEAST_ROWS, of which a search for missed ones
    has half; up to MORE_ROWS where 64 MiB hold them, since every restart loses something; all n of a small operator, which never needs one.
    """
    if n <= 512:
        return n
    return min(n, max(2 * ends.total + 24, LEAST_ROWS, min(MORE_ROWS, 2**23 // n)))
