"""How the compiled kernels for CUDA devices are called, with a stand-in for the module, whose device is the host's memory."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from krylov_rows import numbers

import spectral_fast as sf
from spectral_fast.kernels import cuda_kernels, numpy_kernels, select, torch_krylov, torch_lowrank


class OfTheHost:
    """Addresses in, results in place: eigenvalues by LAPACK, ``wrong`` of them by so much."""

    MOST_EIGENVALUES = 40
    MOST_SWEPT_ROWS = 12
    MOST_JACOBI_ROWS = 33
    MOST_BAND_ROWS = 90
    SWEEP_BLOCKS = 7

    def __init__(self, wrong: float = 0.0) -> None:
        self.wrong = wrong
        self.shapes: list[tuple[int, int]] = []
        self.sweeps: list[int] = []
        self.small: list[tuple[int, int, int]] = []
        self.settles = True
        self.bands: list[tuple[int, int]] = []

    def most_swept_rows(self, device: int) -> int:
        return self.MOST_SWEPT_ROWS if device == 3 else 0

    def most_band_rows(self, width: int, device: int) -> int:
        return self.MOST_BAND_ROWS if (width, device) == (32, 3) else 0

    def gram_schmidt_sweep(
        self, *, v: int, v_dtype: str, ld: int, t: int, w: int, w_dtype: str, n: int, minus: int, sums: int, work: int, dots: bool, device: int, stream: int
    ) -> None:
        assert t <= self.MOST_SWEPT_ROWS and (device, stream) == (3, 77)
        self.sweeps.append(t)
        kinds = {"float64": ctypes.c_double, "float32": ctypes.c_float, "bfloat16": ctypes.c_uint16}
        rows = np.zeros((0, n))
        if t:
            stored = np.ctypeslib.as_array(ctypes.cast(v, ctypes.POINTER(kinds[v_dtype])), ((t - 1) * ld + n,))
            rows = numbers(np.stack([stored[j * ld : j * ld + n] for j in range(t)]))
        vector = np.ctypeslib.as_array(ctypes.cast(w, ctypes.POINTER(kinds[w_dtype])), (n,))
        out = np.ctypeslib.as_array(ctypes.cast(sums, ctypes.POINTER(ctypes.c_double)), (t + 1,))
        np.ctypeslib.as_array(ctypes.cast(work, ctypes.POINTER(ctypes.c_double)), (self.SWEEP_BLOCKS * (t + 1),))[:] = np.nan
        x = vector.astype(np.float64)
        if minus:
            x -= np.ctypeslib.as_array(ctypes.cast(minus, ctypes.POINTER(ctypes.c_double)), (t,)) @ rows
            vector[:] = x
        out[:t] = rows @ x if dots else 0.0
        out[t] = x @ x + self.wrong

    def band_eigenvalues(self, *, band: int, batch: int, n: int, width: int, work: int, values: int, device: int, stream: int) -> None:
        assert 1 < n <= self.MOST_BAND_ROWS and width == 32 and (device, stream) == (3, 77)
        self.bands.append((batch, n))
        shapes = {band: (batch, n, 2 * width), work: (batch, 2 * n), values: (batch, n)}
        diagonals, room, out = (np.ctypeslib.as_array(ctypes.cast(at, ctypes.POINTER(ctypes.c_double)), shape) for at, shape in shapes.items())
        assert not diagonals[:, :, width + 1 :].any(), "room for the bulges"
        dense = np.zeros((batch, n, n))
        for k in range(min(n, width + 1)):
            i = np.arange(n - k)
            dense[:, i + k, i] = dense[:, i, i + k] = diagonals[:, : n - k, k]
        out[:] = np.linalg.eigvalsh(dense)[:, ::-1] + self.wrong
        diagonals[:] = room[:] = np.nan

    def jacobi_rows(self, *, x: int, batch: int, r: int, n: int, u: int, done: int, device: int, stream: int) -> None:
        assert r <= self.MOST_JACOBI_ROWS and (device, stream) == (3, 77)
        self.small.append((batch, r, n))
        shapes = {x: (batch, r, n), u: (batch, r, r), done: (batch,)}
        rows, turned, settled = (np.ctypeslib.as_array(ctypes.cast(at, ctypes.POINTER(ctypes.c_double)), shape) for at, shape in shapes.items())
        left, values, right = np.linalg.svd(rows, full_matrices=False)
        order = np.random.default_rng(r).permutation(r)  # the rows come in no order
        rows[:] = (values[..., None] * right)[:, order] + self.wrong
        turned[:] = np.swapaxes(left, 1, 2)[:, order]
        settled[:] = self.settles

    def symmetric_eigenvalues(self, *, a: int, batch: int, n: int, values: int, device: int, stream: int) -> None:
        assert n <= self.MOST_EIGENVALUES and (device, stream) == (3, 77)
        self.shapes.append((batch, n))
        matrices = np.ctypeslib.as_array(ctypes.cast(a, ctypes.POINTER(ctypes.c_double)), (batch, n, n))
        out = np.ctypeslib.as_array(ctypes.cast(values, ctypes.POINTER(ctypes.c_double)), (batch, n))
        out[:] = np.linalg.eigvalsh(matrices)[:, ::-1] + self.wrong
        matrices[:] = np.nan  # the kernel destroys them


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[OfTheHost]:
    standing_in = OfTheHost()
    monkeypatch.setattr(cuda_kernels, "_cuda", standing_in, raising=False)
    monkeypatch.setattr(cuda_kernels, "_where", lambda device: (3, 77))
    monkeypatch.setattr(cuda_kernels, "LOOKED_AT", (1, 2, 31))
    monkeypatch.setattr(cuda_kernels, "LARGE_LOOKED_AT", (45,))
    checks = (
        cuda_kernels._agrees_with_torch,
        cuda_kernels._bands_agree_with_torch,
        cuda_kernels._sweeps_agree_with_torch,
        cuda_kernels._small_svds_agree_with_torch,
    )
    for check in checks:
        check.cache_clear()
    yield standing_in
    for check in checks:
        check.cache_clear()


@pytest.mark.parametrize("shape", [(5, 7, 7), (3, 90, 12), (4, 12, 90), (2, 1, 1), (2, 40, 41)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values(shape: tuple[int, int, int], dtype: torch.dtype, module: OfTheHost) -> None:
    a = torch.from_numpy(np.random.default_rng(0).standard_normal(shape)).to(dtype)
    before = a.clone()
    got = cuda_kernels.singular_values(a).numpy()
    want = numpy_kernels.singular_values(a.double().numpy())
    assert np.abs(got**2 - want**2).max() <= 1e-13 * (want**2).max()
    assert torch.equal(a, before)
    assert module.shapes[-1] == (shape[0], min(shape[1:]))


def test_what_is_left_to_torch(module: OfTheHost) -> None:
    a = torch.rand(2, 50, 50, dtype=torch.float64)
    cuda_kernels.singular_values(a[:1])  # a large one alone
    cuda_kernels.singular_values(torch.rand(2, 91, 100))
    assert module.bands == [] and module.shapes == []
    cuda_kernels.singular_values(a[:, :9], accuracy="high")
    cuda_kernels.singular_values(torch.zeros(2, 0, 5))
    cuda_kernels.singular_values(a[:, :9] * (1 + 2j))
    assert (2, 50) not in module.shapes and (2, 9) not in module.shapes
    spoiled = a[:, :9].clone()
    spoiled[0, 0, 0] = torch.nan
    s = cuda_kernels.singular_values(spoiled)
    assert s[0].isnan().all() and torch.isfinite(s[1]).all()


@pytest.mark.parametrize("shape", [(2, 41, 41), (3, 200, 66), (5, 70, 90)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_large_ones_in_two_stages(shape: tuple[int, int, int], dtype: torch.dtype, module: OfTheHost) -> None:
    a = torch.from_numpy(np.random.default_rng(0).standard_normal(shape)).to(dtype)
    a[1] = 0.0  # whose panels are no basis
    before = a.clone()
    got = cuda_kernels.singular_values(a).numpy()
    want = numpy_kernels.singular_values(a.double().numpy())
    assert np.abs(got**2 - want**2).max() <= 1e-13 * (want**2).max() and not got[1].any()
    assert torch.equal(a, before) and module.bands == [(3, 45), (shape[0], min(shape[1:]))]


def test_two_stages_that_are_wrong_here_are_told_of_and_not_used(module: OfTheHost) -> None:
    module.wrong = 1e-6
    a = torch.rand(2, 50, 60, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="the compiled .* differs? from torch's on cpu: torch's (is|are) used"):
        s = cuda_kernels.singular_values(a)
    assert np.allclose(s.numpy(), np.linalg.svd(a.numpy(), compute_uv=False), atol=1e-13) and (2, 50) not in module.bands


def test_a_kernel_that_is_wrong_here_is_told_of_and_not_used(module: OfTheHost) -> None:
    module.wrong = 1e-6
    a = torch.rand(2, 6, 9, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="the compiled eigenvalues of 1 x 1 matrices differ from torch's on cpu: torch's are used"):
        s = cuda_kernels.singular_values(a)
    assert np.allclose(s.numpy(), np.linalg.svd(a.numpy(), compute_uv=False), atol=1e-13)
    seen = len(module.shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cuda_kernels.singular_values(a)
    assert len(module.shapes) == seen


@pytest.mark.parametrize("w_dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("t", "b"), [(0, 1), (1, 1), (5, 3), (12, 2), (14, 1)])
def test_orthogonalize(t: int, b: int, dtype: torch.dtype, w_dtype: torch.dtype, module: OfTheHost) -> None:
    n = 50
    rng = np.random.default_rng(t)
    basis = torch.zeros(t + b, n + 3, dtype=dtype)[:, :n]  # rows apart
    basis[:t] = torch.from_numpy(np.linalg.qr(rng.standard_normal((n, t)))[0].T)
    w = torch.from_numpy(rng.standard_normal((b, n))).to(w_dtype)
    other, x = basis.clone(), w.clone()
    got = cuda_kernels.orthogonalize(basis, t, w, np.zeros(b), relative=1e-6)
    wanted = torch_krylov.orthogonalize(other, t, x, np.zeros(b), relative=1e-6)
    assert np.array_equal(got[1], wanted[1])
    assert np.allclose(got[0], wanted[0], atol=1e-6) and torch.allclose(basis.double(), other.double(), atol=1e-2 if dtype == torch.bfloat16 else 1e-6)
    assert (t in module.sweeps) == (t <= module.MOST_SWEPT_ROWS)


def test_a_sweep_that_is_wrong_here_is_told_of_and_not_used(module: OfTheHost) -> None:
    module.wrong = 1.0
    basis, w = torch.zeros(2, 9, dtype=torch.float64), torch.ones(1, 9, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="the compiled sweep of 0 rows of 3 numbers differs from torch's on cpu: torch's is used"):
        c, _ = cuda_kernels.orthogonalize(basis, 0, w, np.zeros(1))
    assert c[0, 0] == 3.0


def _decomposes(b: torch.Tensor) -> None:
    left, values, right = cuda_kernels.small_svd(b)
    one = torch.eye(b.shape[1], dtype=b.dtype).expand(len(b), -1, -1)
    assert torch.allclose(left.mT @ left, one, atol=1e-12) and torch.allclose(right @ right.mT, one, atol=1e-12)
    assert torch.allclose((left * values[:, None]) @ right, b, atol=1e-12) and bool((values.diff(dim=1) <= 0.0).all())
    assert torch.allclose(values, torch.linalg.svdvals(b), atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 3, 3), (3, 16, 70), (2, 33, 34), (2, 34, 40), (0, 3, 5), (2, 0, 4)])
def test_small_svd(shape: tuple[int, int, int], module: OfTheHost) -> None:
    b = torch.from_numpy(np.random.default_rng(1).standard_normal(shape))
    before = b.clone()
    _decomposes(b)
    assert torch.equal(b, before) and (shape in module.small) == (shape[0] > 0 and 0 < shape[1] <= module.MOST_JACOBI_ROWS)


@pytest.mark.parametrize("settles", [True, False])
def test_small_svd_of_matrices_that_rotations_do_not_finish(settles: bool, module: OfTheHost) -> None:
    """Without full rank, zero, or not settled: torch's for these alone, or for all."""
    module.settles = settles
    b = torch.from_numpy(np.random.default_rng(2).standard_normal((5, 6, 20)))
    b[1, 3] = b[1, 2]
    b[3] = 0.0
    _decomposes(b)


@pytest.mark.parametrize("options", [{}, {"method": "krylov"}, {"method": "sketch"}, {"tol": 1e-3}])
def test_randomized_svd(options: dict[str, Any], module: OfTheHost) -> None:
    a = torch.from_numpy(np.random.default_rng(3).standard_normal((3, 50, 28)) * 0.7 ** np.arange(28))
    got, want = cuda_kernels.randomized_svd(a, rank=5, **options), torch_lowrank.randomized_svd(a, rank=5, **options)
    looked_at = 4  # and one of more rows than there are
    assert module.small[looked_at:] and {batch for batch, _, _ in module.small[looked_at:]} <= {1, 3}
    for one, other in zip(got, want, strict=True):
        assert torch.allclose(one.double(), other.double(), atol=1e-10)


def test_a_decomposition_that_is_wrong_here_is_told_of_and_not_used(module: OfTheHost) -> None:
    module.wrong = 1e-3
    a = torch.rand(2, 30, 20, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="the compiled decomposition of 1 x 1 matrices differs from torch's on cpu: torch's is used"):
        got = cuda_kernels.randomized_svd(a, rank=3)
    seen = len(module.small)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = cuda_kernels.randomized_svd(a, rank=3)
    assert len(module.small) == seen and torch.equal(got.s, again.s)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_public_function_leaves_tensors_where_they_are(dtype: torch.dtype, module: OfTheHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """sf.randomized_svd with the compiled backend of a device: (as if the CPU were one)."""
    monkeypatch.setattr(select, "BACKENDS", {**select.BACKENDS, "cpu": ("cuda", "torch")})
    monkeypatch.setattr(cuda_kernels, "why_not", "")
    a = torch.from_numpy(np.random.default_rng(3).standard_normal((2, 50, 28)) * 0.7 ** np.arange(28)).to(dtype)
    found = sf.randomized_svd(a, 5)
    assert found.backend == "cuda" and isinstance(found.u, torch.Tensor) and len(module.small) > 4
    want = torch.linalg.svdvals(a.double())[:, :5]
    assert torch.allclose(found.s.double(), want, rtol=1e-3)
    assert sf.svdvals(a).device.type == "cpu" and module.shapes
