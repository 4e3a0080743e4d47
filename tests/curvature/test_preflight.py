"""Every check has a model that fails it, and something follows from that; models that are well pass all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import dense_hessian, digits_like, mlp, train
from torch import nn
from torch.nn import functional as F

from spectral_fast.curvature import GGN, Hessian
from spectral_fast.curvature.preflight import Preflight, preflight

X, Y = (torch.from_numpy(a) for a in digits_like(40, 6, 3))


class Ends(nn.Module):
    """Two linear layers with something in between."""

    def __init__(self, between, dtype=torch.float64, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.last = nn.Linear(6, 5, dtype=dtype), nn.Linear(5, 3, dtype=dtype)
        self.between = between

    def forward(self, x):
        return self.last(self.between(torch.tanh(self.first(x))))


@pytest.mark.parametrize("kind", [Hessian, GGN])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_models_that_are_well(kind, dtype):
    op = kind(train(mlp((6, 8, 3)), X, Y).to(dtype), (X, Y))
    found = preflight(op)
    eps = torch.finfo(dtype).eps
    assert found.failed == found.notes == () and found.status == "ok"
    assert found.products == op.products == 4 and found.gradients == (2 if kind is Hessian else 0)
    assert eps <= found.noise_floor < 1e3 * eps and found.tolerance(1e-3) == 1e-3
    # truncation of a central difference: step² = eps^(2/3), times third derivatives of ordinary size
    assert np.isnan(found.difference) if kind is GGN else found.difference < 100 * eps ** (2 / 3)
    assert found.unresolved(np.array([1.0, 0.5 * found.value_floor, -2 * found.value_floor])).tolist() == [False, True, False]


def test_functional_dropout_is_one_fixed_draw():
    model = Ends(lambda h: F.dropout(h, 0.5, training=True))
    for keep in (True, False):
        op = Hessian(model, (X, Y))
        op.keep = keep
        found = preflight(op)
        assert found.failed == ("determinism",) and found.status == "ok" and found.repeat == 0
        assert "one fixed draw" in found.notes[0] and found.notes[0].startswith("the forward pass is random")
        before = op @ np.ones(op.shape[0])
        torch.rand(3)  # what the caller draws in between changes nothing
        assert np.array_equal(op @ np.ones(op.shape[0]), before)


class OwnGenerator(nn.Module):
    """Noise from a generator that nobody can reset."""

    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng(0)

    def forward(self, h):
        return h * (1 + 0.05 * torch.from_numpy(self.generator.standard_normal(h.shape)))


def test_noise_raises_the_tolerance():
    op = Hessian(Ends(OwnGenerator()), (X, Y))
    op.keep = False
    found = preflight(op)
    assert {"determinism", "repeat"} <= set(found.failed)
    assert found.tolerance(1e-3) == found.tol_floor == 4 * found.noise_floor > 1e-2
    assert found.noise_floor == max(found.repeat, found.symmetry, found.linearity)
    assert found.unresolved(np.array([1.0, 1e-3])).tolist() == [False, True]
    op = Hessian(Ends(OwnGenerator()), (X, Y))
    op.keep = True  # one draw stays in the graph
    found = preflight(op)
    assert found.repeat == 0 and "determinism" in found.failed


def rounded(t):
    return t.to(torch.bfloat16).to(t.dtype)


class Rounding(torch.autograd.Function):
    """The identity, with gradients of 8 bits."""

    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, g):
        return RoundedGradient.apply(g)


class RoundedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, g):
        return rounded(g)

    @staticmethod
    def backward(ctx, g):
        return rounded(g)


def test_rounded_gradients_have_a_floor_that_bounds_the_error():
    model = Ends(Rounding.apply)
    op = Hessian(model, (X, Y))
    found = preflight(op)
    assert "linearity" in found.failed and 1e-4 < found.noise_floor < 0.1 and found.status == "unresolved"
    dense = dense_hessian(Ends(nn.Identity()), lambda z: F.cross_entropy(z, Y), X)
    error = np.linalg.norm(op @ np.eye(len(dense)) - dense, 2) / np.linalg.norm(dense, 2)
    assert error <= found.tol_floor  # no residual below it could have been told from noise


def clipped(h):
    if h.requires_grad:
        h.register_hook(lambda g: g.clamp(-1e-3, 1e-3))
    return h


def test_clipping_hooks_are_not_linear():
    found = preflight(Hessian(Ends(clipped), (X, Y)))
    assert "linearity" in found.failed and found.status == "unresolved" and found.tol_floor > 1e-2


class StraightThrough(torch.autograd.Function):
    """One function forwards, the derivative of another backwards: its second derivative is symmetric, but none of the loss."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return torch.tanh(3 * h)

    @staticmethod
    def backward(ctx, g):
        (h,) = ctx.saved_tensors
        return g * torch.exp(-h * h)


class Forgetful(torch.autograd.Function):
    """A product whose backward takes one of the factors for a constant."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return g * b.detach(), g * a


def test_a_derivative_that_is_none_of_the_loss():
    found = preflight(Hessian(Ends(StraightThrough.apply), (X, Y)))
    assert found.failed == ("difference",) and found.status == "unresolved"


def test_a_wrong_backward_is_not_symmetric():
    found = preflight(Hessian(Ends(lambda h: Forgetful.apply(torch.sin(2 * h), torch.exp(h.roll(1, dims=1)))), (X, Y)))
    assert "symmetry" in found.failed and "linearity" not in found.failed
    assert found.symmetry > 1e-3 and found.status == "unresolved" and found.tol_floor >= 4 * found.symmetry
    assert any("symmetric" in note for note in found.notes)


def test_a_part_cut_off_shows_in_the_difference():
    model = Ends(lambda h: h * h.detach().square().mean().sqrt())
    for kind in (Hessian, GGN):
        found = preflight(kind(model, (X, Y)))
        if kind is Hessian:
            assert "difference" in found.failed and found.difference > 0.1 and found.status == "unresolved"
            assert any("detach" in note for note in found.notes) and found.gradients == 4
        else:
            assert np.isnan(found.difference)


def test_kinks_never_fail():
    op = Hessian(mlp((6, 8, 3), activation="ReLU"), (X, Y))
    found = preflight(op)
    assert found.kinks == ("relu",) and "difference" not in found.failed and found.status == "ok"
    if found.difference > 0.1:
        assert any("kinks (relu)" in note and "GGN" in note for note in found.notes)
    smooth = preflight(op, difference=False)
    assert np.isnan(smooth.difference) and smooth.gradients == 0 and not smooth.notes


def test_a_sharp_function_is_not_taken_for_a_wrong_one():
    # the third derivative is large against the step: a smaller step tells
    model = Ends(lambda h: torch.tanh(60 * h), dtype=torch.float32)
    found = preflight(Hessian(model, (X, Y)))
    assert "difference" not in found.failed


def test_no_curvature_and_nan():
    model = nn.Linear(6, 3).double()
    found = preflight(Hessian(model, (X, Y), loss_fn=lambda z, t: z.mean()))
    assert isinstance(found, Preflight) and found.failed == () and found.repeat == found.symmetry == found.linearity == found.difference == 0
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    found = preflight(Hessian(model, (X, Y)))
    assert found.failed == ("noise",) and found.status == "unresolved" and found.tol_floor == np.inf


def test_bfloat16_models_are_compared_in_float32():
    model = mlp((6, 8, 3), dtype="bfloat16")
    found = preflight(Hessian(model, (X, Y)))
    assert found.failed == () and found.difference < 1e-2
    assert model[0].weight.dtype == torch.bfloat16
