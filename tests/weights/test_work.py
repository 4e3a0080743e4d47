"""Work units and reading ahead: everything is done once, in order, within the memory; and what it will cost is said beforehand."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import spectral_fast as sf
from spectral_fast.memory import byte_size, parsed_size
from spectral_fast.weights.ahead import ReadAhead
from spectral_fast.weights.compute import Calculator, Loaded, Options
from spectral_fast.weights.sources import TensorEntry
from spectral_fast.weights.structure import MatrixPlan, plan_matrices
from spectral_fast.weights.work import Costs, WorkUnit, work_units

BACKEND = Calculator(Options()).values.backend
RNG = np.random.default_rng(5)


def planned(shapes: list[tuple[int, ...]], dtype: str = "float32") -> list[MatrixPlan]:
    entries = [TensorEntry(f"layers.{i}.weight", shape, dtype, i, lambda: None, nbytes=4 * int(np.prod(shape))) for i, shape in enumerate(shapes)]
    return plan_matrices(entries)[0]


def costs(top: int | None = None) -> Costs:
    calculator = Calculator(Options(top=top, top_above=1000 if top else 1 << 24))
    return Costs(calculator.values.backend, calculator.values.reads_bits, calculator.leading)


SHAPES = st.lists(
    st.tuples(st.sampled_from([3, 16, 40, 700]), st.sampled_from([2, 16, 64, 5000])) | st.tuples(st.just(5), st.just(40), st.just(90)), max_size=30
)


@settings(max_examples=150, deadline=None)
@given(shapes=SHAPES, limit=st.sampled_from([18 << 20, 40 << 20, 1 << 33]))
def test_every_matrix_is_in_one_unit_that_fits_or_is_listed(shapes: list[tuple[int, ...]], limit: int) -> None:
    plans = planned(shapes)
    work = work_units(plans, costs(), limit)
    names = [p.name for u in work.units for p in u.plans]
    lost = {s.name for s in work.too_large}
    assert sorted(names) == sorted(p.name for p in plans if p.entry.name not in lost)
    assert all(work.fixed + u.memory <= limit for u in work.units)
    firsts = [plans.index(u.plans[0]) for u in work.units]
    assert firsts == sorted(firsts)  # in the order of the file
    for u in work.units:
        assert len({tuple(p.entry.shape) for p in u.plans}) == 1
        parts = [p.entry.name for p in u.plans]
        assert parts == [n for k, n in enumerate(parts) if k == 0 or n == parts[k - 1] or n not in parts[:k]]  # a tensor's matrices side by side
    assert work_units(plans, costs(), max(work.memory, 1)).too_large == []
    if lost:
        assert work.memory > limit


def test_small_matrices_come_together_and_large_ones_alone() -> None:
    work = work_units(planned([(64, 64)] * 50 + [(2048, 2048)] * 3 + [(64, 64)] * 50), costs(), 1 << 34)
    assert [len(u.plans) for u in work.units] == [100, 1, 1, 1]
    assert work.flops == pytest.approx(100 * (7 / 3) * 64**3 + 3 * (7 / 3) * 2048**3)
    assert work.nbytes == 4 * (100 * 64**2 + 3 * 2048**2)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tensors: dict[str, Any] = {f"layers.{i}.weight": RNG.standard_normal((300, 40 + 8 * (i % 2))).astype(np.float32) for i in range(12)}
    tensors["embed.weight"] = RNG.standard_normal((60_000, 40)).astype(np.float32)
    tensors["norm.bias"] = np.zeros(40, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_what_the_plan_says_is_what_the_scan_does(file: Path) -> None:
    plan = sf.scan_plan(file)
    spectra = sf.scan(file)
    assert plan.status == "ok" and plan.matrices == len(spectra) == 13
    assert [s.name for s in plan.skipped] == [s.name for s in spectra.skipped] == ["norm.bias"]
    assert plan.parameters == sum(m.shape[0] * m.shape[1] for m in spectra) and plan.nbytes == 4 * plan.parameters
    least = [(max(m.shape) * min(m.shape) ** 2 + 4 / 3 * min(m.shape) ** 3) for m in spectra]
    assert plan.flops == pytest.approx(sum(least)) and plan.seconds > 0
    assert {c.shape: c.matrices for c in plan.shapes} == {(300, 40): 6, (300, 48): 6, (60_000, 40): 1}
    assert sf.scan_plan(file, layers="layers.1*").matrices == 3
    assert "GFLOP" in str(plan) and "300 x 48" in str(plan) and plan.to_dict()["matrices"] == 13


def test_the_least_memory_of_the_plan_is_enough_and_one_byte_less_is_not(file: Path) -> None:
    plan = sf.scan_plan(file)
    assert 60_000 * 40 * 4 < plan.memory < plan.limit
    whole, tight, short = sf.scan(file), sf.scan(file, max_memory=plan.memory), sf.scan(file, max_memory=plan.memory - 1)
    assert [m.name for m in tight] == [m.name for m in whole]
    assert all(np.array_equal(a.s, b.s) for a, b in zip(tight, whole, strict=True))
    assert [m.name for m in short] == [m.name for m in whole if m.name != "embed.weight"]
    (reason,) = [s.reason for s in short.skipped if s.name == "embed.weight"]
    assert reason.startswith("needs ") and "max_memory is" in reason
    assert [s.reason for s in sf.scan_plan(file, max_memory=plan.memory - 1).skipped if s.name == "embed.weight"] == [reason]


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), "8GB", True])
def test_max_memory_is_a_number_of_bytes(file: Path, bad: Any) -> None:
    for call in (sf.scan, sf.scan_plan):
        with pytest.raises(ValueError, match="max_memory"):
            call(file, max_memory=bad)


@pytest.mark.parametrize(("text", "number"), [("8GB", 8e9), (" 512 MB", 512e6), ("1.5GiB", 1.5 * 2**30), ("4096", 4096.0), ("2k", 2e3), ("1TB", 1e12)])
def test_sizes_in_words(text: str, number: float) -> None:
    assert parsed_size(text) == number
    assert byte_size(parsed_size("2.5 GB")) == "2.5 GB" and byte_size(999) == "999 bytes"


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "8 XB", "1..5GB", "8 iB x"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="wanted bytes"):
        parsed_size(text)


# ---- reading ahead ---------------------------------------------------------------------------------------------------------


def units(memory: list[int]) -> list[WorkUnit]:
    return [WorkUnit(tuple(planned([(k + 2, 2)])), 0, 0.0, m) for k, m in enumerate(memory)]


@pytest.mark.parametrize("limit", [1, 10, 15, 1000])
def test_units_come_in_order_and_never_more_than_the_limit_at_once(limit: int) -> None:
    sizes = [10, 4, 3, 8, 1, 1, 1, 30, 2, 5]
    work = units(sizes)
    held, most, reading = 0, [], {u.plans: u.memory for u in work}
    lock = threading.Lock()

    def read(plans: tuple[MatrixPlan, ...]) -> Loaded:
        nonlocal held
        with lock:
            held += reading[plans]
            most.append((held, reading[plans]))
        return Loaded(plans)

    seen = []
    with ReadAhead(work, read, limit) as ahead:
        for unit, loaded in ahead:
            assert loaded.plans == unit.plans
            seen.append(unit)
            time.sleep(0.002)
            with lock:
                held -= unit.memory
    assert seen == work
    assert all(together <= max(limit, alone) for together, alone in most)


def test_what_goes_wrong_while_reading_is_raised_where_it_is_waited_for() -> None:
    work = units([1, 1, 1])

    def read(plans: tuple[MatrixPlan, ...]) -> Loaded:
        if plans is work[1].plans:
            raise RuntimeError("torn")
        return Loaded(plans)

    seen = []
    with pytest.raises(RuntimeError, match="torn"), ReadAhead(work, read, 100) as ahead:
        for unit, _ in ahead:
            seen.append(unit)
    assert seen == work[:1]


def test_leaving_early_ends_the_thread() -> None:
    before = threading.active_count()
    with ReadAhead(units([5] * 50), Loaded, 7) as ahead:
        for _ in ahead:
            break
    assert threading.active_count() == before


def test_interrupted_scans_keep_what_is_done_and_leave_no_thread(file: Path) -> None:
    before = threading.active_count()

    def progress(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    spectra = sf.scan(file, progress=progress)
    assert spectra.status == "incomplete" and 0 < len(spectra) < 13
    left = [s for s in spectra.skipped if s.reason == "interrupted before it was done"]
    assert len(left) == 13 - len(spectra)
    assert threading.active_count() == before
