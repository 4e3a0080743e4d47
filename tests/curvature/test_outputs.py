"""Models that return more than a tensor, and losses that take what they return: Hessian and GGN against dense matrices."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from problems import dense_ggn, dense_hessian, mlp
from torch import nn
from torch.nn import functional as F

from spectral_fast import diagnose
from spectral_fast.curvature import GGN, Hessian, curvature
from spectral_fast.probing import Batches, logits_of, resolve_loss
from spectral_fast.probing.batches import put_logits

G = torch.Generator().manual_seed(4)
X = torch.randn(24, 5, generator=G, dtype=torch.float64)
Y = torch.randint(0, 3, (24,), generator=G)
T = torch.randn(24, 3, generator=G, dtype=torch.float64)


class ModelOutput(OrderedDict):
    """Entries that are attributes too, as in the usual transformers."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass
class Plain:
    logits: torch.Tensor
    hidden: Any = None


@dataclass(frozen=True)
class Frozen:
    logits: torch.Tensor


class Hidden:
    """Its logits are a property."""

    def __init__(self, z):
        self._z = z

    @property
    def logits(self):
        return self._z


Named = namedtuple("Named", "logits size")

OUTPUTS = {
    "tensor": (lambda z: z, lambda o: o),
    "tuple": (lambda z: (z,), lambda o: o[0]),
    "list": (lambda z: ["a", z], lambda o: o[1]),
    "named tuple": (lambda z: Named(z, 3), lambda o: o.logits),
    "dict": (lambda z: {"logits": z, "hidden": 2 * z}, lambda o: o["logits"]),
    "two names": (lambda z: {"logits": z, "scores": z}, lambda o: o["scores"]),
    "model output": (lambda z: ModelOutput(logits=z), lambda o: o.logits),
    "dataclass": (lambda z: Plain(z, z**2), lambda o: o.logits),
    "frozen": (Frozen, lambda o: o.logits),
    "property": (Hidden, lambda o: o.logits),
}


class Wrapped(nn.Module):
    def __init__(self, inner, wrap):
        super().__init__()
        self.inner, self.wrap = inner, wrap

    def forward(self, x):
        return self.wrap(self.inner(x))


def dense(op):
    return op @ np.eye(op.shape[0])


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_loss_of_the_whole_output_against_dense_matrices(name):
    wrap, read = OUTPUTS[name]
    inner = mlp((5, 4, 3))
    model = Wrapped(inner, wrap)
    loss = lambda z: F.cross_entropy(z, Y) + 0.1 * z.pow(4).mean()  # noqa: E731
    loader = [(X[:10], Y[:10]), (X[10:], Y[10:])]
    how = {"loss_fn": lambda o, y: F.cross_entropy(read(o), y) + 0.1 * read(o).pow(4).mean()}
    for op, want in ((Hessian(model, loader, **how), dense_hessian(inner, loss, X)), (GGN(model, loader, **how), dense_ggn(inner, loss, X))):
        assert np.abs(dense(op) - want).max() <= 1e-12 * np.abs(want).max()
    forward = GGN(model, loader, **how)
    row = torch.zeros(1, op.shape[0], dtype=torch.float64)
    v = torch.randn(op.shape[0], generator=G, dtype=torch.float64)
    with forward.running():
        for batch, weight in zip(forward.batches, forward.weights, strict=True):
            forward._forward(batch, forward.split(v), row[0], weight)
    assert np.abs(row[0].numpy() - want @ v.numpy()).max() <= 1e-12 * np.abs(want @ v.numpy()).max()


@pytest.mark.parametrize("name", ["tuple", "dict", "model output", "dataclass"])
def test_of_a_linear_model_ggn_and_hessian_are_one_matrix(name):
    """A loss that indexes what the model returns: given the logits alone it would have taken the first sample's."""
    wrap, read = OUTPUTS[name]
    r = curvature(
        Wrapped(nn.Linear(5, 3).double(), wrap), (X, T), loss_fn=lambda o, t: ((read(o) - t) ** 2).mean(), k=4, probes=1, steps=18, tol=1e-8, progress=False
    )
    assert r.status == "ok" and np.abs(r.ggn_top.values - r.hessian_top.values).max() <= 1e-7 * r.hessian_top.scale


@pytest.mark.parametrize("name", ["tuple", "dict", "model output", "dataclass"])
def test_diagnose_takes_a_loss_of_the_whole_output(name):
    wrap, read = OUTPUTS[name]
    d = diagnose(
        Wrapped(mlp((5, 4, 3)), wrap),
        (X, Y),
        loss_fn=lambda o, y: F.cross_entropy(read(o), y),
        include=("gradients", "curvature"),
        budget="quick",
        progress=False,
    )
    assert d.curvature is not None and d.curvature.ggn_top is not None and d.gradients is not None, d.skipped


def test_logits_go_where_they_were_found():
    z = torch.zeros(3)
    for wrap, read in OUTPUTS.values():
        outputs = wrap(torch.ones(3))
        again = put_logits(outputs, z)
        assert type(again) is type(outputs) and read(again) is z and logits_of(again) is z and bool(logits_of(outputs).all())

    class Sealed:
        @property
        def logits(self):
            return torch.ones(3) * 1

    with pytest.raises(TypeError, match="Sealed cannot be made anew"):
        put_logits(Sealed(), z)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 4).double(), nn.Linear(4, 3).double()

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return {"logits": self.second(h), "hidden": h}


def test_a_loss_of_more_than_the_logits_has_no_ggn_of_them():
    read_hidden = lambda o, y: F.cross_entropy(o["logits"], y) + o["hidden"].square().mean()  # noqa: E731
    r = curvature(Two(), (X, Y), loss_fn=read_hidden, k=2, probes=1, steps=64, progress=False)
    assert r.status == "ok" and r.hessian_top.converged.all() and r.ggn_top is None
    assert any(note.startswith("GGN skipped") and "more of the model's output than its logits" in note for note in r.notes)
    r = curvature(Two(), (X, Y), loss_fn=lambda o, y: F.cross_entropy(o["logits"], y), k=2, probes=1, steps=64, progress=False)
    assert r.ggn_top is not None  # the hidden features are there, but not in the loss


def test_whatever_stops_the_ggn_leaves_the_hessian():
    class Once(Wrapped):
        """Its output cannot be taken apart."""

        def forward(self, x):
            return {"a": self.inner(x), "b": self.inner(2 * x)}

    r = curvature(Once(mlp((5, 3)), None), (X, Y), loss_fn=lambda o, y: F.cross_entropy(o["a"], y), k=2, probes=1, steps=64, progress=False)
    assert r.status == "ok" and r.hessian_top.converged.all() and r.ggn_top is None and any("GGN skipped: model: wanted a tensor" in note for note in r.notes)
    calls = []

    def moody(o, y):
        calls.append(1)
        if o.requires_grad and o.grad_fn is None:  # the GGN's detached logits
            raise KeyError("own")
        return F.cross_entropy(o, y)

    r = curvature(mlp((5, 3)), (X, Y), loss_fn=moody, k=2, probes=1, steps=64, progress=False)
    assert r.status == "ok" and r.hessian_top.converged.all() and r.ggn_top is None and any("GGN skipped: KeyError: 'own'" in note for note in r.notes)


def test_losses_that_add_up_are_refused_for_any_output():
    for wrap, read in OUTPUTS.values():
        model = Wrapped(mlp((5, 3)), wrap)

        def total(o, t, read=read):
            return ((read(o) - t) ** 2).sum()

        with pytest.raises(ValueError, match="total adds up"):
            resolve_loss(model, Batches((X, T)), loss_fn=total)
