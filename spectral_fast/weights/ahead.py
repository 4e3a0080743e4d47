"""Reading ahead: a thread that reads the next units while the present one is computed, within a limit of memory."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from .compute import Loaded
from .structure import MatrixPlan
from .work import WorkUnit

__all__ = ["ReadAhead"]


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
