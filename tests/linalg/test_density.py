from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from problems import Counting, Reflected, symmetric
from staircases import levy, wasserstein
from tolerances import tolerance

from spectral_fast.kernels.counters import rademacher
from spectral_fast.linalg.density import ProbeRun, density_of, run_probes, spectral_density
from spectral_fast.linalg.trace import trace_of

N = 240
EVALS = np.r_[np.linspace(-1, 1, N - 3), [20.0, 10.0, 5.0]]


def quadrature(a, probes, steps, seed=0):
    """What the probes themselves say, without the exact weights of converged eigenvalues."""
    run = ProbeRun(n=len(a), steps=steps)
    run_probes(a, run, probes=probes, seed=seed)
    return density_of(run, outliers=False)


def test_full_length_recurrences_are_exact_for_each_probe():
    a = symmetric(EVALS)
    for probes in (1, 3):
        r = quadrature(a, probes, N)
        z = np.stack([rademacher(N, 0, i) for i in range(probes)])
        # zᵀ A^p z / n for p = 0..3, from the quadrature and directly
        for p in range(4):
            direct = np.einsum("ij,jk,ik->", z, np.linalg.matrix_power(a, p), z) / N / probes
            assert abs(r.weights @ r.nodes**p - direct) <= tolerance(np.float64, N) * 20.0**p
        assert abs(r.trace - np.einsum("ij,jk,ik->", z, a, z) / probes) <= tolerance(np.float64, N) * 20 * N
    assert np.isnan(quadrature(a, 1, N).trace_stderr)


@pytest.mark.parametrize("probes", [1, 2])
def test_quadrature_of_few_steps_matches_moments_up_to_twice_the_steps(probes):
    a = symmetric(EVALS / 20)
    steps = 4
    r = quadrature(a, probes, steps, seed=2)
    z = np.stack([rademacher(N, 2, i) for i in range(probes)])

    def direct(p):
        return np.einsum("ij,jk,ik->", z, np.linalg.matrix_power(a, p), z) / N / probes

    for p in range(2 * steps):
        assert abs(r.weights @ r.nodes**p - direct(p)) <= tolerance(np.float64, N)
    p = 2 * steps  # Gauss quadrature is exact to degree 2 steps - 1 and not beyond
    assert abs(r.weights @ r.nodes**p - direct(p)) > tolerance(np.float64, N)


def test_weights_grid_and_counts():
    a = Counting(symmetric(EVALS))
    r = spectral_density(a, probes=3, steps=30)
    assert a.products == r.matvecs == 90 and r.probes == 3 and r.steps == 30
    assert abs(r.weights.sum() - 1) <= tolerance(np.float64, 90)
    assert r.outliers[1] >= 3 and np.abs(r.nodes[-3:] - [5, 10, 20]).max() < 1e-6 and np.abs(r.weights[-3:] - 1 / N).max() <= tolerance(np.float64, 90)
    assert np.all(np.diff(r.nodes) >= 0) and np.all(r.weights >= 0)
    area = float(np.sum((r.density[1:] + r.density[:-1]) / 2 * np.diff(r.grid)))
    assert abs(area - 1) < 1e-3  # the grid ends four widths beyond the outermost nodes
    assert r.width == pytest.approx(0.01 * (r.nodes[-1] - r.nodes[0]))
    assert r.cumulative(-2.0) == 0 and r.cumulative(100.0) == pytest.approx(1)


def test_cumulative_of_a_uniform_bulk():
    r = spectral_density(symmetric(EVALS), probes=8, steps=60)
    x = np.linspace(-0.9, 0.9, 7)
    share = np.array([(EVALS <= t).mean() for t in x])
    # 480 products of a space of 240: everything is an eigenvalue, everything exact
    assert r.outliers == (0, N) and np.abs(r.nodes - np.sort(EVALS)).max() <= tolerance(np.float64, N) * 20 and r.matvecs <= N + 8
    assert np.abs(r.cumulative(x) - share).max() <= 1 / N
    few = spectral_density(symmetric(EVALS), probes=8, steps=12)
    # a staircase is off by at most one Gauss weight, the probes' spread is O(1/sqrt(n probes))
    error, stderr = np.abs(few.cumulative(x) - share), few.cumulative_stderr(x)
    assert error.max() < few.weights.max() + 5 / np.sqrt(N * few.probes)
    assert 0 < stderr.max() < 5 / np.sqrt(N * few.probes) and few.cumulative_stderr(15.0) <= 1e-15


def test_intervals_of_trace_and_frobenius_cover():
    a = symmetric(EVALS)
    covered_trace = covered_frobenius = 0
    widths = []
    for seed in range(100):
        r = spectral_density(a, probes=6, steps=2, seed=seed)
        widths.append(r.trace_stderr)
        covered_trace += abs(r.trace - EVALS.sum()) <= 2.571 * r.trace_stderr  # t(0.975, 5)
        covered_frobenius += abs(r.frobenius - np.linalg.norm(EVALS)) <= 2.571 * r.frobenius_stderr
    assert covered_trace >= 86 and covered_frobenius >= 80
    # variance of Hutchinson with signs: 2 (||A||_F² - ||diag A||²) per probe
    sd = np.sqrt(2 * (np.sum(EVALS**2) - np.sum(np.diag(a) ** 2)) / 6)
    assert 0.5 * sd < np.median(widths) < 1.5 * sd


@pytest.mark.parametrize("evals", [np.zeros(50), np.full(50, 3.0), np.r_[np.zeros(48), [1.0, 2.0]]])
def test_invariant_subspaces_end_the_recurrence_exactly(evals):
    r = spectral_density(symmetric(evals), probes=2, steps=40)
    assert r.matvecs <= 10
    assert np.isfinite(r.density).all() and r.width > 0
    inside = np.min(np.abs(r.nodes[:, None] - np.unique(evals)[None, :]), axis=1)
    assert inside.max() <= tolerance(np.float64, 50) * max(1, evals.max())


def test_one_by_one():
    r = spectral_density(np.array([[-2.5]]), probes=2, steps=5)
    assert r.nodes.tolist() == [-2.5] and r.trace == -2.5 and r.frobenius == 2.5 and r.trace_stderr == 0


def test_samples_by_block_share_the_products():
    a = Counting(symmetric(EVALS))
    a.blocks = {"first": slice(0, 100), "rest": slice(100, N)}
    run = ProbeRun(n=N, steps=5)
    run_probes(a, run, probes=2, seed=4)
    run_probes(a, run, probes=1, seed=4)
    t = trace_of(run)
    assert a.products == 15
    for i, total in enumerate(t.samples):
        z = rademacher(N, 4, i)
        assert total == pytest.approx(z @ a.a @ z, rel=1e-12)
        assert run.by_block["first"][i] == pytest.approx(z[:100] @ (a.a @ z)[:100], rel=1e-10)
    assert t.estimate == pytest.approx(sum(e for e, _ in t.by_layer.values()), rel=1e-10)
    together = ProbeRun(n=N, steps=5)
    run_probes(a.a, together, probes=3, seed=4)
    assert together.quadratic == pytest.approx(run.quadratic, rel=1e-12) and together.squared == pytest.approx(run.squared, rel=1e-12)


def test_bad_arguments_and_nan():
    with pytest.raises(ValueError, match="probes"):
        spectral_density(np.eye(3), probes=0)
    with pytest.raises(ValueError, match="steps"):
        spectral_density(np.eye(3), steps=0)
    with pytest.raises(ArithmeticError, match="NaN"):
        spectral_density(np.full((3, 3), np.nan))


def test_torch_in_torch_out():
    torch = pytest.importorskip("torch")
    a = symmetric(EVALS)
    r, want = spectral_density(torch.from_numpy(a), probes=2, steps=9), spectral_density(a, probes=2, steps=9)
    for name in ("nodes", "weights", "grid", "density"):
        value = getattr(r, name)
        assert isinstance(value, torch.Tensor) and np.allclose(value.numpy(), getattr(want, name), rtol=1e-9, atol=1e-12), name
    assert isinstance(r.cumulative(0.0), torch.Tensor) and torch.equal(r.cumulative(r.nodes), torch.cumsum(r.weights, 0))
    assert r.to_dict()["nodes"] == r.nodes.tolist() and r.trace == pytest.approx(want.trace)


def test_float32_basis_gives_the_same_quadrature():
    a = symmetric(EVALS)
    single = spectral_density(a, probes=2, steps=9, basis_dtype="float32")
    double = spectral_density(a, probes=2, steps=9)
    assert single.trace == pytest.approx(double.trace, rel=1e-5) and np.abs(single.nodes - double.nodes).max() <= 1e-4 * 20


# -- against planted spectra ---------------------------------------------------------------------------------------------------

BIG = 2000
_RNG = np.random.default_rng(11)
_RADIUS = np.sqrt(_RNG.uniform(0, 1, BIG)) * np.cos(np.pi * _RNG.uniform(0, 1, BIG))  # a semicircle's shadow
PLANTED = {
    "bulk and outliers": np.r_[0.5 * _RADIUS[:-10], np.linspace(3, 12, 10)],
    "two bulks": np.r_[_RADIUS[:1300] - 2, 0.5 * _RADIUS[1300:] + 2],
    "power law": np.arange(1, BIG + 1) ** -1.2,
    "negative tail": np.r_[0.3 * np.abs(_RADIUS[:-30]), -np.linspace(0.5, 4, 30)],
}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.thorough), pytest.param(2, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("name", PLANTED)
def test_density_of_planted_spectra(name, seed):
    evals = np.sort(PLANTED[name])
    n = len(evals)
    r = spectral_density(Reflected(evals, seed=seed), seed=seed)
    assert r.matvecs == 256
    even = np.full(n, 1 / n)
    point = wasserstein(np.array([evals.mean()]), np.ones(1), evals, even)
    assert wasserstein(r.nodes, r.weights, evals, even) <= 0.1 * point
    # without the outliers: those the result calls converged, which have to be the eigenvalues at the ends
    below, above = r.outliers
    assert np.abs(r.nodes[:below] - evals[:below]).max(initial=0) <= 1e-3 * np.ptp(evals)
    assert np.abs(r.nodes[len(r.nodes) - above :] - evals[n - above :]).max(initial=0) <= 1e-3 * np.ptp(evals)
    rest, inner = evals[below : n - above], slice(below, len(r.nodes) - above)
    nodes, weights = r.nodes[inner], r.weights[inner] / r.weights[inner].sum()
    even = np.full(len(rest), 1 / len(rest))
    assert wasserstein(nodes, weights, rest, even) <= 0.1 * wasserstein(np.array([rest.mean()]), np.ones(1), rest, even)
    assert levy(nodes, weights, rest, even, np.ptp(rest)) <= 0.03
    if name in ("bulk and outliers", "negative tail", "power law"):
        assert below + above >= 10


@pytest.mark.parametrize("probes", [1, 4])
@pytest.mark.parametrize("value, copies", [(10.0, 60), (0.0, 200)])
def test_multiple_eigenvalues_at_an_end_keep_their_weight(value: float, copies: int, probes: int) -> None:
    """More copies than the Krylov space of a few probes can hold: the probes say how many there are, with an error."""
    n = 2000
    evals = np.r_[np.linspace(1.0, 2.0, n - copies), np.full(copies, value)]
    found = spectral_density(Reflected(evals), probes=probes, steps=48)
    share, stderr = copies / n, np.sqrt(2.0 * copies / probes) / n
    seen = found.cumulative(0.5) if value < 0.5 else 1.0 - found.cumulative(5.0)
    assert abs(seen - share) <= 4 * stderr
    assert abs(found.nodes @ found.weights * n - evals.sum()) <= 0.05 * evals.sum()
    if probes > 1:
        assert found.cumulative_stderr(0.5 if value < 0.5 else 5.0) > 0.1 * stderr


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("copies, probes", [(2, 4), (3, 4), (4, 4), (8, 4), (15, 4), (5, 2), (15, 1), (2, 1)])
def test_copies_count_exactly_where_the_probes_are_more(copies: int, probes: int, dtype: str) -> None:
    """A block of b probes holds b copies of an eigenvalue. Of fewer all are there; of b the probes say how many there are, without bias and with an error."""
    n, off = 1000, []
    for seed in range(6):
        evals = np.r_[np.linspace(1.0, 2.0, n - copies), np.zeros(copies)]
        found = spectral_density(Reflected(evals, seed=seed), probes=probes, steps=40, seed=seed, basis_dtype=dtype)
        assert found.status == "ok"
        share = found.cumulative(0.5)
        if copies < probes:
            assert share == pytest.approx(copies / n, abs=1e-12) and found.outliers[0] >= copies or dtype == "bfloat16"
        else:
            assert found.outliers[0] == 0 and (probes == 1 or found.cumulative_stderr(0.5) > 1e-6 * copies / n)  # not rounding's
        off.append(share - copies / n)
    assert abs(np.mean(off)) <= 4 * np.sqrt(2 * copies / (probes * len(off))) / n


def test_an_interrupt_gives_what_the_steps_so_far_say():
    a = symmetric(EVALS)

    def stop(at):
        def spoil(i, v, w):
            if i == at:
                raise KeyboardInterrupt
            return w

        return Counting(a, spoil)

    with pytest.raises(KeyboardInterrupt):
        spectral_density(stop(2), probes=3, steps=30)
    r, want = spectral_density(stop(3 * 7 + 2), probes=3, steps=30), spectral_density(a, probes=3, steps=7)
    assert r.status == "incomplete" and r.reason == "interrupted after 21 of 90 products" and r.matvecs == 21
    assert np.array_equal(r.nodes, want.nodes) and np.array_equal(r.weights, want.weights) and r.trace == want.trace and want.status == "ok"


def test_an_operator_that_is_not_symmetric_is_said_to_be_none() -> None:
    found = spectral_density(np.triu(np.ones((200, 200))), steps=20)
    assert found.status == "unresolved" and "symmetric only to" in found.reason and found.symmetry_defect > 1e-3
    assert spectral_density(np.ones((200, 200)) + np.eye(200), steps=20).status == "ok"


def test_blocks_with_open_ends() -> None:
    class Half:
        shape = (200, 200)
        blocks = {"a": slice(None, 100), "b": slice(-100, None)}

        def __matmul__(self, v: Any) -> Any:
            return np.arange(200.0) * v

    assert spectral_density(Half(), probes=1, steps=5).status == "ok"
