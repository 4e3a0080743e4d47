"""How a product is computed: by a kept graph, a graph built anew, in forward mode, or for several vectors at once; the fastest that fits.

Every trial is a product that was asked for; what is used has agreed with the double backward to rounding before.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

__all__ = ["BATCHED", "FAILURES", "FORWARD", "KEPT", "REBUILT", "Chooser"]

KEPT = "kept graph"
REBUILT = "graph rebuilt"
FORWARD = "forward mode"
BATCHED = "vectors batched"

# A forward-mode product takes every step of a gradient together with its derivative: not less than two gradients. A kept graph that
# costs less than this many times its own making cannot be beaten by it.
LEAST_FORWARD = 2.0
# Seconds the first use of a way takes in a process, for torch loads its rules then: it is tried when products have taken as long.
OUTLAY = {FORWARD: 2.0, BATCHED: 0.5}
# A layer without a rule for forward mode or for batches says so by one of these.
FAILURES = (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError, IndexError)


class Chooser:
    """Which way the next product goes.

    base: the way taken first. From the third product on ``FORWARD`` is tried once where it may win and products have taken long enough
    (see OUTLAY), and then the faster of the two is used. Blocks of vectors: from the second on ``BATCHED`` is tried, then the faster per vector.

    seconds: way -> least seconds per vector seen, the making of kept graphs not counted. refused: way -> reason.
    """

    def __init__(self, base: str, *, forward: bool, batched: bool) -> None:
        self.base = base
        self.seconds: dict[str, float] = {}
        self.refused: dict[str, str] = {}
        self.making = 0.0  # seconds to make the kept graphs
        self._tries = {FORWARD: forward and base != FORWARD, BATCHED: batched}
        self._calls = {1: 0, 2: 0}
        self._spent = 0.0

    @property
    def single(self) -> str:
        """The way of one vector."""
        return self._faster(self.base, FORWARD)

    def _faster(self, usual: str, other: str) -> str:
        if other in self.refused or other not in self.seconds:
            return usual
        return other if self.seconds[other] < self.seconds.get(usual, float("inf")) else usual

    def next(self, b: int) -> str:
        """The way of the next b vectors."""
        if b > 1:
            if self._calls[2] >= 1 and self._open(BATCHED):
                return BATCHED
            return self._faster(self.single, BATCHED)
        if self._calls[1] >= 2 and self._open(FORWARD) and self._may_win():
            return FORWARD
        return self.single

    def _open(self, way: str) -> bool:
        return self._tries[way] and way not in self.refused and way not in self.seconds and self._spent >= OUTLAY[way]

    def _may_win(self) -> bool:
        return self.base != KEPT or not self.making or self.seconds[KEPT] > LEAST_FORWARD * self.making

    def done(self, way: str, b: int, seconds: float) -> None:
        """b vectors went this way in so many seconds."""
        self._calls[1 if b == 1 else 2] += 1
        self._spent += seconds
        self.seconds[way] = min(self.seconds.get(way, float("inf")), seconds / b)

    def refuse(self, way: str, reason: str) -> None:
        self.refused[way] = reason
        self.seconds.pop(way, None)

    @property
    def strategy(self) -> str:
        """In words: the way of one vector and, where blocks of vectors go another, that."""
        several = self._faster(self.single, BATCHED)
        return self.single if several == self.single else f"{self.single}, {several}"


def timed(device: torch.device, work: Callable[[], None]) -> float:
    """Seconds of ``work`` with everything it left to do on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
