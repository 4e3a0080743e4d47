"""Regularized inverses against the formula solved directly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spectral_fast.metrics.tikhonov import tikhonov


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_pinv_solves_the_normal_equations(shape: tuple[int, int]) -> None:
    w = np.random.default_rng(0).standard_normal(shape)
    gamma = 0.7
    r = tikhonov(w, gamma)
    np.testing.assert_allclose(r.pinv, np.linalg.solve(w.T @ w + gamma**2 * np.eye(shape[1]), w.T), atol=1e-13)
    assert r.effective_dof == pytest.approx(np.trace(w @ r.pinv), rel=1e-12)
    assert r.information + r.noise == min(shape)
    assert r.information == int((r.s > gamma).sum())


def test_gamma_zero_is_moore_penrose() -> None:
    rng = np.random.default_rng(1)
    w = rng.standard_normal((6, 2)) @ rng.standard_normal((2, 5))
    r = tikhonov(w, 0.0)
    np.testing.assert_allclose(r.pinv, np.linalg.pinv(w), atol=1e-12)
    assert (r.information, r.noise) == (2, 3)


def test_gamma_zero_inverts_no_rounding_noise() -> None:
    rng = np.random.default_rng(2)
    w = (rng.standard_normal((60, 2)) @ rng.standard_normal((2, 50))).astype(np.float32)
    r = tikhonov(w, 0.0)
    assert (r.information, r.noise) == (2, 48)
    assert np.abs(r.pinv).max() < 1.0
    as_torch = tikhonov(torch.from_numpy(w), 0.0)
    assert isinstance(as_torch.pinv, torch.Tensor)
    np.testing.assert_array_equal(as_torch.pinv.numpy(), r.pinv)


def test_shift_adds_gamma_to_every_singular_value() -> None:
    w = np.diag([3.0, 1.0, 0.0])
    r = tikhonov(w, 0.5, form="shift")
    np.testing.assert_allclose(np.diag(r.pinv), [1 / 3.5, 1 / 1.5, 2.0], rtol=1e-15)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_extreme_scales(scale: float) -> None:
    r = tikhonov(np.eye(3) * scale, scale)
    np.testing.assert_allclose(r.filter_factors, 0.5, rtol=1e-15)


def test_errors() -> None:
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="^gamma"):
            tikhonov(np.eye(2), bad)
    with pytest.raises(ValueError, match="form.*known: tikhonov, shift"):
        tikhonov(np.eye(2), 1.0, form="ridge")
    with pytest.raises(ValueError, match="^a: got shape"):
        tikhonov(np.ones(2), 1.0)
