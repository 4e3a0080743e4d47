"""``sf.spectral_norm``: the largest singular value between a certain and a probable bound, by far fewer products than all values need."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..kernels.counters import gaussian
from .arrays import as_numpy, dtype_name, like
from .options import seed_number
from .svd import svdvals

__all__ = ["SpectralNorm", "spectral_norm"]

F64 = NDArray[np.float64]

_FAILS = 1e-6  # probability with which the upper bound is too low
_STREAM = 1 << 35
_EXACT_COST = 8  # all values cost about as much as so many products with each row


class SpectralNorm(NamedTuple):
    """lower <= ||A||_2 <= upper (...), float64: the first always, the second but for a probability of 1e-6 per matrix. steps: products with A and
    with A^T spent on each matrix; 0: all its singular values were computed."""

    lower: Any
    upper: Any
    steps: int


def spectral_norm(a: Any, tol: float = 1e-2, *, seed: int = 0) -> SpectralNorm:
    """The spectral norm of a matrix or of every matrix of a stack, upper / lower <= 1 + tol.

    a: (..., m, n) real array or torch tensor, as for ``sf.svdvals``. tol: in [1e-6, 1). seed: of the Gaussian start vector, the same for all matrices.

    Golub & Kahan's bidiagonalization from a random start, fully reorthogonalized. lower is ||A v|| for a unit vector v, less what rounding may
    have added. After k steps the largest value theta of the bidiagonal misses the norm by more than a factor sqrt(1 - e) with a probability of at
    most 1.648 sqrt(n) exp(-sqrt(e) (2k - 1)) (Kuczynski & Wozniakowski 1992, theorem 4.2, for A^T A and Gaussian start vectors): k is chosen
    beforehand, from n and tol alone. Where so many steps would cost more than all singular values, those are computed ("high" accuracy).

    Raises TypeError for complex or non-numeric arrays, ValueError for less than two dimensions, empty matrices, or a bad ``tol``. A matrix with a NaN
    or an infinity gives NaN.
    """
    if not 1e-6 <= tol < 1.0:
        raise ValueError(f"tol: got {tol!r}; wanted a number in [1e-6, 1)")
    seed_number(seed)
    x = as_numpy(a)
    if x.dtype.kind not in "fiub":
        raise TypeError(f"a: got dtype {dtype_name(a)}; wanted real numbers")
    if x.ndim < 2 or min(x.shape[-2:]) < 1:
        raise ValueError(f"a: got shape {x.shape}; wanted (..., m, n), not empty")
    m, n = x.shape[-2:]
    steps = _steps(min(m, n), tol)
    if 2 * steps * _EXACT_COST >= min(m, n):
        s, bound = svdvals(x, accuracy="high", return_bound=True)
        return SpectralNorm(like(a, np.maximum(s[..., 0] - bound[..., 0], 0.0)), like(a, s[..., 0] + bound[..., 0]), 0)
    factor = 1.0 / math.sqrt(1.0 - _gap(min(m, n), steps))
    start = gaussian(min(m, n), seed, _STREAM)
    batch = x.reshape((-1, m, n))
    lower, upper = np.empty(len(batch)), np.empty(len(batch))
    for i, w in enumerate(batch):
        lower[i], theta = _largest(w if m >= n else w.T, start, steps)
        upper[i] = theta * factor
    return SpectralNorm(like(a, lower.reshape(x.shape[:-2])), like(a, upper.reshape(x.shape[:-2])), steps)


def _gap(n: int, steps: int) -> float:
    """e of the docstring for the probability _FAILS."""
    return (math.log(1.648 * math.sqrt(n) / _FAILS) / (2 * steps - 1)) ** 2


def _steps(n: int, tol: float) -> int:
    # room for rounding, and for lower being a little less than theta
    wanted = 1.0 - 1.0 / (1.0 + 0.99 * tol) ** 2
    return math.ceil((math.log(1.648 * math.sqrt(n) / _FAILS) / math.sqrt(wanted) + 1.0) / 2.0)


def _largest(w: NDArray[Any], start: F64, steps: int) -> tuple[float, float]:
    """A lower bound of the norm of w (m, n), m >= n, and the largest value of its bidiagonal with the room that rounding needs."""
    top = max(float(w.max()), -float(w.min()))
    if not np.isfinite(top):
        return math.nan, math.nan
    if top == 0.0:
        return 0.0, 0.0
    exponent = int(np.frexp(top)[1])
    half = exponent // 2
    x = np.multiply(w, 2.0**-half, dtype=np.float64) * 2.0 ** (half - exponent)
    m, n = x.shape
    vs, us = np.empty((steps, n)), np.empty((steps, m))
    b = np.zeros((steps, steps))
    v = start / np.linalg.norm(start)
    done = 0
    for k in range(steps):
        vs[k] = v
        u = _rest(x @ v, us[:k])
        b[k, k] = size = float(np.linalg.norm(u))
        done = k + 1
        if size <= 1e-14 * b[0, 0] or size == 0.0:
            break
        us[k] = u / size
        v = _rest(us[k] @ x, vs[: k + 1])
        size = float(np.linalg.norm(v))
        if size <= 1e-14 * b[0, 0] or k + 1 == steps:
            break
        b[k, k + 1] = size
        v /= size
    _, values, right = np.linalg.svd(b[:done, :done])
    best = right[0] @ vs[:done]
    rounding = 4.0 * math.sqrt(m * n) * 2.0**-52 * float(np.linalg.norm(x)) / max(float(values[0]), 1e-300)
    reached = float(np.linalg.norm(x @ best)) / float(np.linalg.norm(best))
    return math.ldexp(max(reached * (1.0 - rounding), 0.0), exponent), math.ldexp(max(float(values[0]), reached) * (1.0 + rounding), exponent)


def _rest(x: F64, known: F64) -> F64:
    for _ in range(2):  # once leaves what cancellation brings back
        x = x - (known @ x) @ known
    return x
