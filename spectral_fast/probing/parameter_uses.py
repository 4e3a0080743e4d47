"""Where a model uses its parameters: every torch function called with one of them, what it was called with, and the gradient of its output.

The gradient of a linear layer's weight is a sum of outer products of inputs and output gradients; those of biases, scales and embedding tables are
sums of output gradients. Both are had from one backward pass in which no parameter requires a gradient. A parameter that reaches a function
which is not known here is listed in ``unknown``: its gradients have to be computed in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .known_functions import Draft, drafts_of
from .recurrent_cells import CELLS, LAYERS, unrolled, unrolled_cell
from .reordering import moves_positions, permuted_dimensions, reorders
from .use_records import Call, CallKey, Part, Region, Shared

__all__ = ["ParameterUses"]


@dataclass(frozen=True)
class _Target:
    name: str
    tensor: Tensor
    chain: tuple[Shared, ...] = ()


class _Enter(torch.autograd.Function):
    """Makes a tensor without a history one that requires a gradient; unlike requires_grad_ it may be written to afterwards."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, token: Tensor) -> Tensor:
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return None, None


def _without_question(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch's own code of a function in Python, which does not ask first whether somebody else wants to handle the call: its inner calls are seen."""
    assert isinstance(function, FunctionType)
    return FunctionType(function.__code__, {**function.__globals__, "has_torch_function": lambda *_: False}, function.__name__, function.__defaults__)


_OPENED = {F.multi_head_attention_forward: _without_question(F.multi_head_attention_forward)}
# their results are views that gradients do not pass
_CUT = {torch.Tensor.detach, torch.detach, torch.Tensor.data.__get__}  # type: ignore[attr-defined]


def _in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name in ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__") or (name.endswith("_") and not name.endswith("__"))


class ParameterUses(TorchFunctionMode):
    """Active while the model runs. leaves: name -> tensor without requires_grad, with which the model is called.

    shared: calls whose output is the same for all samples. expected: calls that are known from another run.
    receive: called with a Call and the gradient of its output, during the backward pass; by default the gradients are kept in the call.
    token: what the loss has to be differentiated with respect to for the gradients to be received.
    """

    def __init__(
        self,
        leaves: Mapping[str, Tensor],
        *,
        shared: frozenset[CallKey] = frozenset(),
        expected: frozenset[CallKey] = frozenset(),
        receive: Callable[[Call, Tensor], None] | None = None,
    ) -> None:
        super().__init__()
        first = next(iter(leaves.values()))
        self.token = torch.zeros((), dtype=first.dtype, device=first.device, requires_grad=True)
        self.calls: list[Call] = []
        self.unknown: dict[str, str] = {}  # parameter -> the function that is not known
        self.reordered = ""  # the first function that picks or places the samples' numbers by an index
        self.moved = ""  # the first function that puts positions in another order
        self.permuted = 0  # dimensions of the largest tensor whose dimensions were put in another order
        self._shared, self._expected = shared, expected
        self._receive = receive or (lambda call, gradient: call.gradients.append(gradient))
        self._targets: dict[int, list[_Target]] = {}
        self._counts: dict[tuple[str, tuple[str, ...], int, int], int] = {}
        self._opened = False
        for name, leaf in leaves.items():
            self._add(_Target(name, leaf))

    def _add(self, target: _Target) -> None:
        self._targets.setdefault(target.tensor.untyped_storage().data_ptr(), []).append(target)

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Of the parameters and of what is computed from them alone."""
        return {target.tensor.dtype for targets in self._targets.values() for target in targets}

    def target(self, t: Any) -> _Target | None:
        """The parameter that ``t`` is, or is a view of."""
        if not isinstance(t, Tensor) or t.numel() == 0 or t.layout is not torch.strided:
            return None
        found = self._targets.get(t.untyped_storage().data_ptr())
        if found is None:
            return None
        offset = t.storage_offset()
        for candidate in found:
            start = candidate.tensor.storage_offset()
            if start <= offset < start + candidate.tensor.numel():
                return candidate if t.dtype == candidate.tensor.dtype else None
        return None

    def region(self, view: Tensor, target: _Target, dims: tuple[int, ...]) -> tuple[Region, tuple[int, ...]] | None:
        """The region of these dimensions of a view, and the order in which it has them. None where numbers are repeated."""
        shape, strides = view.shape, view.stride()
        order = tuple(sorted(dims, key=lambda d: (-strides[d], -shape[d])))
        sizes = tuple((shape[d], strides[d]) for d in order)
        if any(step == 0 and size > 1 for size, step in sizes):
            return None
        # a dimension of one entry has a stride that means nothing
        kept = tuple((size, step if size > 1 else 1) for size, step in sizes)
        return Region(int(view.storage_offset() - target.tensor.storage_offset()), kept), order

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.reordered and reorders(func, args, kwargs):
            self.reordered = getattr(func, "__name__", str(func))
        if not self.moved and moves_positions(func):
            self.moved = getattr(func, "__name__", str(func))
        self.permuted = max(self.permuted, permuted_dimensions(func, args))
        found = {t.name: t for t in map(self.target, pytree.tree_leaves((args, kwargs))) if t is not None}
        if not found:
            return func(*args, **kwargs)
        if func in _OPENED and not self._opened:
            self._opened = True
            try:
                with self:
                    return _OPENED[func](*args, **kwargs)
            finally:
                self._opened = False
        try:
            if func in LAYERS:
                with self:
                    return unrolled(LAYERS[func], args, kwargs)
            if func in CELLS:
                with self:
                    return unrolled_cell(CELLS[func], *args, **kwargs)
        except NotImplementedError:
            pass
        out = func(*args, **kwargs)
        tensors = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        if not tensors:
            return out  # a shape, a dtype
        drafts = drafts_of(func, out, args, kwargs) if torch.is_grad_enabled() else None
        recorded = None if drafts is None else self._record(func, out, found, *drafts)
        if recorded is not None:
            return recorded
        views = all(self.target(t) is not None for t in tensors)
        if views and func not in _CUT and not _in_place(func):
            return out
        derived = None if views else self._derive(func, args, kwargs, tensors, found)
        if derived is not None:
            self._add(derived)
            return out
        for name in found:
            self.unknown.setdefault(name, getattr(func, "__name__", str(func)))
        return out

    def _derive(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], found: Mapping[str, _Target]) -> _Target | None:
        """An output computed from one parameter and numbers alone is followed further: 1 + w, exp(w), w.float()."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        where = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
        if len(where) != 1 or len(found) != 1 or not torch.is_grad_enabled() or func in _CUT:
            return None
        view, out, source = leaves[where[0]], tensors[0], next(iter(found.values()))
        if len(tensors) != 1 or not out.is_floating_point() or getattr(func, "__name__", "").endswith("_"):
            return None
        offset = view.storage_offset() - source.tensor.storage_offset()
        values = source.tensor.as_strided(source.tensor.shape, source.tensor.stride(), source.tensor.storage_offset())
        if not values.is_contiguous():
            return None

        def again(w: Tensor) -> Tensor:
            filled = list(leaves)
            filled[where[0]] = w if view.shape == w.shape and view.stride() == w.stride() else w.as_strided(view.shape, view.stride(), offset)
            a, k = pytree.tree_unflatten(filled, spec)
            result: Tensor = func(*a, **k)
            return result

        def back(gradient: Tensor) -> Tensor:
            result: Tensor = torch.func.vjp(again, values)[1](gradient)[0]
            return result

        return _Target(source.name, out, (*source.chain, Shared(out.shape, back=back)))

    def _record(self, func: Any, out: Tensor, found: Mapping[str, _Target], drafts: list[Draft], axes: tuple[int, ...]) -> Tensor | None:
        """The output, watched; None where the call is not one of the known kinds after all."""
        name = getattr(func, "__name__", str(func))
        if name.endswith("_") and not name.endswith("__") and out._is_view():
            return None
        targets = [t for t in (self.target(draft.view) for draft in drafts) if t is not None]
        common = (name, tuple(t.name for t in targets), max(len(t.chain) for t in targets) if targets else 0, out.ndim)
        self._counts[common] = self._counts.get(common, -1) + 1
        key = (*common, self._counts[common])
        if self.target(out) is not None and out.numel() == drafts[0].view.numel() and key not in self._expected:
            return None  # a view like any other; with one sample what is expanded for several looks like one
        parts: list[Part] = []
        for draft in drafts:
            target = self.target(draft.view)
            if target is None:
                continue
            part = self._part(draft, target)
            if part is None or self.target(draft.x) is not None:
                return None
            parts.append(part)
        if {p.name for p in parts} != set(found) or len({id(d.view) for d in drafts}) != len(drafts):
            return None
        axes = tuple(a for a in axes if not any(a in p.axes for p in parts))
        if key in self._shared:
            return self._share(out, parts)
        if self.target(out) is not None:
            out = out.clone()  # a view of the parameter (expand): its own numbers are not to require a gradient
        call = Call(key, parts, out.shape, axes)
        self.calls.append(call)
        if not out.requires_grad:
            out = _Enter.apply(out, self.token)  # type: ignore[no-untyped-call]

        def hook(gradient: Tensor) -> None:
            with torch.no_grad():
                self._receive(call, gradient)

        out.register_hook(hook)  # type: ignore[no-untyped-call]
        return out

    def _share(self, out: Tensor, parts: list[Part]) -> Tensor | None:
        """A table's rows that are the same for all samples (positions): what is done with them is followed instead."""
        if len(parts) != 1 or parts[0].kind != "tokens" or parts[0].x is None:
            return None
        part = parts[0]
        self._add(_Target(part.name, out, (*part.chain, Shared(out.shape, tokens=part.x, padding=part.options["padding"]))))
        return out

    def _part(self, draft: Draft, target: _Target) -> Part | None:
        place = self.region(draft.view, target, draft.dims)
        if place is None:
            return None
        region, order = place
        whole = draft.view.shape == target.tensor.shape and draft.view.stride() == target.tensor.stride()
        if (draft.kind in ("tokens", "conv") and not whole) or (target.chain and draft.kind != "rows"):
            return None
        if target.chain and not target.tensor.is_contiguous():
            return None
        x = draft.x.detach() if draft.x is not None else None
        axes = tuple(draft.axes[draft.dims.index(d)] for d in order) if draft.kind == "rows" else ()
        return Part(
            target.name,
            draft.kind,
            region,
            x,
            axes,
            order != draft.dims,
            draft.factor,
            draft.sign,
            draft.options,
            x._version if x is not None else 0,
            target.chain,
        )
