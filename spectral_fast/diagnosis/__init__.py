"""``diagnose``: four analyses of a model and its data, and what they mean."""

from .analyses import ANALYSES, BUDGETS, diagnose
from .result import Diagnosis

__all__ = ["ANALYSES", "BUDGETS", "Diagnosis", "diagnose"]
