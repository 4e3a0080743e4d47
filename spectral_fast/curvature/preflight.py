"""Is the loss a function of the parameters at all? What has to hold before curvature means anything."""

from __future__ import annotations

import torch

from ..probing.operator import ModelOperator

__all__ = ["random_forward"]


def random_forward(op: ModelOperator) -> str:
    """A note when two forward passes of the first batch give different losses in evaluation mode (dropout called as a function,
    sampling layers), else "". The operators reset the generators before every pass and so see one fixed draw."""
    with op.running(), torch.no_grad():
        first = op.batch_loss(op.batches[0])
        second = op.batch_loss(op.batches[0])
    if torch.equal(first, second):
        return ""
    return f"the forward pass is random in evaluation mode too (loss {float(first):.6g}, then {float(second):.6g}); results hold for one fixed draw"
