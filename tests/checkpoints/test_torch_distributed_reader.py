"""Directories of torch.distributed.checkpoint against what was saved in them, by one process and by two."""

from __future__ import annotations

import io
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from children import run_python

from spectral_fast.checkpoints import CheckpointError, open_checkpoint
from spectral_fast.linalg.arrays import RawArray

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:TypedStorage"),
    pytest.mark.filterwarnings("ignore:.*no_dist.*"),
]


def state() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "model": {
            "a.weight": torch.randn(30, 40),
            "half": torch.randn(6, 5).to(torch.float16),
            "brain": torch.randn(6, 5).to(torch.bfloat16),
            "turned": torch.randn(7, 3).t(),
            "count": torch.tensor(3),
        },
        "optimizer": {"lr": 0.1},
        "step": 7,
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    dcp.save(state(), checkpoint_id=tmp_path / "saved")
    return tmp_path / "saved"


def bits(x: torch.Tensor) -> np.ndarray:
    return x.contiguous().view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


def test_one_process(saved: Path) -> None:
    with open_checkpoint(saved) as checkpoint:
        assert checkpoint.format == "torch-distributed"
        want = {f"model.{name}": t for name, t in state()["model"].items()}
        assert {t.name for t in checkpoint.tensors} == want.keys()
        assert {s.name for s in checkpoint.skipped} == {"optimizer.lr", "step"}
        for t in checkpoint.tensors:
            got = checkpoint.read(t.name)
            assert got.shape == t.shape == tuple(want[t.name].shape) and str(want[t.name].dtype) == f"torch.{t.dtype}"
            np.testing.assert_array_equal(got.bits if isinstance(got, RawArray) else got, bits(want[t.name]))
    with pytest.raises(CheckpointError, match="after close"):
        checkpoint.read("model.a.weight")


RANK = """
import sys
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

def main(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    rows, columns = torch.arange(35.0).reshape(7, 5), torch.arange(24.0).reshape(4, 6)
    tensors = {"rows": distribute_tensor(rows, mesh, [Shard(0)]), "columns": distribute_tensor(columns, mesh, [Shard(1)]), "whole": torch.ones(2, 3)}
    dcp.save(tensors, checkpoint_id=f"{folder}/saved")
    dist.destroy_process_group()

if __name__ == "__main__":
    torch.multiprocessing.start_processes(main, args=(sys.argv[1],), nprocs=2, start_method="fork")
"""


@pytest.mark.skipif(not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch was built without gloo")
def test_two_processes(tmp_path: Path) -> None:
    run = run_python(f"import sys\nsys.argv = ['x', {str(tmp_path)!r}]\n{RANK}")
    assert run.returncode == 0, run.stderr[-2000:]
    with open_checkpoint(tmp_path / "saved") as checkpoint:
        assert len(list((tmp_path / "saved").glob("*.distcp"))) == 2
        np.testing.assert_array_equal(checkpoint.read("rows"), np.arange(35.0).reshape(7, 5))  # type: ignore[arg-type]
        np.testing.assert_array_equal(checkpoint.read("columns"), np.arange(24.0).reshape(4, 6))  # type: ignore[arg-type]
        np.testing.assert_array_equal(checkpoint.read("whole"), np.ones((2, 3)))  # type: ignore[arg-type]


def forged(folder: Path, change: Any) -> None:
    """The metadata with ``change`` made to it."""
    metadata = dcp.FileSystemReader(folder).read_metadata()
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def _place(metadata: Any, name: str = "model.a.weight") -> Any:
    return next(place for index, place in metadata.storage_data.items() if index.fqn == name)


def _chunk(metadata: Any) -> Any:
    return metadata.state_dict_metadata["model.a.weight"].chunks[0]


def _twice(metadata: Any) -> None:
    entry = metadata.state_dict_metadata["model.a.weight"]
    entry.size = torch.Size((60, 40))
    entry.chunks = entry.chunks * 2


LIES: dict[str, tuple[Any, str]] = {
    "leaves the file": (lambda m: setattr(_place(m), "offset", 10**9), "which has"),
    "negative": (lambda m: setattr(_place(m), "length", -1), "without position and length"),
    "a length of 12,000 digits": (lambda m: setattr(_place(m), "length", 2**40_000), "without position and length"),
    "a file that is an integer": (lambda m: setattr(_place(m), "relative_path", 2**40_000), "is in int, wanted a plain file name"),
    "another directory": (lambda m: setattr(_place(m), "relative_path", "../x.distcp"), "plain file name"),
    "no such file": (lambda m: setattr(_place(m), "relative_path", "__1_0.distcp"), "cannot be opened"),
    "a piece beyond the tensor": (lambda m: setattr(_chunk(m), "sizes", torch.Size((31, 40))), "leaves it"),
    "too few elements": (lambda m: setattr(_chunk(m), "sizes", torch.Size((29, 40))), "more or fewer"),
    "more than its bytes": (lambda m: setattr(_place(m), "length", 100), "hold no piece"),
    "the same piece twice": (_twice, "overlap"),
    "no place": (lambda m: m.storage_data.clear(), "nothing is stored"),
    "huge": (lambda m: setattr(m.state_dict_metadata["model.a.weight"], "size", torch.Size((2**40, 2**40))), "2\\*\\*63"),
    "no chunks": (lambda m: setattr(m.state_dict_metadata["model.a.weight"], "chunks", None), "no size and chunks"),
    "not a dict": (lambda m: setattr(m, "storage_data", None), "no storage_data"),
}


@pytest.mark.parametrize("case", LIES)
def test_lies(case: str, saved: Path) -> None:
    change, message = LIES[case]
    forged(saved, change)
    with pytest.raises(CheckpointError, match=f"(?s)saved.*{message}"):
        open_checkpoint(saved)


def test_damaged_pieces_and_metadata(saved: Path) -> None:
    forged(saved, lambda m: setattr(_place(m), "offset", 1))
    with open_checkpoint(saved) as checkpoint, pytest.raises(CheckpointError, match="saved"):
        checkpoint.read("model.a.weight")
    other = io.BytesIO()
    torch.save(torch.zeros(40, 30), other)
    file = saved / "__0_0.distcp"
    file.write_bytes(other.getvalue())
    forged(saved, lambda m: [setattr(_place(m), "offset", 0), setattr(_place(m), "length", len(other.getvalue()))])
    forged(saved, lambda m: [m.state_dict_metadata.pop(name) for name in list(m.state_dict_metadata) if name != "model.a.weight"])
    with open_checkpoint(saved) as checkpoint, pytest.raises(CheckpointError, match=r"is no float32 of shape \[30, 40\]"):
        checkpoint.read("model.a.weight")
    whole = (saved / ".metadata").read_bytes()
    for content in (b"", b"x", whole[:-20], pickle.dumps({"a": 1}), pickle.dumps(print)):
        (saved / ".metadata").write_bytes(content)
        with pytest.raises(CheckpointError, match="distributed checkpoint"):
            open_checkpoint(saved)
    shutil.rmtree(saved)
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint(saved)
