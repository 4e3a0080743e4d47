"""Hooks: which layer makes the logits, and what goes into a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Batch, call_model, logits_of
from .state import leave_no_trace

__all__ = ["capture_inputs", "find_classifier", "module_named", "origin_of_nan"]


def module_named(model: nn.Module, name: str) -> nn.Module:
    """The submodule called ``name``. Raises ValueError that lists similar names."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name in modules and name != "":
        return modules[name]
    linear = [n for n, m in modules.items() if isinstance(m, nn.Linear)]
    raise ValueError(f"layer: the model has no module {name!r}; its linear layers: {', '.join(linear[-8:]) or 'none'}")


def _is_output(made: Tensor, logits: Tensor) -> bool:
    """Is ``logits`` the tensor a layer made, a reshape of it, or its softmax or log-softmax?"""
    if made is logits:
        return True
    if made.numel() != logits.numel():
        return False
    if made.data_ptr() == logits.data_ptr() and made.numel() > 0:
        return True
    if made.shape != logits.shape:
        return False
    return any(torch.equal(f(made, dim=-1), logits) for f in (torch.log_softmax, torch.softmax))


def find_classifier(model: nn.Module, batch: Batch, layer: str | None = None) -> tuple[str, nn.Module]:
    """(name, module) of the layer that makes the logits: the last nn.Linear called in the forward pass whose output is the
    model's output (also seen through a reshape, softmax or log-softmax at the end). ``layer`` names it instead.

    Raises ValueError when there is none and lists the linear layers.
    """
    if layer is not None:
        return layer, module_named(model, layer)
    made: list[tuple[str, nn.Module, Tensor]] = []
    handles = []
    try:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):

                def note(m: nn.Module, _args: object, out: object, name: str = name) -> None:
                    if isinstance(out, Tensor):
                        made.append((name, m, out))

                handles.append(module.register_forward_hook(note))
        with leave_no_trace(model), torch.no_grad():
            logits = logits_of(call_model(model, batch))
    finally:
        for handle in handles:
            handle.remove()
    for name, module, out in reversed(made):
        if _is_output(out, logits):
            return name, module
    listed = ", ".join(dict.fromkeys(name for name, _, _ in made)) or "none was called"
    raise ValueError(f"layer: no linear layer's output is the model's output; name the classifier with layer= (linear layers: {listed})")


@contextmanager
def capture_inputs(model: nn.Module, module_name: str) -> Iterator[list[Tensor]]:
    """A list that receives the first input tensor of the module ``module_name`` at each of its calls, in order, detached.

    The caller empties the list between batches (``seen.clear()``); the hook goes away at the end of the block.
    """
    module = model if module_name == "" else module_named(model, module_name)  # a bare nn.Linear is its own classifier, named ""
    seen: list[Tensor] = []

    def note(_m: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        first = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        if first is not None:
            seen.append(first.detach())

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def origin_of_nan(model: nn.Module, run: Callable[..., Any], batch: Batch) -> str:
    """Where in the forward pass of ``batch`` the first NaN or Inf is, in words that follow a sentence; "" where there is none.

    run: the model, or what runs it with other parameters."""
    if not _finite(batch.inputs):
        return "; the samples themselves hold NaN or Inf"
    found: list[str] = []

    def look(name: str) -> Callable[[nn.Module, object, object], None]:
        def note(module: nn.Module, _args: object, out: object) -> None:
            if not found and not _finite(out):
                bad = [part for part, p in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)) if not _finite(p)]
                whose = f", whose {' and '.join(bad)} {'hold' if len(bad) > 1 else 'holds'} NaN or Inf" if bad else ""
                found.append(f"; first in the output of {name!r}{whose}")

        return note

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    try:
        with leave_no_trace(model), torch.no_grad():
            call_model(run, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ""


def _finite(x: Any) -> bool:
    if isinstance(x, Tensor):
        return not x.is_floating_point() or bool(torch.isfinite(x).all())
    if isinstance(x, Mapping):
        return all(map(_finite, x.values()))
    return all(map(_finite, x)) if isinstance(x, (tuple, list)) else True
