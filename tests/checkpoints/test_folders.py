"""Pipelines: the checkpoints of all folders that model_index.json names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from spectral_fast.checkpoints import CheckpointError, open_checkpoint


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    folder = tmp_path / "pipeline"
    for name in ("unet", "vae", "text_encoder", "tokenizer", "not_named"):
        (folder / name).mkdir(parents=True)
    save_file({"conv.weight": np.arange(6.0, dtype=np.float32).reshape(2, 3)}, folder / "unet/diffusion_pytorch_model.safetensors")
    save_file({"conv.weight": np.ones((2, 3), np.float32)}, folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    save_file({"conv.weight": np.arange(6.0, dtype=np.float32).reshape(2, 3)}, folder / "vae/diffusion_pytorch_model.safetensors")
    save_file({"a.b.c": np.ones((4, 3), np.float32)}, folder / "text_encoder/model-00001-of-00001.safetensors")
    (folder / "text_encoder/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.b.c": "model-00001-of-00001.safetensors"}}))
    (folder / "tokenizer/vocab.json").write_text("{}")
    save_file({"x": np.ones((4, 3), np.float32)}, folder / "not_named/model.safetensors")
    index = {"_class_name": "Pipeline", "unet": ["d", "U"], "vae": ["d", "V"], "text_encoder": ["t", "T"], "tokenizer": ["t", "T"], "missing": ["a", "b"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_all_networks(pipeline: Path) -> None:
    with open_checkpoint(pipeline) as checkpoint:
        assert checkpoint.format == "folders of safetensors, sharded safetensors"
        assert [t.name for t in checkpoint.tensors] == ["unet.conv.weight", "vae.conv.weight", "text_encoder.a.b.c"]
        assert len({t.storage for t in checkpoint.tensors}) == 3  # equal places in two files are no tie
        np.testing.assert_array_equal(checkpoint.read("unet.conv.weight"), np.arange(6.0).reshape(2, 3))  # type: ignore[arg-type]
        assert checkpoint.read("text_encoder.a.b.c").shape == (4, 3)
        assert [s.name for s in checkpoint.skipped] == ["unet.diffusion_pytorch_model.fp16.safetensors"]
        with pytest.raises(KeyError):
            checkpoint.read("unet.missing")
    with pytest.raises(CheckpointError, match="after close"):
        checkpoint.read("unet.conv.weight")


def test_a_damaged_part_is_listed(pipeline: Path) -> None:
    (pipeline / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"x" * 100)
    with open_checkpoint(pipeline) as checkpoint:
        assert {t.name.split(".")[0] for t in checkpoint.tensors} == {"unet", "text_encoder"}
        assert any(s.name == "vae" and s.reason.startswith("cannot be read: ") for s in checkpoint.skipped)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "no object"),
        ('{"..": ["a", "b"], "unet/../vae": ["a", "b"], "/": [], "": []}', "none of its folders"),
        ('{"tokenizer": ["a", "b"]}', "none of its folders"),
        (" " * 1_000_001, "at most 1000000"),
    ],
)
def test_strange_indexes(index: str, message: str, pipeline: Path) -> None:
    (pipeline / "model_index.json").write_text(index)
    with pytest.raises(CheckpointError, match=f"pipeline.*{message}"):
        open_checkpoint(pipeline)


def test_a_pipeline_inside_of_a_pipeline(pipeline: Path) -> None:
    (pipeline / "vae/model_index.json").write_text(json.dumps({"vae": ["a", "b"]}))
    with open_checkpoint(pipeline) as checkpoint:
        assert any(s.name == "vae" and "inside of a pipeline" in s.reason for s in checkpoint.skipped)
