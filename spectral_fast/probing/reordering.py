"""Calls that pick or place numbers by an index, which may depend on the samples: rows of one sample then need not stay where those of others were."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["moves_positions", "permuted_dimensions", "reorders"]

_ITEMS = {Tensor.__getitem__, Tensor.__setitem__}
_NAMES = (
    "index_select gather take take_along_dim masked_select masked_scatter masked_scatter_ scatter scatter_ scatter_add scatter_add_ scatter_reduce"
    " scatter_reduce_ index_add index_add_ index_copy index_copy_ index_put index_put_ index_fill index_fill_ sort argsort msort topk kthvalue nonzero argwhere"
    " unique unique_consecutive"
).split()
_MOVES = {getattr(home, name) for name in ("flip", "fliplr", "flipud", "rot90", "roll") for home in (torch, Tensor)}
_PERMUTES = {getattr(home, name) for name in ("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis") for home in (torch, Tensor)}
_FUNCTIONS = {getattr(home, name) for name in _NAMES for home in (torch, Tensor) if hasattr(home, name)}


def moves_positions(func: Any) -> bool:
    """Does ``func`` put what belongs to one position in the place of another?"""
    return func in _MOVES


def permuted_dimensions(func: Any, args: Any) -> int:
    """How many dimensions the tensor has whose dimensions ``func`` puts in another order; 0 where it does not."""
    return args[0].ndim if func in _PERMUTES and args and isinstance(args[0], Tensor) else 0


def reorders(func: Any, args: Any, kwargs: Any) -> bool:
    """Does ``func`` do so, with numbers that come from the samples by way of a parameter (they require a gradient)?"""
    if func in _ITEMS:
        index = pytree.tree_leaves(args[1])
        if not any(isinstance(i, Tensor) and i.ndim > 0 for i in index):
            return False
    elif func not in _FUNCTIONS:
        return False
    return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in pytree.tree_leaves((args, kwargs)))
