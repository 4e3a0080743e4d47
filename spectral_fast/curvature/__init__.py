"""Hessian and Gauss-Newton spectra of a network's loss."""

from __future__ import annotations

from .analysis import CurvatureSpectra, curvature
from .operators import GGN, Hessian

__all__ = ["GGN", "CurvatureSpectra", "Hessian", "curvature"]
