from __future__ import annotations

import pytest
import torch
from problems import mlp
from torch import nn

from spectral_fast.probing import Batch, capture_inputs, find_classifier

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BATCH = Batch(X, None, 5)


class OutOfOrder(nn.Module):
    """The classifier is registered first and called last; an auxiliary head has the same shape."""

    def __init__(self, end=None):
        super().__init__()
        self.classifier = nn.Linear(4, 3).double()
        self.body = nn.Linear(6, 4).double()
        self.aux = nn.Linear(4, 3).double()
        self.end = end

    def forward(self, x):
        h = self.body(x)
        out = self.classifier(h)
        self.aux(h)
        return out if self.end is None else self.end(out)


@pytest.mark.parametrize("end", [None, lambda z: z.squeeze(1), lambda z: z.reshape(-1, 3), lambda z: torch.log_softmax(z, -1), lambda z: z.softmax(-1)])
def test_the_classifier_is_found_by_its_output(end):
    model = OutOfOrder(end)
    name, module = find_classifier(model, BATCH)
    assert name == "classifier" and module is model.classifier
    assert all(not m._forward_hooks for m in model.modules()) and model.training


def test_layer_names_it():
    model = OutOfOrder()
    assert find_classifier(model, BATCH, layer="aux") == ("aux", model.aux)
    with pytest.raises(ValueError, match="layer.*'head'.*classifier"):
        find_classifier(model, BATCH, layer="head")


def test_no_classifier_lists_linear_layers():
    with pytest.raises(ValueError, match="layer=.*body.*classifier"):
        find_classifier(OutOfOrder(lambda z: z * 2), BATCH)
    with pytest.raises(ValueError, match="none was called"):
        find_classifier(nn.Identity(), BATCH)


def test_inputs_are_captured_and_the_hook_goes_away():
    model = mlp((6, 4, 3))
    with capture_inputs(model, "2") as seen:
        model(X)
        model(X[:2])
        assert torch.equal(seen[0], torch.tanh(model[0](X))) and len(seen) == 2 and seen[1].shape == (2, 4)
        assert not seen[0].requires_grad
    model(X)
    assert len(seen) == 2 and not model[2]._forward_pre_hooks
    with pytest.raises(RuntimeError, match="boom"), capture_inputs(model, "2"):
        raise RuntimeError("boom")
    assert not model[2]._forward_pre_hooks
