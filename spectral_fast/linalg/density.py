"""The spectral density of a symmetric operator by stochastic Lanczos quadrature (SLQ), with trace and Frobenius norm.

Ubaru, Chen & Saad 2017, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", in block form (Golub & Meurant 2010, chapter 4): a block of
Rademacher probes Z = Q R starts one Krylov space; its Ritz values are the nodes of all probes, and probe i's weights are the squares of what z_i has of the
Ritz vectors. The first products give tr A (Hutchinson 1990), in all and by block, and ||A||_F² = E ||A z||², no product being spent twice. Ritz pairs at the
ends that have converged are eigenvalues: they count 1/n each, exactly, and probes speak of the rest only.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.stats import chi2

from ..memory import host_memory_limit
from ..results import Result
from .arrays import as_float64, is_torch, like
from .krylov import BASIS_DTYPES, F64, Krylov, dtype_of_basis
from .options import seed_number, whole_number
from .products import blocks_of, check_operator, product_of
from .share import Share
from .spread import spread_of
from .trace_methods import mean_error

__all__ = ["Probed", "ProbeRun", "SpectralDensity", "density_of", "run_probes", "spectral_density"]

# The view of the quadrature: Gaussians of a hundredth of the range, about what 64 steps resolve of a bulk (its nodes lie 1/64 of its range apart), on a grid
# with about five points to each width
GRID = 512
RELATIVE_WIDTH = 0.01
# Nodes at an end of the spectrum count as eigenvalues where their residual is below this share of the distance to the next one
SETTLED = 0.05
# A multiple eigenvalue's copies carry chi-square / n of the mass, in the mean of the probes: more than so improbable a value stands for further ones
CHANCE = 1e-4
SAME = 1e-8  # of the range: nodes no further apart are copies of one eigenvalue
# Asymmetry or noise of the operator, of the largest product, beyond which its quadrature is none: eigsh's tol by default, and ten times the rounding of rows
# of bfloat16, which looks like noise of the operator
NOT_SYMMETRIC = {"float64": 1e-3, "float32": 1e-3, "bfloat16": 10 * 2.0**-9}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SpectralDensity(Result):
    """nodes (ascending) and weights (sum 1): the quadrature of all probes, the cumulative staircase is the result proper (all of them
    torch tensors on the operator's device where it was a torch matrix). outliers (below, above): how many nodes at either end are converged eigenvalues, of
    weight 1/n each; the bulk between them rests on the probes. grid and density: a view of it, every node a Gaussian of standard deviation ``width``.
    trace, frobenius: estimates with standard errors (NaN for one probe). symmetry_defect: the operator's asymmetry and noise, as in EigenResult; above
    1e-3 (0.02 with a basis of bfloat16) the status is "unresolved"."""

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
    outliers: tuple[int, int] = (0, 0)
    symmetry_defect: float = 0.0
    by_probe: F64 = field(default_factory=lambda: np.zeros((0, 0)), repr=False)

    def cumulative(self, x: Any) -> F64:
        """Share of eigenvalues <= x, x any shape."""
        sums = np.concatenate([[0.0], np.cumsum(as_float64(self.weights))])
        share = np.asarray(sums[np.searchsorted(as_float64(self.nodes), as_float64(x), side="right")], dtype=np.float64)
        return like(self.nodes, share)  # type: ignore[no-any-return]

    def cumulative_stderr(self, x: Any) -> F64:
        """Standard error of ``cumulative(x)`` from the spread of the probes; NaN for one probe, 0 among the outliers."""
        each = as_float64(self.by_probe)
        sums = np.concatenate([np.zeros((len(each), 1)), np.cumsum(each, axis=1)], axis=1)
        at = sums[:, np.searchsorted(as_float64(self.nodes), as_float64(x), side="right")]
        if len(each) < 2:
            return like(self.nodes, np.full(at.shape[1:], np.nan))  # type: ignore[no-any-return]
        return like(self.nodes, at.std(axis=0, ddof=1) / np.sqrt(len(each)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Probed:
    """What one block of probes gave: nodes ascending (m,), their residuals (m,), weights (probes, m) of each probe, sum 1.

    block: dimension of the space the probes span; noise: how far rounding and the operator's noise may have moved a node."""

    nodes: F64
    residuals: F64
    weights: F64
    block: int
    noise: float


@dataclass
class ProbeRun:
    """What the recurrences of all probes gave: nodes and weights by block of probes, and per probe zᵀAz, ||Az||² and zᵀAz by block of the operator."""

    n: int
    steps: int
    parts: list[Probed] = field(default_factory=list)
    quadratic: list[float] = field(default_factory=list)
    squared: list[float] = field(default_factory=list)
    by_block: dict[str, list[float]] = field(default_factory=dict)
    matvecs: int = 0
    defect: float = 0.0  # largest |uᵀAv - vᵀAu| met for unit vectors, over the largest product
    dtype: str = "float64"  # of the basis
    basis: Krylov | None = None  # of the last block of probes, also of one that was interrupted

    @property
    def probes(self) -> int:
        return len(self.quadratic)


def run_probes(
    op: Any,
    run: ProbeRun,
    *,
    probes: int,
    seed: int = 0,
    capacity: int = 0,
    basis_dtype: str = "float64",
    share: Share | None = None,
    apply: Any = None,
    backend: str = "auto",
) -> Krylov:
    """Add a block of ``probes`` probes and ``run.steps`` steps to ``run``, in place, and return its basis, from which eigsh can go on.

    capacity: least number of rows the basis is made for, where more is to come. An interrupt leaves in ``run`` what the first products and the steps done so
    far gave. apply: op's product where it is known already.
    """
    n, first = run.n, run.probes
    spread = spread_of(op) if share is None and apply is None else None
    share = share or (spread.share if spread is not None else Share(n))
    kry = Krylov(
        apply or spread or product_of(op),
        n,
        max(probes * run.steps, capacity),
        seed=seed,
        stream=2**32 + first,
        dtype=basis_dtype,
        spare=probes,
        share=share,
        backend=backend,
    )
    z = kry.drawn(range(first, first + probes))
    run.basis, run.dtype = kry, basis_dtype
    r, start = kry.add(z)
    del z
    r = r[: len(start)]  # Z = Q R, Q the rows new
    local: dict[str, F64] = {}

    def by_block(w: Any) -> None:
        q = kry.vectors_of(start)
        for name, part in blocks_of(op, n).items():
            inside = slice(max(0, part.start - share.columns.start), max(0, min(share.width, part.stop - share.columns.start)))
            local[name] = kry.place.products(q[:, inside], w[:, inside])
            if share.reduce is not None:
                share.reduce(local[name])

    try:
        # a model is put into the state of a product once, not for each of them
        with getattr(op, "running", nullcontext)():
            kry.step(start, before=by_block)
            products = kry.T[: kry.t, start] @ r
            run.squared += [float(x) for x in np.einsum("ij,ij->j", products, products)]
            run.quadratic += [float(x) for x in np.einsum("ij,ij->j", r, kry.T[np.ix_(start, start)] @ r)]
            for name, form in local.items():
                run.by_block.setdefault(name, []).extend(float(x) for x in np.einsum("ij,ij->j", r, form @ r))
            for _ in range(1, run.steps):
                if not kry.pending:
                    break
                kry.step(list(kry.pending))
    finally:
        if kry.m:
            values, s, residuals = kry.ritz()
            weights = (r.T @ s[: len(start)]) ** 2  # the first of the rows multiplied
            noise = 10.0 * max(kry.defect, kry.eps * kry.scale)  # an entry of T, and with it a node, is off by about the largest defect
            run.parts.append(Probed(values, residuals, weights / weights.sum(axis=1, keepdims=True), len(start), noise))
        run.matvecs += kry.products
        if kry.scale > 0.0:
            run.defect = max(run.defect, kry.defect / kry.scale)
    return kry


def _settled(part: Probed, n: int) -> tuple[int, int]:
    """How many nodes at the lower and at the upper end are converged eigenvalues, each there as often as it is one.

    A block of b probes is sure to show min(b, multiplicity) copies of an eigenvalue: fewer than b are all there are, b or more (rounding brings further ones)
    may be a part of them, and how many there are only the probes' weights can say. One probe counts nothing."""
    m = len(part.nodes)
    spread = float(part.nodes[-1] - part.nodes[0])
    gaps = np.diff(part.nodes)
    apart = gaps > np.maximum(2.0 * (part.residuals[:-1] + part.residuals[1:]), max(part.noise, SAME * spread))
    first = np.concatenate([[0], 1 + np.flatnonzero(apart)])  # of each cluster of copies
    copies = np.diff(first, append=m)
    residuals = np.maximum.reduceat(part.residuals, first)
    around = np.concatenate([[np.inf], gaps[apart], [np.inf]])
    settled = residuals <= SETTLED * np.minimum(np.minimum(around[:-1], around[1:]), spread)
    if m == n:
        return 0, m  # the whole spectrum
    probes = len(part.weights)
    mass = np.add.reduceat(part.weights.mean(axis=0), first) * n
    counted = settled & (copies < part.block) & (mass <= chi2.isf(CHANCE, copies * probes) / probes)
    if counted.all():
        return 0, 0  # fewer values than dimensions: then they stand for the rest too
    below, above = [int(x) for x in copies[: np.argmin(counted)]], [int(x) for x in copies[::-1][: np.argmin(counted[::-1])]]
    # a quarter of the nodes stays with the bulk: a few could not tell how what is left of the spectrum lies within its own range
    while sum(below) + sum(above) > m * 3 // 4:
        (below if sum(below) > sum(above) else above).pop()
    return sum(below), sum(above)


def density_of(run: ProbeRun, *, outliers: bool = True) -> SpectralDensity:
    """The merged quadrature of the finished probes and its Gaussian view. outliers: weigh converged eigenvalues at the ends by 1/n each."""
    if not run.parts:
        raise ValueError("density: no probe was finished")
    count = sum(len(p.weights) for p in run.parts)
    ends = _settled(run.parts[0], run.n) if outliers and len(run.parts) == 1 else (0, 0)
    each = np.zeros((count, sum(len(p.nodes) for p in run.parts)))
    row = column = 0
    for part in run.parts:
        each[row : row + len(part.weights), column : column + len(part.nodes)] = part.weights
        row, column = row + len(part.weights), column + len(part.nodes)
    nodes = np.concatenate([p.nodes for p in run.parts])
    order = np.argsort(nodes, kind="stable")
    nodes, each = nodes[order], each[:, order]
    inner = slice(ends[0], len(nodes) - ends[1])
    if sum(ends):
        bulk = each[:, inner]
        left = 1.0 - sum(ends) / run.n
        each = np.full_like(each, 1.0 / run.n)
        each[:, inner] = bulk * (left / np.maximum(bulk.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny))
    weights = each.mean(axis=0)
    weights /= weights.sum()
    spread = float(nodes[-1] - nodes[0])
    size = float(np.abs(nodes).max())
    width = RELATIVE_WIDTH * (spread if spread > 1e-12 * size else (size if size > 0.0 else 1.0))
    grid = np.linspace(nodes[0] - 4 * width, nodes[-1] + 4 * width, GRID)
    density = np.exp(-0.5 * ((grid[:, None] - nodes[None, :]) / width) ** 2) @ weights / (width * np.sqrt(2 * np.pi))
    trace, squared = mean_error(run.quadratic), mean_error(run.squared)
    frobenius = float(np.sqrt(max(squared.mean, 0.0)))
    symmetric = run.defect <= NOT_SYMMETRIC[run.dtype]
    return SpectralDensity(
        nodes=nodes,
        weights=weights,
        grid=grid,
        density=density,
        width=width,
        trace=trace.mean,
        trace_stderr=trace.stderr,
        frobenius=frobenius,
        frobenius_stderr=squared.stderr / (2 * frobenius) if frobenius > 0.0 else squared.stderr,  # first order in the error
        probes=count,
        steps=run.steps,
        matvecs=run.matvecs,
        outliers=ends,
        by_probe=each,
        symmetry_defect=run.defect,
        status="ok" if symmetric else "unresolved",
        reason="" if symmetric else f"products are symmetric only to {run.defect:.2g} of the largest: the operator is noisy or not symmetric",
    )


def spectral_density(op: Any, *, probes: int = 4, steps: int = 64, seed: int = 0, basis_dtype: str | None = None) -> SpectralDensity:
    """Density of the eigenvalues of the symmetric ``op`` (n, n) from one Krylov space of ``probes`` random vectors and ``steps`` products of each.

    Eigenvalues at the ends that have converged count 1/n each, where there are fewer copies of one than probes; between them the weights are averages over
    the probes (``cumulative_stderr``). With probes x steps >= n all of them are exact. basis_dtype: "float64", "float32" or "bfloat16"; None: float32 for an
    operator of float32. Where probes x steps vectors do not fit into memory, the probes go one after the other. Ctrl-C gives what the steps done so far say,
    status "incomplete"; before the first products are done it is a KeyboardInterrupt.
    Raises TypeError, ValueError naming the argument; ArithmeticError when a product holds NaN or Inf.
    """
    n = check_operator(op)
    probes, steps = whole_number("probes", probes), whole_number("steps", steps)
    seed_number(seed)
    dtype = dtype_of_basis(basis_dtype) or ("float32" if str(getattr(op, "dtype", "")).endswith("float32") else "float64")
    run, interrupted = ProbeRun(n=n, steps=min(steps, n)), ""
    spread = spread_of(op)
    row = (n if spread is None else spread.share.width) * np.dtype(BASIS_DTYPES[dtype]).itemsize
    together = max(1, min(probes, host_memory_limit(None) // max(1, row * (run.steps + 2))))
    try:
        with nullcontext() if spread is None else spread.one_interrupt():
            together = together if spread is None else spread.least(together)
            while run.probes < probes:
                run.basis = None  # one in memory at a time
                run_probes(op, run, probes=min(together, probes - run.probes), seed=seed, basis_dtype=dtype)
    except KeyboardInterrupt:
        if not run.probes:
            raise
        interrupted = f"interrupted after {run.matvecs} of {probes * run.steps} products"
    result = density_of(run)
    if interrupted:
        result = replace(result, status="incomplete", reason="; ".join(filter(None, (interrupted, result.reason))))
    if is_torch(op):
        result = replace(result, **{name: like(op, getattr(result, name)) for name in ("nodes", "weights", "grid", "density")})
    return result
