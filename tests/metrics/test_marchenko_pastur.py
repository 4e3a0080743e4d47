"""The Marchenko-Pastur fit: the law itself, false spikes, planted spikes, the variance under spikes, and what cannot be fitted."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics.wishart import SHAPES, gaussian_evals
from scipy.integrate import quad

from spectral_fast.metrics.marchenko_pastur import MIN_BULK, marchenko_pastur, marchenko_pastur_fits, mp_cdf, mp_density
from spectral_fast.metrics.tracy_widom import tracy_widom_centre, tracy_widom_quantile


def threshold(shape: tuple[int, int], n_matrices: int = 1) -> float:
    mu, scale = tracy_widom_centre(shape)
    return mu + tracy_widom_quantile(0.05 / n_matrices) * scale


def edges(shape: tuple[int, int], var: float) -> tuple[float, float]:
    a, b = math.sqrt(max(shape)), math.sqrt(min(shape))
    return var * (a - b) ** 2, var * (a + b) ** 2


@pytest.mark.parametrize("shape", [(64, 64), (100, 64), (64, 3200), (100_000, 10)])
def test_law_against_quadrature(shape: tuple[int, int]) -> None:
    var = 0.3
    low, high = edges(shape, var)
    for share in (0.01, 0.2, 0.5, 0.9, 0.999):
        x = low + share * (high - low)
        # in x = low + u², for the density of a square matrix is infinite at 0
        area = quad(lambda u: 2.0 * u * float(mp_density(low + u * u, shape, var)), 0.0, math.sqrt(x - low), epsabs=1e-13, epsrel=1e-12)[0]
        assert float(mp_cdf(x, shape, var)) == pytest.approx(area, abs=1e-10)
    np.testing.assert_array_equal(mp_cdf([0.0, high * 1.01], shape, var), [0.0, 1.0])
    np.testing.assert_array_equal(mp_density([low * 0.99, high * 1.01], shape, var), [0.0, 0.0])


def test_law_of_a_large_matrix_is_recovered() -> None:
    """Its own quantiles at (j + 1/2)/n, a spectrum without chance: var to the next order in 1/n, no distance."""
    shape, theta = (900, 300), np.linspace(0.0, math.pi, 200_001)
    x = 900.0 * (1.0 + 1 / 3 - 2.0 * math.sqrt(1 / 3) * np.cos(theta))
    fit = marchenko_pastur(7.0 * np.interp((np.arange(300) + 0.5) / 300, mp_cdf(x, shape, 1.0), x), shape)
    assert fit.var == pytest.approx(7.0, rel=2e-3) and fit.distance < 0.003 and fit.n_spikes == 0 and fit.iterations == 1
    assert (fit.lower_edge, fit.upper_edge) == pytest.approx(edges(shape, fit.var), rel=1e-12)
    assert (fit.mu_tw, fit.scale_tw) == pytest.approx([fit.var * v for v in tracy_widom_centre(shape)], rel=1e-12)
    assert fit.threshold == pytest.approx(fit.var * threshold(shape), rel=1e-12)
    assert fit.soft_rank == pytest.approx(1.0, abs=0.05)


def family(seeds: range) -> int:
    """Seeds whose report of all shapes shows a spike."""
    found = 0
    for seed in seeds:
        fits = marchenko_pastur_fits([gaussian_evals((seed, i), shape) for i, shape in enumerate(SHAPES)], SHAPES)
        assert all(f.status == "ok" and f.n_matrices == 12 for f in fits)
        found += any(f.n_spikes for f in fits)
    return found


def test_false_spikes_of_a_report() -> None:
    """12 shapes, 5 % for all together: of 200 seeds 3 to 19 show a spike, 10 +- 3 standard deviations of the binomial law."""
    found = family(range(200))
    print(f"reports of 12 random matrices with a spike: {found} of 200")
    assert 3 <= found <= 19


@pytest.mark.thorough
def test_false_spikes_of_many_reports() -> None:
    """2000 seeds: the rate itself, 5 % +- 1.5 % (3 standard deviations)."""
    found = family(range(1000, 3000))
    print(f"reports of 12 random matrices with a spike: {found} of 2000")
    assert 70 <= found <= 130


def test_false_spikes_of_dense_gaussian_matrices() -> None:
    shapes = [(32, 32), (64, 48), (20, 100), (40, 400)]
    rng = np.random.default_rng(7)
    found = 0
    for _ in range(200):
        evals = [np.linalg.svd(0.02 * rng.standard_normal(shape), compute_uv=False) ** 2 for shape in shapes]
        found += any(f.n_spikes for f in marchenko_pastur_fits(evals, shapes))
    assert 3 <= found <= 19


def planted(shapes: list[tuple[int, int]], seeds: range) -> None:
    """A spike 10 % above the threshold of a report of 12, in place of the largest eigenvalue (a matrix with its s_1 replaced)."""
    for shape in shapes:
        evals = []
        for seed in seeds:
            x = gaussian_evals((seed, 99), shape)
            x[0] = 1.1 * threshold(shape, 12)
            evals.append(x)
        fits = marchenko_pastur_fits(evals, [shape] * len(evals), n_matrices=12)
        found = sum(f.n_spikes >= 1 and f.spikes[0] == x[0] for f, x in zip(fits, evals, strict=True))
        print(f"{shape}: planted spike found in {found} of {len(seeds)}, more than one in {sum(f.n_spikes > 1 for f in fits)}")
        assert found >= 0.95 * len(seeds), shape


def test_planted_spikes_are_found() -> None:
    planted(SHAPES, range(100))


def test_planted_rank_one_signal_is_found() -> None:
    """W = G + t u vᵀ whose largest eigenvalue lies 10 % above the threshold: (1 + l)(d_max + d_min/l), t² = l d_max (Benaych-Georges & Nadakuditi 2012)."""
    m, n = 600, 300
    strength = np.linspace(math.sqrt(n / m), 3.0, 100_000)
    t = math.sqrt(m * strength[np.searchsorted((1.0 + strength) * (m + n / strength), 1.1 * threshold((m, n), 12))])
    found = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        u, v = rng.standard_normal(m), rng.standard_normal(n)
        w = rng.standard_normal((m, n)) + t * np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
        found += marchenko_pastur(np.linalg.eigvalsh(w.T @ w).clip(0.0), (m, n), n_matrices=12).n_spikes >= 1
    assert found >= 38


def with_spikes(shape: tuple[int, int], strength: float, seed: int) -> tuple[np.ndarray, int]:
    """d_min/10 strong directions, from ``strength`` thresholds to twice that, beside the spectrum of Gaussian entries of variance 0.01."""
    k = min(shape) // 10
    rest = gaussian_evals((seed, 5), (max(shape) - k, min(shape) - k))
    return 0.01 * np.concatenate((threshold(shape) * strength * np.linspace(1.0, 2.0, k), rest)), k


@pytest.mark.parametrize("shape", [(400, 400), (1600, 160), (200, 800), (1000, 400)])
@pytest.mark.parametrize("strength", [1.2, 5.0, 1000.0])
def test_variance_with_a_tenth_of_spikes(shape: tuple[int, int], strength: float) -> None:
    """var of the rest within 2 % in every seed, on shapes where that is four standard errors sqrt(2/(d_max d_min)) and more."""
    for seed in range(10):
        x, k = with_spikes(shape, strength, seed)
        fit = marchenko_pastur(x, shape, n_matrices=1000)
        assert fit.n_spikes == k and fit.var == pytest.approx(0.01, rel=0.02)
        np.testing.assert_array_equal(fit.spikes, x[:k][::-1])


@pytest.mark.thorough
@pytest.mark.parametrize("shape", SHAPES)
def test_variance_with_a_tenth_of_spikes_is_unbiased(shape: tuple[int, int]) -> None:
    """All shapes: the mean over 200 seeds within 2 %, the spread no more than a quarter above the least possible, sqrt(2/(d_max d_min)) of the rest."""
    fits = []
    for seed in range(200):
        x, k = with_spikes(shape, 2.0, seed)
        fits.append(marchenko_pastur(x, shape, n_matrices=1000).var / 0.01)
    least = math.sqrt(2.0 / ((max(shape) - k) * (min(shape) - k)))
    print(f"{shape}: var {np.mean(fits) - 1:+.4f} +- {np.std(fits):.4f}, least possible {least:.4f}")
    assert abs(np.mean(fits) - 1.0) < 0.02 and np.std(fits) < 1.25 * least


def test_variance_in_a_dense_matrix_with_a_tenth_of_spikes() -> None:
    rng = np.random.default_rng(1)
    m, n, k = 500, 300, 30
    u, v = (np.linalg.qr(rng.standard_normal((d, k)))[0] for d in (m, n))
    w = 0.1 * rng.standard_normal((m, n)) + (u * np.linspace(10.0, 40.0, k)) @ v.T
    fit = marchenko_pastur(np.linalg.svd(w, compute_uv=False) ** 2, (n, m))
    assert fit.n_spikes == k and fit.var == pytest.approx(0.01, rel=0.02) and fit.distance < 0.02
    assert np.mean(w * w) > 0.02  # what a variance of all entries would give


def test_batch_gives_to_the_bit_what_each_gives_alone() -> None:
    rng = np.random.default_rng(0)
    shapes = [(40, 24), (24, 40), (32, 10), (16, 16), (40, 24), (5, 5), (32, 10)] * 3
    evals = [gaussian_evals((i, 1), s) * (1.0 + 50.0 * (rng.random(min(s)) < 0.1)) for i, s in enumerate(shapes)]
    for fit, x, shape in zip(marchenko_pastur_fits(evals, shapes), evals, shapes, strict=True):
        alone = marchenko_pastur(x, shape, n_matrices=len(shapes))
        assert repr(fit) == repr(alone)
    assert marchenko_pastur_fits([], []) == []


@given(st.integers(8, 40), st.integers(0, 30), st.integers(0, 2**32), st.integers(-400, 400), st.floats(0.0, 3.0))
@settings(max_examples=80, deadline=None)
def test_any_spectrum_ends_and_powers_of_two_only_scale(n: int, more: int, seed: int, exponent: int, width: float) -> None:
    rng = np.random.default_rng(seed)
    x = np.exp(width * rng.standard_normal(n)) * (rng.random(n) < 0.9)
    fit, scaled = marchenko_pastur(x, (n, n + more)), marchenko_pastur(rng.permutation(np.ldexp(x, exponent)), (n + more, n))
    assert repr(fit.scaled(exponent)) == repr(scaled)
    if fit.status == "ok":
        assert fit.n_spikes == len(fit.spikes) == np.count_nonzero(x > fit.threshold) and (np.diff(fit.spikes) <= 0.0).all()
        assert fit.var > 0.0 and 0.0 <= fit.distance <= 1.0 and fit.iterations >= 1 and fit.reason == ""
        assert fit.soft_rank == pytest.approx(fit.upper_edge / x.max())
    else:
        assert fit.reason and math.isnan(fit.var) and fit.n_spikes == 0


@pytest.mark.parametrize(
    ("x", "shape", "reason"),
    [
        (np.zeros(20), (20, 30), "zero matrix"),
        (np.arange(1.0, MIN_BULK), (MIN_BULK - 1, 30), "7 values, at least 8 wanted"),
        (np.zeros(3), (3, 3), "zero matrix"),
        (np.empty(0), (0, 30), "no values"),
        (np.concatenate((np.zeros(10), np.ones(9))), (19, 30), "half of the values or more are zero"),
        (np.concatenate((np.linspace(1.0, 2.0, 7), np.geomspace(1e3, 1e5, 3))), (10, 10), "3 of 10 values rise .* fewer than 8 are left for the bulk"),
        (np.concatenate((np.linspace(1.0, 2.0, 12), np.geomspace(20.0, 1e12, 28))), (40, 40), "of 40 values rise .* there is no bulk"),
    ],
)
def test_unresolved(x: np.ndarray, shape: tuple[int, int], reason: str) -> None:
    fit = marchenko_pastur(x, shape)
    assert fit.status == "unresolved" and re.search(reason, fit.reason)
    numbers = (fit.var, fit.lower_edge, fit.upper_edge, fit.threshold, fit.mu_tw, fit.scale_tw, fit.soft_rank, fit.distance)
    assert all(math.isnan(v) for v in numbers) and fit.n_spikes == 0 and fit.spikes.size == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: marchenko_pastur([1.0] * 9, (10, 12)), r"evals: wanted the 10 eigenvalues .* got an array of shape \(9,\)"),
        (lambda: marchenko_pastur([1.0, math.nan] * 5, (10, 12)), "evals: .*nan at index 1"),
        (lambda: marchenko_pastur([1.0] * 9 + [math.inf], (10, 12)), "evals: .*inf at index 9"),
        (lambda: marchenko_pastur_fits([[1.0] * 9, [-1.0] + [1.0] * 8], [(9, 9), (9, 9)]), r"evals\[1\]: .*-1.0 at index 0"),
        (lambda: marchenko_pastur([1.0] * 9, (9, 9), level=0.0), "level"),
        (lambda: marchenko_pastur([1.0] * 9, (9, 9), n_matrices=0), "n_matrices"),
        (lambda: mp_cdf(1.0, (9, 9), 0.0), "var"),
    ],
)
def test_bad_input_is_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
