"""Planted defects are found where they are; fresh random networks are left in peace."""

from __future__ import annotations

import math
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import torch

import spectral_fast as sf
from spectral_fast.findings import (
    SEVERITIES,
    THRESHOLDS,
    Finding,
    Stability,
    collapse_findings,
    curvature_findings,
    gradient_findings,
    stability_of,
    weight_findings,
)


def mlp(seed: int, init: str) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in ((64, 128), (128, 128), (128, 96), (96, 64), (64, 10))))
    for layer in model:
        w = layer.weight
        if init == "kaiming_normal":
            torch.nn.init.kaiming_normal_(w)
        elif init == "xavier":
            torch.nn.init.xavier_uniform_(w)
        elif init == "small":
            torch.nn.init.normal_(w, std=0.02)
        elif init == "orthogonal":
            torch.nn.init.orthogonal_(w)
    return model


def warnings_of(model: torch.nn.Module) -> list[Finding]:
    return [f for f in weight_findings(sf.scan(model)) if f.severity != "info"]


@pytest.mark.parametrize("init", ["default", "kaiming_normal", "xavier", "small", "orthogonal"])
def test_fresh_networks_get_at_most_five_percent_warnings(init: str) -> None:
    warned = [seed for seed in range(20) if warnings_of(mlp(seed, init))]
    assert len(warned) <= 1, [warnings_of(mlp(seed, init)) for seed in warned]


def plant(name: str, model: torch.nn.Module) -> None:
    w = model[2].weight
    with torch.no_grad():
        if name == "dead rows":
            w[:20] = 0
        elif name == "duplicated columns":
            w[:, 40:80] = w[:, :40]
        elif name == "scaled":
            w *= 30
        elif name == "dampened":
            w *= 0.02
        elif name == "few dimensions":
            u, s, vt = torch.linalg.svd(w, full_matrices=False)
            w.copy_((u * s[0] * 0.6 ** torch.arange(len(s))) @ vt)
        elif name == "over-regularized":
            u, s, vt = torch.linalg.svd(w, full_matrices=False)
            s[8:] = 0
            w.copy_((u * s * 0.1) @ vt)
        elif name == "nan":
            w[3, 4] = math.nan


@pytest.mark.parametrize(
    ("defect", "title"),
    [
        ("dead rows", "rank collapse"), ("duplicated columns", "rank collapse"), ("scaled", "amplifies"), ("dampened", "dampens"),
        ("few dimensions", "collapse|few of its dimensions"), ("over-regularized", "rank collapse"), ("nan", "not finite"),
    ],
)  # fmt: skip
def test_planted_defects_are_named_at_their_layer(defect: str, title: str) -> None:
    import re

    for seed in range(10):
        model = mlp(seed, "default")
        plant(defect, model)
        found = warnings_of(model)
        assert [f.where for f in found if re.search(title, f.title)] == ["2.weight"], (seed, found)
        assert {f.where for f in found} == {"2.weight"}


def test_over_regularized_gets_both_sources_advice() -> None:
    model = mlp(0, "default")
    plant("over-regularized", model)
    f = next(f for f in warnings_of(model) if f.title == "rank collapse")
    assert "less weight decay (Martin 2018" in f.advice and "wider layer" in f.advice
    assert f.severity == "severe" and f.evidence and f.comparison and f.source


def test_bfloat16_noise_alone_is_no_collapse() -> None:
    """Square random matrices in narrow formats have values below the storage noise; that is expected and not a defect."""
    rng = np.random.default_rng(0)
    state = {f"w{i}.weight": (rng.standard_normal((128, 128)) / 11).astype(ml_dtypes.bfloat16) for i in range(10)}
    assert not [f for f in weight_findings(sf.scan(state)) if f.severity != "info"]


def test_precision_lost_in_a_cast_is_said() -> None:
    w = np.random.default_rng(0).standard_normal((64, 64)).astype(ml_dtypes.bfloat16).astype(np.float32)
    found = [f for f in weight_findings(sf.scan({"w.weight": w})) if f.title == "stored wider than its precision"]
    assert len(found) == 1 and "use 8 bits" in found[0].evidence and "bfloat16" in found[0].comparison


def test_orthogonal_layer_is_well_normalised() -> None:
    found = weight_findings(sf.scan({"q.weight": np.linalg.qr(np.random.default_rng(0).standard_normal((20, 20)))[0]}))
    assert [(f.severity, f.title) for f in found] == [("info", "well normalised, stable")]


def test_every_threshold_names_its_source() -> None:
    assert all(t.source and math.isfinite(t.value) for t in THRESHOLDS.values())


def eigen(values: list[float], converged: bool = True) -> SimpleNamespace:
    return SimpleNamespace(values=np.array(values), converged=np.full(len(values), converged), residuals=np.full(len(values), 0.5), tol=1e-3)


def curvature(top: list[float], low: float = 0.0, converged: bool = True) -> SimpleNamespace:
    density = SimpleNamespace(nodes=np.array([0.0, top[0]]), weights=np.array([0.99, 0.01]), trace=0.01 * top[0] * 1000)
    return SimpleNamespace(hessian_top=eigen(top, converged), hessian_bottom=eigen([low]), density=density, n_params=1000)


def test_curvature_patterns() -> None:
    titles = [f.title for f in curvature_findings(curvature([100.0, 5.0, 1.0], low=-20.0), Stability(40.0, 0.0, "2/lr"))]  # type: ignore[arg-type]
    assert any("stability threshold" in t for t in titles)
    assert any("few large" in t for t in titles) and any("flat" in t for t in titles) and any("negative curvature" in t for t in titles)
    calm = curvature_findings(curvature([10.0, 9.0, 8.0]), Stability(40.0, 0.0, "2/lr"))  # type: ignore[arg-type]
    assert all(f.severity == "info" for f in calm) and not any("sharp" in f.title for f in calm)
    unconverged = curvature_findings(curvature([10.0, 9.0], converged=False))  # type: ignore[arg-type]
    assert unconverged[0].severity == "warning" and "2 of 2" in unconverged[0].evidence


def test_gradient_and_collapse_patterns() -> None:
    g = SimpleNamespace(
        status="ok", top_share=0.9, effective_rank=3.0, n_samples=100, noise_scale=500.0, noise_scale_interval=(300.0, 900.0), trace=1.0, gradient_norm2=0.1
    )
    assert [f.title for f in gradient_findings(g, batch_size=32)] == [
        "low-rank learning: normal, watch for stagnation",
        "batches are noisier than they need to be",
    ]  # type: ignore[arg-type]
    n = SimpleNamespace(
        status="ok", n_classes=10, class_counts=np.full(10, 7), feature_dim=32, nc1_rank=4, nc1=0.01, nc2_angles=0.1, nc3=0.2, nc4=0.0, layer="2"
    )
    assert [(f.severity, f.where) for f in collapse_findings(n)] == [("warning", "2"), ("info", "2")]  # type: ignore[arg-type]
    assert SEVERITIES == ("info", "warning", "severe")


def test_stability_thresholds() -> None:
    w = [torch.nn.Parameter(torch.zeros(1))]
    assert stability_of(torch.optim.SGD(w, lr=0.1)).threshold == 20.0
    assert stability_of(torch.optim.SGD(w, lr=0.1, momentum=0.9)).threshold == pytest.approx(38.0)
    assert stability_of(torch.optim.SGD(w, lr=0.1, momentum=0.5, nesterov=True)).threshold == pytest.approx(15.0)
    decayed = stability_of(torch.optim.SGD(w, lr=0.1, weight_decay=3.0))
    found = curvature_findings(curvature([18.0, 17.0]), decayed)  # type: ignore[arg-type]
    assert "weight decay 3" in found[0].evidence and found[0].severity == "warning"
    assert not any("threshold" in f.title for f in curvature_findings(curvature([16.0, 15.0]), decayed))  # type: ignore[arg-type]
    assert "Adam" in str(stability_of(torch.optim.Adam(w)))
    assert "groups differ" in str(stability_of(torch.optim.SGD([{"params": w}, {"params": [torch.nn.Parameter(torch.ones(1))], "lr": 1.0}], lr=0.1)))


@pytest.mark.parametrize("step", [2e-3])
def test_gradient_descent_diverges_above_its_threshold(step: float) -> None:
    """The three SGD rules against SGD itself on a quadratic: stable a little below the threshold, unstable a little above."""
    for options in ({}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"weight_decay": 5.0}):
        x = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        rule = stability_of(torch.optim.SGD([x], lr=0.1, **options))
        assert isinstance(rule, Stability)
        for factor, stable in ((1 - step, True), (1 + step, False)):
            x = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
            optimizer = torch.optim.SGD([x], lr=0.1, **options)
            curvature_ = factor * rule.threshold - rule.weight_decay
            for _ in range(4000):
                optimizer.zero_grad()
                x.grad = curvature_ * x.detach()
                optimizer.step()
            assert (abs(float(x.detach())) < 10) == stable, (options, factor)
