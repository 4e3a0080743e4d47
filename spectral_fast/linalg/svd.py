"""Singular values of arrays: the argument checks of ``sf.svdvals`` and ``sf.matrix_rank``; the work is a kernel's."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ..kernels.select import select
from .arrays import FORMATS, RawArray, as_numpy, as_tensor, bfloat16_bits, device_of, dtype_name, like

__all__ = ["svd_bound", "svd_workspace", "svdvals"]

_ACCURACIES = ("standard", "high", "fast")
_SINGLE_ABOVE = 320  # values: with more, "fast" multiplies in single precision
_RAW_BITS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e4m3fnuz": "uint8", "float8_e5m2": "uint8", "float8_e5m2fnuz": "uint8"}


def svd_bound(s: NDArray[np.float64], accuracy: str = "high") -> NDArray[np.float64]:
    """Bound on the error of each computed singular value, (..., d_min), with c = 10 sqrt(d_min), eps = 2^-52.

    s: computed values (..., d_min), descending. accuracy: "high": c eps s_1 for all of a matrix; "standard": |s_hat^2 - s^2| <= c eps s_1^2,
    hence the smaller of sqrt(c eps) s_1 and c eps s_1^2 / s (infinitesimals of second order included: the bound is solved from the computed
    value); "fast": as "standard" up to 320 values, beyond with 68 * 2^-24 (s_1^2 + s_2^2 + ...) added to the error of s^2, the most that sums
    of 64 products in single precision can be off. NaN where values are.
    """
    if s.shape[-1] == 0:
        return np.zeros_like(s)
    c_eps = 10.0 * np.sqrt(s.shape[-1]) * 2.0**-52
    top = s[..., :1]
    if accuracy == "high":
        return np.asarray(np.broadcast_to(c_eps * top, s.shape).copy())
    # s^2 >= s_hat^2 - w with w = c eps s_1^2: s_hat - s <= w / (s_hat + sqrt(s_hat^2 - w)); upwards s - s_hat <= w / (s_hat + sqrt(s_hat^2 + w)) is less
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        x = s / top
        w: Any = c_eps
        if accuracy == "fast" and s.shape[-1] > _SINGLE_ABOVE:
            w = c_eps + 68.0 * 2.0**-24 * (x * x).sum(axis=-1, keepdims=True)
        below = x - np.sqrt(np.maximum(x * x - w, 0.0))
        above = np.sqrt(x * x + w) - x
        direct = w / (x + np.sqrt(np.maximum(x * x - w, 0.0)))  # the same as `below` without cancellation
        bound = np.where(x * x > w, direct, np.maximum(below, above)) * top
    return np.asarray(np.where(top == 0.0, 0.0, bound))


def svd_workspace(shape: tuple[int, int, int], accuracy: str = "standard", *, backend: str = "native", threads: int = 1) -> int:
    """Bytes that the singular values of a batch of matrices (batch, m, n) need beside their entries, values included.

    Every thread that works on a matrix by itself has one float64 working matrix (n x ld, n the shorter side, ld at most n + 16), a panel of 256 of the
    matrix's rows as float64, and block reflectors for it (128 x 256), which also covers the vectors of the reduction. A matrix of more than 8192 rows
    is summed up in parts: a single one keeps the square of each part (at most n / 4096 of the float32 input) beside the threads' memory, in which
    a further square is set aside.
    Above 320 columns (one matrix per thread up to 1024, above it all threads on one) the O(n b) part is 896 n: 384 rows of the matrix between
    two visits to its Gram matrix, and for b = 32 at most 16 n b in the band and some ten thin matrices of n x b; both are counted.
    Once for the whole batch: the condensed matrices (2 n each), the values (n each), and half a megabyte for the interpreter, allocator and stacks.

    backend "numpy": three copies of one matrix in float64 (LAPACK's and its caller's) and the workspace of blocks of 64 columns.
    """
    batch, m, n = shape[0], max(shape[1:]), min(shape[1:])
    if backend == "numpy":
        return 8 * (3 * m * n + 64 * (m + n) + batch * n) + 500_000
    square, ld = n * (n + 16), n + 16
    if n > _SINGLE_ABOVE:
        tall = accuracy == "high" and m > n
        at_once = min(threads, batch) if n <= 1024 else 1
        doubles = at_once * (square + 896 * n + (256 * ld + 128 * 256 if tall else 0))
    else:
        parts = -(-m // 8192)
        doubles = min(threads, max(batch, parts)) * ((2 if parts > 1 else 1) * square + 256 * ld + 128 * 256)
        if parts > 1 and batch < 2 * threads:
            doubles += parts * square
    return 8 * (doubles + 3 * batch * n) + 500_000


@overload
def svdvals(
    a: Any, *, accuracy: str = ..., return_bound: Literal[False] = ..., dtype: str | None = ..., backend: str = ..., threads: int | None = ...
) -> Any: ...
@overload
def svdvals(
    a: Any, *, accuracy: str = ..., return_bound: Literal[True], dtype: str | None = ..., backend: str = ..., threads: int | None = ...
) -> tuple[Any, Any]: ...
def svdvals(
    a: Any, *, accuracy: str = "standard", return_bound: bool = False, dtype: str | None = None, backend: str = "auto", threads: int | None = None
) -> Any:
    """All singular values of a matrix or a stack of matrices.

    a:            (..., m, n) real array or torch tensor: float16, bfloat16, float32, float64, integers, or a RawArray; read in place, whatever
                  its strides.
    accuracy:     with c = 10 sqrt(d_min), eps = 2^-52: "standard": |s_hat^2 - s^2| <= c eps s_1^2 for every value, so values far below the largest
                  lose digits as the square of their distance, and below some 1e-7 s_1 all look alike; "high": |s_hat - s| <= c eps s_1, at 1.1 to
                  2 times the cost (tall matrices 4). "fast": where only the upper end of the spectrum matters: products in single precision for
                  more than 320 values, up to twice as fast; |s_hat^2 - s^2| is at most 4.1e-6 times the sum of all s^2, mostly far less, and small
                  values mean nothing. With fewer values as "standard".
    return_bound: also return the bound on every value's error that the accuracy promises.
    dtype:        name of the format when ``a`` holds bits: "bfloat16" for uint16, "float8_e4m3fn" and the like for uint8.
    backend:      "auto"; of the CPU "native" or "numpy", which always keeps "high". A tensor on a GPU is worked on there and the values stay there: "cuda"
                  or "torch", eigenvalues of its Gram matrix in float64 (of "cuda" up to 512 by a kernel of our own), for "high" torch's singular values.
    threads:      threads of the computation on the CPU; None: all this process may use. They do not change a bit of the result.

    Returns float64 values (..., min(m, n)), descending, on the device of ``a``, without a gradient (or with ``return_bound`` the pair values, bounds). A matrix
    with a NaN or an infinity gives NaN; the others are unaffected.
    Raises TypeError for complex or non-numeric arrays, ValueError for less than two dimensions, unknown names, bad ``threads``.
    """
    if accuracy not in _ACCURACIES:
        raise ValueError(f"accuracy: got {accuracy!r}; known: {', '.join(_ACCURACIES)}")
    if threads is not None and (not isinstance(threads, int | np.integer) or isinstance(threads, bool) or threads < 1):
        raise ValueError(f"threads: got {threads!r}; wanted a positive integer or None")
    if dtype is not None:
        a = _tagged(a, dtype)
    function, name = select("singular_values", backend, device_of(a))
    if name in ("torch", "cuda"):
        return _by_torch(function, a, accuracy, return_bound)
    native_bits = name == "native" and dtype_name(a) == "bfloat16"
    x = bfloat16_bits(a) if native_bits else as_numpy(a)
    _check(a, native_bits or x.dtype.kind in "fiub", x.shape)
    batch = x.reshape((int(np.prod(x.shape[:-2], dtype=np.int64)), *x.shape[-2:]))
    if name == "native":
        s = function(batch, accuracy=accuracy, bits="bfloat16" if native_bits else None, threads=int(threads or 0))
    else:
        with threadpool_limits(threads, user_api="blas") if threads is not None else nullcontext():
            s = function(batch, accuracy=accuracy)
    s = s.reshape((*x.shape[:-2], min(x.shape[-2:])))
    if return_bound:
        return like(a, s), like(a, svd_bound(s, "high" if name == "numpy" else accuracy))
    return like(a, s)


def _check(a: Any, real: bool, shape: tuple[int, ...]) -> None:
    if not real:
        raise TypeError(f"a: got dtype {dtype_name(a)}; wanted real numbers")
    if len(shape) < 2:
        raise ValueError(f"a: got shape {tuple(shape)}; wanted (..., m, n)")


def _by_torch(function: Any, a: Any, accuracy: str, return_bound: bool) -> Any:
    """Tensors in and out; the bounds are computed from the values on the host."""
    x = as_tensor(a)
    _check(a, not x.is_complex(), x.shape)
    batch = x.reshape((int(np.prod(x.shape[:-2], dtype=np.int64)), *x.shape[-2:]))
    s = function(batch, accuracy=accuracy).reshape((*x.shape[:-2], min(x.shape[-2:])))
    if not return_bound:
        return s
    return s, like(a, svd_bound(as_numpy(s), "high" if accuracy == "high" else "standard"))


def _tagged(a: Any, dtype: str) -> Any:
    if dtype not in FORMATS:
        raise ValueError(f"dtype: got {dtype!r}; known: {', '.join(FORMATS)}")
    if dtype not in _RAW_BITS or dtype_name(a) == dtype:
        if dtype_name(a) != dtype:
            raise ValueError(f"dtype: {dtype!r} was named but a holds {dtype_name(a)}")
        return a
    bits = np.asarray(a)
    if bits.dtype.name != _RAW_BITS[dtype]:
        raise ValueError(f"dtype: {dtype!r} travels as {_RAW_BITS[dtype]} bits; a holds {bits.dtype.name}")
    return RawArray(bits, dtype)
