"""The random-matrix yardstick against random matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spectral_fast.metrics.random_matrix import permutation_null, random_matrix_reference


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


def test_permutation_null_of_independent_entries_is_the_matrix_itself() -> None:
    w = 0.1 * np.random.default_rng(2).standard_normal((120, 80))
    null, expected = permutation_null(w, n_permutations=30), random_matrix_reference(w.shape, 0.01)
    assert null.spectral_norm.mean == pytest.approx(expected["spectral_norm"], rel=0.03)
    assert null.s_min.mean == pytest.approx(expected["s_min"], rel=0.15)
    assert null.var.mean == pytest.approx(0.01, rel=0.02)
    assert null.p_value(float(np.linalg.svd(w, compute_uv=False)[0])) > 1 / 31


def test_permutation_null_takes_structure_away_and_keeps_the_entries() -> None:
    rng = np.random.default_rng(3)
    w = (rng.standard_normal((60, 40)) + np.outer(rng.standard_normal(60), rng.standard_normal(40))).astype(np.float32)
    s = np.linalg.svd(w.astype(np.float64), compute_uv=False)
    null = permutation_null(w, n_permutations=19)
    assert null.spectral_norm.largest < 0.6 * s[0] and null.p_value(float(s[0])) == 1 / 20
    assert null.n_permutations == 19 and null.samples.shape == (19, 3)
    norms = null.samples[:, 0]
    assert (null.spectral_norm.mean, null.spectral_norm.least, null.spectral_norm.largest) == (norms.mean(), norms.min(), norms.max())
    assert (null.spectral_norm.low, null.spectral_norm.high) == tuple(np.quantile(norms, (0.05, 0.95)))
    # shuffles keep every entry: the sum of squares of a shuffle's values is that of w
    one = permutation_null(np.outer(np.arange(1.0, 4.0), np.ones(1)), n_permutations=5)
    np.testing.assert_allclose(one.samples[:, :2], math.sqrt(14.0), rtol=1e-15)


def test_permutation_null_is_seeded_and_scales() -> None:
    w = np.random.default_rng(4).standard_normal((30, 20))
    a, b = permutation_null(w, n_permutations=4, seed=5), permutation_null(w, n_permutations=9, seed=5)
    np.testing.assert_array_equal(a.samples, b.samples[:4])
    assert (permutation_null(w, n_permutations=4, seed=6).samples != a.samples).any()
    for exponent in (-700, 600):
        scaled = permutation_null(np.ldexp(w, exponent), n_permutations=4, seed=5)
        np.testing.assert_array_equal(scaled.samples[:, :2], np.ldexp(a.samples[:, :2], exponent))


def test_permutation_null_of_small_and_zero_matrices() -> None:
    assert math.isnan(permutation_null(np.ones((3, 4)), n_permutations=2).var.mean)
    zero = permutation_null(np.zeros((9, 9)), n_permutations=2)
    assert zero.spectral_norm.mean == 0.0 and math.isnan(zero.var.mean)


@pytest.mark.parametrize(
    ("w", "options", "words"),
    [
        (np.ones(3), {}, r"w: wanted a matrix, got shape \(3,\)"),
        (np.ones((0, 3)), {}, "w: wanted a matrix"),
        (np.array([[1.0, math.nan]]), {}, "w: wanted finite"),
        (np.ones((3, 3)), {"n_permutations": 0}, "n_permutations"),
        (np.ones((3, 3)), {"backend": "fortran"}, "backend"),
    ],
)
def test_permutation_null_names_bad_input(w: np.ndarray, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        permutation_null(w, **options)
