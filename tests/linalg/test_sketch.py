"""sf.SketchSVD and sf.spectral_norm: one pass over the rows, and the largest value between two bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import spectral_fast as sf


def prescribed(seed: int, m: int, n: int, s: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((k, len(s))))[0] for k in (m, n))
    return (u * s) @ v.T


def tail2(s: np.ndarray, p: int) -> float:
    return float((s[p:] ** 2).sum())


@pytest.mark.parametrize("blocks", [2, 7, 20])
def test_blocks_make_no_difference(blocks: int) -> None:
    a = prescribed(1, 230, 60, np.geomspace(1, 1e-3, 60))
    whole = sf.SketchSVD(a.shape, 5, seed=3).add(a).result()
    pieces = sf.SketchSVD(a.shape, 5, seed=3)
    for block in np.array_split(a, blocks):
        assert pieces.add(block) is pieces
    r = pieces.result()
    assert np.abs(r.s - whole.s).max() <= 1e-12
    assert np.abs((r.u * r.s) @ r.vt - (whole.u * whole.s) @ whole.vt).max() <= 1e-12
    assert np.abs(r.u.T @ r.u - np.eye(5)).max() <= 1e-13
    assert np.abs(r.vt @ r.vt.T - np.eye(5)).max() <= 1e-13
    assert np.linalg.norm(a - (r.u * r.s) @ r.vt, 2) <= r.error
    assert not np.array_equal(sf.SketchSVD(a.shape, 5, seed=4).add(a).result().s, whole.s)


def test_exact_on_low_rank() -> None:
    a = prescribed(2, 90, 120, np.array([3.0, 2.0, 1.0]))
    r = sf.SketchSVD(a.shape, 3).add(torch.from_numpy(a[:50])).add(a[50:]).result()
    assert np.abs(r.s - [3.0, 2.0, 1.0]).max() <= 1e-12
    assert np.abs(a - (r.u * r.s) @ r.vt).max() <= 1e-12
    assert r.error <= 1e-10


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 9), (40, 3)])
def test_small_matrices_are_whole(shape: tuple[int, int]) -> None:
    a = np.random.default_rng(3).standard_normal(shape)
    r = sf.SketchSVD(shape, min(shape)).add(a).result()
    assert np.abs(r.s - np.linalg.svd(a, compute_uv=False)).max() <= 1e-10


@pytest.mark.thorough
@pytest.mark.parametrize("spectrum", [np.geomspace(1, 1e-6, 50), 1.0 / np.arange(1, 51), np.r_[np.ones(5), np.full(45, 0.01)]], ids=["fast", "slow", "gap"])
def test_the_expected_error(spectrum: np.ndarray) -> None:
    """Tropp et al. 2019, theorem 5.1, in the mean of 200 seeds, before the cut at ``rank``."""
    k, s, a = 12, 30, prescribed(4, 70, 50, spectrum)
    bound = (s - 1) / (s - k - 1) * min((k + p - 1) / (k - p - 1) * tail2(spectrum, p) for p in range(k - 1))
    errors = []
    for seed in range(200):
        r = sf.SketchSVD(a.shape, k, k=k, s=s, seed=seed).add(a).result()
        e = a - (r.u * r.s) @ r.vt
        errors.append(float(np.vdot(e, e)))
        assert np.linalg.norm(e, 2) <= r.error
    assert np.mean(errors) <= bound
    assert np.mean(errors) >= 0.02 * bound  # a bound of use


def test_sketch_errors() -> None:
    for arguments, message in [
        (((5, 4, 3), 2), "^shape: got"),
        (((0, 4), 1), "^shape: got 0"),
        (((5, 4), 5), r"^rank: got 5; a matrix of shape \(5, 4\) has 4"),
        (((5, 4), 0), "^rank: got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            sf.SketchSVD(*arguments)
    with pytest.raises(ValueError, match="^k: got 1; wanted an integer >= 2"):
        sf.SketchSVD((50, 40), 2, k=1)
    with pytest.raises(ValueError, match="^s: got 10; wanted at least 2 k [+] 1 = 19"):
        sf.SketchSVD((50, 40), 2, s=10)
    sketch = sf.SketchSVD((5, 4), 2).add(np.ones((2, 4)))
    with pytest.raises(ValueError, match="^result: 2 of 5 rows"):
        sketch.result()
    for block, error, message in [
        (np.ones((1, 3)), ValueError, r"^block: got shape \(1, 3\); wanted \(rows, 4\)"),
        (np.ones((4, 4)), ValueError, "^block: got 4 rows after 2; the matrix has 5"),
        (np.array([[0, 0, 0, 0], [0, np.nan, 0, 0.0]]), ValueError, "^block: row 3 has a NaN"),
        (np.ones((1, 4), complex), TypeError, "^block: got dtype complex128"),
    ]:
        with pytest.raises(error, match=message):
            sketch.add(block)
    assert sketch.rows == 2
    assert abs(sketch.add(np.ones((3, 4))).result().s[0] - np.sqrt(20)) <= 1e-12


@pytest.mark.parametrize("tol", [0.3, 0.1, 0.05])
@pytest.mark.parametrize("shape", [(900, 700), (650, 1200)])
def test_norm_between_the_bounds(shape: tuple[int, int], tol: float) -> None:
    rng = np.random.default_rng(5)
    flat = rng.standard_normal((2, *shape))
    flat[1] *= 1e-290
    lower, upper, steps = sf.spectral_norm(flat, tol)
    exact = np.linalg.svd(flat * [[[1.0]], [[1e290]]], compute_uv=False)[:, 0] * [1.0, 1e-290]
    assert 0 < steps < 40
    assert (lower <= exact).all()
    assert (exact <= upper).all()
    assert (upper <= lower * (1 + tol)).all()


def test_norm_of_few_columns_is_exact() -> None:
    a = np.random.default_rng(6).standard_normal((3, 50, 20)).astype(np.float32)
    a[1, 2, 3] = np.inf
    lower, upper, steps = sf.spectral_norm(torch.from_numpy(a), 1e-3)
    assert steps == 0
    assert isinstance(lower, torch.Tensor)
    exact = np.linalg.svd(a[[0, 2]].astype(np.float64), compute_uv=False)[:, 0]
    assert (lower[[0, 2]].numpy() <= exact).all() and (exact <= upper[[0, 2]].numpy()).all()
    assert torch.isnan(lower[1]) and torch.isnan(upper[1])


@pytest.mark.parametrize("fill", [0.0, np.nan])
def test_norm_of_special_matrices(fill: float) -> None:
    a = np.full((700, 700), fill)
    lower, upper, _ = sf.spectral_norm(a, 0.3)
    assert np.array_equal([lower, upper], [fill, fill], equal_nan=True)
    low_rank = np.outer(np.arange(700.0), np.ones(700))
    lower, upper, _ = sf.spectral_norm(low_rank, 0.3)
    assert lower <= np.linalg.norm(np.arange(700.0)) * np.sqrt(700) * (1 + 1e-14) <= upper
    assert lower >= np.linalg.norm(np.arange(700.0)) * np.sqrt(700) * (1 - 1e-10)


def test_norm_errors() -> None:
    for a, tol, error, message in [
        (np.ones((3, 3)), 0.0, ValueError, "^tol: got 0.0"),
        (np.ones(3), 0.1, ValueError, r"^a: got shape \(3,\)"),
        (np.ones((0, 3)), 0.1, ValueError, "^a: got shape .*not empty"),
        (np.ones((3, 3), complex), 0.1, TypeError, "^a: got dtype complex128"),
    ]:
        with pytest.raises(error, match=message):
            sf.spectral_norm(a, tol)


@pytest.mark.thorough
def test_the_upper_bound_holds() -> None:
    """300 seeds of the start vector on the spectrum that is hardest to tell: many values close to the largest."""
    a = prescribed(7, 700, 680, np.linspace(1.0, 0.9, 680))
    for seed in range(300):
        lower, upper, _ = sf.spectral_norm(a, 0.1, seed=seed)
        assert lower <= 1.0 <= upper
