"""Every op in plain numpy: the executable definition, the fallback, and the oracle of the compiled kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .numpy_bulk import marchenko_pastur, marchenko_pastur_law
from .numpy_class_moments import class_moments
from .numpy_decode import decode
from .numpy_entries import EntryCounts, storage_noise
from .numpy_gradient_gram import gradient_gram
from .numpy_krylov import Orthogonalized, orthogonalize, recombine
from .numpy_lowrank import LowRank, plan, randomized_svd

__all__ = [
    "EntryCounts",
    "LowRank",
    "Orthogonalized",
    "class_moments",
    "decode",
    "gradient_gram",
    "marchenko_pastur",
    "marchenko_pastur_law",
    "orthogonalize",
    "plan",
    "power_law",
    "randomized_svd",
    "recombine",
    "singular_values",
    "storage_noise",
]

_LN2 = 0.6931471805599453
_CHUNK = 1 << 18  # elements of the (starts x values) blocks: a few MB


def power_law(values: NDArray[np.float64], offsets: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Power-law tail of every spectrum for every possible xmin.

    values: (total,) float64, the spectra one after the other, each ascending, positive and finite.
    offsets: (n_spectra + 1,) int64; spectrum s is ``values[offsets[s]:offsets[s + 1]]``.

    Returns (alpha, D, best). For start i of a spectrum x of n values, n_i = n - i, i = 0..n-2:

        alpha_i = 1 + n_i / sum_{j >= i} ln(x_j / x_i)
        D_i     = max_{j >= i} | 1 - (x_j / x_i)^(1 - alpha_i) - (j - i) / n_i |

    (Clauset, Shalizi & Newman 2009, eq. 3.1 and 3.9; left steps of the empirical distribution, as in Martin & Mahoney 2021).
    alpha, D: (total,) float64, NaN at the last value of each spectrum, which starts no tail. A tail of equal values has
    alpha = inf and D = NaN: no exponent is better than a larger one, and it is never the best start. alpha_i > 1 otherwise.
    best: (n_spectra,) int64, the first i of minimal D within the spectrum; -1 where no D is a number.

    Accuracy: alpha to a few ulps, D to 1e-14; neither changes when the values are multiplied by a power of two. Two backends
    agree when best is the same or the two minimal D's are within 1e-12.
    Errors: ValueError naming the argument.
    """
    _check(values, offsets)
    alpha = np.full(len(values), np.nan)
    D = np.full(len(values), np.nan)
    best = np.full(len(offsets) - 1, -1, dtype=np.int64)
    for s in range(len(best)):
        begin, end = int(offsets[s]), int(offsets[s + 1])
        if end - begin < 2:
            continue
        alpha[begin : end - 1], D[begin : end - 1] = _one_spectrum(values[begin:end])
        if not np.isnan(D[begin : end - 1]).all():
            best[s] = np.nanargmin(D[begin : end - 1])
    return alpha, D, best


def singular_values(a: NDArray[Any], *, accuracy: str = "standard") -> NDArray[np.float64]:
    """All singular values of every matrix of a batch.

    a: (batch, m, n) real or complex numbers of any dtype and strides; each matrix is converted to float64 or complex128 by itself.
    accuracy, with c = 10 sqrt(min(m, n)) and eps = 2^-52: "standard" promises |s_hat^2 - s^2| <= c eps s_1^2 for every value, hence
    |s_hat - s| <= min(sqrt(c eps) s_1, c eps s_1^2 / s); "high" promises |s_hat - s| <= c eps s_1; "fast" adds 68 * 2^-24 times the sum
    of all s^2 to what "standard" promises where there are more than 320 values. Here all are LAPACK's gesdd (Gu & Eisenstat 1995) without
    vectors, which keeps the second.

    Returns s (batch, min(m, n)) float64, descending. A matrix with a NaN or an infinity gives NaN; the others are unaffected. Multiplying a
    matrix by a power of two multiplies its values by the same, to the bit, as long as nothing over- or underflows: matrices are scaled by
    a power of two so that the largest entry is in [0.5, 1), which also keeps denormal and huge matrices exact. A matrix's values do not
    depend on the batch it came in.
    """
    if accuracy not in ("standard", "high", "fast"):
        raise ValueError(f"accuracy: got {accuracy!r}; known: standard, high, fast")
    batch, m, n = a.shape
    s = np.empty((batch, min(m, n)))
    if s.size == 0:
        return s
    for i in range(batch):
        w = a[i]
        top = max(max(float(part.max()), -float(part.min())) for part in ((w.real, w.imag) if w.dtype.kind == "c" else (w,)))
        if not np.isfinite(top):
            s[i] = np.nan
        elif top == 0.0:
            s[i] = 0.0
        else:
            exponent = int(np.frexp(top)[1])
            # two steps: 2^-exponent alone overflows for denormal matrices
            half = exponent // 2
            scaled = np.multiply(w, 2.0**-half, dtype=np.complex128 if w.dtype.kind == "c" else np.float64)
            scaled *= 2.0 ** (half - exponent)
            s[i] = np.ldexp(np.linalg.svd(scaled, compute_uv=False), exponent)
    return s


def _check(values: NDArray[np.float64], offsets: NDArray[np.int64]) -> None:
    for name, array, dtype in (("values", values, "float64"), ("offsets", offsets, "int64")):
        if array.dtype != dtype or array.ndim != 1:
            kind = TypeError if array.dtype != dtype else ValueError
            raise kind(f"{name}: wanted a one-dimensional {dtype} array, got dtype {array.dtype}, {array.ndim} dimensions")
    if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(values) or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets: wanted the n_spectra + 1 ascending bounds of the spectra, from 0 to {len(values)}")
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError("values: a spectrum has to be positive and finite")
    descends = np.flatnonzero(np.diff(values) < 0) + 1
    if not np.isin(descends, offsets).all():
        raise ValueError("values: a spectrum has to be ascending")


def _one_spectrum(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """alpha and D of all starts but the last of one ascending spectrum."""
    n = len(x)
    gap = _log_ratios(x)
    # sum_{j >= i} ln(x_j/x_i) grows by (n-1-i) gap_i as i steps down: only positive terms, nothing cancels
    above = np.arange(1, n, dtype=np.float64)
    hi, lo = _running_sums(above * gap[::-1])
    log_sum = (hi + lo)[::-1]
    n_tail = np.arange(n, 1, -1, dtype=np.float64)
    with np.errstate(divide="ignore"):
        slope = n_tail / log_sum  # alpha - 1
    hi, lo = (np.concatenate(([0.0], part)) for part in _running_sums(gap))

    D = np.empty(n - 1)
    rows = max(1, _CHUNK // n)
    for first in range(0, n - 1, rows):
        i = np.arange(first, min(first + rows, n - 1))[:, None]
        j = np.arange(first, n)[None, :]
        log_x = (hi[j] - hi[i]) + (lo[j] - lo[i])  # ln(x_j/x_i), to a few ulps of itself
        below = j < i  # not of this tail: both distributions are set to 0 there
        log_x[below] = 0.0
        position = np.where(below, 0.0, (j - i) / n_tail[i])
        with np.errstate(invalid="ignore"):  # inf * 0 of a tail of equal values
            model = 1.0 - np.exp(-slope[i] * log_x)
        D[i[:, 0]] = np.abs(model - position).max(axis=1)
    D[np.isinf(slope)] = np.nan
    return 1.0 + slope, D


def _log_ratios(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln(x_{j+1}/x_j) without cancellation for close values, without overflow for distant ones."""
    a, b = x[:-1], x[1:]
    mantissa_a, exponent_a = np.frexp(a)
    mantissa_b, exponent_b = np.frexp(b)
    far = np.log(mantissa_b / mantissa_a) + (exponent_b - exponent_a) * _LN2
    close = b / 2 <= a
    near = np.log1p(np.where(close, b - a, 0.0) / a)
    return np.where(close, near, far)


def _running_sums(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cumulative sums as hi + lo, lo collecting the rounding errors of hi (Ogita, Rump & Oishi 2005, algorithm Sum2)."""
    hi = np.cumsum(x)
    before = np.concatenate(([0.0], hi[:-1]))
    back = hi - before
    return hi, np.cumsum((before - (hi - back)) + (x - back))
