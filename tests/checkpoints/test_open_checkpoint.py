"""What open_checkpoint makes of paths: content before suffix, directories, indexes, and everything that is no checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from spectral_fast.checkpoints import CheckpointError, open_checkpoint


def sharded(directory: Path, weight_map: dict[str, Any] | None = None) -> Path:
    safetensors.torch.save_file({"a": torch.zeros(2, 2), "b": torch.ones(3)}, directory / "model-1.safetensors")
    safetensors.torch.save_file({"c": torch.full((2, 2), 7.0)}, directory / "model-2.safetensors")
    weight_map = weight_map or {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    state = {"w": torch.ones(2, 2)}
    safetensors.torch.save_file(state, tmp_path / "a.pt")
    torch.save(state, tmp_path / "b.safetensors")
    torch.save(state, tmp_path / "c", _use_new_zipfile_serialization=False)
    for name, kind in (("a.pt", "safetensors"), ("b.safetensors", "torch-zip"), ("c", "torch-legacy")):
        with open_checkpoint(str(tmp_path / name)) as checkpoint:
            assert checkpoint.format == kind and checkpoint.path == tmp_path / name
            np.testing.assert_array_equal(checkpoint.read("w"), np.ones((2, 2)))  # type: ignore[arg-type]


def test_a_directory_with_one_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no checkpoint among its 1 files"):
        open_checkpoint(tmp_path)
    torch.save({"w": torch.ones(2, 2)}, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == "torch-zip"
    torch.save({"w": torch.ones(2, 2)}, tmp_path / "training_args.bin")
    with open_checkpoint(tmp_path) as checkpoint:  # as trainers leave it
        assert checkpoint.path.name == "pytorch_model.bin"
        assert [(s.name, s.reason) for s in checkpoint.skipped] == [("training_args.bin", "a file beside pytorch_model.bin, which holds the model")]
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match="holds 2 checkpoints.*a.bin, training_args.bin"):
        open_checkpoint(tmp_path)


def test_shards(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    for path in (tmp_path, index):
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.format == "sharded safetensors"
            assert [(t.name, t.shape, t.storage.file) for t in checkpoint.tensors] == [
                ("a", (2, 2), "model-1.safetensors"),
                ("b", (3,), "model-1.safetensors"),
                ("c", (2, 2), "model-2.safetensors"),
            ]
            assert len({t.storage for t in checkpoint.tensors}) == 3
            assert checkpoint.read("c").tolist() == [[7, 7], [7, 7]]  # type: ignore[union-attr]
        with pytest.raises(CheckpointError, match="after close"):
            checkpoint.read("c")


def test_shards_may_be_links_and_torch_files(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    torch.save({"w": torch.ones(2, 2)}, blobs / "0123")
    os.symlink("../blobs/0123", snapshot / "pytorch_model-1.bin")
    (snapshot / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": "pytorch_model-1.bin"}}))
    with open_checkpoint(snapshot) as checkpoint:
        assert checkpoint.format == "sharded torch-zip" and checkpoint.read("w").shape == (2, 2)


def test_tensors_the_index_does_not_list_are_skipped(tmp_path: Path) -> None:
    sharded(tmp_path, {"a": "model-1.safetensors", "c": "model-2.safetensors"})
    with open_checkpoint(tmp_path) as checkpoint:
        assert [(s.name, s.reason) for s in checkpoint.skipped] == [("b", "in model-1.safetensors, where the index does not list it")]


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 5}}',
        '{"weight_map": {"a": "../model-1.safetensors"}}',
        '{"weight_map": {"a": ".."}}',
        '{"weight_map": {"a": ""}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": {"a": "x\\\\y"}}',
        '{"weight_map": {"a": "model-1.safetensors\\u0000"}}',
        '{"weight_map": {"a": "\\ud800"}}',
        '{"weight_map": {"a": "missing.safetensors"}}',
        '{"weight_map": {"a": "model.safetensors.index.json"}}',
        '{"weight_map": {"a": "model-2.safetensors"}}',
        '{"weight_map": {"a": "' + "x" * 5000 + '"}}',
        "[" * 100_000,
    ],
    ids=range(18),
)
def test_bad_indexes(index: str, tmp_path: Path) -> None:
    sharded(tmp_path).write_text(index)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)


def test_more_shards_than_file_descriptors(tmp_path: Path) -> None:
    weight_map = {str(i): f"{i}.safetensors" for i in range(600)}
    sharded(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match="more than 512 shards"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"hello world, this is text", "unknown format"),
        (b"GGUF" + bytes(20), "not a valid GGUF file"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        (b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}.", "pickle that torch.save did not write"),
        (b"PK\x03\x04" + bytes(30), "zip directory cannot be read"),
        (b"PK\x05\x06" + bytes(18), "unknown format"),
    ],
)
def test_files_that_are_no_checkpoint(content: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "file.bin"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=says) as caught:
        open_checkpoint(file)
    assert str(file) in str(caught.value)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    cases: list[tuple[Any, str]] = [(tmp_path / "absent", "no such file"), ("a\0b", "no such file")]
    cases += [(tmp_path / "pipe.pt", "not a regular file"), ("/dev/zero", "not a regular file")]
    for path, says in cases:
        with pytest.raises(CheckpointError, match=says):
            open_checkpoint(path)


def test_no_file_descriptor_is_left_open(tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("/proc/self/fd is needed to count descriptors")
    sharded(tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 100)
    torch.save({"w": torch.ones(2, 2)}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bad.pt").write_bytes((tmp_path / "legacy.pt").read_bytes()[:-1])
    before = len(list(descriptors.iterdir()))
    for name in ("", "legacy.pt", "bad.safetensors", "bad.pt"):
        try:
            with open_checkpoint(tmp_path / name) as checkpoint:
                checkpoint.read(checkpoint.tensors[0].name)
        except CheckpointError:
            assert name.startswith("bad")
    assert len(list(descriptors.iterdir())) == before
