"""The compiled randomized_svd against its definition in numpy: the same subspaces, orthonormal factors, and bits that depend on the matrix alone."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pretend_device import on_device

from spectral_fast.kernels import native_kernels, numpy_kernels, torch_kernels
from spectral_fast.kernels.numpy_kernels import LowRank
from spectral_fast.kernels.numpy_lowrank import Plan, Sketch, plan

pytestmark = pytest.mark.native_only

LEVELS = native_kernels.levels()
WAYS = ["torch", *LEVELS]
SPECTRA = {
    "decaying": 1.0 / np.arange(1, 121) ** 1.5,
    "flat": np.linspace(1.1, 1.0, 120),
    "gapped": np.r_[np.linspace(2.0, 1.0, 10), np.full(110, 1e-2)],
    "condition 1e12": np.geomspace(1.0, 1e-12, 120),
    "rank 5": np.r_[np.linspace(2.0, 1.0, 5), np.zeros(115)],
    "one value": np.r_[np.ones(120)],
}
PLANS: dict[str, dict[str, Any]] = {
    "subspace": {"method": "subspace"},
    "krylov": {"method": "krylov"},
    "no iteration": {"method": "subspace", "n_iter": 0},
    "sketch": {"method": "sketch"},
    "tol": {"tol": 1e-3},
    "tol, subspace": {"tol": 1e-3, "method": "subspace"},
}


def by(way: str, a: np.ndarray, **options: Any) -> LowRank:
    if way == "torch":
        found: LowRank = on_device(torch_kernels.randomized_svd)(a, **options)
        return found
    return native_kernels.randomized_svd(a, level=way, **options)


def prescribed(seed: int, m: int, n: int, s: np.ndarray, dtype: Any = np.float64) -> np.ndarray:
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((k, len(s))))[0] for k in (m, n))
    return np.ascontiguousarray(((u * s) @ v.T)[None].astype(dtype))


def left(a: np.ndarray, r: LowRank, i: int = 0) -> float:
    u, s, vt = (x[i].astype(np.float64) for x in (r.u, r.s, r.vt))
    return float(np.linalg.norm(a[i].astype(np.float64) - (u * s) @ vt))


def same(a: LowRank, b: LowRank) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", ["subspace", "krylov"])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", [(300, 120), (120, 300)])
def test_as_close_as_numpy_with_the_same_test_matrix(shape: tuple[int, int], name: str, method: str, dtype: type, way: str) -> None:
    a = prescribed(1, *shape, SPECTRA[name], dtype)
    omega = np.random.default_rng(2).standard_normal((shape[1], 20))
    options = {"rank": 10, "method": method, "omega": omega}
    ours, theirs = by(way, a, **options), numpy_kernels.randomized_svd(a, **options)
    size, eps = np.linalg.norm(SPECTRA[name]), np.finfo(dtype).eps
    assert left(a, ours) <= 1.05 * left(a, theirs) + 4 * eps * size
    limit = 1e-6 if dtype == np.float32 else 1e-13
    for x in (ours.u[0].astype(np.float64).T, ours.vt[0].astype(np.float64)):
        assert np.abs(x @ x.T - np.eye(10)).max() <= limit
    assert (ours.u[0][np.abs(ours.u[0]).argmax(axis=0), np.arange(10)] > 0).all()
    assert (np.diff(ours.s[0]) <= 0).all()
    assert left(a, ours) * (1 - 1e-9) <= ours.error[0] <= 1.01 * left(a, ours) + 1.1e-3 * size * (dtype == np.float32) + 1e-7 * size
    if name == "gapped":  # every value is determined by the test matrix, to rounding
        assert np.abs(ours.s - theirs.s).max() <= 20 * eps * size


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("plan", PLANS)
def test_the_same_triplets_as_numpy(plan: str, way: str) -> None:
    """Values far enough apart that every vector is determined to a few digits less than the precision."""
    s = 2.0 ** -np.arange(40.0)
    a = np.concatenate([prescribed(seed, 90, 70, s) for seed in range(3)])
    options = {"rank": 12, "seed": 5, **PLANS[plan]}
    ours, theirs = by(way, a, **options), numpy_kernels.randomized_svd(a, **options)
    assert np.array_equal(ours.ranks, theirs.ranks) and np.array_equal(ours.reached, theirs.reached)
    assert np.abs(ours.s - theirs.s).max() <= 1e-13
    assert np.abs(ours.u * ours.s[:, None] - theirs.u * theirs.s[:, None]).max() <= 1e-11
    assert np.abs(ours.vt * ours.s[:, :, None] - theirs.vt * theirs.s[:, :, None]).max() <= 1e-11
    assert np.abs(ours.error - theirs.error).max() <= 1e-6


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_do_not_depend_on_threads_or_the_batch(dtype: type, plan: str, level: str) -> None:
    a = np.random.default_rng(3).standard_normal((5, 150, 130)).astype(dtype) / np.arange(1, 131, dtype=dtype)
    options = {"rank": 9, "level": level, **PLANS[plan]}
    want = native_kernels.randomized_svd(a, threads=1, **options)
    for threads in (2, 3):
        assert same(native_kernels.randomized_svd(a, threads=threads, **options), want)
    for i in range(5):
        assert same(native_kernels.randomized_svd(a[i : i + 1], threads=2, **options), LowRank(*(x[i : i + 1] for x in want)))


@pytest.mark.parametrize("method", ["auto", "sketch"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("turned", [False, True])
def test_bits_of_a_matrix_shared_by_threads(turned: bool, dtype: type, method: str) -> None:
    a = np.random.default_rng(4).standard_normal((3, 1300, 700)).astype(dtype)
    if turned:
        a = np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2)
    want = native_kernels.randomized_svd(a, rank=20, threads=1, method=method)
    for threads in (2, 3):
        for i in (0, 2):
            alone = native_kernels.randomized_svd(a[i : i + 1], rank=20, threads=threads, method=method)
            assert same(alone, LowRank(*(x[i : i + 1] for x in want)))
        assert same(native_kernels.randomized_svd(a, rank=20, threads=threads, method=method), want)
    if method == "sketch":
        wide = native_kernels.randomized_svd(a.swapaxes(1, 2), rank=20, threads=3, method=method)
        assert np.abs(wide.s - want.s).max() <= 1e-5 * want.s.max()


@pytest.mark.parametrize("level", LEVELS)
def test_formats_and_strides(level: str) -> None:
    """Read in place or converted, in rows or in columns: the same sums, hence the same bits for the same order of memory."""
    rng = np.random.default_rng(5)
    narrow = rng.standard_normal((2, 90, 301)).astype(ml_dtypes.bfloat16)
    wide = narrow.astype(np.float32)
    options = {"rank": 7, "level": level}
    want = native_kernels.randomized_svd(wide, **options)
    assert same(native_kernels.randomized_svd(narrow.view(np.uint16), bits="bfloat16", **options), want)
    half = wide.astype(np.float16)
    assert same(native_kernels.randomized_svd(half, **options), native_kernels.randomized_svd(half.astype(np.float32), **options))
    padded = np.zeros((2, 95, 640), np.float32)
    padded[:, 2:92, 10:612:2] = wide
    assert same(native_kernels.randomized_svd(padded[:, 2:92, 10:612:2], **options), want)
    turned = np.ascontiguousarray(wide.swapaxes(1, 2)).swapaxes(1, 2)
    there = native_kernels.randomized_svd(turned, **options)
    assert np.abs(there.s - want.s).max() <= 1e-5 * want.s.max()
    backwards = np.ascontiguousarray(wide[:, ::-1, ::-1])[:, ::-1, ::-1]
    assert np.abs(native_kernels.randomized_svd(backwards, **options).s - want.s).max() <= 1e-5 * want.s.max()
    foreign = wide.astype(">f4")
    assert same(native_kernels.randomized_svd(foreign, **options), want)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 10),
    st.integers(0, 3),
    st.sampled_from(["subspace", "krylov", "sketch", "auto", "tol"]),
    st.sampled_from(["normal", "small rank", "zeros and ones", "one column", "constant"]),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 2**32 - 1),
)
def test_any_shape(m: int, n: int, rank: int, oversample: int, n_iter: int, method: str, kind: str, dtype: type, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = {
        "normal": lambda: rng.standard_normal((m, n)),
        "small rank": lambda: rng.standard_normal((m, 2)) @ rng.standard_normal((2, n)),
        "zeros and ones": lambda: (rng.random((m, n)) < 0.2).astype(float),
        "one column": lambda: np.r_[np.ones((m, 1)).T, np.zeros((n - 1, m))].T,
        "constant": lambda: np.full((m, n), 0.1),
    }[kind]()[None].astype(dtype)
    rank = min(rank, m, n)
    how: dict[str, Any] = {"tol": 1e-4} if method == "tol" else {"method": method}
    r = native_kernels.randomized_svd(a, rank=rank, oversample=oversample, n_iter=n_iter, seed=seed, **how)
    k, size = int(r.ranks[0]), float(np.linalg.norm(a.astype(np.float64)))
    limit = 1e-6 if dtype == np.float32 else 1e-13
    assert np.abs(r.u[0, :, :k].astype(np.float64).T @ r.u[0, :, :k] - np.eye(k)).max(initial=0) <= limit
    assert np.abs(r.vt[0, :k].astype(np.float64) @ r.vt[0, :k].T - np.eye(k)).max(initial=0) <= limit
    assert left(a, r) <= r.error[0] * (1 + 1e-9)
    s = np.linalg.svd(a[0].astype(np.float64), compute_uv=False)
    eps = float(np.finfo(dtype).eps)
    assert (r.s[0, :k] <= s[:k] * (1 + 20 * eps) + 20 * eps * size).all()  # a projection has no larger values
    if rank == min(m, n):
        assert left(a, r) <= (1e-4 if method == "tol" else 50 * eps) * size * (1 + 1e-3)
    if method == "tol" and r.reached[0]:
        assert left(a, r) <= 1e-4 * size * (1 + 1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("method", "turned"), [("auto", False), ("sketch", False), ("sketch", True)])
def test_extreme_scales_and_bad_matrices(dtype: type, method: str, turned: bool) -> None:
    good = np.random.default_rng(6).standard_normal((20, 15)).astype(dtype)
    tiny, huge = (1e-37, 1e37) if dtype == np.float32 else (1e-305, 1e305)
    bad, infinite = good.copy(), good.copy()
    bad[3, 4], infinite[19, 14] = np.nan, -np.inf
    a = np.stack([good, good * dtype(tiny), bad, good * dtype(huge), infinite, good * 0, good])
    r = native_kernels.randomized_svd(a.swapaxes(1, 2) if turned else a, rank=4, method=method)
    eps = float(np.finfo(dtype).eps)
    for i, scale in ((1, tiny), (3, huge)):
        assert np.abs(r.s[i] / dtype(scale) - r.s[0]).max() <= 40 * eps * r.s[0, 0]
        assert np.abs(r.u[i] - r.u[0]).max() <= 1e4 * eps
        assert abs(r.error[i] / scale - r.error[0]) <= 1e-5 * r.error[0]
    for i in (2, 4):
        assert np.isnan(r.u[i]).all() and np.isnan(r.s[i]).all() and np.isnan(r.vt[i]).all() and np.isnan(r.error[i])
    assert (r.s[5] == 0).all() and r.error[5] == 0 and np.array_equal(r.u[5].T @ r.u[5], np.eye(4))
    assert np.array_equal(r.u[6], r.u[0])
    assert list(r.ranks) == [4, 4, 0, 4, 0, 4, 4]


def test_a_rank_that_is_not_reached_and_one_that_is_just_enough() -> None:
    a = np.concatenate([prescribed(seed, 60, 50, SPECTRA[name][:50]) for seed, name in enumerate(("decaying", "flat", "rank 5"))])
    ours, theirs = (module.randomized_svd(a, rank=10, tol=1e-4) for module in (native_kernels, numpy_kernels))
    for r in (ours, theirs):
        assert list(r.ranks) == [10, 10, 5]
        assert list(r.reached) == [False, False, True]
        assert (r.u[2, :, 5:] == 0).all() and (r.s[2, 5:] == 0).all() and (r.vt[2, 5:] == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "sse9"}, "sse9"),
        ({"threads": -1}, "^threads: wanted"),
        ({"tol": 1.0}, "^tol: wanted"),
        ({"omega": np.ones((3, 2))}, "^omega: wanted"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native_kernels.randomized_svd(np.ones((1, 9, 6)), rank=2, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_close_together(dtype: type) -> None:
    """Near-equal values turn by large angles until late: what is left has to be rounding all the same."""
    eps = float(np.finfo(dtype).eps)
    for spread in (0.0, 1e-8, 1e-6, 1e-4, 1e-3, 1e-2):
        a = np.concatenate([prescribed(seed, 11, 3, 1 + spread * np.random.default_rng(seed).standard_normal(3), dtype) for seed in range(40)])
        r = native_kernels.randomized_svd(a, rank=3)
        assert max(left(a, r, i) for i in range(40)) <= 8 * eps


@pytest.mark.parametrize("method", ["subspace", "krylov"])
@pytest.mark.parametrize("tol", [1e-3, 1e-4, 1e-5, 1e-6])
def test_tol_is_met_in_single_precision(tol: float, method: str) -> None:
    """Where the difference of the norms tells nothing, and where all columns are needed."""
    cases = [prescribed(7, 500, 150, 1.0 / np.arange(1, 151) ** 2, np.float32), prescribed(8, 90, 70, 2.0 ** -np.arange(70), np.float32)]
    cases.append(np.random.default_rng(9).standard_normal((1, 60, 40)).astype(np.float32))
    for a in cases:
        size = float(np.linalg.norm(a.astype(np.float64)))
        ours, theirs = (module.randomized_svd(a, rank=min(a.shape[1:]), tol=tol, method=method) for module in (native_kernels, numpy_kernels))
        for r in (ours, theirs):
            assert r.reached[0]
            assert left(a, r) <= tol * size * (1 + 1e-3)
        s = np.linalg.svd(a[0].astype(np.float64), compute_uv=False)
        best = int(np.argmax(np.sqrt(np.r_[np.cumsum(s[::-1] ** 2)[::-1], 0.0]) <= tol * size))
        assert ours.ranks[0] <= 1.2 * best + 1


def test_columns_beyond_the_rank() -> None:
    """Every column beyond the rank is replaced; the factors stay orthonormal."""
    rng = np.random.default_rng(10)
    a = (rng.standard_normal((3000, 2)) @ rng.standard_normal((2, 80))).astype(np.float32)[None]
    for method in ("subspace", "krylov", "sketch"):
        r = native_kernels.randomized_svd(a, rank=30, method=method)
        assert np.abs(r.u[0].astype(np.float64).T @ r.u[0] - np.eye(30)).max() <= 1e-6
        assert (r.s[0, 2:] <= 1e-5 * r.s[0, 0]).all()
        assert left(a, r) <= 3e-6 * np.linalg.norm(a)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(1500, 100), (100, 1500)])
def test_sketch_of_any_format_and_order(shape: tuple[int, int], dtype: Any, level: str) -> None:
    """The longer side is sketched, whichever it is and however the matrix lies in memory."""
    a = prescribed(11, *shape, 1.0 / np.arange(1, 101)).astype(dtype)
    options: dict[str, Any] = {"rank": 10, "oversample": 6, "method": "sketch", "level": level}
    if dtype == ml_dtypes.bfloat16:
        options["bits"] = "bfloat16"
    stored = a.view(np.uint16) if "bits" in options else a
    wide = a.astype(np.float64)
    want = numpy_kernels.randomized_svd(wide, **{k: v for k, v in options.items() if k not in ("bits", "level")})
    best = float(np.linalg.norm(np.linalg.svd(wide[0], compute_uv=False)[10:]))
    turned = np.ascontiguousarray(stored.swapaxes(1, 2)).swapaxes(1, 2)
    padded = np.zeros((1, shape[0], 2 * shape[1] + 3), stored.dtype)[..., 1 : 2 * shape[1] + 1 : 2]
    padded[:] = stored
    for x in (stored, turned, padded):
        r = native_kernels.randomized_svd(x, **options)
        assert left(wide, r) <= 1.03 * best
        assert np.abs(r.s - want.s).max() <= (1e-12 if dtype == np.float64 else 1e-6) * want.s[0, 0]
        for threads in (1, 3):
            assert same(native_kernels.randomized_svd(x, threads=threads, **options), r)


@pytest.mark.parametrize("kernels", [native_kernels, numpy_kernels])
def test_sketch_keeps_every_large_row(kernels: Any) -> None:
    """Rows that are added up in one place, and nowhere else, would be lost: with one place per row four seeds in five show it."""
    rng = np.random.default_rng(12)
    a = 1e-3 * rng.standard_normal((1, 2000, 60))
    a[0, rng.permutation(2000)[:20]] += rng.standard_normal((20, 60))
    best = float(np.linalg.norm(np.linalg.svd(a[0], compute_uv=False)[20:]))
    for seed in range(30):
        assert left(a, kernels.randomized_svd(a, rank=20, oversample=0, method="sketch", seed=seed)) <= 1.1 * best


def test_plans() -> None:
    def choice(m: int, n: int, rank: int, n_iter: int, method: str = "auto", **how: Any) -> Plan:
        return plan(m, n, rank, oversample=8, n_iter=n_iter, method=method, tol=how.get("tol"), omega=how.get("omega"))

    assert choice(128, 128, 8, 2) == Plan(16, 1, False)
    assert choice(16384, 3584, 64, 2) == Plan(24, 5, True)
    assert choice(16384, 3584, 64, 0) == Plan(72, 1, False)
    sketched = Plan(72, 1, True, Sketch(448, 24, 6))
    assert choice(16384, 3584, 64, 1) == choice(3584, 16384, 64, 1) == choice(16384, 3584, 64, 2, "sketch") == sketched
    assert not choice(2048, 2048, 64, 1).sketch.rows
    assert choice(90, 10, 8, 2, "sketch") == Plan(10, 1, False)  # nothing is left to chance
    assert not choice(16384, 3584, 64, 1, omega=np.ones((3584, 72))).sketch.rows
    assert not choice(16384, 3584, 64, 1, tol=0.1).sketch.rows
