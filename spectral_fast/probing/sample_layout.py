"""Which rows of a tensor inside a model belong to which sample: established by a test, not guessed.

The sum of the samples' own losses is differentiated twice, once as it is and once with sample i's loss multiplied by r_i. Everything that belongs to
sample i alone is multiplied by r_i; the r_i are signed powers of two, so that this holds bit for bit and the two sets of gradients tell the samples apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Layout", "find_layout", "sample_factors"]


@dataclass(frozen=True)
class Layout:
    """Samples lie along ``axis``: n of them, or n f entries of it, sample by sample (sample_major) or position by position."""

    axis: int
    sample_major: bool = True

    def split(self, t: Tensor, n: int) -> Tensor:
        """t -> (n, f, the other dimensions in their order). Raises ValueError where the axis does not hold n samples."""
        size = t.shape[self.axis] if t.ndim > self.axis else 0
        if size % n or not size:
            raise ValueError(f"a tensor of shape {tuple(t.shape)} does not hold {n} samples along dimension {self.axis}")
        inner = (n, size // n) if self.sample_major else (size // n, n)
        t = t.reshape(*t.shape[: self.axis], *inner, *t.shape[self.axis + 1 :])
        first, second = (self.axis, self.axis + 1) if self.sample_major else (self.axis + 1, self.axis)
        return t.movedim((first, second), (0, 1))


def sample_factors(n: int, like: Tensor) -> Tensor:
    """(n,) signed powers of two, neighbours different, without a period that a sequence length could share."""
    generator = torch.Generator().manual_seed(20_210_314 + n)
    exponents = torch.randint(-3, 4, (n,), generator=generator)
    for i in range(1, n):
        if exponents[i] == exponents[i - 1]:
            exponents[i] += 1
    signs = 1 - 2 * torch.randint(0, 2, (n,), generator=generator)
    return torch.ldexp(signs.to(torch.float64), exponents).to(like)


def find_layout(plain: Tensor, weighted: Tensor, factors: Tensor, axes: Sequence[int]) -> tuple[Layout | None, bool]:
    """(layout, certain) from a tensor of gradients and the same with weighted samples; axes: the dimensions samples may lie along.

    None: no arrangement explains the gradients, because samples mix or because the tensor is shared by all of them. certain is False where more than
    one explains them (gradients that are zero tell nothing).
    """
    n = len(factors)
    found: list[Layout] = []
    eps = 64 * torch.finfo(plain.dtype).eps
    # no number differs by more where a layout is the right one; NaN where the numbers are not all finite
    most = float(plain.abs().max() * factors.abs().max()) * eps if plain.numel() else 0.0
    for axis in axes:
        size = plain.shape[axis]
        if size == 0 or size % n:
            continue
        for layout in (Layout(axis),) if size == n else (Layout(axis), Layout(axis, False)):
            parts = layout.split(plain, n), layout.split(weighted, n)
            few = [(t[:, :, :1] if t.ndim > 2 else t).flatten(1)[:, :64] for t in parts]
            if float((few[0] * factors[:, None] - few[1]).abs().max()) > most:
                continue  # seen without looking at all of them
            x, y = (t.flatten(1) for t in parts)
            want = x * factors[:, None]
            if torch.equal(want, y):
                found.append(layout)
                continue
            # not finite where a sample's own numbers are not: says nothing about where it lies
            use = torch.isfinite(want) & torch.isfinite(y)
            room = eps * torch.where(use, want.abs(), 0.0).amax(dim=1, keepdim=True)
            if bool((torch.where(use, (y - want).abs(), 0.0) <= room).all()):
                found.append(layout)
    return (found[0], len(found) == 1 or n == 1) if found else (None, False)
