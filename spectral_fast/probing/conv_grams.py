"""Grams of gradients of convolutions: linear layers on unfolded inputs, of which only some channels are unfolded at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .layer_grams import Contribution, GramKernel, array, flops_of
from .use_records import Region

__all__ = ["ConvSum", "windows"]

F64 = NDArray[np.float64]
TILE_BYTES = 8 << 20  # of unfolded inputs, or of gradients written out, at once


def windows(x: Tensor, options: Any, out: Sequence[int]) -> Tensor:
    """(n, C, sizes...) -> (n, T, k C): what the kernel of a convolution sees at each of the T = prod(out) positions.

    Channels come last: what is copied is then contiguous over a row of the kernel.
    """
    pads = [p for pair in reversed(options["pads"]) for p in pair]
    x = (F.pad(x, pads) if any(pads) else x).movedim(1, -1).contiguous()
    n, c, strides = x.shape[0], x.shape[-1], x.stride()
    steps = [s * st for s, st in zip(strides[1:-1], options["stride"], strict=True)]
    within = [s * d for s, d in zip(strides[1:-1], options["dilation"], strict=True)]
    seen = x.as_strided((n, *out, *options["kernel"], c), (strides[0], *steps, *within, 1))
    return seen.reshape(n, math.prod(out), -1)


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
        return positions, x.shape[1] // groups * math.prod(options["kernel"]), b.shape[1] // groups, groups

    def flops(self, algorithm: str, n: int | None = None) -> float:
        t, p, q, groups = self._sizes
        return groups * flops_of(algorithm, n or self.n, t, None, 0, p, q)

    def _inputs(self, start: int, stop: int) -> Tensor:
        """(n, T, k c) of the input channels start .. stop."""
        parts = [
            windows(x[:, start:stop], options, b.shape[2:]).reshape(self.samples, -1, (stop - start) * math.prod(options["kernel"]))
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
        """(n, P') gradients of the groups start .. stop, in the parameter's own order."""
        _, p, q, groups = self._sizes
        channels = self.calls[0][0].shape[1] // groups
        n, c = self.samples, stop - start
        right = self._inputs(start * channels, stop * channels).view(n, -1, p // channels, c, channels)
        right = right.permute(0, 3, 1, 2, 4).reshape(n * c, -1, p)
        left = self._outputs(start * q, stop * q).view(n, -1, c, q).permute(0, 2, 3, 1).reshape(n * c, q, -1)
        found = torch.bmm(left, right).view(n, c * q, p // channels, channels)
        return found.transpose(2, 3).reshape(n, -1)

    def rows(self) -> Tensor:
        """(n, P') gradients, in the parameter's own order."""
        _, p, q, groups = self._sizes
        if groups > 1:
            return self._group_rows(0, groups)
        channels = self.calls[0][0].shape[1]
        left, step = self._outputs(0, q).transpose(1, 2), self._step(channels)
        tiles = [torch.bmm(left, self._inputs(c, min(c + step, channels))) for c in range(0, channels, step)]
        found = torch.cat([t.view(self.samples, q, p // channels, -1) for t in tiles], 3)
        return found.transpose(2, 3).reshape(self.samples, -1)

    @staticmethod
    def merged(parts: Sequence[ConvSum]) -> ConvSum:
        return ConvSum([c for p in parts for c in p.calls], parts[0].samples, parts[0].region)
