"""Gram matrices of per-sample gradients in torch's functions; part of ``torch_kernels``."""

from __future__ import annotations

import torch
from torch import Tensor

from .numpy_gradient_gram import CHAIN
from .torch_precision import ieee_products

__all__ = ["gradient_gram"]

_WORK = 1 << 26  # entries of what is in between


def gradient_gram(
    gram: Tensor,
    a: Tensor,
    b: Tensor | None = None,
    a2: Tensor | None = None,
    b2: Tensor | None = None,
    *,
    algorithm: str,
    times: Tensor | None = None,
) -> None:
    """See :func:`spectral_fast.kernels.numpy_kernels.gradient_gram`; tensors of one device."""
    if algorithm not in ("positions", "gradients"):
        raise ValueError(f"algorithm: unknown {algorithm}; known: positions, gradients")
    if (b2 is not None) != (a2 is not None and b is not None):
        raise ValueError("b2: wanted with b and a2, and only with them")
    left = _side(a, b, "a", "b")
    right = left if a2 is None else _side(a2, b2, "a2", "b2")
    for one, other, name, like in zip(left, right, ("a2", "b2"), ("a", "b"), strict=True):
        if one.dtype != other.dtype or one.shape[2] != other.shape[2]:
            raise ValueError(f"{name}: wanted the dtype and the width of {like}")
    if gram.shape != (len(left[0]), len(right[0])) or gram.dtype != torch.float64:
        raise ValueError(f"gram: wanted ({len(left[0])}, {len(right[0])}) float64 products, got {gram.dtype} {tuple(gram.shape)}")
    if times is not None and b is not None:
        raise ValueError("times: wanted only where b is not given")
    if times is not None and times.shape != gram.shape:
        raise ValueError("times: wanted the shape of gram")
    with ieee_products():
        total = (_rows if b is None else _positions if algorithm == "positions" else _gradients)(left, right)
    if times is not None:
        total *= times
    gram += total.tril() + total.tril(-1).mT if a2 is None else total


Side = tuple[Tensor, Tensor]


def _side(a: Tensor, b: Tensor | None, a_name: str, b_name: str) -> Side:
    for x, name in ((a, a_name), *(() if b is None else ((b, b_name),))):
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name}: wanted a float32 or float64 tensor, got dtype {x.dtype}")
        if x.ndim not in (2, 3):
            raise ValueError(f"{name}: wanted a (samples, positions, width) or (samples, width) tensor, got {x.ndim} dimensions")
    a = a[:, None] if a.ndim == 2 else a
    if b is None:
        if a.shape[1] != 1:
            raise ValueError(f"{a_name}: wanted rows (samples, width) where {b_name} is not given")
        return a, a.new_ones((len(a), 1, 1))
    b = b[:, None] if b.ndim == 2 else b
    if b.shape[:2] != a.shape[:2] or b.dtype != a.dtype:
        raise ValueError(f"{b_name}: wanted the dtype, the samples and the positions of {a_name}")
    return a, b


def _products(x: Tensor, y: Tensor) -> Tensor:
    """x yᵀ of rows (n, p) and (m, p), float64: sums of CHAIN terms in their own precision, many of them at once."""
    if x.dtype == torch.float64:
        return x @ y.mT
    n, m, p = len(x), len(y), x.shape[1]
    total = x.new_zeros((n, m), dtype=torch.float64)
    chains = max(1, _WORK // max(1, n * m)) * CHAIN
    whole = p // CHAIN * CHAIN
    for k in range(0, whole, chains):
        many = (min(k + chains, whole) - k) // CHAIN
        parts = [z[:, k : k + many * CHAIN].reshape(len(z), many, CHAIN).movedim(1, 0) for z in (x, y)]
        total += (parts[0] @ parts[1].mT).sum(0, dtype=torch.float64)
    if whole < p:
        total += x[:, whole:] @ y[:, whole:].mT
    return total


def _rows(left: Side, right: Side) -> Tensor:
    return _products(left[0][:, 0], right[0][:, 0])


def _positions(left: Side, right: Side) -> Tensor:
    (a, b), (a2, b2) = left, right
    t, s = a.shape[1], a2.shape[1]
    total = a.new_zeros((len(a), len(a2)), dtype=torch.float64)
    step = max(1, _WORK // max(1, t * s * len(a2)))
    for i in range(0, len(a), step):
        both = _products(a[i : i + step].flatten(0, 1), a2.flatten(0, 1))
        both *= _products(b[i : i + step].flatten(0, 1), b2.flatten(0, 1))
        total[i : i + step] = both.reshape(len(both) // t, t, len(a2), s).sum((1, 3))
    return total


def _gradients(left: Side, right: Side) -> Tensor:
    (a, b), (a2, b2) = left, right
    total = a.new_zeros((len(a), len(a2)), dtype=torch.float64)
    step = max(1, _WORK // max(1, max(len(a), len(a2)) * a.shape[2]))
    for q in range(0, b.shape[2], step):
        g = _own(a, b[:, :, q : q + step])
        total += _products(g, g if a2 is a else _own(a2, b2[:, :, q : q + step]))
    return total


def _own(a: Tensor, b: Tensor) -> Tensor:
    """sum_t b_it a_itᵀ as rows (n, q p), sums of CHAIN terms at a time."""
    total = a.new_zeros((len(a), b.shape[2], a.shape[2]))
    for t in range(0, a.shape[1], CHAIN):
        total += b[:, t : t + CHAIN].mT @ a[:, t : t + CHAIN]
    return total.flatten(1)
