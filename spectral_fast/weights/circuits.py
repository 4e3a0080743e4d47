"""Spectra of products of weights, from their factors: LoRA updates, and the QK and OV circuits of attention heads.

``lora_svdvals(b, a)`` and ``head_circuits(w_q, w_k, w_v, w_o, n_heads=...)``. A product L Rᵀ of tall factors (m, r) and (n, r) has the singular values
of the small core R_L R_Rᵀ of their QR factorizations, so nothing of size m x n is formed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..linalg.arrays import as_float64, like
from .batches import core_values

__all__ = ["head_circuits", "lora_svdvals"]

F64 = NDArray[np.float64]


def lora_svdvals(b: Any, a: Any, *, alpha: float | None = None, rank_stabilized: bool = False) -> Any:
    """Singular values of a LoRA update scale * B A (Hu et al. 2021, section 4.1).

    b:     (..., m, r) and a: (..., r, n), arrays or torch tensors; leading axes broadcast.
    alpha: scale = alpha/r, or alpha/sqrt(r) with ``rank_stabilized`` (Kalajdzievski 2023); None: scale 1.

    Returns (..., min(m, n, r)) float64, descending; the other min(m, n) - min(m, n, r) values of the product are exactly 0 and left out. A factor with
    a NaN or an infinity gives NaN. Error: c eps times the product of the factors' spectral norms (eps = 2^-52, c of the order of sqrt(m) + sqrt(n) + r).
    Raises ValueError when the shapes do not multiply, alpha is not finite, or ``rank_stabilized`` comes without alpha.
    """
    left, right = _matrices("b", b), _matrices("a", a)
    rank = left.shape[-1]
    if right.shape[-2] != rank:
        raise ValueError(f"b, a: got shapes {left.shape} and {right.shape}; wanted (..., m, r) and (..., r, n)")
    if rank == 0:
        raise ValueError("b, a: rank r = 0")
    if alpha is None and rank_stabilized:
        raise ValueError("rank_stabilized: the scale alpha/sqrt(r) needs alpha")
    if alpha is not None and not np.isfinite(alpha):
        raise ValueError(f"alpha: got {alpha!r}; wanted a finite number")
    scale = 1.0 if alpha is None else abs(alpha) / (np.sqrt(rank) if rank_stabilized else rank)
    return like(b, scale * _product(*_triangle(left), *_triangle(np.swapaxes(right, -1, -2))))


def head_circuits(w_q: Any, w_k: Any, w_v: Any, w_o: Any, *, n_heads: int, n_kv_heads: int | None = None) -> tuple[Any, Any]:
    """Singular values of the QK circuit W_Q,hᵀ W_K,h and the OV circuit W_O,h W_V,h of every head h (Elhage et al. 2021).

    w_q: (n_heads * d_head, d); w_k: (n_kv_heads * d_head, d_kv); w_v: (n_kv_heads * d_v, d_kv); w_o: (d_out, n_heads * d_v), stored (out, in)
    as torch's Linear does (transpose a Conv1D's first). Heads are consecutive blocks. Grouped queries: head h reads kv head
    h // (n_heads / n_kv_heads) (Ainslie et al. 2023); n_kv_heads None: n_heads.

    Returns (qk, ov), (n_heads, min(d_head, d, d_kv)) and (n_heads, min(d_v, d_out, d_kv)) float64, descending: the values that can differ from 0. Scores
    are not divided by sqrt(d_head), biases are left out. With rotary embeddings the QK circuit depends on the distance; this is the one at offset 0.
    Raises ValueError naming the argument whose shape does not fit.
    """
    kv_heads = n_heads if n_kv_heads is None else n_kv_heads
    if n_heads < 1 or kv_heads < 1 or n_heads % kv_heads:
        raise ValueError(f"n_heads, n_kv_heads: got {n_heads} and {kv_heads}; wanted n_kv_heads to divide n_heads")
    q, k, v, o = (_matrices(name, w) for name, w in (("w_q", w_q), ("w_k", w_k), ("w_v", w_v), ("w_o", w_o)))
    for name, w, axis, heads in (("w_q", q, 0, n_heads), ("w_k", k, 0, kv_heads), ("w_v", v, 0, kv_heads), ("w_o", o, 1, n_heads)):
        if w.ndim != 2:
            raise ValueError(f"{name}: got shape {w.shape}; wanted two dimensions")
        if w.shape[axis] == 0 or w.shape[axis] % heads:
            raise ValueError(f"{name}: got shape {w.shape}; wanted axis {axis} to be a multiple of {heads} heads")
    d_head, d_v = q.shape[0] // n_heads, v.shape[0] // kv_heads
    if k.shape[0] // kv_heads != d_head:
        raise ValueError(f"w_k: got shape {k.shape}, {k.shape[0] // kv_heads} per head; w_q has {d_head}")
    if o.shape[1] // n_heads != d_v:
        raise ValueError(f"w_o: got shape {o.shape}, {o.shape[1] // n_heads} per head; w_v has {d_v}")
    if k.shape[1] != v.shape[1]:
        raise ValueError(f"w_k, w_v: got shapes {k.shape} and {v.shape}; wanted one number of inputs")
    # Each kv head is factored once and used by its whole group.
    kv_of = np.arange(n_heads) // (n_heads // kv_heads)

    def rows(w: F64, heads: int) -> F64:
        return np.asarray(w.reshape(heads, -1, w.shape[1]).transpose(0, 2, 1))  # (heads, d, per head)

    (r_q, e_q), (r_k, e_k), (r_v, e_v) = _triangle(rows(q, n_heads)), _triangle(rows(k, kv_heads)), _triangle(rows(v, kv_heads))
    r_o, e_o = _triangle(np.asarray(o.reshape(o.shape[0], n_heads, d_v).transpose(1, 0, 2)))
    return like(w_q, _product(r_q, e_q, r_k[kv_of], e_k[kv_of])), like(w_q, _product(r_o, e_o, r_v[kv_of], e_v[kv_of]))


def _matrices(name: str, w: Any) -> F64:
    try:
        x = as_float64(w)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: {error}") from error
    if x.ndim < 2:
        raise ValueError(f"{name}: got shape {x.shape}; wanted (..., rows, columns)")
    return x


def _triangle(factor: F64) -> tuple[F64, NDArray[np.int64]]:
    """R of the QR factorization of (..., m, r) scaled by 2^-e to a largest entry of about 1, and e (...): products then cannot overflow or vanish."""
    top = np.abs(factor).max(axis=(-2, -1), initial=0.0)
    exponent = np.where(np.isfinite(top) & (top > 0), np.frexp(np.where(np.isfinite(top), top, 1.0))[1], 0).astype(np.int64)
    scaled = np.ldexp(factor, -exponent[..., None, None])
    scaled = np.where(np.isfinite(top)[..., None, None], scaled, np.nan)  # a matrix with an infinity has no values; LAPACK would mix it with zeros
    return np.asarray(np.linalg.qr(scaled, mode="r")), exponent


def _product(r_left: F64, e_left: NDArray[np.int64], r_right: F64, e_right: NDArray[np.int64]) -> F64:
    """Singular values of the products of factors given by their triangles (..., <= r, r)."""
    core = np.asarray(r_left @ np.swapaxes(r_right, -1, -2))
    return np.asarray(np.ldexp(core_values(core), (e_left + e_right)[..., None]))
