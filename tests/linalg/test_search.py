"""The search for missed eigenvalues: it ends where bulks lie close to the limit, its bound holds, and planted clusters are found whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from problems import Counting, Reflected, symmetric

from spectral_fast.linalg.eigsh import eigsh, extreme_pairs
from spectral_fast.linalg.krylov import Krylov
from spectral_fast.linalg.missed import _holds
from spectral_fast.linalg.products import product_of
from spectral_fast.linalg.restart import Ends


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
@pytest.mark.parametrize("edge, most", [(0.9, 150), (0.8, 120), (0.5, 80)])
def test_a_bulk_close_to_the_limit(edge: float, most: int, which: str) -> None:
    evals = np.r_[edge * np.sin(np.arange(597.0)), [1, 2, 3]] * (-1 if which == "SA" else 1)
    a = Counting(symmetric(evals))
    r = eigsh(a, 3, which=which, tol=1e-8)
    assert r.status == "ok" and np.abs(np.sort(np.abs(r.values)) - [1, 2, 3]).max() <= 1e-7
    assert a.products <= most


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("block", [1, 2])
def test_the_bound_of_the_rows_that_waited_holds_and_closes(block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 60
    a = symmetric(np.r_[np.sin(np.arange(n - 4.0)), 1.3, 1.3, 2.0, 3.0], seed)
    kry = Krylov(product_of(a), n, n, seed=seed, spare=block)
    kry.add(rng.standard_normal((block, n)))
    while kry.m < 14:
        kry.step(list(kry.pending))
    before, first = list(kry.order), list(kry.pending)
    said = {}
    for _ in range(12):
        kry.step(list(kry.pending))

        def end(without: list[int]) -> float:
            q = np.linalg.qr(np.concatenate([kry.rows[without].T, rng.standard_normal((n, n - len(without)))], axis=1))[0][:, len(without) :]
            return float(np.linalg.eigvalsh(q.T @ a @ q)[-1])

        true, nu = end(before), end(before + first)
        for sign in (1.0,):
            for limit in true + np.array([-0.3, -1e-3, -1e-9, 1e-9, 1e-3, 0.05, 0.3]):
                holds = _holds(kry, before, first, sign * limit, sign, nu)
                assert not holds or true < limit + 1e-12, "a bound has to hold"
                said.setdefault(round(limit - true, 9), []).append(holds)
    assert said[0.3][-1] and said[0.05][-1], "and it closes"
    assert not any(h for gap, all_of in said.items() if gap < 0 for h in all_of)


# -- planted clusters -------------------------------------------------------------------------------------------------------------

N = 700
_BULK = 0.5 * np.sin(np.arange(N - 16.0))
CLUSTERS: dict[str, Any] = {
    "multiplicities up to 7 at both ends": np.r_[_BULK, [3.0] * 7, [2.0] * 2, [-2.5] * 5, [-1.5] * 2],
    "spacing 1e-7 at both ends": np.r_[_BULK, 3 + 3e-7 * np.arange(7), 2.0, 2.0, -2.5 - 2.5e-7 * np.arange(5), -1.5, -1.5],
    "a value within the bulk's reach": np.r_[_BULK, [0.6] * 3, 0.55, [1.0] * 3, [2.0] * 2, [-0.6] * 3, -1.0, -1.0, -2.0, -2.0],
}


class Blocks:
    """A block-diagonal operator: copies of one small matrix, so that every value is there as often as there are copies."""

    def __init__(self, copies: int, seed: int) -> None:
        self.block = symmetric(np.r_[0.4 * np.sin(np.arange(92.0)), 1, 1.5, 2, 2.5, -1, -1.5, -2, -2.5], seed)
        self.copies, self.shape = copies, (100 * copies, 100 * copies)
        self.evals = np.repeat(np.linalg.eigvalsh(self.block), copies)

    def __matmul__(self, v: Any) -> Any:
        return (np.asarray(v).reshape(self.copies, 100) @ self.block).reshape(-1)


def missed_of(op: Any, evals: Any, top: int, bottom: int, tol: float, **more: Any) -> tuple[int, dict[str, Any]]:
    """How many pairs are not those that belong there."""
    pairs, how = extreme_pairs(op, Ends(top=top, bottom=bottom), tol=tol, max_matvecs=4000, **more)
    evals = np.sort(evals)
    wanted = np.r_[evals[:bottom], evals[len(evals) - top :]]
    # the fewest rows there may be do not suffice for every search, which is said
    tight = more.get("capacity") is not None and how["status"] == "incomplete" and "rows of the basis are too few" in how["reason"]
    assert how["status"] == "ok" or tight, how
    return int((np.abs(pairs.values - wanted) > 2 * tol * np.abs(evals).max()).sum()), how


SEEDS = [*range(4), *(pytest.param(s, marks=pytest.mark.thorough) for s in range(4, 200))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CLUSTERS)
def test_all_members_of_planted_clusters(name: str, seed: int) -> None:
    """A member is missed with a probability of 1e-3 at most: of 200 seeds and 3 spectra with two ends each hardly one."""
    op = Reflected(CLUSTERS[name], seed=seed)
    for top, bottom in ((8, 6), (5, 0), (0, 3)):
        assert missed_of(op, CLUSTERS[name], top, bottom, 1e-9, seed=seed)[0] == 0


@pytest.mark.parametrize("seed", SEEDS[:2] + SEEDS[4:24])
@pytest.mark.parametrize("copies", [2, 7])
def test_copies_of_a_block(copies: int, seed: int) -> None:
    op = Blocks(copies, seed)
    assert missed_of(op, op.evals, copies + 1, copies, 1e-9, seed=seed)[0] == 0


@pytest.mark.parametrize("seed", SEEDS[:1] + SEEDS[4:24])
@pytest.mark.parametrize(
    "more", [{"block": 2}, {"block": 4}, {"capacity": 26}, {"basis_dtype": "float32", "tol": 1e-3}, {"basis_dtype": "bfloat16", "tol": 5e-3}], ids=str
)
def test_other_bases_find_them_too(more: dict[str, Any], seed: int) -> None:
    evals = CLUSTERS["multiplicities up to 7 at both ends"]
    more = {"tol": 1e-9, **more}
    missed, how = missed_of(Reflected(evals, seed=seed), evals, 8, 6, seed=seed, **more)
    assert missed == 0


@pytest.mark.parametrize("copies, tol", [(30, 1e-2), pytest.param(60, 1e-3, marks=pytest.mark.thorough)])
def test_as_many_searches_as_copies(copies: int, tol: float) -> None:
    """At a coarse tol each search brings a copy or two; only the budget ends them."""
    r = eigsh(Reflected(np.r_[np.full(copies, 10.0), 0.5 * np.sin(np.arange(800.0 - copies))]), copies, tol=tol)
    assert r.status == "ok" and np.abs(r.values - 10).max() <= 10 * tol


def test_why_a_search_was_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    evals = CLUSTERS["multiplicities up to 7 at both ends"]
    for verdict, why in (("undecided", "the budget ended before the search"), ("crowded", "too few for the search"), ("again", "each of 18 times")):
        monkeypatch.setattr("spectral_fast.linalg.pairs.look_for_missed", lambda *args, verdict=verdict, **more: verdict)
        r = eigsh(Reflected(evals), 6, tol=1e-9)
        assert r.status == "incomplete" and why in r.reason
