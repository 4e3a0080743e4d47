"""Spectra of Gaussian matrices without the matrices: exact in distribution, at the cost of a tridiagonal eigenvalue problem."""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal

# 12 shapes, Q = 1 to 50
SHAPES = [(32, 32), (64, 64), (400, 400), (70, 64), (64, 96), (256, 128), (50, 200), (800, 200), (320, 32), (1000, 40), (64, 2048), (1600, 32)]


def gaussian_evals(seed: int | tuple[int, ...], shape: tuple[int, int]) -> np.ndarray:
    """Eigenvalues of WᵀW, descending, of a matrix of standard normal entries (Dumitriu & Edelman 2002, beta = 1): L Lᵀ for a lower bidiagonal L with
    independent chi variables, of d_max, d_max - 1, ... degrees of freedom on the diagonal and d_min - 1, ..., 1 below it."""
    rng = np.random.default_rng(seed)
    d_max, d_min = max(shape), min(shape)
    diagonal = np.sqrt(rng.chisquare(np.arange(d_max, d_max - d_min, -1)))
    below = np.sqrt(rng.chisquare(np.arange(d_min - 1, 0, -1)))
    return np.maximum(eigvalsh_tridiagonal(diagonal**2 + np.append(0.0, below) ** 2, diagonal[:-1] * below)[::-1], 0.0)
