"""What a matrix of independent entries of the same shape and variance would show: the yardstick beside every weight matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.select import select
from ..linalg.arrays import as_numpy
from ..linalg.options import seed_number
from .marchenko_pastur import marchenko_pastur_fits

__all__ = ["NullQuantiles", "PermutationNull", "permutation_null", "random_matrix_reference"]

_TW1_99 = 2.0234  # Tracy-Widom (beta = 1) quantile at 0.99
_BATCH_BYTES = 64 << 20  # of shuffled copies held at once
_SQUARE = 1.1  # below this aspect ratio the smallest value follows the square law


@dataclass(frozen=True)
class NullQuantiles:
    """Of one number over the shuffles: its mean, its 5 % and 95 % quantiles, the least and the largest value."""

    mean: float
    low: float
    high: float
    least: float
    largest: float


@dataclass(frozen=True, eq=False)
class PermutationNull:
    """What the entries of a matrix show without their places: the same entries, shuffled.

    spectral_norm, s_min: of the shuffles; var: the Marchenko-Pastur variance fitted to them, NaN below eight singular values.
    samples: (n_permutations, 3) float64, those three of every shuffle.
    """

    n_permutations: int
    seed: int
    spectral_norm: NullQuantiles
    s_min: NullQuantiles
    var: NullQuantiles
    samples: NDArray[np.float64] = field(repr=False)
    backend: str = "numpy"

    def p_value(self, spectral_norm: float) -> float:
        """Probability that a shuffle has a spectral norm of at least this, (1 + how many do)/(1 + n_permutations) (Phipson & Smyth 2010)."""
        return (1 + int(np.count_nonzero(self.samples[:, 0] >= spectral_norm))) / (1 + self.n_permutations)


def permutation_null(
    w: Any, *, n_permutations: int = 20, seed: int = 0, backend: str = "auto", values: Callable[[NDArray[Any]], NDArray[np.float64]] | None = None
) -> PermutationNull:
    """Spectra of seeded shuffles of a matrix's entries: the random matrix with exactly these entries, heavy tails and zeros included.

    w: (m, n) finite real numbers. Costs n_permutations spectra; at most 64 MB of copies, or one, are held at a time.
    backend: of the singular values; values: what computes them of a stack (b, m, n) instead, on a device.
    Errors: ValueError for another dimension, an empty matrix, entries not finite, n_permutations < 1.
    """
    a = as_numpy(w)
    if a.ndim != 2 or a.size == 0:
        raise ValueError(f"w: wanted a matrix, got shape {a.shape}")
    if not np.isfinite(a).all():
        raise ValueError("w: wanted finite entries")
    if n_permutations < 1:
        raise ValueError(f"n_permutations: wanted at least 1, got {n_permutations}")
    seed_number(seed)
    kernel, name = select("singular_values", backend) if values is None else (values, backend)
    rng = np.random.default_rng(seed)
    entries = np.ascontiguousarray(a).reshape(-1)
    rows = max(1, _BATCH_BYTES // (entries.size * 8))
    spectra = []
    for first in range(0, n_permutations, rows):
        shuffles = [rng.permutation(entries).reshape(a.shape) for _ in range(min(rows, n_permutations - first))]
        spectra.append(kernel(np.stack(shuffles)))
    s = np.concatenate(spectra)
    # a power of two keeps the squares of huge and tiny matrices in range
    exponent = int(np.frexp(s.max())[1]) if s.max() > 0.0 else 0
    evals = np.square(np.ldexp(s, -exponent))
    var = [fit.scaled(2 * exponent).var for fit in marchenko_pastur_fits(list(evals), [a.shape] * n_permutations)]
    samples = np.column_stack((s[:, 0], s[:, -1], var))
    norms, smallest, variances = (_quantiles(column) for column in samples.T)
    return PermutationNull(n_permutations, seed, norms, smallest, variances, samples, name)


def _quantiles(x: NDArray[np.float64]) -> NullQuantiles:
    with np.errstate(invalid="ignore"):  # a variance beyond float64 is inf, and inf - inf no number
        low, high = np.quantile(x, (0.05, 0.95))
    return NullQuantiles(float(x.mean()), float(low), float(high), float(x.min()), float(x.max()))


def random_matrix_reference(shape: tuple[int, int], var: float) -> dict[str, float]:
    """Expected extremes of an (m, n) matrix of independent zero-mean entries of variance ``var``.

    Returns spectral_norm and s_min at the edges of the Marchenko-Pastur law, sqrt(var) (sqrt(d_max) ± sqrt(d_min)) (Marchenko & Pastur 1967);
    s_min_low is the 1 % quantile. For d_max/d_min < 1.1 s_min is the median, and s_min_low the 1 % quantile, of Edelman's square law
    P(sqrt(d_max) s_min / sqrt(var) <= t) = 1 - exp(-t²/2 - t) (Edelman 1988); frobenius sqrt(m n var); condition_number and stable_rank
    from these. All NaN for var = 0.
    """
    d_max, d_min = max(shape), min(shape)
    if not var > 0:
        return dict.fromkeys(("spectral_norm", "s_min", "s_min_low", "frobenius", "condition_number", "stable_rank"), math.nan)
    root = math.sqrt(var)
    top = root * (math.sqrt(d_max) + math.sqrt(d_min))
    low = root * (math.sqrt(d_max) - math.sqrt(d_min))
    if d_max < _SQUARE * d_min:
        # The nearly square case interpolates badly; the hard edge adds to the soft one, so take the larger.
        bottom, quantile = max(low, root * _edelman(0.5) / math.sqrt(d_max)), root * _edelman(0.01) / math.sqrt(d_max)
    else:
        # At the lower edge (mu - lambda_min)/scale follows Tracy-Widom too (Feldheim & Sodin 2010), so a small s_min is its upper tail.
        scale = root * (1 / math.sqrt(d_min) - 1 / math.sqrt(d_max)) ** (1 / 3) / 2
        bottom, quantile = low, max(0.0, low - _TW1_99 * scale)
    frobenius = root * math.sqrt(d_max * d_min)
    return {
        "spectral_norm": top,
        "s_min": bottom,
        "s_min_low": quantile,
        "frobenius": frobenius,
        "condition_number": top / bottom if bottom > 0 else math.inf,
        "stable_rank": (frobenius / top) ** 2,
    }


def _edelman(p: float) -> float:
    """Quantile of 1 - exp(-t²/2 - t)."""
    return -1.0 + math.sqrt(1.0 - 2.0 * math.log1p(-p))
