"""The .cu sources with their launches and bindings, compiled for the CPU (see csrc/tests/cuda_on_cpu): the ops as ``cuda_kernels`` calls them.

What a GPU alone has is not seen: its memory model, its instructions, its time. What is seen: indices, shared memory, strides, streams, barriers.
"""

from __future__ import annotations

import importlib.util
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spectral_fast.kernels import cuda_kernels, numpy_kernels, torch_krylov, torch_lowrank

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(shutil.which("c++") is None or importlib.util.find_spec("pybind11") is None, reason="needs a C++ compiler and pybind11"),
]

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = runpy.run_path(str(ROOT / "csrc/tests/cuda_on_cpu/build.py"))["build"](tmp_path_factory.mktemp("cuda"))
    spec = importlib.util.spec_from_file_location("_cuda", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["shared memory", "little of it"])
def kernels(built: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(cuda_kernels, "_cuda", built, raising=False)
    monkeypatch.setattr(cuda_kernels, "_where", lambda device: (0, 4711))
    monkeypatch.setenv("SF_STREAM", "4711")
    if request.param == "little of it":
        monkeypatch.setenv("SF_SHARED_BYTES", str(13 << 10))
    yield cuda_kernels


def _gram(n: int, batch: int, rank: int | None = None) -> torch.Tensor:
    x = torch.randn(batch, n, n if rank is None else rank, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    return x @ x.mT


ONE_BLOCK, TWO_STAGES = "symmetric_eigenvalues", "two_stage_eigenvalues"


@pytest.mark.parametrize(("way", "n"), [*((ONE_BLOCK, n) for n in (1, 2, 3, 31, 32, 33, 64, 70, 130)), *((TWO_STAGES, n) for n in (3, 20, 33, 34, 65, 74))])
def test_eigenvalues(way: str, n: int, kernels: Any) -> None:
    gram = _gram(n, 3 if way == ONE_BLOCK else 2)
    gram[1] = _gram(n, 1, rank=2)[0]
    want = torch.linalg.eigvalsh(gram).flip(-1)
    got = getattr(kernels, way)(gram.clone())
    assert bool(((got - want).abs() <= 1e-14 * n**0.5 * want[:, :1]).all())


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (5, 40), (9, 9), (16, 70), (24, 100)])
def test_small_svd(shape: tuple[int, int], kernels: Any) -> None:
    b = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b[1] *= torch.logspace(0, -9, shape[0], dtype=torch.float64)[:, None]
    left, values, right = kernels.small_svd(b)
    one = torch.eye(shape[0], dtype=b.dtype)
    assert float((left.mT @ left - one).abs().max()) < 1e-13 and float((right @ right.mT - one).abs().max()) < 1e-13
    assert float(((left * values[:, None]) @ right - b).abs().max()) < 1e-13 and bool((values.diff(dim=1) <= 0.0).all())


def test_randomized_svd(kernels: Any) -> None:
    a = torch.randn(2, 60, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.8 ** torch.arange(40)
    got, want = torch_lowrank.randomized_svd(a, rank=4, decompose=kernels.small_svd), torch_lowrank.randomized_svd(a, rank=4)
    for one, other in zip(got, want, strict=True):
        assert torch.allclose(one.double(), other.double(), atol=1e-10)


@pytest.mark.parametrize("w_dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("t", "n"), [(0, 1), (1, 127), (5, 2049), (9, 300), (12, 70_001)])
def test_sweeps(t: int, n: int, dtype: torch.dtype, w_dtype: torch.dtype, kernels: Any) -> None:
    g = torch.Generator().manual_seed(n)
    v = torch.randn(t, n + 3, generator=g).to(dtype)[:, :n]
    for minus in (None, torch.randn(t, 2, generator=g, dtype=torch.float64)):
        for dots in (True, False):
            w = torch.randn(2, n, generator=g, dtype=torch.float64).to(w_dtype)
            other = w.clone()
            got, want = kernels.sweep_sums(v, w, minus, dots), torch_krylov.sums_of(v, other, minus, dots)
            assert torch.allclose(w, other, rtol=0, atol=1e-5 if w_dtype == torch.float32 else 1e-12)
            assert float((got - want).abs().max()) <= (1e-4 if w_dtype == torch.float32 else 1e-12) * float(want.abs().max())


def test_power_law(built: Any) -> None:
    rng = np.random.default_rng(0)
    parts = [np.sort((1.0 - rng.random(n)) ** -0.8) for n in (60, 1, 2, 150)]
    x, offsets = np.concatenate(parts), np.cumsum([0, *map(len, parts)])
    alpha, deviation, best, work = np.empty(len(x)), np.empty(len(x)), np.empty(len(parts), dtype=np.int64), np.empty(3 * len(x))
    at = {"values": x, "offsets": offsets, "alpha": alpha, "D": deviation, "best": best, "work": work}
    built.power_law(**{name: array.ctypes.data for name, array in at.items()}, total=len(x), n_spectra=len(parts), device=0, stream=0)
    want = numpy_kernels.power_law(x, offsets)
    for got, wanted in zip((alpha, deviation), want[:2], strict=True):
        assert np.array_equal(np.isnan(got), np.isnan(wanted)) and np.nanmax(np.abs(got / wanted - 1.0)) < 1e-9
    assert np.array_equal(best, want[2])


def test_errors_name_the_kernel_and_its_launch(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SF_STREAM", "5")
    gram, values = np.eye(4), np.empty(4)
    with pytest.raises(RuntimeError, match=r"eigenvalues_kernel in 1 blocks of 32 threads with \d+ bytes of shared memory on device 0: invalid argument"):
        built.symmetric_eigenvalues(a=gram.ctypes.data, batch=1, n=4, values=values.ctypes.data, device=0, stream=6)
    monkeypatch.setenv("SF_SHARED_BYTES", "13000")
    most = built.most_band_rows(32, 0)
    assert most > 0 and built.most_swept_rows(0) == 11
    with pytest.raises(ValueError, match="band: wanted 1 to 64 diagonals, and as many rows as most_band_rows says"):
        built.band_eigenvalues(band=0, batch=1, n=most + 1, width=32, work=0, values=0, device=0, stream=5)


def test_devices_with_less_shared_memory_take_fewer_rows(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for kilobytes in (13, 64, 99, 163, 227):
        monkeypatch.setenv("SF_SHARED_BYTES", str(kilobytes << 10))
        n, t = built.most_band_rows(32, 0), built.most_swept_rows(0)
        slots = (n // 32 + 1) // 2 + 2
        assert 8 * (slots * 33 + 16 * 64) <= kilobytes << 10 and 8 * ((t + 1) * 128 + t) <= kilobytes << 10
        assert t == 160 or 8 * ((t + 2) * 128 + t + 1) > kilobytes << 10
    assert n == 1 << 15 and t == 160
