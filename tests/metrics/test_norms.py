"""Numbers of a spectrum against closed forms, and their invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectral_fast.metrics.norms import SPECTRUM_METRICS, spectrum_metrics

SCALE_FREE = ("condition_number", "gram_condition_number", "stable_rank", "effective_rank", "participation_ratio", "spectral_entropy")


def test_equal_values() -> None:
    m = spectrum_metrics(np.full(5, 3.0))
    assert m == pytest.approx(
        {
            "spectral_norm": 3, "s_min": 3, "lambda_max": 9, "condition_number": 1, "gram_condition_number": 1, "frobenius": math.sqrt(45),
            "stable_rank": 5, "effective_rank": 5, "participation_ratio": 5, "spectral_entropy": 1,
        },
        rel=1e-14,
    )  # fmt: skip


def test_two_values_by_hand() -> None:
    m = spectrum_metrics(np.array([2.0, 1.0]))
    p, q = 2 / 3, 4 / 5
    assert m["effective_rank"] == pytest.approx(math.exp(-p * math.log(p) - (1 - p) * math.log(1 - p)), rel=1e-14)
    assert m["spectral_entropy"] == pytest.approx((-q * math.log(q) - (1 - q) * math.log(1 - q)) / math.log(2), rel=1e-14)
    assert m["participation_ratio"] == pytest.approx(25 / 17, rel=1e-14)
    assert m["stable_rank"] == pytest.approx(1.25, rel=1e-14)


def test_one_value_and_rank_one() -> None:
    assert spectrum_metrics(np.array([2.0]))["spectral_entropy"] == 0.0
    m = spectrum_metrics(np.array([2.0, 0.0, 0.0]))
    assert m["condition_number"] == math.inf
    assert (m["stable_rank"], m["effective_rank"], m["participation_ratio"], m["spectral_entropy"]) == (1, 1, 1, 0)


@pytest.mark.parametrize("s", [np.zeros(4), np.empty(0)])
def test_no_spectrum_is_nan(s: np.ndarray) -> None:
    m = spectrum_metrics(s)
    assert set(m) == set(SPECTRUM_METRICS) and all(math.isnan(v) for v in m.values())


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=30), st.sampled_from([2.0**-900, 2.0**-20, 2.0**20, 2.0**900]))
def test_scale_free_numbers_do_not_see_the_scale(values: list[float], scale: float) -> None:
    s = np.sort(np.array(values))[::-1]
    a, b = spectrum_metrics(s), spectrum_metrics(s * scale)
    for name in SCALE_FREE:
        assert a[name] == b[name]
    assert b["frobenius"] == a["frobenius"] * scale


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=30))
def test_order_of_the_ranks(values: list[float]) -> None:
    """1 <= stable rank <= participation ratio <= ... <= d_min: inequalities between Renyi entropies of the eigenvalues."""
    s = np.sort(np.array(values))[::-1]
    m = spectrum_metrics(s)
    tol = 1e-9
    assert 1 - tol <= m["stable_rank"] <= m["participation_ratio"] + tol <= len(s) + 2 * tol
    assert 1 - tol <= m["effective_rank"] <= len(s) + tol
    assert -tol <= m["spectral_entropy"] <= 1 + tol
