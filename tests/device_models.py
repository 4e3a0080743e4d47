"""What a model on the pretended device gives, for a fresh interpreter: autograd counts the devices there are when it is first used.

python device_models.py mlp|conv       prints OK, or fails
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from pretend_device import NAME, pretend_device

import spectral_fast as sf

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def mlp() -> tuple[torch.nn.Module, Batches]:
    torch.manual_seed(0)
    x, y = torch.randn(40, 6), torch.randint(3, (40,))
    return torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.Tanh(), torch.nn.Linear(10, 3)), [(x[:25], y[:25]), (x[25:], y[25:])]


def conv() -> tuple[torch.nn.Module, Batches]:
    torch.manual_seed(0)
    x, y = torch.randn(30, 1, 8, 8), torch.randint(3, (30,))
    layers = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.Tanh(), torch.nn.Conv2d(4, 6, 3), torch.nn.Tanh(), torch.nn.Flatten()
    return torch.nn.Sequential(*layers, torch.nn.Linear(216, 3)), [(x[:17], y[:17]), (x[17:], y[17:])]


def moved(model: torch.nn.Module) -> torch.nn.Module:
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(p.detach().to(NAME)))
        for name, p in list(module.named_buffers(recurse=False)):
            setattr(module, name, p.to(NAME))
    return model


def operator(kind: str, model: torch.nn.Module, batches: Batches) -> None:
    expected = sf.eigsh(getattr(sf, kind)(model, batches, "cross_entropy"), 4)
    with pretend_device() as traffic:
        op = getattr(sf, kind)(moved(model), batches, "cross_entropy")
        assert np.isfinite(op @ np.ones(op.shape[0], dtype=np.float32)).all()
        traffic.back = traffic.there = 0
        r = sf.eigsh(op, 4)
    # of every product the coefficients alone come back, and of the vectors as many as there are pairs, and two
    assert traffic.back < r.matvecs * 8 * 200 + 12 * 8 * op.shape[0], traffic.back
    assert r.status == "ok"
    assert np.allclose(r.values, expected.values, rtol=2e-3), (r.values, expected.values)


def gradients(model: torch.nn.Module, batches: Batches) -> None:
    expected = sf.gradient_covariance(model, batches, "cross_entropy")
    with pretend_device() as traffic:
        r = sf.gradient_covariance(moved(model), batches, "cross_entropy")
    assert r.backend == "torch, torch"  # the gradients, their products
    assert np.allclose(r.eigenvalues, expected.eigenvalues, atol=1e-5 * expected.eigenvalues[0])
    assert abs(r.trace - expected.trace) <= 1e-5 * expected.trace
    n, parameters = sum(len(x) for x, _ in batches), sum(p.numel() for p in model.parameters())
    # products by layer, and sums of gradients; not the gradients of the samples
    assert traffic.back < 8 * n * n * 3 * len(list(model.parameters())) + 8 * 8 * parameters, traffic.back


def collapse(model: torch.nn.Module, batches: Batches) -> None:
    expected = sf.neural_collapse(model, batches, layers="*", test_loader=batches[:1])
    with pretend_device() as traffic:
        r = sf.neural_collapse(moved(model), batches, layers="*", test_loader=batches[:1])
    assert r.backend == "torch" and r.status == r.test.status == "ok"
    for one, other in ((r, expected), (r.test, expected.test), *((r.by_layer[name], numbers) for name, numbers in expected.by_layer.items())):
        assert abs(one.nc1 - other.nc1) <= 1e-5 * other.nc1 and one.nc4 == other.nc4 and abs(one.nc2_etf - other.nc2_etf) <= 1e-5, (one, other)
    # moments, means and decisions; of the features nothing
    moments = sum(8 * (v.feature_dim * (v.feature_dim + 3) + 8) for v in (*r.by_layer.values(), *r.test.by_layer.values()))
    assert traffic.back < moments + 30_000, (traffic.back, moments)


def diagnosis(model: torch.nn.Module, batches: Batches) -> None:
    expected = sf.diagnose(model, batches, progress=False, budget="quick")
    with pretend_device():
        there = [(x.to(NAME), y.to(NAME)) for x, y in batches]
        d = sf.diagnose(moved(model), there, progress=False, budget="quick")
    assert (d.status, d.skipped) == ("ok", ()), d.skipped
    assert [f.title for f in d.findings] == [f.title for f in expected.findings]
    top, wanted = (x.curvature.hessian_top.values for x in (d, expected))
    assert np.allclose(top, wanted, atol=2e-3 * wanted[0])
    assert np.allclose(d.gradients.eigenvalues, expected.gradients.eigenvalues, atol=1e-5 * expected.gradients.eigenvalues[0])
    assert all(np.allclose(m.s, e.s, atol=m.bound + e.bound) for m, e in zip(d.weights.matrices, expected.weights.matrices, strict=True))


if __name__ == "__main__":
    with pretend_device():
        pass
    make = {"mlp": mlp, "conv": conv}[sys.argv[1]]
    for kind in ("Hessian", "GGN", "GradientCovariance"):
        operator(kind, *make())
    gradients(*make())
    collapse(*make())
    if make is mlp:
        diagnosis(*make())
    print("OK")
