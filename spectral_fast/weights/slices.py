"""Other cuts of a tensor than the matrices analysed: a convolution slice by slice, a fused block whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["cut_differently", "slice_values"]


def cut_differently(kind: str, matrix_shape: tuple[int, int], tensor_shape: tuple[int, ...]) -> bool:
    """Whether slices of the tensor are other matrices than the ones analysed: convolutions of more than one tap, 2-D tensors taken apart."""
    if len(tensor_shape) == 2:
        return math.prod(matrix_shape) != math.prod(tensor_shape)
    return kind == "conv" and math.prod(tensor_shape[2:]) > 1


def slice_values(tensor: NDArray[Any], kernel: Callable[[NDArray[Any]], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Singular values of W[:, :, i, j] for every (i, j), the last index fastest.

    tensor: (m, n, k_1, ..., k_d), d >= 0 (d = 0: one slice, the tensor itself). kernel: the op "singular_values".
    Returns (k_1 ... k_d, min(m, n)) float64, each row descending; NaN where a slice is not finite.
    """
    m, n = tensor.shape[:2]
    return kernel(np.moveaxis(tensor.reshape(m, n, -1), 2, 0))
