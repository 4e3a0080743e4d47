"""Gram matrices of a layer's per-sample gradients, from the layer's inputs and the gradients of its outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["gradient_gram"]

F64 = NDArray[np.float64]

CHAIN = 128  # terms of a sum in single precision
WORK = 1 << 22  # entries of what is in between


def gradient_gram(
    gram: F64,
    a: NDArray[Any],
    b: NDArray[Any] | None = None,
    a2: NDArray[Any] | None = None,
    b2: NDArray[Any] | None = None,
    *,
    algorithm: str,
    times: F64 | None = None,
) -> None:
    """Add ``<G_i, G2_j>`` to ``gram`` (n, m), float64, C-contiguous, in place, G_i = sum_t b_it a_itᵀ being the gradient of sample i with respect to a
    layer's weight: sum_t sum_s <a_it, a2_js> <b_it, b2_js> (Goodfellow 2015 for one position; Rochette, Manoel & Tramel 2019).

    a: (n, T, p) the layer's inputs, b: (n, T, q) the gradients of its outputs, at T positions; (n, p) and (n, q) for one. a2 (m, S, p), b2 (m, S, q): another
    set of samples; without them G2 is G, and ``gram``, symmetric before, is symmetric after. b None: a (n, P) holds the gradients themselves, as does a2.
    float32 or float64, all alike, the last axis contiguous.

    algorithm: "positions": both products of every pair of positions, (n T)² (p + q) operations; "gradients": G by tiles, 2 n T p q + n² p q. Of b None
    there is one only.

    times: (n, m) float64, where b is None: each product is multiplied by its entry before it is added. With one position the products of a layer's inputs
    times those of the gradients of its outputs are the products of the gradients of its weight.

    Accuracy: float64 throughout, or sums of CHAIN terms in float32 that are added up in float64, so that the error of a product of rows x, y is at most
    CHAIN 2^-24 |x|ᵀ|y|; with "gradients" the entries of G are float32 too, of error (CHAIN + T / CHAIN) 2^-24 sum_t |b||a|. NaN and Inf spread to the pairs
    of their samples. A Ctrl-C leaves ``gram`` half done.
    Raises ValueError, TypeError naming the argument.
    """
    if algorithm not in ("positions", "gradients"):
        raise ValueError(f"algorithm: unknown {algorithm}; known: positions, gradients")
    if (b2 is not None) != (a2 is not None and b is not None):
        raise ValueError("b2: wanted with b and a2, and only with them")
    left = _side(a, b, "a", "b")
    right = left if a2 is None else _side(a2, b2, "a2", "b2")
    for one, other, name, like in zip(left, right, ("a2", "b2"), ("a", "b"), strict=True):
        if one.dtype != other.dtype or one.shape[2] != other.shape[2]:
            raise ValueError(f"{name}: wanted the dtype and the width of {like}")
    if gram.shape != (len(left[0]), len(right[0])) or gram.dtype != np.float64:
        raise ValueError(f"gram: wanted ({len(left[0])}, {len(right[0])}) float64 products, got {gram.dtype} {gram.shape}")
    if times is not None and b is not None:
        raise ValueError("times: wanted only where b is not given")
    if times is not None and times.shape != gram.shape:
        raise ValueError("times: wanted the shape of gram")
    with np.errstate(invalid="ignore", over="ignore"):
        total = (_rows if b is None else _positions if algorithm == "positions" else _gradients)(left, right)
        if times is not None:
            total *= times
    gram += np.tril(total) + np.tril(total, -1).T if a2 is None else total


Side = tuple[NDArray[Any], NDArray[Any]]


def _side(a: NDArray[Any], b: NDArray[Any] | None, a_name: str, b_name: str) -> Side:
    for x, name in ((a, a_name), *(() if b is None else ((b, b_name),))):
        if x.dtype not in (np.float32, np.float64):
            raise TypeError(f"{name}: wanted a float32 or float64 array, got dtype {x.dtype}")
        if x.ndim not in (2, 3):
            raise ValueError(f"{name}: wanted a (samples, positions, width) or (samples, width) array, got {x.ndim} dimensions")
    a = np.ascontiguousarray(a[:, None, :] if a.ndim == 2 else a)  # a BLAS adds up in another order where rows lie apart
    if b is None:
        if a.shape[1] != 1:
            raise ValueError(f"{a_name}: wanted rows (samples, width) where {b_name} is not given")
        return a, np.ones((len(a), 1, 1), dtype=a.dtype)
    b = np.ascontiguousarray(b[:, None, :] if b.ndim == 2 else b)
    if b.shape[:2] != a.shape[:2] or b.dtype != a.dtype:
        raise ValueError(f"{b_name}: wanted the dtype, the samples and the positions of {a_name}")
    return a, b


def _products(x: NDArray[Any], y: NDArray[Any]) -> F64:
    """x yᵀ of rows (n, p) and (m, p), sums of CHAIN terms in their own precision."""
    if x.dtype == np.float64:
        return np.asarray(x @ y.T)
    total = np.zeros((len(x), len(y)))
    for k in range(0, x.shape[1], CHAIN):
        total += x[:, k : k + CHAIN] @ y[:, k : k + CHAIN].T
    return total


def _rows(left: Side, right: Side) -> F64:
    return _products(left[0][:, 0], right[0][:, 0])


def _positions(left: Side, right: Side) -> F64:
    (a, b), (a2, b2) = left, right
    t, s = a.shape[1], a2.shape[1]
    total = np.zeros((len(a), len(a2)))
    step = max(1, WORK // max(1, t * s * len(a2)))
    for i in range(0, len(a), step):
        n = len(a[i : i + step])
        both = _products(a[i : i + n].reshape(n * t, a.shape[2]), a2.reshape(len(a2) * s, a.shape[2]))
        both *= _products(b[i : i + n].reshape(n * t, b.shape[2]), b2.reshape(len(b2) * s, b.shape[2]))
        total[i : i + n] = both.reshape(n, t, len(a2), s).sum(axis=(1, 3))
    return total


def _gradients(left: Side, right: Side) -> F64:
    (a, b), (a2, b2) = left, right
    total = np.zeros((len(a), len(a2)))
    step = max(1, WORK // max(1, max(len(a), len(a2)) * a.shape[2]))
    for q in range(0, b.shape[2], step):
        g = _own(a, b[:, :, q : q + step])
        total += _products(g, g if a2 is a else _own(a2, b2[:, :, q : q + step]))
    return total


def _own(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """sum_t b_it a_itᵀ as rows (n, q p), sums of CHAIN terms at a time."""
    total = np.zeros((len(a), b.shape[2], a.shape[2]), dtype=a.dtype)
    for t in range(0, a.shape[1], CHAIN):
        total += b[:, t : t + CHAIN].transpose(0, 2, 1) @ a[:, t : t + CHAIN]
    return total.reshape(len(a), a.shape[2] * b.shape[2])
