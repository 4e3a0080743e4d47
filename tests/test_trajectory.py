"""Trajectory: what is kept of results, what moves, and a network that collapses while it is trained."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import spectral_fast as sf
from spectral_fast.collapse import NeuralCollapse
from spectral_fast.trajectory import scalars


def collapse(nc1: float, **more: float) -> NeuralCollapse:
    return NeuralCollapse(nc1=nc1, **more)


def test_points_are_kept_in_order_and_put_together():
    t = sf.Trajectory()
    assert t.add(10, collapse(0.1, nc3=0.5)) is t
    t.add(2, collapse(0.4, nc3=0.7)).add(5, collapse(0.2))
    weights = sf.scan({"w": torch.eye(4) * 3}, progress=False)
    t.add(2, weights)
    assert [p.step for p in t.points] == [2, 5, 10] and len(t) == 3
    steps, values = t.series("collapse.nc1")
    assert steps.tolist() == [2, 5, 10] and values.tolist() == [0.4, 0.2, 0.1]
    steps, values = t.series("weights.w.spectral_norm")
    assert steps.tolist() == [2] and values == pytest.approx(3.0)
    assert json.loads(t.to_json())["points"][0]["step"] == 2
    frame = t.to_pandas()
    assert frame["collapse.nc1"].tolist() == [0.4, 0.2, 0.1] and np.isnan(frame["weights.w.spectral_norm"].iloc[1])
    with pytest.raises(KeyError, match=r"name: no series 'nc1'; there are collapse\.nc1"):
        t.series("nc1")


def test_what_moves():
    t = sf.Trajectory()
    for step, (a, b, c) in enumerate(((8.0, 1.0, -1.0), (4.0, 1.2, math.nan), (2.0, 1.1, 1.0))):
        t.add(step, collapse(a, nc3=b, cdnv=c, nc4=1.0))
    moves = {m.name: m for m in t.moves()}
    assert [m.name for m in t.moves()][:2] == ["collapse.cdnv", "collapse.nc1"] and list(moves)[-1] == "collapse.nc4"
    assert moves["collapse.nc1"].factor == 0.25 and moves["collapse.nc1"].trend == -1.0
    assert moves["collapse.nc3"].trend == pytest.approx(0.5) and moves["collapse.nc4"].trend == 0.0
    assert math.isnan(moves["collapse.cdnv"].factor) and math.isnan(moves["collapse.cdnv"].trend) and moves["collapse.cdnv"].points == 2
    assert [m.name for m in t.moves("*.nc?")] == ["collapse.nc1", "collapse.nc3", "collapse.nc4"]
    assert "what moved most" in t.summary() and "collapse.nc1" in t.summary()


def test_empty_and_wrong():
    t = sf.Trajectory()
    assert t.moves() == () and t.names == () and "two results of different steps" in t.summary() and len(t.plot().axes) == 1
    for step in (math.nan, "1", None, True):
        with pytest.raises(ValueError, match="step: wanted a finite number"):
            t.add(step, collapse(1.0))
    with pytest.raises(TypeError, match="result: got Point; known: Diagnosis"):
        t.add(1, sf.trajectory.Point(1.0, {}))
    assert len(t) == 0
    t.add(1, collapse(1.0)).add(2, collapse(2.0))
    with pytest.raises(ValueError, match="names: nothing matches loss; there are collapse.nc1"):
        t.plot(names="loss")
    with pytest.raises(ValueError, match="names: only a trajectory"):
        collapse(1.0).plot(names="nc1")
    skipped = NeuralCollapse(status="skipped", reason="no classifier")
    assert scalars(skipped) == {}


def test_a_diagnosis_gives_the_numbers_of_its_parts(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(40, 6), torch.randint(0, 3, (40,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    t = sf.Trajectory()
    for step in range(2):
        d = sf.diagnose(model, (x, y), k=2, budget="quick", progress=False, optimizer=optimizer)
        t.add(step, d)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    values = t.points[1].values
    assert values["curvature.lambda_1"] == d.curvature.hessian_top.values[0] and values["curvature.sharpness"] == d.curvature.sharpness.value
    assert values["curvature.lambda_min"] == d.curvature.hessian_bottom.values[-1] and values["curvature.trace"] == d.curvature.trace.estimate
    assert values["gradients.noise_scale"] == d.gradients.noise_scale and values["collapse.nc1"] == d.collapse.nc1
    assert values["weights.0.weight.stable_rank"] == d.weights.spectrum("0.weight").metrics["stable_rank"]
    assert sum(values[f"findings.{s}"] for s in ("info", "warning", "severe")) == len(d.findings)
    t.save_html(tmp_path / "t.html")
    assert "curvature.lambda_1" in (tmp_path / "t.html").read_text()


def test_a_network_that_is_trained_to_zero_error_collapses():
    """Papyan, Han & Donoho 2020: beyond zero training error the class means go on towards a simplex, the features towards them."""
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits come with scikit-learn")
    data = datasets.load_digits()
    x, y = torch.tensor(data.data[:600] / 16, dtype=torch.float32), torch.tensor(data.target[:600])
    torch.manual_seed(0)
    wide = [m for _ in range(2) for m in (nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU())]
    model = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), *wide, nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-3)
    t = sf.Trajectory()
    for epoch in range(61):
        if epoch in (0, 4, 15, 60):
            t.add(epoch, sf.neural_collapse(model, (x, y), progress=False))
        for chosen in torch.split(torch.randperm(len(x)), 60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
    assert t.points[-1].values["collapse.accuracy"] == 1.0
    moves = {m.name: m for m in t.moves()}
    for name, factor in (("nc1", 0.1), ("nc2_norms", 0.5), ("nc2_etf", 0.5), ("nc3", 0.5)):
        assert moves[f"collapse.{name}"].trend == -1.0 and moves[f"collapse.{name}"].factor < factor, name
    assert len(t.plot(names="collapse.nc?").axes) == 3
