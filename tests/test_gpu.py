"""On a GPU: every op for the shapes and formats of the CPU's suite, and the public functions against those of the CPU. See benchmarks/gpu/check.sh."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from krylov_rows import FORMATS, numbers, stored

import spectral_fast as sf
from spectral_fast.kernels import cuda_kernels, numpy_kernels, torch_kernels
from spectral_fast.kernels.select import OPS, select

pytestmark = pytest.mark.gpu

SHAPES = [
    (1, 1),
    (2, 2),
    (3, 5),
    (7, 7),
    (16, 16),
    (32, 32),
    (33, 33),
    (40, 17),
    (64, 100),
    (100, 64),
    (128, 128),
    (170, 160),
    (512, 300),
    (600, 513),
    (1100, 1030),
]


def test_every_op_is_there() -> None:
    for op, backends in OPS.items():
        if {"torch", "cuda"} & set(backends):
            assert select(op, device="cuda:0")[1] in ("torch", "cuda")
    where = torch.device("cuda", 0)
    assert not cuda_kernels.why_not and cuda_kernels._agrees_with_torch(where) and cuda_kernels._sweeps_agree_with_torch(where)
    assert cuda_kernels._small_svds_agree_with_torch(where)


@pytest.mark.parametrize("backend", ["cuda", "torch"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("accuracy", ["standard", "high", "fast"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_singular_values(shape: tuple[int, int], accuracy: str, dtype: torch.dtype, backend: str) -> None:
    rng = np.random.default_rng(0)
    a = torch.from_numpy(rng.standard_normal((5, *shape)) * np.geomspace(1, 1e-6, shape[1])).to(dtype)
    a[3] = 0
    a[4, -1, -1] = torch.nan
    want, bound = sf.svdvals(a.double().numpy(), accuracy="high", return_bound=True)
    got, allowed = (x.cpu().numpy() for x in sf.svdvals(a.cuda(), accuracy=accuracy, return_bound=True, backend=backend))
    assert np.isnan(got[4]).all() and not got[3].any()
    assert (np.abs(got[:3] - want[:3]) <= bound[:3] + allowed[:3]).all()


@pytest.mark.parametrize("n", [31, 128, 160, 400])
def test_many_matrices_and_other_streams(n: int) -> None:
    a = torch.randn(300, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    want = torch.linalg.svdvals(a[:4])
    with torch.cuda.stream(torch.cuda.Stream()):
        there = a.cuda()
        got = sf.svdvals(there)
        again = sf.svdvals(there)
        alone = sf.svdvals(there[7])
    torch.cuda.synchronize()
    assert torch.equal(got, again)
    assert torch.allclose(got[:4].cpu(), want, rtol=0, atol=1e-7 * float(want.max()))
    assert torch.allclose(alone, got[7], rtol=0, atol=1e-7 * float(want.max()))


@pytest.mark.parametrize("options", [{}, {"method": "subspace"}, {"method": "krylov"}, {"method": "sketch"}, {"tol": 1e-2}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_randomized_svd(dtype: torch.dtype, options: dict[str, Any]) -> None:
    a = (torch.randn(3, 200, 150, generator=torch.Generator().manual_seed(0)) / torch.arange(1, 151)).to(dtype)
    want, got = sf.randomized_svd(a, 8, **options), sf.randomized_svd(a.cuda(), 8, **options)
    assert got.u.is_cuda and got.status == want.status
    assert torch.allclose(got.s.cpu().double(), want.s.double(), rtol=1e-3)
    left = torch.linalg.matrix_norm(a.double() - (got.u.double() * got.s.double()[:, None] @ got.vt.double()).cpu(), 2)
    assert (left <= got.error.cpu() * (1 + 1e-9)).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (2, 2), (5, 9), (16, 128), (33, 33), (40, 1024), (70, 300), (256, 256), (257, 300)], ids=str)
def test_small_svd(shape: tuple[int, int]) -> None:
    """In shared memory and in the device's, of full rank, of less, zero."""
    b = torch.randn(7, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b[2] *= torch.logspace(0, -9, shape[0], dtype=torch.float64)[:, None]
    b[3, -1] = b[3, 0]
    b[5] = 0.0
    left, values, right = (x.cpu() for x in cuda_kernels.small_svd(b.cuda()))
    one = torch.eye(shape[0], dtype=b.dtype)
    top = torch.linalg.matrix_norm(b, 2).clamp_min(1e-300)[:, None]
    assert float((left.mT @ left - one).abs().max()) < 1e-12 and float((right @ right.mT - one).abs().max()) < 1e-12
    assert float(((left * values[:, None]) @ right - b).abs().amax((1, 2)).div(top[:, 0]).max()) < 1e-12
    assert bool(((values - torch.linalg.svdvals(b)).abs() <= 1e-13 * shape[0] * top).all()) and bool((values.diff(dim=1) <= 0.0).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_class_moments(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(3000, 70, generator=g).to(dtype), torch.randint(-1, 9, (3000,), generator=g)
    state = [np.zeros(9, np.int64), np.zeros((9, 70)), np.zeros((70, 70)), np.zeros(9)]
    there = [torch.from_numpy(part).cuda() for part in state]
    for part in (slice(0, 1000), slice(1000, 1003), slice(1003, 3000)):
        numpy_kernels.class_moments(x[part].double().numpy(), y[part].numpy(), *state)
        torch_kernels.class_moments(x[part].cuda(), y[part].cuda(), *there)
    for got, want in zip(there, state, strict=True):
        assert np.abs(got.cpu().numpy() - want).max() <= 1e-12 * np.abs(want).max()


@pytest.mark.parametrize("kernels", [cuda_kernels, torch_kernels], ids=["cuda", "torch"])
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("n", [1, 17, 1000, 100_003])
def test_orthogonalize(n: int, kind: str, kernels: Any) -> None:
    rng = np.random.default_rng(n)
    t = min(6, n - 1)
    rows = np.zeros((t + 3, n), dtype=kind)
    rows[:t] = stored(np.linalg.qr(rng.standard_normal((n, t)))[0].T, kind)
    w = rng.standard_normal((2, n))
    there = torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16).cuda() if kind == "uint16" else torch.from_numpy(rows).cuda()
    c, kept = kernels.orthogonalize(there, t, torch.from_numpy(w.copy()).cuda(), np.zeros(2), relative=1e-6)
    expected, its = numpy_kernels.orthogonalize(rows, t, w.copy(), np.zeros(2), relative=1e-6)
    assert np.array_equal(kept, its)
    got = there.double().cpu().numpy()
    unit = {"float64": 1e-13, "float32": 1e-6, "uint16": 0.02}[kind]
    new = t + int(kept.sum())
    assert np.abs(got[:new] - numbers(rows[:new])).max(initial=0.0) <= unit * 3
    assert np.abs(c - expected).max(initial=0.0) <= max(unit, 1e-12) * np.linalg.norm(w)


@pytest.mark.parametrize("algorithm", ["positions", "gradients"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("tf32", [False, True])
def test_gradient_gram(tf32: bool, dtype: torch.dtype, algorithm: str) -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(40, 9, 300, generator=g, dtype=dtype), torch.randn(40, 9, 70, generator=g, dtype=dtype)
    want, got = np.zeros((40, 40)), torch.zeros(40, 40, dtype=torch.float64, device="cuda")
    numpy_kernels.gradient_gram(want, a.numpy(), b.numpy(), algorithm=algorithm)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        torch_kernels.gradient_gram(got, a.cuda(), b.cuda(), algorithm=algorithm)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert np.abs(got.cpu().numpy() - want).max() <= (1e-12 if dtype == torch.float64 else 1e-5) * np.abs(want).max()


def network() -> tuple[torch.nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    x, y = torch.randn(60, 1, 8, 8), torch.arange(60) % 3
    layers = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.Tanh(), torch.nn.Conv2d(4, 6, 3), torch.nn.Tanh(), torch.nn.Flatten()
    return torch.nn.Sequential(*layers, torch.nn.Linear(216, 3)).eval(), [(x[:35], y[:35]), (x[35:], y[35:])]


@pytest.mark.parametrize("kind", ["Hessian", "GGN", "GradientCovariance"])
def test_operators(kind: str) -> None:
    model, batches = network()
    want = sf.eigsh(getattr(sf, kind)(model, batches, "cross_entropy"), 5)
    got = sf.eigsh(getattr(sf, kind)(copy.deepcopy(model).cuda(), batches, "cross_entropy"), 5)
    assert got.status == want.status == "ok"
    assert np.allclose(got.values, want.values, rtol=5e-3)


def test_gradient_covariance_and_diagnose() -> None:
    model, batches = network()
    want, got = (sf.gradient_covariance(m, batches, "cross_entropy") for m in (model, copy.deepcopy(model).cuda()))
    assert got.backend == "torch, torch"
    assert np.allclose(got.eigenvalues, want.eigenvalues, atol=1e-4 * want.eigenvalues[0])
    d = sf.diagnose(copy.deepcopy(model).cuda(), batches, "cross_entropy", progress=False)
    assert d.status == "ok", d.reason
    assert d.collapse is not None and d.collapse.status == "ok"


def test_scan(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    g = torch.Generator().manual_seed(0)
    save_file({f"{i}.weight": torch.randn(96, 40 + 50 * i, generator=g).bfloat16() for i in range(12)}, tmp_path / "w.safetensors")
    want, got = sf.scan(tmp_path / "w.safetensors", progress=False), sf.scan(tmp_path / "w.safetensors", progress=False, device="cuda")
    assert "singular values: cuda" in got.backend
    for a, b in zip(want.matrices, got.matrices, strict=True):
        assert a.ranks == b.ranks and np.abs(a.s - b.s).max() <= a.bound + b.bound
