"""What a kernel for Grams of gradients has to compute, written out."""

from __future__ import annotations

from typing import Any

import numpy as np


def gradient_gram(gram: Any, a: Any, b: Any = None, a2: Any = None, b2: Any = None, *, algorithm: str = "auto") -> None:
    for x in (a, b, a2, b2):
        assert x is None or (isinstance(x, np.ndarray) and x.flags.c_contiguous and x.dtype in (np.float32, np.float64))
    assert gram.dtype == np.float64 and algorithm in ("auto", "positions", "gradients")
    a2_, b2_ = (a, b) if a2 is None else (a2, b2)
    if b is None:
        assert a.ndim == 2
        gram += a.astype(np.float64) @ a2_.astype(np.float64).T
        return
    assert a.ndim == b.ndim == 3 and a.shape[:2] == b.shape[:2] and a2_.shape[:2] == b2_.shape[:2]
    if algorithm == "positions":
        left = np.einsum("itp,jsp->itjs", a, a2_, optimize=True)
        right = np.einsum("itq,jsq->itjs", b, b2_, optimize=True)
        gram += (left.astype(np.float64) * right).sum(axis=(1, 3))
        return
    g = np.einsum("itq,itp->iqp", b, a, optimize=True).reshape(len(a), -1).astype(np.float64)
    h = np.einsum("itq,itp->iqp", b2_, a2_, optimize=True).reshape(len(a2_), -1).astype(np.float64)
    gram += g @ h.T
