"""Advice: predicted errors against real truncations, bits against real rounding, spikes that were planted."""

from __future__ import annotations

import json
import math

import ml_dtypes
import numpy as np
import pytest
from problems import orthogonal, with_singular_values

import spectral_fast as sf

SHAPES = [(8, 8), (30, 7), (7, 30), (64, 64), (48, 64), (1, 9), (9, 1), (100, 20), (20, 100), (33, 32)]


def twenty_matrices() -> dict[str, np.ndarray]:
    """Random and prescribed spectra (flat, geometric over 12 decades, power law), float64 and float32, tiny and huge."""
    rng = np.random.default_rng(0)
    made: dict[str, np.ndarray] = {}
    for i, (m, n) in enumerate(SHAPES):
        made[f"random{i}"] = rng.standard_normal((m, n)).astype(np.float32 if i % 2 else np.float64)
        d = min(m, n)
        s = [np.ones(d), np.geomspace(1.0, 1e-12, d), np.arange(1, d + 1.0) ** -1.5][i % 3] * 2.0 ** (100 * (i % 3 - 1))
        made[f"prescribed{i}"] = with_singular_values(s, m, n, seed=i)
    return made


def test_predicted_error_is_the_truncations() -> None:
    matrices = twenty_matrices()
    assert len(matrices) == 20
    advice = sf.advise(sf.scan(matrices, progress=False), errors=(0.001, 0.01, 0.05, 0.1, 0.5))
    assert len(advice.matrices) == 20
    for row in advice.matrices:
        w = matrices[row.name].astype(np.float64)
        u, s, vt = np.linalg.svd(w, full_matrices=False)
        norm = np.linalg.norm(w)

        def actual(k: int) -> float:
            return float(np.linalg.norm(w - (u[:, :k] * s[:k]) @ vt[:k]) / norm)  # noqa: B023

        for low in row.low_rank:
            assert low.error <= low.wanted
            # a full-rank "truncation" leaves the rounding of the product instead of 0
            assert low.error == pytest.approx(actual(low.rank), rel=1e-6, abs=1e-13)
            assert low.rank == 0 or actual(low.rank - 1) > low.wanted, "no smaller rank is enough"
            factors = low.rank * sum(w.shape)
            assert low.parameters == min(factors, w.size)
            assert low.saved == pytest.approx(max(0.0, 1 - factors / w.size))


def test_errors_of_a_known_spectrum() -> None:
    # tails of (3, 4, 12) / 13: 5/13 after one value, 3/13 after two
    advice = sf.advise(sf.scan({"w": with_singular_values([12.0, 4.0, 3.0], 12, 3)}), errors=(0.2, 0.3, 0.39))
    found = advice.matrices[0].low_rank
    assert [low.rank for low in found] == [3, 2, 1]
    assert [low.error for low in found] == pytest.approx([0.0, 3 / 13, 5 / 13], abs=1e-14)
    assert [low.parameters for low in found] == [36, 30, 15]
    assert [low.saved for low in found] == pytest.approx([0.0, 1 / 6, 7 / 12])


def rounded(w: np.ndarray, bits: int) -> np.ndarray:
    """Every entry to ``bits`` bits of significand, nearest."""
    f, e = np.frexp(w)
    return np.ldexp(np.rint(np.ldexp(f, bits)), e - bits)


@pytest.mark.parametrize("shape", [(80, 80), (200, 60), (60, 200)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, ml_dtypes.bfloat16])
def test_bits_are_those_at_which_rounding_reaches_the_bulk(shape: tuple[int, int], dtype: type) -> None:
    stored = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    m = sf.scan({"w": stored}).matrices[0]
    row = sf.advise(sf.scan({"w": stored})).matrices[0]
    w = stored.astype(np.float64)
    for bits, s in ((row.bits, np.median(m.s)), (row.bits_all, m.s[m.s > m.rank_tolerances["storage"]][-1])):
        if bits < m.effective_precision:
            assert np.linalg.norm(rounded(w, bits) - w, 2) < s
        # the bound is tight to a bit or two: with three bits less the rounding is really there
        if bits > 3:
            assert np.linalg.norm(rounded(w, bits - 3) - w, 2) > s
    assert 1 <= row.bits <= row.bits_all <= m.effective_precision


def test_format_has_the_bits_and_is_not_wider() -> None:
    rng = np.random.default_rng(2)
    spectra = sf.scan({
        "flat": with_singular_values(np.ones(40), 40, 40).astype(np.float32),
        "steep": with_singular_values(np.geomspace(1, 1e-6, 40), 40, 40).astype(np.float32),
        "narrow": rng.standard_normal((40, 40)).astype(ml_dtypes.bfloat16),
    })  # fmt: skip
    flat, steep, narrow = sf.advise(spectra).matrices
    assert flat.bits <= 3 and flat.format == "float8_e5m2"
    assert 8 < steep.bits <= 11 and steep.format == "float16"
    assert narrow.format == "float8_e5m2" or narrow.bits > 3
    advice = sf.advise(spectra)
    width = {"float8_e5m2": 1, "float8_e4m3fn": 1, "bfloat16": 2, "float16": 2, "float32": 4}
    assert advice.megabytes == pytest.approx(1600 * (4 + 4 + 2) / 1e6)
    assert advice.megabytes_formats == pytest.approx(1600 * sum(width[r.format] for r in advice.matrices) / 1e6)
    for i in range(3):
        kept = sum(r.low_rank[i].parameters * width[r.dtype] for r in advice.matrices)
        assert advice.megabytes_low_rank[i] == pytest.approx(kept / 1e6)


def test_planted_spikes_are_the_adapters_rank() -> None:
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((200, 120)) / np.sqrt(200)
    spikes = (orthogonal(200, 0)[:, :4] * 4.0) @ orthogonal(120, 1)[:, :4].T
    row = sf.advise(sf.scan({"w": noise + spikes})).matrices[0]
    assert (row.spikes, row.lora_rank, row.lora_from) == (4, 4, "above the edge")
    fresh = sf.scan({"w": noise})
    row = sf.advise(fresh).matrices[0]
    assert row.spikes == 0
    assert (row.lora_rank, row.lora_from) == (math.ceil(fresh.matrices[0].metrics["stable_rank"]), "stable rank")


def test_matrices_that_cannot_be_advised_on() -> None:
    bad = np.eye(4)
    bad[0, 0] = np.nan
    advice = sf.advise(sf.scan({"bad": bad, "zero": np.zeros((6, 5)), "v": np.ones(3), "good": np.eye(9)}))
    failed, zero, good = advice.matrices
    assert failed.status == "failed" and failed.low_rank == () and failed.bits == -1 and failed.lora_rank == -1
    assert [low.rank for low in zero.low_rank] == [0, 0, 0] and [low.saved for low in zero.low_rank] == [1.0, 1.0, 1.0]
    assert zero.bits == 0 and zero.lora_rank == 0
    assert good.spikes in (0, -1) and good.lora_rank == 9
    assert advice.megabytes == pytest.approx((16 + 30 + 81) * 8 / 1e6), "a failed matrix is still stored"
    assert [s.name for s in advice.skipped] == ["v"]
    text = str(advice)
    assert "failed" in text and "skipped: vector" in text
    assert json.loads(advice.to_json())["matrices"][0]["low_rank"] == []
    frame = advice.to_pandas().set_index("name")
    assert frame.loc["good", "rank_5%"] == 9 and np.isnan(frame.loc["bad", "rank_5%"])


def test_lora_products_are_not_counted_as_stored() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((4, 32)), rng.standard_normal((24, 4))
    spectra = sf.scan({"base_model.model.q_proj.lora_A.weight": a, "base_model.model.q_proj.lora_B.weight": b}, progress=False)
    assert any(m.kind == "lora" for m in spectra)
    counted = sum(m.shape[0] * m.shape[1] for m in spectra if m.kind != "lora")
    assert sf.advise(spectra).megabytes == pytest.approx(8 * counted / 1e6)


def test_nothing_to_advise_on() -> None:
    advice = sf.advise(sf.scan({"v": np.ones(3)}))
    assert (advice.status, advice.matrices, advice.megabytes) == ("skipped", (), 0.0)
    assert "vector" in str(advice)


@pytest.mark.parametrize("errors", [(), (0.0,), (1.0,), (0.1, 0.05), (0.1, 0.1), (math.nan,)])
def test_bad_errors_are_named(errors: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="^errors: got"):
        sf.advise(sf.scan({"w": np.eye(3)}), errors=errors)


def test_another_class_is_refused() -> None:
    with pytest.raises(TypeError, match="^spectra: got dict; wanted the WeightSpectra"):
        sf.advise({"w": np.eye(3)})  # type: ignore[arg-type]
