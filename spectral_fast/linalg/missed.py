"""The search for eigenvalues that a Krylov space may have missed: further copies of a multiple one, members of a cluster.

A random vector's mass at an eigenvalue is bounded by what its own Krylov space has shown (the Christoffel function of its spectral measure: Szego 1939,
chapter 3; Akhiezer 1965, theorem 2.5.2).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .krylov import Krylov
from .restart import SEARCH_ROWS, Budget, Ends, Ritz

__all__ = ["look_for_missed"]

MISS_PROBABILITY = 1e-3
# Where x's recurrence gives no bound, because eigenvalues crowd at the limit itself, no number of products would: so many of what the products of the rows
# that waited have given have to do, the least that can show a value beyond the limit to which only those rows couple.
FURTHER_STEPS = 1


class _Chain:
    """What the Krylov space of a random vector x, orthogonal to the rows before it, says of eigenvalues beyond a limit.

    With p_0 = 1, p_1, ... the orthonormal polynomials of x's spectral measure (their recurrence is the chain's alpha and beta), the mass of unit x at
    any point z is at most 1 / sum p_k(z)², and outside of the zeros of the last of them the sum only grows: it bounds the mass of all eigenvalues beyond.
    """

    def __init__(self, limit: float, sign: float) -> None:
        self.limit, self.sign = limit, sign
        self.before, self.now, self.total = 0.0, 1.0, 1.0
        self.beta = 0.0

    def step(self, alpha: float, beta: float) -> None:
        """Another row of the recurrence, of which ``beta`` couples to the next one."""
        if not np.isfinite(self.total):
            return
        following = self.sign * (self.limit - alpha) * self.now - self.beta * self.before
        if following <= 0.0 or beta == 0.0:  # beyond the limit already: no bound; or the end of the space: no mass but at its own values
            self.total = np.inf if beta == 0.0 else self.total
            return
        self.before, self.now = self.now, following / beta
        self.total += self.now**2
        self.beta = beta

    def miss_probability(self, n: int) -> float:
        """That a random vector has no more than the mass allowed in one given direction: sqrt(2 n mass / pi) to leading order."""
        return float(np.sqrt(2.0 * n / (np.pi * self.total)))


def look_for_missed(
    kry: Krylov, ends: Ends, found: Ritz, tol: float, budget: Budget, saved: Callable[[Krylov], None] | None = None, *, all_rows: bool = False
) -> str:
    """Is there an eigenvalue beyond the limits of the wanted ones that the basis does not hold (another copy of a multiple one, say)?

    A new random vector x, orthogonal to all rows, spans a Krylov space of its own in the same basis. "none": a missed one has probability below
    MISS_PROBABILITY, or, where eigenvalues crowd at the limit itself, the outermost value of x's space has converged within it; "again": the basis holds one
    more value beyond the limits now, or could not tell yet; "undecided": the budget ended; "crowded": the rows did. all_rows: keep nothing in the basis but
    the wanted pairs, so that x's space may be as large as can be.

    With M the rows multiplied before, A V_M lies in the span of all rows, so a missed eigenvector's part outside of V_M is an eigenvector of A there. x's
    space speaks of that part of the space but for the rows Q that wait; what those can add is bounded by their own products and a Schur complement.
    """
    scale = float(np.abs(found.values).max(initial=0.0))
    if scale == 0.0 or kry.full:
        return "none"
    if kry.t >= kry.n:  # the last dimensions of the space
        if budget.left < len(kry.pending):
            return "undecided"
        kry.step(list(kry.pending))
        return "again"
    margin = tol * scale
    lower, upper = ends.limits(found.values[found.wanted])
    sides = [(limit, sign) for limit, sign in ((upper + margin, 1.0), (lower - margin, -1.0)) if np.isfinite(limit)]
    chains = [_Chain(limit, sign) for limit, sign in sides]
    waiting = len(kry.pending) if not kry.chain else 0
    if not kry.chain:
        _make_room(kry, ends, found, all_rows)
        kry.chain = kry.add_random(bell=True)
    most = max(len(kry.rows) - waiting, kry.t + 2)
    fed = 0
    verdict = ""
    while not verdict:
        if kry.chain[-1] in kry.pending:
            if budget.left <= 0 or kry.t >= most:
                verdict = "undecided" if budget.left <= 0 else "crowded"
                break
            t = kry.t
            kry.step(kry.chain[-1:])
            if kry.t > t:
                kry.chain.append(t)
            if saved is not None:
                saved(kry)
        multiplied = kry.chain[:-1] if kry.chain[-1] in kry.pending else kry.chain
        for i in range(fed, len(multiplied)):
            beta = float(kry.T[kry.chain[i + 1], kry.chain[i]]) if i + 1 < len(kry.chain) else 0.0
            for c in chains:
                c.step(float(kry.T[kry.chain[i], kry.chain[i]]), beta)
        fed = len(multiplied)
        own = kry.T[np.ix_(multiplied, multiplied)]
        values, vectors = np.linalg.eigh((own + own.T) / 2)
        coupled = float(kry.T[kry.chain[-1], multiplied[-1]]) if len(kry.chain) > len(multiplied) else 0.0
        settled = coupled * np.abs(vectors[-1]) <= margin
        if values[-1] > upper + margin or values[0] < lower - margin:
            verdict = "again"
        elif len(multiplied) == len(kry.chain) or all(c.miss_probability(kry.n) <= MISS_PROBABILITY or settled[-1 if c.sign > 0 else 0] for c in chains):
            # what x's space reaches at each side, and infinity where its recurrence gives no bound
            sure = [c.miss_probability(kry.n) <= MISS_PROBABILITY or len(multiplied) == len(kry.chain) for c in chains]
            inside = [sign * (float(values[-1] if sign > 0 else values[0]) if known else np.inf) for (_, sign), known in zip(sides, sure, strict=True)]
            verdict = _with_the_others(kry, found, sides, inside, multiplied, budget)
            if saved is not None:
                saved(kry)
    if verdict == "crowded":  # products of the rows before have nothing in x's space: it can go
        kry.drop(kry.chain)
        if saved is not None:
            saved(kry)
    kry.chain = []
    return verdict


def _make_room(kry: Krylov, ends: Ends, found: Ritz, all_rows: bool) -> None:
    """A restart where a search, and the products of the rows that wait, would need more rows than there are."""
    waiting = len(kry.pending)
    free = len(kry.rows) - ends.total - 2 * waiting  # of a basis that keeps nothing else
    search = max(1, free if all_rows else min(SEARCH_ROWS, free))
    if len(kry.rows) - kry.t - waiting < min(search, kry.n - kry.t):
        kept = ends.pick(found.values, max(0, min(free // 2, free - search)))
        if len(kept) < kry.m:
            kry.compress(found.values[kept], np.ascontiguousarray(found.s[:, kept]))


def _with_the_others(kry: Krylov, found: Ritz, sides: list[tuple[float, float]], inside: list[float], multiplied: list[int], budget: Budget) -> str:
    """Do the limits hold with the rows Q too that waited before the search? See :func:`_holds`; while its bound is loose, the rows that Q's products gave
    are multiplied as well, as often as those of x's space were, or as there are rows and budget: what Q hides would have to show among the Ritz values.

    inside: sign * nu for each side, what x's space reaches; infinite where its recurrence gives no bound, and a few products more have to do.
    """
    before = [j for j in kry.order if j not in multiplied]
    first = [j for j in kry.pending if j not in kry.chain]
    following = first
    bounded = any(np.isfinite(nu) for nu in inside)
    for turn in range(1 + (max(len(multiplied), FURTHER_STEPS) if bounded else FURTHER_STEPS)):
        if not following or (turn and (budget.left < len(following) or kry.t + len(following) > len(kry.rows))):
            break
        if budget.left < len(following):
            return "undecided"
        t = kry.t
        kry.step(following)
        values = kry.ritz()[0]
        if any(np.count_nonzero(sign * values > sign * limit) > np.count_nonzero(sign * found.values > sign * limit) for limit, sign in sides):
            return "again"
        if all(
            _holds(kry, before, first, sign * limit, sign, nu) if np.isfinite(nu) else turn >= FURTHER_STEPS
            for (limit, sign), nu in zip(sides, inside, strict=True)
        ):
            break
        following = [j for j in kry.pending if j >= t and j not in kry.chain]
    return "none"


def _holds(kry: Krylov, before: list[int], first: list[int], limit: float, sign: float, nu: float) -> bool:
    """Is there no eigenvalue of sign * A beyond ``limit`` L outside of the rows ``before``, if without the rows Q, ``first``, they end at nu?

    Outside of Q let K be the rows multiplied, J = KᵀAK, and E what couples them to the rest R. From A <= node there, A_R <= node - E (node - J)^-1 Eᵀ; so
    (L - A_R)^-1, through which the rest acts on Q and K, is at most (L - node + E (node - J)^-1 Eᵀ)^-1: the bound of a Gauss-Radau rule, for blocks. node lies
    between nu and L.
    """
    inner = [j for j in kry.order if j not in before and j not in first]
    own, coupling = sign * kry.T[np.ix_(inner, inner)], kry.T[np.ix_(kry.pending, inner)]
    nu = max(nu, float(np.linalg.eigvalsh(own)[-1])) if inner else nu
    if nu >= limit:
        return False
    node = (nu + limit) / 2
    rest = (limit - node) * np.eye(len(kry.pending)) + coupling @ np.linalg.solve(node * np.eye(len(inner)) - own, coupling.T)
    known = first + inner
    outside = kry.T[np.ix_(kry.pending, known)]
    bound = sign * kry.T[np.ix_(known, known)] + outside.T @ np.linalg.solve(rest, outside)
    return bool(np.isfinite(bound).all()) and bool(np.linalg.eigvalsh((bound + bound.T) / 2)[-1] < limit)
