"""The predicted memory of Krylov bases: against what is really allocated, and the order in which things are given up."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from spectral_fast.curvature.basis_plan import plan_basis, predicted_bytes
from spectral_fast.linalg.density import ProbeRun, run_probes
from spectral_fast.linalg.eigsh import extreme_pairs, result_of
from spectral_fast.linalg.restart import Ends

RESNET = 25_600_000


class Diagonal:
    def __init__(self, evals):
        self.evals, self.shape = evals, (len(evals), len(evals))

    def __matmul__(self, v):
        return self.evals * v


@pytest.mark.parametrize("noise", [0.0, 1e-5])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("k, k_bottom, rows, probes, steps", [(4, 2, 60, 1, 20), (10, 3, 64, 2, 32), (4, 2, 20, 2, 10)])
def test_allocations_stay_below_the_prediction(k, k_bottom, rows, probes, steps, dtype, noise):
    n = 30_000
    evals = np.r_[0.1 * np.sin(np.arange(n - 40.0)), np.linspace(-9, -5, 10), np.linspace(2, 30, 30)]
    op, rng = Diagonal(evals), np.random.default_rng(0)
    if noise:  # makes the polishing of the pairs necessary

        class Noisy(Diagonal):
            def __matmul__(self, v):
                return self.evals * v + noise * rng.standard_normal(n) / np.sqrt(n)

        op = Noisy(evals)
    run = ProbeRun(n=n, steps=steps)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        run_probes(op, run, probes=probes, capacity=rows, basis_dtype=dtype)
        start, run.basis = run.basis, None
        tol = 1e-6 if noise and dtype != "bfloat16" else 1e-4
        how = {"tol": tol, "max_matvecs": 300, "capacity": rows, "basis_dtype": dtype}
        found, outcome = extreme_pairs(op, Ends(top=k, bottom=k_bottom), start=start, **how)
        del start
        results = [result_of(found, outcome, slice(-k, None), k), result_of(found, outcome, slice(0, k_bottom), k_bottom)]
        del found
        found, outcome = extreme_pairs(op, Ends(top=k), **how)
        results.append(result_of(found, outcome, slice(None), k))
        del found
        used = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    need = predicted_bytes(n, k, k_bottom, rows, probes, dtype)
    assert used <= need + 2**20  # small arrays
    assert used >= 0.5 * need  # nor is it a worst case that never comes


def test_a_large_model_gives_up_in_the_written_order():
    plenty = plan_basis(RESNET, 10, 3, 4, 64, 10**12)
    assert (plenty.k, plenty.k_bottom, plenty.rows, plenty.steps, plenty.dtype, plenty.notes) == (10, 3, 256, 64, "float64", ())
    assert 256 * RESNET * 8 < plenty.bytes
    single = plan_basis(RESNET, 10, 3, 4, 64, 10**12, dtype="float32")
    assert single.dtype == "float32" and single.bytes < 0.51 * plenty.bytes and single.notes == ()
    # all rows in bfloat16 take more than the fewest in float32: bfloat16 comes with fewer rows from the start
    order = ["float64", "float32", "rows", "bfloat16 rows", "k", "none"]
    seen = []
    for gigabytes in np.arange(60.0, 0.0, -0.25):
        try:
            plan = plan_basis(RESNET, 10, 3, 4, 64, int(gigabytes * 1e9))
        except MemoryError as why:
            assert f"{gigabytes:.3g} GB allowed" in str(why) and "needs" in str(why)
            seen.append("none")
            continue
        assert plan.bytes <= gigabytes * 1e9
        assert plan.rows >= plan.k + plan.k_bottom + 6
        short = plan.rows < 256
        seen.append("k" if plan.k < 10 else plan.dtype if plan.dtype == "float64" or not short else f"{plan.dtype} rows".replace("float32 ", "").strip())
        for word, wanted in ((plan.dtype, plan.dtype != "float64"), ("rows instead", short and plan.k == 10), ("k = ", plan.k < 10)):
            assert any(word in note for note in plan.notes) or not wanted
    assert list(dict.fromkeys(seen)) == order


def test_memory_taken_anyway_counts():
    need = plan_basis(RESNET, 10, 3, 4, 64, 10**12).bytes
    assert plan_basis(RESNET, 10, 3, 4, 64, need).dtype == "float64" and plan_basis(RESNET, 10, 3, 4, 64, need, fixed=1).dtype == "float32"
    assert plan_basis(RESNET, 2, 5, 4, 64, 10**12).k_bottom == 5 and plan_basis(3, 3, 3, 4, 3, 10**6).k == 3
