"""A model called with other parameters than its own, and the switches second derivatives need."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..kernels.torch_precision import ieee_products

__all__ = ["Draws", "FunctionalModel", "frozen_note", "select_parameters", "storage_key", "twice_differentiable", "unwrap"]

ParameterFilter = None | str | list[str] | tuple[str, ...] | Callable[[str, nn.Parameter], bool]


def unwrap(model: nn.Module) -> nn.Module:
    """The plain module inside DataParallel and DistributedDataParallel, whose own backward hooks forbid create_graph."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: wanted a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner: nn.Module = model.module
        return inner
    if any(type(m).__name__ in ("FullyShardedDataParallel", "FSDPModule") for m in model.modules()):
        raise TypeError("model: FSDP has no double backward; give the unsharded module")
    return model


def storage_key(p: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same numbers in memory: same storage, offset, shape and strides. Sharing only the
    storage does not count: cuDNN keeps all weights of an LSTM in one."""
    if p.numel() == 0:
        return ("empty", id(p))
    return (str(p.device), p.untyped_storage().data_ptr(), p.storage_offset(), tuple(p.shape), p.stride(), p.dtype)


def select_parameters(model: nn.Module, params: ParameterFilter = None) -> dict[str, nn.Parameter]:
    """Name -> parameter, floating ones only, tied ones once under their first name.

    params: None: those with requires_grad, or all where none has it; a glob or a list of globs on the names; or callable(name, p) -> bool.
    Raises ValueError when nothing is selected.
    """
    first: dict[tuple[Any, ...], str] = {}
    known: dict[str, nn.Parameter] = {}
    matches = _matcher(params)
    for name, p in model.named_parameters(remove_duplicate=False):
        if not p.is_floating_point():
            continue
        key = storage_key(p)
        if key not in first:
            first[key] = name
            known[name] = p
    chosen = {name: p for name, p in known.items() if matches(name, p)}
    if params is None and not chosen:
        chosen = known
    if not known:
        raise ValueError("model: has no parameters of floating-point numbers")
    if not chosen:
        raise ValueError(f"params: {params!r} selects none of the {len(known)} floating parameters: {', '.join(list(known)[:8])}")
    return chosen


def frozen_note(model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> str:
    """What became of the parameters that are not trained (``chosen`` by select_parameters), "" where there are none or they were asked for."""
    frozen = sum(1 for p in model.parameters() if not p.requires_grad)
    if frozen and all(p.requires_grad for p in chosen.values()):
        return f"{frozen} frozen parameters (requires_grad=False) left out"
    if frozen == sum(1 for _ in model.parameters()) > 0:
        return "all parameters are frozen (requires_grad=False): looked at as if they were trained"
    return ""


def _matcher(params: ParameterFilter) -> Callable[[str, nn.Parameter], bool]:
    if params is None:
        return lambda name, p: p.requires_grad
    if callable(params):
        return params
    globs = [params] if isinstance(params, str) else list(params)
    if not all(isinstance(g, str) for g in globs):
        raise TypeError("params: wanted None, a glob, a list of globs or callable(name, parameter) -> bool")
    from fnmatch import fnmatchcase

    return lambda name, p: any(fnmatchcase(name, g) for g in globs)


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Switches for exact second derivatives, put back afterwards: gradients on, autocast off, full float32 products (no TF32),
    attention by the math kernel and without the encoder fast path, cuDNN off for recurrent layers (neither the flash and
    memory-efficient kernels nor cuDNN's recurrent ones can be differentiated twice)."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    cudnn = torch.backends.cudnn
    recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if torch.is_autocast_enabled("cpu"):
            stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.cuda.is_available():
            if torch.is_autocast_enabled("cuda"):
                stack.enter_context(torch.autocast("cuda", enabled=False))
            if recurrent and cudnn.enabled:
                cudnn.enabled = False
                stack.callback(setattr, cudnn, "enabled", True)
        stack.enter_context(ieee_products())
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        yield


class Draws:
    """The states of the random generators at one moment (python, numpy, torch and ``device``), to begin from again."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._python, self._numpy, self._torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)


class FunctionalModel:
    """``model`` as a function of detached copies of its parameters and buffers: its own are never touched.

    parameters: the leaves, name -> tensor with requires_grad (detached views where device and dtype agree, else copies).
    Calling it runs the model with the leaves, or with ``leaves=`` given for some of them.
    """

    def __init__(self, model: nn.Module, params: Mapping[str, nn.Parameter], device: torch.device, dtype: torch.dtype | None) -> None:
        self.model = model
        names = {storage_key(p): name for name, p in params.items()}
        self.aliases: dict[str, list[str]] = {name: [] for name in params}
        self.constants: dict[str, Tensor] = {}
        self._seen = self._look()

        def moved(t: Tensor) -> Tensor:
            return t.detach().to(device=device, dtype=dtype if t.is_floating_point() else None)

        for name, p in model.named_parameters(remove_duplicate=False):
            first = names.get(storage_key(p))
            if first is None:
                self.constants[name] = moved(p)
            else:
                self.aliases[first].append(name)
        self._buffers = {name: b for name, b in model.named_buffers(remove_duplicate=False)}
        self._moved = moved
        self.parameters = {name: moved(p).requires_grad_(True) for name, p in params.items()}

    def use_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Run with these in place of the model's own."""
        self._buffers.update(buffers)

    def _look(self) -> dict[str, tuple[Any, ...]]:
        return {name: (p._version, *storage_key(p)) for name, p in self.model.named_parameters()}

    def check_unchanged(self) -> None:
        """Raises RuntimeError when a parameter was written to, moved or replaced after the operator was built (say, by an optimizer step)."""
        if (now := self._look()) != self._seen:
            name = next(name for name in (*now, *self._seen) if now.get(name) != self._seen.get(name))
            raise RuntimeError(f"model: parameter {name!r} changed after the operator was built; build a new one")

    def __call__(self, *args: Any, leaves: Mapping[str, Tensor] | None = None, **kwargs: Any) -> Any:
        tensors = dict(self.constants)
        # buffers are copied at every call: a model may write to them, and not twice into the same graph
        for name, b in self._buffers.items():
            tensors[name] = self._moved(b).clone()
        for first, names in self.aliases.items():
            leaf = self.parameters[first] if leaves is None or first not in leaves else leaves[first]
            for name in names:
                tensors[name] = leaf
        return torch.func.functional_call(self.model, tensors, args, kwargs, tie_weights=False)
