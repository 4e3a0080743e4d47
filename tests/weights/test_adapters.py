"""LoRA pairs of a checkpoint: one more matrix each, the spectrum of the scaled dense product, the scale from beside the file or from in it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import spectral_fast as sf
from spectral_fast.findings import weight_findings
from spectral_fast.weights.adapter_config import read_adapter_config

Q = "base_model.model.layers.0.self_attn.q_proj"


def factors(m: int = 24, n: int = 16, r: int = 4, seed: int = 0, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((m, r)).astype(dtype), rng.standard_normal((r, n)).astype(dtype)


def dense(b: np.ndarray, a: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.svd(b.astype(np.float64) @ a.astype(np.float64), compute_uv=False))


def saved(directory: Path, config: object = None, text: str | None = None) -> sf.WeightSpectra:
    b, a = factors()
    tensors = {f"{Q}.lora_B.weight": b, f"{Q}.lora_A.weight": a, f"{Q}.lora_magnitude_vector": np.ones(24, np.float32)}
    save_file(tensors, directory / "adapter_model.safetensors")
    if config is not None or text is not None:
        (directory / "adapter_config.json").write_text(json.dumps(config) if text is None else text)
    return sf.scan(directory, progress=False)


@pytest.mark.parametrize(
    ("config", "scale"),
    [(None, 1.0), ({"lora_alpha": 16, "r": 4}, 4.0), ({"lora_alpha": 16, "use_rslora": True}, 8.0),
     ({"lora_alpha": 16, "r": 8, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"self_attn.q_proj": 2}}, 0.5),
     ({"lora_alpha": 8, "alpha_pattern": {"_proj": 2}}, 2.0)],
)  # fmt: skip
def test_product_of_a_saved_adapter(tmp_path: Path, config: object, scale: float) -> None:
    spectra = saved(tmp_path, config)
    m = spectra.spectrum(f"{Q} (lora BA)")
    b, a = factors()
    expected = scale * dense(b, a)
    assert (m.kind, m.shape, m.status, m.s.shape, m.ranks["storage"]) == ("lora", (24, 16), "ok", (4,), 4)
    np.testing.assert_allclose(m.s, expected[:4], rtol=0, atol=1e-10 * expected[0])
    assert m.bound < m.storage_noise == m.rank_tolerances["storage"] and math.isnan(m.null["spectral_norm"])
    assert f"scale {scale:g}" in m.role
    assert {x.role for x in spectra} == {"lora.A", "lora.B", m.role}
    assert [s.reason for s in spectra.skipped] == ["DoRA magnitudes: W' - W0 needs the base"]


@pytest.mark.parametrize(
    ("text", "why"),
    [("{", "not valid JSON"), ("[" * 100_000, "not valid JSON"), ("[1]", "holds no object"), ("{}", "no lora_alpha"), ('{"lora_alpha": true}', "no lora_alpha"),
     ('{"lora_alpha": NaN}', "no lora_alpha"), ('{"lora_alpha": 1' + "0" * 400 + "}", "no lora_alpha"), ('{"lora_alpha": 1, "use_rslora": 3}', "use_rslora"),
     ('{"lora_alpha": 1, "alpha_pattern": [1]}', "no map of numbers"),
     ('{"lora_alpha": 1, "alpha_pattern": {"(a+)+$": 1}}', "regular expressions"), ('"' + "x" * 1_100_000 + '"', "larger than"), ("\ud800", "")],
)  # fmt: skip
def test_a_bad_config_is_said_and_not_used(tmp_path: Path, text: str, why: str) -> None:
    if not why:
        (tmp_path / "adapter_config.json").write_bytes(b"\xff\xfe{")
        why = "not valid JSON"
        m = saved(tmp_path).spectrum(f"{Q} (lora BA)")
    else:
        m = saved(tmp_path, text=text).spectrum(f"{Q} (lora BA)")
    assert why in m.role and "scale 1: " in m.role
    np.testing.assert_allclose(m.s, dense(*factors())[:4], rtol=1e-12)


def test_a_scale_beyond_float64_fails_its_product_alone(tmp_path: Path) -> None:
    spectra = saved(tmp_path, {"lora_alpha": 1e308})
    m = spectra.spectrum(f"{Q} (lora BA)")
    assert m.status == "failed" and m.reason == "with a scale of 2.5e+307 its values are beyond float64"
    assert {x.status for x in spectra if x is not m} == {"ok"}


def test_no_config_is_no_config(tmp_path: Path) -> None:
    assert read_adapter_config(tmp_path) is None and read_adapter_config(tmp_path / "model.safetensors") is None
    (tmp_path / "adapter_config.json").mkdir()
    found = read_adapter_config(tmp_path)
    assert found is not None and "cannot be read" in found.reason


def test_other_names_of_factors_and_kernels() -> None:
    b, a = factors(6, 36, 2)
    state = {
        "unet_conv.lora_up.weight": b.reshape(6, 2, 1, 1), "unet_conv.lora_down.weight": a.reshape(2, 4, 3, 3), "unet_conv.alpha": np.array(1.0, np.float32),
        "emb.lora_embedding_A": factors(3, 50, 2)[1], "emb.lora_embedding_B": factors(8, 3, 2)[0],
        "x.lora_A.default.weight": a, "x.lora_B.default.weight": b, "x.lora_A.second.weight": a, "x.lora_B.second.weight": 2 * b,
        "odd.lora_A.weight": a, "odd.lora_B.weight": b.T.copy(), "lonely.lora_A.weight": a,
    }  # fmt: skip
    spectra = sf.scan(state, progress=False)
    products = {m.name: m for m in spectra if m.kind == "lora"}
    assert list(products) == ["unet_conv (lora BA)", "emb (lora BA)", "x (lora BA)", "x (lora BA, second)"]
    np.testing.assert_allclose(products["unet_conv (lora BA)"].s, 0.5 * dense(b, a)[:2], rtol=1e-12)
    np.testing.assert_allclose(products["x (lora BA, second)"].s, 2 * products["x (lora BA)"].s, rtol=1e-15)
    assert products["emb (lora BA)"].shape == (8, 50)
    assert {s.name: s.reason for s in spectra.skipped}["odd (lora BA)"] == "factors of shapes (2, 6) and (2, 36) do not multiply"


def test_rounding_noise_of_the_factors_covers_the_product() -> None:
    """float64 factors of known product rounded to float32: every singular value moves by at most the stated tolerance."""
    for seed in range(40):
        b, a = factors(30, 20, 5, seed, np.float64)
        b[:, 4] *= 1e-9
        m = sf.scan({"x.lora_B.weight": b.astype(np.float32), "x.lora_A.weight": a.astype(np.float32)}, progress=False).spectrum("x (lora BA)")
        assert np.abs(m.s - dense(b, a)[:5]).max() <= m.storage_noise
        assert m.ranks["storage"] == 4 and m.metrics["condition_number_is_lower_bound"]


def test_fresh_adapters_and_bad_values() -> None:
    b, a = factors()
    fresh = sf.scan({"x.lora_B.weight": 0 * b, "x.lora_A.weight": a}, progress=False).spectrum("x (lora BA)")
    assert (fresh.status, fresh.reason) == ("unresolved", "zero matrix")
    b[3, 1] = np.nan
    spectra = sf.scan({"x.lora_B.weight": b, "x.lora_A.weight": a}, progress=False)
    m = spectra.spectrum("x (lora BA)")
    assert (m.status, m.reason) == ("failed", "B not finite") and np.isnan(m.s).all()
    assert {f.where for f in weight_findings(spectra)} == {"x.lora_B.weight", "x (lora BA)"}


def test_products_pass_through_every_report(tmp_path: Path) -> None:
    spectra = saved(tmp_path, {"lora_alpha": 16})
    assert not weight_findings(spectra)  # rank 4 of 16 is what an adapter is
    assert "lora product" in spectra.summary() and "4/4" in spectra.spectrum(f"{Q} (lora BA)").summary()
    assert "lora product" in set(spectra.to_pandas()["role"].str.partition(" (")[0])
    spectra.plot()
    spectra.save_html(tmp_path / "report.html")
    assert sf.advise(spectra).megabytes == pytest.approx(4 * (24 * 4 + 4 * 16) / 1e6)


def test_layers_ask_for_factors_by_name(tmp_path: Path) -> None:
    b, a = factors()
    state = {f"{m}.lora_{k}.weight": x for m in ("one", "two") for k, x in (("A", a), ("B", b))}
    spectra = sf.scan(state, layers="one.*", progress=False)
    assert [m.name for m in spectra] == ["one.lora_A.weight", "one.lora_B.weight", "one (lora BA)"]
