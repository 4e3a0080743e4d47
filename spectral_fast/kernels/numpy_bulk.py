"""The bulk of spectra by the Marchenko-Pastur law, in numpy; part of ``numpy_kernels``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["marchenko_pastur", "marchenko_pastur_law"]

_MAX_ROUNDS = 50  # fits with another number of spikes; two or three are usual for random matrices
_MAX_STEPS = 60  # least-squares steps of one fit; three to five are usual
_CLOSE = 1e-3  # last step in ln(var), in units of the standard error sqrt(2 / (d_max d_min)) that any estimate of it has

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def marchenko_pastur(values: F64, d_max: int, start: float, quantile: float, *, min_bulk: int) -> tuple[F64, F64, I64, I64, NDArray[np.bool_]]:
    """Variance of the bulk of every spectrum by the Marchenko-Pastur law, and the number of spikes above it.

    values: (spectra, d_min) float64, each row the eigenvalues of WᵀW of a matrix of sides d_max >= d_min >= 1, ascending, >= 0 and finite,
    C-contiguous. start: where the search for ln(var) begins. quantile: q of the threshold. min_bulk: values a bulk needs.

    Fit the n = d_min - k smallest values of a row as those of a matrix of sides D = d_max - k and n, beginning with k = 0: ln(var) is where
    sum_j (F(x_j) - (j + 1/2)/n)² is least, F the expected distribution function: the law (:func:`marchenko_pastur_law`), and to next order in 1/n
    (1/4 - theta/(2 pi))/n, the real entries' shift of mass from the bulk to the edges (Bai & Silverstein 2004, eq. 1.20 as a density). Without it
    var of a 64 x 64 matrix is 0.4 % too small. Gauss-Newton with the derivative of the law alone; a step that does not reduce the sum is halved.
    Then k becomes the number of values above var (mu + q scale), mu and scale the Tracy-Widom centre and scale of (D, n) (Johnstone & Ma 2012),
    until it is stable: k rises to its place; once it has fallen it may only fall, so that no sequence runs in a circle.

    Returns (log_var, distance, spikes, rounds, settled), (spectra,) each. distance: Kolmogorov-Smirnov distance of the bulk from the law at the last
    step taken; spikes: k; rounds: fits made. settled: False where there is no bulk: k, then the number that would have to go next, is more
    than half of the values, leaves fewer than min_bulk, or did not settle in 50 rounds.

    Accuracy: the last step, left out, is below 1e-3 of the standard error sqrt(2/(D n)) of ln(var). Of 100 Gaussian matrices none ends farther than
    0.005 of it from the zero of sum_j (dF/d ln(var))_j (F(x_j) - (j + 1/2)/n) for n >= 64, than 0.04 for n = 10. Backends agree to 1e-11
    where they take the same steps. A spectrum's result does not depend on the others.
    Errors: ValueError for sides that do not fit the values, or min_bulk < 1.
    """
    spectra, d_min = values.shape
    if not 1 <= d_min <= d_max:
        raise ValueError(f"d_max: wanted at least as much as there are values, at least one, got {d_max}")
    if min_bulk < 1:
        raise ValueError(f"min_bulk: wanted at least 1, got {min_bulk}")
    log_var, distance = np.full(spectra, float(start)), np.zeros(spectra)
    k, rounds = np.zeros(spectra, dtype=np.int64), np.zeros(spectra, dtype=np.int64)
    settled, rising = np.ones(spectra, dtype=bool), np.ones(spectra, dtype=bool)
    active = np.arange(spectra)
    while active.size:
        big, small = d_max - k[active], d_min - k[active]
        log_var[active], distance[active] = _least_squares(values[active], big, small, log_var[active])
        rounds[active] += 1
        a, b = np.sqrt(big - 0.5), np.sqrt(small - 0.5)
        threshold = np.exp(log_var[active]) * (np.square(a + b) + quantile * (a + b) * (1.0 / a + 1.0 / b) ** (1.0 / 3.0))
        above = (values[active] > threshold[:, None]).sum(axis=1)
        moves = (above != k[active]) & (rising[active] | (above < k[active]))
        rising[active] &= above > k[active]
        active, above = active[moves], above[moves]
        k[active] = above
        settled[active] = (2 * above <= d_min) & (d_min - above >= min_bulk) & (rounds[active] < _MAX_ROUNDS)
        active = active[settled[active]]
    return log_var, distance, k, rounds, settled


def _least_squares(values: F64, d_max: I64, d_min: I64, start: F64) -> tuple[F64, F64]:
    """ln(var) of every row's bulk, its d_min smallest values, and its distance from the law."""
    spectra, width = values.shape
    j = np.arange(width, dtype=np.float64)
    log_var, cost, step = start.copy(), np.full(spectra, np.inf), np.zeros(spectra)
    distance = np.zeros(spectra)
    close = _CLOSE * np.sqrt(2.0 / d_max / d_min)
    active = np.arange(spectra)
    for _ in range(_MAX_STEPS):
        n, big = d_min[active].astype(np.float64)[:, None], d_max[active].astype(np.float64)[:, None]
        bulk = j < n
        tried = log_var[active] + step[active]
        law, slope, theta = marchenko_pastur_law(values[active] * np.exp(-tried)[:, None] / big, n / big)
        residual = np.where(bulk, law + (0.25 - theta / (2.0 * math.pi) - j - 0.5) / n, 0.0)
        slope = np.where(bulk, slope, 0.0)
        total = np.square(residual).sum(axis=1)
        better = total < cost[active]
        curvature = np.square(slope).sum(axis=1)
        newton = np.divide((slope * residual).sum(axis=1), curvature, out=np.zeros_like(total), where=curvature > 0.0)
        at = active[better]
        log_var[at], cost[at], step[at] = tried[better], total[better], np.clip(newton[better], -1.0, 1.0)
        distance[at] = np.where(bulk, np.abs(law - (j + 0.5) / n) + 0.5 / n, 0.0).max(axis=1)[better]
        step[active[~better]] *= 0.5
        active = active[np.abs(step[active]) > close[active]]
        if not active.size:
            break
    return log_var, distance


def marchenko_pastur_law(y: F64, c: Any) -> tuple[F64, F64, F64]:
    """(distribution function, -d/d ln(var) of it, theta) at y = evals/(var d_max), c = d_min/d_max.

    With y = 1 + c - 2 sqrt(c) cos(theta), theta in [0, pi], the integral of the density is elementary:
    (sqrt(c) sin(theta) + c theta - (1 - c) psi)/(pi c), tan(psi) = sqrt(c) sin(theta)/(1 - sqrt(c) cos(theta)); y times the density is
    sin(theta)/(pi sqrt(c)). Nothing is singular, at c = 1 neither.
    """
    root = np.sqrt(c)
    cosine = np.clip((1.0 + c - y) / (2.0 * root), -1.0, 1.0)
    theta = np.arccos(cosine)
    sine = np.sqrt((1.0 - cosine) * (1.0 + cosine))
    psi = np.arctan2(root * sine, 1.0 - root * cosine)
    return (root * sine + c * theta - (1.0 - c) * psi) / (math.pi * c), sine / (math.pi * root), theta
