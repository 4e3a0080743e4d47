"""Modules in TorchScript archives: the tensors of their state dicts, without running or loading the code beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spectral_fast.checkpoints import open_checkpoint

pytestmark = [pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"), pytest.mark.filterwarnings("ignore:torch.tensor results")]


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
        self.body[2].weight = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
        self.tied = self.body[0]
        self.register_buffer("mean", torch.ones(2, 5))
        self.sizes = [3, 4]
        self.label = "net"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + torch.tensor([[1.0, 2.0, 3.0]])


@pytest.mark.parametrize("how", ["script", "trace"])
def test_the_state_dict(how: str, tmp_path: Path) -> None:
    net = Net()
    scripted = torch.jit.script(net) if how == "script" else torch.jit.trace(net, torch.ones(1, 5))
    file = tmp_path / "model.pt"
    scripted.save(str(file))
    want = net.state_dict()
    with open_checkpoint(file) as checkpoint:
        assert checkpoint.format == "torchscript"
        found = {t.name: t for t in checkpoint.tensors}
        unique = {name for name in want if not name.startswith("tied.")}
        assert unique <= found.keys() <= want.keys()
        for name in found:
            np.testing.assert_array_equal(checkpoint.read(name), want[name].numpy())  # type: ignore[arg-type]
        reasons = {s.name: s.reason for s in checkpoint.skipped}
    if how == "trace":  # the literal in forward
        assert reasons.pop("constants") == "1 constants of the code, no weights"
    assert reasons in ({}, {"tied": "the same object as body.0"})
