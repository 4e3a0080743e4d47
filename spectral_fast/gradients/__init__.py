"""How the gradients of single samples differ."""

from .analysis import UNITS, gradient_covariance
from .result import GradientSpectrum, LayerGradient

__all__ = ["UNITS", "GradientSpectrum", "LayerGradient", "gradient_covariance"]
