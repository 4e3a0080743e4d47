"""Other cuts of a tensor than the matrices analysed: a convolution slice by slice, a fused block whole."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .batches import SingularValues

__all__ = ["cut_differently", "slice_values"]


def cut_differently(kind: str, matrix_shape: tuple[int, int], tensor_shape: tuple[int, ...]) -> bool:
    """Whether slices of the tensor are other matrices than the ones analysed: convolutions of more than one tap, 2-D tensors taken apart."""
    if len(tensor_shape) == 2:
        return math.prod(matrix_shape) != math.prod(tensor_shape)
    return kind == "conv" and math.prod(tensor_shape[2:]) > 1


def slice_values(tensor: NDArray[Any], in_out: bool, values: SingularValues) -> NDArray[np.float64]:
    """Singular values of W[:, :, i, j] for every (i, j), the last index fastest.

    tensor: (out, in, k_1, ..., k_d), d >= 0 (d = 0: one slice, the tensor itself); in_out: it is (k_1, ..., k_d, in, out). values: what
    computes them.
    Returns (k_1 ... k_d, min(out, in)) float64, each row descending; NaN where a slice is not finite, all NaN where that fails.
    """
    slices = tensor.reshape(-1, *tensor.shape[-2:]) if in_out else np.moveaxis(tensor.reshape(*tensor.shape[:2], -1), 2, 0)
    try:
        return values(slices)[0]
    except (MemoryError, np.linalg.LinAlgError):
        return np.full((len(slices), min(slices.shape[1:])), np.nan)
