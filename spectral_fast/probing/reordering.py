"""Calls that pick or place numbers by an index, which may depend on the samples: rows of one sample then need not stay where those of others were."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["reorders"]

_ITEMS = {Tensor.__getitem__, Tensor.__setitem__}
_NAMES = (
    "index_select gather take take_along_dim masked_select masked_scatter masked_scatter_ scatter scatter_ scatter_add scatter_add_ scatter_reduce"
    " scatter_reduce_ index_add index_add_ index_copy index_copy_ index_put index_put_ index_fill index_fill_ sort argsort msort topk kthvalue nonzero argwhere"
    " unique unique_consecutive"
).split()
_FUNCTIONS = {getattr(home, name) for name in _NAMES for home in (torch, Tensor) if hasattr(home, name)}


def reorders(func: Any, args: Any, kwargs: Any) -> bool:
    """Does ``func`` do so, with numbers that come from the samples by way of a parameter (they require a gradient)?"""
    if func in _ITEMS:
        index = pytree.tree_leaves(args[1])
        if not any(isinstance(i, Tensor) and i.ndim > 0 for i in index):
            return False
    elif func not in _FUNCTIONS:
        return False
    return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in pytree.tree_leaves((args, kwargs)))
