from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from problems import Counting, digits_like, mlp, symmetric
from scipy.optimize import brentq
from torch import nn

from spectral_fast.curvature import Hessian, sharpness
from spectral_fast.curvature.sharpness import StabilityRule, gradient_share, preconditioned, stability_rule
from spectral_fast.findings import Stability, stability_of
from spectral_fast.linalg.eigsh import eigsh

SIZES = (3, 4)  # of the two parameters
N = sum(SIZES)
H = symmetric(np.linspace(0.1, 1.0, N), seed=5)
SECOND = np.array([0.3, 1.0, 2.0, 0.5, 1.5, 0.1, 4.0])  # squared gradients an adaptive optimizer remembers
HELD = 1 - 1e-13  # beta2, alpha: the memory stays what it is, if gradients are small
START = 1e-6


def parameters():
    rng = np.random.default_rng(0)
    return [nn.Parameter(torch.from_numpy(START * rng.standard_normal(size))) for size in SIZES]


def groups(*settings):
    return lambda ps: [{"params": [p], **s} for p, s in zip(ps, settings, strict=True)]


CASES = {
    "gradient descent": (torch.optim.SGD, {"lr": 0.1}, None),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, None),
    "dampening": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "dampening": 0.5}, None),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, None),
    "weight decay": (torch.optim.SGD, {"lr": 0.1, "weight_decay": 5.0}, None),
    "momentum and decay": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 12.0}, None),
    "rates differ": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.5}, groups({"lr": 0.1}, {"lr": 0.02})),
    "all differ": (
        torch.optim.SGD,
        {"lr": 0.1},
        groups({"lr": 0.1, "momentum": 0.9, "weight_decay": 3.0}, {"lr": 0.05, "momentum": 0.2, "dampening": 0.1}),
    ),
    "nesterov, rates differ": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, groups({"lr": 0.1}, {"lr": 0.3})),
    "adam": (torch.optim.Adam, {"lr": 0.1, "betas": (0.9, HELD), "eps": 0.3}, None),
    "amsgrad": (torch.optim.Adam, {"lr": 0.1, "betas": (0.5, HELD), "eps": 0.3, "amsgrad": True}, None),
    "adam, coupled decay": (torch.optim.Adam, {"lr": 0.1, "betas": (0.9, HELD), "eps": 0.3, "weight_decay": 30.0}, None),
    "adamw": (torch.optim.AdamW, {"lr": 0.1, "betas": (0.9, HELD), "eps": 0.3, "weight_decay": 4.0}, None),
    "adamw, groups": (
        torch.optim.AdamW,
        {"lr": 0.1, "eps": 0.3},
        groups({"weight_decay": 6.0, "betas": (0.9, HELD)}, {"lr": 0.02, "weight_decay": 0.0, "betas": (0.5, HELD)}),
    ),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.1, "alpha": HELD, "eps": 0.3}, None),
    "rmsprop, all": (torch.optim.RMSprop, {"lr": 0.1, "alpha": HELD, "eps": 0.3, "momentum": 0.7, "weight_decay": 2.0, "centered": True}, None),
}


def remembered(optimizer, ps):
    """State as after very many steps in which the squared gradients were SECOND."""
    if isinstance(optimizer, torch.optim.SGD):
        return
    start = 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            second = torch.from_numpy(SECOND[start : start + p.numel()].copy())
            start += p.numel()
            if isinstance(optimizer, torch.optim.RMSprop):
                state = {"step": torch.tensor(1e9), "square_avg": second, "momentum_buffer": torch.zeros_like(p)}
                if group["centered"]:
                    state["grad_avg"] = 0.2 * second.sqrt()
            else:
                kept = 1 - group["betas"][1] ** 1e9  # float32 counts no further than 1e9: the correction stays this
                state = {"step": torch.tensor(1e9), "exp_avg": torch.zeros_like(p), "exp_avg_sq": kept * second}
                if group["amsgrad"]:
                    state["max_exp_avg_sq"] = 2 * kept * second
            optimizer.state[p] = state


def built(name):
    kind, options, split = CASES[name]
    ps = parameters()
    optimizer = kind(split(ps) if split else ps, **options)
    remembered(optimizer, ps)
    return optimizer, ps


def final(name, scale):
    """max |x| / START after steps with the gradient of xᵀ (scale H) x / 2, or beyond 1e3."""
    optimizer, ps = built(name)
    a = torch.from_numpy(scale * H)
    for _ in range(3000):
        g = a @ torch.cat([p.detach() for p in ps])
        for p, part in zip(ps, g.split(SIZES), strict=True):
            p.grad = part.clone()
        optimizer.step()
        size = max(float(p.detach().abs().max()) for p in ps) / START
        if not 1e-4 < size < 1e3:  # the mode that grows is there from the start: what gets this small has none
            break
    return size


@pytest.mark.parametrize("name", CASES)
def test_the_iteration_diverges_just_above_the_threshold_and_not_just_below(name):
    optimizer, ps = built(name)
    rule = stability_rule(optimizer, {"a": ps[0], "b": ps[1]})
    assert isinstance(rule, StabilityRule), rule

    def sharpness(scale):
        return float(np.linalg.eigvalsh(rule.operator(Counting(scale * H)) @ np.eye(N))[-1])

    at = {factor: brentq(lambda c, f=factor: sharpness(c) - f * rule.threshold, 1e-6, 1e6, xtol=1e-12) for factor in (0.99, 1.01)}
    assert final(name, at[1.01]) >= 1e3
    assert final(name, at[0.99]) < 1e-3


def test_thresholds_in_closed_form():
    ps = parameters()
    assert stability_rule(torch.optim.SGD(ps, lr=0.1)).threshold == 20.0
    assert stability_rule(torch.optim.SGD(ps, lr=0.1, momentum=0.9)).threshold == pytest.approx(38.0)
    assert stability_rule(torch.optim.SGD(ps, lr=0.1, momentum=0.5, nesterov=True)).threshold == pytest.approx(15.0)
    decayed = stability_rule(torch.optim.SGD(ps, lr=0.1, weight_decay=3.0))
    assert decayed.threshold == 20.0 and decayed.weight_decay == 3.0 and decayed.plain
    assert stability_of(torch.optim.SGD(ps, lr=0.1, weight_decay=3.0)) == Stability(20.0, 3.0, decayed.rule)
    op = Counting(H)
    assert stability_rule(torch.optim.SGD(ps, lr=0.1)).operator(op) is op
    assert np.allclose(decayed.operator(op) @ np.eye(N), H + 3 * np.eye(N), rtol=0, atol=1e-14)
    adam, ps = built("adam")
    assert stability_rule(adam, {"a": ps[0], "b": ps[1]}).threshold == pytest.approx(380.0)
    assert stability_rule(adam, {"a": ps[0], "b": ps[1]}).preconditioner == pytest.approx(np.sqrt(SECOND) + 0.3)
    # the order is the operator's
    assert stability_rule(adam, {"b": ps[1], "a": ps[0]}).preconditioner == pytest.approx(np.sqrt(np.r_[SECOND[3:], SECOND[:3]]) + 0.3)


def test_adams_preconditioner_is_that_of_its_last_step():
    """From real steps: update = -lr m / denominator, so P is lr (1 - beta1^t) m_hat / change."""
    p = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    optimizer = torch.optim.Adam([p], lr=0.01, eps=1e-3)
    for t in range(1, 6):
        before = p.detach().clone()
        p.grad = torch.tensor([0.3, -1.0 / t, 0.02 * t], dtype=torch.float64)
        optimizer.step()
    m = optimizer.state[p]["exp_avg"]
    want = 0.01 * m / (before - p.detach())
    assert stability_rule(optimizer, {"p": p}).preconditioner == pytest.approx(want.numpy(), rel=1e-12)


def test_why_there_is_no_threshold():
    ps = parameters()
    named = {"a": ps[0], "b": ps[1]}
    for optimizer, given, words in (
        (torch.optim.Adagrad(ps), None, "Adagrad.*known: SGD, Adam"),
        (torch.optim.Adam(ps), None, "Adam: lambda_1 of P"),
        (torch.optim.Adam(ps), named, "before its first step.*a"),
        (torch.optim.SGD(groups({}, {"lr": 1.0})(ps), lr=0.1), None, "groups differ"),
        (torch.optim.SGD(groups({}, {"nesterov": False})(ps), lr=0.1, momentum=0.9, nesterov=True), named, "Nesterov"),
        (torch.optim.SGD(ps, lr=0.0), None, "lr 0"),
        (torch.optim.SGD(ps, lr=0.1, maximize=True), None, "maximize"),
        (torch.optim.SGD(ps, lr=0.1, momentum=0.9, dampening=1.0), None, "dampening"),
        (torch.optim.AdamW(ps, lr=1.0, weight_decay=2.0), None, "weight decay 2"),
        (torch.optim.SGD(ps[:1], lr=0.1), named, "1 of 2 parameters.*b"),
        (object(), None, "optimizer object"),
    ):
        found = stability_rule(optimizer, given)
        assert isinstance(found, str)
        assert found.startswith(f"optimizer {type(optimizer).__name__}: ")
        assert re.search(words, found), found
    with pytest.raises(TypeError, match="parameters"):
        stability_rule(torch.optim.SGD(ps, lr=0.1), 3)


def test_groups_that_play_no_part_do_not_count():
    ps = parameters()
    optimizer = torch.optim.SGD(groups({}, {"lr": 1.0})(ps), lr=0.1)
    assert stability_rule(optimizer, {"a": ps[0]}).threshold == 20.0


def test_with_an_operator_of_a_model():
    """Names and order come from the operator; eigsh finds what the dense matrix has."""
    x, y = (torch.from_numpy(a) for a in digits_like(30, 5, 3))
    model = mlp((5, 4, 3))
    decay = [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1}, {"params": [p for p in model.parameters() if p.ndim == 1]}]
    optimizer = torch.optim.Adam(decay, lr=0.01, weight_decay=0.0)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    op = Hessian(model, [(x[:20], y[:20]), (x[20:], y[20:])])
    rule = stability_rule(optimizer, op)
    assert isinstance(rule, StabilityRule) and rule.threshold == 1.0 and "wd" not in rule.rule
    inside = rule.operator(op)
    assert inside.blocks == op.blocks and inside.shape == op.shape
    second = np.concatenate([optimizer.state[p]["exp_avg_sq"].reshape(-1).numpy() for p in model.parameters()])
    p = (1 - 0.9**5) * (np.sqrt(second / (1 - 0.999**5)) + 1e-8) * 380 * 10
    wd = np.concatenate([np.full(q.numel(), 0.1 if q.ndim > 1 else 0.0) for q in model.parameters()])
    dense = (op @ np.eye(op.shape[0]) + np.diag(wd)) / np.sqrt(np.outer(p, p))
    top = np.linalg.eigvalsh(dense)[-1]
    assert eigsh(inside, k=1, tol=1e-9).values[0] == pytest.approx(top, rel=1e-8)


def test_preconditioned_operator():
    rng = np.random.default_rng(0)
    p, shift = rng.uniform(0.1, 3.0, N), rng.standard_normal(N)
    want = (H + np.diag(shift)) / np.sqrt(np.outer(p, p))
    for op in (H, Counting(H), torch.from_numpy(H)):
        made = preconditioned(op, p, shift)
        assert np.allclose(made @ np.eye(N), want, rtol=0, atol=1e-13)
        assert np.allclose(made @ np.arange(N), want @ np.arange(N), rtol=1e-13)
        assert (made @ np.zeros((N, 0))).shape == (N, 0)
    with pytest.raises(ValueError, match="v: wanted shape"):
        made @ np.ones(N + 1)
    for bad, match in ((np.ones(N - 1), "p: wanted shape"), (np.zeros(N), "p: wanted positive"), (np.full(N, np.nan), "p: 7 of 7")):
        with pytest.raises(ValueError, match=match):
            preconditioned(H, bad)
    with pytest.raises(ValueError, match="shift"):
        preconditioned(H, p, np.ones(3))


def test_share_of_the_gradient_in_a_subspace(monkeypatch):
    rng = np.random.default_rng(1)
    q = np.linalg.qr(rng.standard_normal((50, 4)))[0]
    g = 3.0 * q[:, 0] + 4.0 * np.linalg.qr(np.c_[q, rng.standard_normal(50)])[0][:, 4]
    want = 9 / 25
    assert gradient_share(q, g) == pytest.approx(want, abs=1e-14)
    monkeypatch.setattr(sharpness, "PIECE", 7)
    for scale in (1.0, 1e-150, 1e150):
        assert gradient_share(q, scale * g) == pytest.approx(want, abs=1e-14)
    assert gradient_share(torch.from_numpy(q), torch.from_numpy(g)) == pytest.approx(want, abs=1e-14)
    single = gradient_share(q.astype(np.float32), torch.from_numpy(g).float())
    assert single == pytest.approx(want, abs=1e-6) and abs(single - want) > 0
    assert gradient_share(np.eye(50), g) == pytest.approx(1.0) and gradient_share(np.eye(50), g) <= 1.0
    assert gradient_share(q[:, :0], g) == 0.0 and np.isnan(gradient_share(q, 0 * g)) and np.isnan(gradient_share(q * np.nan, g))
    for vectors, gradient in ((q, g[:3]), (g, g)):
        with pytest.raises(ValueError, match="vectors|gradient"):
            gradient_share(vectors, gradient)
