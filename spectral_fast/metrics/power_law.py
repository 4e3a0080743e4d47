"""Power-law tail of a spectrum: exponent, where the tail begins, and how well it fits.

Clauset, Shalizi & Newman, "Power-law distributions in empirical data" (SIAM Review 51, 2009); for the spectra of weight
matrices Martin & Mahoney, "Implicit self-regularization in deep neural networks" (JMLR 22, 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..kernels.select import select
from ..linalg.arrays import as_float64, as_numpy, as_tensor, device_of, dtype_name
from ..linalg.options import seed_number

__all__ = ["MIN_VALUES", "PowerLawCurve", "PowerLawFit", "alpha_weighted", "fit_power_law", "fit_power_laws", "log_alpha_norm"]

MIN_VALUES = 8  # fewer say nothing about a tail
# Standard deviation of the Kolmogorov distribution, sqrt(pi²/12 - pi/2 ln²(2)): how much sqrt(n) D of n values varies by chance.
_KS_NOISE = math.sqrt(math.pi**2 / 12.0 - math.pi / 2.0 * math.log(2.0) ** 2)
_BATCH = 1 << 22  # values in one kernel call of the bootstrap: about 200 MB with its work arrays
_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PowerLawCurve:
    """What every possible start gave; three float64 arrays of one length, one entry per kept value but the last.

    alpha: exponent; inf where the whole tail is one value. D: Kolmogorov-Smirnov distance; NaN there. xmin: the start.
    """

    alpha: _Floats
    D: _Floats
    xmin: _Floats


_NO_CURVE = PowerLawCurve(np.empty(0), np.empty(0), np.empty(0))


@dataclass(frozen=True, eq=False)
class PowerLawFit:
    """The tail p(x) ~ x^-alpha, x >= xmin, of one spectrum.

    alpha, xmin: exponent and start; scaling the values scales xmin and leaves alpha.
    D:        Kolmogorov-Smirnov distance of the tail from the fit, the smallest over all starts.
    stderr:   of alpha, (alpha - 1) / sqrt(n_tail) (Clauset et al. 2009, eq. 3.2).
    n_tail:   values in the tail; n_values: values above the threshold; index: of xmin among these, ascending.
    curve:    alpha and D of every start.
    p_value:  share of synthetic data sets that fit worse; None when not asked for. Below 0.1 a power law is implausible.
    alpha_range, xmin_range: least and largest alpha and xmin of all starts that fit as well as the best but for chance: D within 0.26/sqrt(n_tail)
              of the smallest, 0.26 the standard deviation of the Kolmogorov distribution (ours). A wide range says that alpha hangs on the
              choice of xmin, which stderr does not see; it is no confidence interval.
    status:   "ok", or "unresolved" with the reason; then alpha, xmin, D and stderr are NaN, n_tail 0 and index -1.
    backend:  the kernel that computed it; "none" where nothing was computed.
    """

    alpha: float
    xmin: float
    D: float
    stderr: float
    n_tail: int
    n_values: int
    index: int
    curve: PowerLawCurve = field(repr=False)
    p_value: float | None = None
    status: Literal["ok", "unresolved"] = "ok"
    reason: str = ""
    backend: str = "none"
    alpha_range: tuple[float, float] = (math.nan, math.nan)
    xmin_range: tuple[float, float] = (math.nan, math.nan)


def fit_power_law(
    evals: ArrayLike,
    *,
    threshold: float = 0.0,
    xmin: float | None = None,
    p_value: bool = False,
    n_bootstrap: int = 100,
    seed: int = 0,
    backend: str = "auto",
) -> PowerLawFit:
    """Fit the tail of one spectrum.

    evals: (n,) eigenvalues in any order; those above ``threshold`` (same unit) count.
    xmin: where the tail begins, when it is known; None: the start of smallest D. Given, values >= xmin are the tail, and ``curve`` holds this start.
    p_value: also compare with ``n_bootstrap`` synthetic data sets (semi-parametric bootstrap, Clauset et al. 2009, section 4.1);
    ``seed`` fixes them. The p-value's standard error is at most 1 / (2 sqrt(n_bootstrap)). With xmin given it is uniform for data from a law.
    With xmin found it is conservative, as the paper's procedure is (mean 0.57, and p < 0.1 in 4 to 8 % of data that follow a law from their first
    value on): the data chose among starts that the synthetic sets, whose body is the data's, do not have. A log-normal tail passes unless there are
    thousands of values: no p-value proves a power law.
    backend: "auto", "native" or "numpy". Of a tensor on a GPU all starts are tried there, those of synthetic data sets too; the result is the host's.
    Errors: ValueError for values that are not finite, a negative threshold, an xmin not above it, n_bootstrap < 1 or an unknown backend.
    """
    seed_number(seed)
    if n_bootstrap < 1:
        raise ValueError(f"n_bootstrap: wanted at least 1, got {n_bootstrap}")
    kept = _kept(evals, threshold, "evals")
    if xmin is not None:
        if not (math.isfinite(xmin) and xmin > threshold):
            raise ValueError(f"xmin: wanted a finite number above the threshold {threshold}, got {xmin}")
        return _fit_from(kept, float(xmin), n_bootstrap if p_value else 0, seed)
    device = device_of(evals)
    fit = _fit([kept], backend, device)[0]
    return replace(fit, p_value=_bootstrap(kept, fit, n_bootstrap, seed, backend, device)) if p_value and fit.status == "ok" else fit


def fit_power_laws(evals: Sequence[ArrayLike], thresholds: Sequence[float] | float = 0.0, *, backend: str = "auto") -> list[PowerLawFit]:
    """Fit the tails of many spectra in one kernel call; each gets exactly what :func:`fit_power_law` gives it alone.

    evals: spectra of any lengths. thresholds: one for all or one for each. Errors: as for one spectrum, naming ``evals[i]``.
    """
    limits = [float(thresholds)] * len(evals) if isinstance(thresholds, (int, float)) else [float(t) for t in thresholds]
    if len(limits) != len(evals):
        raise ValueError(f"thresholds: wanted one or {len(evals)} numbers, got {len(limits)}")
    return _fit([_kept(e, t, f"evals[{i}]") for i, (e, t) in enumerate(zip(evals, limits, strict=True))], backend, _one_device(evals))


def _one_device(evals: Sequence[ArrayLike]) -> str:
    """That of the spectra where all are on the same one, else the CPU."""
    devices = {device_of(e) for e in evals}
    return devices.pop() if len(devices) == 1 else "cpu"


def alpha_weighted(alpha: float, lambda_max: float) -> float:
    """alpha log10(lambda_max) (Martin & Mahoney 2021); NaN for lambda_max <= 0."""
    return alpha * math.log10(lambda_max) if lambda_max > 0 else math.nan


def log_alpha_norm(evals: ArrayLike, alpha: float) -> float:
    """log10 of sum_i evals_i^alpha, evals: (n,) >= 0, without overflow for any alpha > 0 (Martin & Mahoney 2021); NaN for zeros only."""
    x = as_float64(evals)
    positive = x[x > 0]
    if not positive.size:
        return math.nan
    exponents = alpha * np.log(positive)
    top = float(exponents.max())
    return (top + math.log(float(np.exp(exponents - top).sum()))) / math.log(10.0)


def _kept(evals: Any, threshold: float, name: str) -> _Floats:
    """The values above the threshold, ascending, checked."""
    if dtype_name(evals).startswith("complex"):
        raise TypeError(f"{name}: wanted real numbers, got {dtype_name(evals)}")
    x = as_float64(evals)
    if x.ndim != 1:
        raise ValueError(f"{name}: wanted a one-dimensional array, got shape {x.shape}")
    bad = np.flatnonzero(~np.isfinite(x))
    if bad.size:
        raise ValueError(f"{name}: wanted finite numbers, got {x[bad[0]]} at index {bad[0]}")
    if not (math.isfinite(threshold) and threshold >= 0.0):
        raise ValueError(f"threshold: wanted a finite number >= 0, got {threshold}")
    return np.sort(x[x > threshold])


def _why_unresolved(kept: _Floats) -> str:
    if kept.size < MIN_VALUES:
        return f"{kept.size} values above the threshold, at least {MIN_VALUES} wanted"
    return "all values are equal" if kept[0] == kept[-1] else ""


def _fit(spectra: list[_Floats], backend: str, device: str) -> list[PowerLawFit]:
    """The kernel runs on ``device``; spectra and fits are the host's."""
    kernel, name = select("power_law", backend, device)
    reasons = [_why_unresolved(x) for x in spectra]
    fitted = [x for x, reason in zip(spectra, reasons, strict=True) if not reason]
    offsets = np.cumsum([0, *(x.size for x in fitted)], dtype=np.int64)
    values = np.concatenate(fitted) if fitted else np.empty(0)
    if device == "cpu":
        alpha, D, best = kernel(values, offsets)
    else:
        alpha, D, best = (as_numpy(x) for x in kernel(as_tensor(values).to(device), as_tensor(offsets).to(device)))
    results, next_fitted = [], 0
    for x, reason in zip(spectra, reasons, strict=True):
        if reason:
            nan = math.nan
            results.append(PowerLawFit(nan, nan, nan, nan, 0, x.size, -1, _NO_CURVE, status="unresolved", reason=reason))
            continue
        starts = slice(int(offsets[next_fitted]), int(offsets[next_fitted + 1]) - 1)
        # copies: a view would keep the arrays of the whole batch alive
        curve = PowerLawCurve(alpha[starts].copy(), D[starts].copy(), x[:-1].copy())
        i = int(best[next_fitted])
        if i > 0 and x[i] == x[i - 1]:  # a tail holds all values from its start on: the best start that is the first of equal ones
            first = np.r_[True, x[1:-1] != x[:-2]]
            i = int(np.nanargmin(np.where(first, curve.D, np.nan)))
        n_tail, a = x.size - i, float(curve.alpha[i])
        alphas, xmins = _as_good(curve, float(curve.D[i]), n_tail)
        results.append(
            PowerLawFit(
                a,
                float(x[i]),
                float(curve.D[i]),
                (a - 1.0) / math.sqrt(n_tail),
                n_tail,
                x.size,
                i,
                curve,
                backend=name,
                alpha_range=alphas,
                xmin_range=xmins,
            )
        )
        next_fitted += 1
    return results


def _as_good(curve: PowerLawCurve, D: float, n_tail: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ranges of alpha and xmin over the starts that differ from the best by no more than chance."""
    good = curve.D <= D + _KS_NOISE / math.sqrt(n_tail)  # NaN, a tail of equal values, is never good
    alpha, xmin = curve.alpha[good], curve.xmin[good]
    return (float(alpha.min()), float(alpha.max())), (float(xmin[0]), float(xmin[-1]))


def _fit_from(kept: _Floats, xmin: float, n_bootstrap: int, seed: int) -> PowerLawFit:
    """The fit of the values >= xmin, xmin known; by the formulas of the kernel for one start."""
    tail = kept[kept >= xmin]
    nan = math.nan
    if tail.size < MIN_VALUES or tail[0] == tail[-1]:
        why = "all values from xmin on are equal" if tail.size >= MIN_VALUES else f"{tail.size} values from xmin on, at least {MIN_VALUES} wanted"
        return PowerLawFit(nan, nan, nan, nan, 0, kept.size, -1, _NO_CURVE, status="unresolved", reason=why)
    alpha, D = (float(v[0]) for v in _one_start(np.log(tail[None] / xmin)))
    p = None
    if n_bootstrap:
        # ln(x/xmin) of the law is exponential with mean 1/(alpha - 1), and D does not see the mean: the test is exact
        logs = np.sort(np.random.default_rng(seed).standard_exponential((n_bootstrap, tail.size)), axis=1)
        p = float(np.mean(_one_start(logs)[1] >= D))
    curve = PowerLawCurve(np.array([alpha]), np.array([D]), np.array([xmin]))
    return PowerLawFit(
        alpha,
        xmin,
        D,
        (alpha - 1.0) / math.sqrt(tail.size),
        tail.size,
        kept.size,
        kept.size - tail.size,
        curve,
        p,
        backend="numpy",
        alpha_range=(alpha, alpha),
        xmin_range=(xmin, xmin),
    )


def _one_start(logs: _Floats) -> tuple[_Floats, _Floats]:
    """alpha and D of tails given as ln(x/xmin), (sets, n) ascending."""
    n = logs.shape[1]
    slope = n / logs.sum(axis=1)
    return 1.0 + slope, np.asarray(np.abs(-np.expm1(-slope[:, None] * logs) - np.arange(n) / n).max(axis=1))


def _bootstrap(kept: _Floats, fit: PowerLawFit, n_bootstrap: int, seed: int, backend: str, device: str) -> float:
    """Share of synthetic data sets whose own best D is at least the data's.

    Each value of a synthetic set comes with probability n_tail/n from the fitted tail, otherwise from the data below xmin.
    """
    rng = np.random.default_rng(seed)
    n, body = kept.size, kept[: fit.index]
    worse = done = 0
    while done < n_bootstrap:
        count = min(n_bootstrap - done, max(1, _BATCH // n))
        sets = []
        for _ in range(count):
            n_tail = int(rng.binomial(n, fit.n_tail / n))
            with np.errstate(over="ignore"):  # an exponent close to 1 draws values beyond float64; the largest stands for them
                tail = np.minimum(fit.xmin * (1.0 - rng.random(n_tail)) ** (-1.0 / (fit.alpha - 1.0)), np.finfo(np.float64).max)
            sets.append(np.sort(np.concatenate((tail, rng.choice(body, n - n_tail) if body.size else tail[:0]))))
        # a set of equal values has no D (NaN) and counts as a better fit: it cannot speak against the data
        worse += sum(f.D >= fit.D for f in _fit(sets, backend, device))
        done += count
    return worse / n_bootstrap
