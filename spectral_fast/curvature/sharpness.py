"""Sharpness against what an optimizer can follow: stability thresholds, the preconditioned Hessian, the tiny subspace.

On a quadratic loss with Hessian H an optimizer of learning rate lr is a linear map, stable while no eigenvalue leaves the unit circle
through -1 (Cohen et al. 2021 for gradient descent and momentum, Cohen et al. 2022 for Adam with its preconditioner P held fixed):

    gradient descent   lambda_1(H) < 2/lr
    heavy ball         lambda_1(H) < (2 + 2 beta)/lr,                   with dampening d: / (1 - d)
    Nesterov           lambda_1(H) < (2 + 2 beta)/(lr (1 + 2 beta))
    RMSprop            lambda_1(P^-1 H) < 2/lr, with momentum (2 + 2 beta)/lr
    Adam               lambda_1(P^-1 H) < (2 + 2 beta1)/((1 - beta1) lr)

Coupled weight decay wd (added to the gradient) makes H + wd I of H. Decoupled decay (AdamW: x shrinks by lr wd in each step) multiplies
the threshold by 1 - lr wd/2. Groups i that differ: with D the diagonal of threshold_i P, the crossing of -1 is that of
lambda_1(D^-1 (H + W)) through 1; with x the vector that crosses, xᵀ times the recurrence is a real quadratic whose roots have a product
below 1, so nothing crosses elsewhere. This holds for different learning rates, decays and betas; with Nesterov's momentum for one beta.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..linalg.arrays import as_float64, as_numpy
from ..linalg.products import check_operator, vector_product
from ..linalg.share import PIECE, Share
from ..linalg.spread import Spread, spread_of
from ..linalg.trace_methods import block_product, takes_blocks

__all__ = ["Preconditioned", "StabilityRule", "gradient_share", "preconditioned", "stability_rule"]

F64 = NDArray[np.float64]

KNOWN = ("SGD", "Adam", "AdamW", "RMSprop")


class Preconditioned:
    """P^-1/2 (A + W) P^-1/2 for a symmetric A (n, n), diagonal P > 0 and W: the eigenvalues of P^-1 (A + W); an eigenvector w of this
    gives P^-1/2 w of that. .shape, .blocks (those of A), @ with v (n,) or V (n, b), float64."""

    def __init__(self, op: Any, p: F64, shift: F64) -> None:
        self.op, self.shape = op, tuple(op.shape)
        self.scale = 1.0 / np.sqrt(p)
        self.shift = shift * self.scale**2
        blocks = getattr(op, "blocks", None)
        self.blocks: dict[str, slice] = dict(blocks) if isinstance(blocks, Mapping) else {}
        self.takes_blocks = takes_blocks(op)
        self.running = getattr(op, "running", nullcontext)
        self._apply = vector_product(op)

    @property
    def sharded(self) -> Spread | None:
        """As that of ``op``: every process holds its columns of the Krylov basis."""
        spread = spread_of(self.op)
        return None if spread is None else _SpreadPreconditioned(spread, self.scale, self.shift)

    def __matmul__(self, v: Any) -> F64:
        x = as_float64(v)
        if x.ndim not in (1, 2) or x.shape[0] != self.shape[0]:
            raise ValueError(f"v: wanted shape ({self.shape[0]},) or ({self.shape[0]}, b), got {x.shape}")
        if x.ndim == 1:
            return np.asarray(self.scale * self._apply(self.scale * x) + self.shift * x)
        scaled = np.asfortranarray(self.scale[:, None] * x)
        if self.takes_blocks:
            w = block_product(self.op, scaled)
        else:
            w = np.stack([self._apply(scaled[:, j]) for j in range(x.shape[1])], axis=1) if x.shape[1] else np.zeros(x.shape)
        return np.asarray(self.scale[:, None] * w + self.shift[:, None] * x)


class _SpreadPreconditioned:
    """Products of a Preconditioned for the columns of ``spread``: rows (b, width) -> (b, width), float64."""

    def __init__(self, spread: Spread, scale: F64, shift: F64) -> None:
        self.share, self._spread = spread.share, spread
        self._scale, self._shift = scale[self.share.columns], shift[self.share.columns]

    def __call__(self, v: NDArray[Any], /) -> NDArray[Any]:
        x = v.astype(np.float64)
        return np.asarray(self._scale * self._spread(self._scale * x) + self._shift * x)

    def gather(self, rows: NDArray[Any]) -> NDArray[Any]:
        return self._spread.gather(rows)

    def least(self, x: int) -> int:
        return self._spread.least(x)

    def one_interrupt(self) -> AbstractContextManager[None]:
        return self._spread.one_interrupt()


def preconditioned(op: Any, p: Any, shift: Any = 0.0) -> Preconditioned:
    """P^-1/2 (op + diag(shift)) P^-1/2 as an operator for eigsh. p: (n,), positive; shift: number or (n,).

    Raises TypeError, ValueError naming the argument.
    """
    n = check_operator(op)
    diagonal, add = as_float64(p), np.broadcast_to(as_float64(shift), (n,)) if np.ndim(shift) == 0 else as_float64(shift)
    for name, x in (("p", diagonal), ("shift", add)):
        if x.shape != (n,):
            raise ValueError(f"{name}: wanted shape ({n},), got {x.shape}")
        if not np.isfinite(x).all():
            raise ValueError(f"{name}: {int((~np.isfinite(x)).sum())} of {n} entries are NaN or Inf")
    if not (diagonal > 0).all():
        raise ValueError(f"p: wanted positive entries, {int((diagonal <= 0).sum())} of {n} are not")
    return Preconditioned(op, diagonal, add)


def gradient_share(vectors: Any, gradient: Any, share: Share | None = None) -> float:
    """||P g||² / ||g||², the share of the gradient in the span of ``vectors`` (Gur-Ari, Roberts & Dyer 2018), between 0 and 1.

    vectors: (n, k), orthonormal columns; gradient: (n,), whose squares fit in float64. share: where ``vectors`` are only those of the n rows that this
    process holds (EigenResult.columns); all processes get the same number. NaN for a gradient of zero and for vectors with NaN.
    Raises ValueError naming the argument.
    """
    g = as_numpy(gradient)
    if share is not None and g.shape == (share.n,):
        g = g[share.columns]
    if len(vectors.shape) != 2 or g.shape != tuple(vectors.shape[:1]):
        raise ValueError(f"vectors, gradient: wanted shapes (n, k) and (n,), got {tuple(vectors.shape)} and {g.shape}")
    inside, size = np.zeros(vectors.shape[1]), 0.0
    for a in range(0, len(g), PIECE):  # in float64, without a float64 copy of the vectors
        piece = g[a : a + PIECE].astype(np.float64)
        inside += piece @ as_float64(vectors[a : a + PIECE])
        size += float(piece @ piece)
    if share is not None and share.reduce is not None:
        share.reduce(sums := np.array([*inside, size]))
        inside, size = sums[:-1], float(sums[-1])
    return min(1.0, float(inside @ inside) / size) if size > 0.0 and np.isfinite(inside).all() else float("nan")


@dataclass(frozen=True)
class StabilityRule:
    """Unstable when lambda_1 of ``operator(H)`` is beyond ``threshold``. weight_decay: coupled, what it adds to H's diagonal, and
    preconditioner: P, each (n,) in the operator's order where it is not one number for all; None: P = I. rule: the formula in words."""

    threshold: float
    rule: str
    weight_decay: float | F64 = 0.0
    preconditioner: F64 | None = None

    @property
    def plain(self) -> bool:
        """Whether lambda_1(H) + weight_decay is what the threshold is for."""
        return self.preconditioner is None and isinstance(self.weight_decay, float)

    def operator(self, op: Any) -> Any:
        """``op`` itself for gradient descent and momentum without decay, else P^-1/2 (op + decay) P^-1/2."""
        if self.plain and self.weight_decay == 0.0:
            return op
        p = np.ones(op.shape[0]) if self.preconditioner is None else self.preconditioner
        return preconditioned(op, p, self.weight_decay)


@dataclass(frozen=True)
class _Group:
    """What a parameter group's settings make of the rule; words: its formula. mix: what has to agree in all groups (Nesterov's beta)."""

    threshold: float
    decay: float
    adaptive: bool
    words: str
    mix: tuple[bool, float]


def _adam(group: Mapping[str, Any], name: str, lr: float) -> _Group:
    beta, decay = float(group["betas"][0]), float(group["weight_decay"])
    decoupled = bool(group.get("decoupled_weight_decay", name == "AdamW"))
    shrink = 1.0 - lr * decay / 2 if decoupled else 1.0
    factor = f"(1 - lr wd/2) with wd {decay:g}, " if decoupled and decay else "with "
    words = f"(2 + 2 beta1)/((1 - beta1) lr) {factor}lr {lr:g}, beta1 {beta:g}"
    return _Group(shrink * (2 + 2 * beta) / ((1 - beta) * lr), 0.0 if decoupled else decay, True, words, (False, 0.0))


def _momentum(group: Mapping[str, Any], name: str, lr: float) -> _Group:
    beta, decay, adaptive = float(group["momentum"]), float(group["weight_decay"]), name == "RMSprop"
    dampening = float(group.get("dampening", 0.0)) if beta else 0.0
    if dampening >= 1.0:
        raise ValueError(f"dampening {dampening:g}")
    if group.get("nesterov") and beta:
        return _Group((2 + 2 * beta) / (lr * (1 + 2 * beta)), decay, adaptive, f"(2 + 2 beta)/(lr (1 + 2 beta)) with lr {lr:g}, beta {beta:g}", (True, beta))
    if not beta:
        return _Group(2 / lr, decay, adaptive, f"2/lr with lr {lr:g}", (False, 0.0))
    damped, also = ("/(1 - dampening)", f", dampening {dampening:g}") if dampening else ("", "")
    return _Group((2 + 2 * beta) / (lr * (1 - dampening)), decay, adaptive, f"(2 + 2 beta)/lr{damped} with lr {lr:g}, beta {beta:g}{also}", (False, 0.0))


def _group(group: Mapping[str, Any], name: str) -> _Group:
    """Raises ValueError with what there is no threshold for."""
    lr = float(group["lr"])
    if not lr > 0.0 or not np.isfinite(lr):
        raise ValueError(f"lr {lr:g}")
    if group.get("maximize"):
        raise ValueError("maximize=True")
    made = (_adam if name in ("Adam", "AdamW") else _momentum)(group, name, lr)
    if not made.threshold > 0.0:
        raise ValueError(f"weight decay {float(group['weight_decay']):g}, more than 2/lr")
    return made


def _diagonal(optimizer: Any, group: Mapping[str, Any], parameter: Any, name: str, at: str) -> F64:
    """P of one parameter as its last step had it (Cohen et al. 2022, with both of Adam's bias corrections), flat. Raises ValueError."""
    state = optimizer.state.get(parameter) or {}
    key = "square_avg" if name == "RMSprop" else "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    if key not in state:
        raise ValueError(f"its first step (no {key} of {at})")
    second = as_float64(state[key]).reshape(-1)
    if name == "RMSprop":
        if group.get("centered"):
            second = second - as_float64(state["grad_avg"]).reshape(-1) ** 2
        return np.asarray(np.sqrt(np.maximum(second, 0.0)) + float(group["eps"]))
    step = float(state["step"])
    beta1, beta2 = (float(b) for b in group["betas"])
    return np.asarray((1 - beta1**step) * (np.sqrt(second / (1 - beta2**step)) + float(group["eps"])))


def _ordered(parameters: Any) -> Mapping[str, Any]:
    """name -> parameter in the operator's order."""
    if isinstance(parameters, Mapping):
        return parameters
    names, model = getattr(parameters, "names", None), getattr(parameters, "model", None)
    if names is None or model is None:
        raise TypeError(f"parameters: wanted a mapping of names to parameters or an operator on a model's, got {type(parameters).__name__}")
    found = dict(model.named_parameters(remove_duplicate=False))
    return {name: found[name] for name in names}


def stability_rule(optimizer: Any, parameters: Any = None) -> StabilityRule | str:
    """The rule of a ``torch.optim`` SGD, Adam, AdamW or RMSprop as its settings and state are now, or a sentence why there is none.

    parameters: name -> parameter in the order of the flat vectors, or the ModelOperator itself; groups without any of these do not
    count. Needed for adaptive optimizers and for groups that differ: their rule is about P^-1 (H + W), see ``StabilityRule.operator``.
    Raises TypeError for parameters of another kind.
    """
    name = type(optimizer).__name__
    groups: Sequence[Mapping[str, Any]] = getattr(optimizer, "param_groups", None) or ()
    if name not in KNOWN or not groups:
        return f"optimizer {name}: no stability threshold is compared (known: {', '.join(KNOWN)})"
    order = None if parameters is None else _ordered(parameters)
    home = {id(p): i for i, g in enumerate(groups) for p in g["params"]}
    if order is not None:
        outside = [at for at, p in order.items() if id(p) not in home]
        if outside:
            return f"optimizer {name}: {len(outside)} of {len(order)} parameters are not among its own ({', '.join(outside[:3])}): no stability threshold"
    used = range(len(groups)) if order is None else sorted({home[id(p)] for p in order.values()})
    try:
        made = {i: _group(groups[i], name) for i in used}
    except ValueError as why:
        return f"optimizer {name}: no stability threshold for {why}"
    first = made[used[0]]
    same = all(m == first for m in made.values())
    if same and not first.adaptive:
        return StabilityRule(first.threshold, first.words, first.decay)
    if len({m.mix for m in made.values()}) > 1:
        return f"optimizer {name}: its parameter groups differ in Nesterov's momentum, so there is no one stability threshold"
    if order is None and not same:
        return f"optimizer {name}: its parameter groups differ, so there is no one stability threshold for lambda_1 of H"
    if order is None:
        return f"optimizer {name}: lambda_1 of P^-1 H, not of H, is what its threshold {first.threshold:.3g} is for ({first.words})"
    p, decay = [], []
    try:
        for at, parameter in order.items():
            i = home[id(parameter)]
            diagonal = _diagonal(optimizer, groups[i], parameter, name, at) if first.adaptive else np.ones(parameter.numel())
            p.append(diagonal if same else made[i].threshold * diagonal)
            decay.append(np.full(len(diagonal), made[i].decay))
    except ValueError as why:
        return f"optimizer {name}: no stability threshold before {why}"
    if same:
        return StabilityRule(first.threshold, first.words, first.decay, np.concatenate(p))
    words = "1 for P^-1 (H + weight decay), P times each group's own threshold: " + "; ".join(dict.fromkeys(m.words for m in made.values()))
    return StabilityRule(1.0, words, np.concatenate(decay), np.concatenate(p))
