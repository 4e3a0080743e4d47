"""Spectra of weight matrices: values, ranks, failures, batching, interruption."""

from __future__ import annotations

import json
import math

import ml_dtypes
import mpmath
import numpy as np
import pytest
import torch

import spectral_fast as sf
from spectral_fast.linalg.arrays import RawArray
from spectral_fast.metrics.rank import RULES


def orthogonal(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((m, n)))[0]


def prescribed(rng: np.random.Generator, m: int, n: int, s: np.ndarray) -> np.ndarray:
    return (orthogonal(rng, m, len(s)) * s) @ orthogonal(rng, n, len(s)).T


def test_values_beyond_float64_fail_their_matrix_alone() -> None:
    spectra = sf.scan({"huge": np.full((64, 64), 1.7e308), "fine": np.eye(5)})
    assert {m.name: m.status for m in spectra} == {"huge": "failed", "fine": "ok"}
    assert "beyond the range of float64" in spectra.spectrum("huge").reason


def test_prescribed_spectrum_is_found() -> None:
    rng = np.random.default_rng(0)
    s = np.geomspace(7.0, 0.01, 20)
    m = sf.scan({"w.weight": prescribed(rng, 30, 20, s)}).spectrum("w.weight")
    np.testing.assert_allclose(m.s, s, atol=m.bound)
    # of the smallest value, the widest: c eps s_1^2 / s_min
    assert m.bound <= 1.001 * 10 * np.sqrt(20) * 2.0**-52 * 7.0**2 / 0.01 and not m.redone
    assert m.metrics["condition_number"] == pytest.approx(700.0, rel=1e-10)
    assert m.metrics["condition_number_is_lower_bound"] is False
    assert m.ranks == {"numpy": 20, "numerical_recipes": 20, "loose": 20, "log8": 20, "storage": 20}
    assert set(m.ranks) == set(RULES) == set(m.rank_tolerances)
    assert (m.status, m.metrics["near_zero_fraction"]) == ("ok", 0.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_lost_rank_makes_the_condition_a_lower_bound(dtype: type) -> None:
    rng = np.random.default_rng(1)
    exact = prescribed(rng, 40, 32, np.geomspace(4.0, 1.0, 24))
    m = sf.scan({"w": exact.astype(dtype)}).spectrum("w")
    assert m.ranks["storage"] == 24 and m.metrics["near_zero_fraction"] == 0.25
    assert m.metrics["condition_number_is_lower_bound"] is True
    assert m.metrics["condition_number"] == pytest.approx(m.s[0] / m.rank_tolerances["storage"])
    assert m.metrics["condition_number"] < m.s[0] / m.s[-1]


def test_bfloat16_kept_as_float32_is_noticed() -> None:
    w = np.random.default_rng(2).standard_normal((40, 40)).astype(ml_dtypes.bfloat16).astype(np.float32)
    m = sf.scan({"w": w}).spectrum("w")
    assert (m.dtype, m.effective_precision) == ("float32", 8)
    assert m.rank_tolerances["storage"] > 1e4 * m.rank_tolerances["numpy"] / 40


def test_bfloat16_is_read_as_it_is_stored() -> None:
    """Bits, torch tensors (turned ones too) and ml_dtypes, in a stack and beside float32 of one shape: all as the float32 of the same values."""
    rng = np.random.default_rng(3)
    w = rng.standard_normal((3, 40, 30)).astype(ml_dtypes.bfloat16)
    wide = w.astype(np.float32)
    torch_w = torch.from_numpy(wide).to(torch.bfloat16)
    sources = {
        "experts.weight": torch_w,
        "turned.weight": torch_w[0].T.contiguous().T,
        "bits.weight": RawArray(w[1].view(np.uint16), "bfloat16"),
        "other.weight": w[2],
        "float.weight": rng.standard_normal((40, 30)).astype(np.float32),
    }
    found, plain = (sf.scan(sources, backend=backend, null="permutation") for backend in ("auto", "numpy"))
    assert len(found) == 7 and {m.status for m in found} == {"ok"}
    for m, n in zip(found, plain, strict=True):
        np.testing.assert_allclose(m.s, n.s, rtol=0, atol=m.bound + n.bound)
        assert m.storage_noise == pytest.approx(n.storage_noise, rel=1e-13)
        assert (m.dtype, m.effective_precision) == (("float32", 24) if m.name == "float.weight" else ("bfloat16", 8))
        assert m.permutation is not None and n.permutation is not None
        np.testing.assert_allclose(m.permutation.samples[:, :2], n.permutation.samples[:, :2], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found.spectrum("turned.weight").s, found.spectrum("experts.weight[0]").s)

    spoiled = torch_w[0].clone()
    spoiled[7, 5] = math.inf
    m = sf.scan({"bad.weight": spoiled}).spectrum("bad.weight")
    assert m.status == "failed" and "1 of 1200 entries" in m.reason and "[7, 5]" in m.reason


def test_one_bad_matrix_costs_only_itself() -> None:
    good, bad = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
    bad[2, 3] = np.nan
    bad[3, 1] = np.inf
    spectra = sf.scan({"good": good, "bad": bad, "zero": np.zeros((3, 2))})
    assert [m.status for m in spectra] == ["ok", "failed", "unresolved"]
    assert spectra.spectrum("bad").reason == "2 of 16 entries are not finite, the first at [2, 3]"
    assert np.isnan(spectra.spectrum("bad").s).all()
    assert spectra.spectrum("zero").reason == "zero matrix"
    assert all(math.isnan(spectra.spectrum("zero").metrics[n]) for n in ("spectral_norm", "stable_rank", "near_zero_fraction"))
    np.testing.assert_array_equal(spectra.spectrum("good").s, np.ones(4))


def test_a_matrix_does_not_depend_on_its_batch() -> None:
    rng = np.random.default_rng(3)
    state = {f"w{i}": rng.standard_normal((24, 16)).astype(np.float32) for i in range(5)}
    together = sf.scan(state)
    for name, w in state.items():
        np.testing.assert_array_equal(together.spectrum(name).s, sf.scan({name: w}).spectrum(name).s)


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**60])
def test_powers_of_two_change_nothing_but_the_scale(scale: float) -> None:
    w = np.random.default_rng(4).standard_normal((60, 50)).astype(np.float32)
    a, b = sf.scan({"w": w}).spectrum("w"), sf.scan({"w": w * np.float32(scale)}).spectrum("w")
    np.testing.assert_array_equal(a.s * scale, b.s)
    assert a.power_law.alpha == b.power_law.alpha and a.power_law.D == b.power_law.D
    for name in ("condition_number", "stable_rank", "effective_rank", "near_zero_fraction"):
        assert a.metrics[name] == b.metrics[name]


@pytest.mark.parametrize("scale", [2.0**-700, 2.0**600])
def test_squares_that_would_overflow_or_vanish_cost_nothing(scale: float) -> None:
    w = np.random.default_rng(5).standard_normal((40, 30))
    spectra = sf.scan({"plain": w, "extreme": w * scale})
    plain, extreme = spectra.spectrum("plain"), spectra.spectrum("extreme")
    np.testing.assert_array_equal(plain.s * scale, extreme.s)
    assert extreme.status == "ok" and extreme.power_law.alpha == plain.power_law.alpha


@pytest.mark.parametrize("scale", [1.0, 1e-3, 2.0**-700, 2.0**600])
def test_tail_metrics_against_their_formulas_in_higher_precision(scale: float) -> None:
    w = np.random.default_rng(6).standard_normal((40, 30)) * scale
    m = sf.scan({"w": w}).spectrum("w")
    with mpmath.workdps(40):
        alpha = mpmath.mpf(m.power_law.alpha)
        evals = [mpmath.mpf(float(s)) ** 2 for s in m.s]
        assert m.metrics["alpha_weighted"] == pytest.approx(float(alpha * mpmath.log10(evals[0])), rel=1e-12)
        assert m.metrics["log_alpha_norm"] == pytest.approx(float(mpmath.log10(sum(e**alpha for e in evals))), rel=1e-12)


def test_tail_metrics_without_a_fit_are_no_numbers_and_the_status_says_why() -> None:
    spectra = sf.scan({"few": np.eye(3), "zero": np.zeros((9, 9)), "bad": np.full((9, 9), np.nan)})
    for m in spectra:
        assert m.power_law.status == "unresolved" and m.power_law.reason
        assert math.isnan(m.metrics["alpha_weighted"]) and math.isnan(m.metrics["log_alpha_norm"])
    row = spectra.to_pandas().set_index("name").loc["few"]
    assert row["alpha_status"] == "unresolved" and math.isnan(row["alpha_weighted"]) and math.isnan(row["log_alpha_norm"])


def test_transposed_and_strided_tensors_are_read_right() -> None:
    base = torch.randn(10, 14, dtype=torch.float64)
    spectra = sf.scan({"a": base, "t": base.t(), "s": base[::2, 1::3]})
    np.testing.assert_allclose(spectra.spectrum("a").s, spectra.spectrum("t").s, atol=1e-13)
    np.testing.assert_allclose(spectra.spectrum("s").s, np.linalg.svd(base[::2, 1::3].numpy(), compute_uv=False), atol=1e-13)


def test_interruption_keeps_what_is_done() -> None:
    def stop(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    spectra = sf.scan({"a": np.eye(3), "b": np.eye(4), "c": np.eye(5)}, progress=stop)
    assert spectra.status == "incomplete"
    assert spectra.reason == "interrupted after 1 of 3 matrices"
    assert [m.name for m in spectra] == ["a"]
    assert {s.name for s in spectra.skipped} == {"b", "c"}


def test_unreadable_tensor_is_listed() -> None:
    class Broken(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ok = torch.nn.Linear(3, 3)
            self.lazy = torch.nn.LazyLinear(4)

    spectra = sf.scan(Broken())
    assert [m.name for m in spectra] == ["ok.weight"]
    assert "lazy" in next(s.reason for s in spectra.skipped if s.name == "lazy.weight")


def test_names_and_json() -> None:
    spectra = sf.scan({"a": np.eye(3, dtype=np.float32), "v": np.ones(3)})
    with pytest.raises(KeyError, match="v: skipped: vector"):
        spectra.spectrum("v")
    with pytest.raises(KeyError, match="no such matrix"):
        spectra.spectrum("nothing")
    data = json.loads(spectra.to_json())
    assert data["matrices"][0]["s"] == [1.0, 1.0, 1.0]
    assert data["matrices"][0]["power_law"]["status"] == "unresolved"
    assert data["skipped"] == [{"name": "v", "reason": "vector: no spectrum", "shape": [3]}]
    assert "native" in spectra.backend or "numpy" in spectra.backend


def test_nothing_to_analyse_is_said() -> None:
    spectra = sf.scan({"bias": np.ones(3)})
    assert (len(spectra), spectra.status, spectra.reason) == (0, "skipped", "no weight matrix found")


def test_what_standard_accuracy_leaves_open_is_computed_again() -> None:
    rng = np.random.default_rng(3)
    n = 96  # a size whose "standard" route squares
    decided, open_rank, open_minimum = np.geomspace(1.0, 1e-2, n), np.geomspace(1.0, 1e-9, n), np.geomspace(1.0, 3e-7, n)
    spectra = sf.scan({name: prescribed(rng, n, n, s) for name, s in {"a.weight": decided, "b.weight": open_rank, "c.weight": open_minimum}.items()})
    native = spectra.backend.startswith("singular values: native")
    assert [m.redone for m in spectra.matrices] == ([False, True, True] if native else [False] * 3)
    assert spectra.redone_share == (2 / 3 if native else 0.0)
    assert ("(2 of 3 again with high accuracy)" in spectra.backend) == native
    for m, s in zip(spectra.matrices, (decided, open_rank, open_minimum), strict=True):
        assert np.abs(m.s - s).max() <= m.bound + 1e-14
        assert m.ranks["storage"] == n and not m.metrics["condition_number_is_lower_bound"]
