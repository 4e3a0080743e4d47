"""Eigenvalues of networks against every entry of their dense float64 Hessian and GGN: both ends, exact multiplicities, all bases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from problems import dense_ggn, dense_hessian, digits_like, mlp, train
from staircases import levy, wasserstein
from torch.nn import functional as F

from spectral_fast.curvature import GGN, Hessian
from spectral_fast.linalg.density import ProbeRun, run_probes, spectral_density
from spectral_fast.linalg.eigsh import eigsh, extreme_pairs
from spectral_fast.linalg.restart import Ends

TOP, BOTTOM = 8, 5
KINDS = {"hessian": (Hessian, dense_hessian), "ggn": (GGN, dense_ggn)}


def problem(sizes: tuple[int, ...], seed: int, samples: int = 60) -> tuple[Any, Any, Any]:
    x, y = (torch.from_numpy(a) for a in digits_like(samples, sizes[0], sizes[-1], seed))
    return train(mlp(sizes, seed=seed), x, y, steps=40), x, y


def twins(seed: int) -> tuple[Any, Any, Any]:
    """A net whose hidden units come in groups of equal ones (3, 2, 1, 1) with equal outgoing weights: eigenvalues on what tells twins apart repeat
    twice for the group of three."""
    rng = np.random.default_rng(seed)
    x, y = (torch.from_numpy(a) for a in digits_like(50, 20, 4, seed))
    model, of = mlp((20, 7, 4), seed=seed), [0, 0, 0, 1, 1, 2, 3]
    with torch.no_grad():
        model[0].weight[:] = torch.from_numpy(0.3 * rng.standard_normal((4, 20)))[of]
        model[0].bias[:] = torch.from_numpy(0.3 * rng.standard_normal(4))[of]
        model[2].weight[:] = torch.from_numpy(0.5 * rng.standard_normal((4, 4)))[:, of]
    return model, x, y


def dense(kind: str, model: Any, x: Any, y: Any) -> np.ndarray:
    a = KINDS[kind][1](model, lambda z: F.cross_entropy(z, y), x)
    return np.asarray(np.linalg.eigvalsh((a + a.T) / 2))


def wanted(evals: np.ndarray, top: int = TOP, bottom: int = BOTTOM) -> np.ndarray:
    return np.r_[evals[:bottom], evals[len(evals) - top :]]


def both_ends(op: Any, **more: Any) -> tuple[np.ndarray, dict[str, Any]]:
    pairs, how = extreme_pairs(op, Ends(top=TOP, bottom=BOTTOM), **{"tol": 1e-9, "max_matvecs": 6000, **more})
    return pairs.values, how


@pytest.fixture(scope="module")
def trained() -> Any:
    """1,115 parameters: more than the 512 rows of a basis that needs no restart."""
    model, x, y = problem((60, 16, 8, 3), 0)
    assert 1000 < sum(p.numel() for p in model.parameters()) <= 2000
    return model, x, y, {kind: dense(kind, model, x, y) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_both_ends_of_a_trained_net(kind: str, trained: Any) -> None:
    model, x, y, evals = trained
    got, how = both_ends(KINDS[kind][0](model, (x, y)))
    size = np.abs(evals[kind]).max()
    assert how["status"] == "ok" and np.abs(got - wanted(evals[kind])).max() <= 1e-8 * size
    r = eigsh(KINDS[kind][0](model, (x, y)), 3, which="LM", tol=1e-9, max_matvecs=6000)
    assert np.abs(np.abs(r.values) - np.sort(np.abs(evals[kind]))[:-4:-1]).max() <= 1e-8 * size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "more, error",
    [
        ({"block": 2}, 1e-8),
        ({"block": 4}, 1e-8),
        ({"capacity": 60}, 1e-8),
        ({"backend": "numpy"}, 1e-8),
        ({"basis_dtype": "float32", "tol": 1e-3}, 1e-4),
        ({"basis_dtype": "bfloat16", "tol": 1e-3}, 1e-3),
        ({"basis_dtype": "bfloat16", "tol": 1e-3, "capacity": 60}, 1e-3),
    ],
    ids=str,
)
def test_other_bases(kind: str, more: dict[str, Any], error: float, trained: Any) -> None:
    """Eigenvalues err by the square of what vectors do, over a gap: far less than tol, down to which residuals go."""
    model, x, y, evals = trained
    got, how = both_ends(KINDS[kind][0](model, (x, y)), **more)
    # zero is a value of the GGN a thousand times over, with others close to it: 61 rows find all, but cannot rule out more
    unsure = kind == "ggn" and "capacity" in more and how["status"] == "incomplete" and "rows of the basis" in how["reason"]
    assert how["status"] == "ok" or unsure, how
    assert np.abs(got - wanted(evals[kind])).max() <= error * np.abs(evals[kind]).max()


@pytest.mark.parametrize("kind", KINDS)
def test_from_the_basis_of_a_density(kind: str, trained: Any) -> None:
    model, x, y, evals = trained
    op, run = KINDS[kind][0](model, (x, y)), ProbeRun(n=len(evals[kind]), steps=20)
    start = run_probes(op, run, probes=3, capacity=100)
    got, how = both_ends(op, start=start)
    assert how["status"] == "ok" and np.abs(got - wanted(evals[kind])).max() <= 1e-8 * np.abs(evals[kind]).max()


SEEDS = [*range(3), *(pytest.param(s, marks=pytest.mark.thorough) for s in range(3, 40))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_units_give_equal_eigenvalues(kind: str, seed: int) -> None:
    model, x, y = twins(seed)
    evals = dense(kind, model, x, y)
    size = np.abs(evals).max()
    if kind == "hessian":  # the multiplicities are there, away from zero, and some of them at the ends
        away = np.abs(evals) > 1e-6 * size
        assert (np.diff(evals[away]) < 1e-12 * size).sum() >= 5
    op = KINDS[kind][0](model, (x, y))
    for top, bottom in ((8, 5), (30, 12)):
        pairs, how = extreme_pairs(op, Ends(top=top, bottom=bottom), tol=1e-9, max_matvecs=6000, seed=seed)
        assert how["status"] == "ok" and np.abs(pairs.values - wanted(evals, top, bottom)).max() <= 1e-8 * size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation, steps", [("Tanh", 5), ("ReLU", 60)])
def test_density_against_all_eigenvalues(kind, activation, steps):
    x, y = (torch.from_numpy(a) for a in digits_like(200, 20, 5, 3))
    model = train(mlp((20, 40, 20, 5), activation=activation), x, y, steps=steps)
    evals = dense(kind, model, x, y)
    n = len(evals)
    r = spectral_density(KINDS[kind][0](model, (x, y)))
    even = np.full(n, 1 / n)
    assert wasserstein(r.nodes, r.weights, evals, even) <= 0.1 * wasserstein(np.array([evals.mean()]), np.ones(1), evals, even)
    below, above = r.outliers
    assert above >= 10 and np.abs(r.nodes[len(r.nodes) - above :] - evals[n - above :]).max() <= 1e-6 * evals[-1]
    rest, inner = evals[below : n - above], slice(below, len(r.nodes) - above)
    nodes, weights, even = r.nodes[inner], r.weights[inner] / r.weights[inner].sum(), np.full(len(rest), 1 / len(rest))
    assert wasserstein(nodes, weights, rest, even) <= 0.1 * wasserstein(np.array([rest.mean()]), np.ones(1), rest, even)
    assert levy(nodes, weights, rest, even, np.ptp(rest)) <= 0.03
