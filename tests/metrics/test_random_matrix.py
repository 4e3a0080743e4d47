"""The random-matrix yardstick against random matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spectral_fast.metrics.random_matrix import random_matrix_reference


@pytest.mark.parametrize("shape", [(400, 100), (100, 300), (2000, 40)])
def test_edges(shape: tuple[int, int]) -> None:
    s = np.linalg.svd(2.0 * np.random.default_rng(5).standard_normal(shape), compute_uv=False)
    r = random_matrix_reference(shape, 4.0)
    # Tracy-Widom fluctuations: mean -1.2, standard deviation 1.3 in units of these scales, so 5 of them is four deviations.
    d_max, d_min = max(shape), min(shape)
    upper, lower = ((1 / np.sqrt(d_min) + sign / np.sqrt(d_max)) ** (1 / 3) for sign in (1, -1))
    assert r["spectral_norm"] == pytest.approx(s[0], abs=5 * upper)
    assert r["s_min"] == pytest.approx(s[-1], abs=5 * lower)
    assert r["frobenius"] == pytest.approx(np.sqrt((s**2).sum()), rel=0.02)
    assert r["stable_rank"] == pytest.approx((s**2).sum() / s[0] ** 2, rel=0.1)


@pytest.mark.parametrize("shape", [(60, 60), (200, 50)], ids=["square", "4:1"])
def test_quantile_of_the_smallest_value(shape: tuple[int, int]) -> None:
    """About 1 % of matrices fall below the 1 % quantile: between 1 and 25 of 1000 (binomial, 1 % of misses either way is < 1e-4)."""
    rng = np.random.default_rng(11)
    low = random_matrix_reference(shape, 1.0)["s_min_low"]
    below = sum(np.linalg.svd(rng.standard_normal(shape), compute_uv=False)[-1] < low for _ in range(1000))
    assert 1 <= below <= 25


def test_zero_variance() -> None:
    assert all(math.isnan(v) for v in random_matrix_reference((3, 3), 0.0).values())
