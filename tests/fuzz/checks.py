"""What must be true of every file, however strange: a checkpoint whose tensors all read or CheckpointError, within 2 s and 512 MB."""

from __future__ import annotations

import os
import random
import resource
import signal
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from fuzz.corpus import Target, target
from fuzz.mutations import mutate_bytes, mutate_fields

from spectral_fast.checkpoints import CheckpointError, open_checkpoint

__all__ = ["MEMORY", "check_checkpoint", "check_input", "mutated", "peak_growth", "run_all", "timed", "traced"]

MEMORY = 512 * 2**20  # bytes, for one file
SECONDS = 2.0  # of this process's own time, so that a busy machine does not count


class Hang(BaseException):
    """No Exception, so that nothing on the way takes it for an error of the file."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise Hang("took too long")


@contextmanager
def timed(seconds: float = SECONDS) -> Iterator[None]:
    """Fails where the body takes longer."""
    before = signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def traced() -> Iterator[None]:
    """Fails where the body holds more than MEMORY at a time. What makes many objects takes five times as long meanwhile.

    Tracing that is on already stays on: it keeps some 10 kB for every time it is begun.
    """
    on = tracemalloc.is_tracing()
    if not on:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1] - before
        if not on:
            tracemalloc.stop()
    assert peak < MEMORY, f"{peak} bytes"


def check_checkpoint(path: Path, limit: int) -> bool:
    """True for a checkpoint that opens. limit: bytes that no tensor may exceed.

    Raises AssertionError or what the reader raised, other than CheckpointError.
    """
    try:
        with open_checkpoint(path) as checkpoint:
            assert len({t.name for t in checkpoint.tensors}) == len(checkpoint.tensors)
            for skipped in checkpoint.skipped:
                (skipped.name + skipped.reason).encode("utf-8")
            str(checkpoint).encode("utf-8")
            for info in checkpoint.tensors:
                assert 0 <= info.nbytes <= limit
                str(info), hash(info.storage), info.name.encode("utf-8")
                assert checkpoint.read(info.name).shape == info.shape
        return True
    except CheckpointError as error:
        text = str(error)
        assert str(path if path.is_dir() else path.parent) in text and len(text.encode("utf-8")) < 5000
        return False


def mutated(name: str, number: int) -> bytes:
    """Input ``number`` of a target: the same bytes for the same number, always."""
    which = target(name)
    rng = random.Random(f"{name} {number}")
    seed = rng.choice(which.seeds)
    if rng.random() < 0.3:
        return mutate_bytes(rng, seed)
    raw = mutate_fields(rng, which.fields(seed), which.values)
    return mutate_bytes(rng, raw) if rng.random() < 0.1 else raw


def check_input(which: Target, content: bytes, folder: Path) -> bool:
    """Write the file and check it."""
    path = which.write(folder, content)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    with timed(), traced(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pickletools and ast on mutated escapes
        return check_checkpoint(path, which.magnified * size)


def run_all(one: Callable[[int], bool], numbers: range) -> int:
    """``one`` of every number; how many files were valid. A failure names its number."""
    valid = 0
    tracemalloc.start()
    try:
        for number in numbers:
            try:
                valid += one(number)
            except (Exception, Hang) as error:
                raise AssertionError(f"input {number}: {type(error).__name__}: {error}") from error
    finally:
        tracemalloc.stop()
    return valid


@contextmanager
def peak_growth() -> Iterator[None]:
    """Fails where the process's resident memory rises by MEMORY or more above what it was, allocations that Python does not see among it."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    linux = os.access(clear, os.W_OK)

    def kilobytes(what: str) -> int:
        if not linux:  # the most of the process's whole life: may miss a peak lower than an earlier one
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(what))

    if linux:
        clear.write_text("5")  # begins the peak anew
    before: Any = kilobytes("VmRSS")
    yield
    growth = kilobytes("VmHWM") - before
    assert growth * 1024 < MEMORY, f"{growth} kB"
