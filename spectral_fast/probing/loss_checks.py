"""What a loss that came from outside is found to be: does it average over the samples, is it one of the losses known in closed form, does it depend on
the logits alone?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .batches import Batch, call_model, chosen_samples, logits_of, put_logits
from .state import leave_no_trace

if TYPE_CHECKING:
    from .losses import Loss

__all__ = ["form_of", "only_through_logits", "refuse_sums", "same_as"]

# A loss is one of the known ones where value, gradient and second derivative agree to so many eps: another order of the same sums leaves some ten. A term
# beside it as small as the usual regularisers of logits, 1e-4 of the loss, is three times as far off in float32.
ROUNDINGS = 300.0
# A model that computes its loss in half precision knows three digits of it.
COARSEST = 1e-3
FEW = 4  # samples whose derivatives are compared, so that a large vocabulary costs little


def form_of(fn: Any, targets: Any) -> str | None:
    """The closed form that one of torch's own losses has on such targets, "cross_entropy", "mse" or "bce"; None for any other callable and for
    settings (class weights, smoothing, another ignored index) that the closed forms do not cover."""
    if not isinstance(targets, Tensor):
        return None
    numbers = targets.is_floating_point() or targets.is_complex()
    if fn is F.cross_entropy or (isinstance(fn, nn.CrossEntropyLoss) and (fn.weight, fn.ignore_index, fn.label_smoothing) == (None, -100, 0.0)):
        return None if numbers else "cross_entropy"
    if fn is F.binary_cross_entropy_with_logits or (isinstance(fn, nn.BCEWithLogitsLoss) and (fn.weight, fn.pos_weight) == (None, None)):
        return "bce"
    return "mse" if fn is F.mse_loss or isinstance(fn, nn.MSELoss) else None


def same_as(known: Loss, value: Callable[[Any, Any], Tensor], batch: Batch, run: Callable[[Batch], Any]) -> bool:
    """Does ``known``, of the logits, equal ``value``, of what ``run`` gives: in value on the whole batch, and on its first samples with a valid target
    in value, gradient and a product with the Hessian, all with respect to the logits?"""
    try:
        with torch.no_grad():
            outputs = run(batch)
            if not _equal(known.of_outputs(outputs, batch.targets), value(outputs, batch.targets), logits_of(outputs)):
                return False
        few = chosen_samples(batch, _with_targets(batch, known.shifted))
        with torch.enable_grad():
            outputs = run(few)
            z = logits_of(outputs)
            if not z.requires_grad:
                return True  # nothing in the model is differentiable
            given = _derivatives(value(outputs, few.targets), z)
            zz = z.detach().requires_grad_()
            return all(_close(a, b, float(torch.finfo(z.dtype).eps)) for a, b in zip(_derivatives(known.of_outputs(zz, few.targets), zz), given, strict=True))
    except (TypeError, ValueError, IndexError, RuntimeError):  # NotImplementedError too
        return False  # logits and targets do not fit the known loss, or it cannot be differentiated: the form stays unknown


def _with_targets(batch: Batch, shifted: bool) -> Tensor:
    targets = batch.targets[:, 1:] if shifted and isinstance(batch.targets, Tensor) else batch.targets
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.ndim == 0:
        return torch.arange(min(FEW, batch.size))
    return (targets != -100).reshape(len(targets), -1).any(dim=1).nonzero()[:FEW, 0].cpu()


def _equal(known: Tensor, given: Tensor, z: Tensor) -> bool:
    eps = max(float(torch.finfo(t.dtype).eps) for t in (given, z))
    # the logarithm of a sum of exponentials is as uncertain as its largest exponent
    reach = 1.0 + float(z.detach().abs().max()) if z.numel() else 1.0
    difference = abs(float(known.double()) - float(given.double()))
    return difference <= min(ROUNDINGS * eps, COARSEST) * abs(float(given.double())) + 10.0 * eps * reach


def _derivatives(value: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient with respect to z, and the Hessian's product with a vector of signs: zeros where there is none."""
    (g,) = torch.autograd.grad(value, z, create_graph=True, allow_unused=True)
    if g is None or not g.requires_grad:
        return (torch.zeros_like(z) if g is None else g.detach()), torch.zeros_like(z)
    signs = torch.where(torch.arange(z.numel(), device=z.device) * 0.6180339887498949 % 1.0 < 0.5, 1.0, -1.0).to(z.dtype).reshape(z.shape)
    (second,) = torch.autograd.grad(g, z, signs, allow_unused=True)
    return g.detach(), torch.zeros_like(z) if second is None else second.detach()


def _close(a: Tensor, b: Tensor, eps: float) -> bool:
    """To so many eps of their length, and of that of a softmax's rounding: 1 / sqrt(rows) for the mean over rows."""
    a, b = a.double(), b.double()
    rows = max(1.0, a.numel() / a.shape[-1]) if a.ndim else 1.0
    size = max(float(a.norm()), float(b.norm()))
    return float((a - b).norm()) <= min(ROUNDINGS * eps, COARSEST) * size + 30.0 * eps / math.sqrt(rows)


def refuse_sums(loss: Loss, model: nn.Module, first: Batch, run: Callable[..., Any]) -> None:
    """ValueError for a loss that adds over the samples instead of averaging: its value over a batch is that of the two halves together."""
    half = first.size // 2
    if half == 0 or not isinstance(first.targets, Tensor) or first.targets.shape[:1] != (first.size,):
        return
    try:
        # the halves go through the model by themselves: what else its output holds, and how, need not be known
        with leave_no_trace(model), torch.no_grad():
            parts = [chosen_samples(first, which) for which in (slice(None), slice(half), slice(half, None))]
            whole, one, two = (float(loss.of_outputs(call_model(run, part), part.targets)) for part in parts)
    except Exception:  # a caller's own code: what is wrong with it shows, and is told, where it is used
        return
    if (
        whole != 0
        and math.isclose(whole, one + two, rel_tol=1e-4)
        and not math.isclose(whole, (half * one + (first.size - half) * two) / first.size, rel_tol=1e-2)
    ):
        raise ValueError(
            f"loss_fn: wanted the mean over the batch; {loss.name} adds up: {whole:.4g} on {first.size} samples, {one:.4g} and {two:.4g} on their halves"
        )


def only_through_logits(loss: Loss, outputs: Any, targets: Any, leaves: Sequence[Tensor]) -> None:
    """Raises NotImplementedError where the loss depends on ``leaves`` other than through the logits in ``outputs``, which have their graph: then it is no
    function of the logits, and a Gauss-Newton matrix made of them is not that of the loss. TypeError: see put_logits."""
    z = logits_of(outputs)
    whole = loss.of_outputs(outputs, targets)
    again = loss.of_outputs(put_logits(outputs, z.detach().requires_grad_()), targets)
    value, other = float(whole.detach()), float(again.detach())
    if value != other and not (math.isnan(value) and math.isnan(other)) and not math.isclose(value, other, rel_tol=ROUNDINGS * float(torch.finfo(z.dtype).eps)):
        raise NotImplementedError(f"loss {loss.name!r}: it is {value:.6g} of the model's output, and {other:.6g} of the same output made anew")
    if not again.requires_grad:
        return
    grads = torch.autograd.grad(again, list(leaves), retain_graph=True, allow_unused=True)
    if any(g is not None and bool(g.any()) for g in grads):
        raise NotImplementedError(f"loss {loss.name!r}: it depends on the parameters through more of the model's output than its logits")
