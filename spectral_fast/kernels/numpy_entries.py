"""The op on the bits of a matrix's entries, in numpy; part of ``numpy_kernels``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["EntryCounts", "storage_noise"]

_BLOCK_ENTRIES = 1 << 20  # of a matrix looked at together, so that no temporary is as large as the matrix


class EntryCounts(NamedTuple):
    """What :func:`storage_noise` finds in one matrix.

    bad: entries that are NaN or infinite; first_bad: (row, column) of the first in row-major order, (-1, -1) without one. Where there are any,
    the rest says nothing.
    zero_rows, zero_columns: rows and columns of zeros only; nonzero: entries that are not 0.
    top: the largest exponent e of an entry, |w| in [2^e, 2^(e+1)), but at least ``floor``.
    precision: bits of the significand in use, from the leading bit of the carrier, float64 for float64 and float32 for the narrower formats, to
    the lowest bit set in any entry; 1 where the entries are signed powers of two. with_last_bit: entries that have this lowest bit set.
    last_place: exponent of the lowest bit set in any entry, in absolute terms: all entries are multiples of 2^last_place. with_last_place: entries
    that have it set. Both 0 for zeros.
    row_sum: max_i sum_j 4^(max(e_ij, floor) - top); column_sum: alike; an entry of 0 counts as one of exponent ``floor``.
    """

    bad: int
    first_bad: tuple[int, int]
    zero_rows: int
    zero_columns: int
    nonzero: int
    top: int
    precision: int
    with_last_bit: int
    last_place: int
    with_last_place: int
    row_sum: float
    column_sum: float


def storage_noise(w: NDArray[Any], *, floor: int) -> EntryCounts:
    """What the bits of a matrix's entries tell of its rounding; what is made of it: ``metrics.rank``.

    w: (m, n) float16, float32 or float64, any strides. floor: exponent below which a unit in the last place no longer shrinks, that of the format's
    smallest normal number or higher; at least the carrier's own, -126 or for float64 -1022.

    Accuracy: integers exact; the sums to rounding. Terms below 4^-200 of the largest may be left out.
    Errors: ValueError for an exponent out of range.
    """
    carrier = _WIDE if w.dtype.itemsize == 8 else _NARROW
    if not 2 - (1 << (carrier.exponent_bits - 1)) <= floor <= (1 << (carrier.exponent_bits - 1)) - 2:
        raise ValueError(f"floor: wanted an exponent of normal numbers, got {floor}")
    if w.size == 0:
        return EntryCounts(0, (-1, -1), w.shape[0], w.shape[1], 0, floor, 1, 0, 0, 0, 0.0, 0.0)
    finite = np.isfinite(w)
    if not finite.all():
        first = np.unravel_index(int(np.argmin(finite)), w.shape)
        return EntryCounts(int(w.size - np.count_nonzero(finite)), (int(first[0]), int(first[1])), 0, 0, 0, 0, 1, 0, 0, 0, 0.0, 0.0)
    largest = max(float(w.max()), -float(w.min()))
    top = max(floor, int(np.frexp(largest)[1]) - 1) if largest else floor
    # one entry per exponent field: 4^(exponent - top); the exponent of zeros and subnormals is below any floor
    exponent = np.maximum(np.arange(1 << carrier.exponent_bits) - carrier.bias, floor)
    terms = np.ldexp(1.0, np.clip(2 * (exponent - top), -1000, 0))
    columns, column_any = np.zeros(w.shape[1]), np.zeros(w.shape[1], dtype=bool)
    row_sum, zero_rows, nonzero, used = 0.0, 0, 0, 0
    place, with_place = 1 << 30, 0
    for bits in _blocks(w, carrier):
        term = terms[(bits >> carrier.field).astype(np.intp)]
        columns += term.sum(axis=0)
        row_sum = max(row_sum, float(term.sum(axis=1).max()))
        column_any |= bits.any(axis=0)
        zero_rows += int(np.count_nonzero(~bits.any(axis=1)))
        nonzero += int(np.count_nonzero(bits))
        used |= int(np.bitwise_or.reduce(bits & carrier.fraction, axis=None))
        here, count = _last_place(bits[bits != 0], carrier)
        if here < place:
            place, with_place = here, 0
        with_place += count if here == place else 0
    last = (used & -used).bit_length() - 1
    with_last = sum(int(np.count_nonzero(bits & carrier.unsigned(1 << last))) for bits in _blocks(w, carrier)) if used else 0
    precision = carrier.field + 1 - last if used else 1
    zero_columns = int(np.count_nonzero(~column_any))
    place = place if nonzero else 0
    return EntryCounts(0, (-1, -1), zero_rows, zero_columns, nonzero, top, precision, with_last, place, with_place, row_sum, float(columns.max()))


class _Carrier(NamedTuple):
    """The numpy format whose bits are looked at; field: bits of the significand that are stored."""

    floating: type[np.floating[Any]]
    unsigned: type[np.unsignedinteger[Any]]
    field: int
    exponent_bits: int

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def fraction(self) -> Any:
        return self.unsigned((1 << self.field) - 1)


_NARROW, _WIDE = _Carrier(np.float32, np.uint32, 23, 8), _Carrier(np.float64, np.uint64, 52, 11)


def _blocks(w: NDArray[Any], carrier: _Carrier) -> Iterator[NDArray[Any]]:
    """The bits of |w| in blocks of rows."""
    magnitude = carrier.unsigned((1 << (carrier.field + carrier.exponent_bits)) - 1)
    rows = max(1, _BLOCK_ENTRIES // w.shape[1])
    for first in range(0, w.shape[0], rows):
        yield np.ascontiguousarray(w[first : first + rows], dtype=carrier.floating).view(carrier.unsigned) & magnitude


def _last_place(bits: NDArray[Any], carrier: _Carrier) -> tuple[int, int]:
    """Exponent of the lowest bit set in any of these nonzero entries, and in how many it is set."""
    if bits.size == 0:
        return 1 << 30, 0
    field = (bits >> carrier.unsigned(carrier.field)).astype(np.int64)
    significand = (bits & carrier.fraction) | np.where(field > 0, carrier.unsigned(1 << carrier.field), carrier.unsigned(0))
    low = significand & (~significand + carrier.unsigned(1))
    place = np.frexp(low.astype(np.float64))[1] - 1 + np.maximum(field, 1) - carrier.bias - carrier.field
    lowest = int(place.min())
    return lowest, int(np.count_nonzero(place == lowest))
