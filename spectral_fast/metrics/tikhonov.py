"""Tikhonov regularization of one matrix: what is information and what is noise at a scale gamma."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..linalg.arrays import as_float64, like, storage_format
from .rank import rank_tolerances, storage_noise

__all__ = ["Regularized", "tikhonov"]

_FORMS = ("tikhonov", "shift")


@dataclass(frozen=True, eq=False)
class Regularized:
    """A matrix split at gamma.

    s: (d_min,) singular values, descending. information, noise: how many are above gamma, and the rest. filter_factors: (d_min,) phi, the
    share of each direction that survives. effective_dof: sum phi. pinv: (n, m) regularized pseudo-inverse, singular values phi/s.
    """

    gamma: float
    form: str
    s: NDArray[np.float64]
    information: int
    noise: int
    filter_factors: NDArray[np.float64]
    effective_dof: float
    pinv: Any


def tikhonov(a: Any, gamma: float, *, form: str = "tikhonov") -> Regularized:
    """Regularized pseudo-inverse and the information/noise split of ``a`` at the noise scale ``gamma`` (Martin 2018; Tikhonov).

    a: (m, n) real array or tensor; gamma >= 0, in the units of the singular values.
    form: "tikhonov": (WᵀW + gamma² I)^-1 Wᵀ, phi = s²/(s² + gamma²); "shift": the singular values themselves are shifted, 1/(s + gamma),
          phi = s/(s + gamma). gamma = 0 gives the Moore-Penrose inverse on the values that rounding to the stored format did not make
          (rank rule "storage"; "numpy" for integers), and never on values below s_1 d_max 2^-52.
    A torch tensor gives a tensor ``pinv``.
    Raises ValueError for a negative or non-finite gamma, an unknown form, another number of dimensions, or entries that are not finite.
    """
    if form not in _FORMS:
        raise ValueError(f"form: got {form!r}; known: {', '.join(_FORMS)}")
    if not (np.isfinite(gamma) and gamma >= 0):
        raise ValueError(f"gamma: got {gamma!r}; wanted a finite number >= 0")
    w = as_float64(a)
    if w.ndim != 2:
        raise ValueError(f"a: got shape {w.shape}; wanted (m, n)")
    if not np.isfinite(w).all():
        raise ValueError("a: has entries that are not finite")
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    kept = s > (gamma if gamma > 0 else _noise_floor(a, w, s))
    inverse = np.zeros_like(s)
    if gamma == 0:
        inverse[kept] = 1.0 / s[kept]
    elif form == "tikhonov":
        # s/(s² + gamma²) without squaring either, so that nothing overflows or vanishes
        larger = np.maximum(s, gamma)
        inverse = (s / larger) / larger / ((s / larger) ** 2 + (gamma / larger) ** 2)
    else:
        inverse = 1.0 / (s + gamma)
    phi = inverse * s
    return Regularized(float(gamma), form, s, int(kept.sum()), int((~kept).sum()), phi, float(phi.sum()), like(a, (vt.T * inverse) @ u.T))


def _noise_floor(a: Any, w: NDArray[np.float64], s: NDArray[np.float64]) -> float:
    stored = storage_format(a)
    computed = rank_tolerances(s, (w.shape[0], w.shape[1]), "float64")["numpy"]
    return computed if stored is None else max(computed, storage_noise(w, stored).tolerance)
