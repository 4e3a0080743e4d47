"""From measured numbers to findings a person can act on. Every "large", "many" and "few" is a row of THRESHOLDS with its source."""

from .finding import SEVERITIES, Finding
from .thresholds import THRESHOLDS
from .training import collapse_findings, curvature_findings, gradient_findings
from .weights import weight_findings

__all__ = ["SEVERITIES", "THRESHOLDS", "Finding", "collapse_findings", "curvature_findings", "gradient_findings", "weight_findings"]
