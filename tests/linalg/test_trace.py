from __future__ import annotations

import numpy as np
import pytest
from problems import Counting, symmetric
from tolerances import tolerance

from spectral_fast.linalg.trace import student_interval, trace

N = 120
EVALS = np.r_[np.linspace(-1, 1, N - 2), [8.0, 5.0]]


def test_a_diagonal_matrix_is_exact_from_one_probe():
    a = Counting(np.diag(EVALS))
    r = trace(a, max_matvecs=2)
    assert a.products == r.matvecs == 2
    assert abs(r.estimate - EVALS.sum()) <= tolerance(np.float64, N) * 8
    assert r.stderr <= tolerance(np.float64, N) * 8


def test_interval_covers_and_is_not_too_wide():
    a = symmetric(EVALS)
    covered, widths = 0, []
    for seed in range(200):
        r = trace(a, max_matvecs=10, seed=seed)
        lo, hi = r.interval(0.95)
        covered += lo <= EVALS.sum() <= hi
        widths.append(hi - lo)
    assert 180 <= covered <= 200
    sd = np.sqrt(2 * (np.sum(EVALS**2) - np.sum(np.diag(a) ** 2)) / 10)
    assert np.median(widths) < 2 * 2.262 * sd * 1.2  # t(0.975, 9) standard errors to each side


def test_blocks_add_up():
    a = Counting(symmetric(EVALS))
    a.blocks = {"a": slice(0, 50), "b": slice(50, N)}
    r = trace(a, max_matvecs=40)
    assert set(r.by_layer) == {"a", "b"}
    assert sum(e for e, _ in r.by_layer.values()) == pytest.approx(r.estimate, abs=1e-9)
    for name, s in a.blocks.items():
        estimate, stderr = r.by_layer[name]
        assert abs(estimate - np.trace(a.a[s, s])) < 5 * stderr


def test_student_interval_against_the_table():
    lo, hi = student_interval(1.0, 2.0, 10, 0.95)
    assert hi - 1 == pytest.approx(2.262157 * 2, rel=1e-6) and 1 - lo == pytest.approx(hi - 1)
    assert student_interval(1.0, float("nan"), 1) == (-np.inf, np.inf)


def test_bad_arguments():
    with pytest.raises(ValueError, match="method.*hutchinson"):
        trace(np.eye(3), method="magic")
    with pytest.raises(ValueError, match="max_matvecs"):
        trace(np.eye(3), max_matvecs=0)
    with pytest.raises(ArithmeticError):
        trace(np.full((2, 2), np.nan))


def test_torch_in_torch_out():
    torch = pytest.importorskip("torch")
    a = symmetric(np.arange(1.0, 31.0))
    r, want = trace(torch.from_numpy(a), max_matvecs=6), trace(a, max_matvecs=6)
    assert isinstance(r.samples, torch.Tensor) and np.allclose(r.samples.numpy(), want.samples, rtol=1e-12)
    assert r.estimate == pytest.approx(want.estimate) and r.to_dict()["samples"] == r.samples.tolist()
