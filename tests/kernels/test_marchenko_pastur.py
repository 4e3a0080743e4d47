"""marchenko_pastur on every backend and instruction-set level: against the end in higher precision, and against numpy."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics.wishart import gaussian_evals

from spectral_fast.kernels import native_kernels, numpy_kernels

LEVELS = native_kernels.levels()
SHAPES = [(8, 8), (64, 64), (32, 10), (384, 384), (400, 100), (3000, 9), (101, 99), (100_000, 20)]


def spectra(shape: tuple[int, int], count: int, spikes: int = 0) -> np.ndarray:
    """(count, d_min) ascending, of Gaussian matrices; the largest ``spikes`` of each are raised."""
    x = np.array([np.sort(gaussian_evals((seed, 5), shape)) for seed in range(count)])
    x[:, x.shape[1] - spikes :] *= 9.0
    return x


def arguments(x: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, int, float, float]:
    """The kernel's: values with their median at 1, the larger side, where to start, the quantile of a level of 5 %."""
    return x / np.median(x, axis=1)[:, None], max(shape), -np.log(max(shape)), 0.9794


def same(found: tuple[np.ndarray, ...], wanted: tuple[np.ndarray, ...]) -> None:
    for f, w in zip(found[:2], wanted[:2], strict=True):
        np.testing.assert_allclose(f, w, rtol=0, atol=1e-11)
    for f, w in zip(found[2:], wanted[2:], strict=True):
        np.testing.assert_array_equal(f, w)


@pytest.mark.native_only
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_levels_and_threads_agree(shape: tuple[int, int]) -> None:
    for spikes in (0, 1, min(shape) // 5):
        a = arguments(spectra(shape, 30, spikes), shape)
        wanted = numpy_kernels.marchenko_pastur(*a, min_bulk=4)
        native = [native_kernels.marchenko_pastur(*a, min_bulk=4, level=level, threads=threads) for level in LEVELS for threads in (1, 2)]
        for found in native:
            same(found, wanted)
            for f, first in zip(found, native[0], strict=True):
                np.testing.assert_array_equal(f, first)


def test_spikes_are_taken_out(kernels) -> None:  # type: ignore[no-untyped-def]
    """Values far above the law of the rest: as many as planted, and the same bulk as without them."""
    shape = (300, 200)
    x = spectra(shape, 5)
    plain = arguments(x, shape)
    spiked = plain[0].copy()
    spiked[:, -7:] = 1e9
    kernel = kernels("marchenko_pastur")
    log_var, _, spikes, rounds, settled = kernel(spiked, *plain[1:], min_bulk=8)
    assert (spikes == 7).all() and (rounds >= 2).all() and settled.all()
    for i in range(5):
        alone = kernel(spiked[i : i + 1, :-7].copy(), shape[0] - 7, *plain[2:], min_bulk=8)
        assert alone[2][0] == 0 and abs(log_var[i] - alone[0][0]) < 2e-3 * np.sqrt(2.0 / 193 / 293)


def test_no_bulk(kernels) -> None:  # type: ignore[no-untyped-def]
    """Two clusters, the larger one far above; and spikes that leave too few."""
    kernel = kernels("marchenko_pastur")
    halves = np.sort(np.concatenate((np.linspace(0.99, 1.01, 45), np.linspace(1e6, 2e6, 55)))[None], axis=1)
    _, _, spikes, _, settled = kernel(halves / halves[0, 40], 100, -np.log(100), 0.9794, min_bulk=8)
    assert not settled[0] and 2 * spikes[0] > 100
    few = arguments(spectra((40, 12), 1), (40, 12))
    few[0][0, -3:] = 1e6
    assert list(kernel(*few, min_bulk=8)[2:]) == [[3], kernel(*few, min_bulk=8)[3], [True]]
    assert not kernel(*few, min_bulk=10)[4][0]


@pytest.mark.parametrize(("shape", "share"), [((64, 64), 0.005), ((400, 100), 0.005), ((101, 99), 0.005), ((32, 10), 0.04)], ids=str)
def test_against_the_end_in_higher_precision(kernels, shape: tuple[int, int], share: float) -> None:  # type: ignore[no-untyped-def]
    """Where sum_j dF/d ln(var) (F(x_j) - (j + 1/2)/n) is zero, from its definition with 30 digits, to the accuracy promised."""
    x, big, start, quantile = arguments(spectra(shape, 1), shape)
    log_var, distance, spikes, rounds, _ = kernels("marchenko_pastur")(x, big, start, quantile, min_bulk=8)
    n = x.shape[1]
    assert (spikes[0], rounds[0]) == (0, 1)

    def law(t: mpmath.mpf, value: float) -> tuple[mpmath.mpf, mpmath.mpf, mpmath.mpf]:
        c = mpmath.mpf(n) / big
        root = mpmath.sqrt(c)
        cosine = (1 + c - mpmath.mpf(value) / (mpmath.exp(t) * big)) / (2 * root)
        theta = mpmath.acos(max(mpmath.mpf(-1), min(mpmath.mpf(1), cosine)))
        psi = mpmath.atan2(root * mpmath.sin(theta), 1 - root * mpmath.cos(theta))
        return (root * mpmath.sin(theta) + c * theta - (1 - c) * psi) / (mpmath.pi * c), mpmath.sin(theta) / (mpmath.pi * root), theta

    def equation(t: mpmath.mpf) -> mpmath.mpf:
        parts = [law(t, float(value)) for value in x[0]]
        return mpmath.fsum(slope * (f + (0.25 - theta / (2 * mpmath.pi) - j - 0.5) / n) for j, (f, slope, theta) in enumerate(parts))

    with mpmath.workdps(30):
        at, reach = mpmath.mpf(float(log_var[0])), share * np.sqrt(2.0 / big / n)
        assert equation(at - reach) > 0 > equation(at + reach)
        farthest = max(abs(law(at, float(value))[0] - (j + mpmath.mpf(0.5)) / n) for j, value in enumerate(x[0])) + mpmath.mpf(0.5) / n
    assert float(distance[0]) == pytest.approx(float(farthest), abs=1e-12)


def test_a_spectrum_does_not_depend_on_the_others(kernels) -> None:  # type: ignore[no-untyped-def]
    kernel = kernels("marchenko_pastur")
    x, *rest = arguments(spectra((60, 40), 9, 3), (60, 40))
    together = kernel(x, *rest, min_bulk=8)
    for i in range(9):
        alone = kernel(x[i : i + 1], *rest, min_bulk=8)
        assert [part[i] for part in together] == [part[0] for part in alone]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 200), st.integers(0, 2**32 - 1), st.floats(-3, 3))
@pytest.mark.native_only
def test_any_values(n: int, more: int, seed: int, start: float) -> None:
    """Values of no law, ties and zeros among them: the levels agree to the bit, and what comes out is in range."""
    rng = np.random.default_rng(seed)
    x = np.sort(rng.pareto(1.5, (3, n)) * rng.integers(0, 2, (3, n)), axis=1)
    first = None
    for level in LEVELS:
        found = native_kernels.marchenko_pastur(x, n + more, start, 0.9794, min_bulk=1, level=level)
        first = first or found
        for f, g in zip(found, first, strict=True):
            np.testing.assert_array_equal(f, g)
        log_var, distance, spikes, rounds, settled = found
        assert np.isfinite(log_var).all() and ((0 < distance) & (distance <= 1.0 + 1.0 / n)).all() and (rounds >= 1).all()
        assert ((2 * spikes <= n) | ~settled).all()


def test_empty(kernels) -> None:  # type: ignore[no-untyped-def]
    assert [len(part) for part in kernels("marchenko_pastur")(np.empty((0, 5)), 9, 0.0, 1.0, min_bulk=8)] == [0] * 5


def test_errors_name_the_argument(kernels) -> None:  # type: ignore[no-untyped-def]
    x, d_max, *rest = arguments(spectra((20, 10), 2), (20, 10))
    for values, side in ((x, 9), (x[:, :0], 9)):
        with pytest.raises(ValueError, match="^d_max: "):
            kernels("marchenko_pastur")(values.copy(), side, *rest, min_bulk=8)
    with pytest.raises(ValueError, match="^min_bulk: "):
        kernels("marchenko_pastur")(x, d_max, *rest, min_bulk=0)
