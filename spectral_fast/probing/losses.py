"""The loss of a batch, its number of equally weighted terms, and its Hessian with respect to the model's output."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .batches import Batch, Batches, call_model, logits_of, put_logits
from .loss_checks import form_of, refuse_sums, same_as
from .loss_hessians import bce_hessian_, cross_entropy_hessian_, mse_hessian_, working
from .state import leave_no_trace

__all__ = ["CHOICES", "IGNORE_INDEX", "Loss", "resolve_loss"]

IGNORE_INDEX = -100
CHOICES = "loss='cross_entropy', loss='mse', loss='bce', loss_fn=callable(outputs, targets) -> scalar mean"
# these predict position t + 1 at position t, so the first label never counts
_SHIFTED = re.compile(r"ForCausalLM|LMHeadModel|DoubleHeadsModel")


def classes_last_to_first(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs with the class dimension where torch wants it (dimension 1).

    (N, C) with (N,) and (N, C, ...) with (N, ...) are torch's own layouts and win where both fit; (N, T, C) with (N, T), the
    layout of sequence models, is moved. Raises ValueError when neither fits.
    """
    if outputs.ndim >= 2 and outputs.shape[:1] + outputs.shape[2:] == targets.shape:
        return outputs
    if outputs.shape[:-1] == targets.shape:
        return outputs.movedim(-1, 1) if outputs.ndim > 2 else outputs
    raise ValueError(f"cross_entropy: outputs of shape {tuple(outputs.shape)} do not fit class targets of shape {tuple(targets.shape)}")


def class_targets(targets: Tensor) -> Tensor:
    """Targets as int64. Raises ValueError for targets that are no class indices: a cast would cut 2.9 down to class 2."""
    if targets.is_floating_point() or targets.is_complex():
        raise ValueError(
            f"loss: 'cross_entropy' wants integer class targets, got {str(targets.dtype).removeprefix('torch.')}; convert class indices by "
            "targets.long(), give loss_fn=torch.nn.CrossEntropyLoss() for class probabilities, or loss='mse' for regression"
        )
    return targets.long()


def matched(outputs: Tensor, targets: Tensor) -> Tensor:
    """Targets in the shape and dtype of the outputs; only dimensions of size 1 may differ ((N,) against (N, 1) would broadcast to (N, N))."""
    if [d for d in outputs.shape if d != 1] != [d for d in targets.shape if d != 1]:
        raise ValueError(
            f"loss: outputs of shape {tuple(outputs.shape)} do not fit targets of shape {tuple(targets.shape)}"
            f" ({str(targets.dtype).removeprefix('torch.')}; class indices have to be integers)"
        )
    return targets.reshape(outputs.shape).to(outputs.dtype)


class Loss:
    """A mean loss. Over a sample set L = sum_b (terms_b / sum terms) mean_b, exact for ragged batches.

    name: "cross_entropy", "mse", "bce", "model" (the ``.loss`` the model itself returns) or the name of the given callable.
    """

    def __init__(self, name: str, fn: Callable[[Any, Any], Tensor] | None = None, *, shifted: bool = False, from_model: bool = False) -> None:
        self.name = name
        self.fn = fn
        self.shifted = shifted
        self.from_model = from_model
        # what the loss is as a function of the logits, where that is known in closed form
        self.form: str | None = name if name in ("cross_entropy", "mse", "bce") else None

    def __repr__(self) -> str:
        return f"Loss({self.name!r})"

    def batch(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """Scalar mean loss of one batch with its graph. model: module or callable taking the model's arguments."""
        if self.from_model:
            outputs = model(**batch.inputs, labels=batch.targets)
            return _scalar(outputs["loss"] if isinstance(outputs, Mapping) else outputs.loss, self.name)
        return self.of_outputs(call_model(model, batch), batch.targets)

    def of_outputs(self, outputs: Any, targets: Any) -> Tensor:
        """Scalar mean loss from the model's outputs (tensor or an output with .logits). Raises NotImplementedError where only the
        model itself can compute its loss."""
        if self.fn is not None:
            return _scalar(self.fn(outputs, targets), self.name)
        if self.form is None:
            raise NotImplementedError(f"loss {self.name!r}: only the model computes it; give loss= or loss_fn= for this analysis")
        z = working(logits_of(outputs))
        if self.form == "cross_entropy":
            z, t = self._aligned(z, targets)
            try:
                return F.cross_entropy(z, t, ignore_index=IGNORE_INDEX)
            except IndexError as error:  # of the CPU; on a GPU the kernel stops
                raise ValueError(f"loader: a class target is outside of the model's {z.shape[1]} classes: {error}") from error
        t = matched(z, targets)
        return F.mse_loss(z, t) if self.form == "mse" else F.binary_cross_entropy_with_logits(z, t)

    def sample(self, outputs: Any, target: Any) -> Tensor:
        """Mean loss of one sample (no batch dimension), for torch.func.vmap."""
        add = torch.utils._pytree.tree_map_only
        return self.of_outputs(add(Tensor, lambda x: x.unsqueeze(0), outputs), add(Tensor, lambda x: x.unsqueeze(0), target))

    def terms(self, batch: Batch) -> float:
        """Number of equally weighted terms in the batch's mean: valid classes or tokens, elements, samples; for torch.nn.CrossEntropyLoss
        and NLLLoss with class weights the sum of the weights, which is what they divide by."""
        targets = batch.targets
        if not isinstance(targets, Tensor):
            return float(batch.size)
        if self._counts_classes():
            if targets.is_floating_point():  # class probabilities: one term per sample and position
                return float(targets.numel() / targets.shape[1] if targets.ndim > 1 else batch.size)
            valid = targets[targets != getattr(self.fn, "ignore_index", IGNORE_INDEX)].long()
            weight = getattr(self.fn, "weight", None)
            return float(valid.numel() if weight is None else weight[valid.to(weight.device)].double().sum())
        if self.fn is not None and self.form is None:
            return float(batch.size)
        if self.form in ("mse", "bce") or targets.is_floating_point():
            return float(targets.numel())
        labels = targets[..., 1:] if self.shifted else targets
        return float((labels != IGNORE_INDEX).sum())

    def terms_of_each(self, batch: Batch) -> NDArray[np.float64] | None:
        """(size,): ``terms`` of every sample of the batch alone; None where they have to be asked for one by one."""
        targets, n = batch.targets, batch.size
        if not isinstance(targets, Tensor) or targets.ndim == 0 or targets.shape[0] != n or n == 0:
            return None
        if self._counts_classes():
            if getattr(self.fn, "weight", None) is not None:
                return None
            if targets.is_floating_point():
                return np.full(n, float(targets[0].numel() / targets.shape[1]) if targets.ndim > 1 else 1.0)
            valid = targets != getattr(self.fn, "ignore_index", IGNORE_INDEX)
        elif self.fn is not None and self.form is None:
            return np.ones(n)
        elif self.form in ("mse", "bce") or targets.is_floating_point():
            return np.full(n, float(targets[0].numel()))
        else:
            valid = (targets[..., 1:] if self.shifted else targets) != IGNORE_INDEX
        return np.asarray(valid.reshape(n, -1).sum(1).cpu().numpy(), dtype=np.float64)

    def _counts_classes(self) -> bool:
        """Is the callable one of torch's own, whose mean is known to be one over valid (weighted) targets?"""
        return isinstance(self.fn, (nn.CrossEntropyLoss, nn.NLLLoss)) or self.fn is F.cross_entropy or self.fn is F.nll_loss

    def note(self, batches: Batches) -> str:
        """What is uncertain about the weights of the batches, or "": how a caller's own loss counts ignored targets cannot be known."""
        if self.fn is None or self._counts_classes():
            return ""
        ignored = sum(int((b.targets == IGNORE_INDEX).sum()) for b in batches if isinstance(b.targets, Tensor) and not b.targets.is_floating_point())
        if not ignored:
            return ""
        return f"{ignored} targets are {IGNORE_INDEX}, but loss {self.name!r} is not torch's own: batches weigh by their numbers of samples, which is a guess"

    def weights(self, batches: Batches) -> list[float]:
        """terms_b / sum terms of every batch, float64. Raises ValueError when there are no terms."""
        terms = [self.terms(b) for b in batches]
        if not sum(terms) > 0:
            raise ValueError("loader: no valid targets in the sample set")
        return [t / sum(terms) for t in terms]

    def output_hessian(self, outputs: Tensor, targets: Any, u: Tensor, whole: Any = None) -> Tensor:
        """(d² mean loss / d outputs²) u for u in the shape of the outputs; u stays as it is. See output_hessian_."""
        return self.output_hessian_(outputs, targets, u.clone(memory_format=torch.contiguous_format), whole)

    def output_hessian_(self, outputs: Tensor, targets: Any, u: Tensor, whole: Any = None) -> Tensor:
        """(d² mean loss / d outputs²) u, in the memory of u for the closed forms, with temporaries of some MB however large the vocabulary.

        Cross-entropy: p (u - <p, u>) per term, centred so that a saturated softmax gives 0 and not rounding noise; MSE: 2 u;
        BCE: p (1 - p) u; each divided by the number of terms. Anything else: double backward on the outputs.
        whole: what the model returned with ``outputs`` in it, where a caller's own loss wants more than the tensor.
        """
        z = outputs.detach()
        if self.form == "mse":
            return mse_hessian_(z, u)
        if self.form == "bce":
            return bce_hessian_(z, u)
        if self.form == "cross_entropy":
            zc, t = self._aligned(z, targets)
            uc, _ = self._aligned(u, targets)
            if self.shifted:
                u[:, -1:] = 0  # the last position predicts nothing
            cross_entropy_hessian_(zc.movedim(1, -1), t == IGNORE_INDEX, uc.movedim(1, -1))
            return u
        with torch.enable_grad():
            zz = outputs.detach().requires_grad_(True)
            value = self.of_outputs(zz if whole is None else put_logits(whole, zz), targets)
            (g,) = torch.autograd.grad(value, zz, create_graph=True)
            if not g.requires_grad:
                return torch.zeros_like(u)
            (second,) = torch.autograd.grad(g, zz, u.to(g.dtype), allow_unused=True)
        return torch.zeros_like(u) if second is None else second.to(u.dtype)

    def _aligned(self, z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(outputs with classes in dimension 1, int64 targets); views of ``z``, shifted by one position for language models."""
        targets = class_targets(targets)
        if self.shifted:
            z, targets = z[:, :-1], targets[:, 1:]
            return z.movedim(-1, 1), targets
        moved = z if z.shape == targets.shape else classes_last_to_first(z, targets)
        if z.shape == targets.shape or moved.shape[1] == 1:
            raise ValueError(
                f"loss: 'cross_entropy' needs an output per class, got one per target (outputs {tuple(z.shape)}, targets {tuple(targets.shape)}); "
                "for yes or no decided by one logit give loss='bce', for numbers loss='mse'"
            )
        return moved, targets


def _scalar(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss {name!r}: wanted the scalar mean over the batch, got {what}")
    return value.reshape(())


def _takes_labels(model: Any) -> bool:
    forward = getattr(model, "forward", model)
    try:
        return "labels" in inspect.signature(forward).parameters
    except (TypeError, ValueError):
        return False


def _loss_in(outputs: Any) -> Any:
    return outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)


def _model_loss(model: nn.Module, first: Batch, run: Callable[..., Any]) -> Loss | None:
    """The loss a model computes itself from ``labels``, or None. Where it equals the cross-entropy of its logits on the first
    batch, its form is known and analyses that need the loss as a function of the logits can run."""
    if not (isinstance(first.inputs, Mapping) and first.label_key == "labels" and _takes_labels(model)):
        return None
    with leave_no_trace(model):
        with torch.no_grad():
            if not isinstance(_loss_in(run(**first.inputs, labels=first.targets)), Tensor):
                return None
        loss = Loss("model", shifted=bool(_SHIFTED.search(type(model).__name__)), from_model=True)
        if isinstance(first.targets, Tensor) and not first.targets.is_floating_point():
            for shifted in (loss.shifted, not loss.shifted):
                guess = Loss("cross_entropy", shifted=shifted)
                if same_as(guess, lambda outputs, _: _loss_in(outputs), first, lambda batch: run(**batch.inputs, labels=batch.targets)):
                    loss.shifted, loss.form = shifted, "cross_entropy"
                    break
    return loss


def _callers_loss(fn: Callable[[Any, Any], Tensor], model: nn.Module, first: Batch, run: Callable[..., Any]) -> Loss:
    """A caller's loss function, its form known where it is torch's own and behaves like it (MSELoss broadcasts targets of another shape)."""
    reduction = getattr(fn, "reduction", "mean")
    if reduction != "mean":
        raise ValueError(f"loss_fn: wanted the mean over the batch, {type(fn).__name__} has reduction={reduction!r}")
    custom = Loss(str(getattr(fn, "__name__", type(fn).__name__)), fn)
    refuse_sums(custom, model, first, run)
    form = form_of(fn, first.targets)
    if form is not None:
        with leave_no_trace(model):
            if same_as(Loss(form), custom.of_outputs, first, lambda batch: call_model(run, batch)):
                custom.form = form
    return custom


def resolve_loss(
    model: nn.Module,
    batches: Batches,
    loss: str | Callable[[Any, Any], Tensor] | Loss | None = None,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    *,
    run: Callable[..., Any] | None = None,
) -> Loss:
    """The loss to analyse.

    loss: "cross_entropy", "mse" or "bce" (on logits); loss_fn: callable(outputs, targets) -> scalar mean over the batch's samples.
    Guessed when both are None: the model's own ``.loss`` for dict batches with "labels" and a model that takes ``labels``;
    else cross-entropy for integer targets, MSE for floating targets. Everything else is a ValueError that lists the choices.
    run: what to call instead of ``model`` where guessing needs its outputs (a copy in another precision).
    """
    if isinstance(loss, Loss):
        return loss
    if callable(loss):
        loss, loss_fn = (None, loss) if loss_fn is None else (loss, loss_fn)
    if loss is not None and loss_fn is not None:
        raise ValueError("loss, loss_fn: give one of them, not both")
    if loss_fn is not None:
        if not callable(loss_fn):
            raise TypeError(f"loss_fn: wanted a callable(outputs, targets), got {type(loss_fn).__name__}")
        return _callers_loss(loss_fn, model, batches[0], run or model)
    if loss is not None:
        if loss not in ("cross_entropy", "mse", "bce"):
            raise ValueError(f"loss: unknown {loss!r}; choices: {CHOICES}")
        if not isinstance(batches[0].targets, Tensor):
            raise ValueError(f"loss: {loss!r} needs a tensor of targets, the batches have {type(batches[0].targets).__name__}")
        if loss == "cross_entropy":
            class_targets(batches[0].targets)
        return Loss(str(loss))
    own = _model_loss(model, batches[0], run or model)
    if own is not None:
        return own
    targets = batches[0].targets
    if isinstance(targets, Tensor) and targets.is_floating_point():
        return Loss("mse")
    if isinstance(targets, Tensor) and targets.dtype != torch.bool and not targets.is_complex():
        return Loss("cross_entropy")
    if targets is None:
        raise ValueError("loader: yields no targets, and the model computes no loss of its own: wanted batches (inputs, targets), or unpack= or loss_fn=")
    what = f"targets of dtype {str(targets.dtype).removeprefix('torch.')}" if isinstance(targets, Tensor) else f"targets of type {type(targets).__name__}"
    raise ValueError(f"loss: cannot be guessed from {what}; choices: {CHOICES}")
