from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.sparse.linalg
from problems import Counting, symmetric
from tolerances import tolerance

from spectral_fast.linalg.density import ProbeRun, run_probes
from spectral_fast.linalg.leave_two_out import LeaveTwoOut, RowGrams
from spectral_fast.linalg.trace import choose, student_interval, trace, trace_of

N = 120
EVALS = np.r_[np.linspace(-1, 1, N - 2), [8.0, 5.0]]
METHODS = ("hutchinson", "hutch++", "xtrace")
BLOCKS = {"a": slice(0, 7), "b": slice(7, 50), "c": slice(50, N)}


def test_a_diagonal_matrix_is_exact_from_one_probe():
    a = Counting(np.diag(EVALS))
    r = trace(a, max_matvecs=2)
    assert a.products == r.matvecs == 2 and r.method == "hutchinson"
    assert abs(r.estimate - EVALS.sum()) <= tolerance(np.float64, N) * 8
    assert 0 < r.stderr <= tolerance(np.float64, N) * 8  # the rounding of the sums, not nothing
    lo, hi = r.interval()
    assert lo <= EVALS.sum() <= hi


@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_a_budget_of_n_products_gives_the_exact_trace(method):
    a = symmetric(EVALS)
    op = Counting(a)
    op.blocks = BLOCKS
    r = trace(op, max_matvecs=N, method=method)
    assert r.method == "exact" and op.products == r.matvecs == N
    assert r.stderr == 0.0 and r.interval() == (r.estimate, r.estimate)
    assert abs(r.estimate - EVALS.sum()) <= tolerance(np.float64, N) * 8
    for name, s in BLOCKS.items():
        assert r.by_layer[name] == (pytest.approx(np.trace(a[s, s]), abs=1e-13), 0.0)
        assert r.layer_interval(name) == (r.by_layer[name][0],) * 2


@pytest.mark.parametrize("method", METHODS)
def test_blocks_add_up_and_do_not_change_the_whole(method):
    a = symmetric(EVALS)
    op = Counting(a)
    op.blocks = BLOCKS
    r = trace(op, max_matvecs=40, method=method)
    assert op.products == r.matvecs == 40 and r.method == method
    assert set(r.by_layer) == set(BLOCKS)
    assert sum(e for e, _ in r.by_layer.values()) == pytest.approx(r.estimate, abs=1e-9)
    for name, s in BLOCKS.items():
        estimate, stderr = r.by_layer[name]
        assert abs(estimate - np.trace(a[s, s])) < 5 * stderr
        lo, hi = r.layer_interval(name, 0.9)
        assert (lo + hi) / 2 == pytest.approx(estimate) and hi - lo < 5 * stderr
    # a block that covers a part only, and one that overlaps: the whole is what it was
    for blocks in ({"b": BLOCKS["b"]}, {"b": BLOCKS["b"], "most": slice(0, 100)}, {}):
        op.blocks = blocks
        again = trace(op, max_matvecs=40, method=method)
        assert again.estimate == pytest.approx(r.estimate, abs=1e-12) and again.stderr == pytest.approx(r.stderr, rel=1e-9)
        for name in blocks.keys() & {"b"}:
            assert again.by_layer[name] == pytest.approx(r.by_layer[name], rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_every_way_to_multiply_gives_the_same(method):
    """Vectors one by one (Counting), blocks of them (array, scipy's operator, sparse, takes_blocks)."""
    a = symmetric(EVALS)
    one = trace(Counting(a), max_matvecs=37, method=method, seed=3)
    declared = Counting(a)
    declared.takes_blocks = True
    for op in (a, scipy.sparse.linalg.aslinearoperator(a), scipy.sparse.csr_matrix(a), declared):
        r = trace(op, max_matvecs=37, method=method, seed=3)
        assert np.allclose(r.samples, one.samples, rtol=0, atol=1e-11) and r.stderr == pytest.approx(one.stderr, rel=1e-9)
    assert one.matvecs == (36 if method == "xtrace" else 37)
    assert declared.products < one.matvecs  # some of them were blocks


def test_the_density_run_gives_hutchinsons_trace():
    op = Counting(symmetric(EVALS))
    op.blocks = BLOCKS
    run = ProbeRun(n=N, steps=12)
    run_probes(op, run, probes=6, seed=4)
    shared = trace_of(run)
    alone = trace(op, max_matvecs=6, method="hutchinson", seed=4)
    assert np.allclose(shared.samples, alone.samples, rtol=0, atol=1e-11)
    assert shared.estimate == pytest.approx(alone.estimate, abs=1e-11) and shared.stderr == pytest.approx(alone.stderr, rel=1e-9)
    for name, (estimate, stderr) in alone.by_layer.items():
        assert shared.by_layer[name] == (pytest.approx(estimate, abs=1e-11), pytest.approx(stderr, rel=1e-9))


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
@pytest.mark.parametrize("rank", [0, 1, 12])
def test_low_rank_is_exact_to_rounding_and_says_so(method, rank):
    evals = np.r_[np.arange(1.0, rank + 1), np.zeros(N - rank)]
    r = trace(symmetric(evals), max_matvecs=40, method=method)
    size = np.linalg.norm(evals)
    assert abs(r.estimate - evals.sum()) <= tolerance(np.float64, N) * size
    assert r.stderr <= tolerance(np.float64, N) * size
    assert np.subtract(*r.interval()[::-1]) >= abs(r.estimate - evals.sum())


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_single_precision_products_widen_the_interval(method):
    """On a matrix of low rank nothing is random but the rounding of the products, which the asymmetry of QᵀAQ shows."""
    evals = np.r_[np.arange(1.0, 9.0), np.zeros(N - 8)]
    single = symmetric(evals).astype(np.float32)
    truth = float(np.trace(single.astype(np.float64)))
    hits = 0
    for seed in range(40):
        r = trace(Counting(single, lambda count, v, w: (single @ v.astype(np.float32)).astype(np.float64)), max_matvecs=40, method=method, seed=seed)
        assert r.stderr <= tolerance(np.float32, N) * 8
        lo, hi = r.interval()
        hits += lo <= truth <= hi
    assert hits >= 30


def test_xtrace_samples_are_those_with_the_probes_left_out():
    """The formulas in k dimensions against projectors of n dimensions, whole and block."""
    rng = np.random.default_rng(0)
    a, k = symmetric(EVALS), 6
    omega = rng.choice([-1.0, 1.0], (N, k))
    q, r = np.linalg.qr(a @ omega)
    z = a @ q
    left_out = LeaveTwoOut(r, q.T @ z, q.T @ omega)
    for rows in (slice(0, N), BLOCKS["b"]):
        total = RowGrams.zeros(k)
        for part in (slice(rows.start, rows.start + 9), slice(rows.start + 9, rows.stop)):
            total += left_out.grams(q[part], z[part], omega[part])
        got = left_out.samples(total)
        for i in range(k):
            for j in range(k):
                basis = np.linalg.qr(a @ np.delete(omega, [i, j], axis=1))[0]
                p = basis @ basis.T
                u = omega[:, i] - p @ omega[:, i]
                w = a @ u - p @ (a @ u)
                want = np.trace((p @ a + a @ p - p @ a @ p)[rows, rows]) + u[rows] @ w[rows]
                assert got[i, j] == pytest.approx(want, abs=1e-10)


@pytest.mark.parametrize("method, basis", [("hutchinson", 0.0), ("hutch++", 16 / 3), ("xtrace", 8.5)])
def test_memory_is_what_is_written(method, basis):
    n, budget = 60_000, 60
    d = np.linspace(0.0, 1.0, n)

    class Diagonal:
        shape = (n, n)
        blocks = {"a": slice(0, 20_000), "b": slice(20_000, n)}

        def __matmul__(self, v):
            return d * v

    trace(Diagonal(), max_matvecs=4, method=method)
    tracemalloc.start()
    trace(Diagonal(), max_matvecs=budget, method=method)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # beside the basis: some vectors, a block of rows and the words of a probe
    assert peak <= basis * n * budget + 8 * 16 * n + 8 * 2**14 * budget


def test_the_rule_of_auto():
    assert choose(100, 100) == "exact"
    assert choose(101, 100) == "xtrace"
    assert choose(10**4, 29) == "hutchinson"
    assert choose(2**30 // 850, 100) == "xtrace" and choose(2**30 // 850 + 1, 100) == "hutchinson"
    assert trace(symmetric(EVALS), max_matvecs=40).method == "xtrace"


def test_student_interval_against_the_table():
    lo, hi = student_interval(1.0, 2.0, 10, 0.95)
    assert hi - 1 == pytest.approx(2.262157 * 2, rel=1e-6) and 1 - lo == pytest.approx(hi - 1)
    assert student_interval(1.0, float("nan"), 1) == (-np.inf, np.inf)
    assert trace(np.eye(3), max_matvecs=1).interval() == (-np.inf, np.inf)


def test_bad_arguments():
    with pytest.raises(ValueError, match="method.*hutchinson"):
        trace(np.eye(3), method="magic")
    with pytest.raises(ValueError, match="max_matvecs"):
        trace(np.eye(3), max_matvecs=0)
    for method in ("hutch++", "xtrace"):
        with pytest.raises(ValueError, match="max_matvecs.*at least 4"):
            trace(np.eye(9), max_matvecs=3, method=method)
        assert np.isfinite(trace(symmetric(EVALS), max_matvecs=4, method=method).stderr)
        for op in (np.full((9, 9), np.nan), Counting(np.full((9, 9), np.nan))):
            with pytest.raises(ArithmeticError):
                trace(op, max_matvecs=8, method=method)
    with pytest.raises(ArithmeticError):
        trace(np.full((2, 2), np.nan))
    strided = Counting(np.eye(9))
    strided.blocks = {"odd": slice(1, 9, 2)}
    with pytest.raises(ValueError, match="op.*'odd'"):
        trace(strided)
    with pytest.raises(ValueError, match="level"):
        trace(np.eye(3)).interval(1.0)
    with pytest.raises(KeyError, match="known: none"):
        trace(np.eye(3)).layer_interval("a")


@pytest.mark.parametrize("method", METHODS)
def test_torch_in_torch_out(method):
    torch = pytest.importorskip("torch")
    a = symmetric(np.arange(1.0, 31.0))
    r, want = trace(torch.from_numpy(a), max_matvecs=8, method=method), trace(a, max_matvecs=8, method=method)
    assert isinstance(r.samples, torch.Tensor) and np.allclose(r.samples.numpy(), want.samples, rtol=1e-12, atol=1e-10)
    assert r.estimate == pytest.approx(want.estimate) and r.to_dict()["samples"] == r.samples.tolist()
    lo, hi = r.interval()
    assert lo < r.estimate < hi
