"""What the curvature analysis found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..linalg.density import SpectralDensity
from ..linalg.eigsh import EigenResult
from ..linalg.trace import TraceResult
from ..results import Result
from .layer_mass import LayerMass
from .preflight import Preflight
from .sampling import SamplingErrors

__all__ = ["CurvatureSpectra", "Sharpness"]


class Sharpness(NamedTuple):
    """Unstable where ``value`` is beyond ``threshold``. value: lambda_1 of H, with coupled weight decay, or of P^-1 H for an adaptive optimizer; rule: the
    threshold's formula with its numbers."""

    value: float
    threshold: float
    rule: str


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class CurvatureSpectra(Result):
    """Curvature of the mean loss at the model's parameters.

    hessian_top, ggn_top: k largest eigenvalues, descending; hessian_bottom: the k_bottom smallest, descending, so the most negative
    is last. density, trace: of the Hessian, from the first steps of the same Krylov space. gradient_in_top: share of the squared gradient within the span of
    the top eigenvectors (Gur-Ari, Roberts & Dyer 2018). sampling: standard errors of hessian_top from the data being a sample. sharpness: lambda_1 beside the
    optimizer's stability threshold (Cohen et al. 2021, 2022). preflight: what was checked of the products before. products: all products with Hessian and
    GGN. value_floor: eigenvalues up to this size are within the noise of the products and not told from zero (see ``unresolved``); NaN where not measured.
    by_layer: "hessian_top", "hessian_bottom", "ggn_top" -> where in the network their eigenvectors live. A part that was not reached (Ctrl-C, a failure,
    memory) or does not exist for this loss is None, and ``reason`` or ``notes`` says why; eigenvalues interrupted by Ctrl-C are given as they stood, with
    status "incomplete" of their own.
    """

    hessian_top: EigenResult | None = None
    hessian_bottom: EigenResult | None = None
    ggn_top: EigenResult | None = None
    density: SpectralDensity | None = None
    trace: TraceResult | None = None
    loss: float = math.nan
    gradient_norm: float = math.nan
    gradient_in_top: float = math.nan
    sampling: SamplingErrors | None = None
    sharpness: Sharpness | None = None
    preflight: Preflight | None = None
    n_params: int = 0
    n_samples: int = 0
    loss_name: str = ""
    products: int = 0
    seconds: float = 0.0
    value_floor: float = math.nan
    by_layer: Mapping[str, LayerMass] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def unresolved(self, pairs: EigenResult) -> NDArray[np.bool_]:
        """Which of the eigenvalues are within the noise of the products: neither their size nor their sign is known."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.abs(np.asarray(pairs.values)) <= self.value_floor)
