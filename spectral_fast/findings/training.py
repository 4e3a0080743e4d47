"""Findings of gradients and curvature."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .finding import Finding
from .stability import Stability
from .thresholds import source_of, value_of

if TYPE_CHECKING:
    from ..curvature import CurvatureSpectra
    from ..gradients import GradientSpectrum

__all__ = ["curvature_findings", "gradient_findings"]

_LOSS = "loss"  # where curvature findings are


def curvature_findings(c: CurvatureSpectra, stability: Stability | None = None) -> tuple[Finding, ...]:
    """Findings of the loss landscape. stability: the threshold of the optimizer in use, where known."""
    if c.hessian_top is None or not len(c.hessian_top.values):
        return ()
    if (c.preflight is not None and c.preflight.status == "unresolved") or c.hessian_top.status == "unresolved":
        return (_unresolved(c),)
    values = c.hessian_top.values
    top = float(values[0])
    found = [_unconverged(c)] if not np.all(c.hessian_top.converged) else []
    if top <= 0 or top <= c.value_floor:
        return tuple(found)
    stable = 2.0 / top
    if c.sharpness is not None:
        beyond, value, threshold, rule = c.sharpness.value > c.sharpness.threshold, c.sharpness.value, c.sharpness.threshold, c.sharpness.rule
        what = f"lambda_1 {value:.3g}" if math.isclose(value, top, rel_tol=1e-6) else f"lambda_1 {value:.3g} as this optimizer sees it"
    elif stability is not None:
        decay = f" + weight decay {stability.weight_decay:.3g}" if stability.weight_decay else ""
        beyond, threshold, rule, what = top + stability.weight_decay > stability.threshold, stability.threshold, stability.rule, f"lambda_1 {top:.3g}{decay}"
    else:
        beyond, threshold, rule, what = False, math.inf, "", ""
    if beyond:
        found.append(
            Finding(
                severity="warning",
                where=_LOSS,
                title="the learning rate is above the stability threshold",
                evidence=f"{what} is above {threshold:.3g}",
                comparison=f"the threshold is {rule}",
                advice="lower learning rate",
                source="Cohen et al. 2021",
                analysis="curvature",
            )
        )
    last = float(values[min(9, len(values) - 1)])
    if len(values) > 1 and last > 0 and top > value_of("sharp, outlier") * last:
        found.append(
            Finding(
                severity="info",
                where=_LOSS,
                title="few large eigenvalues: a sharp direction",
                evidence=f"lambda_1 {top:.3g}, number {min(10, len(values))} {last:.3g}",
                comparison=f"gradient descent is stable below 2/lambda_1 = {stable:.3g}",
                advice="lower learning rate if the rate is near that threshold",
                source=source_of("sharp, outlier"),
                analysis="curvature",
            )
        )
    if c.density is not None:
        small = float(np.sum(c.density.weights[np.abs(c.density.nodes) < value_of("flat, times lambda_1") * top]))
        if small > value_of("flat, share"):
            found.append(
                Finding(
                    severity="info",
                    where=_LOSS,
                    title="most eigenvalues are small: flat, good for generalisation",
                    evidence=f"about {small:.1%} of {c.n_params} eigenvalues are below {value_of('flat, times lambda_1'):.0%} of lambda_1",
                    comparison=f"trace/n {c.density.trace / c.n_params:.2g}, lambda_1 {top:.3g}",
                    advice="none",
                    source=source_of("flat, share", "flat, times lambda_1"),
                    analysis="curvature",
                )
            )
    if c.hessian_bottom is not None and len(c.hessian_bottom.values):
        low = float(c.hessian_bottom.values[-1])
        # within the noise of the products a sign is not known
        if low < -value_of("negative") * top and not low >= -c.value_floor:
            found.append(
                Finding(
                    severity="info",
                    where=_LOSS,
                    title="directions of negative curvature: not a minimum",
                    evidence=f"lambda_min {low:.3g}, lambda_1 {top:.3g}",
                    comparison="at a minimum no eigenvalue is negative",
                    advice="train on" + ("; the GGN's eigenvalues stand beside the Hessian's" if c.ggn_top is not None else ""),
                    source=source_of("negative"),
                    analysis="curvature",
                )
            )
    return tuple(found)


def _unresolved(c: CurvatureSpectra) -> Finding:
    """In place of all others: what is said of the eigenvalues of another matrix would not be said of the loss."""
    assert c.hessian_top is not None
    return Finding(
        severity="warning",
        where=_LOSS,
        title="the Hessian's eigenvalues are unresolved",
        evidence=(c.preflight.reason if c.preflight is not None else "") or c.hessian_top.reason,
        comparison="products are checked for repeats, linearity, symmetry and against differences of the gradient",
        advice="mend or replace the layer that is named, or run it in float64",
        source="ours",
        analysis="curvature",
    )


def _unconverged(c: CurvatureSpectra) -> Finding:
    pairs = c.hessian_top
    assert pairs is not None
    missing = int(np.count_nonzero(~np.asarray(pairs.converged)))
    return Finding(
        severity="warning",
        where=_LOSS,
        title="some Hessian eigenvalues are not converged",
        evidence=f"{missing} of {len(pairs.values)}; largest residual {float(np.max(pairs.residuals)):.2g}",
        comparison=f"tolerance {pairs.tol:.1g} x largest",
        advice="a larger budget or a looser tol",
        source="ours",
        analysis="curvature",
    )


def gradient_findings(g: GradientSpectrum, batch_size: int | None = None, n_classes: int | None = None) -> tuple[Finding, ...]:
    """Findings of the gradient covariance. batch_size: the loader's, n_classes: those that occur; where known."""
    if g.status != "ok":
        return ()
    found: list[Finding] = []
    # gradients through logits of C classes fill C - 1 directions at least, also in fresh networks: fewer is what has been learned
    if n_classes is not None and g.effective_rank < value_of("gradient, effective rank") * (n_classes - 1):
        scale = f", {g.noise_scale:.3g}" if math.isfinite(g.noise_scale) else ""
        found.append(
            Finding(
                severity="info",
                where="gradients",
                title="low-rank learning: normal, watch for stagnation",
                evidence=f"the ten largest eigenvalues hold {g.top_share:.0%} of the trace; effective rank {g.effective_rank:.1f}, {g.n_samples} samples",
                comparison=f"in fresh networks the effective rank is about {n_classes - 1}, the number of classes less one, or more",
                advice=f"batch size near the noise scale{scale}",
                source=source_of("gradient, effective rank"),
                analysis="gradients",
            )
        )
    if not math.isfinite(g.noise_scale):
        found.append(
            Finding(
                severity="info",
                where="gradients",
                title="the mean gradient drowns in sampling noise",
                evidence=f"tr C {g.trace:.3g}, debiased |g|² {g.gradient_norm2:.3g} on {g.n_samples} samples",
                comparison="a positive |g|² is needed for a noise scale",
                advice="more samples, or training has converged",
                source="McCandlish et al. 2018",
                analysis="gradients",
            )
        )
    elif batch_size is not None and g.noise_scale_interval[0] > batch_size:
        low, high = g.noise_scale_interval
        found.append(
            Finding(
                severity="info",
                where="gradients",
                title="batches are noisier than they need to be",
                evidence=f"noise scale {g.noise_scale:.3g} samples (95 %: {low:.3g} to {high:.3g})",
                comparison=f"the loader's batch size is {batch_size}",
                advice="batch size near the noise scale",
                source="McCandlish et al. 2018",
                analysis="gradients",
            )
        )
    return tuple(found)
