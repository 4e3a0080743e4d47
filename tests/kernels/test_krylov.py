"""orthogonalize and recombine on every backend and level: against extended precision, and by what has to hold whatever comes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krylov_rows import FORMATS, LEVELS, UNIT, numbers, stored
from pretend_device import on_device
from tolerances import tolerance

from spectral_fast.kernels import native_kernels, numpy_kernels, torch_kernels


def basis_of(t: int, room: int, n: int, kind: str, seed: int, pad: int = 0) -> np.ndarray:
    """(room, n) memory of which the first t rows are orthonormal; rows ``pad`` entries apart; what is not used yet is full of NaN."""
    rng = np.random.default_rng(seed)
    rows = np.full((room, n + pad), 0xFFFF if kind == "uint16" else np.nan).astype(kind)[:, :n]
    rows[:t] = stored(np.linalg.qr(rng.standard_normal((n, t)))[0].T, kind)
    return rows


def defect(rows: np.ndarray) -> float:
    v = numbers(rows).astype(np.longdouble)
    return float(np.abs(v @ v.T - np.eye(len(v))).max(initial=0.0))


def bound(kind: str, w_kind: str, n: int) -> float:
    """|row_i row_j - delta_ij|: each of two rows was rounded (2 unit), so was w (entry by entry, its last time), and what two passes leave is the square
    of how far the older rows are from orthonormal: less than a third of that."""
    return 3 * UNIT[kind] + 2 * UNIT[w_kind] + tolerance(np.float64, n)


def left_over(basis: np.ndarray, c: np.ndarray, w: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Norms (b,) of w as given - coefficientsᵀ rows, in extended precision."""
    used = c.astype(np.longdouble)[: len(basis)]
    assert not c[len(basis) :].any()
    v = numbers(basis).astype(np.longdouble)
    v[~used.any(axis=1)] = 0  # rows not yet written
    return np.linalg.norm((given.astype(np.longdouble) - used.T @ v).astype(np.float64), axis=1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40) | st.integers(1, 3000),
    st.integers(0, 12),
    st.integers(1, 5),
    st.sampled_from(FORMATS),
    st.sampled_from(FORMATS[:2]),
    st.integers(0, 3),
    st.integers(0, 2**32 - 1),
)
def test_what_comes_in_is_what_comes_out(n: int, t: int, b: int, kind: str, w_kind: str, pad: int, seed: int) -> None:
    t = min(t, n)
    rng = np.random.default_rng([seed, 1])
    w0 = (rng.standard_normal((b, n)) * 10.0 ** rng.uniform(-3, 3, (b, 1))).astype(w_kind)
    relative = 1e-3 if kind == "uint16" else 1e-5 if "float32" in (kind, w_kind) else 1e-12
    for ortho in every("orthogonalize"):
        basis, w = basis_of(t, min(n, t + b), n, kind, seed, pad), w0.copy()
        before = basis[:t].copy()
        c, kept = ortho(basis, t, w, np.zeros(b), relative=relative)
        assert c.shape == (t + b, b) and c.dtype == np.float64 and kept.shape == (b,) and kept.dtype == bool
        assert np.array_equal(basis[:t], before)
        new = int(kept.sum())
        assert new == min(b, n - t), "random vectors are independent"
        assert defect(basis[: t + new]) <= bound(kind, w_kind, n)
        size = np.linalg.norm(w0.astype(np.float64), axis=1)
        # a kept vector: its row was rounded, w itself three times; a dropped one lost what was left of it too
        allowed = (2 * UNIT[kind] + 4 * UNIT[w_kind] + tolerance(np.float64, n) + np.where(kept, 0.0, relative)) * size
        assert (left_over(basis[: t + new], c, w, w0) <= allowed).all()
        place = t + np.cumsum(kept)
        for i in range(b):  # triangular: nothing of rows that came later, and the norm that was left on the diagonal
            assert not c[place[i] :, i].any()
            assert not kept[i] or c[place[i] - 1, i] > 0


def every(op: str) -> list[Any]:
    """The numpy kernel, torch's on a device, and the compiled one at every level, with two threads."""

    def at(level: str) -> Any:
        return lambda *args, **more: getattr(native_kernels, op)(*args, level=level, **{"threads": 2, **more})

    return [getattr(numpy_kernels, op), on_device(getattr(torch_kernels, op)), *(at(level) for level in LEVELS)]


@pytest.mark.parametrize("w_kind", FORMATS[:2])
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 15, 16, 17, 127, 128, 129, 1000, 4095, 4097, 9000])
def test_coefficients_against_extended_precision(n: int, kind: str, w_kind: str, kernels: Any) -> None:
    t = min(7, n - 1)
    basis = basis_of(t, t + 1, n, kind, n)
    w = np.random.default_rng([n, 1]).standard_normal((1, n)).astype(w_kind)
    v, x = numbers(basis[:t]).astype(np.longdouble), w[0].astype(np.longdouble)
    dots = v @ x
    wanted = (dots + (dots - v @ (v.T @ dots))).astype(np.float64)  # what two passes subtract
    left = x - v.T @ wanted.astype(np.longdouble)
    c, kept = kernels("orthogonalize")(basis, t, w, np.zeros(1))
    size = float(np.sqrt(x @ x))
    # what bfloat16 rows take in further passes of a vector that lost nine tenths is of the size of the square of their defect
    lost = 0.0 if kind != "uint16" or t == 0 else float(np.linalg.norm((v @ v.T).astype(np.float64) - np.eye(t), 2)) ** 2
    assert np.abs(c[:t, 0] - wanted).max(initial=0.0) <= (tolerance(np.float64, n) + 2 * UNIT[w_kind] * (w_kind != "float64") + lost) * size
    assert kept[0] and abs(c[t, 0] - float(np.sqrt(left @ left))) <= (tolerance(np.float64, n) + 2 * UNIT[w_kind] + lost) * size


@pytest.mark.parametrize("kind", FORMATS)
def test_dependent_vectors_are_left_out(kind: str, kernels: Any) -> None:
    n, t = 500, 20
    rng = np.random.default_rng(3)
    basis = basis_of(t, 40, n, kind, 1)
    rows = numbers(basis[:t])
    fresh = rng.standard_normal((2, n))
    w = np.concatenate([rows.T[:, :1].T, rng.standard_normal((2, t)) @ rows, fresh[:1], 3 * fresh[:1], fresh, fresh.sum(0, keepdims=True), np.zeros((1, n))])
    given = w.copy()
    relative = 10 * 2.0**-52 * np.sqrt(n) if kind == "float64" else 10 * 2.0**-23
    c, kept = kernels("orthogonalize")(basis, t, w, np.zeros(len(w)), relative=relative)
    # a multiple of a vector is that of its row but for the row's rounding: with bfloat16 that is a direction of its own
    assert kept.tolist() == [False, False, False, True, kind == "uint16", kind == "uint16", True, kind == "uint16", False]
    new = t + int(kept.sum())
    assert defect(basis[:new]) <= bound(kind, "float64", n)
    assert (left_over(basis[:new], c[:new], w, given) <= (2 * UNIT[kind] + 2 * relative) * np.linalg.norm(given, axis=1)).all()


def test_bfloat16_rows_far_from_unit_length_take_all_of_their_span(kernels: Any) -> None:
    n = 300  # 1 / sqrt(300) lies as badly between two numbers as can be: every entry is off in the same direction
    basis = np.zeros((6, n), np.uint16)
    basis[0] = stored(np.full(n, n**-0.5), "uint16")
    assert abs(numbers(basis[:1]) @ numbers(basis[:1]).T - 1).max() > 2e-3
    for kind in ("float64", "float32"):
        w = numbers(basis[:1]).astype(kind)
        c, kept = kernels("orthogonalize")(basis, 1, w, np.zeros(1), relative=10 * 2.0**-23)
        assert not kept[0] and c[0, 0] == pytest.approx(1, abs=1e-6)
    w = numbers(basis[:1]) + 1e-3 * np.where(np.arange(n) % 2, 1, -1) * n**-0.5
    c, kept = kernels("orthogonalize")(basis, 1, w, np.zeros(1), relative=10 * 2.0**-23)
    assert kept[0] and c[1, 0] == pytest.approx(1e-3, rel=1e-3) and defect(basis[1:2]) <= 2.0**-7
    assert abs(float(numbers(basis[0]) @ numbers(basis[1]))) <= 2.0**-8  # the rounding of the new row, not a copy of the old one


@pytest.mark.parametrize("kind", FORMATS)
def test_a_vector_mostly_inside_is_orthogonal_all_the_same(kind: str, kernels: Any) -> None:
    n, t = 1000, 15
    rng = np.random.default_rng(0)
    for inside in (10.0, 1e3, 1e8 if kind == "float64" else 1e5):
        basis = basis_of(t, t + 3, n, kind, 2)
        w = inside * rng.standard_normal((1, t)) @ numbers(basis[:t]) + rng.standard_normal((3, n)) / np.sqrt(n)
        w[1] = w[0] + 1e-4 * w[1]
        _, kept = kernels("orthogonalize")(basis, t, w, np.zeros(3), relative=1e-12)
        assert kept[0] and defect(basis[: t + int(kept.sum())]) <= bound(kind, "float64", n)


def test_floor_relative_and_room(kernels: Any) -> None:
    n, ortho = 64, kernels("orthogonalize")
    eye = np.eye(n)

    def run(w: np.ndarray, t: int = 2, room: int = 8, floor: float = 0.0, relative: float = 0.0) -> tuple[list[bool], np.ndarray, np.ndarray]:
        basis = np.zeros((room, n))
        basis[:t] = eye[:t]
        c, kept = ortho(basis, t, w.copy(), np.full(len(w), floor), relative=relative)
        return kept.tolist(), c, basis

    w = np.array([eye[3] * 1e-3, eye[4] + 1e3 * eye[0], eye[5]])
    assert run(w)[0] == [True, True, True]
    assert run(w, floor=1e-3)[0] == [False, True, True], "at the floor is below it"
    assert run(w, floor=0.9e-3)[0] == [True, True, True]
    assert run(w, relative=1e-2)[0] == [True, False, True]
    kept, c, basis = run(w, room=4)
    assert kept == [True, True, False] and c.shape == (5, 3) and c[4].tolist() == [0, 0, 0] and np.array_equal(basis[2:], eye[3:5])
    assert run(w, room=2)[0] == [False] * 3
    kept, c, _ = run(np.zeros((2, n)))
    assert kept == [False, False] and not c.any()
    kept, c, basis = run(w, t=0, room=3)
    assert kept == [True, False, True] or kept == [True, True, True]
    assert c[0].tolist() == [1e-3, 0, 0] and np.array_equal(basis[0], eye[3])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
@pytest.mark.parametrize("t", [0, 3])
def test_what_is_not_finite_leaves_the_basis_alone(bad: float, t: int, kernels: Any) -> None:
    for at in (0, 77, 99):
        basis = basis_of(t, 6, 100, "float64", 0)
        before = basis.copy()
        w = np.ones((2, 100))
        w[1, at] = bad
        c, kept = kernels("orthogonalize")(basis, t, w, np.zeros(2))
        assert np.isnan(c).all() and c.shape == (t + 2, 2) and not kept.any()
        assert np.array_equal(basis, before, equal_nan=True)


@pytest.mark.native_only
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("w_kind", FORMATS[:2])
def test_the_number_of_threads_changes_no_bit(kind: str, w_kind: str) -> None:
    n, t = 30_011, 9
    for level in LEVELS:
        seen = []
        for threads in (1, 2, 3):
            basis = basis_of(t, t + 3, n, kind, 5)
            w = np.random.default_rng(1).standard_normal((3, n)).astype(w_kind)
            w[2] = w[1] + np.float32(1e-5) * w[2]
            c, kept = native_kernels.orthogonalize(basis, t, w, np.zeros(3), level=level, threads=threads)
            out = np.zeros((4, n))
            native_kernels.recombine(basis, t + 3, np.random.default_rng(2).standard_normal((t + 3, 4)), out, level=level, threads=threads)
            seen.append((c.tobytes(), kept.tobytes(), basis.tobytes(), w.tobytes(), out.tobytes()))
        assert seen[0] == seen[1] == seen[2]


class Sum:
    """Adds up over as many callers as there are parts; each waits for the others, as processes do."""

    def __init__(self, parts: int) -> None:
        self.barrier = threading.Barrier(parts)
        self.given: list[Any] = [None] * parts
        self.calls = [0] * parts

    def of(self, part: int) -> Any:
        def reduce(sums: np.ndarray) -> None:
            assert sums.dtype == np.float64 and sums.flags.writeable
            self.given[part] = sums.copy()
            self.calls[part] += 1
            self.barrier.wait(30)
            total = sum(self.given)
            self.barrier.wait(30)
            sums[...] = total

        return reduce


def split_run(ortho: Any, basis: np.ndarray, t: int, w: np.ndarray, cut: int) -> tuple[list[Any], list[int]]:
    total, found = Sum(2), [None, None]

    def one(part: int, columns: slice) -> None:
        mine = np.ascontiguousarray(w[:, columns])
        found[part] = ortho(basis[:, columns], t, mine, np.zeros(len(w)), relative=1e-5, reduce=total.of(part))
        w[:, columns] = mine

    threads = [threading.Thread(target=one, args=(i, c)) for i, c in enumerate((slice(0, cut), slice(cut, None)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found, total.calls


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("t, b, cut", [(0, 1, 300), (0, 3, 1), (5, 1, 900), (5, 4, 500), (5, 4, 1000)])
def test_columns_on_two_processes(kind: str, t: int, b: int, cut: int, kernels: Any) -> None:
    n, ortho = 1000, kernels("orthogonalize")
    rng = np.random.default_rng(t + b)
    basis = basis_of(t, t + b, n, kind, 1)
    w = rng.standard_normal((b, n))
    if b > 2:
        w[1] = w[0] + 1e-3 * w[1]
        w[2] = rng.standard_normal(b) @ w if t == 0 else 2 * w[0]
    whole, together = basis.copy(), w.copy()
    c, kept = ortho(whole, t, together, np.zeros(b), relative=1e-5)
    found, calls = split_run(ortho, basis, t, w, cut)
    assert calls[0] == calls[1]
    for got, has in found:
        assert np.array_equal(has, kept)
        assert np.abs(got - c).max() <= tolerance(np.float64, n) * 100 * np.abs(c).max()  # a vector of a thousandth's remainder is known to a thousandth of it
    assert np.array_equal(found[0][0], found[1][0]), "all processes know the same"
    # a number may be rounded to either of two neighbours
    assert np.abs(numbers(basis[: t + int(kept.sum())]) - numbers(whole[: t + int(kept.sum())])).max() <= 2 * UNIT[kind] + 1e-10
    counts = []
    for other in every("orthogonalize"):
        again, seen = basis_of(t, t + b, n, kind, 1), Sum(1)
        other(again, t, w.copy(), np.zeros(b), relative=1e-5, reduce=seen.of(0))
        counts.append(seen.calls[0])
    assert len(set(counts)) == 1, "backends may meet in one run"


@pytest.mark.parametrize("kind", FORMATS)
def test_basis_in_a_file(kind: str, tmp_path: Path, kernels: Any) -> None:
    n, t = 1500, 4
    w = np.random.default_rng(0).standard_normal((2, n))
    basis = basis_of(t, 6, n, kind, 0)
    file = np.memmap(tmp_path / "basis", dtype=kind, mode="w+", shape=(6, n))
    file[:] = basis
    c, _ = kernels("orthogonalize")(basis, t, w.copy(), np.zeros(2))
    d, _ = kernels("orthogonalize")(file, t, w.copy(), np.zeros(2))
    assert np.array_equal(c, d)
    file.flush()
    assert np.array_equal(np.fromfile(tmp_path / "basis", kind).reshape(6, n), basis)


def test_two_hundred_rows_of_a_hard_matrix(kernels: Any) -> None:
    """Lanczos on clustered eigenvalues, where single Gram-Schmidt loses everything: rows one after the other."""
    n, steps = 600, 200
    evals = np.r_[np.full(100, 1.0), 1 + 1e-8 * np.arange(100), np.linspace(0, 1e-6, 300), 10.0 ** np.arange(-50, 50) ** 0 * 1e3 + 1e-9 * np.arange(100)]
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0]
    ortho = kernels("orthogonalize")
    for kind, w_kind in (("float64", "float64"), ("float32", "float32"), ("uint16", "float64")):
        basis, t = np.zeros((steps, n), kind), 0
        rng = np.random.default_rng(1)
        eps = 2.0**-52 * np.sqrt(n) if kind == "float64" else 2.0**-23
        w = rng.standard_normal((1, n)).astype(w_kind)
        while t < steps:
            _, kept = ortho(basis, t, w, np.full(1, 10 * eps * 1e3), relative=10 * eps)
            t += int(kept[0])
            row = numbers(basis[t - 1])
            w = (((q * evals) @ (q.T @ row)) if kept[0] else rng.standard_normal(n))[None, :].astype(w_kind)
        v = numbers(basis)
        gram = v @ v.T - np.eye(steps)
        # entries of about unit / sqrt(n) each, independent of each other: a norm of some units (2 sqrt(200 / 600) for a symmetric matrix of such entries)
        assert np.abs(gram).max() <= bound(kind, w_kind, n)
        assert np.linalg.norm(gram, 2) <= 2 * bound(kind, w_kind, n)
