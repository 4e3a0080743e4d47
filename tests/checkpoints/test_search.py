"""What counts as a checkpoint below a directory, what is told instead, and that nothing is taken twice."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from spectral_fast.checkpoints import CheckpointError
from spectral_fast.checkpoints.search import checkpoint_names, find_checkpoints


def put(path: Path, value: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"w.weight": np.full((3, 2), value, np.float32)}, path)
    return path


def sharded(folder: Path, shards: int = 2, name: str = "model") -> Path:
    files = [f"{name}-0000{i}-of-0000{shards}.safetensors" for i in range(1, shards + 1)]
    for i, file in enumerate(files):
        put(folder / file, float(i))
    index = folder / f"{name}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"{i}.weight": file for i, file in enumerate(files)}}))
    return index


def found(tmp_path: Path, *paths: str) -> tuple[list[str], dict[str, str]]:
    """Paths found and skipped, from ``tmp_path``."""
    kept, skipped = find_checkpoints([tmp_path / p for p in paths] or [tmp_path])

    def short(text: str) -> str:
        return text.replace(f"{tmp_path}{os.sep}", "").replace(str(tmp_path), ".")

    return [short(str(c.path)) for c in kept], {short(s.name): short(s.reason) for s in skipped}


def test_a_folder_of_files(tmp_path: Path) -> None:
    for name in ("b.safetensors", "a.safetensors", "below/deep/c.safetensors", ".cache/hidden.safetensors"):
        put(tmp_path / name)
    for name in ("README.md", "data.npy", "config.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "old.h5").write_bytes(b"\x89HDF")
    assert found(tmp_path) == (["a.safetensors", "b.safetensors", "below/deep/c.safetensors"], {"old.h5": "HDF5 (Keras): not read yet"})


def test_a_single_file_does_not_hide_what_is_below(tmp_path: Path) -> None:
    put(tmp_path / "only.safetensors")
    put(tmp_path / "run/other.safetensors")
    assert found(tmp_path)[0] == ["only.safetensors", "run/other.safetensors"]


def test_main_files_with_copies_and_earlier_steps(tmp_path: Path) -> None:
    put(tmp_path / "net/model.safetensors")
    for name in ("pytorch_model.bin", "optimizer.pt", "model.onnx"):
        (tmp_path / "net" / name).write_bytes(b"x")
    put(tmp_path / "net/checkpoint-500/model.safetensors")
    put(tmp_path / "net/original/consolidated.00.safetensors")
    kept, skipped = found(tmp_path)
    assert kept == ["net/model.safetensors"]
    beside = "a file beside model.safetensors, which holds the model"
    below = "below net, which is a checkpoint itself: name it to have both"
    assert skipped == {
        **dict.fromkeys(["net/model.onnx", "net/optimizer.pt", "net/pytorch_model.bin"], beside),
        **dict.fromkeys(["net/checkpoint-500/model.safetensors", "net/original/consolidated.00.safetensors"], below),
    }
    both = found(tmp_path, "net", "net/checkpoint-500")
    assert both[0] == ["net/model.safetensors", "net/checkpoint-500/model.safetensors"]
    assert "net/checkpoint-500/model.safetensors" not in both[1]


def test_shards_belong_to_their_index(tmp_path: Path) -> None:
    sharded(tmp_path / "net")
    put(tmp_path / "net/extra.safetensors")
    kept, skipped = found(tmp_path)
    assert kept == ["net/model.safetensors.index.json"]
    assert skipped == {"net/extra.safetensors": "a file beside model.safetensors.index.json, which holds the model"}
    shard = "net/model-00001-of-00002.safetensors"
    kept, skipped = found(tmp_path, shard, "net", "net/model.safetensors.index.json")
    assert kept == ["net/model.safetensors.index.json"]
    assert skipped[shard] == "a part of net/model.safetensors.index.json"


def test_a_broken_index_is_left_to_the_reader(tmp_path: Path) -> None:
    put(tmp_path / "model-1.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("{")
    assert found(tmp_path)[0] == ["model.safetensors.index.json"]


def test_pipelines_and_distributed_checkpoints_are_whole(tmp_path: Path) -> None:
    put(tmp_path / "pipe/unet/diffusion_pytorch_model.safetensors")
    put(tmp_path / "pipe/vae/diffusion_pytorch_model.safetensors")
    (tmp_path / "pipe/model_index.json").write_text('{"unet": ["a", "b"], "vae": ["a", "b"]}')
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp/.metadata").write_bytes(b"x")
    (tmp_path / "dcp/__0_0.distcp").write_bytes(b"x")
    assert found(tmp_path) == (["dcp", "pipe"], {})
    kept, skipped = found(tmp_path, "pipe/unet", "pipe")
    assert kept == ["pipe"] and skipped == {"pipe/unet/diffusion_pytorch_model.safetensors": "a part of pipe"}


@pytest.fixture
def hub(tmp_path: Path) -> Callable[..., Path]:
    """A hub cache: contents in blobs, snapshots of links to them."""

    def snapshot(repository: str, revision: str, blob: str) -> Path:
        home = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        content = home / "blobs" / blob
        if not content.exists():
            put(content, float(len(blob)))
        (home / "snapshots" / revision).mkdir(parents=True)
        link = home / "snapshots" / revision / "model.safetensors"
        link.symlink_to(Path("../../blobs") / blob)
        return link

    return snapshot


def test_a_hub_cache(tmp_path: Path, hub: Callable[..., Path]) -> None:
    links = [hub("org/net", "aaaa1111bbbb", "one"), hub("org/net", "cccc2222dddd", "one"), hub("other/net", "eeee", "two")]
    kept, skipped = find_checkpoints([tmp_path])
    assert [c.path for c in kept] == [links[0], links[2]]
    assert [(s.name, s.reason) for s in skipped] == [(str(links[1]), f"the same file as {links[0]}")]
    assert checkpoint_names(c.path for c in kept) == ["org/net", "other/net"]
    later = hub("org/net", "ffff3333", "three")
    kept, _ = find_checkpoints([tmp_path])
    assert later in [c.path for c in kept]
    assert checkpoint_names(c.path for c in kept) == ["org/net@aaaa1111", "org/net@ffff3333", "other/net"]
    (tmp_path / "hub/models--other--net/blobs/two").unlink()
    _, skipped = find_checkpoints([tmp_path])
    assert (str(links[2]), "a link to nothing") in [(s.name, s.reason) for s in skipped]


def test_links_in_circles_and_doubles(tmp_path: Path) -> None:
    put(tmp_path / "a/one.safetensors")
    put(tmp_path / "net/model.safetensors")
    (tmp_path / "a/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "net/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "b").symlink_to(tmp_path / "a", target_is_directory=True)
    os.link(tmp_path / "a/one.safetensors", tmp_path / "two.safetensors")
    kept, skipped = found(tmp_path)
    assert sorted(kept) == ["net/model.safetensors", "two.safetensors"]
    assert skipped["a/one.safetensors"] == "the same file as two.safetensors"
    kept, skipped = found(tmp_path, "net", "net/model.safetensors", "net")
    assert kept == ["net/model.safetensors"]
    assert set(skipped) == {"net/up/a/one.safetensors", "net/up/two.safetensors"} and all(why.startswith("below net, ") for why in skipped.values())


def test_what_does_not_exist(tmp_path: Path) -> None:
    for given in (tmp_path / "nothing", ""):
        with pytest.raises(CheckpointError, match="no such file or directory"):
            find_checkpoints([given])
    assert find_checkpoints([tmp_path]) == ([], [])


def test_names_are_short_and_different() -> None:
    def names(*paths: str) -> list[str]:
        return checkpoint_names(Path(p) for p in paths)

    assert names("/a/b/x.pt", "/a/b/y.pt") == ["x.pt", "y.pt"]
    assert names("/a/one/model.safetensors", "/a/two/pytorch_model.bin", "/a/c.npz") == ["one", "two", "c.npz"]
    assert names("/a/one/model.safetensors", "/a/one/pytorch_model.bin") == ["one/model.safetensors", "one/pytorch_model.bin"]
    assert names("/a/gpt/model/model.safetensors") == ["gpt/model"] and names("/a/b/x.pt") == ["b/x.pt"]
    assert names("/x/models--o--n/snapshots/0123456789/sub/q4.gguf", "/y/z.pt") == ["x/o/n/sub/q4.gguf", "y/z.pt"]
    many = names(*(f"/a/{i}/model.safetensors" for i in range(50)), "/a/0/pytorch_model.bin", "/b/0")
    assert len(set(many)) == 52
