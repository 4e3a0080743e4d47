"""The compiled product of a layer's gradients, by the algorithm that takes fewer operations."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.select import select
from .layer_grams import GramKernel, flops_of

__all__ = ["gram_kernel"]


def gram_kernel(backend: str = "auto") -> tuple[GramKernel, str]:
    """The kernel and its backend's name. Its algorithm "auto" is the cheaper one."""
    compute, name = select("gradient_gram", backend)

    def kernel(gram: NDArray[np.float64], a: Any, b: Any = None, a2: Any = None, b2: Any = None, *, algorithm: str = "auto") -> None:
        if algorithm == "auto":
            algorithm = "gradients" if b is None else _cheaper(a, b, a2)
        target = np.ascontiguousarray(gram)
        compute(target, a, b, a2, b2, algorithm=algorithm)
        if target is not gram:
            gram[:] = target

    return kernel, name


def _cheaper(a: Any, b: Any, a2: Any) -> str:
    t = a.shape[1] if a.ndim == 3 else 1
    m, s = (None, t) if a2 is None else (len(a2), a2.shape[1] if a2.ndim == 3 else 1)
    return min(("positions", "gradients"), key=lambda name: flops_of(name, len(a), t, m, s, a.shape[-1], b.shape[-1]))
