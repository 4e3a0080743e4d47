"""The Marchenko-Pastur law of a matrix of independent entries, fitted to the bulk of a spectrum, and the spikes that rise above it.

Marchenko & Pastur (1967). Number of spikes by the Tracy-Widom law of the largest eigenvalue (Johnstone 2001; Kritchman & Nadler 2009).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..kernels.numpy_kernels import marchenko_pastur_law
from ..kernels.select import select
from ..linalg.arrays import as_float64
from .tracy_widom import tracy_widom_quantile

__all__ = ["MIN_BULK", "MarchenkoPasturFit", "marchenko_pastur", "marchenko_pastur_fits", "mp_cdf", "mp_density", "mp_unresolved"]

MIN_BULK = 8  # fewer values say nothing about a law
_BLOCK = 1 << 18  # values fitted together: a few MB of work arrays
_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MarchenkoPasturFit:
    """The law of the bulk and the spikes above it. All values in units of the eigenvalues s² of WᵀW, not divided by d_max.

    var:      variance of the entries that make up the bulk.
    lower_edge, upper_edge: of the law, var (sqrt(d_max - k) ± sqrt(d_min - k))², k spikes removed.
    n_spikes, spikes: the eigenvalues above ``threshold``, descending.
    threshold: mu_tw + q scale_tw, the Tracy-Widom centre and scale of the bulk's largest value; q is such that a report of random matrices shows
              any spike with probability ``level``.
    soft_rank: upper_edge / lambda_max (Martin & Mahoney 2021): near 1 for a random matrix, near 0 where one direction rules.
    distance: Kolmogorov-Smirnov distance of the bulk from the law; about 1/d_min for random matrices, 0.1 and more where the law is not theirs.
    iterations: fits made until the number of spikes was stable.
    status:   "ok", or "unresolved" with the reason; then all numbers are NaN and there are no spikes.
    """

    var: float
    lower_edge: float
    upper_edge: float
    n_spikes: int
    spikes: _Floats
    threshold: float
    mu_tw: float
    scale_tw: float
    soft_rank: float
    distance: float
    iterations: int
    level: float = 0.05
    n_matrices: int = 1
    status: Literal["ok", "unresolved"] = "ok"
    reason: str = ""

    def scaled(self, exponent: int) -> MarchenkoPasturFit:
        """The fit of the same eigenvalues times 2^exponent; what leaves the range of float64 becomes inf or 0."""
        with np.errstate(over="ignore", under="ignore"):
            return replace(
                self,
                var=float(np.ldexp(self.var, exponent)),
                lower_edge=float(np.ldexp(self.lower_edge, exponent)),
                upper_edge=float(np.ldexp(self.upper_edge, exponent)),
                spikes=np.ldexp(self.spikes, exponent),
                threshold=float(np.ldexp(self.threshold, exponent)),
                mu_tw=float(np.ldexp(self.mu_tw, exponent)),
                scale_tw=float(np.ldexp(self.scale_tw, exponent)),
            )


def mp_unresolved(reason: str, level: float = 0.05, n_matrices: int = 1) -> MarchenkoPasturFit:
    """The result where nothing can be fitted."""
    nan = math.nan
    return MarchenkoPasturFit(nan, nan, nan, 0, np.empty(0), nan, nan, nan, nan, nan, 0, level, n_matrices, "unresolved", reason)


def marchenko_pastur(evals: ArrayLike, shape: tuple[int, int], *, level: float = 0.05, n_matrices: int = 1) -> MarchenkoPasturFit:
    """Fit the Marchenko-Pastur law to the bulk of a spectrum and count the spikes above it.

    evals:      (d_min,) eigenvalues of WᵀW (squared singular values), any order.
    shape:      (m, n) of W.
    level:      probability that random matrices show a spike by chance, for the whole report.
    n_matrices: matrices in that report; each gets level/n_matrices (Bonferroni).

    var is where the empirical distribution function of the bulk comes closest to the law's in the least-squares sense, started where the medians
    agree. Values above the threshold are taken out, the rest is fitted again as a (d_max - k, d_min - k) matrix, until k is stable; when more than
    half would have to go, there is no bulk and the status is "unresolved". (Taking out all above the edge, where chance puts a few, makes var too
    small and shows false spikes in a quarter of reports that may show them in 5 %.)
    Errors: ValueError for a wrong number of values, values negative or not finite, or level and n_matrices out of range.
    """
    return marchenko_pastur_fits([evals], [shape], level=level, n_matrices=n_matrices)[0]


def marchenko_pastur_fits(
    evals: Sequence[ArrayLike], shapes: Iterable[tuple[int, int]], *, level: float = 0.05, n_matrices: int | None = None
) -> list[MarchenkoPasturFit]:
    """Fit many spectra, equal shapes together; each gets to the bit what :func:`marchenko_pastur` gives it alone.

    n_matrices: matrices in the report; None: as many as are given. The rest and the errors: as for one.
    """
    count = max(1, len(evals)) if n_matrices is None else n_matrices
    if count < 1:
        raise ValueError(f"n_matrices: wanted at least 1, got {n_matrices}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: wanted a probability between 0 and 1, got {level}")
    q = tracy_widom_quantile(level / count)
    results: list[MarchenkoPasturFit | None] = [None] * len(evals)
    groups: dict[tuple[int, int], list[int]] = {}
    arrays: list[_Floats] = []
    for i, (values, shape) in enumerate(zip(evals, shapes, strict=True)):
        arrays.append(_checked(values, shape, "evals" if len(evals) == 1 else f"evals[{i}]"))
        groups.setdefault((max(shape), min(shape)), []).append(i)
    for (d_max, d_min), members in groups.items():
        rows = max(1, _BLOCK // max(1, d_min))
        for first in range(0, len(members), rows):
            block = members[first : first + rows]
            x = np.sort(np.stack([arrays[i] for i in block]), axis=1)
            if d_min and not (x[:, 0].min() >= 0.0 and x[:, -1].max() < math.inf):  # NaN stands last and fails too
                raise ValueError(_what_is_wrong(arrays, block))
            reasons = _why_unresolved(x)
            usable = np.array([not why for why in reasons])
            fits = iter(_fit_block(x[usable], d_max, q, level, count)) if usable.any() else iter(())
            for i, why in zip(block, reasons, strict=True):
                results[i] = mp_unresolved(why, level, count) if why else next(fits)
    return [fit for fit in results if fit is not None]


def mp_density(x: ArrayLike, shape: tuple[int, int], var: float) -> _Floats:
    """Density of the eigenvalues of WᵀW at x, any shape; its integral is 1. Q sqrt((b-x)(x-a)) / (2 pi var x) in units of d_max."""
    d_max, c, y = _standard(x, shape, var)
    inside = np.maximum(4.0 * c - np.square(y - 1.0 - c), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        density = np.sqrt(inside) / (2.0 * math.pi * c * y * var * d_max)
    return np.where(inside > 0.0, density, 0.0)


def mp_cdf(x: ArrayLike, shape: tuple[int, int], var: float) -> _Floats:
    """Share of the eigenvalues of WᵀW below x, any shape."""
    _, c, y = _standard(x, shape, var)
    return np.asarray(marchenko_pastur_law(y, c)[0])


def _standard(x: ArrayLike, shape: tuple[int, int], var: float) -> tuple[int, float, _Floats]:
    if not (min(shape) >= 1 and var > 0.0):
        raise ValueError(f"shape, var: wanted positive numbers, got {shape}, {var}")
    d_max = max(shape)
    return d_max, min(shape) / d_max, as_float64(x) / (var * d_max)


def _checked(values: ArrayLike, shape: tuple[int, int], name: str) -> _Floats:
    x = values if isinstance(values, np.ndarray) and values.dtype == np.float64 else as_float64(values)
    if len(shape) != 2 or min(shape) < 0:
        raise ValueError(f"shape: wanted (m, n), got {shape}")
    if x.shape != (min(shape),):
        raise ValueError(f"{name}: wanted the {min(shape)} eigenvalues of a matrix of shape {tuple(shape)}, got an array of shape {x.shape}")
    return x


def _what_is_wrong(arrays: list[_Floats], block: list[int]) -> str:
    for i in block:
        bad = np.flatnonzero(~(np.isfinite(arrays[i]) & (arrays[i] >= 0.0)))
        if bad.size:
            name = "evals" if len(arrays) == 1 else f"evals[{i}]"
            return f"{name}: wanted finite numbers >= 0, got {arrays[i][bad[0]]} at index {bad[0]}"
    raise AssertionError("called without a bad value")


def _why_unresolved(x: _Floats) -> list[str]:
    """Why no law can be fitted to each of the ascending rows; empty where one can."""
    d_min = x.shape[1]
    if d_min == 0:
        return ["no values"] * len(x)
    few = f"{d_min} values, at least {MIN_BULK} wanted" if d_min < MIN_BULK else ""
    half = few or "half of the values or more are zero"
    return ["zero matrix" if top == 0.0 else half if few or low == 0.0 else "" for top, low in zip(x[:, -1], x[:, (d_min - 1) // 2], strict=True)]


def _fit_block(x: _Floats, d_max: int, q: float, level: float, n_matrices: int) -> list[MarchenkoPasturFit]:
    """x: (spectra, d_min) ascending, positive at the median, of matrices of one shape."""
    count, d_min = x.shape
    # In units of the median nothing overflows, and a power of two changes no bit of the rest.
    unit = 0.5 * x[:, (d_min - 1) // 2] + 0.5 * x[:, d_min // 2]
    with np.errstate(over="ignore"):
        y = np.minimum(x / unit[:, None], np.finfo(np.float64).max / 16)
    kernel, _ = select("marchenko_pastur")
    log_var, distance, k, rounds, settled = kernel(y, d_max, -math.log(_median(d_max, d_min)), q, min_bulk=MIN_BULK)
    var = unit * np.exp(log_var)
    mu, scale = (var * part for part in _centre(d_max - k, d_min - k))
    lower, upper = (var * np.square(np.sqrt(d_max - k) + sign * np.sqrt(d_min - k)) for sign in (-1, 1))
    threshold = mu + q * scale
    n_spikes = (x > threshold[:, None]).sum(axis=1)
    numbers = zip(*(part.tolist() for part in (var, lower, upper, threshold, mu, scale, upper / x[:, -1], distance, rounds, n_spikes)), strict=True)
    fits = []
    reasons = _no_bulk(d_min, k, rounds, settled)
    for row, why, (v, low, up, limit, centre, width, soft, far, made, spikes) in zip(x, reasons, numbers, strict=True):
        if why:
            fits.append(mp_unresolved(why, level, n_matrices))
        else:
            top = row[d_min - spikes :][::-1].copy()
            fits.append(MarchenkoPasturFit(v, low, up, spikes, top, limit, centre, width, soft, far, made, level, n_matrices))
    return fits


def _no_bulk(d_min: int, k: NDArray[np.int64], rounds: NDArray[np.int64], settled: NDArray[np.bool_]) -> list[str]:
    """Why each spectrum has no bulk; empty where it has one."""
    reasons = [""] * len(k)
    for i in np.flatnonzero(~settled):
        if 2 * k[i] > d_min:
            reasons[i] = f"{k[i]} of {d_min} values rise above the law of the rest: there is no bulk"
        elif d_min - k[i] < MIN_BULK:
            reasons[i] = f"{k[i]} of {d_min} values rise above the law of the rest: fewer than {MIN_BULK} are left for the bulk"
        else:
            reasons[i] = f"the number of spikes did not settle in {rounds[i]} rounds"
    return reasons


def _centre(d_max: NDArray[np.int64], d_min: NDArray[np.int64]) -> tuple[_Floats, _Floats]:
    """tracy_widom_centre of many shapes."""
    a, b = np.sqrt(d_max - 0.5), np.sqrt(d_min - 0.5)
    return np.square(a + b), (a + b) * (1.0 / a + 1.0 / b) ** (1.0 / 3.0)


def _median(d_max: int, d_min: int) -> float:
    """Of the law, in units of evals with var = 1, by bisection of the distribution function over theta."""
    c = d_min / d_max
    low, high = 0.0, math.pi
    for _ in range(30):  # a start for the fit: 1e-9 is plenty
        theta = 0.5 * (low + high)
        sine, cosine = math.sqrt(c) * math.sin(theta), math.sqrt(c) * math.cos(theta)
        below = sine + c * theta - (1.0 - c) * math.atan2(sine, 1.0 - cosine) < 0.5 * math.pi * c
        low, high = (theta, high) if below else (low, theta)
    return d_max * (1.0 + c - 2.0 * math.sqrt(c) * math.cos(low))
