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
from ..linalg.arrays import as_float64

__all__ = ["MIN_VALUES", "PowerLawCurve", "PowerLawFit", "alpha_weighted", "fit_power_law", "fit_power_laws", "log_alpha_norm"]

MIN_VALUES = 8  # fewer say nothing about a tail
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


def fit_power_law(
    evals: ArrayLike, *, threshold: float = 0.0, p_value: bool = False, n_bootstrap: int = 100, seed: int = 0, backend: str = "auto"
) -> PowerLawFit:
    """Fit the tail of one spectrum.

    evals: (n,) eigenvalues in any order; those above ``threshold`` (same unit) count.
    p_value: also compare with ``n_bootstrap`` synthetic data sets (semi-parametric bootstrap, Clauset et al. 2009, section 4.1);
    ``seed`` fixes them. The p-value's standard error is at most 1 / (2 sqrt(n_bootstrap)).
    backend: "auto", "native" or "numpy".
    Errors: ValueError for values that are not finite, a negative threshold, n_bootstrap < 1 or an unknown backend.
    """
    if n_bootstrap < 1:
        raise ValueError(f"n_bootstrap: wanted at least 1, got {n_bootstrap}")
    kept = _kept(evals, threshold, "evals")
    fit = _fit([kept], backend)[0]
    return replace(fit, p_value=_bootstrap(kept, fit, n_bootstrap, seed, backend)) if p_value and fit.status == "ok" else fit


def fit_power_laws(evals: Sequence[ArrayLike], thresholds: Sequence[float] | float = 0.0, *, backend: str = "auto") -> list[PowerLawFit]:
    """Fit the tails of many spectra in one kernel call; each gets exactly what :func:`fit_power_law` gives it alone.

    evals: spectra of any lengths. thresholds: one for all or one for each. Errors: as for one spectrum, naming ``evals[i]``.
    """
    limits = [float(thresholds)] * len(evals) if isinstance(thresholds, (int, float)) else [float(t) for t in thresholds]
    if len(limits) != len(evals):
        raise ValueError(f"thresholds: wanted one or {len(evals)} numbers, got {len(limits)}")
    return _fit([_kept(e, t, f"evals[{i}]") for i, (e, t) in enumerate(zip(evals, limits, strict=True))], backend)


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


def _fit(spectra: list[_Floats], backend: str) -> list[PowerLawFit]:
    kernel, name = select("power_law", backend)
    reasons = [_why_unresolved(x) for x in spectra]
    fitted = [x for x, reason in zip(spectra, reasons, strict=True) if not reason]
    offsets = np.cumsum([0, *(x.size for x in fitted)], dtype=np.int64)
    alpha, D, best = kernel(np.concatenate(fitted) if fitted else np.empty(0), offsets)
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
        n_tail, a = x.size - i, float(curve.alpha[i])
        results.append(PowerLawFit(a, float(x[i]), float(curve.D[i]), (a - 1.0) / math.sqrt(n_tail), n_tail, x.size, i, curve, backend=name))
        next_fitted += 1
    return results


def _bootstrap(kept: _Floats, fit: PowerLawFit, n_bootstrap: int, seed: int, backend: str) -> float:
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
        worse += sum(f.D >= fit.D for f in _fit(sets, backend))
        done += count
    return worse / n_bootstrap
