"""Reading ahead: a thread that reads the next units while the present one is computed, within a limit of memory."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from .compute import Calculator, Loaded, Measured
from .structure import MatrixPlan
from .work import WorkUnit

__all__ = ["ReadAhead", "measured_units"]


class ReadAhead:
    """Iterates over units that have been read, in order. Use as a context manager.

    What is in memory together needs at most ``limit`` bytes, by the units' own reckoning; a unit that needs more by itself is read when nothing else is
    there. at_once: units that are computed together; beside them one waits and one is read. waited: seconds the iterating thread had to wait.
    """

    def __init__(self, units: Sequence[WorkUnit], read: Callable[[tuple[MatrixPlan, ...]], Loaded], limit: int, at_once: int = 1) -> None:
        self._units, self._read, self._limit, self._depth = units, read, limit, at_once + 2
        self._changed = threading.Condition()
        self._ready: deque[Loaded] = deque()
        self._held: deque[int] = deque()  # of units that are being read, wait, or are computed
        self._error: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="spectral_fast read ahead", daemon=True)
        self.waited = 0.0

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def __iter__(self) -> Iterator[tuple[WorkUnit, Loaded]]:
        """A unit's memory counts as free when the next one is asked for."""
        for unit, loaded in self.kept():
            yield unit, loaded
            self.let_go(unit, loaded)

    def let_go(self, unit: WorkUnit, loaded: Loaded) -> None:
        """Its memory is free from now on; from any thread."""
        loaded.tensors.clear()
        with self._changed:
            self._held.remove(unit.memory)
            self._changed.notify_all()

    def kept(self) -> Iterator[tuple[WorkUnit, Loaded]]:
        """The same for units that stay until they are let go of."""
        for unit in self._units:
            start = time.perf_counter()
            with self._changed:
                while not self._ready and self._error is None:
                    self._changed.wait()
                if not self._ready and self._error is not None:
                    raise self._error
                loaded = self._ready.popleft()
            self.waited += time.perf_counter() - start
            yield unit, loaded

    def _run(self) -> None:
        try:
            for unit in self._units:
                with self._changed:
                    while not self._stopped and not self._room(unit.memory):
                        self._changed.wait()
                    if self._stopped:
                        return
                    self._held.append(unit.memory)
                loaded = self._read(unit.plans)
                with self._changed:
                    self._ready.append(loaded)
                    self._changed.notify_all()
                del loaded
        except BaseException as error:  # the other thread waits for it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _room(self, memory: int) -> bool:
        return not self._held or (len(self._held) < self._depth and sum(self._held) + memory <= self._limit)


def measured_units(ahead: ReadAhead, calculator: Calculator) -> Iterator[tuple[WorkUnit, Measured]]:
    """What comes of the units, in order: one after the other, or as many at once as the calculator says, each by a thread."""
    if calculator.at_once == 1:
        for unit, loaded in ahead:
            yield unit, calculator.measure(loaded)
        return

    def measured(unit: WorkUnit, loaded: Loaded) -> Measured:
        try:
            return calculator.measure(loaded)
        finally:
            ahead.let_go(unit, loaded)

    with ThreadPoolExecutor(calculator.at_once, thread_name_prefix="spectral_fast device") as threads:
        under_way: deque[tuple[WorkUnit, Future[Measured]]] = deque()
        try:
            for unit, loaded in ahead.kept():
                under_way.append((unit, threads.submit(measured, unit, loaded)))
                while under_way and (len(under_way) > calculator.at_once or under_way[0][1].done()):
                    yield under_way[0][0], under_way.popleft()[1].result()
            while under_way:
                yield under_way[0][0], under_way.popleft()[1].result()
        finally:
            threads.shutdown(cancel_futures=True)
