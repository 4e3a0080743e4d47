"""The door between formats: bits widened to float32 whatever their layout, and the steps of matrices inside a tensor of codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from spectral_fast.linalg.arrays import CodedArray, RawArray, as_numpy, decode
from spectral_fast.metrics.rank import coded_noise

NAMES = ["bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"]
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "turned": lambda x: x.transpose(1, 2, 0),
    "part": lambda x: x[:, 1:3, ::-2],
    "repeated": lambda x: np.broadcast_to(x[:1], x.shape),
    "empty": lambda x: x[:0],
    "no axes": lambda x: x[2, 3, 4],
    "other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
}


def bits(name: str) -> np.ndarray:
    kind = np.uint16 if name == "bfloat16" else np.uint8
    return np.random.default_rng(0).integers(0, np.iinfo(kind).max, (4, 5, 7), dtype=kind, endpoint=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_bits_of_any_layout(name: str, layout: str) -> None:
    stored = np.asarray(LAYOUTS[layout](bits(name)))
    wanted = stored.astype(stored.dtype.newbyteorder("=")).view(getattr(ml_dtypes, name)).astype(np.float32)
    got = as_numpy(RawArray(stored, name))
    assert got.dtype == np.float32 and got.shape == stored.shape
    np.testing.assert_array_equal(got, wanted)
    assert got.flags.f_contiguous == stored.flags.f_contiguous or layout in ("part", "repeated", "turned")
    if layout not in ("other byte order", "repeated"):
        np.testing.assert_array_equal(as_numpy(stored.view(getattr(ml_dtypes, name))), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_torch_tensors(name: str) -> None:
    stored = bits(name)
    tensor = torch.from_numpy(stored.view(np.int16) if name == "bfloat16" else stored).view(getattr(torch, name))
    np.testing.assert_array_equal(as_numpy(tensor), tensor.float().numpy())
    np.testing.assert_array_equal(as_numpy(tensor.transpose(0, 2)), tensor.float().numpy().T)


def test_unknown_format() -> None:
    with pytest.raises(TypeError, match="^RawArray: unknown format 'float4'; known: bfloat16, "):
        as_numpy(RawArray(np.zeros(3, np.uint8), "float4"))
    with pytest.raises(ValueError, match="^raw: "):
        as_numpy(RawArray(np.zeros(3, np.uint8), "bfloat16"))


def test_decode_of_blocks() -> None:
    raw = np.full((2, 34), 2, np.uint8)
    raw[:, :2] = np.array([0x3C, 0])  # 1.0, the high byte first
    out, steps = np.empty((2, 32), np.float32), np.empty((2, 1), np.float32)
    decode(raw, out, format="Q8_0", steps=steps, byteorder="big")
    assert (out == 2.0).all() and (steps == 1.0).all()


@pytest.mark.parametrize("run", [16, 32])
@pytest.mark.parametrize(
    ("shape", "view", "part"),
    [
        ((12, 96), (1, 12, 96), 0),
        ((12, 96), (1, 12, 96), (0, slice(4, 8), slice(None))),
        ((12, 96), (1, 12, 96), (0, slice(None), slice(24, 72))),
        ((12, 96), (1, 12, 96), (0, slice(1, None, 3), slice(5, 90, 3))),
        ((12, 96), (1, 12, 96), (0, slice(None), slice(64, 72))),
        ((3, 5, 64), (3, 5, 64), 2),
        ((3, 5, 64), (3, 5, 64), (1, slice(0, 2), slice(40, 64))),
        ((6, 2, 2, 32), (1, 6, 128), 0),
        ((0, 32), (1, 0, 32), 0),
        ((4, 0), (1, 4, 0), 0),
    ],
)
def test_steps_of_a_matrix_and_its_noise(shape: tuple[int, ...], view: tuple[int, int, int], part: Any, run: int) -> None:
    """Against one step for every entry."""
    steps = np.random.default_rng(0).lognormal(0.0, 2.0, (*shape[:-1], shape[-1] // run)).astype(np.float32)
    coded = CodedArray(np.zeros(shape, np.float32), steps, "Q4_0", 4)
    every = np.repeat(steps, run, axis=-1).reshape(view)[part]
    found, columns = coded.steps_of(view, part)
    assert found.shape == (every.shape[0], len(columns)) and columns.sum() == every.shape[1] and (columns > 0).all()
    tau2 = np.square(every, dtype=np.float64) / 12
    wanted = np.sqrt(tau2.sum(axis=1).max(initial=0.0)) + np.sqrt(tau2.sum(axis=0).max(initial=0.0)) + 3 * np.sqrt(tau2.max(initial=0.0))
    noise = coded_noise(found, columns, 4, "Q4_0")
    assert noise.tolerance == pytest.approx(wanted, rel=1e-13) and (noise.precision, noise.format) == (4, "Q4_0")
