"""How to form the Gram matrix of N gradients of P numbers within a memory limit: predicted before anything starts (no torch, no arrays)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["GramPlan", "plan_gram", "samples_that_fit"]

WORKING_COPIES = 5  # N x N float64 arrays alive while eigenvalues are computed: K, its centred and scaled copies, LAPACK's own
COLUMN_TILE = 8 << 20  # bytes of float64 columns converted at once
LARGEST_CHUNK = 256


@dataclass(frozen=True)
class GramPlan:
    """n_samples: how many fit (<= asked). hold: gradients kept at once; chunk: gradients compared with them at once.
    layer_spectra: whether eigenvalues per layer fit. evaluations: per-sample gradients computed in all: n_samples when everything is
    held, n_samples (b + 1)/2 with b blocks. flops: of the Gram, about n² P. bytes: predicted peak above the model and the data."""

    n_samples: int
    hold: int
    chunk: int
    layer_spectra: bool
    evaluations: int
    flops: float
    bytes: int


def evaluations_of(n: int, hold: int) -> int:
    """Block k of `hold` samples is met by all samples from its own start on."""
    return sum(n - start for start in range(0, n, hold))


def samples_that_fit(n_samples: int, limit: int) -> int:
    """How many samples' Gram matrix and its eigenvalues take at most three quarters of ``limit`` bytes. Raises MemoryError where not even two do."""
    n = math.isqrt(max(limit, 0) * 3 // (4 * 8 * WORKING_COPIES))
    if n < 2:
        raise MemoryError(f"needs {2 * 8 * WORKING_COPIES * 4} bytes for the products of two gradients, {limit} allowed (max_memory)")
    return min(n_samples, n)


def plan_gram(n_samples: int, layers: Mapping[str, tuple[int, int]], limit: int) -> GramPlan:
    """layers: name -> (P_l, bytes per number of its gradient). limit: bytes.

    Degrades in this order: blocks of samples with gradients computed again; no eigenvalues per layer (traces and noise scales
    remain); fewer samples. Raises MemoryError, naming the need, when not even three gradients fit.
    """
    n_params = sum(p for p, _ in layers.values())
    row = sum(p * size for p, size in layers.values())
    # sums per parameter in float64, converted column tiles
    fixed = 8 * n_params + COLUMN_TILE
    need = fixed + 3 * row + 8 * WORKING_COPIES * 4
    if need > limit:
        raise MemoryError(f"needs {need / 1e9:.3g} GB for three gradients of {n_params} parameters, {limit / 1e9:.3g} GB allowed (max_memory)")
    free = limit - fixed - 3 * row
    # half of the room at most for N x N arrays: with fewer gradients held at once, computing them again would dominate
    n = min(n_samples, max(int(math.isqrt(free // (2 * 8 * WORKING_COPIES))), 2))
    square = 8 * WORKING_COPIES * n * n
    per_layer = 8 * sum(min(n, p) ** 2 for p, _ in layers.values())
    left = limit - fixed - square
    wants_all = left - per_layer >= row * (n + 2)
    layer_spectra = wants_all or per_layer <= max(left - 3 * row, 0) // 4
    left -= per_layer if layer_spectra else 0
    rows = max(left // row, 3) if row else n + 2
    chunk = max(1, min(LARGEST_CHUNK, n, rows // 5))
    hold = min(n, rows - 2 * chunk)
    used = fixed + square + (per_layer if layer_spectra else 0) + row * (hold + 2 * chunk)
    return GramPlan(n, hold, chunk, layer_spectra, evaluations_of(n, hold), float(n) ** 2 * n_params, used)
