"""A model as a function of some of its parameters, and the switches exact first derivatives need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ..kernels.torch_precision import ieee_products
from .functional import FunctionalModel

__all__ = ["SelectedParameters", "once_differentiable"]


class SelectedParameters(FunctionalModel):
    """A functional model whose parameters are some of another's; the others do not require gradients."""

    def __init__(self, whole: FunctionalModel, names: list[str]) -> None:
        self._whole = whole
        self._rest = {name: p.detach() for name, p in whole.parameters.items() if name not in names}
        self.parameters = {name: whole.parameters[name] for name in names}

    def __call__(self, *args: Any, leaves: Mapping[str, Tensor] | None = None, **kwargs: Any) -> Any:
        return self._whole(*args, leaves={**self._rest, **(self.parameters if leaves is None else leaves)}, **kwargs)


@contextmanager
def once_differentiable() -> Iterator[None]:
    """Switches for exact first derivatives, put back afterwards: gradients on, autocast off, full float32 products (no TF32), no encoder fast path."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        if torch.is_autocast_enabled("cpu"):
            stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.cuda.is_available():
            if torch.is_autocast_enabled("cuda"):
                stack.enter_context(torch.autocast("cuda", enabled=False))
        stack.enter_context(ieee_products())
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        yield
