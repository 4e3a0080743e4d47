"""Findings of the weight matrices: one function per pattern, each beside a random matrix of the shape and the layers of its kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from ..linalg.arrays import FORMATS
from ..weights.spectra import MatrixSpectrum, WeightSpectra
from .finding import SEVERITIES, Finding
from .thresholds import source_of, value_of

__all__ = ["weight_findings"]


def weight_findings(spectra: WeightSpectra) -> tuple[Finding, ...]:
    """Findings of the weight matrices, severest first."""
    found: list[Finding] = []
    usable = [m for m in spectra.matrices if m.status == "ok"]
    medians = {kind: _median_norm(m for m in usable if m.kind == kind) for kind in {m.kind for m in usable}}
    for m in spectra.matrices:
        if m.status == "failed":
            found.append(
                Finding("severe", m.name, "not finite", m.reason, "", "find the step where it appeared; restart from before it", "IEEE 754", "weights")
            )
        elif m.reason == "zero matrix":
            found.append(
                Finding(
                    "warning", m.name, "zero matrix", f"all {m.shape[0]} x {m.shape[1]} entries are 0", "", "check that it is meant to be", "ours", "weights"
                )
            )
    for m in usable:
        peers = medians[m.kind] if sum(p.kind == m.kind for p in usable) > 2 else math.nan
        for rule in _WEIGHT_RULES:
            finding = rule(m, peers)
            if finding is not None:
                found.append(finding)
    return tuple(sorted(found, key=lambda f: -SEVERITIES.index(f.severity)))


def _median_norm(group: Iterable[MatrixSpectrum]) -> float:
    return float(np.median([m.metrics["spectral_norm"] for m in group]))


def _beside(m: MatrixSpectrum, peers: float) -> str:
    text = f"a random matrix of the shape: s_1 {m.null['spectral_norm']:.3g}, s_min {m.null['s_min']:.3g}"
    return text if math.isnan(peers) else f"{text}; median s_1 of {m.kind} layers {peers:.3g}"


def _amplifies(m: MatrixSpectrum, peers: float) -> Finding | None:
    top, null = m.metrics["spectral_norm"], m.null["spectral_norm"]
    by_random = top > value_of("amplifies, times random") * null
    by_peers = top > value_of("amplifies, times peers") * peers
    if m.kind == "embedding" or m.metrics["lambda_max"] < value_of("amplifies, lambda_max") or not (by_random or by_peers):
        return None
    return Finding(
        "warning" if by_peers else "info",
        m.name,
        "amplifies; exploding gradients possible" if by_peers else "one direction stands out of the bulk and amplifies",
        f"largest eigenvalue of W Wᵀ {m.metrics['lambda_max']:.3g} (s_1 {top:.3g}), {top / null:.1f} x random",
        _beside(m, peers),
        "spectral normalisation, a smaller initialisation or learning rate; harmless where a normalisation layer follows",
        source_of("amplifies, lambda_max", "amplifies, times random"),
        "weights",
    )


def _dampens(m: MatrixSpectrum, peers: float) -> Finding | None:
    if (
        m.kind == "embedding"
        or not m.metrics["lambda_max"] < value_of("dampens, lambda_max")
        or not m.metrics["spectral_norm"] < value_of("dampens, times peers") * peers
    ):
        return None
    return Finding(
        "warning",
        m.name,
        "dampens; vanishing gradients possible",
        f"largest eigenvalue of W Wᵀ {m.metrics['lambda_max']:.3g} (s_1 {m.metrics['spectral_norm']:.3g})",
        _beside(m, peers),
        "initialisation, scale of the residual branch",
        source_of("dampens, lambda_max", "dampens, times peers"),
        "weights",
    )


def _collapse(m: MatrixSpectrum, peers: float) -> Finding | None:
    share, floor = m.metrics["near_zero_fraction"], m.rank_tolerances["storage"]
    # The singular values of a square random matrix follow a quarter circle of radius 2 sqrt(n var): density 2/(pi sqrt(n var)) at 0.
    d_max, d_min = max(m.shape), min(m.shape)
    scale = m.null["frobenius"] / math.sqrt(d_min)
    expected = 2.0 * floor / (math.pi * scale) if m.null["s_min"] < 0.1 * scale else 0.0
    if m.metrics["near_zero_fraction"] < value_of("collapse, share") or share < value_of("collapse, times random") * expected or d_min < 4:
        return None
    # torch's default, U(±1/sqrt(fan_in)): variance 1/(3 fan_in), so ||W||_F² = m/3; recurrent layers use the hidden size, a gate's rows
    init = math.sqrt((m.shape[1] if m.kind == "rnn" else m.shape[0]) / 3.0)
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


def _concentrated(m: MatrixSpectrum, peers: float) -> Finding | None:
    d_min = min(m.shape)
    # A random matrix keeps between 0.8 and 1 of its dimensions by this measure, so the share itself is the comparison.
    share = m.metrics["effective_rank"] / d_min
    if d_min < 16 or share >= value_of("concentrated, effective rank") or m.metrics["near_zero_fraction"] >= value_of("collapse, share"):
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


def _condition(m: MatrixSpectrum, peers: float) -> Finding | None:
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


def _alpha(m: MatrixSpectrum, peers: float) -> Finding | None:
    fit = m.power_law
    if fit.status != "ok" or fit.n_tail < value_of("alpha, tail"):
        return None
    over, under = fit.alpha + 2 * fit.stderr < value_of("alpha, over-trained"), fit.alpha - 2 * fit.stderr > value_of("alpha, under-trained")
    if not (over or under):
        return None
    return Finding(
        "warning" if over else "info",
        m.name,
        "heavy tail: over-trained" if over else "light tail: under-trained",
        f"alpha {fit.alpha:.2f} ± {fit.stderr:.2f} on {fit.n_tail} eigenvalues above {fit.xmin:.3g}",
        "well-trained layers: 2 to 6; random matrices: mostly above 6",
        "a smaller learning rate or more data for this layer"
        if over
        else "train longer or with a larger learning rate; or the layer is too large for its task",
        source_of("alpha, over-trained"),
        "weights",
    )


def _near_one(m: MatrixSpectrum, peers: float) -> Finding | None:
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


def _rounded(m: MatrixSpectrum, peers: float) -> Finding | None:
    if m.effective_precision >= FORMATS[m.dtype].precision:
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


_WEIGHT_RULES: tuple[Callable[[MatrixSpectrum, float], Finding | None], ...] = (
    _amplifies,
    _dampens,
    _collapse,
    _concentrated,
    _condition,
    _alpha,
    _near_one,
    _rounded,
)
