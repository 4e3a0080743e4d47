"""Neural collapse at the input of a classifier, and of any other layers."""

from .analysis import GLOBAL_MEANS, neural_collapse
from .result import LayerCollapse, NeuralCollapse

__all__ = ["GLOBAL_MEANS", "LayerCollapse", "NeuralCollapse", "neural_collapse"]
