"""The laws fitted to the spectra of a report: power-law tails and Marchenko-Pastur bulks, many matrices at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ldexp, log2, log10, nan

import numpy as np
from numpy.typing import NDArray

from ..metrics.marchenko_pastur import MarchenkoPasturFit, marchenko_pastur_fits, mp_unresolved
from ..metrics.power_law import PowerLawFit, fit_power_laws, log_alpha_norm

__all__ = ["TAIL_METRICS", "fit_bulks", "fit_tails", "tail_metrics"]

TAIL_METRICS = ("alpha_weighted", "log_alpha_norm")

_Spectra = Sequence[NDArray[np.float64]]


def fit_tails(spectra: _Spectra, floors: Sequence[float]) -> list[PowerLawFit]:
    """Power-law fits of s² above floor². spectra: values s, descending; floors: in units of s, one each."""
    shifts = [_shift(s) for s in spectra]
    squares = [np.ldexp(s, -e) ** 2 for s, e in zip(spectra, shifts, strict=True)]
    fits = fit_power_laws(squares, [ldexp(f, -e) ** 2 for f, e in zip(floors, shifts, strict=True)])
    return [_tail_scaled(fit, 2 * e) if e else fit for fit, e in zip(fits, shifts, strict=True)]


def tail_metrics(s: NDArray[np.float64], fit: PowerLawFit) -> dict[str, float]:
    """alpha_weighted = alpha log10 s_1² and log_alpha_norm = log10 sum s^(2 alpha) (Martin & Mahoney 2021), by the names of TAIL_METRICS.

    s: (d_min,) descending; all of it counts, not the tail alone. Both NaN where there is no fit (``fit.status``, ``fit.reason``).
    """
    if fit.status != "ok":
        return dict.fromkeys(TAIL_METRICS, nan)
    # scaled to s_1 between 1/2 and 1, so that the squares stay in range
    exponent = int(np.frexp(s[0])[1])
    unit = np.ldexp(s, -exponent)
    shift = 2.0 * exponent / log2(10.0)
    return {
        "alpha_weighted": fit.alpha * (2.0 * log10(float(unit[0])) + shift),
        "log_alpha_norm": log_alpha_norm(unit * unit, fit.alpha) + fit.alpha * shift,
    }


def fit_bulks(spectra: _Spectra, shapes: Sequence[tuple[int, int]], floors: Sequence[float], products: Sequence[bool]) -> list[MarchenkoPasturFit]:
    """Marchenko-Pastur fits of s²; the level is that of a report of so many matrices.

    floors: rounding noise in units of s: where half of the values are no larger, there is no bulk to fit. products: the matrix is a product of
    narrow factors, whose values follow another law.
    """
    count = max(1, len(spectra) - sum(products))
    results: list[MarchenkoPasturFit | None] = [None] * len(spectra)
    usable, shifts = [], []
    for i, (s, floor, product) in enumerate(zip(spectra, floors, products, strict=True)):
        if product:
            results[i] = mp_unresolved("a product of factors, not a matrix of independent entries", n_matrices=count)
        elif s.size and 0.0 < s[0] and s[s.size // 2] <= floor:
            results[i] = mp_unresolved("half of the values or more lie below the rounding noise", n_matrices=count)
        else:
            usable.append(i)
            shifts.append(_shift(s))
    squares = [np.ldexp(spectra[i], -e) ** 2 for i, e in zip(usable, shifts, strict=True)]
    for i, e, fit in zip(usable, shifts, marchenko_pastur_fits(squares, [shapes[i] for i in usable], n_matrices=count), strict=True):
        results[i] = fit.scaled(2 * e) if e else fit
    return [fit for fit in results if fit is not None]


def _shift(s: NDArray[np.float64]) -> int:
    """Power of two to divide by where the squares would overflow or vanish; neither fit sees one."""
    return 0 if not s.size or s[0] == 0 or 1e-100 < s[0] < 1e100 else int(np.frexp(s[0])[1])


def _tail_scaled(fit: PowerLawFit, exponent: int) -> PowerLawFit:
    with np.errstate(over="ignore", under="ignore"):  # the square itself may be beyond float64; then it is inf
        xmin, low, high = (float(np.ldexp(v, exponent)) for v in (fit.xmin, *fit.xmin_range))
        return replace(fit, xmin=xmin, xmin_range=(low, high), curve=replace(fit.curve, xmin=np.ldexp(fit.curve.xmin, exponent)))
