"""Hessian and Gauss-Newton spectra of a network's loss."""

from __future__ import annotations

from .operators import GGN, Hessian

__all__ = ["GGN", "Hessian"]
