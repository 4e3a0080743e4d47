"""Hessian and Gauss-Newton spectra of a network's loss."""

from __future__ import annotations

from .analysis import curvature
from .operators import GGN, Hessian
from .spectra import CurvatureSpectra

__all__ = ["GGN", "CurvatureSpectra", "Hessian", "curvature"]
