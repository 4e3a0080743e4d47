"""What is written down about the calls of a model that use its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Call", "CallKey", "Part", "Region", "Shared", "whole_region"]


@dataclass(frozen=True)
class Region:
    """The numbers of a parameter that a view of it holds: offset, and (size, stride) of its dimensions, largest stride first."""

    offset: int
    dims: tuple[tuple[int, int], ...]

    @property
    def numel(self) -> int:
        total = 1
        for size, _ in self.dims:
            total *= size
        return total

    def of(self, flat: Tensor) -> Tensor:
        """The view of (..., P) numbers that this region is: (..., sizes)."""
        lead = flat.shape[:-1]
        return flat.as_strided((*lead, *(s for s, _ in self.dims)), (*flat.stride()[:-1], *(d for _, d in self.dims)), flat.storage_offset() + self.offset)


@dataclass
class Part:
    """What one call means to one parameter. kind: "matrix" (outer products of the output's gradient and x), "rows" (sums of the output's gradient,
    times factor(x) where there is one), "tokens" (rows of the output's gradient added to those of a table), "conv".

    axes: for "rows", the output's dimensions that the region's dimensions lie along. transposed: for "matrix", whether the region's first dimension
    is that of the inputs. version: of x, when it was seen. chain: what was computed from the parameter alone before this call.
    """

    name: str
    kind: str
    region: Region
    x: Tensor | None
    axes: tuple[int, ...] = ()
    transposed: bool = False
    factor: Callable[[Tensor], Tensor] | None = None
    sign: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    version: int = 0
    chain: tuple[Shared, ...] = ()


@dataclass(frozen=True)
class Shared:
    """An output computed from a parameter alone, the same for all samples. tokens: the rows of the table it holds, where it is one's lookup;
    else back: the parameter's gradient from the output's, for one sample."""

    shape: torch.Size
    tokens: Tensor | None = None
    back: Callable[[Tensor], Tensor] | None = None
    padding: int | None = None


# (function, parameters, followed outputs on the way to it, dimensions of the output, how many such calls came before): the same in every run of a model
CallKey = tuple[str, tuple[str, ...], int, int, int]


@dataclass
class Call:
    """One call of a known function with parameters. axes: the dimensions of its output along which samples may lie."""

    key: CallKey
    parts: list[Part]
    shape: torch.Size
    axes: tuple[int, ...]
    gradients: list[Tensor] = field(default_factory=list)


def whole_region(shape: Sequence[int]) -> Region:
    """The region that a contiguous tensor of this shape is of itself."""
    steps = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    return Region(0, tuple((s, step if s > 1 else 1) for s, step in zip(shape, steps, strict=True)))
