"""The mean loss of every sample of a batch by itself, from one run of the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from .batches import logits_of
from .loss_hessians import working
from .losses import IGNORE_INDEX, Loss, matched

__all__ = ["one_sample", "own_losses"]


def own_losses(loss: Loss, outputs: Any, targets: Any, n: int) -> Tensor:
    """(n,) with its graph: entry i is what ``loss`` gives for sample i's outputs and targets alone.

    Raises NotImplementedError for a loss that only the model itself computes, ValueError where the outputs cannot be told apart by sample.
    """
    if loss.fn is None and loss.form is not None:
        z = working(logits_of(outputs))
        if z.ndim and z.shape[0] == n:
            if loss.form == "cross_entropy":
                z, t = loss._aligned(z, targets)
                terms = F.cross_entropy(z, t, ignore_index=IGNORE_INDEX, reduction="none").reshape(n, -1)
                return terms.sum(1) / (t != IGNORE_INDEX).reshape(n, -1).sum(1)
            t = matched(z, targets)
            terms = F.mse_loss(z, t, reduction="none") if loss.form == "mse" else F.binary_cross_entropy_with_logits(z, t, reduction="none")
            return terms.reshape(n, -1).mean(1)
    if isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.shape[:1] == targets.shape[:1] == (n,):
        try:
            found: Tensor = torch.func.vmap(loss.sample)(outputs, targets)
            return found
        except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError, AssertionError):
            pass  # a loss that cannot be vectorised: one sample at a time
    return torch.stack([loss.of_outputs(*one_sample(outputs, targets, i, n)) for i in range(n)])


def one_sample(outputs: Any, targets: Any, i: int, n: int) -> tuple[Any, Any]:
    """What belongs to sample i of n, as a batch of one. Raises ValueError where the outputs cannot be told apart by sample."""

    def cut(t: Tensor, multiples: bool) -> Tensor:
        if t.ndim == 0 or t.shape[0] % n or (t.shape[0] != n and not multiples):
            if multiples:
                raise ValueError(f"outputs of shape {tuple(t.shape)} cannot be told apart by {n} samples")
            return t  # shared by all samples
        f = t.shape[0] // n
        return t[i * f : (i + 1) * f]

    return pytree.tree_map_only(Tensor, lambda t: cut(t, True), outputs), pytree.tree_map_only(Tensor, lambda t: cut(t, False), targets)
