"""Random vectors from counters: the same bits for the same (seed, stream, index) in every language and on every device.

Philox4x32-10 (Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"): counter (block low, block high,
stream low, stream high), key (seed low, seed high), four 32-bit words out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["gaussian", "philox4x32", "rademacher", "random_words", "uniform"]

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # golden ratio, sqrt(3) - 1
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox4x32(counters: NDArray[np.uint32], key: tuple[int, int], rounds: int = 10) -> NDArray[np.uint32]:
    """counters (n, 4) uint32 -> words (n, 4) uint32."""
    c = [counters[:, i].astype(np.uint64) for i in range(4)]
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = _M0 * c[0], _M1 * c[2]
        c = [(p1 >> _32) ^ c[1] ^ np.uint64(k0), p1 & _LOW, (p0 >> _32) ^ c[3] ^ np.uint64(k1), p0 & _LOW]
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack(c, axis=1).astype(np.uint32)


def random_words(n_words: int, seed: int, stream: int, start: int = 0) -> NDArray[np.uint32]:
    """Words start ... start + n_words - 1 of (seed, stream), uint32."""
    for name, value in (("seed", seed), ("stream", stream)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name}: wanted an integer in [0, 2**64), got {value}")
    first = start // 4
    blocks = np.arange(first, (start + n_words + 3) // 4, dtype=np.uint64)
    counters = np.empty((len(blocks), 4), dtype=np.uint32)
    counters[:, 0] = (blocks & _LOW).astype(np.uint32)
    counters[:, 1] = (blocks >> _32).astype(np.uint32)
    counters[:, 2] = stream & 0xFFFFFFFF
    counters[:, 3] = stream >> 32
    return philox4x32(counters, (seed & 0xFFFFFFFF, seed >> 32)).reshape(-1)[start - 4 * first :][:n_words]


def rademacher(n: int, seed: int, stream: int = 0, start: int = 0) -> NDArray[np.float64]:
    """Entries start ... start + n - 1 of +1 and -1: entry i is bit i % 32 (lowest first) of word i // 32 of (seed, stream); a set bit is -1."""
    first = start // 32
    words = random_words((start + n + 31) // 32 - first, seed, stream, first).astype("<u4")
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[start - 32 * first :][:n]
    return 1.0 - 2.0 * bits.astype(np.float64)


def uniform(n: int, seed: int, stream: int = 0) -> NDArray[np.float64]:
    """(n,) uniform in (-1, 1): entry i from word i of (seed, stream)."""
    return (random_words(n, seed, stream).astype(np.float64) + 0.5) * 2.0**-31 - 1.0


def gaussian(n: int, seed: int, stream: int = 0, start: int = 0) -> NDArray[np.float64]:
    """Entries start ... start + n - 1 of (seed, stream), standard normal (Box & Muller 1958): entries 2i and 2i + 1 from words 2i and 2i + 1. For
    error bounds that hold for rotation-invariant vectors only."""
    first = start // 2
    u = random_words(2 * ((start + n + 1) // 2 - first), seed, stream, 2 * first).reshape(-1, 2).astype(np.float64)
    radius = np.sqrt(-2.0 * np.log((u[:, 0] + 0.5) / 2.0**32))
    angle = 2.0 * np.pi * (u[:, 1] + 0.5) / 2.0**32
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1).reshape(-1)[start - 2 * first :][:n]
