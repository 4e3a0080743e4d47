"""The Tracy-Widom quantile against the law's Fredholm determinant, its centre against random matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import airy

from spectral_fast.metrics.tracy_widom import tracy_widom_centre, tracy_widom_quantile


def exceeds(s: float) -> float:
    """P(TW1 > s) = 1 - det(1 - Ai((x + y)/2)/2) on (s, inf) (Ferrari & Spohn 2005), by Gauss-Legendre quadrature (Bornemann 2010); 20 stands for inf."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    x, root = s + (nodes + 1.0) * 10.0, np.sqrt(weights * 10.0)
    return 1.0 - float(np.linalg.det(np.eye(60) - 0.5 * root[:, None] * root * airy((x[:, None] + x) / 2.0)[0]))


def test_oracle_against_published_quantiles() -> None:
    assert exceeds(0.9793) == pytest.approx(0.05, abs=2e-6)
    assert exceeds(2.0234) == pytest.approx(0.01, abs=2e-6)


@pytest.mark.parametrize(("level", "value", "far"), [(0.05, 0.9793, 2e-4), (0.01, 2.0234, 1.1e-2)])
def test_published_quantiles(level: float, value: float, far: float) -> None:
    assert tracy_widom_quantile(level) == pytest.approx(value, abs=far)


@pytest.mark.parametrize(("level", "off"), [(0.2, 0.01), (0.05, 0.001), (0.01, 0.02), (1e-3, 0.06), (1e-4, 0.1), (1e-5, 0.13), (1e-6, 0.15)])
def test_level_is_kept(level: float, off: float) -> None:
    """How far the gamma approximation's level is from the one asked for: 13 % of it at 1e-6."""
    assert exceeds(tracy_widom_quantile(level)) == pytest.approx(level, rel=off)


def test_centre_of_a_wide_matrix() -> None:
    # one row: s_1² is chi-square of n degrees of freedom, mean n; the law's own mean is mu_tw - 1.2065 scale_tw
    mu, scale = tracy_widom_centre((10_000, 400))
    a, b = math.sqrt(9999.5), math.sqrt(399.5)
    assert mu == pytest.approx((a + b) ** 2, rel=1e-15) and scale == pytest.approx((a + b) * (1 / a + 1 / b) ** (1 / 3), rel=1e-15)
    assert tracy_widom_centre((400, 10_000)) == pytest.approx((mu, scale), rel=1e-15)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, math.nan])
def test_bad_level(level: float) -> None:
    with pytest.raises(ValueError, match="level: wanted a probability"):
        tracy_widom_quantile(level)
