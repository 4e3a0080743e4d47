"""Where a model uses its parameters: every torch function called with one of them, what it was called with, and the gradient of its output.

The gradient of a linear layer's weight is a sum of outer products of inputs and output gradients; those of biases, scales and embedding tables are
sums of output gradients. Both are had from one backward pass in which no parameter requires a gradient. A parameter that reaches a function
which is not known here is listed in ``unknown``: its gradients have to be computed in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .known_functions import KNOWN, Draft
from .recurrent_cells import CELLS, LAYERS, unrolled, unrolled_cell

__all__ = ["Call", "CallKey", "Part", "ParameterUses", "Region", "once_differentiable"]


@dataclass(frozen=True)
class Region:
    """The numbers of a parameter that a view of it holds: offset, and (size, stride) of its dimensions, largest stride first."""

    offset: int
    dims: tuple[tuple[int, int], ...]

    @property
    def numel(self) -> int:
        total = 1
        for size, _ in self.dims:
            total *= size
        return total

    def of(self, flat: Tensor) -> Tensor:
        """The view of (..., P) numbers that this region is: (..., sizes)."""
        lead = flat.shape[:-1]
        return flat.as_strided((*lead, *(s for s, _ in self.dims)), (*flat.stride()[:-1], *(d for _, d in self.dims)), flat.storage_offset() + self.offset)


@dataclass
class Part:
    """What one call means to one parameter. kind: "matrix" (outer products of the output's gradient and x), "rows" (sums of the output's gradient,
    times factor(x) where there is one), "tokens" (rows of the output's gradient added to those of a table), "conv".

    axes: for "rows", the output's dimensions that the region's dimensions lie along. transposed: for "matrix", whether the region's first dimension
    is that of the inputs. version: of x, when it was seen. chain: what was computed from the parameter alone before this call.
    """

    name: str
    kind: str
    region: Region
    x: Tensor | None
    axes: tuple[int, ...] = ()
    transposed: bool = False
    factor: Callable[[Tensor], Tensor] | None = None
    sign: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    version: int = 0
    chain: tuple[Shared, ...] = ()


@dataclass(frozen=True)
class Shared:
    """An output computed from a parameter alone, the same for all samples. tokens: the rows of the table it holds, where it is one's lookup;
    else back: the parameter's gradient from the output's, for one sample."""

    shape: torch.Size
    tokens: Tensor | None = None
    back: Callable[[Tensor], Tensor] | None = None
    padding: int | None = None


# (function, parameters, followed outputs on the way to it, dimensions of the output, how many such calls came before): the same in every run of a model
CallKey = tuple[str, tuple[str, ...], int, int, int]


@dataclass
class Call:
    """One call of a known function with parameters. axes: the dimensions of its output along which samples may lie."""

    key: CallKey
    parts: list[Part]
    shape: torch.Size
    axes: tuple[int, ...]
    gradients: list[Tensor] = field(default_factory=list)


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


class ParameterUses(TorchFunctionMode):
    """Active while the model runs. leaves: name -> tensor without requires_grad, with which the model is called.

    shared: calls whose output is the same for all samples. cloned: calls whose input is written to afterwards.
    receive: called with a Call and the gradient of its output, during the backward pass; by default the gradients are kept in the call.
    token: what the loss has to be differentiated with respect to for the gradients to be received.
    """

    def __init__(
        self,
        leaves: Mapping[str, Tensor],
        *,
        shared: frozenset[CallKey] = frozenset(),
        cloned: frozenset[CallKey] = frozenset(),
        receive: Callable[[Call, Tensor], None] | None = None,
    ) -> None:
        super().__init__()
        first = next(iter(leaves.values()))
        self.token = torch.zeros((), dtype=first.dtype, device=first.device, requires_grad=True)
        self.calls: list[Call] = []
        self.unknown: dict[str, str] = {}  # parameter -> the function that is not known
        self._shared, self._cloned = shared, cloned
        self._receive = receive or (lambda call, gradient: call.gradients.append(gradient))
        self._targets: dict[int, list[_Target]] = {}
        self._counts: dict[tuple[str, tuple[str, ...], int, int], int] = {}
        self._opened = False
        for name, leaf in leaves.items():
            self._add(_Target(name, leaf))

    def _add(self, target: _Target) -> None:
        self._targets.setdefault(target.tensor.untyped_storage().data_ptr(), []).append(target)

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
        order = tuple(sorted(dims, key=lambda d: (-view.stride(d), -view.shape[d])))
        sizes = tuple((view.shape[d], view.stride(d)) for d in order)
        if any(step == 0 and size > 1 for size, step in sizes):
            return None
        # a dimension of one entry has a stride that means nothing
        kept = tuple((size, step if size > 1 else 1) for size, step in sizes)
        return Region(view.storage_offset() - target.tensor.storage_offset(), kept), order

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
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
        drafts = KNOWN[func](out, *args, **kwargs) if func in KNOWN and torch.is_grad_enabled() else None
        recorded = None if drafts is None else self._record(func, out, found, *drafts)
        if recorded is not None:
            return recorded
        views = all(self.target(t) is not None for t in tensors)
        if views and func not in _CUT:
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
        parts: list[Part] = []
        for draft in drafts:
            target = self.target(draft.view)
            if target is None:
                continue
            part = self._part(draft, target, key in self._cloned)
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

    def _part(self, draft: Draft, target: _Target, copied: bool) -> Part | None:
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
        if x is not None and copied:
            x = x.clone()
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


@contextmanager
def once_differentiable() -> Iterator[None]:
    """Switches for exact first derivatives, put back afterwards: gradients on, autocast off, full float32 products (no TF32), no encoder fast path."""
    precision = torch.get_float32_matmul_precision()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    cudnn = torch.backends.cudnn
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        if torch.is_autocast_enabled("cpu"):
            stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.cuda.is_available():
            if torch.is_autocast_enabled("cuda"):
                stack.enter_context(torch.autocast("cuda", enabled=False))
            stack.enter_context(cudnn.flags(enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False))
        if precision != "highest":
            torch.set_float32_matmul_precision("highest")
            stack.callback(torch.set_float32_matmul_precision, precision)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        yield
