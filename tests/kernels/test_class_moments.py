"""class_moments on every backend and level: against extended precision, and by what has to hold whatever comes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_fast.kernels import native_kernels, numpy_kernels

EPS = 2.0**-52
LEVELS = native_kernels.levels()
State = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def fresh(n_classes: int, dim: int) -> State:
    return np.zeros(n_classes, np.int64), np.zeros((n_classes, dim)), np.zeros((dim, dim)), np.zeros(n_classes)


def exact(x: np.ndarray, y: np.ndarray, n_classes: int) -> tuple[np.ndarray, ...]:
    """counts, means, scatter, spread by two passes in extended precision."""
    h, dim = x.astype(np.longdouble), x.shape[1]
    means, scatter, spread = np.zeros((n_classes, dim), np.longdouble), np.zeros((dim, dim), np.longdouble), np.zeros(n_classes, np.longdouble)
    for c in np.unique(y[y >= 0]):
        rows = h[y == c]
        means[c] = rows[0] + (rows - rows[0]).sum(axis=0) / len(rows)
        centred = rows - means[c]
        scatter += centred.T @ centred
        spread[c] = (centred * centred).sum()
    return np.bincount(y[y >= 0], minlength=n_classes), means, scatter, spread


def check(state: State, x: np.ndarray, y: np.ndarray, blocks: int = 1) -> None:
    counts, means, scatter, spread = exact(x, y, len(state[0]))
    assert np.array_equal(state[0], counts)
    largest = float(np.abs(x).max(initial=0.0))
    # a mean is rounded once in every block; a few hundred terms are added one after the other
    assert np.abs(state[1] - means).max(initial=0.0) <= 8 * blocks * EPS * largest
    size = np.sqrt(np.diag(scatter)).astype(np.float64)
    deviation = 8 * blocks * EPS * largest * np.sqrt(counts.sum())  # of a column, all its means being wrong by that much
    allowed = 500 * blocks * EPS * np.outer(size, size) + 2 * np.add.outer(size, size) * deviation + deviation**2
    # ... of which the sum over a class has none to first order, which is why this is never nearly reached
    assert (np.abs(state[2] - scatter) <= allowed).all()
    assert np.array_equal(state[2], state[2].T)
    norm = np.sqrt(spread.astype(np.float64))
    off = deviation * np.sqrt(x.shape[1])
    assert (np.abs(state[3] - spread) <= 500 * blocks * EPS * norm**2 + 2 * norm * off + off**2).all()
    assert float(state[3].sum()) == pytest.approx(float(np.trace(state[2])), rel=1e-10, abs=1e-300)


def every() -> list[Any]:
    """The numpy kernel, and the compiled one at every level."""

    def at(level: str) -> Any:
        return lambda *args: native_kernels.class_moments(*args, level=level, threads=2)

    return [numpy_kernels.class_moments, *(at(level) for level in LEVELS)]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 40) | st.integers(0, 700),
    st.integers(1, 40),
    st.integers(1, 6) | st.integers(1, 300),
    st.integers(0, 3),
    st.sampled_from(["f4", "f8", "f2"]),
    st.floats(-100, 100),
    st.integers(0, 2**32 - 1),
)
def test_blocks_of_any_size_are_the_whole(n: int, dim: int, n_classes: int, cuts: int, kind: str, shift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(-1, n_classes, n)
    x = (rng.standard_normal((n, dim)) + shift).astype(kind)
    edges = [0, *np.sort(rng.integers(0, n + 1, cuts)), n]
    for kernel in every():
        state = fresh(n_classes, dim)
        for lo, hi in zip(edges, edges[1:], strict=False):
            kernel(x[lo:hi], y[lo:hi], *state)
        check(state, x, y, cuts + 1)


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize(
    ("n", "dim", "n_classes"),
    [(1, 1, 1), (2, 3, 2), (255, 8, 1), (256, 12, 2), (257, 13, 3), (5000, 31, 5), (9000, 24, 700), (120, 530, 7), (180, 520, 90), (900, 2, 50_000)],
)
def test_against_extended_precision(n: int, dim: int, n_classes: int, kind: str, kernels: Any) -> None:
    rng = np.random.default_rng([n, dim])
    y = rng.integers(0, n_classes, n)
    scale = 10.0 ** rng.uniform(-3, 3, dim)
    x = ((rng.standard_normal((n, dim)) + 3.0 * rng.standard_normal((min(n_classes, 64), dim))[y % 64 % min(n_classes, 64)]) * scale).astype(kind)
    state = fresh(n_classes, dim)
    half = n // 3
    kernels("class_moments")(x[:half], y[:half], *state)
    kernels("class_moments")(x[half:], y[half:], *state)
    check(state, x, y, 2)


def test_a_common_shift_costs_no_digits(kernels: Any) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(4000) % 10
    grid = np.round(rng.standard_normal((4000, 40)) * 2**20) / 2**20  # 1e4 can be added without rounding
    plain, moved = fresh(10, 40), fresh(10, 40)
    for at in range(0, 4000, 1000):
        kernels("class_moments")(grid[at : at + 1000], y[at : at + 1000], *plain)
        kernels("class_moments")(grid[at : at + 1000] + 1e4, y[at : at + 1000], *moved)
    # class means known to eps 1e4 = 2e-12, and what that does to the scatter is its square
    assert np.abs(moved[2] - plain[2]).max() <= 1e-13 * np.abs(plain[2]).max()
    assert np.abs(moved[3] - plain[3]).max() <= 1e-13 * plain[3].max()
    assert np.abs(moved[1] - 1e4 - plain[1]).max() <= 8 * EPS * 1e4


def test_equal_vectors_have_no_spread(kernels: Any) -> None:
    rng = np.random.default_rng(1)
    h = rng.standard_normal((3, 17)) + 1e3
    y = np.repeat([0, 1, 2], [700, 3, 1])
    state = fresh(4, 17)
    for _ in range(3):
        kernels("class_moments")(h[y], y, *state)
    assert not state[2].any() and not state[3].any()
    assert np.array_equal(state[1][:3], h) and not state[1][3].any()
    assert state[0].tolist() == [2100, 9, 3, 0]


def test_first_block_and_order_of_classes(kernels: Any) -> None:
    x = np.array([[1.0, 2.0], [3.0, 6.0], [5.0, 5.0], [9.0, 9.0]], np.float32)
    state = fresh(3, 2)
    kernels("class_moments")(x, np.array([2, 2, 0, -100]), *state)
    assert state[0].tolist() == [1, 0, 2]
    assert state[1].tolist() == [[5, 5], [0, 0], [2, 4]]
    assert state[2].tolist() == [[2, 4], [4, 8]] and state[3].tolist() == [0, 0, 10]
    before = [part.copy() for part in state]
    kernels("class_moments")(x[:0], np.zeros(0, np.int64), *state)
    kernels("class_moments")(x, np.full(4, -1), *state)
    assert all(np.array_equal(a, b) for a, b in zip(before, state, strict=True))
    kernels("class_moments")(x[:1], np.array([2]), *state)  # 1, 3, 1 and 2, 6, 2
    assert state[1][2] == pytest.approx([5 / 3, 10 / 3], rel=4 * EPS) and state[3][2] == pytest.approx(8 / 3 * 5, rel=8 * EPS)


def test_rows_at_any_distance(kernels: Any) -> None:
    rng = np.random.default_rng(2)
    wide = rng.standard_normal((90, 50)).astype(np.float32)
    y = rng.integers(0, 4, 90)
    for x, labels in ((wide[::2, 3:20], y[::2]), (wide[::-1, :9], y[::-1]), (wide[:, ::3], y), (wide.T[:30], y[:30]), (np.broadcast_to(wide[:1], (90, 50)), y)):
        state, plain = fresh(4, x.shape[1]), fresh(4, x.shape[1])
        kernels("class_moments")(x, labels, *state)
        kernels("class_moments")(np.ascontiguousarray(x), np.ascontiguousarray(labels), *plain)
        assert all(np.array_equal(a, b) for a, b in zip(state, plain, strict=True))


@pytest.mark.native_only
def test_half_precision_is_read_in_place() -> None:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 100)
    for kind, bits in ((ml_dtypes.bfloat16, "bfloat16"), (np.float16, None)):
        x = rng.standard_normal((100, 21)).astype(kind)
        for level in LEVELS:
            state, wide = fresh(3, 21), fresh(3, 21)
            native_kernels.class_moments(x.view(np.uint16) if bits else x, y, *state, bits=bits, level=level)
            native_kernels.class_moments(x.astype(np.float32), y, *wide, level=level)
            assert all(np.array_equal(a, b) for a, b in zip(state, wide, strict=True))


@pytest.mark.native_only
@pytest.mark.parametrize(("n", "dim", "n_classes"), [(20_000, 40, 30), (1500, 600, 200)])
def test_the_number_of_threads_changes_no_bit(n: int, dim: int, n_classes: int) -> None:
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((n, dim)).astype(np.float32), rng.integers(0, n_classes, n)
    for level in LEVELS:
        seen = []
        for threads in (1, 2, 3):
            state = fresh(n_classes, dim)
            for part in (slice(0, n // 3), slice(n // 3, n)):
                native_kernels.class_moments(x[part], y[part], *state, level=level, threads=threads)
            seen.append([part.tobytes() for part in state])
        assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_column_alone(bad: float, kernels: Any) -> None:
    for row in (0, 5, 19):
        x = np.random.default_rng(5).standard_normal((20, 30))
        x[row, 3] = bad
        y = np.arange(20) % 4
        state = fresh(4, 30)
        kernels("class_moments")(x, y, *state)
        lost = ~np.isfinite(state[2])
        assert lost[3].all() and lost[:, 3].all() and lost.sum() == 59
        assert np.argwhere(~np.isfinite(state[1])).tolist() == [[row % 4, 3]]
        assert np.flatnonzero(~np.isfinite(state[3])).tolist() == [row % 4]


def test_bad_input_is_named_and_changes_nothing(kernels: Any) -> None:
    x, y = np.ones((4, 3)), np.array([0, 1, 0, 2])
    state = fresh(2, 3)
    with pytest.raises(ValueError, match="labels: wanted classes below 2, got 2 in row 3"):
        kernels("class_moments")(x, y, *state)
    assert not any(part.any() for part in state)
    y = np.array([0, 1, 0, 1])
    with pytest.raises(ValueError, match="labels"):
        kernels("class_moments")(x, y[:3], *state)
    with pytest.raises(ValueError, match="means"):
        kernels("class_moments")(x, y, state[0], np.zeros((3, 3)), *state[2:])
    with pytest.raises(ValueError, match="scatter"):
        kernels("class_moments")(x, y, *state[:2], np.zeros((3, 4)), state[3])
    with pytest.raises(ValueError, match="spread"):
        kernels("class_moments")(x, y, *state[:3], np.zeros(5))
    with pytest.raises((ValueError, TypeError), match="counts"):
        kernels("class_moments")(x, y, np.zeros(2), *state[1:])
    assert not any(part.any() for part in state)
