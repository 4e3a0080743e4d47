"""What a scan will cost, told before a byte of a tensor is read: matrices, operations, bytes, memory, time on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..memory import host_memory_limit
from ..results import Result, Skipped, Status
from .compute import TOP_ABOVE, Calculator, Options
from .sources import open_source
from .structure import plan_matrices
from .work import Costs, work_units

__all__ = ["ScanPlan", "ShapeCost", "scan_plan"]

# (shorter side up to, batch that is timed): singular values of small matrices run at a fraction of the rate of large ones
_CLASSES = ((64, (256, 64, 64)), (320, (8, 256, 256)), (1024, (2, 640, 640)), (math.inf, (1, 1280, 1280)))


@dataclass(frozen=True)
class ShapeCost:
    """All matrices of one shape (m, n): how many, their operations, seconds expected."""

    shape: tuple[int, int]
    matrices: int
    flops: float
    seconds: float


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ScanPlan(Result):
    """What a scan will cost.

    matrices: number that will be computed; parameters: entries of theirs; skipped: tensors that will not be, and why. nbytes: to be read; memory: the
    least ``max_memory`` that leaves none out; limit: bytes that will be used at most. flops: of the singular values, (m n^2 + 4/3 n^3) each; seconds:
    expected of them on this machine, from a measurement of a tenth of a second; what reading takes beyond them depends on the storage. shapes: the
    same by shape, the most expensive first.
    """

    source: str
    matrices: int
    parameters: int
    nbytes: int
    memory: int
    limit: int
    flops: float
    seconds: float
    shapes: tuple[ShapeCost, ...]
    skipped: tuple[Skipped, ...]


def scan_plan(
    source: Any,
    *,
    layers: str | Sequence[str] | None = None,
    backend: str = "auto",
    top: int | None = None,
    top_above: int = TOP_ABOVE,
    max_memory: int | float | None = None,
) -> ScanPlan:
    """What ``scan`` with these arguments will cost; reads names and shapes only, and times the kernel on matrices of its own.

    Raises what ``scan`` raises for the same arguments.
    """
    limit = host_memory_limit(max_memory)
    with open_source(source) as tensors:
        calculator = Calculator(Options(backend=backend, top=top, top_above=top_above))
        plans, skipped = plan_matrices(tensors.entries, layers, tensors.adapter)
        costs = Costs(calculator.values.backend, calculator.values.reads_bits, calculator.leading)
        work = work_units(plans, costs, limit)
    rates: dict[int, float] = {}
    rows: dict[tuple[int, int], list[float]] = {}
    done = [p for u in work.units for p in u.plans]
    for p in done:
        k = next(i for i, (up_to, _) in enumerate(_CLASSES) if min(p.shape) <= up_to)
        if k not in rates:
            rates[k] = _rate(calculator, _CLASSES[k][1])
        row = rows.setdefault(p.shape, [0, 0.0, 0.0])
        flops = costs.flops(p)
        row[0] += 1
        row[1] += flops
        row[2] += flops / rates[k]
    shapes = sorted((ShapeCost(shape, int(n), flops, seconds) for shape, (n, flops, seconds) in rows.items()), key=lambda c: -c.seconds)
    status: Status = "incomplete" if work.too_large else "ok" if done else "skipped"
    reason = "" if done else "no weight matrix found"
    if work.too_large:
        reason = f"{len(work.too_large)} tensors need more memory than max_memory"
    return ScanPlan(
        status=status,
        reason=reason,
        backend=f"singular values: {calculator.values.backend}",
        source=tensors.label,
        matrices=len(done),
        parameters=sum(p.shape[0] * p.shape[1] for p in done),
        nbytes=work.nbytes,
        memory=work.memory,
        limit=limit,
        flops=work.flops,
        seconds=sum(c.seconds for c in shapes),
        shapes=tuple(shapes),
        skipped=(*tensors.skipped, *skipped, *work.too_large),
    )


def _rate(calculator: Calculator, shape: tuple[int, int, int]) -> float:
    """Flops per second of the singular values of a batch (b, n, n); the second call counts."""
    a = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    seconds = math.inf
    for _ in range(2):
        start = time.perf_counter()
        calculator.values(a, "standard")
        seconds = min(seconds, time.perf_counter() - start)
    return 7 / 3 * shape[0] * shape[1] ** 3 / max(seconds, 1e-9)
