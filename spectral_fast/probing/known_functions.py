"""The torch functions whose parameters' gradients are known sums of inputs and output gradients, one entry per function.

An entry is called with the function's output and its arguments and says what each parameter's gradient is made of: a list of Draft, and the dimensions
of the output along which samples may lie. None: this call is not one of the known forms.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Draft", "drafts_of"]


@dataclass(frozen=True)
class Draft:
    """kind, x, factor, sign, options: see parameter_uses.Part. view: the parameter, or the view of it, that the function was called with;
    dims: its dimensions that hold more than one number ("matrix": outputs, inputs); axes: for "rows", where they lie in the output."""

    view: Tensor
    kind: str
    x: Tensor | None
    dims: tuple[int, ...]
    axes: tuple[int, ...] = ()
    factor: Callable[[Tensor], Tensor] | None = None
    sign: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)


Drafts = tuple[list[Draft], tuple[int, ...]] | None


def _trailing(view: Tensor, out: Tensor, x: Tensor | None = None, factor: Callable[[Tensor], Tensor] | None = None, sign: float = 1.0) -> Draft:
    """A parameter broadcast against the last dimensions of the output."""
    dims = tuple(d for d in range(view.ndim) if view.shape[d] > 1)
    return Draft(view, "rows", x, dims, tuple(out.ndim - view.ndim + d for d in dims), factor, sign)


def _channels(view: Tensor, x: Tensor | None = None, factor: Callable[[Tensor], Tensor] | None = None) -> Draft:
    """A parameter with one number per channel, dimension 1 of the output."""
    dims = tuple(d for d in range(view.ndim) if view.shape[d] > 1)
    return Draft(view, "rows", x, dims, (1,) * len(dims), factor)


def _linear(out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Drafts:
    if weight.ndim != 2 or input.ndim < 2:
        return None
    biases = [] if bias is None else [_trailing(bias, out)]
    return [Draft(weight, "matrix", input, (0, 1)), *biases], tuple(range(out.ndim - 1))


def _matmul(out: Tensor, input: Tensor, other: Tensor, **rest: Any) -> Drafts:
    if rest or other.ndim != 2 or input.ndim < 2:
        return None
    return [Draft(other, "matrix", input, (1, 0))], tuple(range(out.ndim - 1))


def _addmm(out: Tensor, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1, **rest: Any) -> Drafts:
    if rest or beta != 1 or alpha != 1:
        return None
    return [Draft(mat2, "matrix", mat1, (1, 0)), _trailing(input, out)], (0,)


def _tuple(x: Any, n: int) -> tuple[int, ...]:
    values = (x,) if isinstance(x, int) else tuple(x)
    return values * n if len(values) == 1 else values


def _conv(out: Tensor, input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Drafts:
    n = weight.ndim - 2
    if input.ndim != weight.ndim:
        return None
    dilation = _tuple(dilation, n)
    if isinstance(padding, str):
        spread = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, weight.shape[2:], strict=True)]
        pads = tuple((s // 2, s - s // 2) for s in spread)
    else:
        pads = tuple((p, p) for p in _tuple(padding, n))
    options = {"stride": _tuple(stride, n), "pads": pads, "dilation": dilation, "groups": groups, "kernel": tuple(weight.shape[2:])}
    biases = [] if bias is None else [_channels(bias)]
    return [Draft(weight, "conv", input, tuple(range(weight.ndim)), options=options), *biases], (0,)


def _embedding(
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Drafts:
    if max_norm is not None or scale_grad_by_freq:
        return None
    padding = None if padding_idx is None else padding_idx % weight.shape[0]
    return [Draft(weight, "tokens", input, (0, 1), options={"padding": padding})], tuple(range(out.ndim - 1))


def _normalised(out: Tensor, weight: Tensor | None, bias: Tensor | None, x: Tensor, xhat: Callable[[Tensor], Tensor], first: int) -> Drafts:
    """first: the output's first dimension that the parameters lie along (1: channels, and only those)."""
    channels = first < 0
    place: Callable[..., Draft] = _channels if channels else (lambda view, *rest: _trailing(view, out, *rest))
    drafts = ([] if weight is None else [place(weight, x, xhat)]) + ([] if bias is None else [place(bias)])
    return drafts, (0,) if channels else tuple(range(first))


def _layer_norm(out: Tensor, input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Drafts:
    shape = list(normalized_shape)
    return _normalised(out, weight, bias, input, lambda x: F.layer_norm(x, shape, eps=eps), out.ndim - len(shape))


def _rms_norm(out: Tensor, input: Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Drafts:
    shape = list(normalized_shape)
    return _normalised(out, weight, None, input, lambda x: F.rms_norm(x, shape, eps=eps), out.ndim - len(shape))


def _group_norm(out: Tensor, input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Drafts:
    return _normalised(out, weight, bias, input, lambda x: F.group_norm(x, num_groups, eps=eps), -1)


def _batch_norm(
    out: Tensor,
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Drafts:
    if training or running_mean is None or running_var is None:
        return None  # statistics of the batch: samples are not independent
    return _normalised(out, weight, bias, input, lambda x: F.batch_norm(x, running_mean, running_var, eps=eps), -1)


def _instance_norm(
    out: Tensor,
    input: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Drafts:
    if input.ndim < 3:
        return None
    if not use_input_stats:
        return _batch_norm(out, input, running_mean, running_var, weight, bias, False, momentum, eps)
    return _normalised(out, weight, bias, input, lambda x: F.instance_norm(x, eps=eps), -1)


def _prelu(out: Tensor, input: Tensor, weight: Tensor) -> Drafts:
    return [_channels(weight, input, lambda x: x.clamp(max=0.0))], (0,)


def _pair(out: Tensor, a: Any, b: Any, signs: tuple[float, float] | None) -> Drafts:
    """A sum of two (signs), or a product (None). Which of the two is the parameter is found out by the caller: the other draft's view is none."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return None
    if signs is not None:
        return [_trailing(a, out, sign=signs[0]), _trailing(b, out, sign=signs[1])], tuple(range(out.ndim))
    drafts = [_trailing(p, out, x, lambda x, shape=out.shape: x.expand(shape)) for p, x in ((a, b), (b, a))]  # type: ignore[misc]
    return drafts, tuple(range(out.ndim))


def _add(out: Tensor, input: Any, other: Any, *, alpha: float = 1, **rest: Any) -> Drafts:
    return None if rest else _pair(out, input, other, (1.0, float(alpha)))


def _sub(out: Tensor, input: Any, other: Any, *, alpha: float = 1, **rest: Any) -> Drafts:
    return None if rest else _pair(out, input, other, (1.0, -float(alpha)))


def _rsub(out: Tensor, input: Any, other: Any) -> Drafts:
    return _pair(out, input, other, (-1.0, 1.0))


def _mul(out: Tensor, input: Any, other: Any, **rest: Any) -> Drafts:
    return None if rest else _pair(out, input, other, None)


def _expand(out: Tensor, input: Tensor, *_: Any, **__: Any) -> Drafts:
    return [_trailing(input, out)], tuple(range(out.ndim))


def drafts_of(func: Any, out: Tensor, args: Any, kwargs: Any) -> Drafts:
    """What a call means to its parameters; None where the function, or this way of calling it, is not known."""
    entry = KNOWN.get(func)
    if entry is None or not isinstance(out, Tensor):
        return None
    try:
        bound = _SIGNATURES[entry].bind(out, *args, **kwargs)
    except TypeError:
        return None
    return entry(*bound.args, **bound.kwargs)


_T = torch.Tensor
KNOWN: dict[Any, Callable[..., Drafts]] = {
    F.linear: _linear,
    **dict.fromkeys((torch.matmul, torch.mm, _T.matmul, _T.mm, _T.__matmul__), _matmul),
    **dict.fromkeys((torch.addmm, _T.addmm), _addmm),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _conv),
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    **dict.fromkeys((F.prelu, torch.prelu, _T.prelu), _prelu),
    **dict.fromkeys((torch.add, _T.add, _T.__add__, _T.__radd__, _T.add_, _T.__iadd__), _add),
    **dict.fromkeys((torch.sub, _T.sub, _T.__sub__), _sub),
    _T.__rsub__: _rsub,
    **dict.fromkeys((torch.mul, _T.mul, _T.__mul__, _T.__rmul__), _mul),
    **dict.fromkeys((_T.expand, _T.expand_as, torch.broadcast_to, _T.broadcast_to), _expand),
}
_SIGNATURES = {entry: inspect.signature(entry) for entry in KNOWN.values()}
