"""What the gradient covariance found."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..results import Result

__all__ = ["GradientSpectrum", "LayerGradient"]

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class LayerGradient:
    """One parameter tensor's share: eigenvalues of its own block of the covariance (descending; empty where they did not fit in memory).

    algorithm, flops, seconds: how its Gram matrix was made ("positions", "gradients" or "rows" of kernels' gradient_gram, "per-sample" where its gradients
    were formed one by one; "" for all of a model's), the predicted number of operations and the time it took."""

    eigenvalues: F64
    trace: float
    noise_scale: float
    effective_rank: float
    n_params: int = 0
    algorithm: str = ""
    flops: float = math.nan
    seconds: float = math.nan


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class GradientSpectrum(Result):
    """Spectrum of the covariance of per-sample gradients, C = sum p_n (g_n - g)(g_n - g)ᵀ / (1 - sum p_n²) with weights p_n, 1/n each where terms are alike.

    eigenvalues: (k,) float64, descending, of the convention `centered` names; `other` of the other one: eigenvalues_centered and
        eigenvalues_uncentered give them by name. Of n units at most min(n - 1, P) centred ones are nonzero.
    noise_floor: eigenvalues below it are rounding, known only to be <= noise_floor; n_resolved lie above it.
    trace, effective_rank, participation_ratio, top_share (of the 10 largest): of `eigenvalues`, before k cut them.
    noise_scale: tr C/|g|² in samples (McCandlish et al. 2018), inf when the debiased gradient_norm2 is not positive;
        noise_scale_interval: jackknife, 95 %.
    signal_share: |g|²/mean |g_n|², the part of a unit's gradient that all have in common, debiased (below 0: not resolved), with its jackknife interval.
    between_classes, within_classes: tr C between and within the classes of the targets (class_parts; both debiased), n_classes of them; NaN and 0 where
        targets are no class indices of samples, or nothing tells the parts apart.
    units: (n,) which of the sample set's units with a valid target the gradients are of, in the loader's order.
    gram: (n, n) float64, <g_i, g_j>, of the units' own gradients; weights: (n,), sum 1. loss: mean over the units.
    """

    eigenvalues: F64
    other: F64
    centered: bool
    unit: str
    trace: float
    effective_rank: float
    participation_ratio: float
    top_share: float
    noise_scale: float
    noise_scale_interval: tuple[float, float]
    gradient_norm2: float
    noise_floor: float
    n_resolved: int
    n_samples: int
    n_units: int
    n_params: int
    by_layer: dict[str, LayerGradient]
    gram: F64 = field(repr=False)  # repr=False: too large for to_dict
    weights: F64 = field(repr=False)
    loss: float
    loss_name: str
    seconds: float
    notes: tuple[str, ...] = ()
    signal_share: float = math.nan
    signal_share_interval: tuple[float, float] = (math.nan, math.nan)
    between_classes: float = math.nan
    within_classes: float = math.nan
    n_classes: int = 0
    units: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64), repr=False)

    @property
    def between_share(self) -> float:
        """Part of the covariance's trace between the classes of the targets."""
        whole = self.between_classes + self.within_classes
        return self.between_classes / whole if whole > 0.0 else math.nan

    @property
    def eigenvalues_centered(self) -> F64:
        return self.eigenvalues if self.centered else self.other

    @property
    def eigenvalues_uncentered(self) -> F64:
        return self.other if self.centered else self.eigenvalues
