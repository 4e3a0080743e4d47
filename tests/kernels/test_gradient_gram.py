"""gradient_gram on every backend and level: against materialized gradients, within the promised error, and by what has to hold whatever comes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pretend_device import on_device
from tolerances import tolerance

from spectral_fast.kernels import native_kernels, numpy_kernels, torch_kernels
from spectral_fast.kernels.numpy_gradient_gram import CHAIN

LEVELS = native_kernels.levels()
WAYS = ["numpy", "torch", *LEVELS]
ALGORITHMS = ["positions", "gradients"]
KINDS = ["float32", "float64"]


def way_of(name: str, threads: int = 2) -> Any:
    if name == "torch":
        return on_device(torch_kernels.gradient_gram)
    return numpy_kernels.gradient_gram if name == "numpy" else partial(native_kernels.gradient_gram, level=name, threads=threads)


def layer(n: int, t: int, p: int, q: int, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, t, p)).astype(kind), rng.standard_normal((n, t, q)).astype(kind)


def exact(a: np.ndarray, b: np.ndarray, a2: np.ndarray, b2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(Gram matrix, what its error is measured by: every product by its size)."""

    def own(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.asarray(np.einsum("ntp,ntq->npq", x, y).reshape(len(x), x.shape[2] * y.shape[2]))

    wide = [x.astype(np.float64) for x in (a, b, a2, b2)]
    size = [np.abs(x) for x in wide]
    return own(*wide[:2]) @ own(*wide[2:]).T, own(*size[:2]) @ own(*size[2:]).T


def bound(kind: str, a: np.ndarray, b: np.ndarray) -> float:
    """Two rounded products (or gradients) of CHAIN terms each, whatever their order, and float64 sums of all."""
    t, p, q = *a.shape[1:], b.shape[2]
    unit = 2.0**-24 if kind == "float32" else 0.0
    return 2 * (CHAIN + 2 + t / CHAIN) * unit + CHAIN * unit + 4 * tolerance(np.float64, t * t + p + q + p * q)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 60),
    m=st.integers(0, 30),
    t=st.integers(1, 9) | st.integers(1, 150),
    p=st.integers(0, 40),
    q=st.integers(1, 60),
    kind=st.sampled_from(KINDS),
    algorithm=st.sampled_from(ALGORITHMS),
    seed=st.integers(0, 99),
)
def test_against_materialized_gradients(n: int, m: int, t: int, p: int, q: int, kind: str, algorithm: str, seed: int) -> None:
    t = min(t, 400 // max(n, 1) + 1)
    a, b = layer(n, t, p, q, kind, seed)
    a2, b2 = layer(m, max(1, t - 1), p, q, kind, seed + 1)
    before = np.random.default_rng(seed).standard_normal((n, n))
    before += before.T
    want, size = exact(a, b, a, b)
    other, other_size = exact(a, b, a2, b2)
    for way in WAYS:
        gram, cross = before.copy(), np.zeros((n, m))
        way_of(way)(gram, a, b, algorithm=algorithm)
        assert np.array_equal(gram, gram.T)
        assert (np.abs(gram - before - want) <= bound(kind, a, b) * size + 1e-15 * np.abs(before)).all(), way
        way_of(way)(cross, a, b, a2, b2, algorithm=algorithm)
        assert (np.abs(cross - other) <= bound(kind, a, b) * other_size).all(), way


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_larger_than_a_block_or_a_tile(way: str, kind: str) -> None:
    for n, t, p, q, algorithm in (
        (230, 1, 300, 70, "positions"),
        (40, 33, 90, 20, "positions"),
        (130, 5, 200, 130, "gradients"),
        (3, 300, 7, 150, "gradients"),
    ):
        a, b = layer(n, t, p, q, kind, 1)
        a2, b2 = layer(n // 2, t, p, q, kind, 2)
        want, size = exact(a, b, a, b)
        gram, cross = np.zeros((n, n)), np.zeros((n, n // 2))
        way_of(way)(gram, a, b, algorithm=algorithm)
        assert (np.abs(gram - want) <= bound(kind, a, b) * size).all()
        way_of(way)(cross, a, b, a2, b2, algorithm=algorithm)
        want, size = exact(a, b, a2, b2)
        assert (np.abs(cross - want) <= bound(kind, a, b) * size).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_rows(way: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    for n, p in ((1, 1), (30, 2500), (7, 0), (100, 129)):
        a, a2 = rng.standard_normal((n, p)).astype(kind), rng.standard_normal((5, p)).astype(kind)
        unit = CHAIN * 2.0**-24 if kind == "float32" else 4 * tolerance(np.float64, p)
        for other in (a, a2):
            gram = np.zeros((n, len(other)))
            way_of(way)(gram, a, None, *(() if other is a else (other,)), algorithm="positions")
            x, y = a.astype(np.float64), other.astype(np.float64)
            assert (np.abs(gram - x @ y.T) <= 1.01 * unit * (np.abs(x) @ np.abs(y).T)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_rows_times(way: str, kind: str) -> None:
    """The products of a layer with one position: those of its inputs times those of the gradients of its outputs."""
    rng = np.random.default_rng(1)
    for n, m in ((1, 1), (30, 5), (100, 100), (131, 49)):
        a, a2 = rng.standard_normal((n, 1100)).astype(kind), rng.standard_normal((m, 1100)).astype(kind)
        for other in (a, a2):
            gram, times = np.ones((n, len(other))), rng.standard_normal((n, len(other)))
            if other is a:
                times += times.T
            plain = np.zeros_like(gram)
            way_of(way)(plain, a, None, *(() if other is a else (other,)), algorithm="positions")
            way_of(way)(gram, a, None, *(() if other is a else (other,)), algorithm="positions", times=times)
            assert np.abs(gram - 1.0 - plain * times).max() <= 1e-14 * (1.0 + np.abs(plain * times).max())


@pytest.mark.parametrize("way", WAYS)
def test_times_names_the_argument(way: str) -> None:
    a, gram = np.ones((4, 3)), np.zeros((4, 4))
    with pytest.raises(ValueError, match="times: wanted the shape of gram"):
        way_of(way)(gram, a, algorithm="positions", times=np.ones((4, 3)))
    with pytest.raises(ValueError, match="times: wanted only where b is not given"):
        way_of(way)(gram, a, a, algorithm="positions", times=np.ones((4, 4)))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("way", WAYS)
def test_strides(way: str, algorithm: str) -> None:
    """One layer's positions among others', every second sample."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((12, 5, 40)), rng.standard_normal((12, 5, 30))
    for x, y in ((a[::2, 1:4, 3:20], b[::2, 1:4, :9]), (a[::-1, :, :5], b[::-1]), (a[:, 0], b[:, 2, 4:])):
        whole, parts = np.zeros((len(x), len(x))), np.zeros((len(x), len(x)))
        way_of(way)(whole, x.copy(), y.copy(), algorithm=algorithm)
        way_of(way)(parts, x, y, algorithm=algorithm)
        assert np.array_equal(whole, parts)


@pytest.mark.native_only
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_number_of_threads_changes_nothing(algorithm: str, kind: str, level: str) -> None:
    a, b = layer(150, 3, 60, 50, kind, 4)
    grams = []
    for threads in (1, 2, 5):
        grams.append(np.zeros((150, 150)))
        way_of(level, threads)(grams[-1], a, b, algorithm=algorithm)
    assert np.array_equal(grams[0], grams[1]) and np.array_equal(grams[0], grams[2])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("way", WAYS)
def test_nan_stays_with_its_sample(way: str, algorithm: str) -> None:
    a, b = layer(40, 2, 6, 5, "float32", 0)
    a[7, 1, 3], b[30, 0, 0] = np.nan, np.inf
    gram = np.zeros((40, 40))
    way_of(way)(gram, a, b, algorithm=algorithm)
    bad = ~np.isfinite(gram)
    want = np.zeros((40, 40), dtype=bool)
    want[[7, 30]] = want[:, [7, 30]] = True
    assert np.array_equal(bad, want)


@pytest.mark.parametrize("way", WAYS)
def test_wrong_arguments_are_named(way: str) -> None:
    a, b = layer(4, 2, 3, 5, "float32", 0)
    gram, gradient_gram = np.zeros((4, 4)), way_of(way)
    for arguments, more, match in (
        ((gram, a, b), {"algorithm": "fast"}, "algorithm: unknown fast; known: positions, gradients"),
        ((gram, a.astype(np.float16), b), {}, "a: wanted"),
        ((gram, a, b.astype(np.float64)), {}, "b: wanted the dtype"),
        ((gram, a, b[:3]), {}, "b: wanted the"),
        ((gram, a), {}, "a: wanted rows"),
        ((gram, a, b, a), {}, "b2: wanted with b and a2"),
        ((gram, a[:, 0], None, a[:, 0], b), {}, "b2: wanted with b and a2"),
        ((gram, a, b, a[:, :, :2], b), {}, "a2: wanted the dtype and the width of a"),
        ((gram, a, b, a, b[:, :, :2]), {}, "b2: wanted the (dtype and the )?width of b"),
        ((gram[:3], a, b), {}, "gram: wanted"),
        ((gram.astype(np.float32), a, b), {}, "gram: wanted"),
        ((gram, a[0, 0], b), {}, "a: wanted"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            gradient_gram(*arguments, **{"algorithm": "positions", **more})
    assert not gram.any()
