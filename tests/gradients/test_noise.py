"""Noise scale, signal share and class parts of gradients whose distribution is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from spectral_fast.metrics.gradient_noise import ClassParts, class_parts, noise_scale, signal_share

F64 = NDArray[np.float64]
D = 20
Z = 1.959963984540054  # normal, 97.5 %


class Known(NamedTuple):
    """Gradients g_n = g + c_n of a linear model with Gaussian inputs: their law. moments: Var |c|², Var 2 g·c and the covariance of the two."""

    draw: Callable[[np.random.Generator, int], F64]
    mean: F64
    cov: F64
    moments: tuple[float, float, float]

    @property
    def noise(self) -> float:
        return float(np.trace(self.cov) / (self.mean @ self.mean))

    def delta_sd(self, n: int) -> float:
        """Standard deviation of the estimated noise scale T/A by the delta method, with the true covariance C.

        T = tr of the sample covariance = mean |c|² - U and A = |ĝ|² - T/n = |g|² + mean 2 g·c + U, U = sum_(i != j) c_i·c_j/(n (n - 1)), exactly.
        U has mean 0, is uncorrelated with the sums over single samples, and Var U = 2 tr C²/(n (n - 1)). At T = t = tr C, A = a = |g|²:
        d(T/A) = dT/a - t dA/a² = mean(|c|²/a - t 2 g·c/a²) - (1/a + t/a²) U.
        """
        a, t = float(self.mean @ self.mean), float(np.trace(self.cov))
        of_t, of_a, both = self.moments
        singles = of_t / a**2 + t**2 * of_a / a**4 - 2.0 * t * both / a**3
        return math.sqrt(singles / n + (1.0 / a + t / a**2) ** 2 * 2.0 * float(np.sum(self.cov**2)) / (n * (n - 1)))


def inputs(evals: F64, noise: float, direction: F64) -> Known:
    """Loss c·x: the gradient of a sample is its input x ~ N(mu, S). Var |c|² = 2 tr S², Var 2 mu·c = 4 muᵀ S mu, uncorrelated (odd moments)."""
    mu = direction / np.linalg.norm(direction) * math.sqrt(evals.sum() / noise)
    moments = (2.0 * float(evals @ evals), 4.0 * float(mu * evals @ mu), 0.0)
    return Known(lambda rng, n: mu + rng.standard_normal((n, D)) * np.sqrt(evals), mu, np.diag(evals), moments)


def least_squares(evals: F64, residual: float) -> Known:
    """Squared error of a linear model that is off by delta = (1 .. 1): g_n = 2 (delta·x - e) x, x ~ N(0, S), e ~ N(0, residual²).

    g = 2 S delta; by Isserlis C = 4 (residual² + deltaᵀ S delta) S + 4 S delta deltaᵀ S. The variances are moments of x of order eight, taken from
    400,000 draws (known to about 1 %).
    """
    delta = np.ones(D)
    cov = 4.0 * (residual**2 + float(delta * evals @ delta)) * np.diag(evals) + 4.0 * np.outer(evals * delta, evals * delta)
    mean = 2.0 * evals * delta

    def draw(rng: np.random.Generator, n: int) -> F64:
        x = rng.standard_normal((n, D)) * np.sqrt(evals)
        return np.asarray(2.0 * (x @ delta - residual * rng.standard_normal(n))[:, None] * x)

    c = draw(np.random.default_rng(999), 400_000) - mean
    found = np.cov((c * c).sum(axis=1), 2.0 * c @ mean)
    return Known(draw, mean, cov, (float(found[0, 0]), float(found[1, 1]), float(found[0, 1])))


FLAT, POWER = np.ones(D), 1.0 / np.arange(1.0, D + 1.0)
SPREAD, TOP = np.ones(D), np.eye(D)[0]
MODELS: dict[str, Callable[[], Known]] = {
    "flat, B = 2": lambda: inputs(FLAT, 2.0, SPREAD),
    "flat, B = 8": lambda: inputs(FLAT, 8.0, SPREAD),
    "flat, B = 20": lambda: inputs(FLAT, 20.0, SPREAD),
    "power law, B = 2": lambda: inputs(POWER, 2.0, SPREAD),
    "power law, B = 8": lambda: inputs(POWER, 8.0, SPREAD),
    "power law, B = 20": lambda: inputs(POWER, 20.0, SPREAD),
    "power law, B = 2, mean along the top": lambda: inputs(POWER, 2.0, TOP),
    "power law, B = 8, mean along the top": lambda: inputs(POWER, 8.0, TOP),
    "least squares, flat": lambda: least_squares(FLAT, 0.5),
    "least squares, power law": lambda: least_squares(POWER, 0.5),
}


def noise_of(g: F64, weights: F64 | None = None) -> Any:
    w = np.ones(len(g)) if weights is None else weights
    gram = g @ g.T
    return noise_scale(np.diagonal(gram).copy(), gram @ (w / w.sum()), w)


@pytest.mark.thorough
@pytest.mark.parametrize("n", [64, 512])
@pytest.mark.parametrize("name", MODELS)
def test_interval_covers_and_is_no_longer_than_it_has_to_be(name: str, n: int) -> None:
    """Nominal 95 %: 180 to 200 of seeds 0..199; median width at most 1.3 times 2 x 1.96 x the delta method's standard deviation with the true covariance."""
    known = MODELS[name]()
    intervals = np.array([noise_of(known.draw(np.random.default_rng(seed), n)).interval for seed in range(200)])
    covered = int(np.count_nonzero((intervals[:, 0] <= known.noise) & (known.noise <= intervals[:, 1])))
    width = float(np.median(intervals[:, 1] - intervals[:, 0])) / (2.0 * Z * known.delta_sd(n))
    assert 180 <= covered <= 200, f"covered {covered}, width {width:.2f}"
    assert width <= 1.3, f"covered {covered}, width {width:.2f}"


@pytest.mark.thorough
def test_an_unresolved_mean_sets_no_upper_end() -> None:
    """B = 20 along the top of a power law, n = 64: |g|² is known to 60 %, and mostly cannot be told from 0. Without any mean it never can."""
    known = inputs(POWER, 20.0, TOP)
    intervals = np.array([noise_of(known.draw(np.random.default_rng(seed), 64)).interval for seed in range(200)])
    assert 180 <= np.count_nonzero((intervals[:, 0] <= 20.0) & (20.0 <= intervals[:, 1])) <= 200
    assert np.isinf(intervals[:, 1]).sum() >= 100
    pure = [noise_of(np.random.default_rng(seed).standard_normal((64, D))).interval for seed in range(200)]
    assert sum(high == math.inf for _, high in pure) >= 190 and all(low > 0 for low, _ in pure)


def test_the_known_laws_are_what_they_say() -> None:
    for known in (inputs(POWER, 8.0, TOP), least_squares(POWER, 0.5)):
        g = known.draw(np.random.default_rng(5), 200_000)
        assert np.trace(np.cov(g.T)) == pytest.approx(np.trace(known.cov), rel=0.02)
        assert np.linalg.norm(g.mean(axis=0) - known.mean) <= 0.05 * np.linalg.norm(known.mean)
    # and the standard deviation is that of the noise scales themselves, to the error of a standard deviation of 400 (3.5 %)
    known = MODELS["power law, B = 2"]()
    spread = np.std([noise_of(known.draw(np.random.default_rng(seed), 512)).value for seed in range(400)])
    assert spread == pytest.approx(known.delta_sd(512), rel=0.12)


def test_signal_share() -> None:
    g = inputs(FLAT, 4.0, SPREAD).draw(np.random.default_rng(0), 300)
    noise = noise_of(g)
    share, (low, high) = signal_share(noise)
    mean2, second = float(g.mean(axis=0) @ g.mean(axis=0)), float((g * g).sum(axis=1).mean())
    trace = float(np.trace(np.cov(g.T)))
    assert share == pytest.approx((mean2 - trace / 300) / second)
    assert (low, high) == pytest.approx((1 / (1 + noise.interval[1]), 1 / (1 + noise.interval[0]))) and low < 0.2 < high
    assert signal_share(noise_of(np.ones((5, 3))))[0] == 1.0
    assert math.isnan(signal_share(noise_of(np.zeros((5, 3))))[0])
    pure, (low, high) = signal_share(noise_of(np.random.default_rng(5).standard_normal((20, 400))))
    assert abs(pure) < 0.05 and low == 0.0 and high > 0.0


@pytest.mark.parametrize("weighted", [False, True])
def test_class_parts(weighted: bool) -> None:
    """Against means and scatter in the space of gradients; debiased, they add up to less than nothing but the trace's own estimate."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 4, 60)
    centres = rng.standard_normal((4, 9)) * 2.0
    g = centres[y] + rng.standard_normal((60, 9))
    w = rng.uniform(0.5, 2.0, 60) if weighted else np.ones(60)
    got = class_parts(g @ g.T, w, y)
    assert got is not None and (got.n_classes, got.n_single) == (4, 0)
    p = w / w.sum()
    between = within = 0.0
    for c in range(4):
        q = p[y == c] / p[y == c].sum()
        share, own = p[y == c].sum(), g[y == c]
        m = q @ own
        scatter = float(q @ ((own - m) ** 2).sum(axis=1)) / (1 - q @ q)
        between += share * float((m - p @ g) @ (m - p @ g)) - share * (1 - share) * (q @ q) * scatter
        within += share * scatter
    assert got.between == pytest.approx(between) and got.within == pytest.approx(within)
    assert got.between_share == pytest.approx(between / (between + within))


def test_class_parts_without_differences_and_without_classes() -> None:
    rng = np.random.default_rng(2)
    shares = []
    for _ in range(100):
        g = rng.standard_normal((40, 9))
        found = class_parts(g @ g.T, np.ones(40), rng.integers(0, 5, 40))
        assert found is not None
        shares.append(found.between_share)
    # unbiased: 0 in the mean (raw means of 8 would show 1/8 between), standard error about 0.03/10
    assert abs(np.mean(shares)) < 0.012
    g = rng.standard_normal((6, 3))
    assert class_parts(g @ g.T, np.ones(6), np.zeros(6, dtype=np.int64)) is None
    assert class_parts(g @ g.T, np.ones(6), np.arange(6)) is None
    single = class_parts(g @ g.T, np.ones(6), np.array([0, 0, 0, 1, 1, 2]))
    assert single is not None and single.n_single == 1
    assert math.isnan(ClassParts(0.0, 0.0, 2, 0).between_share)
