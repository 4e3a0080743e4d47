"""Hessians of mean losses with respect to the outputs, in closed form: applied to a vector in the vector's own memory, piece by piece,
so that a vocabulary of 100,000 costs no second array of logits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["bce_hessian_", "cross_entropy_hessian_", "mse_hessian_", "pieces", "working"]

PIECE = 1 << 19  # logits worked on at a time: 2 MB in float32, about what a core's own cache holds


def working(x: Tensor) -> Tensor:
    """Half-precision logits in float32: a softmax in bf16 has two digits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def pieces(shape: Sequence[int], each: int = 1, most: int = PIECE) -> Iterator[tuple[int | slice, ...]]:
    """Indices that cut a tensor of ``shape`` into pieces of at most ``most`` numbers (one element at least), ``each`` of them behind every element."""
    if not shape:
        yield ()
        return
    row = each * math.prod(shape[1:])
    if row <= most or len(shape) == 1:
        step = max(1, most // max(1, row))
        for i in range(0, shape[0], step):
            yield (slice(i, i + step),)
    else:
        for i in range(shape[0]):
            for rest in pieces(shape[1:], each, most):
                yield (i, *rest)


def mse_hessian_(z: Tensor, u: Tensor) -> Tensor:
    """u <- 2 u / number of outputs."""
    return u.mul_(2.0 / z.numel())


def bce_hessian_(z: Tensor, u: Tensor) -> Tensor:
    """u <- p (1 - p) u / number of outputs, p = sigmoid(z); z, u of one shape. 1 - p as sigmoid(-z), which keeps its digits."""
    for at in pieces(z.shape):
        x = working(z[at])
        u[at] = (working(u[at]) * torch.sigmoid(x)).mul_(torch.sigmoid(-x)).div_(z.numel())
    return u


def cross_entropy_hessian_(z: Tensor, ignored: Tensor, u: Tensor) -> Tensor:
    """u <- p (u - <p, u>) / number of valid rows, p = softmax(z); z, u (..., C), ignored (...) bool: its rows become 0.

    Centred: a saturated softmax gives 0 and not rounding noise."""
    valid = int(ignored.numel() - ignored.sum())
    for at in pieces(z.shape[:-1], z.shape[-1]):
        p, w = torch.softmax(working(z[at]), dim=-1), working(u[at])
        w = (w - (p * w).sum(dim=-1, keepdim=True)).mul_(p).div_(valid)
        u[at] = w.masked_fill_(ignored[at].unsqueeze(-1), 0.0)
    return u
