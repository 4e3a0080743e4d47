"""The readers of torch.save's files against torch.load(weights_only=True)."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import run_python

from spectral_fast.checkpoints import Checkpoint, CheckpointError, open_checkpoint
from spectral_fast.linalg.arrays import RawArray

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse"),
    pytest.mark.filterwarnings("ignore:ComplexHalf"),
    pytest.mark.filterwarnings("ignore:torch.quantize"),
    pytest.mark.filterwarnings("ignore:TypedStorage"),
]

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.complex64,
    torch.complex128,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
    torch.bool,
]


@pytest.fixture(params=["zip", "legacy"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Saves an object in one of the two formats and gives the path."""

    def write(value: Any, **options: Any) -> Path:
        file = tmp_path / "model.pt"
        torch.save(value, file, _use_new_zipfile_serialization=request.param == "zip", **options)
        return file

    write.kind = f"torch-{request.param}"  # type: ignore[attr-defined]
    return write


def bits_of(x: Any) -> bytes:
    if isinstance(x, torch.Tensor):
        return bytes(x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()) if x.numel() else b""
    return (x.bits if isinstance(x, RawArray) else x).tobytes()


def assert_equal(checkpoint: Checkpoint, want: dict[str, torch.Tensor]) -> None:
    assert [t.name for t in checkpoint.tensors] == list(want)
    for info in checkpoint.tensors:
        t = want[info.name]
        got = checkpoint.read(info.name)
        assert info.shape == tuple(t.shape) == got.shape, info
        assert info.dtype == str(t.dtype).removeprefix("torch.")
        assert info.nbytes == t.numel() * t.element_size()
        assert bits_of(got) == bits_of(t), info


def skips(checkpoint: Checkpoint) -> dict[str, str]:
    return {s.name: s.reason for s in checkpoint.skipped}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_bit_for_bit(dtype: torch.dtype, save: Any) -> None:
    def make(*shape: int) -> torch.Tensor:
        if dtype is torch.bool:
            return torch.randint(0, 2, shape).bool()
        size = torch.empty(0, dtype=dtype).element_size()
        return torch.randint(0, 256, (int(np.prod(shape)) * size,), dtype=torch.uint8).view(dtype).reshape(shape)

    torch.manual_seed(0)
    want = OrderedDict(matrix=make(5, 7), scalar=make(), empty=make(3, 0), parameterlike=make(2))
    with open_checkpoint(save(want)) as checkpoint:
        assert checkpoint.format == save.kind and not checkpoint.skipped
        assert_equal(checkpoint, want)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dict_of_a_module_in_every_pickle_protocol(protocol: int, save: Any) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    with open_checkpoint(save(model.state_dict(), pickle_protocol=protocol)) as checkpoint:
        assert_equal(checkpoint, model.state_dict())
    parameters = dict(model.named_parameters())  # Parameter objects, not detached
    with open_checkpoint(save(parameters, pickle_protocol=protocol)) as checkpoint:
        assert_equal(checkpoint, parameters)


def test_views_with_strides_and_offsets(save: Any) -> None:
    base = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    want = {"t": base.T, "slice": base[1:5:2, 3:9:3], "column": base[:, 4], "one": base[2:3, 5:6], "bf": base.bfloat16().T}
    want["permuted"] = base.reshape(3, 4, 5).permute(2, 0, 1)
    with open_checkpoint(save(want)) as checkpoint:
        assert_equal(checkpoint, want)
        assert len({t.storage for t in checkpoint.tensors}) == len(want)  # one storage, but no two the same view
        got = checkpoint.read("t")
        assert isinstance(got, np.ndarray) and got.flags.c_contiguous


def test_tied_tensors_have_equal_keys_and_flat_lstm_weights_do_not(save: Any) -> None:
    embedding = torch.nn.Embedding(10, 4)
    head = torch.nn.Linear(4, 10, bias=False)
    head.weight = embedding.weight
    flat = torch.arange(40.0)
    state = {
        "embedding": embedding.weight,
        "head": head.weight,
        "copy": embedding.weight.detach().clone(),
        "transposed": embedding.weight.detach().T,
        "lstm.ih": flat[:16].view(4, 4),
        "lstm.hh": flat[16:32].view(4, 4),
        "lstm.reshaped": flat[:16].view(2, 8),
        "lstm.ih again": flat[:16].view(4, 4),
        "lstm.bits": flat[:16].view(4, 4).view(torch.int32),
        "empty1": flat[:0],
        "empty2": flat[:0],
        "row": flat[None, :8],
        "row tied": torch.as_strided(flat, (1, 8), (77, 1)),  # the stride of a dimension of length one means nothing
    }
    # one zip storage has one dtype; the reinterpreted view is only possible in what a file may hold, not in what torch.save writes
    del state["lstm.bits"]
    with open_checkpoint(save(state)) as checkpoint:
        keys = {t.name: t.storage for t in checkpoint.tensors}
        groups: dict[Any, list[str]] = {}
        for name, key in keys.items():
            groups.setdefault(key, []).append(name)
        assert sorted(g for g in groups.values() if len(g) > 1) == [["embedding", "head"], ["lstm.ih", "lstm.ih again"], ["row", "row tied"]]
        assert keys["lstm.ih"].storage == keys["lstm.hh"].storage and keys["lstm.hh"].offset == 64


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.LSTM(3, 4, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 1, 3))[0].sum().backward()
    optimizer.step()
    return model, optimizer


def test_training_checkpoint_gives_the_model_alone(save: Any) -> None:
    model, optimizer = trained()
    value = {
        "epoch": 3,
        "args": {"lr": 0.1, "sizes": [1, 2, 3], "device": torch.device("cpu"), "dtype": torch.float32, "namespace": argparse.Namespace(a=1)},
        "model_state": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "optimizer_state": optimizer.state_dict(),
        "best": torch.tensor(0.5),
        "rng": torch.zeros(16, dtype=torch.uint8),
        "size": torch.Size([1, 2]),
        "numpy": np.float64(3.0),
        "array": np.zeros((2, 2)),
    }
    with open_checkpoint(save(value)) as checkpoint:
        assert_equal(checkpoint, {**model.state_dict(), "best": value["best"], "rng": value["rng"]})
        found = skips(checkpoint)
        assert found.pop("array").endswith("_reconstruct: not read")
        assert found == {
            "args.namespace": "pickled object of class argparse.Namespace: not read",
            "optimizer_states.0": "optimizer state, not weights",
            "optimizer_state": "optimizer state, not weights",
        }
    with open_checkpoint(save(optimizer.state_dict())) as checkpoint:
        assert checkpoint.tensors == () and skips(checkpoint) == {"(whole file)": "optimizer state, not weights"}


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({"model": {"w": 2}, "step": 1}, ["w"]),
        ({"checkpoint": {"model": {"w": 2, "b": 1}}}, ["w", "b"]),
        ({"model": {"w": 2}, "ema": {"w": 2}}, ["model.w", "ema.w"]),
        ({"model": {"w": 2}, "extra": 2}, ["model.w", "extra"]),
        ({"model": {"w": 2, "loss": 0}, "loss": 0}, ["w", "loss"]),
        ({"layers": [{"w": 2}, {"w": 2}]}, ["0.w", "1.w"]),
        ([2, 2], ["0", "1"]),
        (2, ["tensor"]),
        ({0: 2, 1: {"a": 2}}, ["0", "1.a"]),
    ],
    ids=str,
)
def test_names_of_nested_containers(value: Any, names: list[str], save: Any) -> None:
    def fill(node: Any) -> Any:  # a number stands for a tensor of so many dimensions
        if isinstance(node, dict):
            return {k: fill(v) if k != "step" else v for k, v in node.items()}
        return [fill(v) for v in node] if isinstance(node, list) else torch.zeros((2,) * node)

    with open_checkpoint(save(fill(value))) as checkpoint:
        assert [t.name for t in checkpoint.tensors] == names
        for name in names:
            checkpoint.read(name)


def test_shared_and_circular_containers_end(save: Any) -> None:
    bomb: Any = {"w": torch.zeros(2, 2)}
    for _ in range(60):
        bomb = {"a": bomb, "b": bomb}
    circle: list[Any] = []
    circle.append(circle)
    with open_checkpoint(save({"bomb": bomb, "circle": circle})) as checkpoint:
        assert len(checkpoint.tensors) == 1 and len(checkpoint.skipped) == 60


def test_tensors_that_are_not_dense(save: Any) -> None:
    value = {
        "w": torch.ones(2, 2),
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "expanded": torch.ones(1, 3).expand(5, 3),
        "conj": torch.ones(2, 2, dtype=torch.complex64).conj(),
        "half complex": torch.ones(2, dtype=torch.complex32),
        "quantized": torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8),
        "storage": torch.ones(3).untyped_storage() if save.kind == "torch-zip" else None,
    }
    with open_checkpoint(save(value)) as checkpoint:
        assert_equal(checkpoint, {"w": value["w"]})
        reasons = skips(checkpoint)
        assert reasons["sparse"] == reasons["csr"] == "sparse tensor: not read"
        assert reasons["quantized"] == "quantized tensor: its codes are not weights"
        assert reasons["expanded"].startswith("expanded view")
        assert reasons["conj"].startswith("conjugated")
        assert reasons["half complex"] == "dtype complex32: not decoded"
        assert len(reasons) == (7 if save.kind == "torch-zip" else 6)


def test_whole_pickled_module_is_refused_with_advice(save: Any) -> None:
    with pytest.raises(CheckpointError, match=r"class torch\.nn\.modules\.linear\.Linear.*state_dict\(\)"):
        open_checkpoint(save(torch.nn.Linear(2, 2)))
    with open_checkpoint(save({"model": torch.nn.Linear(2, 2), "w": torch.ones(2, 2)})) as checkpoint:
        assert [t.name for t in checkpoint.tensors] == ["w"] and "Linear" in skips(checkpoint)["model"]


def test_nothing_of_the_file_is_executed_and_torch_is_not_imported(save: Any, tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self) -> Any:
            return (Path.touch, (marker,))

    file = save({"w": torch.ones(2, 2), "attack": Attack()})
    code = f"""
import sys
from spectral_fast.checkpoints import open_checkpoint
with open_checkpoint({str(file)!r}) as c:
    assert c.read("w").tolist() == [[1, 1], [1, 1]]
    print(c.skipped)
assert "torch" not in sys.modules and "pickle" not in [m for m in sys.modules if m == "torch.serialization"]
"""
    done = run_python(code)
    done.check_returncode()
    assert "attack" in done.stdout and not marker.exists()


def test_module_dict_like_facenet(save: Any) -> None:
    """Nested modules with names of their own, buffers, shared parts."""
    model = torch.nn.ModuleDict({"conv1": torch.nn.Conv2d(3, 10, 3), "prelu1": torch.nn.PReLU(10), "tower": torch.nn.ModuleList([torch.nn.Linear(4, 4)] * 2)})
    with open_checkpoint(save({"state_dict": model.state_dict(), "arch": "pnet"})) as checkpoint:
        assert_equal(checkpoint, model.state_dict())
        keys = {t.name: t.storage for t in checkpoint.tensors}
        assert keys["tower.0.weight"] == keys["tower.1.weight"]
