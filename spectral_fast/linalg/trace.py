"""The trace of a symmetric operator by random probes, in all and by block."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from ..results import Result
from .arrays import like
from .density import ProbeRun
from .krylov import F64
from .options import seed_number, whole_number
from .products import blocks_of, check_operator
from .trace_methods import METHODS, Estimates, exact, mean_error, rounding_of_forms

__all__ = ["TraceResult", "choose", "student_interval", "trace", "trace_of"]

# "auto": XTrace from this many products on, where its basis stays below this many bytes
LEAST_PRODUCTS = 30
BASIS_BYTES = 2**30


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
    """estimate = mean of ``samples`` (a torch tensor where the operator was one), stderr its standard error; by_layer: block name ->
    (estimate, stderr). method: "hutchinson", "hutch++", "xtrace", or "exact", where the trace was computed and nothing is estimated
    (stderr 0 but for the rounding of the products)."""

    estimate: float
    stderr: float
    samples: F64
    by_layer: dict[str, tuple[float, float]] = field(default_factory=dict)
    matvecs: int = 0
    method: str = "hutchinson"

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student t interval of the estimate, len(samples) - 1 degrees of freedom."""
        return self._interval(self.estimate, self.stderr, level)

    def layer_interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """The same for one block. Raises KeyError listing the names that are there."""
        if name not in self.by_layer:
            raise KeyError(f"{name!r}; known: {', '.join(self.by_layer) or 'none'}")
        return self._interval(*self.by_layer[name], level)

    def _interval(self, estimate: float, stderr: float, level: float) -> tuple[float, float]:
        if self.method == "exact":
            student_interval(estimate, stderr, 2, level)  # checks the level
            return estimate, estimate
        return student_interval(estimate, stderr, len(self.samples), level)


def trace_of(run: ProbeRun) -> TraceResult:
    """The trace from the first products of the density's probes; ``matvecs`` are among the density's."""
    rounding = rounding_of_forms(run.n, run.squared)
    whole = mean_error(run.quadratic, rounding)
    local = {name: mean_error(samples, rounding) for name, samples in run.by_block.items()}
    return TraceResult(
        estimate=whole.mean,
        stderr=whole.stderr,
        samples=whole.samples,
        by_layer={name: (e.mean, e.stderr) for name, e in local.items()},
        matvecs=len(run.quadratic),
    )


def choose(n: int, max_matvecs: int) -> str:
    """The method of "auto", by shape and budget alone: "exact" for n <= max_matvecs; "xtrace" for 30 products or more where its basis
    (8.5 n max_matvecs bytes) takes at most 1 GiB; else "hutchinson".

    XTrace's error is a small part of Hutchinson's where few eigenvalues carry much of the Frobenius norm, as in Hessians. Where the spectrum is flat it
    is larger, sqrt(2) times at least, since half of the products only look for such eigenvalues: "hutchinson" is the better choice there. With fewer
    products it has too few samples for its covariance.
    """
    if n <= max_matvecs:
        return "exact"
    return "xtrace" if max_matvecs >= LEAST_PRODUCTS and 8.5 * n * max_matvecs <= BASIS_BYTES else "hutchinson"


def trace(op: Any, *, max_matvecs: int = 100, method: str = "auto", seed: int = 0) -> TraceResult:
    """tr A of the symmetric ``op`` (n, n) from ``max_matvecs`` products (one fewer where XTrace gets an odd number): no optional stopping,
    which would bias it. For n <= max_matvecs the exact trace from n products with unit vectors, whatever the method: method "exact".

    op: array, tensor, or anything with .shape and @; blocks of vectors where it takes them (arrays, tensors, scipy's operators,
    ``op.takes_blocks = True``), else one vector at a time. By block where ``op.blocks`` (name -> slice) is there: every method's block
    estimates are unbiased, have errors of their own and add up to the whole.
    method: "auto" (see ``choose``);
    "hutchinson" (Hutchinson 1990), the probes of spectral_density with the same seed, memory a few vectors;
    "hutch++" (Meyer et al. 2021), 5.3 n max_matvecs bytes; "xtrace" (Epperly, Tropp & Webber 2024), 8.5 n max_matvecs bytes.

    Raises TypeError, ValueError naming the argument; ArithmeticError for NaN or Inf in a product.
    """
    n = check_operator(op)
    if method not in ("auto", *METHODS):
        raise ValueError(f"method: unknown {method!r}; known: auto, {', '.join(METHODS)}")
    budget = whole_number("max_matvecs", max_matvecs)
    seed_number(seed)
    blocks = blocks_of(op, n)
    chosen = choose(n, budget) if method == "auto" or n <= budget else method
    found: Estimates
    if chosen == "exact":
        found = exact(op, n, blocks, budget, seed)
    else:
        estimator, least = METHODS[chosen]
        if budget < least:
            raise ValueError(f"max_matvecs: {chosen} needs at least {least}, got {budget}")
        found = estimator(op, n, blocks, budget, seed)
    if not (math.isfinite(found.whole.mean) and np.isfinite(found.whole.samples).all()) or math.isinf(found.whole.stderr):
        raise ArithmeticError("op: its products with vectors of signs are finite, but sums of them or of their squares overflow; scale it down")
    return TraceResult(
        estimate=found.whole.mean,
        stderr=found.whole.stderr,
        samples=like(op, found.whole.samples),
        by_layer={name: (e.mean, e.stderr) for name, e in found.by_block.items()},
        matvecs=found.products,
        method=chosen,
    )
