"""Models and data made ready for analysis; nothing they are is changed."""

from __future__ import annotations

from .batches import Batch, Batches, call_model, logits_of
from .capture import capture_inputs, find_classifier
from .losses import Loss, resolve_loss
from .operator import ModelOperator, select_parameters
from .state import eval_notes, keep_rng, leave_no_trace

__all__ = [
    "Batch",
    "Batches",
    "Loss",
    "ModelOperator",
    "call_model",
    "capture_inputs",
    "eval_notes",
    "find_classifier",
    "keep_rng",
    "leave_no_trace",
    "logits_of",
    "resolve_loss",
    "select_parameters",
]
