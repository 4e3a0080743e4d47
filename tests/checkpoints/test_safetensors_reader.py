"""The safetensors reader against the safetensors package, and against headers that break the format."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from children import run_python
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_fast.checkpoints import CheckpointError, open_checkpoint
from spectral_fast.linalg.arrays import RawArray

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


def random_bits(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Any bit pattern, NaN and subnormal numbers included; only 0 and 1 for bool."""
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    size = torch.empty(0, dtype=dtype).element_size()
    count = int(np.prod(shape))
    return torch.randint(0, 256, (count * size,), generator=generator, dtype=torch.uint8).view(dtype).reshape(shape)


def bits_of(x: Any) -> bytes:
    if isinstance(x, torch.Tensor):
        return bytes(x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()) if x.numel() else b""
    return (x.bits if isinstance(x, RawArray) else x).tobytes()


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"matrix": random_bits(dtype, (5, 7)), "scalar": random_bits(dtype, ()), "empty": random_bits(dtype, (3, 0)), "last": random_bits(dtype, (1,), 1)}
    file = tmp_path / "x.safetensors"
    safetensors.torch.save_file(tensors, file)
    with open_checkpoint(file) as checkpoint:
        assert checkpoint.format == "safetensors" and not checkpoint.skipped
        assert {t.name for t in checkpoint.tensors} == tensors.keys()
        for info in checkpoint.tensors:
            want = tensors[info.name]
            got = checkpoint.read(info.name)
            assert info.shape == tuple(want.shape) == got.shape
            assert info.dtype == str(want.dtype).removeprefix("torch.")
            assert info.nbytes == want.numel() * want.element_size()
            assert bits_of(got) == bits_of(want)
            if isinstance(got, np.ndarray):
                assert got.flags.c_contiguous and got.flags.writeable


@settings(max_examples=50, deadline=None)
@given(shapes=st.lists(st.lists(st.integers(0, 5), max_size=4).map(tuple), max_size=6), seed=st.integers(0, 99))
def test_round_trip_of_any_shapes(shapes: list[tuple[int, ...]], seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    dtypes = [DTYPES[(seed + i) % len(DTYPES)] for i in range(len(shapes))]
    tensors = {f"t{i}": random_bits(d, s, seed) for i, (d, s) in enumerate(zip(dtypes, shapes, strict=True))}
    file = tmp_path_factory.mktemp("round") / "x.safetensors"
    safetensors.torch.save_file(tensors, file)
    with open_checkpoint(file) as checkpoint:
        assert {t.name: (t.shape, bits_of(checkpoint.read(t.name))) for t in checkpoint.tensors} == {
            n: (tuple(t.shape), bits_of(t)) for n, t in tensors.items()
        }
        assert len({t.storage for t in checkpoint.tensors}) == len(tensors)  # nothing is tied, empty tensors neither


def test_metadata_and_padding(tmp_path: Path) -> None:
    raw = json.dumps({"__metadata__": {"format": "pt"}, "w": entry(0, 8)}).encode() + b"   "
    with open_checkpoint(write(tmp_path / "a", raw, bytes(8))) as checkpoint:  # found by content: the name has no suffix
        assert [t.name for t in checkpoint.tensors] == ["w"]
    safetensors.torch.save_file({}, tmp_path / "empty.safetensors", metadata={"k": "v"})
    with open_checkpoint(tmp_path / "empty.safetensors") as checkpoint:
        assert checkpoint.tensors == ()


def test_unknown_dtype_is_listed_and_the_rest_read(tmp_path: Path) -> None:
    header = {"four": entry(0, 4, [8], "F4"), "scale": entry(4, 8, [4], "F8_E8M0"), "w": entry(8, 16)}
    with open_checkpoint(write(tmp_path / "x.safetensors", header, struct.pack("<8x2f", 1.5, -2.0))) as checkpoint:
        assert [(s.name, s.reason) for s in checkpoint.skipped] == [("four", "dtype 'F4': not decoded"), ("scale", "dtype 'F8_E8M0': not decoded")]
        np.testing.assert_array_equal(checkpoint.read("w"), [1.5, -2.0])  # type: ignore[arg-type]
        with pytest.raises(KeyError):
            checkpoint.read("four")


def test_bool_bytes_beyond_one_are_true(tmp_path: Path) -> None:
    with open_checkpoint(write(tmp_path / "x.safetensors", {"b": entry(0, 3, [3], "BOOL")}, b"\0\1\x80")) as checkpoint:
        got = checkpoint.read("b")
        assert isinstance(got, np.ndarray) and got.tobytes() == b"\0\1\1"


W = entry(0, 8)
HOSTILE: dict[str, tuple[bytes | dict[str, Any], bytes]] = {
    "negative offset": ({"w": entry(-8, 0, [2])}, bytes(8)),
    "negative shape": ({"w": entry(0, 8, [-1, -2])}, bytes(8)),
    "reversed offsets": ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, bytes(8)),
    "beyond the file": ({"w": entry(0, 80)}, bytes(8)),
    "overlap": ({"a": W, "b": entry(4, 12)}, bytes(12)),
    "same bytes twice": ({"a": W, "b": W}, bytes(8)),
    "hole": ({"a": W, "b": entry(12, 16)}, bytes(16)),
    "hole at the beginning": ({"a": entry(4, 8)}, bytes(8)),
    "bytes behind the last": ({"a": W}, bytes(9)),
    "truncated data": ({"a": W}, bytes(7)),
    "size mismatch": ({"a": entry(0, 8, [3])}, bytes(8)),
    "shape overflow": ({"a": entry(0, 0, [2**40, 2**40])}, b""),
    "shape overflow to the right size": ({"a": entry(0, 8, [2**62, 2**62, 2, 2])}, bytes(8)),
    "empty shape too large for numpy": ({"a": entry(0, 0, [2**62, 2**62, 0])}, b""),
    "33 dimensions": ({"a": entry(0, 4, [1] * 33)}, bytes(4)),
    "offset 2**64": ({"a": {"dtype": "F32", "shape": [0], "data_offsets": [2**64, 2**64]}}, b""),
    "float shape": ({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}, bytes(8)),
    "true as a number": ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, bytes(4)),
    "string offsets": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": "08"}}, bytes(8)),
    "three offsets": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}}, bytes(8)),
    "dtype is a number": ({"a": {"dtype": 5, "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "dtype is a list": ({"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "missing key": ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "extra key": ({"a": {**W, "strides": [1]}}, bytes(8)),
    "entry is a list": ({"a": []}, b""),
    "metadata is a list": ({"__metadata__": []}, b""),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b""),
    "header is a list": (b"[]", b""),
    "header is a number": (b"17", b""),
    "header is empty": (b"", b""),
    "white space before": (b' {"__metadata__": {}}', b""),
    "two values": (b"{} {}", b""),
    "cut JSON": (b'{"a": {"dtype"', b""),
    "NaN": (b'{"a": NaN}', b""),
    "duplicate name": (b'{"a": %b, "a": %b}' % ((json.dumps(W).encode(),) * 2), bytes(8)),
    "duplicate key inside": (b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
    "invalid UTF-8": (b'{"\xff\xfe": 1}', b""),
    "lone surrogate": (b'{"\\ud800": %b}' % json.dumps(W).encode(), bytes(8)),
    "lone surrogate in the metadata": (b'{"__metadata__": {"a": "\\ud800"}}', b""),
    "deep nesting": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b""),
    "deep lists": (b'{"a":' + b"[" * 100_000, b""),
    "five million lists": (b'{"a":[' + b"[]," * 2_500_000 + b"[]]}", b""),
    "integer of 10,000 digits": (b'{"a": ' + b"9" * 10_000 + b"}", b""),
    "NUL bytes": (b"{" + bytes(100), b""),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers(case: str, tmp_path: Path) -> None:
    header, data = HOSTILE[case]
    file = write(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError, match="x.safetensors") as caught:
        open_checkpoint(file)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("raw", [b"", b"\x01", bytes(7), struct.pack("<Q", 2**63), struct.pack("<Q", 100_000_001) + b"{}", struct.pack("<Q", 50) + b"{}"])
def test_broken_lengths(raw: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match="x.safetensors"):
        open_checkpoint(file)


def test_every_truncation(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"a": torch.ones(3), "b": torch.zeros(2, 2)}, file)
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            open_checkpoint(file)


def test_a_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1000)}, file)
    checkpoint = open_checkpoint(file)
    with open(file, "r+b") as handle:
        handle.truncate(1000)
    with pytest.raises(CheckpointError, match="when it was opened"):
        checkpoint.read("a")
    checkpoint.close()
    checkpoint.close()
    with pytest.raises(CheckpointError, match="after close"):
        checkpoint.read("a")


def test_no_torch_is_imported_and_only_the_tensor_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"a": torch.arange(4.0), "b": torch.zeros(100_000)}, file)
    code = f"""
import sys, os
real, asked = os.preadv, []
os.preadv = lambda fd, buffers, offset: (asked.append(sum(len(b) for b in buffers)), real(fd, buffers, offset))[1]
from spectral_fast.checkpoints import open_checkpoint
with open_checkpoint({str(file)!r}) as c:
    opened = sum(asked)
    assert c.read("a").tolist() == [0, 1, 2, 3]
assert opened < 1000 and sum(asked) == opened + 16, asked
assert "torch" not in sys.modules and "safetensors" not in sys.modules
"""
    run_python(code).check_returncode()
