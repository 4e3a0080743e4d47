"""From what a call was made with and the gradient of its output to what it adds to the gradients of its parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .conv_grams import ConvSum
from .layer_grams import Contribution, MatrixSum, Rows, Tokens
from .sample_layout import Layout
from .use_records import Part, whole_region

__all__ = ["along_chain", "contribution", "unsummed"]


def contribution(part: Part, gradient: Tensor, layout: Layout, n: int, shape: Sequence[int]) -> Contribution:
    """What a call adds to the gradients of n samples. gradient: of the call's output. shape: of the parameter.

    Raises ValueError where the layout does not fit, RuntimeError where the call's input was written to after the call.
    """
    if part.x is not None and part.x._version != part.version:
        raise RuntimeError(f"the input of a call with {part.name} was written to afterwards")
    if part.kind == "matrix":
        assert part.x is not None
        x = layout.split(part.x, n)
        b = layout.split(gradient, n)
        x, b = x.reshape(n, -1, x.shape[-1]), b.reshape(n, -1, b.shape[-1])
        return MatrixSum(x, b, part.region) if part.transposed else MatrixSum(b, x, part.region)
    if part.kind == "conv":
        assert part.x is not None
        x, b = (layout.split(t, n).flatten(0, 1) for t in (part.x, gradient))
        return ConvSum([(x, b, part.options)], n, part.region)
    if part.kind == "tokens":
        assert part.x is not None
        tokens, b = layout.split(part.x, n).reshape(n, -1), layout.split(gradient, n)
        return Tokens.of(tokens, b.reshape(n, -1, b.shape[-1]), shape[0], part.region, part.options["padding"])
    value = unsummed(part, gradient, layout, n)
    value = value.sum(2) if value.shape[2] != 1 else value[:, :, 0]
    return along_chain(part, Rows(value, part.region), shape)


def unsummed(part: Part, gradient: Tensor, layout: Layout, n: int) -> Tensor:
    """(n, numbers of the region, what they are summed over) of a part of kind "rows"."""
    value = gradient if part.factor is None or part.x is None else gradient * part.factor(part.x)
    value = layout.split(value if part.sign == 1.0 else part.sign * value, n)
    # the dimensions come out as (n, positions, the others in their order)
    kept = [2 + a - (a > layout.axis) for a in part.axes]
    rest = [d for d in range(1, value.ndim) if d not in kept]
    value = value.permute(0, *kept, *rest)
    return value.reshape(n, part.region.numel, -1)


def along_chain(part: Part, rows: Rows, shape: Sequence[int]) -> Contribution:
    """Rows for something computed from the parameter -> for the parameter."""
    for k in range(len(part.chain) - 1, -1, -1):
        shared = part.chain[k]
        whole = rows.embedded(shared.shape.numel()).view(rows.n, *shared.shape)
        if shared.tokens is not None:
            tokens = shared.tokens.flatten()[None].expand(rows.n, -1)
            return Tokens.of(tokens, whole.reshape(rows.n, tokens.shape[1], -1), shape[0], whole_region(shape), shared.padding)
        assert shared.back is not None
        rows = Rows(torch.func.vmap(shared.back)(whole).reshape(rows.n, -1), whole_region(part.chain[k - 1].shape if k else shape))
    return rows
