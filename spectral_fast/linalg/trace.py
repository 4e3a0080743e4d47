"""The trace of a symmetric operator by random probes, in all and by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from ..kernels.counters import rademacher
from ..results import Result
from .arrays import like
from .density import ProbeRun, mean_and_stderr
from .krylov import F64, check_operator, product_of

__all__ = ["TraceResult", "student_interval", "trace", "trace_of"]

_METHODS = ("hutchinson",)


def student_interval(estimate: float, stderr: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Two-sided Student t interval of a mean of ``count`` samples; infinite for fewer than two."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: wanted 0 < level < 1, got {level}")
    if count < 2 or not np.isfinite(stderr):
        return float("-inf"), float("inf")
    half = float(stats.t.ppf(0.5 + level / 2, count - 1)) * stderr
    return estimate - half, estimate + half


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class TraceResult(Result):
    """estimate = mean of ``samples`` (zᵀAz each; a torch tensor where the operator was one), stderr its standard error;
    by_layer: block name -> (estimate, stderr)."""

    estimate: float
    stderr: float
    samples: F64
    by_layer: dict[str, tuple[float, float]] = field(default_factory=dict)
    matvecs: int = 0
    method: str = "hutchinson"

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student t interval of the estimate."""
        return student_interval(self.estimate, self.stderr, len(self.samples), level)


def trace_of(run: ProbeRun) -> TraceResult:
    """The trace from the first products of the density's probes; ``matvecs`` are among the density's."""
    estimate, stderr = mean_and_stderr(run.quadratic)
    return TraceResult(
        estimate=estimate,
        stderr=stderr,
        samples=np.asarray(run.quadratic, dtype=np.float64),
        by_layer={name: mean_and_stderr(samples) for name, samples in run.by_block.items()},
        matvecs=len(run.quadratic),
    )


def trace(op: Any, *, max_matvecs: int = 100, method: str = "auto", seed: int = 0) -> TraceResult:
    """tr A of the symmetric ``op`` (n, n) from exactly ``max_matvecs`` products: no optional stopping, which would bias it.

    Hutchinson 1990: E[zᵀAz] = tr A for Rademacher z; by block E[z_lᵀ(Az)_l] = tr A_ll where ``op.blocks`` (name -> slice) is there.
    method: "auto" or "hutchinson". Raises TypeError, ValueError naming the argument; ArithmeticError for NaN or Inf in a product.
    """
    n = check_operator(op)
    if method not in ("auto", *_METHODS):
        raise ValueError(f"method: unknown {method!r}; known: auto, {', '.join(_METHODS)}")
    if int(max_matvecs) != max_matvecs or max_matvecs < 1:
        raise ValueError(f"max_matvecs: wanted a positive integer, got {max_matvecs}")
    apply = product_of(op)
    blocks = getattr(op, "blocks", None)
    blocks = blocks if isinstance(blocks, Mapping) else {}
    samples: list[float] = []
    local: dict[str, list[float]] = {name: [] for name in blocks}
    for i in range(int(max_matvecs)):
        z = rademacher(n, seed, i)
        w = apply(z)
        samples.append(float(z @ w))
        for name, s in blocks.items():
            local[name].append(float(z[s] @ w[s]))
    estimate, stderr = mean_and_stderr(samples)
    return TraceResult(
        estimate=estimate,
        stderr=stderr,
        samples=like(op, np.asarray(samples)),
        by_layer={name: mean_and_stderr(values) for name, values in local.items()},
        matvecs=int(max_matvecs),
    )
