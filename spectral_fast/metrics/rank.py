"""Numerical rank under every rule in use, and the noise that rounding to the stored format put into a matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.numpy_kernels import EntryCounts
from ..kernels.select import select
from ..linalg.arrays import FORMATS, FloatFormat, RawArray, as_numpy, dtype_name, storage_format
from ..linalg.svd import svd_bound, svdvals

__all__ = ["RULES", "StorageNoise", "coded_noise", "entries_and_noise", "matrix_rank", "numerical_rank", "rank_tolerances", "storage_noise", "undecided"]

RULES = ("numpy", "numerical_recipes", "loose", "log8", "storage")

_MIN_ENTRIES_FOR_PRECISION = 64
_LAST_BIT_SHARE = (1 / 8, 7 / 8)  # a random last bit is set in half of the entries


@dataclass(frozen=True)
class StorageNoise:
    """What rounding to the stored format put into a matrix.

    tolerance: bound on the norm of the rounding error; no singular value below it can be told from rounding, and each singular value is
               known to +- tolerance (Weyl).
    precision: bits of the significand really used, the implicit one included (8 for bfloat16 values kept as float32).
    format:    name of the stored format.
    """

    tolerance: float
    precision: int
    format: str


def storage_noise(w: NDArray[Any], stored: FloatFormat) -> StorageNoise:
    """Rounding noise of a stored matrix; arguments and formulas as of :func:`entries_and_noise`, all entries finite."""
    return entries_and_noise(w, stored)[1]


def entries_and_noise(w: NDArray[Any] | RawArray, stored: FloatFormat) -> tuple[EntryCounts, StorageNoise]:
    """What the entries of a stored matrix tell, and its rounding noise.

    w:      (m, n) values as they are stored, or as decoded from the stored format.
    stored: the format the values were kept in.

    tau_ij² = ulp(w_ij)²/12, ulp in the stored format (at its effective precision), never less than the spacing of its subnormal numbers or of the
    entries' common grid;
    tolerance = max_i (sum_j tau_ij²)^½ + max_j (sum_i tau_ij²)^½ + 3 max_ij tau_ij, after Bandeira & van Handel (2016), Theorem 1.1,
    for independent entries of uneven size. NaN where an entry is not finite (``EntryCounts.bad``).
    """
    counts = entry_counts(w, stored)
    if counts.bad:
        return counts, StorageNoise(float("nan"), stored.precision, stored.name)
    precision = effective_precision(counts, stored)
    if 0 in w.shape:
        return counts, StorageNoise(0.0, precision, stored.name)
    # ulp(x) = 2^(e + 1 - precision) for x in [2^e, 2^(e+1)); the sums are of ulp² relative to its largest value, exact powers of two
    sums = counts
    grid = common_grid(counts)
    if grid is not None and grid + precision - 1 > stored.emin:
        sums = entry_counts(w, stored, grid + precision - 1)
    tau = float(np.ldexp(1.0, sums.top + 1 - precision)) / math.sqrt(12.0)
    return counts, StorageNoise(tau * (math.sqrt(sums.row_sum) + math.sqrt(sums.column_sum) + 3.0), precision, stored.name)


def coded_noise(steps: NDArray[np.float32], columns: NDArray[np.int64], bits: int, name: str) -> StorageNoise:
    """Rounding noise of a matrix that was stored as codes with scales: tau_ij = step/sqrt(12), else as in :func:`entries_and_noise`.

    steps: (m, runs), what neighbouring codes of a run of columns differ by. columns: (runs,) how many columns each has. bits: of a code. name: of the
    format.
    """
    squares = np.square(steps, dtype=np.float64)
    row, column, most = (float(x.max(initial=0.0)) for x in (squares @ columns.astype(np.float64), squares.sum(axis=0), squares))
    return StorageNoise((math.sqrt(row) + math.sqrt(column) + 3.0 * math.sqrt(most)) / math.sqrt(12.0), bits, name)


def entry_counts(w: NDArray[Any] | RawArray, stored: FloatFormat, floor: int | None = None) -> EntryCounts:
    """The kernel's counts of a matrix decoded from, or still in, the stored format. floor: of the exponents, the format's own for None."""
    kernel, name = select("storage_noise")
    least = stored.emin if floor is None else floor
    if isinstance(w, RawArray):
        if name == "native" and w.dtype == "bfloat16":
            counts: EntryCounts = kernel(w.bits, floor=least, bits="bfloat16")
            return counts
        w = as_numpy(w)
    if stored.name != "float64" and w.dtype.itemsize == 8:
        w = w.astype(np.float32)  # exact: decoded from a narrower format
    counts = kernel(w, floor=least)
    return counts


def effective_precision(counts: EntryCounts, stored: FloatFormat) -> int:
    """Bits of the significand that the entries really use (a cast hides the format values were rounded to).

    A narrower precision is believed only when the entries look rounded to it: at least 64 nonzero entries, of which between 1/8 and 7/8 use
    its last bit (rounding leaves about half). An identity or a matrix of signs needs one bit, but nothing was rounded there.
    """
    narrower = 1 < counts.precision < stored.precision
    return counts.precision if narrower and _looks_rounded(counts.with_last_bit, counts.nonzero) else stored.precision


def common_grid(counts: EntryCounts) -> int | None:
    """g where all entries are multiples of 2^g and look rounded to that grid, else None.

    The subnormal numbers of a narrow format are such a grid, and so are quantized weights: kept in a wider format they have no common number
    of significant bits, but a common last place. Believed under the conditions of :func:`effective_precision`.
    """
    return counts.last_place if _looks_rounded(counts.with_last_place, counts.nonzero) else None


def _looks_rounded(last: int, nonzero: int) -> bool:
    return nonzero >= _MIN_ENTRIES_FOR_PRECISION and _LAST_BIT_SHARE[0] * nonzero <= last <= _LAST_BIT_SHARE[1] * nonzero


def rank_tolerances(s: NDArray[np.float64], shape: tuple[int, int], dtype: str, *, storage_tol: float | None = None) -> dict[str, float]:
    """The tolerance of every rule for one spectrum.

    s: (d_min,) descending; shape: (m, n); dtype: stored format; storage_tol: from :func:`storage_noise`.

    numpy: s_1 d_max eps; numerical_recipes: 0.5 sqrt(m+n+1) s_1 eps (Press et al. 2007, section 2.6.2), eps of the type numpy would compute
    in; loose: 1e-3 and log8: 1e-8, both absolute (Martin 2018, "Rank Collapse in Deep Learning"); storage only when its noise is given.
    """
    m, n = shape
    top = float(s[0]) if s.size else 0.0
    eps = FORMATS["float64" if dtype not in FORMATS or dtype == "float64" else "float32"].eps
    tolerances = {
        "numpy": top * max(m, n) * eps,
        "numerical_recipes": 0.5 * float(np.sqrt(m + n + 1.0)) * top * eps,
        "loose": 1e-3,
        "log8": 1e-8,
    }
    if storage_tol is not None:
        tolerances["storage"] = storage_tol
    return tolerances


def numerical_rank(s: NDArray[np.float64], shape: tuple[int, int], dtype: str, rule: str = "storage", *, storage_tol: float | None = None) -> int:
    """Number of singular values above the tolerance of ``rule``.

    s: (d_min,) singular values in any order; shape: (m, n); dtype: stored format; rule: one of :data:`RULES`.
    Raises ValueError for an unknown rule, and for ``rule="storage"`` without ``storage_tol``.
    """
    if rule not in RULES:
        raise ValueError(f"rule: got {rule!r}; known: {', '.join(RULES)}")
    if rule == "storage" and storage_tol is None:
        raise ValueError("storage_tol: rule 'storage' needs the matrix's storage tolerance (metrics.rank.storage_noise)")
    descending = np.sort(np.asarray(s, dtype=np.float64))[::-1]
    return int(np.count_nonzero(descending > rank_tolerances(descending, shape, dtype, storage_tol=storage_tol)[rule]))


_WIDEST_MINIMUM = 0.01  # share of s_min that its error bound may be where s_min is told from rounding


def undecided(s: NDArray[np.float64], bound: NDArray[np.float64], tolerances: Iterable[float], storage_tol: float) -> bool:
    """Whether values with these error bounds leave a rank open, or a smallest value that is above the noise worse than to 1 %.

    s, bound: (d_min,), descending values. tolerances: of the rank rules in use; storage_tol: below it nothing can be told from rounding.
    """
    if s.size == 0 or not np.isfinite(s[0]):
        return False
    if s[-1] > storage_tol and bound[-1] > _WIDEST_MINIMUM * s[-1]:
        return True
    at = np.array(list(tolerances))[:, None]
    return bool(((s - bound <= at) & (at < s + bound)).any())


def matrix_rank(a: Any, rule: str = "storage") -> int:
    """Numerical rank of one matrix under a rule.

    a: (m, n) floating-point array, torch tensor or RawArray, in the format it is stored in; rule: "storage", "numpy", "numerical_recipes", "loose" or
    "log8" (:data:`spectral_fast.metrics.rank.RULES`).

    For ``rule="storage"`` the tolerance is the larger of the storage noise and the error bound of values of "high" accuracy. Values are computed
    with "standard" accuracy first, and again with "high" where their error bounds leave the rank open.
    Raises ValueError for an unknown rule, another number of dimensions, or entries that are not finite; TypeError for other element types.
    """
    if rule not in RULES:
        raise ValueError(f"rule: got {rule!r}; known: {', '.join(RULES)}")
    stored = storage_format(a)
    if stored is None:
        raise TypeError(f"a: got dtype {dtype_name(a)}; wanted a floating-point format")
    w = as_numpy(a)
    if w.ndim != 2:
        raise ValueError(f"a: got shape {w.shape}; wanted (m, n)")
    if not np.isfinite(w).all():
        raise ValueError("a: has entries that are not finite")
    noise = storage_noise(w, stored).tolerance if rule == "storage" else None
    shape = (w.shape[0], w.shape[1])
    values, bound = svdvals(w, return_bound=True)
    s = np.asarray(values)
    tolerance = rank_tolerances(s, shape, stored.name, storage_tol=noise)[rule]
    if undecided(s, np.asarray(bound), [tolerance], np.inf):
        values, bound = svdvals(w, accuracy="high", return_bound=True)
        s = np.asarray(values)
    floor = None if noise is None else max(noise, float(svd_bound(s).max(initial=0.0)))
    return numerical_rank(s, shape, stored.name, rule, storage_tol=floor)
