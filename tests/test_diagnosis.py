"""The whole way: diagnose a small trained net, its report, what is skipped, and that nothing is left behind."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import spectral_fast as sf


def digits(n: int = 150) -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.data[:n] / 16.0, dtype=torch.float64), torch.tensor(data.target[:n])


def net(steps: int = 60) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 10)).double()
    x, y = digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def diagnosis() -> sf.Diagnosis:
    return sf.diagnose(net(), digits(), k=5, budget="quick", progress=False)


def test_four_analyses_are_done(diagnosis: sf.Diagnosis) -> None:
    assert diagnosis.skipped == ()
    assert diagnosis.status == "ok"
    assert diagnosis.weights and diagnosis.gradients and diagnosis.curvature and diagnosis.collapse
    assert [m.name for m in diagnosis.weights] == ["0.weight", "3.weight"]
    assert diagnosis.curvature.hessian_top is not None and len(diagnosis.curvature.hessian_top.values) == 5
    assert diagnosis.collapse.n_classes == 10
    assert diagnosis.gradients.n_samples == 150
    assert all(f.evidence and f.advice and f.source for f in diagnosis.findings)


def test_report_has_the_articles_headings(diagnosis: sf.Diagnosis) -> None:
    text = str(diagnosis)
    places = [
        text.index(h)
        for h in (
            "=" * 50, "NEURAL NETWORK EIGENVALUE ANALYSIS", "1. WEIGHT MATRICES:", "2. GRADIENT COVARIANCE:", "3. LOSS LANDSCAPE (Hessian):",
            "4. NEURAL COLLAPSE:", "FINDINGS",
        )
    ]  # fmt: skip
    assert places == sorted(places)
    assert max(map(len, text.splitlines())) <= 120


def test_json_round_trip(diagnosis: sf.Diagnosis) -> None:
    data = json.loads(diagnosis.to_json(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert data["type"] == "Diagnosis"
    assert {"weights", "gradients", "curvature", "collapse", "findings", "skipped", "notes"} <= set(data)
    assert data["weights"]["matrices"][0]["metrics"]["spectral_norm"] == diagnosis.weights.matrices[0].metrics["spectral_norm"]  # type: ignore[union-attr]


def test_without_loader_only_weights() -> None:
    d = sf.diagnose(net(0))
    assert d.weights is not None and d.curvature is None
    assert {(s.name, s.reason) for s in d.skipped} == {(n, "no loader") for n in ("gradients", "curvature", "collapse")}


def broken(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("planted")


def test_a_failing_analysis_is_listed_and_shows_in_the_status() -> None:
    d = sf.diagnose(net(0), digits(), loss_fn=broken, include=("weights", "curvature"), progress=False)
    assert d.weights is not None and (d.status, d.reason) == ("incomplete", "failed: curvature")
    reasons = {s.name: s.reason for s in d.skipped}
    assert reasons["gradients"] == "not asked for (include)"
    assert reasons["curvature"] == "failed: RuntimeError: planted"
    alone = sf.diagnose(net(0), digits(), loss_fn=broken, include=("curvature",), progress=False)
    assert (alone.status, alone.reason) == ("failed", "failed: curvature")


def test_absent_classes_are_no_collapse() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 50)).double()
    x, y = digits(300)
    d = sf.diagnose(model, (x, y), include=("collapse",), progress=False)
    assert d.collapse is not None and d.collapse.nc1_rank == 9
    assert not any("too few directions" in f.title for f in d.findings)


def test_an_optimizer_without_threshold_is_said() -> None:
    model = net(0)
    d = sf.diagnose(model, digits(30), include=("weights",), optimizer=torch.optim.Adam(model.parameters()), progress=False)
    assert any("Adam" in n for n in d.notes)


def test_regression_skips_collapse() -> None:
    model = torch.nn.Linear(5, 2).double()
    d = sf.diagnose(model, (torch.randn(40, 5, dtype=torch.float64), torch.randn(40, 2, dtype=torch.float64)), k=2, budget="quick", progress=False)
    assert d.curvature is not None and d.curvature.loss_name == "mse"
    assert any(s.name == "collapse" for s in d.skipped)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"w": 1}}, "^model: got dict.*scan"),
        ({"include": ("weight",)}, "^include"),
        ({"include": "weights"}, "^include"),
        ({"budget": "huge"}, "^budget.*known: quick"),
        ({"k": 0}, "^k: got 0"),
        ({"tol": 2.0}, "^tol"),
        ({"layer": "no.such"}, "^layer: 'no.such'"),
        ({"params": "zz*"}, "^params"),
        ({"k": 99, "budget": "quick"}, "^k: got 99"),
        ({"progress": 3}, "^progress"),
        ({"loader": iter([])}, "^loader: got a one-shot iterator"),
        ({"loader": []}, "^loader"),
        ({"loss": "hinge"}, "^loss"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    arguments = {"model": net(0), "loader": digits(20), **change}
    with pytest.raises((TypeError, ValueError), match=message):
        sf.diagnose(**arguments)


def state_of(model: torch.nn.Module) -> tuple[Any, ...]:
    return (
        [(n, p.detach().clone(), None if p.grad is None else p.grad.clone(), id(p.grad), p.requires_grad) for n, p in model.named_parameters()],
        [(n, b.clone()) for n, b in model.named_buffers()],
        [(n, m.training) for n, m in model.named_modules()],
        torch.get_rng_state(),
        np.random.get_state(),
        random.getstate(),
    )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def messy_net() -> torch.nn.Module:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(64, 12), torch.nn.BatchNorm1d(12), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(12, 10)).double()
    x, y = digits(64)
    torch.nn.functional.cross_entropy(model(x), y).backward()
    model[0].bias.requires_grad_(False)
    model[1].eval()
    return model


@pytest.mark.parametrize("fail", [False, True], ids=["as usual", "an exception inside"])
def test_nothing_is_left_behind(fail: bool) -> None:
    model = messy_net()
    before = state_of(model)
    keep = copy.deepcopy(before)
    calls = 0

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if fail and calls > 3:
            raise RuntimeError("planted")
        return torch.nn.functional.cross_entropy(outputs, targets)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*digits(64)), batch_size=24, shuffle=True)
    d = sf.diagnose(model, loader, loss_fn=loss, k=3, budget="quick", progress=False)
    after = state_of(model)
    for a, b, c in zip(keep, after, before, strict=True):
        ids = [(x[3] if isinstance(x, tuple) and len(x) == 5 else 0) for x in b] if isinstance(b, list) else []
        assert ids == ([(x[3] if isinstance(x, tuple) and len(x) == 5 else 0) for x in c] if isinstance(c, list) else [])
        assert same([x[:3] + x[4:] if isinstance(x, tuple) and len(x) == 5 else x for x in a] if isinstance(a, list) else a,
                    [x[:3] + x[4:] if isinstance(x, tuple) and len(x) == 5 else x for x in b] if isinstance(b, list) else b)  # fmt: skip
    if fail:
        assert any("planted" in s.reason for s in d.skipped)
        assert d.weights is not None


def interrupt_at(what: str) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, now: str) -> None:
        if what in now.lower():
            raise KeyboardInterrupt

    return progress


def test_ctrl_c_returns_what_is_done() -> None:
    d = sf.diagnose(net(0), digits(), k=3, budget="quick", progress=interrupt_at("hessian"))
    assert d.status == "incomplete"
    assert d.weights is not None and d.gradients is not None
    assert any(s.name == "collapse" and "interrupted" in s.reason for s in d.skipped)
    assert "incomplete" in str(d)
