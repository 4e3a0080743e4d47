"""From measured numbers to findings a person can act on. Every "large", "many" and "few" is a row of THRESHOLDS with its source."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from .linalg.arrays import FORMATS
from .weights.spectra import MatrixSpectrum, WeightSpectra

if TYPE_CHECKING:
    from .collapse import NeuralCollapse
    from .curvature import CurvatureSpectra
    from .gradients import GradientSpectrum

__all__ = ["SEVERITIES", "THRESHOLDS", "Finding", "collapse_findings", "curvature_findings", "gradient_findings", "weight_findings"]

Severity = Literal["info", "warning", "severe"]
Analysis = Literal["weights", "gradients", "curvature", "collapse"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "severe")


@dataclass(frozen=True)
class Finding:
    """A measured pattern, read.

    severity: "info", "warning" or "severe". where: tensor, module or analysis. title: the reading in a few words. evidence: the numbers.
    comparison: what a random matrix of the shape or the layers of the same kind show. advice: what to do. source: who says so.
    """

    severity: Severity
    where: str
    title: str
    evidence: str
    comparison: str
    advice: str
    source: str
    analysis: Analysis


class Threshold(NamedTuple):
    value: float
    source: str


_EIGEN = '"Eigenvalue Spectra"'
_MARTIN = 'Martin 2018, "Rank Collapse in Deep Learning"'
_OURS = "ours, relative to a random matrix of the shape"

THRESHOLDS: dict[str, Threshold] = {
    "near one, low": Threshold(0.5, f"{_EIGEN}: all eigenvalues near 1; the interval is ours"),
    "near one, high": Threshold(2.0, f"{_EIGEN}: all eigenvalues near 1; the interval is ours"),
    "amplifies, lambda_max": Threshold(4.0, f"{_EIGEN}: well above 1; the number is ours"),
    "amplifies, times random": Threshold(2.0, _OURS),
    "amplifies, times peers": Threshold(4.0, "ours, relative to the median of layers of the same kind"),
    "dampens, lambda_max": Threshold(0.25, f"{_EIGEN}: well below 1; the number is ours"),
    "dampens, times peers": Threshold(0.25, "ours, relative to the median of layers of the same kind"),
    "collapse, share": Threshold(0.01, f"{_MARTIN}; the share is ours"),
    "collapse, severe share": Threshold(0.25, "ours"),
    "collapse, times random": Threshold(3.0, _OURS),
    "concentrated, effective rank": Threshold(0.25, f"{_EIGEN}: only a few dimensions; effective rank over that of a random matrix, the number is ours"),
    "over-regularized, times init": Threshold(0.5, f"{_MARTIN}: too much regularization takes the norm down"),
    "condition": Threshold(1e4, f"{_EIGEN}: high condition number; the number is ours"),
    "condition, times random": Threshold(30.0, "ours, relative to the 99 % quantile of a random matrix of the shape"),
    "alpha, over-trained": Threshold(2.0, "Martin & Mahoney 2021"),
    "alpha, under-trained": Threshold(6.0, "Martin & Mahoney 2021"),
    "alpha, tail": Threshold(20.0, "ours: fewer values say little"),
    "sharp, outlier": Threshold(10.0, f"{_EIGEN}: few large eigenvalues; times the tenth largest, ours"),
    "flat, share": Threshold(0.9, f"{_EIGEN}: many small eigenvalues; the share is ours"),
    "flat, times lambda_1": Threshold(0.01, "ours: small means below this share of the largest"),
    "negative": Threshold(0.1, "ours: |lambda_min| over lambda_max"),
    "gradient, top share": Threshold(0.5, f"{_EIGEN}: concentrated spectrum; share of the ten largest, ours"),
    "collapsed, nc1": Threshold(0.1, "Papyan, Han & Donoho 2020: NC1 tends to 0; the number is ours"),
}


def _is(name: str) -> float:
    return THRESHOLDS[name].value


def _source(*names: str) -> str:
    return "; ".join(dict.fromkeys(THRESHOLDS[n].source for n in names))


def weight_findings(spectra: WeightSpectra) -> tuple[Finding, ...]:
    """Findings of the weight matrices, severest first."""
    found: list[Finding] = []
    usable = [m for m in spectra.matrices if m.status == "ok"]
    medians = {kind: _median_norm(m for m in usable if m.kind == kind) for kind in {m.kind for m in usable}}
    for m in spectra.matrices:
        if m.status == "failed":
            found.append(Finding("severe", m.name, "not finite", m.reason, "", "find the step where it appeared; restart from before it", "IEEE 754", "weights"))
        elif m.reason == "zero matrix":
            found.append(Finding("warning", m.name, "zero matrix", f"all {m.shape[0]} x {m.shape[1]} entries are 0", "", "check that it is meant to be", "ours", "weights"))
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
    by_random = top > _is("amplifies, times random") * null
    by_peers = top > _is("amplifies, times peers") * peers
    if m.kind == "embedding" or m.metrics["lambda_max"] < _is("amplifies, lambda_max") or not (by_random or by_peers):
        return None
    return Finding(
        "warning" if by_peers else "info",
        m.name,
        "amplifies; exploding gradients possible" if by_peers else "one direction stands out of the bulk and amplifies",
        f"largest eigenvalue of W Wᵀ {m.metrics['lambda_max']:.3g} (s_1 {top:.3g}), {top / null:.1f} x random",
        _beside(m, peers),
        "spectral normalisation, a smaller initialisation or learning rate; harmless where a normalisation layer follows",
        _source("amplifies, lambda_max", "amplifies, times random"),
        "weights",
    )


def _dampens(m: MatrixSpectrum, peers: float) -> Finding | None:
    if m.kind == "embedding" or not m.metrics["lambda_max"] < _is("dampens, lambda_max") or not m.metrics["spectral_norm"] < _is("dampens, times peers") * peers:
        return None
    return Finding(
        "warning",
        m.name,
        "dampens; vanishing gradients possible",
        f"largest eigenvalue of W Wᵀ {m.metrics['lambda_max']:.3g} (s_1 {m.metrics['spectral_norm']:.3g})",
        _beside(m, peers),
        "initialisation, scale of the residual branch",
        _source("dampens, lambda_max", "dampens, times peers"),
        "weights",
    )


def _collapse(m: MatrixSpectrum, peers: float) -> Finding | None:
    share, floor = m.metrics["near_zero_fraction"], m.rank_tolerances["storage"]
    # A square random matrix has singular values down to 0: density 1/(pi sqrt(n var)) per unit, i.e. n floor/(pi sqrt(n var)) below the floor.
    d_max, d_min = max(m.shape), min(m.shape)
    scale = m.null["frobenius"] / math.sqrt(d_min)
    expected = floor / (math.pi * scale) if m.null["s_min"] < 0.1 * scale else 0.0
    if m.metrics["near_zero_fraction"] < _is("collapse, share") or share < _is("collapse, times random") * expected or d_min < 4:
        return None
    init = math.sqrt(m.shape[0] / 3.0)  # torch's default, U(±1/sqrt(fan_in)): variance 1/(3 fan_in), so ||W||_F² = m/3
    over = m.kind in ("linear", "conv", "rnn") and m.metrics["frobenius"] < _is("over-regularized, times init") * init
    norm = f"||W||_F {m.metrics['frobenius']:.3g}, a default initialisation gives {init:.3g}"
    both = "less weight decay (Martin 2018: over-regularized)", 'a wider layer, or regularization that spreads the spectrum ("Eigenvalue Spectra")'
    return Finding(
        "severe" if share >= _is("collapse, severe share") else "warning",
        m.name,
        "rank collapse",
        f"rank {m.ranks['storage']} of {d_min}: {share:.0%} of the singular values are below {floor:.2g}, what rounding to {m.dtype}"
        + (f" ({m.effective_precision} bits used)" if m.dtype in ("float32", "float64") and m.effective_precision < 24 else "")
        + " hides",
        f"a random {d_max} x {d_min} matrix loses {expected:.1%}; {norm}",
        f"{both[0]}; otherwise {both[1]}" if over else f"{both[1]}; the other source: {both[0]}, though the norm does not show it",
        _source("collapse, share", "collapse, times random"),
        "weights",
    )


def _concentrated(m: MatrixSpectrum, peers: float) -> Finding | None:
    d_min = min(m.shape)
    # A random matrix keeps between 0.8 and 1 of its dimensions by this measure, so the share itself is the comparison.
    share = m.metrics["effective_rank"] / d_min
    if d_min < 16 or share >= _is("concentrated, effective rank") or m.metrics["near_zero_fraction"] >= _is("collapse, share"):
        return None
    return Finding(
        "warning",
        m.name,
        "uses only a few of its dimensions",
        f"effective rank {m.metrics['effective_rank']:.1f} of {d_min}, stable rank {m.metrics['stable_rank']:.1f}",
        f"stable rank of a random matrix of the shape {m.null['stable_rank']:.1f}",
        'a wider layer will not help; less weight decay (Martin 2018) or regularization that spreads the spectrum ("Eigenvalue Spectra")',
        _source("concentrated, effective rank"),
        "weights",
    )


def _condition(m: MatrixSpectrum, peers: float) -> Finding | None:
    condition = m.metrics["condition_number"]
    low = m.null["s_min_low"]
    random = m.null["spectral_norm"] / low if low > 0 else math.inf
    if condition < _is("condition") or condition < _is("condition, times random") * random or m.metrics["near_zero_fraction"] >= _is("collapse, share"):
        return None
    at_least = ">= " if m.metrics["condition_number_is_lower_bound"] else ""
    return Finding(
        "warning",
        m.name,
        "ill-conditioned: some directions learned much better than others",
        f"condition number {at_least}{condition:.2g} (of W Wᵀ {at_least}{m.metrics['gram_condition_number']:.2g})",
        f"1 % of random matrices of the shape exceed {random:.2g}",
        "normalisation before or after the layer; check the rank",
        _source("condition", "condition, times random"),
        "weights",
    )


def _alpha(m: MatrixSpectrum, peers: float) -> Finding | None:
    fit = m.power_law
    if fit.status != "ok" or fit.n_tail < _is("alpha, tail"):
        return None
    over, under = fit.alpha + 2 * fit.stderr < _is("alpha, over-trained"), fit.alpha - 2 * fit.stderr > _is("alpha, under-trained")
    if not (over or under):
        return None
    return Finding(
        "warning" if over else "info",
        m.name,
        "heavy tail: over-trained" if over else "light tail: under-trained",
        f"alpha {fit.alpha:.2f} ± {fit.stderr:.2f} on {fit.n_tail} eigenvalues above {fit.xmin:.3g}",
        "well-trained layers: 2 to 6; random matrices: mostly above 6",
        "a smaller learning rate or more data for this layer" if over else "train longer or with a larger learning rate; or the layer is too large for its task",
        _source("alpha, over-trained"),
        "weights",
    )


def _near_one(m: MatrixSpectrum, peers: float) -> Finding | None:
    evals = m.evals
    if not (evals[-1] > _is("near one, low") and evals[0] < _is("near one, high")):
        return None
    return Finding(
        "info",
        m.name,
        "well normalised, stable",
        f"all eigenvalues of W Wᵀ lie in [{evals[-1]:.2f}, {evals[0]:.2f}]",
        _beside(m, peers),
        "none",
        _source("near one, low"),
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
        f"kept as {m.dtype} ({FORMATS[m.dtype].precision} bits), but the entries use {m.effective_precision} bits",
        f"{m.effective_precision} bits are those of {known}" if known else "no common format has that many bits",
        f"singular values below {m.rank_tolerances['storage']:.2g} are rounding noise; the file can be smaller without loss",
        "ours: trailing zero bits of the significands",
        "weights",
    )


_WEIGHT_RULES: tuple[Callable[[MatrixSpectrum, float], Finding | None], ...] = (_amplifies, _dampens, _collapse, _concentrated, _condition, _alpha, _near_one, _rounded)


def curvature_findings(c: CurvatureSpectra, learning_rate: float | None = None) -> tuple[Finding, ...]:
    """Findings of the loss landscape. learning_rate: of plain gradient descent, where known."""
    found: list[Finding] = []
    where = "loss"
    if c.hessian_top is None or not len(c.hessian_top.values):
        return ()
    values, ok = c.hessian_top.values, bool(np.all(c.hessian_top.converged))
    top = float(values[0])
    if not ok:
        missing = int(np.count_nonzero(~np.asarray(c.hessian_top.converged)))
        found.append(
            Finding("warning", where, "some Hessian eigenvalues are not converged", f"{missing} of {len(values)}; largest residual {float(np.max(c.hessian_top.residuals)):.2g}",
                    f"tolerance {c.hessian_top.tol:.1g} x largest", "a larger budget or a looser tol", "ours", "curvature")
        )  # fmt: skip
    if top <= 0:
        return tuple(found)
    stable = 2.0 / top
    if learning_rate is not None and learning_rate > stable:
        found.append(
            Finding("warning", where, "the learning rate is above the stability threshold", f"lambda_1 {top:.3g}, so plain gradient descent is stable up to {stable:.3g}; the rate is {learning_rate:.3g}",
                    "2/lambda_1", "lower learning rate", "Cohen et al. 2021", "curvature")
        )  # fmt: skip
    tenth = float(values[min(9, len(values) - 1)])
    if len(values) > 1 and tenth > 0 and top > _is("sharp, outlier") * tenth:
        found.append(
            Finding("info", where, "few large eigenvalues: a sharp direction", f"lambda_1 {top:.3g}, number {len(values)} {tenth:.3g}",
                    f"gradient descent is stable below 2/lambda_1 = {stable:.3g}", "lower learning rate if the rate is near that threshold", _source("sharp, outlier"), "curvature")
        )  # fmt: skip
    if c.density is not None:
        small = float(np.sum(c.density.weights[np.abs(c.density.nodes) < _is("flat, times lambda_1") * top]))
        if small > _is("flat, share"):
            found.append(
                Finding("info", where, "most eigenvalues are small: flat, good for generalisation", f"{small:.1%} of {c.n_params} eigenvalues are below {_is('flat, times lambda_1'):.0%} of lambda_1",
                        f"trace/n {c.density.trace / c.n_params:.2g}, lambda_1 {top:.3g}", "none", _source("flat, share", "flat, times lambda_1"), "curvature")
            )  # fmt: skip
    if c.hessian_bottom is not None and len(c.hessian_bottom.values):
        low = float(c.hessian_bottom.values[-1])
        if low < -_is("negative") * top:
            found.append(
                Finding("info", where, "directions of negative curvature: not a minimum", f"lambda_min {low:.3g}, lambda_1 {top:.3g}", "at a minimum no eigenvalue is negative",
                        "train on; the GGN's eigenvalues are shown beside the Hessian's", _source("negative"), "curvature")
            )  # fmt: skip
    return tuple(found)


def gradient_findings(g: GradientSpectrum, batch_size: int | None = None) -> tuple[Finding, ...]:
    """Findings of the gradient covariance. batch_size: the loader's, where known."""
    found: list[Finding] = []
    if g.status == "ok" and g.top_share > _is("gradient, top share"):
        found.append(
            Finding("info", "gradients", "low-rank learning: normal, watch for stagnation", f"the ten largest eigenvalues hold {g.top_share:.0%} of the trace; effective rank {g.effective_rank:.1f} of {g.n_samples} samples",
                    f"equal directions would give {min(1.0, 10 / max(1, g.n_samples - 1)):.0%}", "batch size near the noise scale" + (f", {g.noise_scale:.3g}" if math.isfinite(g.noise_scale) else ""),
                    _source("gradient, top share"), "gradients")
        )  # fmt: skip
    if g.status == "ok" and not math.isfinite(g.noise_scale):
        found.append(
            Finding("info", "gradients", "the mean gradient drowns in sampling noise", f"tr C {g.trace:.3g}, debiased |g|² {g.gradient_norm2:.3g} on {g.n_samples} samples", "a positive |g|² is needed for a noise scale",
                    "more samples, or training has converged", "McCandlish et al. 2018", "gradients")
        )  # fmt: skip
    elif g.status == "ok" and batch_size is not None and g.noise_scale_interval[0] > batch_size:
        found.append(
            Finding("info", "gradients", "batches are noisier than they need to be", f"noise scale {g.noise_scale:.3g} (95 % {g.noise_scale_interval[0]:.3g} to {g.noise_scale_interval[1]:.3g})", f"the loader's batch size is {batch_size}",
                    "batch size near the noise scale", "McCandlish et al. 2018", "gradients")
        )  # fmt: skip
    return tuple(found)


def collapse_findings(n: NeuralCollapse) -> tuple[Finding, ...]:
    """Findings of neural collapse."""
    if n.status != "ok":
        return ()
    found: list[Finding] = []
    full = min(n.n_classes - 1, n.feature_dim)
    if n.nc1_rank < full:
        found.append(
            Finding("warning", n.layer, "class means span too few directions: dimensional collapse", f"rank {n.nc1_rank} of the between-class covariance", f"{n.n_classes} classes in {n.feature_dim} dimensions allow {full}",
                    "a wider layer, or regularization that spreads the features", _EIGEN, "collapse")
        )  # fmt: skip
    if n.nc1 < _is("collapsed, nc1"):
        found.append(
            Finding("info", n.layer, "features have collapsed to their class means", f"NC1 {n.nc1:.3g}, NC2 angles {n.nc2_angles:.3g}, NC3 {n.nc3:.3g}, NC4 {n.nc4:.3g}", "0 is full collapse",
                    "normal in the terminal phase of training; transfer to other tasks may suffer", _source("collapsed, nc1"), "collapse")
        )  # fmt: skip
    return tuple(found)
