"""Findings of the weight matrices: one function per pattern, each beside a random matrix of the shape and the layers of its kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..linalg.arrays import FORMATS
from ..weights.spectra import MatrixSpectrum, WeightSpectra
from .finding import SEVERITIES, Finding
from .thresholds import source_of, value_of

__all__ = ["weight_findings"]


class Scale(NamedTuple):
    """Median and spread (1.48 MAD of the natural logarithms) of one measure of size over a group of layers."""

    median: float
    spread: float


class Peers(NamedTuple):
    """The other matrices of the model, without embeddings, products and the smallest; NaN where there are too few.

    gain: sqrt(mean square x inputs), what a layer does to the size of a random input; deviation: root mean square of the entries. Initialisations keep
    one or the other alike between layers of different shapes; the one that varies less is the yardstick.
    """

    gain: Scale
    deviation: Scale
    spectral_norm: float


Rule = Callable[[MatrixSpectrum, Peers], "Finding | None"]


def weight_findings(spectra: WeightSpectra) -> tuple[Finding, ...]:
    """Findings of the weight matrices, severest first."""
    found: list[Finding] = []
    # A LoRA product has rank r by construction and no random matrix beside it: its factors are judged, not it.
    usable = [m for m in spectra.matrices if m.status == "ok" and m.kind != "lora"]
    for m in spectra.matrices:
        if m.status == "failed":
            found.append(
                Finding(
                    severity="severe",
                    where=m.name,
                    title="not analysed: not finite" if "not finite" in m.reason else "not analysed",
                    evidence=m.reason,
                    comparison="a healthy matrix has finite entries only",
                    advice="find the step where it appeared; restart from before it",
                    source="IEEE 754",
                    analysis="weights",
                )
            )
        elif m.reason == "zero matrix":
            found.append(
                Finding(
                    severity="warning",
                    where=m.name,
                    title="zero matrix",
                    evidence=f"all {m.shape[0]} x {m.shape[1]} entries are 0",
                    comparison="some layers are zero at the start by design, none after training",
                    advice="check that it is meant to be",
                    source="ours",
                    analysis="weights",
                )
            )
    for m in usable:
        others = [p for p in usable if p is not m and p.kind != "embedding" and min(p.shape) >= value_of("peers, d_min")]
        peers = _medians(others if len(others) >= value_of("peers, number") else [])
        for rule in _WEIGHT_RULES:
            finding = rule(m, peers)
            if finding is not None:
                found.append(finding)
    return tuple(sorted(found, key=lambda f: -SEVERITIES.index(f.severity)))


def _medians(group: list[MatrixSpectrum]) -> Peers:
    if not group:
        return Peers(Scale(math.nan, math.nan), Scale(math.nan, math.nan), math.nan)
    norm = float(np.median([m.metrics["spectral_norm"] for m in group]))
    return Peers(_scale_of([_gain(m) for m in group]), _scale_of([_deviation(m) for m in group]), norm)


def _scale_of(values: list[float]) -> Scale:
    logs = np.log(values)
    middle = float(np.median(logs))
    return Scale(math.exp(middle), 1.48 * float(np.median(np.abs(logs - middle))))


def _deviation(m: MatrixSpectrum) -> float:
    return m.metrics["frobenius"] / math.sqrt(m.shape[0] * m.shape[1])


def _inputs(m: MatrixSpectrum) -> int:
    return m.shape[0] if m.in_out else m.shape[1]


def _gain(m: MatrixSpectrum) -> float:
    return _deviation(m) * math.sqrt(_inputs(m))


def _beside(m: MatrixSpectrum, peers: Peers) -> str:
    text = f"a random matrix of the shape: s_1 {m.null['spectral_norm']:.3g}, s_min {m.null['s_min']:.3g}"
    return text if math.isnan(peers.spectral_norm) else f"{text}; median s_1 of the other layers {peers.spectral_norm:.3g}"


def _scale(m: MatrixSpectrum, peers: Peers) -> Finding | None:
    if m.kind == "embedding" or min(m.shape) < value_of("peers, d_min"):
        return None
    by_gain = peers.gain.spread <= peers.deviation.spread
    yardstick, own = (peers.gain, _gain(m)) if by_gain else (peers.deviation, _deviation(m))
    ratio = own / yardstick.median
    margin = max(math.log(value_of("scale, times peers")), value_of("scale, spreads") * yardstick.spread)
    if not abs(math.log(ratio)) > margin:  # not above, or NaN
        return None
    large = ratio > 1
    return Finding(
        severity="warning",
        where=m.name,
        title="amplifies; exploding gradients possible" if large else "dampens; vanishing gradients possible",
        evidence=f"{'gain' if by_gain else 'size of the entries'} {ratio:.2g} x that of the other layers; "
        f"largest eigenvalue of W Wᵀ {m.metrics['lambda_max']:.3g}",
        comparison=_beside(m, peers),
        advice="spectral normalisation, a smaller initialisation or learning rate; harmless where a normalisation layer follows"
        if large
        else "initialisation, scale of the residual branch; harmless where a normalisation layer follows",
        source=source_of("amplifies, lambda_max" if large else "dampens, lambda_max", "scale, times peers"),
        analysis="weights",
    )


def _spike(m: MatrixSpectrum, peers: Peers) -> Finding | None:
    resolved = m.mp.status == "ok"
    # The edge of a random bulk, or its last value where it ends earlier (orthogonal matrices); where no bulk is resolved, a random matrix's norm.
    below = min(m.mp.n_spikes if resolved and m.mp.n_spikes > 0 else 1, len(m.s) - 1)
    edge = min(math.sqrt(m.mp.upper_edge) if resolved else m.null["spectral_norm"], float(m.s[below]))
    edge = max(edge, m.rank_tolerances["storage"])  # a matrix of rank one has nothing but noise below
    top = m.metrics["spectral_norm"]
    if m.kind == "embedding" or min(m.shape) < 2 or not top > value_of("spike, times edge") * edge or (resolved and m.mp.n_spikes == 0):
        return None
    amplifies = m.metrics["lambda_max"] >= value_of("amplifies, lambda_max")
    of_what = f"the edge of the bulk, above which {m.mp.n_spikes} of {len(m.s)} values lie" if resolved else "a random matrix's norm or the next value"
    return Finding(
        severity="warning" if amplifies and top > value_of("spike, warning") * edge else "info",
        where=m.name,
        title="stands out of the bulk and amplifies" if amplifies else "stands out of the bulk",
        evidence=f"s_1 {top:.3g} is {top / edge:.1f} x {of_what}; largest eigenvalue of W Wᵀ {m.metrics['lambda_max']:.3g}",
        comparison=_beside(m, peers),
        advice="learned structure in most trained layers; where training is unstable, spectral normalisation or a smaller learning rate",
        source=source_of("spike, times edge", "amplifies, lambda_max"),
        analysis="weights",
    )


def _collapse(m: MatrixSpectrum, peers: Peers) -> Finding | None:
    share, floor = m.metrics["near_zero_fraction"], m.rank_tolerances["storage"]
    # The singular values of a square random matrix follow a quarter circle of radius 2 sqrt(n var): density 2/(pi sqrt(n var)) at 0.
    d_max, d_min = max(m.shape), min(m.shape)
    scale = m.null["frobenius"] / math.sqrt(d_min)
    expected = 2.0 * floor / (math.pi * scale) if m.null["s_min"] < value_of("collapse, square") * scale else 0.0
    if (
        m.metrics["near_zero_fraction"] < value_of("collapse, share")
        or share < value_of("collapse, times random") * expected
        or d_min < value_of("collapse, d_min")
    ):
        return None
    # torch's default, U(±1/sqrt(fan_in)): variance 1/(3 fan_in), so ||W||_F² = m/3; recurrent layers use the hidden size, a gate's rows
    init = math.sqrt((m.shape[1] if m.kind == "rnn" or m.in_out else m.shape[0]) / 3.0)
    over = m.kind in ("linear", "conv", "rnn") and m.metrics["frobenius"] < value_of("over-regularized, times init") * init
    norm = f"||W||_F {m.metrics['frobenius']:.3g}, a default initialisation gives {init:.3g}"
    both = "less weight decay (Martin 2018: over-regularized)", 'a wider layer, or regularization that spreads the spectrum ("Eigenvalue Spectra")'
    return Finding(
        "severe" if share >= value_of("collapse, severe share") else "warning",
        m.name,
        "rank collapse",
        f"rank {m.ranks['storage']} of {d_min}: {share:.0%} of the singular values are below {floor:.2g}, what rounding to {m.dtype}"
        + (f" ({m.effective_precision} bits used)" if m.dtype in ("float32", "float64") and m.effective_precision < 24 else "")
        + " hides",
        f"a random {d_max} x {d_min} matrix loses {expected:.1%}; {norm}",
        f"{both[0]}; otherwise {both[1]}" if over else f"{both[1]}; the other source: {both[0]}, though the norm does not show it",
        source_of("collapse, share", "collapse, times random"),
        "weights",
    )


def _dead(m: MatrixSpectrum, peers: Peers) -> Finding | None:
    rows, columns = (m.zero_columns, m.zero_rows) if m.in_out else (m.zero_rows, m.zero_columns)
    n_rows, n_columns = m.shape[::-1] if m.in_out else m.shape
    limit = value_of("dead, share")
    if m.kind == "embedding" or not (rows >= limit * n_rows or columns >= limit * n_columns) or rows + columns == 0:
        return None
    return Finding(
        severity="warning",
        where=m.name,
        title="dead outputs" if rows else "dead inputs",
        evidence=f"{rows} of {n_rows} rows and {columns} of {n_columns} columns are exactly zero",
        comparison="a random matrix has none",
        advice="lower learning rate or another activation if units died; remove them if they were pruned",
        source=source_of("dead, share"),
        analysis="weights",
    )


def _concentrated(m: MatrixSpectrum, peers: Peers) -> Finding | None:
    d_min = min(m.shape)
    # A random matrix keeps between 0.8 and 1 of its dimensions by this measure, so the share itself is the comparison.
    share = m.metrics["effective_rank"] / d_min
    lost = m.metrics["near_zero_fraction"] >= value_of("collapse, share")  # then that is the finding
    if d_min < value_of("concentrated, d_min") or share >= value_of("concentrated, effective rank") or lost:
        return None
    return Finding(
        "warning",
        m.name,
        "uses only a few of its dimensions",
        f"effective rank {m.metrics['effective_rank']:.1f} of {d_min}, stable rank {m.metrics['stable_rank']:.1f}",
        f"stable rank of a random matrix of the shape {m.null['stable_rank']:.1f}",
        'a wider layer will not help; less weight decay (Martin 2018) or regularization that spreads the spectrum ("Eigenvalue Spectra")',
        source_of("concentrated, effective rank"),
        "weights",
    )


def _condition(m: MatrixSpectrum, peers: Peers) -> Finding | None:
    condition = m.metrics["condition_number"]
    low = m.null["s_min_low"]
    random = m.null["spectral_norm"] / low if low > 0 else math.inf
    if (
        condition < value_of("condition")
        or condition < value_of("condition, times random") * random
        or m.metrics["near_zero_fraction"] >= value_of("collapse, share")
    ):
        return None
    at_least = ">= " if m.metrics["condition_number_is_lower_bound"] else ""
    return Finding(
        "warning",
        m.name,
        "ill-conditioned: some directions learned much better than others",
        f"condition number {at_least}{condition:.2g} (of W Wᵀ {at_least}{m.metrics['gram_condition_number']:.2g})",
        f"1 % of random matrices of the shape exceed {random:.2g}",
        "normalisation before or after the layer; check the rank",
        source_of("condition", "condition, times random"),
        "weights",
    )


def _alpha(m: MatrixSpectrum, peers: Peers) -> Finding | None:
    fit = m.power_law
    short = m.metrics["lambda_max"] < value_of("alpha, span") * fit.xmin  # a flat spectrum has no tail, whatever its exponent
    if fit.status != "ok" or fit.n_tail < value_of("alpha, tail") or short:
        return None
    margin = value_of("alpha, stderrs") * fit.stderr
    over, under = fit.alpha + margin < value_of("alpha, over-trained"), fit.alpha - margin > value_of("alpha, under-trained")
    if not (over or under):
        return None
    # only a tail that is long and looks like a power law is worth a warning
    sound = fit.n_tail >= value_of("alpha, warning tail") and fit.D * math.sqrt(fit.n_tail) <= value_of("alpha, distance")
    return Finding(
        "warning" if over and sound else "info",
        m.name,
        "heavy tail: over-trained" if over else "light tail: under-trained",
        f"alpha {fit.alpha:.2f} ± {fit.stderr:.2f} on {fit.n_tail} of {len(m.s)} eigenvalues, distance D {fit.D:.2g}",
        "well-trained layers: 2 to 6; large random matrices: above 6",
        "a smaller learning rate or more data for this layer"
        if over
        else "train longer or with a larger learning rate; or the layer is too large for its task",
        source_of("alpha, over-trained"),
        "weights",
    )


def _near_one(m: MatrixSpectrum, peers: Peers) -> Finding | None:
    evals = m.evals
    if not (evals[-1] > value_of("near one, low") and evals[0] < value_of("near one, high")):
        return None
    return Finding(
        "info",
        m.name,
        "well normalised, stable",
        f"all eigenvalues of W Wᵀ lie in [{evals[-1]:.2f}, {evals[0]:.2f}]",
        _beside(m, peers),
        "none",
        source_of("near one, low"),
        "weights",
    )


def _rounded(m: MatrixSpectrum, peers: Peers) -> Finding | None:
    if m.effective_precision > value_of("rounded, share of the bits") * FORMATS[m.dtype].precision:
        return None
    known = {8: "bfloat16", 11: "float16 or TF32", 24: "float32"}.get(m.effective_precision)
    return Finding(
        "info",
        m.name,
        "stored wider than its precision",
        f"kept as {m.dtype} ({FORMATS[m.dtype].precision} bits), but the entries use {m.effective_precision} bits; "
        f"singular values below {m.rank_tolerances['storage']:.2g} are rounding noise",
        f"{m.effective_precision} bits are those of {known}" if known else "no common format has that many bits",
        "the file can be smaller without loss",
        "ours: trailing zero bits of the significands",
        "weights",
    )


_WEIGHT_RULES: tuple[Rule, ...] = (
    _scale,
    _spike,
    _collapse,
    _dead,
    _concentrated,
    _condition,
    _alpha,
    _near_one,
    _rounded,
)
