"""Distances between two distributions of finitely many values, as staircases: values (m,) and weights (m,) of sum 1 each."""

from __future__ import annotations

from typing import Any

import numpy as np


def wasserstein(a: Any, wa: Any, b: Any, wb: Any) -> float:
    """W1 of two staircases: the area between their distribution functions."""
    x = np.sort(np.concatenate([a, b]))
    fa, fb = (np.concatenate([[0], np.cumsum(w[np.argsort(v)])])[np.searchsorted(np.sort(v), x, side="right")] for v, w in ((a, wa), (b, wb)))
    return float(np.sum(np.abs(fa - fb)[:-1] * np.diff(x)))


def levy(a: Any, wa: Any, b: Any, wb: Any, unit: float) -> float:
    """Levy distance, the abscissa in units of ``unit``: the least eps with F(x - eps) - eps <= G(x) <= F(x + eps) + eps."""
    a, b = a / unit, b / unit

    def cdf(v: Any, w: Any, x: Any, side: Any) -> Any:
        order = np.argsort(v)
        return np.concatenate([[0], np.cumsum(w[order])])[np.searchsorted(v[order], x, side=side)]

    low, high = 0.0, 1.0
    x = np.concatenate([a, b])
    for _ in range(40):
        eps = (low + high) / 2
        points = np.concatenate([x, x - eps, x + eps])
        held = all(
            (cdf(b, wb, points, side) <= cdf(a, wa, points + eps, side) + eps + 1e-12).all()
            and (cdf(a, wa, points - eps, side) - eps <= cdf(b, wb, points, side) + 1e-12).all()
            for side in ("left", "right")
        )
        low, high = (low, eps) if held else (eps, high)
    return high
