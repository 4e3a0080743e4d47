"""The largest curvature an optimizer can follow without oscillating away."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Stability", "stability_of"]


class Stability(NamedTuple):
    """lambda_1 + weight_decay beyond ``threshold`` is unstable; ``rule``: the formula and the numbers it was given."""

    threshold: float
    weight_decay: float
    rule: str


def stability_of(optimizer: Any) -> Stability | str:
    """Threshold of a ``torch.optim.SGD``, or a sentence why there is none.

    Gradient descent 2/lr; heavy ball (2 + 2 beta)/lr; Nesterov (2 + 2 beta)/(lr (1 + 2 beta)) (Cohen et al. 2021); coupled weight decay adds to
    lambda_1. Several parameter groups with different settings, dampening and adaptive optimizers have no such threshold here.
    """
    name = type(optimizer).__name__
    groups = getattr(optimizer, "param_groups", None)
    if name != "SGD" or not groups:
        return f"optimizer {name}: no stability threshold is compared (only SGD's are known here)"
    settings = {(float(g["lr"]), float(g["momentum"]), bool(g["nesterov"]), float(g["weight_decay"]), float(g["dampening"])) for g in groups}
    if len(settings) > 1:
        return "optimizer SGD: its parameter groups differ, so there is no one stability threshold"
    lr, beta, nesterov, decay, dampening = settings.pop()
    if dampening or lr <= 0:
        return f"optimizer SGD: no stability threshold for dampening {dampening:g}, lr {lr:g}"
    if nesterov:
        return Stability((2 + 2 * beta) / (lr * (1 + 2 * beta)), decay, f"(2 + 2 beta)/(lr (1 + 2 beta)) with lr {lr:g}, beta {beta:g}")
    if beta:
        return Stability((2 + 2 * beta) / lr, decay, f"(2 + 2 beta)/lr with lr {lr:g}, beta {beta:g}")
    return Stability(2 / lr, decay, f"2/lr with lr {lr:g}")
