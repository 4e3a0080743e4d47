"""The spectral density of a symmetric operator by stochastic Lanczos quadrature (SLQ), with trace and Frobenius norm.

Ubaru, Chen & Saad 2017, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature": a Rademacher probe z starts a Lanczos
recurrence; the eigenvalues of its tridiagonal matrix are nodes, the squared first components of its eigenvectors weights. The
same recurrences give tr A = n mean(alpha_1) (Hutchinson 1990) and ||A||_F² = n mean(alpha_1² + beta_1²), no product being
spent twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.counters import rademacher
from ..results import Result
from .arrays import as_float64, is_torch, like
from .krylov import F64, Krylov, check_operator, product_of

__all__ = ["ProbeRun", "SpectralDensity", "density_of", "run_probes", "spectral_density"]

GRID = 512
RELATIVE_WIDTH = 0.01


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SpectralDensity(Result):
    """nodes (ascending) and weights (sum 1): the quadrature of all probes, the cumulative staircase is the result proper (all of them
    torch tensors on the operator's device where it was a torch matrix). grid and
    density: a view of it, every node a Gaussian of standard deviation ``width``. trace, frobenius: estimates with standard errors
    (NaN for one probe). Outliers carry weight about 1/n each: take them from eigsh."""

    nodes: F64
    weights: F64
    grid: F64
    density: F64
    width: float
    trace: float
    trace_stderr: float
    frobenius: float
    frobenius_stderr: float
    probes: int
    steps: int
    matvecs: int

    def cumulative(self, x: Any) -> F64:
        """Share of eigenvalues <= x, x any shape."""
        sums = np.concatenate([[0.0], np.cumsum(as_float64(self.weights))])
        share = np.asarray(sums[np.searchsorted(as_float64(self.nodes), as_float64(x), side="right")], dtype=np.float64)
        return like(self.nodes, share)  # type: ignore[no-any-return]


@dataclass
class ProbeRun:
    """What the recurrences of all probes gave: per probe its nodes and weights, zᵀAz, ||Az||² and zᵀAz by block.

    last: the Krylov basis of the last probe, from which eigsh can go on.
    """

    n: int
    steps: int
    nodes: list[F64] = field(default_factory=list)
    weights: list[F64] = field(default_factory=list)
    quadratic: list[float] = field(default_factory=list)
    squared: list[float] = field(default_factory=list)
    by_block: dict[str, list[float]] = field(default_factory=dict)
    matvecs: int = 0
    last: Krylov | None = None


def _blocks(op: Any) -> Mapping[str, slice]:
    blocks = getattr(op, "blocks", None)
    return blocks if isinstance(blocks, Mapping) else {}


def run_probes(op: Any, run: ProbeRun, *, probes: int, seed: int = 0, capacity: int = 0, basis_dtype: Any = np.float64) -> ProbeRun:
    """Add ``probes`` recurrences of ``run.steps`` steps to ``run``, in place, so that an interrupt leaves the finished ones.

    capacity: least number of rows the bases are made for, where eigsh is to go on from the last. basis_dtype: float64 or float32.
    """
    apply = product_of(op)
    blocks = _blocks(op)
    n = run.n
    for _ in range(probes):
        i = len(run.nodes)
        run.last = None  # one basis in memory at a time
        kry = Krylov(apply, n, max(run.steps, capacity), seed=seed, stream=2**32 + i, dtype=basis_dtype)
        kry.append(rademacher(n, seed, i))
        q = np.array(kry.rows[0], dtype=np.float64)
        product = kry.step()
        assert product is not None
        # z = sqrt(n) q
        local = {name: n * float(q[s] @ product[s]) for name, s in blocks.items()}
        while kry.m < run.steps and kry.m < kry.t:
            kry.step()
        values, s, _ = kry.ritz()
        run.nodes.append(values)
        run.weights.append(s[0] ** 2)
        run.quadratic.append(n * float(q @ product))
        run.squared.append(n * float(product @ product))
        for name, value in local.items():
            run.by_block.setdefault(name, []).append(value)
        run.matvecs += kry.products
        run.last = kry
    return run


def mean_and_stderr(samples: list[float] | NDArray[Any]) -> tuple[float, float]:
    """Mean and its standard error; NaN error for fewer than two samples."""
    x = np.asarray(samples, dtype=np.float64)
    if len(x) == 0:
        return float("nan"), float("nan")
    return float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else float("nan")


def density_of(run: ProbeRun) -> SpectralDensity:
    """The merged quadrature of the finished probes and its Gaussian view."""
    count = len(run.nodes)
    if count == 0:
        raise ValueError("density: no probe was finished")
    nodes, weights = np.concatenate(run.nodes), np.concatenate(run.weights) / count
    order = np.argsort(nodes, kind="stable")
    nodes, weights = nodes[order], weights[order] / weights.sum()
    spread = float(nodes[-1] - nodes[0])
    size = float(np.abs(nodes).max())
    width = RELATIVE_WIDTH * (spread if spread > 1e-12 * size else (size if size > 0.0 else 1.0))
    grid = np.linspace(nodes[0] - 4 * width, nodes[-1] + 4 * width, GRID)
    density = np.exp(-0.5 * ((grid[:, None] - nodes[None, :]) / width) ** 2) @ weights / (width * np.sqrt(2 * np.pi))
    trace, trace_stderr = mean_and_stderr(run.quadratic)
    squared, squared_stderr = mean_and_stderr(run.squared)
    frobenius = float(np.sqrt(max(squared, 0.0)))
    return SpectralDensity(
        nodes=nodes,
        weights=weights,
        grid=grid,
        density=density,
        width=width,
        trace=trace,
        trace_stderr=trace_stderr,
        frobenius=frobenius,
        frobenius_stderr=squared_stderr / (2 * frobenius) if frobenius > 0.0 else squared_stderr,  # first order in the error
        probes=count,
        steps=run.steps,
        matvecs=run.matvecs,
    )


def spectral_density(op: Any, *, probes: int = 4, steps: int = 64, seed: int = 0) -> SpectralDensity:
    """Density of the eigenvalues of the symmetric ``op`` (n, n) from ``probes`` recurrences of ``steps`` products each.

    With steps >= n the nodes are the eigenvalues; the weights stay averages over random probes, as uncertain as the trace.
    Raises TypeError, ValueError naming the argument; ArithmeticError when a product holds NaN or Inf.
    """
    n = check_operator(op)
    for name, value in (("probes", probes), ("steps", steps)):
        if int(value) != value or value < 1:
            raise ValueError(f"{name}: wanted a positive integer, got {value}")
    result = density_of(run_probes(op, ProbeRun(n=n, steps=min(int(steps), n)), probes=int(probes), seed=seed))
    if is_torch(op):
        result = replace(result, **{name: like(op, getattr(result, name)) for name in ("nodes", "weights", "grid", "density")})
    return result
