"""Findings of the weight matrices: one rule per pattern, each beside the baseline or a random matrix of the shape, and the layers of its role."""

from __future__ import annotations

from collections.abc import Callable

from ..weights.spectra import MatrixSpectrum, WeightSpectra
from .beside import Beside, Layers
from .dimensions import concentrated, condition, dead, rank_collapse, rounded
from .finding import SEVERITIES, Finding
from .size import heavy_or_light_tail, near_one, scale, spike

__all__ = ["weight_findings"]

Rule = Callable[[MatrixSpectrum, Beside], "Finding | None"]

_RULES: tuple[Rule, ...] = (scale, spike, rank_collapse, dead, concentrated, condition, heavy_or_light_tail, near_one, rounded)


def weight_findings(spectra: WeightSpectra) -> tuple[Finding, ...]:
    """Findings of the weight matrices, severest first.

    Where the spectra were made with a baseline, every matrix is compared with the one of its name there; those without a partner
    (``spectra.not_compared``), and all without a baseline, with a random matrix of the shape. Layers are compared with those of their role where there
    are at least three others, else with all; ``comparison`` says which.
    """
    found = [f for m in spectra.matrices if (f := _not_analysed(m)) is not None]
    # A LoRA product has rank r by construction and no random matrix beside it: its factors are judged, not it.
    usable = [m for m in spectra.matrices if m.status == "ok" and m.kind != "lora"]
    layers = Layers(usable)
    for m in usable:
        beside = Beside(layers.peers(m), m.baseline or None, missing=bool(spectra.baseline) and not m.baseline)
        found += [f for rule in _RULES if (f := rule(m, beside)) is not None]
    return tuple(sorted(found, key=lambda f: -SEVERITIES.index(f.severity)))


def _not_analysed(m: MatrixSpectrum) -> Finding | None:
    if m.status == "failed":
        return Finding(
            severity="severe",
            where=m.name,
            title="not analysed: not finite" if "not finite" in m.reason else "not analysed",
            evidence=m.reason,
            comparison="a healthy matrix has finite entries only",
            advice="find the step where it appeared; restart from before it",
            source="IEEE 754",
            analysis="weights",
        )
    if m.reason == "zero matrix":
        return Finding(
            severity="warning",
            where=m.name,
            title="zero matrix",
            evidence=f"all {m.shape[0]} x {m.shape[1]} entries are 0",
            comparison="some layers are zero at the start by design, none after training",
            advice="check that it is meant to be",
            source="ours",
            analysis="weights",
        )
    return None
