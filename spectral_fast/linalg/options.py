"""Numbers given as arguments, checked once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["seed_number", "whole_number"]


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """``value`` as an int. Raises ValueError naming the argument for what is no integer (3.0 is one, True is none) or below ``least``."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or int(value) != value or value < least:
        wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise ValueError(f"{name}: wanted {wanted}, got {value!r}")
    return int(value)


def seed_number(seed: Any) -> None:
    """Raises ValueError unless ``seed`` is an integer of [0, 2**64)."""
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed: wanted an integer of at least 0, got {seed!r}")
    if seed >= 1 << 64:
        raise ValueError(f"seed: wanted less than 2**64, got {seed}")
