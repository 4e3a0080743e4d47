"""How much of a file is read: nothing of its tensors when it is opened, and of one tensor of many, asked for by ``scan(layers=...)``, its bytes once.

Counted by the system (rchar of /proc/self/io), so that no way of reading goes uncounted. Allowed beside the tensor are ALLOWANCE bytes for headers,
directories and what buffers read ahead. Packed files are told apart: a .tar.gz archive is read whole when it is opened, for where its members begin
is written nowhere; of a deflated array all packed bytes are read, once for its values and some 512 for its header.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.numpy import save_file

import spectral_fast as sf
from spectral_fast.checkpoints import open_checkpoint

COUNTS = Path("/proc/self/io")
ALLOWANCE = 2**17  # of which the first window of a GGUF header takes half
WANTED, NAMES = "b3.weight", [f"b{i}.weight" for i in range(8)]
SIZE = 512
WEIGHTS = {name: np.random.default_rng(i).standard_normal((SIZE, SIZE)).astype(np.float32) for i, name in enumerate(NAMES)}
TENSOR = SIZE * SIZE * 4
TORCH = {name: torch.from_numpy(w) for name, w in WEIGHTS.items()}

pytestmark = pytest.mark.skipif(not COUNTS.exists(), reason="the system does not count the bytes a process reads")


def total_read() -> int:
    return int(COUNTS.read_text().split()[1])  # itself some 100 bytes


def safetensors(folder: Path) -> Path:
    save_file(WEIGHTS, folder / "x.safetensors")
    return folder / "x.safetensors"


def sharded(folder: Path) -> Path:
    for half in (0, 1):
        save_file({name: WEIGHTS[name] for name in NAMES[half::2]}, folder / f"{half}.safetensors")
    index = {"weight_map": {name: f"{i % 2}.safetensors" for i, name in enumerate(NAMES)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def pipeline(folder: Path) -> Path:
    for part in ("unet", "vae"):
        (folder / part).mkdir()
        save_file(WEIGHTS if part == "unet" else {"a.weight": WEIGHTS[WANTED]}, folder / part / "model.safetensors")
    (folder / "model_index.json").write_text(json.dumps({"unet": ["d", "U"], "vae": ["d", "V"]}))
    return folder


def torch_zip(folder: Path) -> Path:
    torch.save(TORCH, folder / "x.pt")
    return folder / "x.pt"


def torch_legacy(folder: Path) -> Path:
    torch.save(TORCH, folder / "x.bin", _use_new_zipfile_serialization=False)
    return folder / "x.bin"


def torchscript(folder: Path) -> Path:
    net = torch.nn.Module()
    for i, w in enumerate(TORCH.values()):
        layer = torch.nn.Linear(SIZE, SIZE, bias=False)
        layer.weight = torch.nn.Parameter(w)
        setattr(net, f"b{i}", layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(net), folder / "x.pt")
    return folder / "x.pt"


def distributed(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(TORCH, checkpoint_id=folder)
    return folder


def npz(folder: Path) -> Path:
    np.savez(folder / "x.npz", **WEIGHTS)
    return folder / "x.npz"


def npz_deflated(folder: Path) -> Path:
    np.savez_compressed(folder / "x.npz", **WEIGHTS)
    return folder / "x.npz"


def gguf(folder: Path, kind: int = 0) -> Path:
    """Type 0 is float32, type 8 blocks of a float16 scale and 32 signed bytes."""
    tensors, data = b"", b""
    for name, w in WEIGHTS.items():
        tensors += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<IQQIQ", 2, SIZE, SIZE, kind, len(data))
        codes = np.clip(w.reshape(-1, 32) * 20, -127, 127).astype(np.int8).view(np.uint8)
        scales = np.tile(np.array([0.05], "<f2").view(np.uint8), (len(codes), 1))
        data += w.tobytes() if kind == 0 else np.hstack([scales, codes]).tobytes()
    head = b"GGUF" + struct.pack("<IQQ", 3, len(WEIGHTS), 0) + tensors
    (folder / "x.gguf").write_bytes(head + bytes(-len(head) % 32) + data)
    return folder / "x.gguf"


def gguf_coded(folder: Path) -> Path:
    return gguf(folder, 8)


def tar_gz(folder: Path) -> Path:
    save_file(WEIGHTS, folder / "weights.safetensors")
    with tarfile.open(folder / "x.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(folder / "weights.safetensors", "weights.safetensors")
    (folder / "weights.safetensors").unlink()
    return folder / "x.tar.gz"


# format -> how it is made, bytes of the one tensor (None: those of the packed one)
FORMATS: dict[str, tuple[Callable[[Path], Path], int | None]] = {
    **{make.__name__: (make, TENSOR) for make in (safetensors, sharded, pipeline, torch_zip, torch_legacy, torchscript, distributed, npz, gguf, tar_gz)},
    "gguf_coded": (gguf_coded, TENSOR // 4 // 32 * 34),
    "npz_deflated": (npz_deflated, None),
}


@pytest.fixture(scope="module", autouse=True)
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Modules that are imported by the first scan are read by the first scan."""
    sf.scan(safetensors(tmp_path_factory.mktemp("first")), layers=WANTED, progress=False)


@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_read(kind: str, tmp_path: Path) -> None:
    make, tensor = FORMATS[kind]
    path = make(tmp_path)
    whole = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
    if tensor is None:
        handle = io.BytesIO()
        np.savez_compressed(handle, WEIGHTS[WANTED])
        tensor = len(handle.getvalue())
    archive = whole if kind == "tar_gz" else 0
    assert whole > 6 * tensor > 6 * ALLOWANCE  # so that the bounds below say something

    before = total_read()
    with open_checkpoint(path) as checkpoint:
        found = [t.name for t in checkpoint.tensors]
        opened = total_read() - before
    assert len(found) >= 8 and archive <= opened <= archive + ALLOWANCE

    before = total_read()
    spectra = sf.scan(path, layers=f"*{WANTED}", progress=False)
    scanned = total_read() - before
    assert [m.name.endswith(WANTED) for m in spectra] == [True] and spectra.matrices[0].status == "ok"
    assert archive + tensor - 1024 <= scanned <= archive + tensor + ALLOWANCE
