"""The same weights written in every format that is read give the same spectra, to the bit; formats that round give those of the rounded weights."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.distributed import checkpoint as dcp

import spectral_fast as sf

torch.manual_seed(3)
NET = torch.nn.ModuleDict(
    {"fc": torch.nn.Linear(96, 64), "out": torch.nn.Linear(64, 32, bias=False), "conv": torch.nn.Conv2d(4, 16, 3), "table": torch.nn.Embedding(160, 32)}
)
STATE: dict[str, torch.Tensor] = {name: t.detach().clone() for name, t in NET.state_dict().items()}
MATRICES = {name for name in STATE if name.endswith("weight")}


class Scripted(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out, self.conv, self.table = NET["fc"], NET["out"], NET["conv"], NET["table"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.fc(x))


def _safetensors(folder: Path) -> Path:
    save_file(STATE, folder / "model.safetensors")
    return folder / "model.safetensors"


def _sharded(folder: Path) -> Path:
    names = list(STATE)
    where = {}
    for k, part in enumerate((names[:2], names[2:])):
        file = f"model-{k + 1:05d}-of-00002.safetensors"
        save_file({n: STATE[n] for n in part}, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def _bin_sharded(folder: Path) -> Path:
    names = list(STATE)
    where = {}
    for k, part in enumerate((names[:2], names[2:])):
        torch.save({n: STATE[n] for n in part}, folder / f"pytorch_model-{k}.bin")
        where |= dict.fromkeys(part, f"pytorch_model-{k}.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    return folder / "pytorch_model.bin.index.json"


def _consolidated(folder: Path) -> Path:
    save_file(STATE, folder / "consolidated.safetensors")
    save_file({"other": torch.ones(2, 2)}, folder / "tokenizer.safetensors")
    return folder


def _torch_new(folder: Path) -> Path:
    torch.save(STATE, folder / "model.pt")
    return folder / "model.pt"


def _torch_nested(folder: Path) -> Path:
    """As trainers write it, the weights transposed in memory and side by side in one storage."""
    flat = torch.cat([t.reshape(-1) for t in STATE.values()])
    views, at = {}, 0
    for name, t in STATE.items():
        views[name] = flat[at : at + t.numel()].view(t.shape)
        at += t.numel()
    views["fc.weight"] = STATE["fc.weight"].t().contiguous().t()
    torch.save(views, folder / "model.pth")
    return folder / "model.pth"


def _torch_legacy(folder: Path) -> Path:
    torch.save(STATE, folder / "model.pt", _use_new_zipfile_serialization=False)
    return folder / "model.pt"


def _torchscript(folder: Path) -> Path:
    torch.jit.script(Scripted()).save(str(folder / "model.jit"))
    return folder / "model.jit"


def _arrays() -> dict[str, np.ndarray]:
    return {name: t.numpy() for name, t in STATE.items()}


def _npz(folder: Path) -> Path:
    np.savez(folder / "model.npz", **_arrays())
    return folder / "model.npz"


def _npz_deflated(folder: Path) -> Path:
    arrays = _arrays()
    arrays["fc.weight"] = np.asfortranarray(arrays["fc.weight"])
    np.savez_compressed(folder / "model.npz", **{name: a.astype(">f4") if name == "out.weight" else a for name, a in arrays.items()})
    return folder / "model.npz"


def _distributed(folder: Path) -> Path:
    dcp.save(dict(STATE), checkpoint_id=folder / "dcp", no_dist=True)
    return folder / "dcp"


def _pipeline(folder: Path) -> Path:
    (folder / "unet").mkdir()
    save_file(STATE, folder / "unet" / "diffusion_pytorch_model.safetensors")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "P", "unet": ["diffusers", "U"]}))
    return folder


def _tar(folder: Path) -> Path:
    inner = io.BytesIO()
    torch.save(STATE, inner)
    with tarfile.open(folder / "model.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("weights.th")
        member.size = len(inner.getvalue())
        inner.seek(0)
        archive.addfile(member, inner)
    return folder / "model.tar.gz"


def _gguf(folder: Path, kind: str = "F32") -> Path:
    gguf = pytest.importorskip("gguf", reason="the gguf package writes this file")
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    for name, a in _arrays().items():
        if a.ndim == 4:
            continue  # the format has convolutions, its models have none
        if a.ndim == 2 and kind != "F32":
            writer.add_tensor(name, gguf.quantize(a, gguf.GGMLQuantizationType[kind]), raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(name, a)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


WRITERS: dict[str, Callable[[Path], Path]] = {
    f.__name__.removeprefix("_"): f
    for f in (
        *(_safetensors, _sharded, _bin_sharded, _consolidated, _torch_new, _torch_nested, _torch_legacy, _torchscript),
        *(_npz, _npz_deflated, _distributed, _pipeline, _tar, _gguf),
    )
}


def spectra_of(source: Any) -> dict[str, sf.MatrixSpectrum]:
    return {m.name: m for m in sf.scan(source, progress=False)}


@pytest.mark.parametrize("how", WRITERS)
def test_every_format(how: str, tmp_path: Path) -> None:
    found = spectra_of(WRITERS[how](tmp_path))
    wanted = spectra_of(STATE)
    if how == "pipeline":  # its names say which part they are of
        found = {name.removeprefix("unet/").removeprefix("unet."): m for name, m in found.items()}
    expected = MATRICES - {"conv.weight"} if how == "gguf" else MATRICES
    assert found.keys() == expected
    for name, m in found.items():
        other = wanted[name]
        assert m.dtype == "float32"
        for field in ("shape", "ranks", "effective_precision", "storage_noise"):
            assert getattr(m, field) == getattr(other, field), (how, name, field)
        assert np.array_equal(m.s, other.s), (how, name)
        assert np.allclose(m.s, np.linalg.svd(STATE[name].double().reshape(m.shape).numpy(), compute_uv=False), rtol=1e-12)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantized_weights_are_those_of_their_own_dequantization(kind: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package writes this file")
    found = spectra_of(_gguf(tmp_path, kind))
    number = gguf.GGMLQuantizationType[kind]
    for name, m in found.items():
        theirs = gguf.dequantize(gguf.quantize(STATE[name].numpy(), number), number)
        assert np.array_equal(m.s, sf.svdvals(theirs)), name
        assert m.effective_precision < 24 and m.storage_noise > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_rounded_formats_agree_with_each_other(dtype: torch.dtype, tmp_path: Path) -> None:
    rounded = {name: t.to(dtype) for name, t in STATE.items()}
    wanted = {name: t.float() for name, t in rounded.items()}
    save_file(rounded, tmp_path / "model.safetensors")
    torch.save(rounded, tmp_path / "model.pt")
    torch.save(rounded, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    dcp.save(dict(rounded), checkpoint_id=tmp_path / "dcp", no_dist=True)
    for path in (tmp_path / "model.safetensors", tmp_path / "model.pt", tmp_path / "old.pt", tmp_path / "dcp"):
        found = spectra_of(path)
        assert found.keys() == MATRICES
        for name, m in found.items():
            assert m.dtype == str(dtype).removeprefix("torch.")
            assert np.array_equal(m.s, spectra_of({name: wanted[name]})[name].s), (path, name)
