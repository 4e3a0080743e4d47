"""Units that are measured beside each other, as on a device: in order, no more memory than allowed, nothing lost, nothing left running."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from weights.test_work import units

from spectral_fast.weights.ahead import ReadAhead, measured_units
from spectral_fast.weights.compute import Loaded, Measured


class Slow:
    """A calculator that notes who measures when."""

    at_once = 2

    def __init__(self, meet: threading.Barrier | None = None, fails_at: Any = None) -> None:
        self._meet, self._fails_at, self._lock = meet, fails_at, threading.Lock()
        self.together = self.most = 0

    def measure(self, loaded: Loaded) -> Measured:
        with self._lock:
            self.together += 1
            self.most = max(self.most, self.together)
        if self._meet is not None:
            self._meet.wait(20.0)
        time.sleep(0.002 * (loaded.plans[0].shape[0] % 3))  # later ones are done first
        with self._lock:
            self.together -= 1
        if loaded.plans is self._fails_at:
            raise RuntimeError("the device is gone")
        return Measured(backend=str(loaded.plans[0].shape))


def test_two_at_a_time_in_order() -> None:
    work, slow = units([1] * 12), Slow(threading.Barrier(2))
    with ReadAhead(work, Loaded, 100, slow.at_once) as ahead:
        done = list(measured_units(ahead, slow))  # type: ignore[arg-type]
    assert [unit for unit, _ in done] == work and [m.backend for _, m in done] == [str(u.plans[0].shape) for u in work]
    assert slow.most == 2


@pytest.mark.parametrize("limit", [1, 10, 15, 1000])
def test_no_more_memory_than_allowed(limit: int) -> None:
    work = units([10, 4, 3, 8, 1, 1, 1, 30, 2, 5])
    of = {u.plans: u.memory for u in work}
    lock, held, most = threading.Lock(), [0], []

    class Watched(ReadAhead):
        def let_go(self, unit: Any, loaded: Loaded) -> None:
            with lock:
                held[0] -= unit.memory
            super().let_go(unit, loaded)

    def read(plans: Any) -> Loaded:
        with lock:
            held[0] += of[plans]
            most.append((held[0], of[plans]))
        return Loaded(plans)

    with Watched(work, read, limit, 2) as ahead:
        assert [unit for unit, _ in measured_units(ahead, Slow())] == work  # type: ignore[arg-type]
    assert all(together <= max(limit, alone) for together, alone in most) and held == [0]


def test_a_failure_comes_out_and_nothing_is_left_running() -> None:
    before = threading.active_count()
    work = units([1] * 9)
    seen = []
    with pytest.raises(RuntimeError, match="the device is gone"), ReadAhead(work, Loaded, 100, 2) as ahead:
        for unit, _ in measured_units(ahead, Slow(fails_at=work[4].plans)):  # type: ignore[arg-type]
            seen.append(unit)
    assert seen == work[:4] and threading.active_count() == before


def test_leaving_early_ends_the_threads() -> None:
    before = threading.active_count()
    slow = Slow()
    with ReadAhead(units([5] * 50), Loaded, 17, 2) as ahead:
        for _ in measured_units(ahead, slow):  # type: ignore[arg-type]
            break
    assert threading.active_count() == before and slow.together == 0
