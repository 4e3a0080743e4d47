"""Findings about how large a matrix is: its whole, its largest value, its tail."""

from __future__ import annotations

import math

from ..weights.spectra import MatrixSpectrum
from .beside import Beside, deviation, gain
from .finding import Finding
from .thresholds import source_of, value_of

__all__ = ["heavy_or_light_tail", "near_one", "scale", "spike"]


def scale(m: MatrixSpectrum, beside: Beside) -> Finding | None:
    """Larger or smaller than the matrix of the baseline; without one, than the other layers."""
    if min(m.shape) < value_of("peers, d_min"):
        return None
    if beside.baseline is not None:
        what, whose = "size of the entries", "in the baseline"
        ratio = m.metrics["frobenius"] / beside.baseline["frobenius"]
        margin = math.log(value_of("scale, times peers"))
    elif m.kind != "embedding":
        peers = beside.peers
        by_gain = peers.gain.spread <= peers.deviation.spread
        yardstick, own = (peers.gain, gain(m)) if by_gain else (peers.deviation, deviation(m))
        what, whose = "gain" if by_gain else "size of the entries", f"that of {peers.who}"
        ratio = own / yardstick.median
        margin = max(math.log(value_of("scale, times peers")), value_of("scale, spreads") * yardstick.spread)
    else:
        return None
    if not abs(math.log(ratio)) > margin:  # not above, or NaN
        return None
    large = ratio > 1
    return Finding(
        severity="warning",
        where=m.name,
        title="amplifies; exploding gradients possible" if large else "dampens; vanishing gradients possible",
        evidence=f"{what} {ratio:.2g} x {whose}; largest eigenvalue of W Wᵀ {m.metrics['lambda_max']:.3g}",
        comparison=beside.words(m),
        advice="spectral normalisation, a smaller initialisation or learning rate; harmless where a normalisation layer follows"
        if large
        else "initialisation, scale of the residual branch; harmless where a normalisation layer follows",
        source=source_of("amplifies, lambda_max" if large else "dampens, lambda_max", "scale, times peers"),
        analysis="weights",
    )


def spike(m: MatrixSpectrum, beside: Beside) -> Finding | None:
    """A largest value far above the random bulk; with a baseline, one that stands out further than the baseline's own."""
    resolved = m.mp.status == "ok"
    # The edge of a random bulk, or its last value where it ends earlier (orthogonal matrices); where no bulk is resolved, a random matrix's norm.
    below = min(m.mp.n_spikes if resolved and m.mp.n_spikes > 0 else 1, len(m.s) - 1)
    edge = min(math.sqrt(m.mp.upper_edge) if resolved else m.null["spectral_norm"], float(m.s[below]))
    edge = max(edge, m.rank_tolerances["storage"])  # a matrix of rank one has nothing but noise below
    of_what = f"the edge of the bulk, above which {m.mp.n_spikes} of {len(m.s)} values lie" if resolved else "a random matrix's norm or the next value"
    top = m.metrics["spectral_norm"]
    if beside.baseline is not None:
        # the baseline's largest value, in a matrix whose other values are as large as here
        rest, before_rest = (_without_top(x) for x in (m.metrics, beside.baseline))
        before = beside.baseline["spectral_norm"] * rest / before_rest if before_rest > 0 else math.inf
        if before > edge:
            edge, of_what = before, "the baseline's largest value, the other values scaled to the same norm"
    if m.kind == "embedding" or min(m.shape) < 2 or not top > value_of("spike, times edge") * edge or (resolved and m.mp.n_spikes == 0):
        return None
    amplifies = m.metrics["lambda_max"] >= value_of("amplifies, lambda_max")
    return Finding(
        severity="warning" if amplifies and top > value_of("spike, warning") * edge else "info",
        where=m.name,
        title="stands out of the bulk and amplifies" if amplifies else "stands out of the bulk",
        evidence=f"s_1 {top:.3g} is {top / edge:.1f} x {of_what}; largest eigenvalue of W Wᵀ {m.metrics['lambda_max']:.3g}",
        comparison=beside.words(m),
        advice="learned structure in most trained layers; where training is unstable, spectral normalisation or a smaller learning rate",
        source=source_of("spike, times edge", "amplifies, lambda_max"),
        analysis="weights",
    )


def _without_top(metrics: dict[str, float]) -> float:
    """Frobenius norm of all but the largest value."""
    return math.sqrt(max(0.0, metrics["stable_rank"] - 1.0)) * metrics["spectral_norm"]


def heavy_or_light_tail(m: MatrixSpectrum, beside: Beside) -> Finding | None:
    """alpha outside 2 to 6; with a baseline, where the baseline's is not beyond the same limit."""
    fit = m.power_law
    short = m.metrics["lambda_max"] < value_of("alpha, span") * fit.xmin  # a flat spectrum has no tail, whatever its exponent
    if fit.status != "ok" or fit.n_tail < value_of("alpha, tail") or short:
        return None
    margin = value_of("alpha, stderrs") * fit.stderr
    low, high = value_of("alpha, over-trained"), value_of("alpha, under-trained")
    over, under = fit.alpha + margin < low, fit.alpha - margin > high
    before = math.nan if beside.baseline is None else beside.baseline["alpha"]
    if not (over or under) or (over and before < low) or (under and before > high):
        return None
    # only a tail that is long and looks like a power law is worth a warning
    sound = fit.n_tail >= value_of("alpha, warning tail") and fit.D * math.sqrt(fit.n_tail) <= value_of("alpha, distance")
    usual = "well-trained layers: 2 to 6; large random matrices: above 6"
    return Finding(
        "warning" if over and sound else "info",
        m.name,
        "heavy tail: over-trained" if over else "light tail: under-trained",
        f"alpha {fit.alpha:.2f} ± {fit.stderr:.2f} on {fit.n_tail} of {len(m.s)} eigenvalues, distance D {fit.D:.2g}",
        usual if math.isnan(before) else f"in the baseline alpha is {before:.2f}; {usual}",
        "a smaller learning rate or more data for this layer"
        if over
        else "train longer or with a larger learning rate; or the layer is too large for its task",
        source_of("alpha, over-trained"),
        "weights",
    )


def near_one(m: MatrixSpectrum, beside: Beside) -> Finding | None:
    """All eigenvalues near 1."""
    evals = m.evals
    if not (evals[-1] > value_of("near one, low") and evals[0] < value_of("near one, high")):
        return None
    return Finding(
        "info",
        m.name,
        "well normalised, stable",
        f"all eigenvalues of W Wᵀ lie in [{evals[-1]:.2f}, {evals[0]:.2f}]",
        beside.words(m),
        "none",
        source_of("near one, low"),
        "weights",
    )
