"""Is the loss a function of the parameters at all, and is its second derivative the matrix it should be? What has to hold before
curvature means anything, measured with four products and two gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..linalg.share import PIECE, Share
from ..probing.operator import ModelOperator
from ..results import Status
from .operators import Hessian

__all__ = ["Preflight", "preflight"]

# A residual can be asked for down to so many times the noise of one product: it is the difference of a product and a vector, each as
# uncertain as the product, and a run adds many products.
NOISE_FACTOR = 4.0
# Rounding alone leaves defects of some hundred eps in deep nets and, where a softmax is saturated, products of 1e-4 of what was added up for them: up to
# so many times the square root of eps. A matrix that is not symmetric, or not a matrix, leaves more.
ROUNDING = 30.0
# Central differences and products agree to a few percent where the third derivative is of ordinary size; a part of the loss cut off
# by detach() leaves differences of the size of the product itself.
DIFFERENCE = 0.1


Vector = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What was measured, with u and v of random signs; lengths relative to those of the products, NaN where not measured.

    losses: of the first batch, twice. repeat: ||Hu - Hu again||. symmetry: |uᵀHv - vᵀHu| against ||Hu||, which for random signs is what
    an uᵀHv is expected to be, ||H||_F. linearity: ||H(u + 2v) - Hu - 2Hv||. difference: ||Hv - central difference of the gradient||;
    difference_noise: what rounding may do to that. kinks: functions called whose derivative jumps.
    noise_floor: the largest of repeat, symmetry, linearity and eps: what one product is uncertain by. noise: the same for a vector of length 1, absolute (see
    ``value_floor``).
    tol_floor: the least residual that can be reached, relative to the length of such a product; relative to the largest eigenvalue see ``tolerance``.
    products, gradients: the cost. failed: names of the checks that failed: "determinism", "repeat",
    "linearity", "symmetry", "noise", "difference". notes: a sentence for each, and for kinks; empty when all is well.
    """

    losses: tuple[float, float]
    repeat: float
    symmetry: float
    linearity: float
    difference: float
    difference_noise: float
    kinks: tuple[str, ...]
    noise_floor: float
    noise: float
    tol_floor: float
    products: int
    gradients: int
    failed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def status(self) -> Status:
        """ "unresolved" where the products are not those of the loss's second derivative."""
        return "unresolved" if self.reason else "ok"

    @property
    def reason(self) -> str:
        """The sentence about the first check whose failure makes the products another matrix's; "" where there is none."""
        told = dict(zip(self.failed, self.notes, strict=False))
        return next((told[name] for name in ("noise", "linearity", "symmetry", "difference") if name in told), "")

    def tolerance(self, tol: float, largest: float | None = None) -> float:
        """tol, raised to what the products can give: relative to an eigenvalue ``largest`` in magnitude, or to the length of a product with random signs."""
        return max(tol, self.tol_floor if largest is None else NOISE_FACTOR * self.noise / largest if largest > 0.0 else 0.0)

    @property
    def value_floor(self) -> float:
        """Absolute: an eigenvalue no larger than this cannot be told from zero, nor its sign."""
        return NOISE_FACTOR * self.noise

    def unresolved(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which eigenvalues are below the noise of a product (``value_floor``)."""
        return np.asarray(np.abs(values) <= self.value_floor)


def _two_losses(op: ModelOperator) -> tuple[float, float]:
    if not len(op.batches):
        return math.nan, math.nan  # other ranks have the samples
    with op.running(), torch.no_grad():
        return float(op.batch_loss(op.batches[0])), float(op.batch_loss(op.batches[0]))


def _random(first: float, second: float) -> str:
    """A note where two forward passes in evaluation mode differ (dropout called as a function, sampling layers), else "". The operators reset the
    generators before every pass and so see one fixed draw."""
    if first == second or (math.isnan(first) and math.isnan(second)):
        return ""
    return f"the forward pass is random in evaluation mode too (loss {first:.6g}, then {second:.6g}); results hold for one fixed draw"


def preflight(op: ModelOperator, *, seed: int = 0, difference: bool | None = None) -> Preflight:
    """Two losses of the first batch, four products, and two gradients for the difference (four where the first two are not enough).

    difference: whether the product is compared with a central difference of the gradient, which only a Hessian passes; None: where
    ``op`` is one. A model that fails a check gets a note, a higher ``tol_floor`` or the status "unresolved", never an exception.
    """
    losses = _two_losses(op)
    before = op.products
    generator = np.random.default_rng(seed)
    dtype = np.float32 if op.dtype == torch.float32 else np.float64
    u, v = (generator.integers(0, 2, op.shape[0], dtype=np.int8).astype(dtype) * 2 - 1 for _ in range(2))
    hu = op.row_products(u[None])[0]
    again = op.row_products(u[None])[0]
    again -= hu
    repeat = _relative(_norm(again), _norm(hu))
    del again
    hv = op.row_products(v[None])[0]
    size = max(_norm(hu), _norm(hv))
    symmetry = _relative(abs(_dot(u, hv) - _dot(v, hu)), size)
    hu += 2 * hv
    u += 2 * v  # small integers: exact
    both = op.row_products(u[None])[0]
    both -= hu
    linearity = _relative(_norm(both), _norm(hu))
    del u, hu, both
    noise = max(repeat, symmetry, linearity) if math.isfinite(repeat + symmetry + linearity) else math.inf
    noise = max(noise, float(torch.finfo(op.dtype).eps))
    kinks: tuple[str, ...] = getattr(getattr(op, "calls", None), "kinks", ())
    apart, resolution, gradients = math.nan, math.nan, 0
    if math.isfinite(noise) and (isinstance(op, Hessian) if difference is None else difference):
        apart, resolution, gradients = _difference(op, v, hv, bool(kinks))
    found = Preflight(
        losses=losses,
        repeat=repeat,
        symmetry=symmetry,
        linearity=linearity,
        difference=apart,
        difference_noise=resolution,
        kinks=kinks,
        noise_floor=noise,
        noise=noise * size / math.sqrt(op.shape[0]),
        tol_floor=NOISE_FACTOR * noise,
        products=op.products - before,
        gradients=gradients,
    )
    failed = _failures(found, ROUNDING * math.sqrt(float(torch.finfo(op.dtype).eps)))
    return replace(found, failed=tuple(failed), notes=tuple(note for note in (*failed.values(), _kinks(found)) if note))


def _failures(found: Preflight, allowed: float) -> dict[str, str]:
    """Check -> the sentence about it, for the checks that failed."""
    failed = {}
    random = _random(*found.losses)
    if random:
        failed["determinism"] = random
    reach = f"; no residual below {found.tol_floor:.1g} of the largest eigenvalue can be reached"
    if not math.isfinite(found.noise_floor):
        failed["noise"] = "products hold NaN or Inf"
        return failed
    if found.repeat > allowed:
        failed["repeat"] = f"two products with one vector differ by {found.repeat:.1g} of their length{reach}"
    if found.linearity > allowed:
        failed["linearity"] = (
            f"products are not linear in the vector: H(u + 2v) and Hu + 2Hv are {found.linearity:.1g} apart "
            f"(a hook or a layer's own backward that clips, rounds or scales gradients){reach}"
        )
    if found.symmetry > allowed:
        failed["symmetry"] = (
            f"products are not those of a symmetric matrix: uᵀHv and vᵀHu are {found.symmetry:.1g} apart "
            f"(a layer's own backward that is not the derivative of its forward){reach}"
        )
    if not found.kinks and found.difference > DIFFERENCE and found.difference > 10 * found.difference_noise:
        failed["difference"] = (
            f"the product and a central difference of the gradient are {found.difference:.0%} of their length apart: part of the loss is cut off from "
            "differentiation (detach, no_grad, a layer's own backward), and what is given is not its Hessian"
        )
    return failed


def _kinks(found: Preflight) -> str:
    if not (found.kinks and found.difference > DIFFERENCE):
        return ""
    return (
        f"kinks ({', '.join(found.kinks[:4])}): the product and a central difference of the gradient are {found.difference:.0%} of their length apart; "
        "the Hessian is the one between the kinks, read the GGN beside it"
    )


def _difference(op: ModelOperator, v: Vector, hv: Vector, kinks: bool) -> tuple[float, float, int]:
    """(||Hv - central difference of the gradient along v|| / ||Hv||, what rounding does to it, gradients spent).

    Step: the cube root of eps, where truncation and rounding balance, times the length of the parameters. In the dtype the model is run
    in, never below float32. Where they are apart and there are no kinks a smaller step tells a large third derivative from a wrong product.
    """
    eps = float(torch.finfo(op.dtype).eps)
    length = math.sqrt(sum(float(leaf.detach().double().square().sum()) for leaf in op.leaves))
    along = torch.from_numpy(v).to(op.device)
    per_unit = _norm(v)
    best, noise, spent = math.inf, math.nan, 0
    for factor in (1.0, 0.125):
        step = factor * eps ** (1 / 3) * max(length, 1e-3) / per_unit
        after, ahead = _gradient_at(op, along, step), _gradient_at(op, along, -step)
        spent += 2
        rounding = eps * max(float(after.double().norm()), float(ahead.double().norm())) / step
        after -= ahead
        slope = after.div_(2 * step).cpu().numpy()
        size = max(_norm(slope), _norm(hv))
        slope -= hv
        apart = _relative(_norm(slope), size)
        if not apart >= best:
            best, noise = apart, _relative(rounding, size)
        if best <= DIFFERENCE or kinks:
            break
    return best, noise, spent


def _gradient_at(op: ModelOperator, along: Tensor, step: float) -> Tensor:
    """The gradient of the mean loss at parameters + step * along, (n,) in the dtype of the sums."""
    total = op.zeros()
    with op.ranks.agreed("the gradient"), op.running():
        moved = {name: (leaf.detach() + step * part).requires_grad_() for name, leaf, part in zip(op.names, op.leaves, op.split(along), strict=True)}
        for batch, weight in zip(op.batches, op.weights, strict=True):
            loss = op.batch_loss(batch, moved) if weight > 0.0 else None
            if loss is not None and loss.requires_grad:
                op.add_flat(total, torch.autograd.grad(loss, tuple(moved.values()), allow_unused=True), weight)
    op.ranks.add_up(total)
    return total


def _relative(difference: float, size: float) -> float:
    return 0.0 if difference == 0.0 else difference / size if size > 0.0 else math.inf


def _dot(a: Vector, b: Vector) -> float:
    """In float64, a million entries at a time."""
    return float(sum(np.dot(a[i : i + PIECE].astype(np.float64), b[i : i + PIECE].astype(np.float64)) for i in range(0, len(a), PIECE)))


def _norm(a: Vector) -> float:
    return Share(len(a)).norm(a)
