"""The own losses of all samples of a batch, from one forward pass: what the gradient covariance is a matrix of derivatives of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .batches import Batch, call_model, logits_of
from .functional import FunctionalModel
from .losses import Loss
from .per_sample import take

__all__ = ["ONE_FORWARD", "SINGLY", "VECTORISED", "SampleLosses"]

ONE_FORWARD = "one forward pass"
VECTORISED = "vmap"
SINGLY = "one sample at a time"
SAMPLES = 4  # of a batch: their losses and gradients are compared with those of each sample alone before a way is used
# Relative difference, in units of the dtype's epsilon: far above rounding in a deep net, far below a wrong derivative.
AGREEMENT = 2e4
# What torch raises for shapes that do not fit, and where vmap meets in-place writes, decisions by values or an operation without a rule.
_FAILURES = (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError, AssertionError, AttributeError)


class SampleLosses:
    """(n,) losses of a batch's samples with their graph: of each sample its own mean loss, as with the sample alone in its batch.

    One forward pass of the batch and the loss of every sample's part of the outputs, where this agrees with samples that are alone; else
    vmap over the model, for outputs whose first dimension is another; else one sample at a time (``notes`` say why). Every sample needs a valid target.
    """

    def __init__(self, functional: FunctionalModel, loss: Loss) -> None:
        self.functional, self.loss = functional, loss
        self.way = ""
        self.notes: tuple[str, ...] = ()
        self._ways: dict[str, Callable[[Batch, Mapping[str, Tensor] | None], Tensor]] = {
            ONE_FORWARD: self._of_outputs,
            VECTORISED: self._vectorised,
            SINGLY: self._singly,
        }

    def __call__(self, batch: Batch, leaves: Mapping[str, Tensor] | None = None) -> Tensor:
        """leaves: in place of the model's parameters (dual tensors, say). The way is chosen at the first batch."""
        if not self.way:
            self._choose(batch)
        return self._ways[self.way](batch, leaves)

    def _run(self, leaves: Mapping[str, Tensor] | None) -> Callable[..., Any]:
        return lambda *args, **kwargs: self.functional(*args, leaves=leaves, **kwargs)

    def _of_outputs(self, batch: Batch, leaves: Mapping[str, Tensor] | None) -> Tensor:
        outputs = call_model(self._run(leaves), batch)
        if self.loss.fn is None:
            outputs = logits_of(outputs)
        for t in pytree.tree_leaves((outputs, batch.targets)):
            if not isinstance(t, Tensor) or t.shape[:1] != (batch.size,):
                raise ValueError("outputs or targets are not one row for every sample")
        return torch.func.vmap(self.loss.sample)(outputs, batch.targets)

    def _vectorised(self, batch: Batch, leaves: Mapping[str, Tensor] | None) -> Tensor:
        parts, spec = pytree.tree_flatten((batch.inputs, batch.targets))
        own = [i for i, t in enumerate(parts) if isinstance(t, Tensor) and t.shape[:1] == (batch.size,)]

        def one(*samples: Tensor) -> Tensor:
            filled = list(parts)
            for i, sample in zip(own, samples, strict=True):
                filled[i] = sample.unsqueeze(0)
            inputs, targets = pytree.tree_unflatten(filled, spec)
            return self.loss.batch(self._run(leaves), Batch(inputs, targets, 1, batch.label_key))

        return torch.func.vmap(one)(*(parts[i] for i in own))

    def _singly(self, batch: Batch, leaves: Mapping[str, Tensor] | None) -> Tensor:
        return torch.stack([self.loss.batch(self._run(leaves), take(batch, [i])) for i in range(batch.size)])

    def _choose(self, batch: Batch) -> None:
        leaves = tuple(self.functional.parameters.values())
        few = min(SAMPLES, batch.size)
        # cotangents of one sign and different sizes: a gradient that went to another sample shows
        cotangent = torch.arange(1.0, few + 1.0, device=leaves[0].device)

        def flat(losses: Tensor) -> Tensor:
            c = cotangent.to(losses.dtype)
            if not losses.requires_grad:
                raise ValueError("loss: does not depend on the selected parameters (a loss computed under no_grad, or a frozen output?)")
            grads = torch.autograd.grad(losses[:few], leaves, c, allow_unused=True)
            return torch.cat([losses[:few].detach().double(), *(g.detach().reshape(-1).double() for g in grads if g is not None)])

        alone = flat(self._singly(take(batch, list(range(few))), None))
        allowed = AGREEMENT * torch.finfo(leaves[0].dtype).eps
        why = []
        for way in (ONE_FORWARD, VECTORISED):
            try:
                got = flat(self._ways[way](batch, None))
                difference = float((got - alone).norm()) / max(float(alone.norm()), 1e-300) if got.shape == alone.shape else float("nan")
                if difference <= allowed or not bool(alone.isfinite().all()):
                    self.way = way
                    break
                why.append(f"{way}: differs by {difference:.1g} from samples that are alone in their batch")
            except torch.OutOfMemoryError:
                raise
            except _FAILURES as error:
                lines = str(error).strip().splitlines()
                why.append(f"{way}: {lines[0][:160] if lines else type(error).__name__}")
        else:
            self.way = SINGLY
        if why:
            self.notes = (f"losses of samples by {self.way}; not by {'; not by '.join(why)}",)
