"""Archives like AllenNLP's: the checkpoint in a .tar.gz, and what is no such archive."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from spectral_fast.checkpoints import CheckpointError, open_checkpoint, tar_archives

WEIGHTS = {"a.weight": np.arange(12.0, dtype=np.float32).reshape(3, 4)}


def torch_bytes() -> bytes:
    buffer = io.BytesIO()
    torch.save({name: torch.from_numpy(w) for name, w in WEIGHTS.items()}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def packed(members: dict[str, bytes], style: int = tarfile.GNU_FORMAT, links: tuple[str, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=style) as archive:
        for name in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("inner", ["weights.th", "model.safetensors", "a" * 90 + "/weights.th", "../../weights.th"])
def test_the_checkpoint_in_an_archive(inner: str, style: int, tmp_path: Path) -> None:
    content = save(WEIGHTS) if inner.endswith("safetensors") else torch_bytes()
    file = tmp_path / "model.tar.gz"
    file.write_bytes(packed({"config.json": b"{}", "vocabulary/words.txt": b"a\n" * 1000, inner: content, "last.txt": b"x"}, style, ("link.th",)))
    before = sorted(os.listdir(tmp_path))
    with open_checkpoint(file) as checkpoint:
        assert checkpoint.format.endswith("in a tar archive") and [t.name for t in checkpoint.tensors] == list(WEIGHTS)
        np.testing.assert_array_equal(checkpoint.read("a.weight"), WEIGHTS["a.weight"])  # type: ignore[arg-type]
        assert checkpoint.skipped[-1].reason.endswith(f"other files beside {inner}")
        assert sorted(os.listdir(tmp_path)) == before
    with pytest.raises(CheckpointError, match="after close"):
        checkpoint.read("a.weight")


def test_long_names(tmp_path: Path) -> None:
    file = tmp_path / "model.tar.gz"
    file.write_bytes(packed({"b" * 300 + ".th": torch_bytes()}, tarfile.GNU_FORMAT))
    with open_checkpoint(file) as checkpoint:
        assert len(checkpoint.tensors) == 1


def forged_size() -> bytes:
    raw = bytearray(gzip.decompress(packed({"weights.th": torch_bytes()})))
    raw[124:136] = b"77777777777\0"
    raw[148:156] = b"%06o\0 " % (sum(raw[:148]) + 8 * 32 + sum(raw[156:512]))
    return gzip.compress(bytes(raw))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: gzip.compress(b"hello"), "no tar archive in it"),
        (lambda: gzip.compress(os.urandom(2000)), "no tar archive in it"),
        (lambda: gzip.compress(b""), "0 checkpoints among 0"),
        (lambda: packed({"config.json": b"{}"}), "0 checkpoints among 1"),
        (lambda: packed({"a.th": b"x", "b.th": b"y"}), "2 checkpoints among 2 files: a.th, b.th"),
        (lambda: packed({"weights.th": torch_bytes()})[:-60], "truncated|damaged|checkpoint"),
        (lambda: packed({"weights.th": os.urandom(3000)})[:800], "truncated"),
        (lambda: b"\x1f\x8b" + bytes(100), "damaged"),
        (forged_size, "truncated"),
        (lambda: packed({"weights.th": b"no checkpoint"}), "unknown format"),
        (lambda: packed({"inner.bin": packed({"weights.th": b"x"})}), "an archive inside of an archive"),
    ],
)
def test_what_is_refused(content: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / "model.tar.gz"
    file.write_bytes(content())  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=f"model.tar.gz.*({message})"):
        open_checkpoint(file)


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_archives, "FREE", 1 << 20)
    file = tmp_path / "model.tar.gz"
    file.write_bytes(packed({"weights.th": bytes(50 << 20)}))
    assert file.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="no archive of weights does"):
        open_checkpoint(file)


WHOLE = gzip.decompress(packed({"config.json": b"{}", "weights.th": torch_bytes()}))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 1600), st.integers(0, 255)), min_size=1, max_size=5))
def test_mutations(tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]) -> None:
    raw = bytearray(WHOLE)
    for at, value in changes:
        raw[at] = value
    file = tmp_path_factory.getbasetemp() / "mutated.tar.gz"
    file.write_bytes(gzip.compress(bytes(raw), 1))
    try:
        with open_checkpoint(file) as checkpoint:
            for t in checkpoint.tensors:
                checkpoint.read(t.name)
    except CheckpointError as error:
        assert str(file) in str(error)
