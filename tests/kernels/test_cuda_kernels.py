"""How the compiled kernels for CUDA devices are called, with a stand-in for the module, whose device is the host's memory."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from krylov_rows import numbers

from spectral_fast.kernels import cuda_kernels, numpy_kernels, torch_krylov


class OfTheHost:
    """Addresses in, results in place: eigenvalues by LAPACK, ``wrong`` of them by so much."""

    MOST_EIGENVALUES = 40
    MOST_SWEPT_ROWS = 12
    SWEEP_BLOCKS = 7

    def __init__(self, wrong: float = 0.0) -> None:
        self.wrong = wrong
        self.shapes: list[tuple[int, int]] = []
        self.sweeps: list[int] = []

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
    checks = cuda_kernels._agrees_with_torch, cuda_kernels._sweeps_agree_with_torch
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
    cuda_kernels.singular_values(a)
    cuda_kernels.singular_values(a[:, :9], accuracy="high")
    cuda_kernels.singular_values(torch.zeros(2, 0, 5))
    cuda_kernels.singular_values(a[:, :9] * (1 + 2j))
    assert (2, 50) not in module.shapes and (2, 9) not in module.shapes
    spoiled = a[:, :9].clone()
    spoiled[0, 0, 0] = torch.nan
    s = cuda_kernels.singular_values(spoiled)
    assert s[0].isnan().all() and torch.isfinite(s[1]).all()


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
