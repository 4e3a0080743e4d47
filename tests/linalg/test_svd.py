"""sf.svdvals: prescribed and exact spectra, batching, bad values, every way to hand over an array."""

from __future__ import annotations

import ml_dtypes
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import spectral_fast as sf


def prescribed(seed: int, m: int, n: int, s: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((k, len(s))))[0] for k in (m, n))
    return (u * s) @ v.T


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (40, 7), (7, 40), (90, 90), (300, 20)])
@pytest.mark.parametrize("spectrum", ["flat", "graded", "deficient"])
def test_prescribed_spectra(shape: tuple[int, int], spectrum: str) -> None:
    d = min(shape)
    s = {"flat": np.linspace(2, 1, d), "graded": np.geomspace(1, 1e-15, d), "deficient": np.where(np.arange(d) < (d + 1) // 2, 1.0, 0.0)}[spectrum]
    a = prescribed(0, *shape, s)
    values, bound = sf.svdvals(a, accuracy="high", return_bound=True)
    # forming U diag(s) V^T rounds too: (d + 2) products of entries below 1 in each of max(m, n) rows
    formed = 4 * np.sqrt(max(shape)) * 2.0**-52 * s[0]
    assert (np.abs(values - s) <= bound + formed).all()
    c_eps = 10 * np.sqrt(d) * 2.0**-52
    assert (bound == c_eps * values[0]).all()
    values, bound = sf.svdvals(a, return_bound=True)
    assert (np.abs(values - s) <= bound + formed).all()
    assert (bound <= 1.001 * np.sqrt(c_eps) * values[0]).all()
    large = values > 1e-3 * values[0]
    assert (bound[large] <= 1.001 * c_eps * values[0] ** 2 / values[large]).all()


def hilbert(n: int) -> np.ndarray:
    return 1.0 / (np.arange(n)[:, None] + np.arange(n) + 1.0)


def kahan(n: int) -> np.ndarray:
    c, s = np.cos(1.2), np.sin(1.2)
    return np.diag(s ** np.arange(n)) @ (np.triu(np.full((n, n), -c), 1) + np.eye(n))


@pytest.mark.parametrize("matrix", [hilbert(8), kahan(10), np.ones((6, 6)), np.diag([1.0, 0.0, 1e-200])], ids=["hilbert", "kahan", "ones", "diagonal"])
def test_against_higher_precision(matrix: np.ndarray) -> None:
    with mpmath.workdps(50):
        exact = np.sort([float(x) for x in mpmath.svd_r(mpmath.matrix(matrix.tolist()), compute_uv=False)])[::-1]
    values, bound = sf.svdvals(matrix, return_bound=True)
    assert (np.abs(values - exact) <= bound).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_batches_equal_single_matrices(batch: int, m: int, n: int, seed: int) -> None:
    a = np.random.default_rng(seed).standard_normal((batch, m, n))
    s = sf.svdvals(a)
    assert s.shape == (batch, min(m, n)) and s.dtype == np.float64
    for i in range(batch):
        np.testing.assert_array_equal(s[i], sf.svdvals(a[i]))
    assert (np.diff(s, axis=-1) <= 0).all()


@pytest.mark.parametrize("scale", [2.0**-1060, 2.0**-900, 2.0**900, 2.0**1020])
def test_extreme_scales(scale: float) -> None:
    a = np.arange(12.0).reshape(4, 3) / 4
    # at 2^-1060 the entries are denormal but, having few bits, exact
    # the values themselves are then multiples of 2^-1074, which is 2^-1074 / scale here
    np.testing.assert_allclose(sf.svdvals(a * scale) / scale, sf.svdvals(a), rtol=0, atol=2.0**-1074 / scale)


def test_a_bad_matrix_gives_nan_alone() -> None:
    a = np.stack([np.eye(3)] * 4)
    a[1, 0, 2], a[2, 1, 1] = np.nan, -np.inf
    s = sf.svdvals(a)
    assert np.isnan(s[1:3]).all()
    np.testing.assert_array_equal(s[[0, 3]], 1.0)


def test_arrays_of_every_kind() -> None:
    base = np.random.default_rng(1).standard_normal((2, 6, 5)).astype(ml_dtypes.bfloat16)
    exact = np.linalg.svd(base.astype(np.float64), compute_uv=False)
    bits = base.view(np.uint16)
    as_torch = torch.from_numpy(base.astype(np.float32)).bfloat16()
    np.testing.assert_allclose(sf.svdvals(base), exact, rtol=1e-12)
    np.testing.assert_allclose(sf.svdvals(bits, dtype="bfloat16"), exact, rtol=1e-12)
    result = sf.svdvals(as_torch)
    assert isinstance(result, torch.Tensor) and result.dtype == torch.float64
    np.testing.assert_allclose(result.numpy(), exact, rtol=1e-12)
    np.testing.assert_allclose(
        sf.svdvals(base.astype(np.float32)[:, ::-1, ::2].transpose(0, 2, 1)), sf.svdvals(base.astype(np.float64)[:, ::-1, ::2]), rtol=1e-12
    )
    np.testing.assert_allclose(sf.svdvals([[3, 0], [0, 4]]), [4, 3])


def test_threads_do_not_change_small_results() -> None:
    a = np.random.default_rng(2).standard_normal((3, 20, 10))
    np.testing.assert_array_equal(sf.svdvals(a, threads=1), sf.svdvals(a, threads=2))


@pytest.mark.parametrize(
    ("a", "options", "error", "message"),
    [
        (np.ones(3), {}, ValueError, r"^a: got shape \(3,\)"),
        (np.ones((2, 2), complex), {}, TypeError, "^a: got dtype complex128"),
        (np.array([["x"]]), {}, TypeError, "^a"),
        (np.eye(2), {"accuracy": "best"}, ValueError, "^accuracy.*known: standard"),
        (np.eye(2), {"threads": 0}, ValueError, "^threads"),
        (np.eye(2), {"backend": "magma"}, ValueError, "^backend"),
        (np.eye(2), {"dtype": "bfloat16"}, ValueError, "^dtype: 'bfloat16' travels as uint16"),
        (np.eye(2), {"dtype": "int4"}, ValueError, "^dtype: got 'int4'"),
        (np.eye(2), {"dtype": "float32"}, ValueError, "^dtype: 'float32' was named but a holds float64"),
    ],
)
def test_errors_name_the_argument(a: np.ndarray, options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sf.svdvals(a, **options)  # type: ignore[arg-type]


FAST = [((330, 330), "gaussian"), ((600, 777), "heavy-tailed"), ((9000, 321), "gaussian"), ((500, 400), "graded"), ((400, 400), "ones"), ((350, 700), "scaled")]


@pytest.mark.parametrize(("shape", "kind"), FAST, ids=lambda x: x if isinstance(x, str) else "x".join(map(str, x)))
def test_fast_keeps_its_bound(shape: tuple[int, int], kind: str) -> None:
    """Products in single precision: far from exact, and within what return_bound says."""
    rng = np.random.default_rng(5)
    d = min(shape)
    a = {
        "gaussian": lambda: rng.standard_normal(shape, dtype=np.float32),
        "heavy-tailed": lambda: rng.standard_t(2.5, shape),
        "graded": lambda: prescribed(1, *shape, np.geomspace(1, 1e-9, d)),
        "ones": lambda: np.ones(shape),
        "scaled": lambda: rng.standard_normal(shape) * 1e-200,
    }[kind]()
    exact = np.linalg.svd(a.astype(np.float64), compute_uv=False)
    values, bound = sf.svdvals(a, accuracy="fast", return_bound=True)
    error = np.abs(values - exact)
    assert (error <= bound).all()
    assert bound[0] <= 2.2e-6 * ((exact / exact[0]) ** 2).sum() * exact[0]  # of use at the upper end
    if not sf.show_config()["native"].startswith("off"):  # numpy keeps "high", and its bits depend on BLAS's threads
        assert error.max() > 1e-10 * exact[0] or kind == "ones"  # single precision indeed
        assert (sf.svdvals(a, accuracy="fast", threads=1) == values).all()


def test_fast_is_standard_for_few_values() -> None:
    a = np.random.default_rng(6).standard_normal((3, 320, 500))
    values, bound = sf.svdvals(a, accuracy="fast", return_bound=True)
    same, narrow = sf.svdvals(a, return_bound=True)
    assert (values == same).all()
    assert (bound == narrow).all()


@pytest.mark.parametrize("n", [8, 24, 64, 100, 320])
def test_two_values_above_a_tiny_bulk(n: int) -> None:
    """Hundreds of sweeps for the bulk pass over the two large values: what rounding does to them there must not add up."""
    k = np.arange(n)
    d = 1e-8 * (1 + k / n)
    d[:2] = 1.4140645678595258, 1.4062761574391265
    e = np.where(k % 2, 0, 1e-12)
    e[0] = 0
    values, bound = sf.svdvals(np.diag(d) + np.diag(e[:-1], 1), accuracy="high", return_bound=True)
    assert (np.abs(values[:2] - d[:2]) <= 0.3 * bound[:2]).all()
    assert np.abs(values[2:] - np.sort(d[2:])[::-1]).max() <= 2e-12


@pytest.mark.native_only
def test_complex_fast_is_standard() -> None:
    from spectral_fast.kernels.native_kernels import singular_values

    rng = np.random.default_rng(9)
    a = rng.standard_normal((2, 200, 180)) + 1j * rng.standard_normal((2, 200, 180))
    assert np.array_equal(singular_values(a, accuracy="fast"), singular_values(a, accuracy="standard"))
