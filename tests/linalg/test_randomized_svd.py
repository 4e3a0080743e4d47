"""sf.randomized_svd: prescribed spectra, the same test matrix against the textbook, error bounds, adaptive rank; sf.subspace_overlap."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import spectral_fast as sf
from spectral_fast.kernels.counters import rademacher

SPECTRA = {
    "fast": np.geomspace(1.0, 1e-12, 90),
    "slow": 1.0 / np.arange(1, 91),
    "flat": np.linspace(2.0, 1.0, 90),
    "gap": np.r_[np.linspace(2.0, 1.0, 8), np.full(82, 1e-3)],
    "deficient": np.r_[np.linspace(2.0, 1.0, 5), np.zeros(85)],
}


def prescribed(seed: int, m: int, n: int, s: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((k, len(s))))[0] for k in (m, n))
    return (u * s) @ v.T


def residual(a: np.ndarray, r: sf.LowRankSVD) -> np.ndarray:
    return a.astype(np.float64) - (r.u.astype(np.float64) * r.s.astype(np.float64)) @ r.vt.astype(np.float64)


@pytest.mark.parametrize("method", ["subspace", "krylov", "sketch", "auto"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", [(140, 90), (90, 140)])
def test_close_to_the_best(shape: tuple[int, int], name: str, dtype: type, method: str) -> None:
    s = SPECTRA[name]
    a = prescribed(1, *shape, s).astype(dtype)
    r = sf.randomized_svd(a, 8, method=method)
    assert r.u.shape == (shape[0], 8)
    assert r.vt.shape == (8, shape[1])
    assert r.u.dtype == r.s.dtype == r.vt.dtype == dtype
    limit = 1e-6 if dtype == np.float32 else 1e-13
    assert np.abs(r.u.T.astype(np.float64) @ r.u - np.eye(8)).max() <= limit
    assert np.abs(r.vt.astype(np.float64) @ r.vt.T - np.eye(8)).max() <= limit
    assert (np.diff(r.s) <= 0).all()
    assert (r.u[np.abs(r.u).argmax(axis=0), np.arange(8)] > 0).all()
    e = residual(a, r)
    best = float(np.linalg.norm(s[8:]))
    rounding = 3e-7 * s[0] * 8 if dtype == np.float32 else 1e-14 * s[0] * 8
    assert np.linalg.norm(e) <= (1.02 if method == "sketch" else 1.01) * best + rounding
    assert np.linalg.norm(e, 2) <= r.error
    assert r.error <= 1.1 * max(np.linalg.norm(e), 30 * rounding)


def test_subspace_iteration_is_the_textbook_s() -> None:
    """Halko et al. 2011, algorithms 4.4 and 5.1, written out, with the documented test matrix."""
    a = prescribed(2, 60, 40, SPECTRA["slow"][:40])
    k, columns, seed = 6, 11, 17
    omega = rademacher(40 * columns, seed, 0).reshape(40, columns)
    q = np.linalg.qr(a @ omega)[0]
    for _ in range(2):
        q = np.linalg.qr(a @ np.linalg.qr(a.T @ q)[0])[0]
    u, s, vt = np.linalg.svd(q.T @ a, full_matrices=False)
    for options in ({"seed": seed}, {"omega": omega}):
        r = sf.randomized_svd(a, k, oversample=5, method="subspace", **options)
        assert np.abs(r.s - s[:k]).max() <= 1e-13
        assert np.abs((r.u * r.s) @ r.vt - (q @ u[:, :k] * s[:k]) @ vt[:k]).max() <= 1e-12
    assert not np.array_equal(sf.randomized_svd(a, k, oversample=5, method="subspace", seed=18).s, r.s)


def test_krylov_is_closer_for_as_many_products() -> None:
    """With the same test matrix as many products with A, and with its own narrow blocks half as many for about the same error."""
    a = prescribed(3, 300, 200, 1.0 / np.sqrt(np.arange(1, 201)))
    omega = np.random.default_rng(4).standard_normal((200, 16))
    best = float(np.linalg.norm(1.0 / np.sqrt(np.arange(9, 201))))
    errors = {method: float(np.linalg.norm(residual(a, sf.randomized_svd(a, 8, method=method, omega=omega)))) for method in ("subspace", "krylov")}
    assert errors["krylov"] - best < 0.5 * (errors["subspace"] - best)
    assert float(np.linalg.norm(residual(a, sf.randomized_svd(a, 8, method="krylov")))) < 1.01 * errors["subspace"]


@pytest.mark.parametrize("name", ["fast", "slow", "flat"])
def test_the_whole_rank_is_the_decomposition(name: str) -> None:
    a = prescribed(4, 30, 20, SPECTRA[name][:20])
    r = sf.randomized_svd(a, 20)
    assert np.abs(r.s - np.linalg.svd(a, compute_uv=False)).max() <= 1e-14 * 20
    assert np.abs(residual(a, r)).max() <= 1e-13


@pytest.mark.parametrize("tol", [0.3, 1e-2, 1e-5, 1e-8])
@pytest.mark.parametrize("name", SPECTRA)
def test_adaptive_rank(name: str, tol: float) -> None:
    s = SPECTRA[name]
    a = prescribed(5, 120, 100, s)
    r = sf.randomized_svd(a, tol=tol)
    size = float(np.linalg.norm(s))
    assert np.linalg.norm(residual(a, r)) <= tol * size * (1 + 1e-6)
    tails = np.sqrt(np.r_[np.cumsum(s[::-1] ** 2)[::-1], 0.0])
    optimal = int(np.argmax(tails <= tol * size))
    assert r.ranks <= 1.2 * optimal + 1
    assert r.s.shape == (int(r.ranks),)
    assert (r.status, r.reason) == ("ok", "")


def test_adaptive_rank_that_is_not_reached() -> None:
    a = np.stack([prescribed(6, 50, 40, SPECTRA[name][:40]) for name in ("fast", "flat", "deficient")])
    r = sf.randomized_svd(a, 10, tol=1e-4)
    assert r.status == "incomplete"
    assert r.reason == "tol 0.0001 needs more than 10 triplets in 2 of 3 matrices"
    assert list(r.ranks) == [10, 10, 5]
    assert (r.s[2, 5:] == 0).all()
    assert (r.u[2, :, 5:] == 0).all()
    assert sf.randomized_svd(a * 1e300, 10, tol=1e-4).reason == r.reason  # nothing overflows
    assert sf.randomized_svd(a[2], 5, tol=1e-4).status == "ok"  # just enough


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3), st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2), st.integers(0, 2**32 - 1))
def test_batches_equal_single_matrices(batch: int, m: int, n: int, rank: int, n_iter: int, seed: int) -> None:
    a = np.random.default_rng(seed).standard_normal((batch, m, n))
    rank = min(rank, m, n)
    together = sf.randomized_svd(a, rank, n_iter=n_iter, seed=seed)
    assert together.s.shape == (batch, rank)
    for i in range(batch):
        alone = sf.randomized_svd(a[i], rank, n_iter=n_iter, seed=seed)
        assert np.array_equal(alone.s, together.s[i])
        assert np.array_equal(alone.u, together.u[i])
        assert np.array_equal(alone.vt, together.vt[i])
        assert alone.error == together.error[i]


def test_bad_zero_and_extreme_matrices() -> None:
    rng = np.random.default_rng(7)
    good = rng.standard_normal((9, 6))
    bad = good.copy()
    bad[2, 3] = np.nan
    r = sf.randomized_svd(np.stack([good, bad, np.zeros((9, 6)), good * 1e300, good * 1e-310]), 3)
    assert np.isfinite(r.s[[0, 2, 3, 4]]).all()
    assert np.isnan(r.s[1]).all() and np.isnan(r.u[1]).all() and np.isnan(r.error[1])
    assert (r.s[2] == 0).all() and r.error[2] == 0 and np.array_equal(r.u[2].T @ r.u[2], np.eye(3))
    assert np.abs(r.s[3] / 1e300 - r.s[0]).max() <= 1e-14 * r.s[0, 0]
    assert np.abs(r.s[4] / 1e-310 - r.s[0]).max() <= 1e-10 * r.s[0, 0]  # denormal numbers have few digits
    assert sf.randomized_svd(np.zeros((0, 5, 4)), 2).s.shape == (0, 2)


def test_single_matrices_and_bad_ones() -> None:
    a = np.random.default_rng(13).standard_normal((12, 9))
    for x in (a, torch.from_numpy(a)):
        r = sf.randomized_svd(x, 3)
        assert tuple(r.error.shape) == tuple(r.ranks.shape) == ()
    a[2, 3] = np.inf
    r = sf.randomized_svd(a, 3)
    assert (r.status, r.reason) == ("failed", "1 of 1 matrices have a NaN or an infinity")
    r = sf.randomized_svd(np.stack([a, np.ones((12, 9))]), 3)
    assert (r.status, r.reason) == ("incomplete", "1 of 2 matrices have a NaN or an infinity")


def test_every_kind_of_array() -> None:
    a = np.random.default_rng(8).standard_normal((2, 3, 20, 12)).astype(np.float32)
    want = sf.randomized_svd(a, 4)
    assert want.s.shape == (2, 3, 4) and want.u.shape == (2, 3, 20, 4) and want.vt.shape == (2, 3, 4, 12) and want.error.shape == (2, 3)
    t = sf.randomized_svd(torch.from_numpy(a).requires_grad_(), 4)
    assert isinstance(t.u, torch.Tensor) and t.u.dtype == torch.float32
    assert np.array_equal(t.s.numpy(), want.s)
    half = torch.from_numpy(a).to(torch.bfloat16)
    same = sf.randomized_svd(a.astype(ml_dtypes.bfloat16), 4)
    assert np.array_equal(sf.randomized_svd(half, 4).s.numpy(), same.s)
    turned = np.ascontiguousarray(a.swapaxes(2, 3)).swapaxes(2, 3)
    assert np.abs(sf.randomized_svd(turned[..., ::-1, :], 4).s - want.s).max() <= 1e-6 * want.s.max()
    whole = (a * 100).astype(np.int16)
    assert sf.randomized_svd(whole, 4).s.dtype == np.float64
    assert "LEADING SINGULAR TRIPLETS" in want.summary()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "^rank: got 0; wanted an integer >= 1"),
        ({"rank": 7}, r"^rank: got 7; a matrix of shape \(9, 6\) has 6"),
        ({}, "^rank: got None; wanted a number of triplets, or tol="),
        ({"rank": 2.5}, "^rank: got 2.5; wanted an integer"),
        ({"rank": 2, "oversample": -1}, "^oversample: got -1"),
        ({"rank": 2, "n_iter": 1.0}, "^n_iter: got 1.0"),
        ({"rank": 2, "method": "qr"}, "^method: got 'qr'; known: auto, subspace, krylov, sketch"),
        ({"tol": 0.1, "method": "sketch"}, "^method: 'sketch' goes neither with omega"),
        ({"rank": 3, "omega": np.ones((6, 4)), "method": "sketch"}, "^method: 'sketch' goes neither with omega"),
        ({"tol": 1e-15}, r"^tol: got 1e-15; wanted a number in \[1e-13, 1\)"),
        ({"tol": 1.0}, "^tol: got 1.0"),
        ({"tol": float("nan")}, "^tol: got nan"),
        ({"rank": 3, "omega": np.ones((6, 2))}, r"^omega: got shape \(6, 2\); wanted \(6, l\) with 3 <= l <= 6"),
        ({"rank": 3, "omega": np.full((6, 4), np.inf)}, "^omega: .*finite"),
        ({"tol": 0.1, "omega": np.ones((6, 4))}, "^omega: cannot be given together with tol"),
        ({"rank": 3, "backend": "blas"}, "^backend: 'blas' is unknown"),
        ({"rank": 3, "seed": -1}, "^seed: wanted an integer of at least 0, got -1"),
        ({"rank": 3, "seed": 2**64}, "^seed: wanted less than"),
        ({"tol": "small"}, "^tol: got 'small'"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sf.randomized_svd(np.ones((9, 6)), **options)


def test_bad_arrays() -> None:
    with pytest.raises(TypeError, match="^a: got dtype complex128; wanted real numbers"):
        sf.randomized_svd(np.ones((3, 3), complex), 1)
    with pytest.raises(ValueError, match=r"^a: got shape \(3,\); wanted"):
        sf.randomized_svd(np.ones(3), 1)
    with pytest.raises(ValueError, match="^tol: got 1e-08.*rounding to float32"):
        sf.randomized_svd(np.ones((3, 3), np.float32), tol=1e-8)


def test_subspace_overlap() -> None:
    rng = np.random.default_rng(9)
    q = np.linalg.qr(rng.standard_normal((30, 6)))[0]
    assert np.abs(sf.subspace_overlap(q[:, :3], q[:, :3] @ rng.standard_normal((3, 3))) - 1).max() <= 1e-12
    assert np.abs(sf.subspace_overlap(q[:, :3], q[:, 3:])).max() <= 1e-14
    angles = np.array([0.1, 0.7, 1.5])
    turned = q[:, :3] * np.cos(angles) + q[:, 3:] * np.sin(angles)
    assert np.abs(sf.subspace_overlap(q[:, :3] * [1.0, 1e8, 1e-8], turned) - np.cos(angles)).max() <= 1e-13
    assert np.abs(sf.subspace_overlap(q, turned, k=2) - np.cos(angles[:2])).max() <= 1e-13
    assert isinstance(sf.subspace_overlap(torch.from_numpy(q), turned), torch.Tensor)
    for a, b, k, message in [
        (np.ones(3), q, None, r"^a: got shape \(3,\)"),
        (q, np.ones((4, 2)), None, "^b: column 1 depends"),
        (q, np.linalg.qr(rng.standard_normal((9, 2)))[0], None, "^b: got vectors of length 9; those of a have 30"),
        (q, np.zeros((30, 1)), None, "^b: column 0 is zero"),
        (q, turned, 4, "^k: got 4; b has 3 columns"),
        (q, turned, 0, "^k: got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            sf.subspace_overlap(a, b, k)


def test_only_the_directions_of_omega_matter() -> None:
    a = prescribed(11, 60, 50, SPECTRA["slow"][:50])
    omega = np.random.default_rng(12).standard_normal((50, 12))
    for backend in ("numpy", "auto"):
        want = sf.randomized_svd(a, 6, omega=omega, backend=backend)
        for scale in (1e200, 1e-200, 2.0 ** np.arange(-300, 300, 50.0)):
            assert np.abs(sf.randomized_svd(a, 6, omega=omega * scale, backend=backend).s - want.s).max() <= 1e-12


@pytest.mark.thorough
@pytest.mark.parametrize("name", SPECTRA)
def test_the_error_bound_covers(name: str) -> None:
    """Seeds 0 .. 199: a bound that fails with probability 1e-6 covers every time, and is at most 15 times the Frobenius norm in the median."""
    a = prescribed(10, 80, 90, SPECTRA[name][:80])
    times = []
    for seed in range(200):
        r = sf.randomized_svd(a, 6, seed=seed)
        e = residual(a, r)
        assert np.linalg.norm(e, 2) <= r.error
        times.append(float(r.error) / float(np.linalg.norm(e)))
    assert np.median(times) <= 15
