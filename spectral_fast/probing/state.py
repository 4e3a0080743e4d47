"""Leave no trace: a model and the random generators are after an analysis what they were before it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["eval_notes", "keep_rng", "leave_no_trace", "listed"]


@contextmanager
def keep_rng(*generators: torch.Generator) -> Iterator[None]:
    """Restore the states of python's, numpy's and torch's (CPU, CUDA, MPS) global generators and of ``generators``."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    mps_state = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    own_states = [g.get_state() for g in generators]
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
        if mps_state is not None:
            torch.mps.set_rng_state(mps_state)
        for generator, state in zip(generators, own_states, strict=True):
            generator.set_state(state)


@contextmanager
def leave_no_trace(model: nn.Module, *, eval_mode: bool = True) -> Iterator[None]:
    """Run the body, then put back: training flags of every submodule, requires_grad, .grad (same object, same bits), buffers
    (same object, same bits) and the random generators, also after an exception.

    Inside, every ``.grad`` is None, so nothing can be accumulated into the user's gradients, and with ``eval_mode`` every
    submodule has training = False (the flag itself: overridden ``train()`` methods, which may merge adapters, are not called).
    Parameters are not copied (a copy of a large model may not fit): their version counters are watched, and RuntimeError names
    a parameter which the model wrote to in its forward pass.
    """
    modules = list(model.modules())
    parameters = list(model.named_parameters())
    if any(torch.nn.parameter.is_lazy(p) for _, p in parameters):
        raise ValueError("model: has lazy parameters without a shape; call it once on a batch first")
    training = [m.training for m in modules]
    flags = [p.requires_grad for _, p in parameters]
    grads = [p.grad for _, p in parameters]
    versions = [p._version for _, p in parameters]
    # old-style weight_norm and friends leave computed tensors as plain attributes; recurrent layers keep lists of their weights,
    # which they renew when they are called with others
    lists = ("_flat_weights", "_flat_weight_refs")
    attributes = [(m, {k: v for k, v in vars(m).items() if isinstance(v, torch.Tensor) or k in lists}) for m in modules]
    buffers: list[tuple[dict[str, Any], str, torch.Tensor | None, torch.Tensor | None, int]] = []
    for m in modules:
        for name, b in m._buffers.items():
            buffers.append((m._buffers, name, b, None if b is None else b.detach().clone(), 0 if b is None else b._version))
    try:
        with keep_rng():
            for _, p in parameters:
                p.grad = None
            if eval_mode:
                for m in modules:
                    m.training = False
            yield
    finally:
        for m, flag in zip(modules, training, strict=True):
            m.training = flag
        for (_, p), flag, grad in zip(parameters, flags, grads, strict=True):
            p.requires_grad_(flag)
            p.grad = grad
        for home, name, b, copy, version in buffers:
            if b is not None and copy is not None and b._version != version:
                with torch.no_grad():
                    b.copy_(copy)
            home[name] = b
        for m, tensors in attributes:
            vars(m).update(tensors)
    changed = [name for (name, p), version in zip(parameters, versions, strict=True) if p._version != version]
    if changed:
        raise RuntimeError(f"model: its forward pass wrote to the parameters {', '.join(changed[:5])}, which cannot be undone")


def eval_notes(model: nn.Module) -> tuple[str, ...]:
    """What evaluation mode changes in ``model`` as it stands now: one sentence for dropout, one for normalisation statistics."""
    dropout, norm = [], []
    for name, m in model.named_modules():
        if not m.training:
            continue
        if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0:
            dropout.append(name or type(m).__name__)
        elif isinstance(m, nn.RNNBase) and m.dropout > 0:
            dropout.append(name or type(m).__name__)
        elif isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats:
            norm.append(name or type(m).__name__)
    notes = []
    if dropout:
        notes.append(f"eval mode: dropout off in {listed(dropout)}")
    if norm:
        notes.append(f"eval mode: running statistics frozen and used in {listed(norm)}")
    return tuple(notes)


def listed(names: list[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
