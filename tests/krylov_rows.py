"""Rows of Krylov bases in every format they are kept in."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from spectral_fast.kernels import native_kernels

LEVELS = native_kernels.levels()
FORMATS = ["float64", "float32", "uint16"]  # uint16: bfloat16
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "uint16": 2.0**-8}  # largest relative error of rounding to nearest


def stored(x: Any, kind: str) -> np.ndarray:
    if kind == "uint16":
        return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    return np.asarray(x).astype(kind)


def numbers(rows: np.ndarray) -> np.ndarray:
    return rows.view(ml_dtypes.bfloat16).astype(np.float64) if rows.dtype == np.uint16 else rows.astype(np.float64)
