"""From measured numbers to findings a person can act on. Every "large", "many" and "few" is a row of THRESHOLDS with its source."""

from .features import collapse_findings
from .finding import SEVERITIES, Finding
from .stability import Stability, stability_of
from .thresholds import THRESHOLDS
from .training import curvature_findings, gradient_findings
from .weights import weight_findings

__all__ = [
    "SEVERITIES",
    "THRESHOLDS",
    "Finding",
    "Stability",
    "collapse_findings",
    "curvature_findings",
    "gradient_findings",
    "stability_of",
    "weight_findings",
]
