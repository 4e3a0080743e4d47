"""Two articles, line by line: each quantity computed the plain way in numpy or torch, and by one call of spectral_fast.

"Eigenvalue Spectra" reads the eigenvalues of W Wᵀ, the gradient covariance, the Hessian and neural collapse of a network;
Martin's "Rank Collapse in Deep Learning" (2018) reads singular values, ranks and the Tikhonov split. Run it:

    python examples/articles.py

It trains a small network on scikit-learn's digits and prints, for every quantity, the plain value, ours, and their relative difference.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

import spectral_fast as sf


def trained_network() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.data / 16.0, dtype=torch.float64)
    y = torch.tensor(digits.target)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x[:300], y[:300]


def row(what: str, plain: float, ours: float) -> None:
    difference = abs(plain - ours) / abs(plain) if plain else abs(ours)
    print(f"  {what:<64} {plain:>14.6g} {ours:>14.6g} {difference:>9.1e}")


def heading(text: str) -> None:
    print(f"\n{text}\n  {'':<64} {'plain':>14} {'spectral_fast':>14} {'rel.diff.':>9}")


def eigenvalue_spectra(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    report = sf.diagnose(model, (x, y), budget="thorough", tol=1e-8, progress=False)
    weights, gradients, curvature, collapse = report.weights, report.gradients, report.curvature, report.collapse
    assert weights and gradients and curvature and collapse

    heading('"Eigenvalue Spectra", part 5: the eigenvalues of W Wᵀ')
    for name, p in model.named_parameters():
        if p.ndim == 2:
            w = p.detach().numpy()
            plain = np.sort(np.abs(np.linalg.eigvals(w @ w.T)))[::-1][: min(w.shape)]  # without the zeros W Wᵀ has by its shape
            m = weights.spectrum(name)
            row(f"{name}: largest eigenvalue", plain[0], m.metrics["lambda_max"])
            row(f"{name}: largest over smallest", plain[0] / plain[-1], m.metrics["gram_condition_number"])
            row(f"{name}: eigenvalues near zero (below 1e-6 of the largest)", (plain < 1e-6 * plain[0]).sum(), (m.evals < 1e-6 * m.evals[0]).sum())

    heading('"Eigenvalue Spectra", part 6.2: gradient covariance')
    g = torch.stack([_flat_gradient(model, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]).numpy()
    centred = g - g.mean(axis=0)
    plain = np.linalg.eigvalsh(centred @ centred.T / (len(g) - 1))[::-1]
    row("largest eigenvalue", plain[0], gradients.eigenvalues[0])
    row("tenth", plain[9], gradients.eigenvalues[9])
    row("trace", plain.sum(), gradients.trace)

    heading('"Eigenvalue Spectra", part 6.3: the Hessian of the loss')
    plain = np.linalg.eigvalsh(_dense_hessian(model, x, y))[::-1]
    row("largest eigenvalue", plain[0], curvature.hessian_top.values[0])
    row("tenth", plain[9], curvature.hessian_top.values[9])
    row("smallest", plain[-1], curvature.hessian_bottom.values[-1])
    row("trace (ours is an estimate: its standard error follows)", plain.sum(), curvature.trace.estimate)
    print(f"  {'':<64} {'':>14} ± {curvature.trace.stderr:.3g}")

    heading('"Eigenvalue Spectra", part 6.4: neural collapse')
    h = torch.relu(model[0](x)).detach().numpy()  # type: ignore[operator, index]
    means = np.stack([h[y == c].mean(axis=0) for c in range(10)])
    within = sum((h[y == c] - means[c]).T @ (h[y == c] - means[c]) for c in range(10)) / len(h)
    between = np.cov(means.T, bias=True)
    row("NC1: tr(S_W S_B^+) / C", np.trace(within @ np.linalg.pinv(between, rcond=1e-9)) / 10, collapse.nc1)

    print('\n"Eigenvalue Spectra", part 6, what the patterns mean: our findings on this network')
    for f in report.findings:
        print(f"  [{f.severity}] {f.where}: {f.title}. {f.evidence}. Advice: {f.advice}")


def rank_collapse(model: torch.nn.Module) -> None:
    spectra = sf.scan(model, progress=False)
    heading('"Rank Collapse": singular values, ranks, the noise scale')
    for name, p in model.named_parameters():
        if p.ndim != 2:
            continue
        w = p.detach().numpy()
        m = spectra.spectrum(name)
        s = np.linalg.svd(w, compute_uv=False)
        row(f"{name}: smallest singular value", s.min(), m.metrics["s_min"])
        row(f"{name}: rank, numpy's tolerance", np.linalg.matrix_rank(w), m.ranks["numpy"])
        numerical_recipes = 0.5 * np.sqrt(sum(w.shape) + 1) * s[0] * np.finfo(w.dtype).eps
        row(f"{name}: rank, tolerance of Numerical Recipes", (s > numerical_recipes).sum(), m.ranks["numerical_recipes"])
        row(f"{name}: rank, loose bound 0.001", (s > 1e-3).sum(), m.ranks["loose"])
        row(f"{name}: rank loss M - R", min(w.shape) - np.linalg.matrix_rank(w), min(m.shape) - m.ranks["numpy"])
        row(f"{name}: collapsed by log10(s_min) < -8", np.log10(s.min()) < -8, m.ranks["log8"] < min(m.shape))
        row(f"{name}: aspect ratio Q (the article keeps Q > 1.1)", max(w.shape) / min(w.shape), max(m.shape) / min(m.shape))
        gamma = float(np.median(s))
        plain = np.linalg.inv(w.T @ w + gamma**2 * np.eye(w.shape[1])) @ w.T
        ours = sf.tikhonov(w, gamma)
        row(f"{name}: norm of the Tikhonov inverse at gamma = median s", np.linalg.norm(plain, 2), np.linalg.norm(ours.pinv, 2))
        row(f"{name}: information, s > gamma", (s > gamma).sum(), ours.information)
        print(f"  {name + ': power law of the eigenvalues':<64} {'':>14} {m.power_law.alpha:>8.2f} ± {m.power_law.stderr:.2f}")
    smallest = [m.metrics["s_min"] for m in spectra]
    print(f"  minimum singular values of all matrices, log10: {np.round(np.log10(smallest), 2).tolist()}")


def _flat_gradient(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    loss = torch.nn.functional.cross_entropy(model(x), y)
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])


def _dense_hessian(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    parameters = list(model.parameters())
    loss = torch.nn.functional.cross_entropy(model(x), y)
    g = torch.cat([v.reshape(-1) for v in torch.autograd.grad(loss, parameters, create_graph=True)])
    rows = [torch.cat([v.reshape(-1) for v in torch.autograd.grad(g[i], parameters, retain_graph=True)]) for i in range(len(g))]
    return torch.stack(rows).numpy()


if __name__ == "__main__":
    network, inputs, targets = trained_network()
    eigenvalue_spectra(network, inputs, targets)
    rank_collapse(network)
