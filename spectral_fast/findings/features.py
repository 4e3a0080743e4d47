"""Findings of neural collapse: what has become of the features at the classifier's input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .finding import Finding
from .thresholds import EIGENVALUE_SPECTRA, source_of, value_of

if TYPE_CHECKING:
    from ..collapse import NeuralCollapse

__all__ = ["collapse_findings"]


def collapse_findings(n: NeuralCollapse) -> tuple[Finding, ...]:
    """Findings of neural collapse."""
    if n.status not in ("ok", "unresolved"):  # unresolved: the class means are equal to rounding, which is a finding
        return ()
    if n.spread <= value_of("collapsed, point"):
        return (_one_point(n),)
    found = [f for f in (_directions(n), _class_means(n)) if f is not None]
    return tuple(found)


def _present(n: NeuralCollapse) -> int:
    """Classes that occur: absent ones have no mean, so no direction."""
    return int(np.count_nonzero(n.class_counts))


def _one_point(n: NeuralCollapse) -> Finding:
    return Finding(
        severity="severe",
        where=n.layer,
        title="features have collapsed to one point",
        evidence=f"the features of {n.n_samples} samples differ by {n.spread:.2g} of the length of their mean",
        comparison="0 is complete collapse; fresh networks, even those of tiny weights, keep 0.0009 and more",
        advice="look for the layer before it that lets nothing through: dead units, weights that decayed to zero, a saturated activation",
        source=source_of("collapsed, point"),
        analysis="collapse",
    )


def _directions(n: NeuralCollapse) -> Finding | None:
    present = _present(n)
    full = min(present - 1, n.feature_dim - 1)  # a normalisation layer before the classifier takes one direction away
    values = np.asarray(n.mean_values)
    wide = int(np.count_nonzero(values > value_of("collapsed, direction") * values.max(initial=0.0)))
    few = wide <= value_of("collapsed, directions") * full
    if n.nc1_rank >= full and not few:
        return None
    lost = f"rank {n.nc1_rank} of the between-class covariance"
    narrow = f"along {wide} directions only the class means differ by more than {value_of('collapsed, direction'):.0%} of the widest"
    return Finding(
        severity="warning",
        where=n.layer,
        title="class means span too few directions: dimensional collapse",
        evidence="; ".join([lost] * (n.nc1_rank < full) + [narrow] * few),
        comparison=f"{present} classes in {n.feature_dim} dimensions allow {full}",
        advice="a wider layer, or regularization that spreads the features",
        source=source_of("collapsed, direction", "collapsed, directions") if few else EIGENVALUE_SPECTRA,
        analysis="collapse",
    )


def _class_means(n: NeuralCollapse) -> Finding | None:
    # a class of one sample has collapsed by itself
    if not n.nc1 < value_of("collapsed, nc1") or n.n_samples < 2 * _present(n):
        return None
    return Finding(
        severity="info",
        where=n.layer,
        title="features have collapsed to their class means",
        evidence=f"NC1 {n.nc1:.3g}, NC2 angles {n.nc2_angles:.3g}, NC3 {n.nc3:.3g}, NC4 {n.nc4:.3g}",
        comparison="0 is full collapse",
        advice="normal in the terminal phase of training; transfer to other tasks may suffer",
        source=source_of("collapsed, nc1"),
        analysis="collapse",
    )
