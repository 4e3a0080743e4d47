"""What a matrix of independent entries of the same shape and variance would show: the yardstick beside every weight matrix."""

from __future__ import annotations

import math

__all__ = ["random_matrix_reference"]

_TW1_99 = 2.0234  # Tracy-Widom (beta = 1) quantile at 0.99
_SQUARE = 1.1  # below this aspect ratio the smallest value follows the square law


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
