"""What a finding is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["SEVERITIES", "Analysis", "Finding", "Severity"]

Severity = Literal["info", "warning", "severe"]
Analysis = Literal["weights", "gradients", "curvature", "collapse"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "severe")


@dataclass(frozen=True)
class Finding:
    """A measured pattern, read.

    severity: "info", "warning" or "severe". where: tensor, module or analysis. title: the reading in a few words. evidence: the numbers.
    comparison: what the baseline, a random matrix of the shape or the layers of the same role show. advice: what to do. source: who says so.
    """

    severity: Severity
    where: str
    title: str
    evidence: str
    comparison: str
    advice: str
    source: str
    analysis: Analysis
