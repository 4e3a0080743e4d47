"""Thick-restart Lanczos until the wanted pairs have converged, and the search for the ones it may have missed.

Wu & Simon 2000 (thick restart); Kuczynski & Wozniakowski 1992 (what a Krylov space of a random vector misses, and how likely).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.counters import gaussian
from .krylov import F64, Apply, Krylov

__all__ = ["Budget", "Ends", "Pairs", "basis_size", "converge", "find_missed", "merge"]

MISS_PROBABILITY = 1e-3
MORE_ROWS = 320


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
    """Counts products; ``left`` keeps ``reserve`` of them for the final residuals."""

    def __init__(self, apply: Apply, limit: int, reserve: int) -> None:
        self._apply, self.limit, self.reserve = apply, limit, reserve
        self.used = 0
        self.defect = 0.0  # of all bases of this run, see Krylov

    @property
    def left(self) -> int:
        return self.limit - self.reserve - self.used

    def __call__(self, v: F64) -> F64:
        self.used += 1
        return self._apply(v)


@dataclass
class Pairs:
    """Ritz pairs ascending: values (k,), rows (k, n), residuals (k,), products A rows (k, n) once known."""

    values: F64
    rows: F64
    residuals: F64


def converge(kry: Krylov, ends: Ends, tol: float, budget: Budget, scale: float) -> tuple[Pairs, float, bool]:
    """Expand and restart until the wanted pairs have converged or the budget ends. -> (pairs, scale, converged)."""
    extra = max(0, kry.capacity - ends.total - 1) // 2
    next_check = max(ends.total, 1)
    while True:
        full = False
        while kry.m < min(next_check, kry.capacity) and budget.left > 0:
            if kry.step() is None:
                full = True
                break
        budget.defect = max(budget.defect, kry.defect)
        values, s, residuals = kry.ritz()
        scale = max(scale, float(np.abs(values).max(initial=0.0)))
        wanted = ends.pick(values)
        done = len(wanted) >= min(ends.total, kry.space) and bool((residuals[wanted] <= tol * scale).all())
        if done or full or budget.left <= 0:
            return Pairs(values[wanted], kry.vectors(s[:, wanted]), residuals[wanted]), scale, done or full
        if kry.m >= kry.capacity:
            kept = ends.pick(values, extra)
            kry.compress(values[kept], s[:, kept])
        # the small eigenproblem is not solved after every product; a check late by a twelfth of the basis costs less
        next_check = kry.m + max(1, kry.m // 12)


def find_missed(
    budget: Budget, n: int, known: Pairs, ends: Ends, tol: float, scale: float, capacity: int, seed: int, stream: int, dtype: Any
) -> tuple[Pairs | None, bool]:
    """Look for eigenvalues beyond the limits of the wanted ones in the complement of ``known``. -> (pairs found or None, decided).

    Decided when the most extreme Ritz value of a random start lies inside the limits and has converged, or when a missed one has
    probability 1.648 sqrt(n) exp(-(2j - 1) sqrt(eps)) below MISS_PROBABILITY after j steps, eps being the distance from that
    value to the limit over the spread of the spectrum (j: of the first cycle, which later ones only improve on).
    """
    margin = tol * scale
    lower, upper = ends.limits(known.values[ends.pick(known.values)])
    kry = Krylov(budget, n, capacity, seed=seed, stream=stream + 1, dtype=dtype, deflate=known.rows)
    kry.append(gaussian(n, seed, stream))
    steps = 0

    def unlikely(distance: float, spread: float) -> bool:
        if distance <= 0.0 or spread <= 0.0:
            return False
        exponent = (2 * min(steps, kry.capacity) - 1) * np.sqrt(min(1.0, distance / spread))
        return bool(1.648 * np.sqrt(n) * np.exp(-exponent) <= MISS_PROBABILITY)

    while True:
        grown = 0
        while grown < max(2, kry.m // 8) and kry.m < kry.capacity and budget.left > 0 and kry.step() is not None:
            grown += 1
        steps += grown
        budget.defect = max(budget.defect, kry.defect)
        if kry.m == 0:
            return None, budget.left > 0
        values, s, residuals = kry.ritz()
        spread = max(float(values[-1]), float(known.values[-1])) - min(float(values[0]), float(known.values[0]))
        beyond = (values > upper + margin) | (values < lower - margin)
        settled = residuals <= margin
        everything = kry.m == kry.space
        above = upper == np.inf or everything or bool(settled[-1]) or unlikely(upper + margin - float(values[-1]), spread + 2 * margin)
        below = lower == -np.inf or everything or bool(settled[0]) or unlikely(float(values[0]) - lower + margin, spread + 2 * margin)
        if beyond.any():
            if settled[beyond].all() or everything:
                return Pairs(values[beyond], kry.vectors(s[:, beyond]), residuals[beyond]), True
        elif above and below:
            return None, True
        if budget.left <= 0:
            return None, False
        if kry.m >= kry.capacity:
            sides = Ends(top=int(upper < np.inf) * max(1, int((values > upper).sum())), bottom=int(lower > -np.inf) * max(1, int((values < lower).sum())))
            kept = sides.pick(values, max(0, min(kry.capacity // 2, kry.capacity - 1 - sides.total)))
            kry.compress(values[kept], s[:, kept])


def merge(a: Pairs, b: Pairs) -> Pairs:
    order = np.argsort(np.concatenate([a.values, b.values]), kind="stable")
    return Pairs(np.concatenate([a.values, b.values])[order], np.concatenate([a.rows, b.rows])[order], np.concatenate([a.residuals, b.residuals])[order])


def basis_size(n: int, ends: Ends) -> int:
    """Rows of the Krylov basis before a restart.

    At least as many again as the wanted pairs and some room, or restarts cost more products than they save; up to MORE_ROWS where
    64 MiB hold them, since every restart loses something; all n of a small operator, which never needs one.
    """
    if n <= 512:
        return n
    return min(n, max(2 * ends.total + 24, 40, min(MORE_ROWS, 2**23 // n)))
