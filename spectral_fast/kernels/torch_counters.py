"""The random vectors of ``counters`` made on a device, so that they need not travel there: the same words, hence the same signs and uniform numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["gaussian", "rademacher", "random_words", "uniform"]

_M = (0xD2511F53, 0xCD9E8D57)
_W = (0x9E3779B9, 0xBB67AE85)
_LOW, _HALF = 0xFFFFFFFF, 0xFFFF


def _times(m: int, c: Tensor) -> tuple[Tensor, Tensor]:
    """(high, low) 32 bits of the 64 of m c; by halves of m, since int64 has 63."""
    low = (m & _HALF) * c
    high = (m >> 16) * c + (low >> 16)
    return high >> 16, (high & _HALF) << 16 | low & _HALF


def random_words(n_words: int, seed: int, stream: int, start: int = 0, *, device: str | torch.device) -> Tensor:
    """Words start ... start + n_words - 1 of (seed, stream), int64 of [0, 2**32); see :func:`spectral_fast.kernels.counters.random_words`."""
    for name, value in (("seed", seed), ("stream", stream)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name}: wanted an integer in [0, 2**64), got {value}")
    first = start // 4
    blocks = torch.arange(first, (start + n_words + 3) // 4, dtype=torch.int64, device=device)
    fixed = torch.zeros_like(blocks)
    c0, c1, c2, c3 = blocks & _LOW, blocks >> 32, fixed + (stream & _LOW), fixed + (stream >> 32)
    k0, k1 = seed & _LOW, seed >> 32
    for _ in range(10):
        (high0, low0), (high1, low1) = _times(_M[0], c0), _times(_M[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _W[0]) & _LOW, (k1 + _W[1]) & _LOW
    return torch.stack((c0, c1, c2, c3), 1).reshape(-1)[start - 4 * first :][:n_words]


def rademacher(n: int, seed: int, stream: int = 0, start: int = 0, *, device: str | torch.device) -> Tensor:
    """(n,) float64, the signs of :func:`spectral_fast.kernels.counters.rademacher`."""
    first = start // 32
    words = random_words((start + n + 31) // 32 - first, seed, stream, first, device=device)
    bits = words[:, None] >> torch.arange(32, dtype=torch.int64, device=device) & 1
    return 1.0 - 2.0 * bits.reshape(-1)[start - 32 * first :][:n].double()


def uniform(n: int, seed: int, stream: int = 0, *, device: str | torch.device) -> Tensor:
    """(n,) float64, the numbers of :func:`spectral_fast.kernels.counters.uniform`."""
    return (random_words(n, seed, stream, device=device).double() + 0.5) * 2.0**-31 - 1.0


def gaussian(n: int, seed: int, stream: int = 0, start: int = 0, *, device: str | torch.device) -> Tensor:
    """(n,) float64, the numbers of :func:`spectral_fast.kernels.counters.gaussian` to the rounding of logarithms and cosines."""
    first = start // 2
    u = random_words(2 * ((start + n + 1) // 2 - first), seed, stream, 2 * first, device=device).reshape(-1, 2).double()
    radius, angle = (-2.0 * torch.log((u[:, 0] + 0.5) / 2.0**32)).sqrt(), 2.0 * math.pi * (u[:, 1] + 0.5) / 2.0**32
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), 1).reshape(-1)[start - 2 * first :][:n]
