"""Gram matrices of the gradients of one parameter, from the inputs and output gradients of the calls that used it.

<G_i, G_j> of a weight with G_i = sum_t b_it a_itᵀ is sum_{t,s} <a_it, a_js> <b_it, b_js>: either the products of all pairs of positions, or the
samples' own gradients of this one weight, a tile at a time. Every Gram is added to a float64 array in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .parameter_uses import Part, Region
from .sample_layout import Layout

__all__ = ["Contribution", "ConvSum", "GramKernel", "MatrixSum", "Rows", "Tokens", "contribution"]

F64 = NDArray[np.float64]
TILE_BYTES = 16 << 20  # of unfolded inputs, or of gradients written out, at once


class GramKernel(Protocol):
    """gram (n, m) float64 += sum_t sum_s <a_it, a2_js> <b_it, b2_js> for a (n, T, p), b (n, T, q), a2 (m, S, p), b2 (m, S, q); without a2 and b2 of a
    and b with themselves, the whole symmetric matrix. b None: a (n, P) are rows. algorithm: "positions", "gradients" or "auto"."""

    def __call__(self, gram: F64, a: Any, b: Any = None, a2: Any = None, b2: Any = None, *, algorithm: str = "auto") -> Any: ...


def array(t: Tensor) -> NDArray[Any]:
    """A C-contiguous numpy array of float32 or float64 numbers."""
    t = t.detach()
    if t.dtype not in (torch.float32, torch.float64):
        t = t.float()
    return np.ascontiguousarray(t.contiguous().cpu().numpy())


def flops_of(algorithm: str, n: int, t: int, m: int | None, s: int, p: int, q: int) -> float:
    """Multiplications and additions of the Gram of n gradients (t positions, weight q x p) with themselves (m None), or with m others (s positions)."""
    if algorithm == "positions":
        pairs = n * t * (n * t + 1) / 2 if m is None else float(n) * t * m * s
        return 2.0 * pairs * (p + q)
    pairs = n * (n + 1) / 2 if m is None else float(n) * m
    return 2.0 * (n * t + (0 if m is None else m * s)) * p * q + 2.0 * pairs * p * q


class Contribution:
    """What some calls add to the gradients of n samples with respect to one parameter, or a region of it."""

    n: int
    region: Region

    def gram(self, gram: F64, other: Any, kernel: GramKernel, algorithm: str) -> None:
        """Adds the Gram with ``other`` (of the same kind and region; None: with itself)."""
        raise NotImplementedError

    def flops(self, algorithm: str, n: int | None = None) -> float:
        """Of n samples with themselves."""
        raise NotImplementedError

    def rows(self) -> Tensor:
        """The gradients themselves, (n, P)."""
        raise NotImplementedError

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def written_out(self) -> Rows:
        return Rows(self.rows(), self.region)


@dataclass
class Rows(Contribution):
    """The gradients themselves: values (n, P)."""

    values: Tensor
    region: Region

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.values.shape[0]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)

    def flops(self, algorithm: str, n: int | None = None) -> float:
        n = n or self.n
        return float(n) * (n + 1) * self.values.shape[1]

    def gram(self, gram: F64, other: Any, kernel: GramKernel, algorithm: str) -> None:
        kernel(gram, array(self.values), None, None if other is None else array(other.values))

    def rows(self) -> Tensor:
        return self.values

    def embedded(self, n_params: int) -> Tensor:
        """(n, P) with zeros outside of the region."""
        full = self.values.new_zeros((self.n, n_params))
        self.region.of(full).copy_(self.values.view(self.n, *(s for s, _ in self.region.dims)))
        return full

    @staticmethod
    def merged(parts: Sequence[Rows]) -> Rows:
        return parts[0] if len(parts) == 1 else Rows(torch.stack([p.values for p in parts]).sum(0), parts[0].region)


@dataclass
class MatrixSum(Contribution):
    """sum_t left_t right_tᵀ: left (n, T, q) along the region's first dimension, right (n, T, p) along its second."""

    left: Tensor
    right: Tensor
    region: Region

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.left.shape[0]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.left, self.right)

    def flops(self, algorithm: str, n: int | None = None) -> float:
        return flops_of(algorithm, n or self.n, self.left.shape[1], None, 0, self.right.shape[2], self.left.shape[2])

    def gram(self, gram: F64, other: Any, kernel: GramKernel, algorithm: str) -> None:
        pair = (None, None) if other is None else (array(other.right), array(other.left))
        kernel(gram, array(self.right), array(self.left), *pair, algorithm=algorithm)

    def rows(self) -> Tensor:
        return torch.bmm(self.left.transpose(1, 2), self.right).flatten(1)

    @staticmethod
    def merged(parts: Sequence[MatrixSum]) -> MatrixSum:
        if len(parts) == 1:
            return parts[0]
        return MatrixSum(torch.cat([p.left for p in parts], 1), torch.cat([p.right for p in parts], 1), parts[0].region)


def windows(x: Tensor, options: Any, out: Sequence[int]) -> Tensor:
    """(n, C, sizes...) -> (n, T, C k): what the kernel of a convolution sees at each of the T = prod(out) positions."""
    pads = [p for pair in reversed(options["pads"]) for p in pair]
    x = F.pad(x, pads) if any(pads) else x
    n, c, strides = x.shape[0], x.shape[1], x.stride()
    steps = [s * st for s, st in zip(strides[2:], options["stride"], strict=True)]
    within = [s * d for s, d in zip(strides[2:], options["dilation"], strict=True)]
    seen = x.as_strided((n, *out, c, *options["kernel"]), (strides[0], *steps, strides[1], *within))
    return seen.reshape(n, int(np.prod(out)), -1)


@dataclass
class ConvSum(Contribution):
    """A convolution's weight (O, C / groups, k...): calls (x (n f, C, sizes...), gradient (n f, O, out...), options), n samples of f images each."""

    calls: list[tuple[Tensor, Tensor, Any]]
    samples: int
    region: Region

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.samples

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(t for x, b, _ in self.calls for t in (x, b))

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        """Positions per sample; inputs per group and position; outputs per group; groups."""
        x, b, options = self.calls[0]
        groups = options["groups"]
        positions = sum(c[1].numel() // c[1].shape[1] for c in self.calls) // self.samples
        return positions, x.shape[1] // groups * int(np.prod(options["kernel"])), b.shape[1] // groups, groups

    def flops(self, algorithm: str, n: int | None = None) -> float:
        t, p, q, groups = self._sizes
        return groups * flops_of(algorithm, n or self.n, t, None, 0, p, q)

    def _inputs(self, start: int, stop: int) -> Tensor:
        """(n, T, c k) of the input channels start .. stop."""
        parts = [
            windows(x[:, start:stop], options, b.shape[2:]).reshape(self.samples, -1, (stop - start) * int(np.prod(options["kernel"])))
            for x, b, options in self.calls
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _outputs(self, start: int, stop: int) -> Tensor:
        """(n, T, q) gradients of the output channels start .. stop."""
        parts = [b[:, start:stop].flatten(2).transpose(1, 2).reshape(self.samples, -1, stop - start) for _, b, _ in self.calls]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _step(self, channels: int) -> int:
        """Input channels whose unfolded inputs are as large as a tile."""
        t, p, _, _ = self._sizes
        per_channel = self.samples * t * (p // channels) * self.calls[0][0].element_size()
        return max(1, min(channels, TILE_BYTES // max(per_channel, 1)))

    def gram(self, gram: F64, other: Any, kernel: GramKernel, algorithm: str) -> None:
        x, b, options = self.calls[0]
        groups = options["groups"]
        channels, outputs = x.shape[1] // groups, b.shape[1] // groups
        if algorithm == "gradients" and groups > 1:
            self._grouped(gram, other, kernel)
            return
        # the gradients of disjoint sets of input channels add up to the Gram; products of position pairs need all channels of a group
        step = channels if algorithm == "positions" else min(c._step(channels) for c in (self, other) if c is not None)
        for g in range(groups):
            left = [array(c._outputs(g * outputs, (g + 1) * outputs)) for c in (self, other) if c is not None]
            for start in range(0, channels, step):
                reach = (g * channels + start, g * channels + min(start + step, channels))
                right = [array(c._inputs(*reach)) for c in (self, other) if c is not None]
                pair = (right[1], left[1]) if other is not None else (None, None)
                kernel(gram, right[0], left[0], *pair, algorithm=algorithm)

    def _grouped(self, gram: F64, other: Any, kernel: GramKernel) -> None:
        """Gradients of some groups at a time: single ones (of depthwise convolutions) are too small to be worth a call each."""
        _, p, q, groups = self._sizes
        n = self.n if other is None else max(self.n, other.n)
        step = max(1, min(groups, TILE_BYTES // max(1, 4 * n * p * q)))
        for g in range(0, groups, step):
            found = [array(c._group_rows(g, min(g + step, groups))) for c in (self, other) if c is not None]
            kernel(gram, found[0], None, found[1] if other is not None else None)

    def _group_rows(self, start: int, stop: int) -> Tensor:
        _, p, q, groups = self._sizes
        channels = self.calls[0][0].shape[1] // groups
        k, c = self.samples, stop - start
        right = self._inputs(start * channels, stop * channels).view(k, -1, c, p).transpose(1, 2).reshape(k * c, -1, p)
        left = self._outputs(start * q, stop * q).view(k, -1, c, q).permute(0, 2, 3, 1).reshape(k * c, q, -1)
        return torch.bmm(left, right).view(k, -1)

    def rows(self) -> Tensor:
        groups = self._sizes[3]
        if groups > 1:
            return self._group_rows(0, groups)
        x = self.calls[0][0]
        left, step = self._outputs(0, self.calls[0][1].shape[1]).transpose(1, 2), self._step(x.shape[1])
        found = [torch.bmm(left, self._inputs(c, min(c + step, x.shape[1]))) for c in range(0, x.shape[1], step)]
        return (found[0] if len(found) == 1 else torch.cat(found, 2)).flatten(1)

    @staticmethod
    def merged(parts: Sequence[ConvSum]) -> ConvSum:
        return ConvSum([c for p in parts for c in p.calls], parts[0].samples, parts[0].region)


@dataclass
class Tokens(Contribution):
    """Rows added to those of a table (V, d): values (M, d) to row tokens (M) for sample owners (M); no (sample, token) twice."""

    tokens: Tensor
    owners: Tensor
    values: Tensor
    samples: int
    vocabulary: int
    region: Region

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.samples

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.tokens, self.owners, self.values)

    @staticmethod
    def of(tokens: Tensor, values: Tensor, vocabulary: int, region: Region, padding: int | None = None) -> Tokens:
        """tokens (n, T), values (n, T, d): the rows of a sample that belong to the same token are added up."""
        n, width = tokens.shape
        owners = torch.arange(n, device=tokens.device)[:, None].expand(n, width)
        keys = (owners * vocabulary + tokens).flatten()
        values = values.reshape(n * width, -1)
        if padding is not None:
            keep = tokens.flatten() != padding
            keys, values = keys[keep], values[keep]
        return Tokens._summed(keys, values, n, vocabulary, region)

    @staticmethod
    def _summed(keys: Tensor, values: Tensor, n: int, vocabulary: int, region: Region) -> Tokens:
        distinct, where = torch.unique(keys, return_inverse=True)
        total = values.new_zeros((len(distinct), values.shape[1])).index_add_(0, where, values)
        return Tokens(distinct % vocabulary, torch.div(distinct, vocabulary, rounding_mode="floor"), total, n, vocabulary, region)

    @staticmethod
    def merged(parts: Sequence[Tokens]) -> Tokens:
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        keys = torch.cat([p.owners * p.vocabulary + p.tokens for p in parts])
        return Tokens._summed(keys, torch.cat([p.values for p in parts]), first.samples, first.vocabulary, first.region)

    def flops(self, algorithm: str, n: int | None = None) -> float:
        _, counts = torch.unique(self.tokens, return_counts=True)
        grown = ((n or self.n) / self.n) ** 2
        return float((counts.double() ** 2).sum()) * self.values.shape[1] * grown

    def gram(self, gram: F64, other: Any, kernel: GramKernel, algorithm: str) -> None:
        from .token_grams import shared_tokens

        shared_tokens(gram, self, self if other is None else other)

    def rows(self) -> Tensor:
        full = self.values.new_zeros((self.samples * self.vocabulary, self.values.shape[1]))
        full[self.owners * self.vocabulary + self.tokens] = self.values
        return full.view(self.samples, -1)


def contribution(part: Part, gradient: Tensor, layout: Layout, n: int, shape: Sequence[int]) -> Contribution:
    """What a call adds to the gradients of n samples. gradient: of the call's output. shape: of the parameter.

    Raises ValueError where the layout does not fit, RuntimeError where the call's input was written to after the call.
    """
    if part.x is not None and part.x._version != part.version:
        raise RuntimeError(f"the input of a call with {part.name} was written to afterwards")
    if part.kind == "matrix":
        assert part.x is not None
        x = layout.split(part.x, n)
        b = layout.split(gradient, n)
        x, b = x.reshape(n, -1, x.shape[-1]), b.reshape(n, -1, b.shape[-1])
        return MatrixSum(x, b, part.region) if part.transposed else MatrixSum(b, x, part.region)
    if part.kind == "conv":
        assert part.x is not None
        x, b = (layout.split(t, n).flatten(0, 1) for t in (part.x, gradient))
        return ConvSum([(x, b, part.options)], n, part.region)
    if part.kind == "tokens":
        assert part.x is not None
        tokens, b = layout.split(part.x, n).reshape(n, -1), layout.split(gradient, n)
        return Tokens.of(tokens, b.reshape(n, -1, b.shape[-1]), shape[0], part.region, part.options["padding"])
    value = gradient if part.factor is None or part.x is None else gradient * part.factor(part.x)
    value = layout.split(value if part.sign == 1.0 else part.sign * value, n)
    # the dimensions come out as (n, positions, the others in their order)
    kept = [2 + a - (a > layout.axis) for a in part.axes]
    rest = [d for d in range(1, value.ndim) if d not in kept]
    value = value.permute(0, *kept, *rest)
    value = value.reshape(n, part.region.numel, -1).sum(2) if rest else value.reshape(n, part.region.numel)
    return _along(part, Rows(value, part.region), shape)


def _along(part: Part, rows: Rows, shape: Sequence[int]) -> Contribution:
    """Rows for something computed from the parameter -> for the parameter."""
    for k in range(len(part.chain) - 1, -1, -1):
        shared = part.chain[k]
        whole = rows.embedded(shared.shape.numel()).view(rows.n, *shared.shape)
        if shared.tokens is not None:
            tokens = shared.tokens.flatten()[None].expand(rows.n, -1)
            return Tokens.of(tokens, whole.reshape(rows.n, tokens.shape[1], -1), shape[0], whole_region(shape), shared.padding)
        assert shared.back is not None
        rows = Rows(torch.func.vmap(shared.back)(whole).reshape(rows.n, -1), whole_region(part.chain[k - 1].shape if k else shape))
    return rows


def whole_region(shape: Sequence[int]) -> Region:
    """The region that a contiguous tensor of this shape is of itself."""
    steps = [int(np.prod(shape[d + 1 :])) for d in range(len(shape))]
    return Region(0, tuple((s, step if s > 1 else 1) for s, step in zip(shape, steps, strict=True)))
