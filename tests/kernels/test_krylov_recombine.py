"""recombine on every backend and level, and what the binding says of arguments that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krylov_rows import FORMATS, LEVELS, UNIT, numbers, stored

from spectral_fast.kernels import native_kernels, numpy_kernels


def every(op: str) -> list[Any]:
    def at(level: str) -> Any:
        return lambda *args, **more: getattr(native_kernels, op)(*args, level=level, **{"threads": 2, **more})

    return [getattr(numpy_kernels, op), *(at(level) for level in LEVELS)]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40) | st.integers(1, 3000),
    st.integers(0, 70),
    st.integers(1, 9),
    st.sampled_from(FORMATS),
    st.sampled_from(FORMATS),
    st.integers(0, 3),
    st.integers(0, 2**32 - 1),
)
def test_combinations_against_extended_precision(n: int, m: int, q: int, kind: str, into_kind: str, pad: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    basis = stored(rng.standard_normal((m + 2, n + pad)), kind)[:, :n]
    s = rng.standard_normal((m, q))
    v = numbers(basis[:m]).astype(np.longdouble)
    exact, size = s.T.astype(np.longdouble) @ v, np.abs(s.T) @ np.abs(numbers(basis[:m]))
    for combine in every("recombine"):
        room = stored(np.full((q + 1, n + pad), 7.0), into_kind)
        into = room[:, :n]
        combine(basis, m, s, into)
        error = np.abs(numbers(into[:q]) - exact.astype(np.float64))
        # a sum of m products, and one rounding (two for bfloat16, by way of float32)
        assert (error <= size * (m + 1) * 2.0**-53 + np.abs(exact).astype(np.float64) * UNIT[into_kind] * (1 + 2.0**-15)).all()
        assert (numbers(into[q:]) == 7).all() and (numbers(room[:, n:]) == 7).all()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("n", [1, 5, 300, 5000])
def test_in_place_is_the_same_as_elsewhere(kind: str, n: int, tmp_path: Path, kernels: Any) -> None:
    rng = np.random.default_rng(n)
    m, q = 30, 11
    basis, s = stored(rng.standard_normal((m + 3, n)), kind), rng.standard_normal((m, q))
    out = np.zeros((q, n), basis.dtype)
    kernels("recombine")(basis, m, s, out)
    file = np.memmap(tmp_path / "rows", dtype=kind, mode="w+", shape=basis.shape)
    file[:] = basis
    rest = basis[q:].copy()
    kernels("recombine")(basis, m, s, basis)
    kernels("recombine")(file, m, s, file)
    assert np.array_equal(basis[:q], out) and np.array_equal(file, basis)
    assert np.array_equal(basis[q:], rest)


def test_rounding_to_bfloat16_is_to_nearest_even(kernels: Any) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 4000, dtype=np.uint64).astype(np.uint32)
    bits[:1000] = (bits[:1000] & 0xFFFF0000) | 0x8000  # in the middle of two
    bits[1000:1500] = (bits[1000:1500] & 0xFFFF0000) | 0x7FFF
    bits[1500:1509] = [0, 1, 0x80000001, 0x8000, 0x18000, 0x7F7FFFFF, 0xFF7FFFFF, 0x007FFFFF, 0x00800000]  # subnormal, and what rounds to infinity
    x = bits.view(np.float32)
    x = x[np.isfinite(x)] + np.float32(0)  # a sum has no negative zero
    for kind in ("float64", "float32"):
        out = np.zeros((1, len(x)), np.uint16)
        kernels("recombine")(x[None, :].astype(kind), 1, np.ones((1, 1)), out)
        with np.errstate(over="ignore"):
            assert np.array_equal(out[0], x.astype(ml_dtypes.bfloat16).view(np.uint16))
        basis, w = np.zeros((1, 65), np.uint16), np.zeros((1, 65), kind)
        w[0, :64] = 1 + 2.0**-8 * np.arange(64)  # a norm that is no number of few bits
        c, _ = kernels("orthogonalize")(basis, 0, w.copy(), np.zeros(1))
        assert np.array_equal(basis[0], (w[0].astype(np.float64) / c[0, 0]).astype(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16))


def test_no_rows_give_zeros(kernels: Any) -> None:
    out = np.ones((3, 40))
    kernels("recombine")(np.ones((2, 40)), 0, np.zeros((0, 2)), out)
    assert not out[:2].any() and (out[2] == 1).all()


@pytest.mark.native_only
@pytest.mark.parametrize(
    "change, match",
    [
        ({"basis": np.zeros((6, 8), np.int64)}, "basis.*dtype int64"),
        ({"basis": np.zeros((6, 8), ">f8")}, "basis.*dtype"),
        ({"basis": np.zeros((6, 16))[:, ::2]}, "basis.*not adjacent"),
        ({"basis": np.zeros((8, 6)).T}, "basis.*not adjacent"),
        ({"basis": np.zeros((6, 8))[::-1]}, "basis.*overlap"),
        ({"basis": np.broadcast_to(np.zeros(8), (6, 8))}, "basis"),
        ({"basis": np.zeros((6, 9))}, "w: wanted rows of 9"),
        ({"basis": np.zeros(8)}, "basis.*1 dimensions"),
        ({"t": 7}, "basis.*6 rows"),
        ({"t": -1}, "t:.*-1"),
        ({"w": np.zeros((2, 8), np.uint16)}, "w:.*dtype uint16"),
        ({"w": np.zeros((8, 2)).T}, "w:.*not adjacent"),
        ({"w": np.zeros(8)}, "w:.*1 dimensions"),
        ({"floor": np.zeros(3)}, "floor.*2 vectors"),
        ({"threads": -1}, "threads"),
        ({"level": "sse9"}, "sse9"),
    ],
)
def test_the_binding_names_the_argument(change: dict[str, Any], match: str) -> None:
    given = {"basis": np.eye(6, 8), "t": 2, "w": np.ones((2, 8)), "floor": np.zeros(2), **change}
    with pytest.raises((ValueError, TypeError), match=match):
        native_kernels.orthogonalize(given.pop("basis"), given.pop("t"), given.pop("w"), given.pop("floor"), **given)


@pytest.mark.native_only
@pytest.mark.parametrize(
    "change, match",
    [
        ({"m": 7}, "basis.*6 rows"),
        ({"m": -1}, "basis|s:|m:"),
        ({"s": np.zeros((3, 2))}, r"s: wanted.*\(4, 2\)"),
        ({"s": np.zeros((2, 4)).T}, "s:.*C-contiguous"),
        ({"s": np.zeros(4)}, "s:"),
        ({"into": np.zeros((1, 8))}, "into.*1 rows"),
        ({"into": np.zeros((2, 9))}, "into.*9"),
        ({"into": np.zeros((2, 8), np.float16)}, "into.*float16"),
    ],
)
def test_recombine_names_the_argument(change: dict[str, Any], match: str) -> None:
    given = {"basis": np.eye(6, 8), "m": 4, "s": np.zeros((4, 2)), "into": np.zeros((2, 8)), **change}
    with pytest.raises((ValueError, TypeError), match=match):
        native_kernels.recombine(*given.values())


@pytest.mark.native_only
def test_what_may_not_be_written_is_refused() -> None:
    basis, w = np.eye(6, 8), np.ones((2, 8))
    for frozen in (basis, w):
        frozen.flags.writeable = False
        with pytest.raises(ValueError, match="basis|w"):
            native_kernels.orthogonalize(basis, 2, w, np.zeros(2))
        frozen.flags.writeable = True


def test_a_reduction_that_fails_is_heard(kernels: Any) -> None:
    def reduce(sums: np.ndarray) -> None:
        raise ConnectionError("the other process is gone")

    with pytest.raises(ConnectionError, match="gone"):
        kernels("orthogonalize")(np.eye(6, 80), 2, np.ones((2, 80)), np.zeros(2), reduce=reduce)
