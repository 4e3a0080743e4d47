"""The articles' own method against ``diagnose``: the same numbers, the same process.

The plain way, as the articles write it: eigvals of W Wᵀ and a full SVD per layer, one gradient per sample kept side by side, the dense
Hessian row by row and all its eigenvalues (where it fits), class means and scatter for neural collapse. Every number is compared before
anything is timed. Each part is timed apart as well, so that one slow part of the plain way cannot carry the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import spectral_fast as sf

K, K_BOTTOM = 10, 3
TOL = 1e-6  # relative residual; an eigenvalue's error is about its square


def trained(widths: tuple[int, ...], seed: int, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    data = load_digits()
    x, y = torch.tensor(data.data / 16.0, dtype=dtype), torch.tensor(data.target)
    layers: list[torch.nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1]).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


def plain_weights(model: torch.nn.Module) -> dict[str, float]:
    out = {}
    for name, p in model.named_parameters():
        if p.ndim == 2:
            w = p.detach().numpy()
            evals = np.sort(np.abs(np.linalg.eigvals(w @ w.T)))[::-1]
            s = np.linalg.svd(w)[1]
            out[f"{name} lambda_max"], out[f"{name} s_min"] = float(evals[0]), float(s[-1])
    return out


def plain_gradients(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    rows = []
    for i in range(len(x)):
        loss = torch.nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]))
    g = torch.stack(rows).double().numpy()
    g -= g.mean(axis=0)
    # whichever of the covariance and the Gram matrix is smaller
    evals = np.linalg.eigvalsh(g @ g.T if len(g) <= g.shape[1] else g.T @ g)[::-1] / (len(g) - 1)
    return {"gradient eigenvalue 1": float(evals[0]), "gradient eigenvalue 10": float(evals[9]), "gradient trace": float(evals.sum())}


def plain_hessian(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    parameters = list(model.parameters())
    loss = torch.nn.functional.cross_entropy(model(x), y)
    g = torch.cat([v.reshape(-1) for v in torch.autograd.grad(loss, parameters, create_graph=True)])
    h = torch.stack([torch.cat([v.reshape(-1) for v in torch.autograd.grad(g[i], parameters, retain_graph=True)]) for i in range(len(g))])
    evals = np.linalg.eigvalsh(h.double().numpy())[::-1]
    return {"Hessian eigenvalue 1": float(evals[0]), f"Hessian eigenvalue {K}": float(evals[K - 1]), "Hessian smallest": float(evals[-1])}


def plain_collapse(model: Any, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    with torch.no_grad():
        h = model[:-1](x).double().numpy()
    labels = y.numpy()
    means = np.stack([h[labels == c].mean(axis=0) for c in range(10)])
    within = sum((h[labels == c] - means[c]).T @ (h[labels == c] - means[c]) for c in range(10)) / len(h)
    return {"NC1": float(np.trace(within @ np.linalg.pinv(np.cov(means.T, bias=True), rcond=1e-9)) / 10)}


def our_weights(model: torch.nn.Module) -> dict[str, float]:
    return {f"{m.name} {k}": m.metrics[k] for m in sf.scan(model, progress=False) for k in ("lambda_max", "s_min")}


def our_gradients(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    g = sf.gradient_covariance(model, (x, y), progress=False)
    return {"gradient eigenvalue 1": g.eigenvalues[0], "gradient eigenvalue 10": g.eigenvalues[9], "gradient trace": g.trace}


def our_hessian(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """More than asked for: the GGN, the density and the trace by layer come with it."""
    c = sf.curvature_spectra(model, (x, y), k=K, k_bottom=K_BOTTOM, tol=TOL, progress=False)
    assert c.hessian_top is not None and c.hessian_bottom is not None
    return {
        "Hessian eigenvalue 1": c.hessian_top.values[0],
        f"Hessian eigenvalue {K}": c.hessian_top.values[K - 1],
        "Hessian smallest": c.hessian_bottom.values[-1],
    }


def our_collapse(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    return {"NC1": sf.neural_collapse(model, (x, y), progress=False).nc1}


def same_numbers(ours: dict[str, float], plain: dict[str, float], relative: float) -> None:
    """Relative to the largest value of the same kind (an eigenvalue list has one scale)."""
    assert set(ours) == set(plain)
    for name, value in plain.items():
        scale = max(abs(v) for n, v in plain.items() if n.split()[0] == name.split()[0])
        assert abs(ours[name] - value) <= relative * scale, (name, ours[name], value)


Against = Callable[..., dict[str, float]]
PARTS: dict[str, tuple[Callable[..., dict[str, float]], Callable[..., dict[str, float]]]] = {
    "weights": (lambda m, x, y: our_weights(m), lambda m, x, y: plain_weights(m)),
    "gradients": (our_gradients, plain_gradients),
    "Hessian": (our_hessian, plain_hessian),
    "collapse": (our_collapse, plain_collapse),
}


@pytest.mark.parametrize("part", PARTS)
def test_part(part: str, against: Against, request: pytest.FixtureRequest) -> None:
    """64-32-10 net, float64, 500 digits: one part at a time."""
    model, x, y = trained((64, 32, 10), request.config.getoption("--seed"), torch.float64)
    x, y = x[:500], y[:500]
    ours, plain = PARTS[part]
    same_numbers(ours(model, x, y), plain(model, x, y), 1e-6)
    against(lambda: ours(model, x, y), {"the article's way": lambda: plain(model, x, y)}, rounds=3)


def test_whole_diagnosis(against: Against, request: pytest.FixtureRequest) -> None:
    """64-32-10 net, float64, 500 digits: everything, ours with GGN, density, traces, per-layer spectra and findings besides."""
    model, x, y = trained((64, 32, 10), request.config.getoption("--seed"), torch.float64)
    x, y = x[:500], y[:500]

    def plain() -> None:
        for _, article in PARTS.values():
            article(model, x, y)

    ratios = against(lambda: sf.diagnose(model, (x, y), tol=TOL, progress=False), {"the article's way": plain}, rounds=3)
    assert ratios["the article's way"] > 1


def test_medium_net_with_its_dense_hessian(against: Against, request: pytest.FixtureRequest) -> None:
    """64-64-32-10 net, float64, 500 digits: 6,570 parameters, about as large as a dense Hessian is pleasant; one round."""
    model, x, y = trained((64, 64, 32, 10), request.config.getoption("--seed"), torch.float64)
    x, y = x[:500], y[:500]
    kept: dict[str, dict[str, float]] = {}
    sides = {"ours": our_hessian, "plain": plain_hessian}

    def side(name: str) -> None:
        kept[name] = sides[name](model, x, y)

    against(lambda: side("ours"), {"the article's way": lambda: side("plain")}, rounds=1, warmup=0)
    same_numbers(kept["ours"], kept["plain"], 1e-6)


def test_larger_net_without_its_dense_hessian(against: Against, request: pytest.FixtureRequest) -> None:
    """64-512-256-10 net, float32, 500 digits: 167,178 parameters, whose dense Hessian would take 224 GB; weights, gradients and collapse."""
    model, x, y = trained((64, 512, 256, 10), request.config.getoption("--seed"), torch.float32)
    x, y = x[:500], y[:500]
    parts = [PARTS[p] for p in ("weights", "gradients", "collapse")]
    for ours, plain in parts:
        # the plain way works in float32, where eigenvalues carry relative errors of about 1e-6 sqrt(n)
        same_numbers(ours(model, x, y), plain(model, x, y), 1e-4)
    against(lambda: [ours(model, x, y) for ours, _ in parts], {"the article's way": lambda: [plain(model, x, y) for _, plain in parts]}, rounds=3)
