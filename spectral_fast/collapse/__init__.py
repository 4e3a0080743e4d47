"""Neural collapse at the input of a classifier."""

from .analysis import GLOBAL_MEANS, neural_collapse
from .result import NeuralCollapse

__all__ = ["GLOBAL_MEANS", "NeuralCollapse", "neural_collapse"]
