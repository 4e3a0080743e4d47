"""Acceptance row e: model, gradients, buffers, mode and random generators are bit-identical afterwards, whatever happens inside."""

from __future__ import annotations

import random
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from problems import digits_like, mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from spectral_fast.curvature import GGN, Hessian, curvature
from spectral_fast.probing import eval_notes, leave_no_trace

X, Y = (torch.from_numpy(a) for a in digits_like(40, 6, 3))


def lived_in():
    """A net in the middle of training: BatchNorm in train mode, one submodule in eval mode, gradients on some parameters, frozen ones."""
    model = mlp((6, 5, 4, 3), dropout=0.3, batchnorm=True)
    torch.nn.functional.cross_entropy(model(X), Y).backward()
    model[0].bias.grad = None
    model[4].weight.requires_grad_(False)
    model[1].eval()
    model.register_buffer("empty", None)
    return model


def fingerprint(model):
    """Everything that has to stay, bit for bit: values, and identities of tensors."""
    bits = lambda t: None if t is None else (id(t), t.detach().numpy().tobytes())  # noqa: E731
    return {
        "parameters": [(n, bits(p), p.requires_grad) for n, p in model.named_parameters()],
        "grads": [(n, bits(p.grad)) for n, p in model.named_parameters()],
        "buffers": [(n, bits(b)) for m in model.modules() for n, b in m._buffers.items()],
        "modes": [m.training for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "random": (random.getstate(), np.random.get_state()[1].tobytes(), np.random.get_state()[2], torch.get_rng_state().numpy().tobytes()),
        "switches": (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled(), torch.get_float32_matmul_precision()),
    }


@contextmanager
def unchanged(model):
    before = fingerprint(model)
    try:
        yield
    finally:
        after = fingerprint(model)
        for what in before:
            assert after[what] == before[what], what


def shuffled():
    return DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True)


ANALYSES = {
    "Hessian": lambda model, **kw: Hessian(model, shuffled(), **kw) @ np.ones(Hessian(model, shuffled()).shape[0]),
    "GGN": lambda model, **kw: GGN(model, shuffled(), **kw) @ np.ones(GGN(model, shuffled()).shape[0]),
    "curvature": lambda model, **kw: curvature(model, shuffled(), k=2, k_bottom=1, steps=5, probes=2, progress=False, **kw),
    "float32": lambda model, **kw: curvature(model, shuffled(), k=2, k_bottom=1, steps=5, probes=2, progress=False, dtype=torch.float32, **kw),
}


@pytest.mark.parametrize("name", ANALYSES)
def test_nothing_changes(name):
    model = lived_in()
    with unchanged(model):
        ANALYSES[name](model)


@pytest.mark.parametrize("calls", [1, 3, 4, 7])
@pytest.mark.parametrize("where", ["hook", "loss"])
@pytest.mark.parametrize("name", ANALYSES)
def test_nothing_changes_after_an_exception(name, where, calls):
    model = lived_in()
    left = [calls]

    def fail(*_):
        left[0] -= 1
        if left[0] <= 0:
            raise RuntimeError("boom")

    def loss_fn(z, t):
        random.random(), np.random.rand(), torch.rand(1)
        fail()
        return torch.nn.functional.cross_entropy(z, t)

    if where == "hook":
        model[0].register_forward_hook(fail)
    with unchanged(model), pytest.raises(RuntimeError, match="boom"):
        for _ in range(3):
            ANALYSES[name](model, **({"loss_fn": loss_fn} if where == "loss" else {}))


def test_a_keyboard_interrupt_too():
    model = lived_in()

    def interrupt(done, total, what):
        if done == 4:
            raise KeyboardInterrupt

    with unchanged(model):
        result = curvature(model, shuffled(), k=2, k_bottom=1, steps=5, probes=2, progress=interrupt)
    assert result.status == "incomplete"


class Restless(nn.Module):
    """Writes to a buffer, swaps another, and leaves a computed tensor behind, in every forward pass."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(6, 3).double()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("last", torch.zeros(1))
        self.note = torch.zeros(1)

    def forward(self, x):
        self.calls += 1
        self.last = x.detach().sum().reshape(1)
        self.note = self.lin.weight * 1.0
        return self.lin(x)


def test_models_that_write_to_their_buffers():
    model = Restless()
    note = model.note
    with unchanged(model):
        Hessian(model, (X, Y)) @ np.ones(21)
        with leave_no_trace(model):
            model(X)
            assert model.calls == 1
    assert model.note is note


def test_recurrent_layers_keep_their_own_weights():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(2, 3, batch_first=True).double()

        def forward(self, x):
            return self.lstm(x.unflatten(1, (3, 2)))[0][:, -1]

    model = Reader()
    before = [id(w) for w in model.lstm._flat_weights]
    with unchanged(model):
        curvature(model, (X, Y), k=2, k_bottom=1, steps=5, probes=1, progress=False)
    assert [id(w) for w in model.lstm._flat_weights] == before == [id(p) for p in model.parameters()]
    assert all(ref() is p for ref, p in zip(model.lstm._flat_weight_refs, model.parameters(), strict=True))


def test_gradients_accumulated_inside_do_not_reach_the_users():
    model = lived_in()
    with unchanged(model), leave_no_trace(model):
        model.requires_grad_(True)
        torch.nn.functional.cross_entropy(model(X), Y).backward()
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        assert not model[1].training and not model[0].training


def test_a_model_that_writes_to_its_parameters_is_named():
    model = mlp((6, 3))

    class Wild(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            with torch.no_grad():
                self.inner[0].bias += 1
            return self.inner(x)

    wild = Wild()
    with pytest.raises(RuntimeError, match="inner.0.bias"), leave_no_trace(wild):
        wild(X)


def test_notes_say_what_evaluation_mode_changes():
    model = mlp((6, 5, 4, 3), dropout=0.3, batchnorm=True)
    notes = eval_notes(model)
    assert len(notes) == 2 and "dropout" in notes[0] and "3, 7" in notes[0] and "statistics" in notes[1] and "1, 5" in notes[1]
    assert eval_notes(model.eval()) == ()
    assert eval_notes(mlp((6, 3))) == ()


def test_lazy_models_are_refused():
    with pytest.raises(ValueError, match="lazy"), leave_no_trace(nn.LazyLinear(3)):
        pass
