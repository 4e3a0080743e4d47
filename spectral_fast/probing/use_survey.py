"""A look at how a model uses its parameters, on a few samples: which calls, which rows belong to which sample, what has to be computed another way.

What is found is checked against a plain gradient of two samples, parameter by parameter, before anything is built on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .batches import Batch, Batches, call_model
from .contributions import contribution
from .functional import FunctionalModel
from .layer_grams import Contribution, GramKernel
from .losses import Loss
from .own_losses import one_sample, own_losses
from .parameter_gradient import ParameterGradient
from .parameter_uses import ParameterUses
from .per_sample import Unit, take
from .sample_layout import Layout, find_layout, sample_factors
from .use_records import Call, CallKey

__all__ = ["Refused", "Survey", "forward", "survey"]

PROBED = 4  # samples looked at
ROUNDS = 8


class Refused(Exception):
    """Gradients cannot be had from one backward pass over the batch; the message says why."""


@dataclass
class Survey:
    """layouts: where samples lie in the outputs of a call; certain: False where its gradients were zero. slow: parameter -> why its gradients
    have to be computed sample by sample. shared: see ParameterUses. gradients: of the samples looked at. run_bytes: per sample, what a forward and
    backward pass holds. eps: of the coarsest dtype that gradients come in."""

    layouts: dict[CallKey, Layout] = field(default_factory=dict)
    certain: dict[CallKey, bool] = field(default_factory=dict)
    slow: dict[str, str] = field(default_factory=dict)
    shared: frozenset[CallKey] = frozenset()
    gradients: dict[str, ParameterGradient] = field(default_factory=dict)
    run_bytes: float = 0.0
    probed: int = 1
    eps: float = 0.0


# what torch raises when a model or a loss cannot be run in this way
_CANNOT = (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError, AssertionError)


@contextmanager
def _refusing() -> Iterator[None]:
    """What a model or a loss raises inside as Refused; running out of memory stays what it is."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _CANNOT as error:
        lines = str(error).strip().splitlines()
        raise Refused(f"{type(error).__name__}: {lines[0][:200] if lines else ''}") from error


def forward(functional: FunctionalModel, loss: Loss, batch: Batch, uses: ParameterUses, leaves: Mapping[str, Tensor]) -> Tensor:
    """(n,) own losses of the batch's samples; the model sees ``leaves``, watched by ``uses``. Raises Refused."""
    with _refusing():
        with uses:
            outputs = call_model(lambda *args, **kwargs: functional(*args, leaves=leaves, **kwargs), batch)
        return own_losses(loss, outputs, batch.targets, batch.size)


def refuse_reordering(uses: ParameterUses) -> None:
    """Which rows are whose is found out from a few samples: it must not depend on what they are."""
    if uses.reordered:
        raise Refused(f"{uses.reordered} picks or places samples' numbers by an index, so whose they are may differ from batch to batch")


def _largest(batches: Batches, units: list[Unit]) -> tuple[int, list[int]]:
    """The batch to look at, and indices of some of its units."""
    members: dict[int, list[int]] = {}
    for i, u in enumerate(units):
        members.setdefault(u.batch, []).append(i)

    def numbers(b: int) -> int:
        return sum(t.numel() for t in pytree.tree_leaves(batches[b].inputs) if isinstance(t, Tensor))

    best = max(members, key=lambda b: (min(len(members[b]), PROBED), numbers(b) / batches[b].size))
    some = members[best]
    return best, [some[i] for i in sorted({round(k * (len(some) - 1) / max(PROBED - 1, 1)) for k in range(PROBED)})]


def survey(
    functional: FunctionalModel, batches: Batches, loss: Loss, units: list[Unit], kernel: GramKernel, slow: Mapping[str, str], algorithm: str = "auto"
) -> Survey:
    """slow: what is known already to be computed another way. Raises Refused."""
    best, some = _largest(batches, units)
    batch = take(batches[best], [u.row for i in some if (u := units[i]).row is not None])
    result = Survey(slow=dict(slow), probed=batch.size)
    detached = {name: p.detach() for name, p in functional.parameters.items()}
    for _ in range(ROUNDS):
        uses = ParameterUses(detached, shared=result.shared)
        own = _look(functional, loss, batch, uses, detached, result)
        if _settled(uses, batch.size, detached, result, sample_factors(batch.size, own)):
            _verify(functional, loss, batch, own, kernel, result, algorithm)
            return result
    raise Refused("its calls differ from run to run")


def _look(functional: FunctionalModel, loss: Loss, batch: Batch, uses: ParameterUses, detached: Mapping[str, Tensor], result: Survey) -> Tensor:
    held: dict[int, int] = {}
    own_memory = {t.untyped_storage().data_ptr() for t in detached.values()}

    def count(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own_memory:
            held[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        own = forward(functional, loss, batch, uses, detached)
    refuse_reordering(uses)
    for call in uses.calls:
        for part in call.parts:
            if part.x is not None:
                count(part.x)
    result.run_bytes = 2.0 * sum(held.values()) / batch.size
    if own.shape != (batch.size,):
        raise Refused(f"own losses of shape {tuple(own.shape)}, not ({batch.size},)")
    if own.requires_grad:
        with _refusing():
            torch.autograd.grad(own.sum(), uses.token, allow_unused=True, retain_graph=True)
            torch.autograd.grad((own * sample_factors(batch.size, own)).sum(), uses.token, allow_unused=True)
    return own.detach()


def _settled(uses: ParameterUses, n: int, shapes: Mapping[str, Tensor], result: Survey, factors: Tensor) -> bool:
    """Reads the calls into ``result``; False where the model has to be run again with something else watched."""
    result.slow.update({name: f"used by {function}" for name, function in uses.unknown.items()})
    result.layouts, result.certain, result.gradients = {}, {}, {}
    result.eps = max(torch.finfo(dtype).eps for dtype in uses.dtypes | {g.dtype for call in uses.calls for g in call.gradients})
    found: dict[str, list[Contribution]] = {}
    shared = set(result.shared)
    for call in uses.calls:
        if all(p.name in result.slow for p in call.parts):
            continue
        layout, certain = _layout(call, n, factors)
        if layout is None:
            if call.key[0] == "embedding" and call.key[2] == 0 and call.key not in shared:
                shared.add(call.key)  # rows that are the same for all samples: positions
            else:
                result.slow.update({p.name: f"its samples cannot be told apart in {call.key[0]}" for p in call.parts if p.name not in result.slow})
            continue
        result.layouts[call.key], result.certain[call.key] = layout, certain
        for part in call.parts:
            if part.name in result.slow or not call.gradients:
                continue
            try:
                found.setdefault(part.name, []).append(contribution(part, call.gradients[0], layout, n, shapes[part.name].shape))
            except RuntimeError as error:
                result.slow[part.name] = str(error).splitlines()[0][:160]
    again = shared != set(result.shared)
    result.shared = frozenset(shared)
    for name, parts in found.items():
        if name not in result.slow:
            try:
                result.gradients[name] = ParameterGradient(parts, shapes[name].numel())
            except ValueError as error:
                result.slow[name] = str(error)
    return not again


def _layout(call: Call, n: int, factors: Tensor) -> tuple[Layout | None, bool]:
    if len(call.gradients) != 2:
        return (Layout(call.axes[0]) if call.axes else None), False
    return find_layout(call.gradients[0], call.gradients[1], factors, call.axes)


def _refuse_dependence(functional: FunctionalModel, loss: Loss, batch: Batch, own: Tensor, some: list[int]) -> None:
    """A sample's loss has to stay the same when all others become copies of it. The batch has the same shape then, so that rounding is the same too, but for
    sums whose order varies from run to run."""
    if batch.size == 1:
        return
    allowed = min(64 * torch.finfo(own.dtype).eps, 0.02)
    for k in some:
        copies = take(batch, [k] * batch.size)
        with _refusing(), torch.no_grad():
            value = float(loss.of_outputs(*one_sample(call_model(functional, copies), copies.targets, k, batch.size)))
        if not abs(value - float(own[k])) <= allowed * max(abs(float(own[k])), 1e-3):
            raise Refused(f"a sample's loss is {float(own[k]):.6g} in its batch, {value:.6g} among copies of itself: it depends on the other samples")


def _verify(functional: FunctionalModel, loss: Loss, batch: Batch, own: Tensor, kernel: GramKernel, result: Survey, algorithm: str) -> None:
    """The plain gradient of a weighted sum of losses of two of the samples, run without the others, against what was found: its norm by parameter; and
    their losses. A parameter that fails is slow; losses that differ are refused."""
    leaves = functional.parameters
    some = [k for k in sorted({0, batch.size - 1}) if torch.isfinite(own[k])]
    if not some:
        return
    tolerance = min(1e3 * result.eps, 0.1)
    few = take(batch, some)
    with _refusing():
        outputs = call_model(functional, few)
        values = torch.stack([loss.of_outputs(*one_sample(outputs, few.targets, i, len(some))) for i in range(len(some))])
    _refuse_dependence(functional, loss, batch, own, some)
    found = [*zip(some, values.tolist(), strict=True)]
    if batch.size == 2:  # these two are all of the batch
        with _refusing(), torch.no_grad():
            found.append((some[0], float(loss.batch(functional, take(batch, some[:1])))))
    for k, value in found:
        if abs(value - float(own[k])) > tolerance * max(abs(float(own[k])), 1e-3):
            raise Refused(f"a sample's loss without the others is {value:.6g}, in its batch {float(own[k]):.6g}")
    factors = sample_factors(batch.size, own).index_select(0, torch.tensor(some).to(own.device))
    with _refusing():
        total = (values * factors).sum()
        plain: Any = torch.autograd.grad(total, tuple(leaves.values()), allow_unused=True) if total.requires_grad else [None] * len(leaves)
    weights = np.zeros(batch.size)
    weights[some] = factors.double().cpu().numpy()
    want = {name: 0.0 if g is None else float(torch.dot(g.flatten(), g.flatten())) for name, g in zip(leaves, plain, strict=True)}
    whole = sum(want.values())
    for name, norm2 in want.items():
        if name in result.slow or not np.isfinite(norm2):
            continue
        got = np.zeros((batch.size, batch.size))
        if name in result.gradients:
            gradient = result.gradients[name]
            gradient.gram(got, None, kernel, gradient.route(batch.size, algorithm)[0])
        # of what the terms of the sum are at most; gradients that are zero but for rounding (biases of keys) are compared with the whole gradient
        size = max(float(np.abs(weights) @ np.sqrt(np.maximum(np.diagonal(got), 0.0))) ** 2, norm2)
        if not abs(float(weights @ got @ weights) - norm2) <= tolerance * size + tolerance**2 * whole:
            result.slow[name] = "its products differ from those of plain gradients"
            result.gradients.pop(name, None)
