"""storage_noise on every backend and instruction-set level: integers equal to those counted with Python's own numbers, sums to rounding."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_fast.kernels import native_kernels, numpy_kernels
from spectral_fast.kernels.numpy_kernels import EntryCounts

DTYPES = {"float16": (np.float16, -14), "float32": (np.float32, -126), "float64": (np.float64, -1022)}
LEVELS = native_kernels.levels()


def by_definition(w: np.ndarray, floor: int) -> EntryCounts:
    """Entry by entry, with exact fractions."""
    bits = 53 if w.dtype == np.float64 else 24
    least = (-1022 if w.dtype == np.float64 else -126) + 1 - bits
    rows, cols = w.shape
    exponent, lowest, precision = np.full(w.shape, floor), [], []
    for i in range(rows):
        for j in range(cols):
            x = abs(float(w[i, j]))
            if x == 0.0:
                continue
            numerator, denominator = x.as_integer_ratio()
            place = (numerator & -numerator).bit_length() - denominator.bit_length()
            e = math.frexp(x)[1] - 1
            lowest.append(place)
            precision.append(max(e, least + bits - 1) + 1 - place)
            exponent[i, j] = max(e, floor)
    top = int(exponent.max())
    terms = [[Fraction(4) ** int(e - top) for e in row] for row in exponent]
    return EntryCounts(
        bad=0,
        first_bad=(-1, -1),
        zero_rows=sum(not w[i].any() for i in range(rows)),
        zero_columns=sum(not w[:, j].any() for j in range(cols)),
        nonzero=len(lowest),
        top=top,
        precision=max(precision, default=1),
        with_last_bit=0,
        last_place=min(lowest, default=0),
        with_last_place=lowest.count(min(lowest)) if lowest else 0,
        row_sum=float(max(sum(row) for row in terms)),
        column_sum=float(max(sum(row[j] for row in terms) for j in range(cols))),
    )


def last_bits(w: np.ndarray, precision: int) -> int:
    """Entries that have the last bit of this precision set, counted on the carrier's bits."""
    if precision == 1:
        return 0
    carrier = w.view(np.uint64) if w.dtype == np.float64 else w.astype(np.float32).view(np.uint32)
    return int(np.count_nonzero((carrier >> np.array((53 if w.dtype == np.float64 else 24) - precision, carrier.dtype)) & np.array(1, carrier.dtype)))


def same(found: EntryCounts, wanted: EntryCounts) -> None:
    assert found[:-2] == wanted[:-2]
    assert found[-2:] == pytest.approx(wanted[-2:], rel=1e-13)


def every_backend(w: np.ndarray, floor: int, **options: Any) -> EntryCounts:
    """The numpy kernel's result, which all levels share, at one thread and two; those two to the bit."""
    wanted = numpy_kernels.storage_noise(w, floor=floor)
    native = [native_kernels.storage_noise(w, floor=floor, level=level, threads=threads, **options) for level in LEVELS for threads in (1, 2)]
    for found in native:
        same(found, wanted)
        assert found == native[0]
    return wanted


def matrix(kind: str, shape: tuple[int, int], dtype: Any, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(shape)
    with np.errstate(over="ignore", under="ignore"):
        if kind == "zeros inside":
            w[rng.random(shape) < 0.4] = -0.0
            w[shape[0] // 2], w[:, shape[1] // 3] = 0.0, 0.0
        elif kind == "wide":
            w = np.clip(w * 2.0 ** rng.uniform(-30, 14, shape), -6e4, 6e4)
        elif kind == "subnormal":
            w *= float(np.finfo(dtype).smallest_subnormal) * 9
        elif kind == "integers":
            w = np.rint(5 * w)
        elif kind == "powers":
            w = np.sign(w) * 2.0 ** rng.integers(-9, 9, shape)
        elif kind == "zero":
            w[:] = 0.0
        elif kind == "one row larger":
            w[-1] *= 2.0**9
        return w.astype(dtype)


KINDS = ["gauss", "zeros inside", "wide", "subnormal", "integers", "powers", "zero", "one row larger"]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_against_the_definition(kind: str, name: str) -> None:
    dtype, floor = DTYPES[name]
    for shape in ((1, 1), (3, 7), (16, 9), (9, 33), (40, 2)):
        for least in (floor, floor + 9):
            w = matrix(kind, shape, dtype)
            found = every_backend(w, least)
            wanted = by_definition(w, least)
            same(found, wanted._replace(with_last_bit=last_bits(w, wanted.precision)))


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (700, 5), (5, 700), (300, 513), (131, 1100), (2000, 40)])
@pytest.mark.parametrize("kind", ["gauss", "zeros inside", "integers"])
def test_tiles(kind: str, shape: tuple[int, int]) -> None:
    """Shapes of several tiles, and whatever is left over at their ends."""
    for dtype, floor in DTYPES.values():
        every_backend(matrix(kind, shape, dtype), floor)


@pytest.mark.parametrize("name", DTYPES)
def test_strides(name: str) -> None:
    dtype, floor = DTYPES[name]
    w = matrix("zeros inside", (60, 90), dtype, 3)
    w[7:9] *= dtype(4)
    wanted = numpy_kernels.storage_noise(w, floor=floor)
    room = np.ones((120, 270), dtype)
    room[::2, ::3] = w
    for view in (np.asfortranarray(w), room[::2, ::3], w[::-1, ::-1][::-1, ::-1], w.astype(w.dtype.newbyteorder())):
        same(every_backend(view, floor), wanted)
    turned = every_backend(w.T, floor)
    assert (turned.zero_rows, turned.zero_columns) == (wanted.zero_columns, wanted.zero_rows)
    assert (turned.row_sum, turned.column_sum) == pytest.approx((wanted.column_sum, wanted.row_sum), rel=1e-13)
    same(every_backend(np.broadcast_to(w[:1], (60, 90)), floor), numpy_kernels.storage_noise(np.tile(w[0], (60, 1)), floor=floor))


@pytest.mark.native_only
def test_bfloat16_bits_are_read_in_place() -> None:
    w = matrix("wide", (70, 600), np.float64).astype(ml_dtypes.bfloat16)
    bits = w.view(np.uint16)
    wanted = numpy_kernels.storage_noise(w.astype(np.float32), floor=-126)
    for level in LEVELS:
        for a in (bits, np.asfortranarray(bits), bits.T.copy().T):
            same(native_kernels.storage_noise(a, floor=-126, bits="bfloat16", level=level), wanted)
    assert wanted.precision == 8


def test_float16_every_value() -> None:
    """All finite half-precision numbers, normal and not."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    for w in every[np.isfinite(every)].reshape(4, -1):
        every_backend(w.reshape(-1, 64), -14)


@pytest.mark.parametrize("scale", [2.0**-1060, 2.0**-700, 2.0**600, 2.0**1000])
def test_float64_far_from_one(scale: float) -> None:
    """Entries whose squared units leave the range of float64; the largest one hidden from a quick look."""
    w = matrix("gauss", (90, 70), np.float64) * 2.0**-30
    w[41, 13] = 1.5
    counts = every_backend(w * scale, -1022)
    assert counts.top == max(-1022, round(math.log2(scale)))
    assert np.isfinite(counts.row_sum) and 1.0 <= counts.row_sum <= 90.0


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", DTYPES)
def test_not_finite(name: str, bad: float) -> None:
    dtype, floor = DTYPES[name]
    w = matrix("gauss", (300, 600), dtype)
    for place in ((0, 0), (299, 599), (130, 520)):
        spoiled = w.copy()
        spoiled[place] = bad
        assert every_backend(spoiled, floor)[:2] == (1, place)
        spoiled[-1, -1] = spoiled[place[0], -1] = bad
        counts = every_backend(np.asfortranarray(spoiled), floor)
        assert counts.first_bad == min(place, (place[0], 599)) and counts.bad == len({place, (299, 599), (place[0], 599)})


@pytest.mark.native_only
def test_not_finite_bfloat16() -> None:
    w = np.ones((40, 50), dtype=ml_dtypes.bfloat16)
    w[3, 4] = w[20, 1] = np.inf
    assert native_kernels.storage_noise(w.view(np.uint16), floor=-126, bits="bfloat16")[:2] == (2, (3, 4))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty(shape: tuple[int, int]) -> None:
    counts = every_backend(np.zeros(shape, np.float32), -126)
    assert (counts.zero_rows, counts.zero_columns, counts.nonzero) == (*shape, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.sampled_from(sorted(DTYPES)))
def test_any_shape(m: int, n: int, seed: int, kind: str, name: str) -> None:
    dtype, floor = DTYPES[name]
    every_backend(matrix(kind, (m, n), dtype, seed), floor)


def test_errors_name_the_argument(kernels) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="^floor: "):
        kernels("storage_noise")(np.ones((2, 2), np.float32), floor=-127)
    with pytest.raises(ValueError, match="^floor: "):
        kernels("storage_noise")(np.ones((2, 2)), floor=1023)
