"""What a model calls in its forward pass: attention, recurrent layers, functions with kinks, and how much it saves for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .state import listed

__all__ = ["Calls", "watched_calls"]

ATTENTION = ("scaled_dot_product_attention", "multi_head_attention_forward")
# Functions with jumps in their first derivative; rounding and quantizing ones jump themselves.
KINKED = frozenset(
    "relu relu_ relu6 leaky_relu leaky_relu_ prelu rrelu threshold hardtanh hardtanh_ hardswish hardsigmoid hardshrink softshrink abs absolute clamp "
    "clamp_ clamp_min clamp_max clip maximum minimum fmax fmin max min amax amin max_pool1d max_pool2d max_pool3d max_pool1d_with_indices "
    "max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d sort topk median round floor ceil sign "
    "_max_pool1d _max_pool2d _max_pool3d _adaptive_max_pool1d _adaptive_max_pool2d _adaptive_max_pool3d".split()
)


@dataclass(frozen=True)
class Calls:
    """attention: names of the modules that call scaled_dot_product_attention; recurrent: names of LSTM, GRU and RNN modules; kinks: names
    of the functions called whose derivative jumps; saved_bytes: what the forward pass keeps for the backward pass, parameters not counted."""

    attention: tuple[str, ...]
    recurrent: tuple[str, ...]
    kinks: tuple[str, ...]
    saved_bytes: int
    on_gpu: bool

    @property
    def notes(self) -> tuple[str, ...]:
        """What had to be switched for second derivatives, the modules named."""
        notes = []
        if self.attention:
            notes.append(f"attention of {listed(list(self.attention))} computed by the math kernel: the fused ones have no second derivative")
        if self.recurrent and self.on_gpu:
            notes.append(f"{listed(list(self.recurrent))} computed without cuDNN: its recurrent kernels have no second derivative")
        return tuple(notes)


class _Watch(TorchFunctionMode):
    """Writes down which module was running when a function of interest was called."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = []
        self.attention: dict[str, None] = {}
        self.kinks: dict[str, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        # attention that has to give its weights is not computed by scaled_dot_product_attention
        if name in ATTENTION and not kwargs.get("need_weights", False):
            self.attention[self.running[-1] if self.running else ""] = None
        if name in KINKED:
            self.kinks[name.strip("_")] = None
        return func(*args, **kwargs)


@contextmanager
def _named(model: nn.Module, running: list[str]) -> Iterator[None]:
    """``running``: a stack of the names of the modules whose forward is running."""
    handles = []
    try:
        for name, module in model.named_modules():

            def enter(_m: nn.Module, _args: Any, name: str = name or type(model).__name__) -> None:
                running.append(name)

            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(lambda *_: running.pop() and None))
        yield
    finally:
        for handle in handles:
            handle.remove()


def watched_calls(model: nn.Module, loss: Callable[[], Tensor], leaves: tuple[Tensor, ...]) -> Calls:
    """Runs ``loss`` (a forward pass of ``model`` with gradients on) once, watched."""
    own = {leaf.untyped_storage().data_ptr() for leaf in leaves}
    seen: dict[int, int] = {}

    def count(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return t.detach()

    watch = _Watch()
    with _named(model, watch.running), watch, torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        loss()
    recurrent = tuple(name or type(m).__name__ for name, m in model.named_modules() if isinstance(m, nn.RNNBase))
    on_gpu = any(leaf.is_cuda for leaf in leaves)
    return Calls(tuple(watch.attention), recurrent, tuple(watch.kinks), sum(seen.values()), on_gpu)
