"""Numerical rank under every rule in use, and the noise that rounding to the stored format put into a matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..linalg.arrays import FORMATS, FloatFormat, as_numpy, storage_format
from ..linalg.svd import svd_bound, svdvals

__all__ = ["RULES", "StorageNoise", "matrix_rank", "numerical_rank", "rank_tolerances", "storage_noise", "undecided"]

RULES = ("numpy", "numerical_recipes", "loose", "log8", "storage")

_MIN_ENTRIES_FOR_PRECISION = 64
_LAST_BIT_SHARE = (1 / 8, 7 / 8)  # a random last bit is set in half of the entries
_BLOCK_ENTRIES = 1 << 20


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
    """Rounding noise of a stored matrix.

    w:      (m, n) finite values, float32 or float64, as decoded from the stored format.
    stored: the format the values were kept in.

    tau_ij² = ulp(w_ij)²/12, ulp in the stored format (at its effective precision);
    tolerance = max_i (sum_j tau_ij²)^½ + max_j (sum_i tau_ij²)^½ + 3 max_ij tau_ij, after Bandeira & van Handel (2016), Theorem 1.1,
    for independent entries of uneven size.
    """
    precision = effective_precision(w, stored)
    if w.size == 0:
        return StorageNoise(0.0, precision, stored.name)
    carrier = _carrier(stored)
    # ulp(x) = 2^(e + 1 - precision) for x in [2^e, 2^(e+1)), never less than the spacing of the subnormals or the common grid: one table entry per
    # exponent field.
    grid = common_grid(w, stored)
    lowest = stored.emin if grid is None else max(stored.emin, grid + precision - 1)
    exponent = np.maximum(np.arange(1 << carrier.exponent_bits) - carrier.bias, lowest)
    top = max(int(np.frexp(max(float(w.max()), -float(w.min())))[1]) - 1, lowest)
    # tau² relative to the largest one, exact powers of two, so that squares neither overflow nor vanish
    tau2 = np.ldexp(1.0, np.clip(2 * (exponent - top), -1000, 0))
    columns = np.zeros(w.shape[1])
    largest_row = 0.0
    for bits in _blocks(w, carrier):
        relative = tau2[(bits >> carrier.field).astype(np.intp) & (len(exponent) - 1)]
        columns += relative.sum(axis=0)
        largest_row = max(largest_row, float(relative.sum(axis=1).max()))
    tau = float(np.ldexp(1.0, top + 1 - precision)) / np.sqrt(12.0)
    return StorageNoise(float(tau * (np.sqrt(largest_row) + np.sqrt(columns.max()) + 3.0)), precision, stored.name)


@dataclass(frozen=True)
class _Carrier:
    """The numpy format the decoded values stand in: where its bits are."""

    floating: type[np.floating[Any]]
    unsigned: type[np.unsignedinteger[Any]]
    field: int  # bits of the significand that are stored
    exponent_bits: int

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1


def _carrier(stored: FloatFormat) -> _Carrier:
    return _Carrier(np.float64, np.uint64, 52, 11) if stored.name == "float64" else _Carrier(np.float32, np.uint32, 23, 8)


def _blocks(w: NDArray[Any], carrier: _Carrier) -> Iterator[NDArray[Any]]:
    """The bits of ``w`` in blocks of rows of about a million entries, so that no temporary is as large as the matrix."""
    rows = max(1, _BLOCK_ENTRIES // max(1, w.shape[1]))
    for first in range(0, w.shape[0], rows):
        yield np.ascontiguousarray(w[first : first + rows], dtype=carrier.floating).view(carrier.unsigned)


def effective_precision(w: NDArray[Any], stored: FloatFormat) -> int:
    """Bits of the significand that the entries of ``w`` really use (a cast hides the format values were rounded to).

    A narrower precision is believed only when the entries look rounded to it: at least 64 nonzero entries, of which between 1/8 and 7/8 use
    its last bit (rounding leaves about half). An identity or a matrix of signs needs one bit, but nothing was rounded there.
    """
    carrier = _carrier(stored)
    significand = carrier.unsigned((1 << carrier.field) - 1)
    last_stored = 1 << (carrier.field + 1 - stored.precision)
    used = nonzero = 0
    for bits in _blocks(w, carrier):
        used |= int(np.bitwise_or.reduce(bits & significand, axis=None))
        if used & last_stored:
            return stored.precision
        nonzero += int(np.count_nonzero(bits << carrier.unsigned(1)))  # the sign of a zero does not count
    if used == 0 or nonzero < _MIN_ENTRIES_FOR_PRECISION:
        return stored.precision
    trailing = (used & -used).bit_length() - 1
    last = sum(int(np.count_nonzero(bits & carrier.unsigned(1 << trailing))) for bits in _blocks(w, carrier))
    return carrier.field + 1 - trailing if _looks_rounded(last, nonzero) else stored.precision


def common_grid(w: NDArray[Any], stored: FloatFormat) -> int | None:
    """g where all entries of ``w`` are multiples of 2^g and look rounded to that grid, else None.

    The subnormal numbers of a narrow format are such a grid, and so are quantized weights: kept in a wider format they have no common number
    of significant bits, but a common last place. Believed under the conditions of :func:`effective_precision`.
    """
    carrier = _carrier(stored)
    rows = max(1, w.shape[0] * w.shape[1] // _BLOCK_ENTRIES)
    lowest, count, nonzero = _last_places(w[::rows], carrier)
    if nonzero == 0 or not _looks_rounded(count, nonzero):
        return None  # most matrices: told from one block's worth of rows
    for first in range(0, w.shape[0], max(1, _BLOCK_ENTRIES // w.shape[1])):
        least, _, _ = _last_places(w[first : first + max(1, _BLOCK_ENTRIES // w.shape[1])], carrier)
        if least < lowest:
            return None
    return lowest if nonzero >= _MIN_ENTRIES_FOR_PRECISION else None


def _last_places(w: NDArray[Any], carrier: _Carrier) -> tuple[int, int, int]:
    """Exponent of the lowest bit set in any entry, in how many entries it is set, and the number of nonzero entries."""
    bits = np.ascontiguousarray(w, dtype=carrier.floating).view(carrier.unsigned).ravel()
    bits = bits[(bits << carrier.unsigned(1)) != 0]
    if bits.size == 0:
        return 1 << 30, 0, 0
    field = (bits >> carrier.unsigned(carrier.field)).astype(np.int64) & ((1 << carrier.exponent_bits) - 1)
    significand = bits & carrier.unsigned((1 << carrier.field) - 1)
    significand |= np.where(field > 0, carrier.unsigned(1 << carrier.field), carrier.unsigned(0))
    low = significand & (~significand + carrier.unsigned(1))
    place = np.frexp(low.astype(np.float64))[1] - 1 + np.maximum(field, 1) - carrier.bias - carrier.field
    lowest = int(place.min())
    return lowest, int(np.count_nonzero(place == lowest)), bits.size


def _looks_rounded(last: int, nonzero: int) -> bool:
    return _LAST_BIT_SHARE[0] * nonzero <= last <= _LAST_BIT_SHARE[1] * nonzero


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
    return any(bool(((s - bound <= tol) & (tol < s + bound)).any()) for tol in tolerances)


def matrix_rank(a: Any, rule: str = "storage") -> int:
    """Numerical rank of one matrix under a rule.

    a: (m, n) floating-point array, torch tensor or RawArray, in the format it is stored in; rule: one of :data:`RULES`.

    For ``rule="storage"`` the tolerance is the larger of the storage noise and the error bound of values of "high" accuracy. Values are computed
    with "standard" accuracy first, and again with "high" where their error bounds leave the rank open.
    Raises ValueError for an unknown rule, another number of dimensions, or entries that are not finite; TypeError for other element types.
    """
    if rule not in RULES:
        raise ValueError(f"rule: got {rule!r}; known: {', '.join(RULES)}")
    stored = storage_format(a)
    if stored is None:
        raise TypeError(f"a: got dtype {getattr(a, 'dtype', type(a).__name__)}; wanted a floating-point format")
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
