"""What single positions (tokens, say) add to the gradients of their samples, as products: from the inputs and output gradients of one backward pass.

The gradient of sample n is a sum over the positions t of its layers' outputs, sum_t b_nt a_ntᵀ for a weight: the part of position t is what the outputs there
pass back, b_nt a_ntᵀ over all layers together. It is not the gradient of a loss at position t, which goes back to other positions too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..probing.batches import Batch, Batches
from ..probing.contributions import along_chain, unsummed
from ..probing.functional import FunctionalModel
from ..probing.gram_kernel import gram_kernel
from ..probing.layer_grams import Rows
from ..probing.losses import Loss
from ..probing.parameter_uses import ParameterUses
from ..probing.per_sample import samples_of
from ..probing.sample_layout import Layout
from ..probing.selected import once_differentiable
from ..probing.use_records import Call, Part, Region, whole_region
from ..probing.use_survey import Refused, forward, refuse_reordering, survey

if TYPE_CHECKING:
    from .operator import GradientCovariance

__all__ = ["AGREEMENT", "PositionFactors", "PositionProducts", "Positions"]

# The relative difference that two ways to the same sums may have, in units of the dtype's epsilon.
AGREEMENT = 2e4


@dataclass(frozen=True)
class _Outer:
    """left_nt right_ntᵀ (n, T, q) and (n, T, p)."""

    name: str
    region: Region
    left: Tensor
    right: Tensor

    @property
    def active(self) -> Tensor:
        """(n, T): where it is not zero."""
        return (self.left != 0).any(-1) & (self.right != 0).any(-1)

    def along(self, v: Tensor) -> Tensor:
        return ((self.right @ self.region.of(v).T) * self.left).sum(-1)

    def add(self, c: Tensor, out: Tensor) -> None:
        self.region.of(out).add_((self.left * c[..., None]).flatten(0, 1).T @ self.right.flatten(0, 1))


@dataclass(frozen=True)
class _Lines:
    """Lines tokens_nt (n, T) of a table with the parts values_nt (n, T, d)."""

    name: str
    region: Region
    tokens: Tensor
    values: Tensor

    @property
    def active(self) -> Tensor:
        return (self.values != 0).any(-1)

    def along(self, v: Tensor) -> Tensor:
        return (self.region.of(v)[self.tokens] * self.values).sum(-1)

    def add(self, c: Tensor, out: Tensor) -> None:
        self.region.of(out).index_add_(0, self.tokens.flatten(), (self.values * c[..., None]).flatten(0, 1))


@dataclass(frozen=True)
class _Whole:
    """The parts themselves (n, T, P)."""

    name: str
    region: Region
    values: Tensor

    @property
    def active(self) -> Tensor:
        return (self.values != 0).any(-1)

    def along(self, v: Tensor) -> Tensor:
        return self.values @ self.region.of(v).reshape(-1)

    def add(self, c: Tensor, out: Tensor) -> None:
        at = self.region.of(out)
        at.add_((c.flatten() @ self.values.flatten(0, 1)).view(at.shape))


# dimensions of the largest tensor that attention puts in another order: (n, T, 3, heads, d)
_ATTENTION = 5
_Term = _Outer | _Lines | _Whole


@dataclass(frozen=True)
class PositionFactors:
    """The parts of T positions of n samples of a batch, g_nt, for all parameters together."""

    n: int
    positions: int
    terms: tuple[_Term, ...]

    @property
    def idle(self) -> int:
        """Of the n T positions, how many have no part in any gradient, as padding has none."""
        return self.n * self.positions - int(torch.stack([term.active for term in self.terms]).any(0).sum())

    @property
    def as_wide(self) -> tuple[str, ...]:
        """Parameters of layers that are as wide as there are positions: if one works along the positions, its shapes do not show it."""
        found = (t.name for t in self.terms if isinstance(t, _Outer) and self.positions > 1 and self.positions in (t.left.shape[2], t.right.shape[2]))
        return tuple(dict.fromkeys(found))

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for term in self.terms for t in vars(term).values() if isinstance(t, Tensor))

    def along(self, v: dict[str, Tensor]) -> Tensor:
        """<g_nt, v> (n, T); v: by parameter, flat."""
        return torch.stack([term.along(v[term.name]) for term in self.terms]).sum(0)

    def combined(self, c: Tensor, sizes: dict[str, int]) -> dict[str, Tensor]:
        """sum_nt c_nt g_nt of c (n, T), by parameter, flat."""
        out: dict[str, Tensor] = {}
        for term in self.terms:
            if term.name not in out:
                out[term.name] = c.new_zeros(sizes[term.name])
            term.add(c, out[term.name])
        return out


class Positions:
    """Factors of batches of one model, whose uses of its parameters are found out once. Use inside leave_no_trace(model).

    Raises ValueError, naming ``unit`` and the parameter, for models whose positions cannot be told apart: of convolutions, of layers with different numbers of
    positions, of functions that are not known, and for those seen to put positions in another order. Between layers positions are matched by their place."""

    def __init__(self, functional: FunctionalModel, batches: Batches, loss: Loss) -> None:
        self.functional, self.loss = functional, loss
        self._detached = {name: p.detach() for name, p in functional.parameters.items()}
        with once_differentiable():
            try:
                units, _ = samples_of(batches, loss)
                self._found = survey(functional, batches, loss, units, gram_kernel(next(iter(self._detached.values())).device)[0], {})
            except Refused as why:
                raise ValueError(f"unit: 'position' needs the gradients of samples from one backward pass: {why}") from why
        for name, reason in self._found.slow.items():
            raise ValueError(f"unit: 'position': what positions add to the gradient of {name} is not known: {reason}")

    def of(self, batch: Batch) -> PositionFactors:
        terms: list[_Term] = []
        calls: list[tuple[Call, Tensor]] = []
        uses = ParameterUses(
            self._detached, shared=self._found.shared, expected=frozenset(self._found.layouts), receive=lambda call, gradient: calls.append((call, gradient))
        )
        with once_differentiable():
            own = forward(self.functional, self.loss, batch, uses, self._detached)
            refuse_reordering(uses)
            if uses.moved:
                raise ValueError(f"unit: 'position': {uses.moved} puts positions in another order, so that those of one layer are not those of the next")
            for name, function in uses.unknown.items():
                raise ValueError(f"unit: 'position': {name} is used by {function}, which is not known")
            if own.requires_grad:
                torch.autograd.grad(own.sum(), uses.token, allow_unused=True)
        found = [(part, gradient, self._found.layouts.get(call.key)) for call, gradient in calls for part in call.parts]
        for call, gradient in calls:
            if not self._found.certain.get(call.key, True) and bool(gradient.any()):
                raise ValueError(f"unit: 'position': whose positions lie where is not certain in the layer of {call.parts[0].name}")
        positions = _positions(found, batch.size, uses.permuted)
        for part, gradient, layout in found:
            assert layout is not None
            terms.append(_term(part, gradient, layout, batch.size, positions, self._detached[part.name].shape))
        return PositionFactors(batch.size, positions, tuple(terms))


def _positions(found: Sequence[tuple[Part, Tensor, Layout | None]], n: int, permuted: int) -> int:
    """How many a sample has, by the layers that are sums over them. permuted: dimensions of the largest tensor that was permuted."""
    counts: list[tuple[str, int]] = []
    for part, gradient, layout in found:
        if layout is None:
            raise ValueError(f"unit: 'position': {part.name} is used by a call that was not seen before")
        if part.kind == "conv":
            raise ValueError(f"unit: 'position': {part.name} is a convolution's, whose positions are not those of other layers")
        if part.kind in ("matrix", "tokens"):
            split = layout.split(gradient, n)
            counts.append((part.name, split[0].numel() // gradient.shape[-1]))
            several = sum(size > 1 for size in split.shape[1:-1]) > 1  # rows and columns of an image, say
            if permuted >= (4 if several else _ATTENTION + 1):
                raise ValueError(
                    f"unit: 'position': the model permutes tensors of {permuted} dimensions, so that positions at {part.name} may not be those of other layers"
                )
    if not counts:
        raise ValueError("unit: 'position' needs a linear layer or an embedding")
    name, positions = counts[0]
    for other, count in counts:
        if count != positions:
            raise ValueError(f"unit: 'position': {name} has {positions} positions, {other} {count}; all layers need the same ones")
    return positions


def _term(part: Part, gradient: Tensor, layout: Layout, n: int, positions: int, shape: Sequence[int]) -> _Term:
    if part.x is not None and part.x._version != part.version:
        raise ValueError(f"unit: 'position': the input of a call with {part.name} was written to afterwards")
    if part.kind == "matrix":
        assert part.x is not None
        x, b = (layout.split(t, n) for t in (part.x, gradient))
        x, b = x.reshape(n, positions, x.shape[-1]), b.reshape(n, positions, b.shape[-1])
        return _Outer(part.name, part.region, x, b) if part.transposed else _Outer(part.name, part.region, b, x)
    if part.kind == "tokens":
        assert part.x is not None
        tokens, b = layout.split(part.x, n).reshape(n, positions), layout.split(gradient, n)
        b = b.reshape(n, positions, b.shape[-1])
        if part.options["padding"] is not None:
            b = b * (tokens != part.options["padding"])[..., None]
        return _Lines(part.name, part.region, tokens, b)
    values = unsummed(part, gradient, layout, n)  # (n, P', what it is summed over)
    if values.shape[2] == positions and (positions == 1 or gradient.ndim - 1 in part.axes):
        made = along_chain(part, Rows(values.transpose(1, 2).reshape(n * positions, -1), part.region), shape)
        if isinstance(made, Rows):
            return _Whole(part.name, made.region, made.values.reshape(n, positions, -1))
    elif values.shape[2] == 1 and values.shape[1] % positions == 0:  # numbers of the parameter for every position
        each = values.reshape(n, positions, -1)
        if not part.chain and _lines_of(part.region, positions) and gradient.shape[part.axes[0]] == positions:
            width = each.shape[2]
            lines = torch.arange(positions, device=each.device).expand(n, -1)
            return _Lines(part.name, Region(part.region.offset, ((positions, width), (width, 1))), lines, each)
        last = part.chain[0] if len(part.chain) == 1 else None
        if last is not None and last.tokens is not None and last.tokens.numel() == positions and part.region == whole_region(last.shape):
            lines = last.tokens.flatten()
            if last.padding is not None:
                each = each * (lines != last.padding)[:, None]
            return _Lines(part.name, whole_region(shape), lines.expand(n, -1), each)
    raise ValueError(f"unit: 'position': what of {part.name} belongs to which of {positions} positions is not known")


def _lines_of(region: Region, positions: int) -> bool:
    """Whether it is ``positions`` lines without gaps, one behind the other."""
    step = 1
    for size, stride in reversed(region.dims):
        if size > 1 and stride != step:
            return False
        step *= size
    return step == region.numel and step % positions == 0


class PositionProducts:
    """Products of a GradientCovariance of positions. parts: its batches with the weights (m,) of their samples. counts: positions of the samples of each.

    Raises ValueError where the parts of the positions do not add up to the gradient; see Positions."""

    def __init__(self, op: GradientCovariance, parts: Sequence[tuple[Batch, Tensor]]) -> None:
        self._op, self._parts = op, parts
        self.kept: dict[int, PositionFactors] = {}
        self._sizes = {name: math.prod(shape) for name, shape in op.shapes.items()}
        with op.running():
            self._positions = Positions(op.functional, op.batches, op.loss)
            self.counts = [self._factors(i).positions for i in range(len(parts))]
            (batch, p), factors = parts[0], self._factors(0)
            want, got = op.zeros(), op.zeros()
            op.pull(op.unit_losses(batch), p, want, 1.0, False)
            self._add_combined(factors, p[:, None].expand(-1, factors.positions), got, 1.0)
        wrong = float((got - want).norm()) / max(float(want.norm()), 1e-300) if bool(want.any()) else float(got.norm())
        if not wrong <= min(AGREEMENT * torch.finfo(op.dtype).eps, 0.1):
            raise ValueError(f"unit: 'position': the parts of the positions do not add up to the gradient, by {wrong:.1g} of it")
        wide = ", ".join(factors.as_wide[:4])
        notes = []
        if factors.positions == 1:
            notes.append("unit: every sample has one position: the same as unit='sample'")
        if factors.idle:
            notes.append(f"unit: {factors.idle} of {factors.n * factors.positions} positions of a batch have no part in any gradient (padding?); T counts them")
        if wide:
            notes.append(f"unit: {factors.positions} positions, as many as {wide} is wide: a layer that works along the positions is not told from one at each")
        self.notes: tuple[str, ...] = tuple(notes)

    @property
    def strategy(self) -> str:
        return f"inputs and output gradients, {'kept' if len(self.kept) == len(self._parts) else 'computed for every product'}"

    def _factors(self, i: int) -> PositionFactors:
        if self._op.keep is False:
            self.kept.clear()
        known = self.kept.get(i)
        if known is not None:
            return known
        found = self._positions.of(self._parts[i][0])
        room = self._op.keep is not False and sum(f.nbytes for f in self.kept.values()) + found.nbytes <= self._op.kept_limit()
        if room or self._op.keep:
            self.kept[i] = found
        return found

    def add(self, rows: Tensor, shifts: Sequence[float], left: list[float], out: Tensor) -> None:
        """out[i] += scale sum w (<h, v_i> - shifts[i]) h over the units h = T g_nt, w = p_n / T; left[i] += sum w (<h, v_i> - shifts[i])."""
        op = self._op
        along = [{name: t.reshape(-1).contiguous() for name, t in zip(op.names, op.split(v), strict=True)} for v in rows]
        for k, (_, p) in enumerate(self._parts):
            factors = self._factors(k)
            for i, row in enumerate(out):
                u = factors.positions * factors.along(along[i]).to(p)
                c = p[:, None] / factors.positions * (u - shifts[i])
                left[i] += float(c.sum())
                self._add_combined(factors, c, row, op.scale * factors.positions)

    def _add_combined(self, factors: PositionFactors, c: Tensor, row: Tensor, weight: float) -> None:
        """row += weight * sum_nt c_nt g_nt."""
        found = factors.combined(c.to(self._op.dtype), self._sizes)
        self._op.add_flat(row, tuple(found.get(name) for name in self._op.names), weight)
