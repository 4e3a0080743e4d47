"""The random-matrix side of a scan: the Marchenko-Pastur fit of every matrix, its family level, and the permutation null."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import spectral_fast as sf


def test_every_matrix_gets_the_fit_of_its_spectrum_at_the_level_of_the_report() -> None:
    rng = np.random.default_rng(0)
    state = {
        "a": rng.standard_normal((60, 40)).astype(np.float32),
        "b": rng.standard_normal((60, 40)).astype(np.float32),
        "c": 3.0 * rng.standard_normal((30, 90)),
        "zero": np.zeros((20, 20)),
        "small": rng.standard_normal((5, 9)),
    }
    spectra = sf.scan(state)
    for name in "abc":
        m = spectra.spectrum(name)
        assert repr(m.mp) == repr(sf.marchenko_pastur(m.evals, m.shape, n_matrices=5)) and m.mp.n_matrices == 5
        assert m.permutation is None
    assert (spectra.spectrum("zero").mp.status, spectra.spectrum("zero").mp.reason) == ("unresolved", "zero matrix")
    assert spectra.spectrum("small").mp.reason == "5 values, at least 8 wanted"
    assert isinstance(spectra.spectrum("a").mp, sf.MarchenkoPasturFit)


def test_planted_spike_is_seen_and_told() -> None:
    rng = np.random.default_rng(1)
    w = 0.1 * rng.standard_normal((80, 60))
    u, v = rng.standard_normal(80), rng.standard_normal(60)
    spiked = w + 4.0 * np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
    spectra = sf.scan({"plain": w, "spiked": spiked}, null="permutation", seed=3)
    plain, m = spectra.spectrum("plain"), spectra.spectrum("spiked")
    assert (plain.mp.n_spikes, m.mp.n_spikes) == (0, 1) and m.mp.soft_rank < 0.5
    assert m.mp.var == pytest.approx(0.01, rel=0.1)
    assert m.permutation is not None and plain.permutation is not None
    assert m.permutation.p_value(float(m.s[0])) == 1 / 21 and m.permutation.seed == 3
    assert m.permutation.spectral_norm.mean == pytest.approx(m.null["spectral_norm"], rel=0.05)
    assert "1 above" in str(m) and "entries shuffled" in str(m)
    data = json.loads(spectra.to_json())
    assert data["matrices"][1]["mp"]["n_spikes"] == 1 and data["matrices"][1]["permutation"]["n_permutations"] == 20


def test_what_has_no_bulk_says_so() -> None:
    rng = np.random.default_rng(2)
    low = (rng.standard_normal((40, 10)) @ rng.standard_normal((10, 40))).astype(np.float32)
    bad = np.full((9, 9), np.nan)
    spectra = sf.scan({"low": low, "bad": bad, "flat": np.eye(30)}, null="permutation")
    assert spectra.spectrum("low").mp.reason == "half of the values or more lie below the rounding noise"
    failed = spectra.spectrum("bad")
    assert failed.mp.status == "unresolved" and failed.mp.reason == failed.reason and failed.permutation is None
    assert spectra.spectrum("flat").mp.distance > 0.2  # all values equal: far from the law


@pytest.mark.parametrize("exponent", [-700, -30, 30, 600])
def test_powers_of_two_only_scale(exponent: int) -> None:
    rng = np.random.default_rng(5)
    w = rng.standard_t(3.0, (50, 40))
    a, b = (sf.scan({"w": x}).spectrum("w") for x in (w, np.ldexp(w, exponent)))
    assert repr(b.mp) == repr(a.mp.scaled(2 * exponent))
    assert (b.power_law.alpha, b.power_law.D, b.power_law.alpha_range) == (a.power_law.alpha, a.power_law.D, a.power_law.alpha_range)
    with np.errstate(over="ignore", under="ignore"):
        assert b.power_law.xmin == np.ldexp(a.power_law.xmin, 2 * exponent)
        np.testing.assert_array_equal(b.power_law.curve.xmin, np.ldexp(a.power_law.curve.xmin, 2 * exponent))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_alpha_does_not_see_a_power_of_two_in_narrow_formats(dtype: torch.dtype) -> None:
    """alpha(cW) = alpha(W), c = 2^j, to the bit: entries in the middle of each format's range."""
    w = (torch.randn(48, 40, generator=torch.Generator().manual_seed(0)) * 0.5 + torch.randn(48, 1, generator=torch.Generator().manual_seed(1))).to(dtype)
    w[w.abs() < 2.0**-6] = 0.0
    alphas = {sf.scan({"w": w * 2.0**j}).spectrum("w").power_law.alpha for j in (-6, -3, 0, 3, 6)}
    assert len(alphas) == 1 and math.isfinite(alphas.pop())


def test_bad_null_is_named() -> None:
    with pytest.raises(ValueError, match="null: got 'shuffle'; known: None, 'permutation'"):
        sf.scan({"w": np.eye(9)}, null="shuffle")
