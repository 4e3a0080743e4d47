"""Overlaps of the gradients' top space with the Hessian's and the weights', against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

import spectral_fast as sf
from spectral_fast.diagnosis.overlaps import gradient_overlaps, overlap_with_weight

F64 = NDArray[np.float64]
K = 3


def problem() -> tuple[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)).double()
    return model, (torch.randn(60, 12).double(), torch.randint(0, 4, (60,)))


@pytest.fixture(scope="module")
def diagnosis() -> sf.Diagnosis:
    model, data = problem()
    return sf.diagnose(model, data, k=K, tol=1e-8, include=("weights", "gradients", "curvature"), progress=False)


def top(a: F64, k: int) -> F64:
    return np.asarray(np.linalg.eigh(a)[1][:, ::-1][:, :k])


def test_against_dense_matrices(diagnosis: sf.Diagnosis) -> None:
    model, (x, y) = problem()
    shapes = [p.shape for p in model.parameters()]
    flat = torch.nn.utils.parameters_to_vector(model.parameters()).detach()

    def loss(v: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        parts = [t.view(s) for t, s in zip(v.split([s.numel() for s in shapes]), shapes, strict=True)]
        return F.cross_entropy(torch.tanh(x @ parts[0].T + parts[1]) @ parts[2].T + parts[3], y)

    g = np.stack([torch.func.grad(loss)(flat, x[i : i + 1], y[i : i + 1]).numpy() for i in range(60)])
    values, vectors = np.linalg.eigh(np.cov(g.T))
    values, vectors = values[::-1][:K], vectors[:, ::-1][:, :K]
    hessian = torch.func.hessian(loss)(flat, x, y).numpy()
    want = np.linalg.svd(top(hessian, K).T @ vectors, compute_uv=False)
    found = diagnosis.overlaps
    assert found is not None and (found.directions, found.k_hessian, found.n_params) == (K, K, len(flat))
    np.testing.assert_allclose(found.cosines, want, atol=1e-6)
    assert found.hessian == pytest.approx(np.mean(want**2), abs=1e-6) and found.by_chance == K / len(flat)
    # the weights: left and right spaces from sums of M Mᵀ and Mᵀ M
    start = 0
    assert set(found.weights) == {"0.weight", "2.weight"}
    for (name, p), shape in zip(model.named_parameters(), shapes, strict=True):
        block = slice(start, start := start + p.numel())
        if p.ndim == 1:
            continue
        m = [v.reshape(shape) for v in vectors[block].T]
        rank = min(K, min(shape) // 4)
        u, _, vt = np.linalg.svd(p.detach().numpy())
        left = top(sum(s * a @ a.T for s, a in zip(values, m, strict=True)), rank)
        right = top(sum(s * a.T @ a for s, a in zip(values, m, strict=True)), rank)
        one = found.weights[name]
        assert one.rank == rank and one.by_chance == (rank / shape[0], rank / shape[1])
        assert one.output == pytest.approx(np.sum((u[:, :rank].T @ left) ** 2) / rank, abs=1e-6)
        assert one.input == pytest.approx(np.sum((vt[:rank] @ right) ** 2) / rank, abs=1e-6)


def test_they_are_reported(diagnosis: sf.Diagnosis) -> None:
    text = diagnosis.summary()
    for words in ("with the Hessian's", "top directions", "leading singular vectors", "signal share", "classes"):
        assert words in text
    assert diagnosis.to_dict()["overlaps"]["weights"]["0.weight"]["rank"] == 2


def test_what_is_left_out_is_said() -> None:
    model, data = problem()
    without = sf.diagnose(model, data, k=K, include=("gradients", "collapse"), layer="2", progress=False)
    assert without.overlaps is None and not any("overlaps" in n for n in without.notes)
    some = sf.diagnose(model, data, k=K, include=("gradients", "weights"), progress=False)
    assert some.overlaps is not None and some.overlaps.k_hessian == 0 and np.isnan(some.overlaps.hessian) and some.overlaps.weights
    op = sf.GradientCovariance(model, data)
    exact = sf.gradient_covariance(model, data)
    with pytest.raises(MemoryError, match="3 directions of 140 parameters need .* bytes|kB"):
        gradient_overlaps(op, exact, None, weights=True, k=3, max_memory=1000)


def test_aligned_and_orthogonal_spaces() -> None:
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((n, n)))[0] for n in (16, 24))
    w = (u * 2.0 ** -np.arange(16.0)) @ v[:, :16].T
    same = np.stack([np.outer(u[:, i], v[:, i]).ravel() for i in (0, 1)], axis=1)
    other = np.stack([np.outer(u[:, i], v[:, i]).ravel() for i in (14, 15)], axis=1)
    turned = np.stack([np.outer(u[:, i], v[:, 20 + i]).ravel() for i in (0, 1)], axis=1)
    for directions, output, inputs in ((same, 1.0, 1.0), (other, 0.0, 0.0), (turned, 1.0, 0.0)):
        found = overlap_with_weight(w, directions)
        assert found is not None and found.rank == 2 and (found.output, found.input) == (pytest.approx(output, abs=1e-12), pytest.approx(inputs, abs=1e-12))
    assert overlap_with_weight(np.zeros((16, 24)), same) is None
    assert overlap_with_weight(w, 0 * same) is None
    assert overlap_with_weight(rng.standard_normal((3, 24)), rng.standard_normal((72, 2))) is None
    # a convolution is a matrix of its outputs
    assert overlap_with_weight(w.reshape(16, 6, 2, 2), same) == overlap_with_weight(w, same)
    # large ones by random projection
    a, b = (np.linalg.qr(rng.standard_normal((n, 2)))[0] for n in (520, 530))
    big = 10.0 * a @ b.T + rng.standard_normal((520, 530)) / 100
    found = overlap_with_weight(big, np.outer(a[:, 0], b[:, 0]).ravel()[:, None])
    assert found is not None and found.rank == 1 and 0.0 <= found.output <= 1.0
