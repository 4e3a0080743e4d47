"""How the gradients of single samples differ."""

from .analysis import UNITS, gradient_covariance
from .operator import GradientCovariance, top_directions
from .result import GradientSpectrum, LayerGradient

__all__ = ["UNITS", "GradientCovariance", "GradientSpectrum", "LayerGradient", "gradient_covariance", "top_directions"]
