"""Every "large", "many" and "few" of the findings, with its source."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["EIGENVALUE_SPECTRA", "THRESHOLDS", "Threshold", "source_of", "value_of"]


class Threshold(NamedTuple):
    value: float
    source: str


EIGENVALUE_SPECTRA = '"Eigenvalue Spectra"'
_MARTIN = 'Martin 2018, "Rank Collapse in Deep Learning"'
_OURS = "ours, relative to a random matrix of the shape"

THRESHOLDS: dict[str, Threshold] = {
    "near one, low": Threshold(0.5, f"{EIGENVALUE_SPECTRA}: all eigenvalues near 1; the interval is ours"),
    "near one, high": Threshold(2.0, f"{EIGENVALUE_SPECTRA}: all eigenvalues near 1; the interval is ours"),
    "amplifies, lambda_max": Threshold(4.0, f"{EIGENVALUE_SPECTRA}: well above 1; the number is ours"),
    "dampens, lambda_max": Threshold(0.25, f"{EIGENVALUE_SPECTRA}: well below 1; the number is ours"),
    "scale, times peers": Threshold(2.5, "ours, gain or size of the entries relative to the median of the other layers, or to the baseline"),
    "scale, spreads": Threshold(2.0, "ours, 1.48 MAD of the logarithms over the other layers"),
    "peers, number": Threshold(3, "ours: fewer layers are no comparison"),
    "peers, d_min": Threshold(8, "ours: smaller matrices say little"),
    "spike, times edge": Threshold(2.0, "ours, relative to the Marchenko-Pastur edge of the bulk (the random matrix's norm where the bulk is not resolved)"),
    "spike, warning": Threshold(5.0, "ours, relative to the same edge"),
    "collapse, share": Threshold(0.01, f"{_MARTIN}; the share is ours"),
    "collapse, severe share": Threshold(0.25, "ours"),
    "collapse, times random": Threshold(3.0, _OURS),
    "collapse, d_min": Threshold(4, "ours: smaller matrices have no share to speak of"),
    "collapse, square": Threshold(0.1, "ours: a random matrix whose s_min is below this share of sqrt(n var) counts as square"),
    "dead, share": Threshold(0.01, "ours: share of rows or columns that are exactly zero"),
    "rounded, share of the bits": Threshold(0.75, "ours: fewer significant bits than this share of the format's are worth a word"),
    "concentrated, d_min": Threshold(16, "ours: smaller matrices have few dimensions to begin with"),
    "concentrated, effective rank": Threshold(0.25, f"{EIGENVALUE_SPECTRA}: only a few dimensions; effective rank over d_min, the number is ours"),
    "over-regularized, times init": Threshold(0.5, f"{_MARTIN}: too much regularization takes the norm down"),
    "condition": Threshold(1e4, f"{EIGENVALUE_SPECTRA}: high condition number; the number is ours"),
    "condition, times random": Threshold(30.0, "ours, relative to the 99 % quantile of a random matrix of the shape"),
    "alpha, over-trained": Threshold(2.0, "Martin & Mahoney 2021"),
    "alpha, under-trained": Threshold(6.0, "Martin & Mahoney 2021"),
    "alpha, tail": Threshold(20.0, "ours: fewer values say little"),
    "alpha, warning tail": Threshold(50.0, "ours: a warning needs a long tail"),
    "alpha, distance": Threshold(1.0, "ours: D sqrt(n), about the 5 % level of the Kolmogorov-Smirnov test with a fitted exponent"),
    "alpha, span": Threshold(2.0, "ours: the largest eigenvalue over xmin"),
    "alpha, stderrs": Threshold(2.0, "ours: beyond its error"),
    "sharp, outlier": Threshold(10.0, f"{EIGENVALUE_SPECTRA}: few large eigenvalues; times the tenth largest, ours"),
    "flat, share": Threshold(0.9, f"{EIGENVALUE_SPECTRA}: many small eigenvalues; the share is ours"),
    "flat, times lambda_1": Threshold(0.01, "ours: small means below this share of the largest"),
    "negative": Threshold(0.1, "ours: |lambda_min| over lambda_max"),
    "gradient, effective rank": Threshold(
        0.5, f"{EIGENVALUE_SPECTRA}: concentrated spectrum; effective rank over the classes less one (Gur-Ari et al. 2018: fresh networks fill these), ours"
    ),
    "collapsed, direction": Threshold(0.01, "Jing et al. 2022: dimensional collapse, directions without spread; the share of the widest direction is ours"),
    "collapsed, directions": Threshold(0.5, "ours: at most this share of the directions the classes need"),
    "collapsed, point": Threshold(1e-4, "Chen & He 2021: complete collapse, one feature for all samples; the number is ours"),
    "collapsed, nc1": Threshold(0.1, "Papyan, Han & Donoho 2020: NC1 tends to 0; the number is ours"),
}


def value_of(name: str) -> float:
    return THRESHOLDS[name].value


def source_of(*names: str) -> str:
    return "; ".join(dict.fromkeys(THRESHOLDS[n].source for n in names))
