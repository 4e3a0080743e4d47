"""The largest curvature an optimizer can follow without oscillating away, as a finding compares it with lambda_1 of the Hessian."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Stability", "stability_of"]


class Stability(NamedTuple):
    """lambda_1 + weight_decay beyond ``threshold`` is unstable; ``rule``: the formula and the numbers it was given."""

    threshold: float
    weight_decay: float
    rule: str


def stability_of(optimizer: Any) -> Stability | str:
    """Threshold for lambda_1 of the Hessian of a ``torch.optim.SGD``, or a sentence why there is none: parameter groups that differ and
    adaptive optimizers have one for another operator (curvature.sharpness.stability_rule gives both)."""
    from ..curvature.sharpness import stability_rule

    found = stability_rule(optimizer)
    if isinstance(found, str):
        return found
    return Stability(found.threshold, float(found.weight_decay), found.rule)
