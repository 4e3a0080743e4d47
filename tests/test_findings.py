"""Planted defects are found where they are; fresh random networks are left in peace."""

from __future__ import annotations

import math
import re
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


def mlp() -> torch.nn.Module:
    return torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in ((64, 128), (128, 128), (128, 96), (96, 64), (64, 10))))


def conv_net() -> torch.nn.Module:
    convs = [torch.nn.Conv2d(a, b, 3) for a, b in ((3, 24), (24, 48), (48, 64))]
    return torch.nn.Sequential(*convs, torch.nn.Flatten(), torch.nn.Linear(576, 128), torch.nn.Linear(128, 10))


def transformer() -> torch.nn.Module:
    layers = [torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True) for _ in range(2)]
    return torch.nn.ModuleDict({"embed": torch.nn.Embedding(100, 64), "layers": torch.nn.ModuleList(layers), "head": torch.nn.Linear(64, 100)})


NETS = {"mlp": (mlp, "2.weight"), "conv": (conv_net, "4.weight"), "transformer": (transformer, "layers.1.linear1.weight")}
INITS = {
    "default": lambda w: None,
    "kaiming normal": torch.nn.init.kaiming_normal_,
    "kaiming uniform": torch.nn.init.kaiming_uniform_,
    "xavier": torch.nn.init.xavier_uniform_,
    "small": lambda w: torch.nn.init.normal_(w, std=0.02),
    "orthogonal": torch.nn.init.orthogonal_,
}


def fresh(net: str, init: str, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = NETS[net][0]()
    for p in model.parameters():
        if p.ndim >= 2:
            INITS[init](p.data)
    return model


def warnings_of(model: torch.nn.Module) -> list[Finding]:
    return [f for f in weight_findings(sf.scan(model, progress=False)) if f.severity != "info"]


def share_warned(net: str, init: str, seeds: range) -> float:
    return sum(bool(warnings_of(fresh(net, init, seed))) for seed in seeds) / len(seeds)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("net", NETS)
def test_fresh_networks_are_left_in_peace(net: str, init: str) -> None:
    assert share_warned(net, init, range(5)) == 0


@pytest.mark.thorough
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("net", NETS)
def test_at_most_five_percent_of_200_fresh_networks_get_a_warning(net: str, init: str) -> None:
    assert share_warned(net, init, range(200)) <= 0.05


def plant(defect: str, w: torch.Tensor) -> None:
    """Change a weight in place, seen as (outputs, the rest)."""
    m = w.data.view(w.shape[0], -1)
    u, s, vt = torch.linalg.svd(m, full_matrices=False)
    if defect == "spike":
        m += 3 * s[0] * torch.outer(u[:, -1], vt[-1])
    elif defect == "dead rows":
        m[: len(m) // 6] = 0
    elif defect == "duplicated columns":
        half = min(m.shape[1] // 2, 40)
        m[:, half : 2 * half] = m[:, :half]
        m[:, 2 * half :] = m[:, :1]
    elif defect == "scaled x4":
        m *= 4
    elif defect == "scaled / 4":
        m /= 4
    elif defect == "few dimensions":
        m.copy_((u * s[0] * 0.6 ** torch.arange(len(s))) @ vt)
    elif defect == "over-regularized":
        s[len(s) // 8 :] = 0
        m.copy_((u * s * 0.1) @ vt)
    elif defect == "bfloat16 kept as float32":
        m.copy_(m.bfloat16().float())
    elif defect == "nan":
        m[3, 4] = math.nan


DEFECTS = {
    "spike": "stands out", "dead rows": "dead outputs", "duplicated columns": "rank collapse", "scaled x4": "amplifies", "scaled / 4": "dampens",
    "few dimensions": "collapse|few of its dimensions", "over-regularized": "rank collapse", "bfloat16 kept as float32": "stored wider", "nan": "not finite",
}  # fmt: skip


def named(net: str, init: str, defect: str, seed: int) -> bool:
    """The planted defect is named at its layer and, as that, at no other."""
    model, where = fresh(net, init, seed), NETS[net][1]
    plant(defect, dict(model.named_parameters())[where])
    return {f.where for f in weight_findings(sf.scan(model, progress=False)) if re.search(DEFECTS[defect], f.title)} == {where}


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("net", NETS)
def test_planted_defects_are_named_at_their_layer(net: str, defect: str) -> None:
    for init in ("default", "xavier", "small"):
        assert all(named(net, init, defect, seed) for seed in range(2)), init


@pytest.mark.thorough
@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("net", NETS)
def test_planted_defects_are_named_in_95_of_100(net: str, init: str, defect: str) -> None:
    assert sum(named(net, init, defect, seed) for seed in range(100)) >= 95


def test_over_regularized_gets_both_sources_advice() -> None:
    model = fresh("mlp", "default", 0)
    plant("over-regularized", model[2].weight)  # type: ignore[index]
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


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (2, 2), (20, 30), (64, 64)])
def test_matrices_of_rank_one_and_of_few_values_are_read_without_failing(shape: tuple[int, int]) -> None:
    exact = np.zeros(shape)
    exact[0, 0] = 3.0
    rng = np.random.default_rng(0)
    state = {"corner": exact, "outer": np.outer(rng.standard_normal(shape[0]), rng.standard_normal(shape[1])), "ones": np.ones(shape)}
    found = weight_findings(sf.scan(state, progress=False))
    assert all(f.evidence and f.comparison and f.source for f in found)
    if min(shape) > 2:
        assert {f.where for f in found if f.title == "rank collapse"} == set(state)


def test_every_threshold_names_its_source() -> None:
    assert all(t.source and math.isfinite(t.value) for t in THRESHOLDS.values())


def eigen(values: list[float], converged: bool = True) -> SimpleNamespace:
    of_all = {"converged": np.full(len(values), converged), "residuals": np.full(len(values), 0.5)}
    return SimpleNamespace(values=np.array(values), **of_all, tol=1e-3, status="ok", reason="")


def curvature(top: list[float], low: float = 0.0, converged: bool = True, ggn: SimpleNamespace | None = None) -> SimpleNamespace:
    density = SimpleNamespace(nodes=np.array([0.0, top[0]]), weights=np.array([0.99, 0.01]), trace=0.01 * top[0] * 1000)
    whole = {"hessian_top": eigen(top, converged), "hessian_bottom": eigen([low]), "ggn_top": ggn, "density": density, "n_params": 1000, "sharpness": None}
    return SimpleNamespace(**whole, preflight=None, value_floor=0.0)


def test_curvature_patterns() -> None:
    titles = [f.title for f in curvature_findings(curvature([100.0, 5.0, 1.0], low=-20.0), Stability(40.0, 0.0, "2/lr"))]  # type: ignore[arg-type]
    assert any("stability threshold" in t for t in titles)
    assert any("few large" in t for t in titles) and any("flat" in t for t in titles) and any("negative curvature" in t for t in titles)
    for ggn in (None, eigen([1.0])):
        saddle = curvature_findings(curvature([100.0, 5.0], low=-20.0, ggn=ggn))[-1]  # type: ignore[arg-type]
        assert ("GGN" in saddle.advice) == (ggn is not None)
    calm = curvature_findings(curvature([10.0, 9.0, 8.0]), Stability(40.0, 0.0, "2/lr"))  # type: ignore[arg-type]
    assert all(f.severity == "info" for f in calm) and not any("sharp" in f.title for f in calm)
    unconverged = curvature_findings(curvature([10.0, 9.0], converged=False))  # type: ignore[arg-type]
    assert unconverged[0].severity == "warning" and "2 of 2" in unconverged[0].evidence


def test_gradient_and_collapse_patterns() -> None:
    g = SimpleNamespace(
        status="ok", top_share=0.9, effective_rank=3.0, n_samples=100, noise_scale=500.0, noise_scale_interval=(300.0, 900.0), trace=1.0, gradient_norm2=0.1
    )
    noisy, low = "batches are noisier than they need to be", "low-rank learning: normal, watch for stagnation"
    # effective rank 3: little beside the 9 directions of ten classes, all there is for four; unknown without classes
    for classes, titles in ((10, [low, noisy]), (4, [noisy]), (None, [noisy])):
        assert [f.title for f in gradient_findings(g, batch_size=32, n_classes=classes)] == titles  # type: ignore[arg-type]
    n = dict(
        status="ok", class_counts=np.full(10, 7), n_samples=70, feature_dim=32, nc1_rank=4, nc1=0.01, nc2_angles=0.1, nc3=0.2, nc4=0.0, layer="2",
        mean_values=np.array([1.0] * 4 + [1e-9] * 6), spread=0.5,
    )  # fmt: skip
    assert [(f.severity, f.where) for f in collapse_findings(SimpleNamespace(**n))] == [("warning", "2"), ("info", "2")]  # type: ignore[arg-type]
    narrow = {**n, "nc1_rank": 9, "nc1": 0.5}
    assert ["4 directions only" in f.evidence for f in collapse_findings(SimpleNamespace(**narrow))] == [True]  # type: ignore[arg-type]
    assert not collapse_findings(SimpleNamespace(**{**narrow, "mean_values": np.linspace(1, 0, 10)}))  # type: ignore[arg-type]
    point = {**n, "status": "unresolved", "nc1_rank": 0, "nc1": math.nan, "spread": 1e-7}
    assert [(f.severity, f.title) for f in collapse_findings(SimpleNamespace(**point))] == [("severe", "features have collapsed to one point")]  # type: ignore[arg-type]
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
