"""Work units on other processes or machines: any ``concurrent.futures`` executor; workers read the storage themselves and send back values only."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, NamedTuple

from ..results import Skipped
from .compute import Calculator, Measured, Options
from .sources import TensorList, tensors_of
from .structure import MatrixPlan, plan_matrices
from .work import WorkUnit

__all__ = ["check_executor", "measure_elsewhere", "measured_by"]

_OPEN_AT_ONCE = 4  # checkpoints a worker keeps open


_Seen = tuple[tuple[int, int], ...] | None  # size and time of each file


class _Opened(NamedTuple):
    seen: _Seen  # of all its files, so that others under their names are not taken for them
    tensors: TensorList
    plans: dict[str, MatrixPlan]


_opened: dict[tuple[str, tuple[str, ...] | None], _Opened] = {}
_lock = threading.Lock()


def check_executor(executor: Any) -> None:
    """Raises TypeError for what is no executor."""
    if isinstance(executor, type) or not callable(getattr(executor, "submit", None)):
        raise TypeError(
            f"executor: got {type(executor).__name__}; wanted a concurrent.futures.Executor, such as ProcessPoolExecutor() or Dask's Client.get_executor()"
        )


def measured_by(executor: Executor, path: str, units: Sequence[WorkUnit], options: Options) -> Iterator[tuple[WorkUnit, Measured]]:
    """Units as they are done, in any order. One that fails as a whole gives its tensors as lost, with the reason; a pool that broke loses the rest alike.

    path: of the checkpoint, the same for every worker.
    """
    from .. import __version__ as version

    path = os.path.abspath(path)
    waiting: dict[Future[Measured], WorkUnit] = {}
    broken = ""
    try:
        for unit in units:
            try:
                waiting[executor.submit(measure_elsewhere, path, tuple(p.name for p in unit.plans), options, version)] = unit
            except (BrokenExecutor, RuntimeError) as error:  # RuntimeError: it was shut down
                broken = broken or _words(error)
                yield unit, _lost(unit, f"the executor took no more work: {broken}")
        done: SimpleQueue[Future[Measured]] = SimpleQueue()
        for future in list(waiting):
            future.add_done_callback(done.put)
        while waiting:
            future = done.get()
            unit = waiting.pop(future)
            try:
                measured = future.result()
            except CancelledError:
                yield unit, _lost(unit, "its worker was cancelled")
            except Exception as error:  # whatever a worker, or the way to it, can raise
                yield unit, _lost(unit, f"its worker failed: {_words(error)}")
            else:
                mine = {p.name: p for p in unit.plans}
                for p in measured.done:
                    p.plan = mine[p.plan.name]
                yield unit, measured
    finally:
        for future in waiting:
            future.cancel()


def measure_elsewhere(path: str, names: tuple[str, ...], options: Options, version: str) -> Measured:
    """What a worker runs: the matrices of these names from the checkpoint at ``path``; the result can be pickled. version: of this package, which has
    to be the worker's too."""
    from .. import __version__

    if version != __version__:
        raise ValueError(f"the worker has spectral_fast {__version__}, the scan {version}")
    plans = _plans(path, options.layers)
    missing = [n for n in names if n not in plans]
    if missing:
        raise ValueError(f"{path}: this worker sees no matrix {missing[0]!r} there")
    calculator = Calculator(options)
    measured = calculator.measure(calculator.read(tuple(plans[n] for n in names)))
    for p in measured.done:
        p.plan = replace(p.plan, entry=replace(p.plan.entry, read=_gone, storage=p.plan.name), lora=None)
    return measured


def _plans(path: str, layers: tuple[str, ...] | None) -> dict[str, MatrixPlan]:
    from ..checkpoints import open_checkpoint

    key = (path, layers)
    with _lock:
        known = _opened.pop(key, None)
        if known is None or known.seen is None or known.seen != _seen(known.tensors.files):
            # The former is not closed here: another thread may be reading. A file is closed when the last of its tensors is let go of.
            tensors = tensors_of(open_checkpoint(path), path)
            known = _Opened(_seen(tensors.files), tensors, {p.name: p for p in plan_matrices(tensors.entries, layers, tensors.adapter)[0]})
        _opened[key] = known
        while len(_opened) > _OPEN_AT_ONCE:
            del _opened[next(iter(_opened))]
        return known.plans


def _seen(files: Sequence[str]) -> _Seen:
    """Sizes and times; None where one is gone."""
    try:
        return tuple((about.st_size, about.st_mtime_ns) for about in map(os.stat, files))
    except OSError:
        return None


def _gone() -> Any:
    raise ValueError("a worker sends no weights")


def _lost(unit: WorkUnit, why: str) -> Measured:
    entries = {id(p.entry): p.entry for p in unit.plans}.values()
    return Measured(lost=[Skipped(e.name, why, e.shape) for e in entries], failed=why)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
