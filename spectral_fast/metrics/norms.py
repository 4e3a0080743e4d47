"""Norms, conditioning and effective dimensions of a spectrum. Formulas: definitions in each line, sources in the docstring."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["SPECTRUM_METRICS", "spectrum_metrics"]

SPECTRUM_METRICS = (
    "spectral_norm",
    "s_min",
    "lambda_max",
    "condition_number",
    "gram_condition_number",
    "frobenius",
    "stable_rank",
    "effective_rank",
    "participation_ratio",
    "spectral_entropy",
)


def spectrum_metrics(s: NDArray[np.float64]) -> dict[str, float]:
    """Numbers of one spectrum that need no tolerance.

    s: (d_min,) float64 singular values, descending, finite.

    Returns a float per name of :data:`SPECTRUM_METRICS`; all NaN for a zero matrix or an empty spectrum.

    spectral_norm s_1; s_min s_dmin; lambda_max s_1²; condition_number s_1/s_dmin (inf when s_dmin = 0) and its square, that of W Wᵀ
    without the structural zeros; frobenius sqrt(sum s²); stable_rank sum s²/s_1² (Rudelson & Vershynin 2007); effective_rank
    exp(-sum p ln p), p = s/sum s (Roy & Vetterli 2007); participation_ratio (sum s²)²/sum s⁴; spectral_entropy -sum p ln p/ln d_min,
    p = s²/sum s² (0 for d_min = 1).
    """
    if s.size == 0 or s[0] == 0.0:
        return dict.fromkeys(SPECTRUM_METRICS, float("nan"))
    # Everything but the norms is scale-free, so work with s/s_1: squares and fourth powers then neither overflow nor vanish.
    top = float(s[0])
    unit = s / top
    evals = unit * unit
    total = float(evals.sum())
    condition = float(np.divide(1.0, unit[-1])) if unit[-1] > 0 else float("inf")
    return {
        "spectral_norm": top,
        "s_min": float(s[-1]),
        "lambda_max": top * top,
        "condition_number": condition,
        "gram_condition_number": condition * condition,
        "frobenius": top * float(np.sqrt(total)),
        "stable_rank": total,
        "effective_rank": float(np.exp(_entropy(unit / unit.sum()))),
        "participation_ratio": total * total / float((evals * evals).sum()),
        "spectral_entropy": _entropy(evals / total) / float(np.log(s.size)) if s.size > 1 else 0.0,
    }


def _entropy(p: NDArray[np.float64]) -> float:
    """-sum p ln p with 0 ln 0 = 0."""
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())
