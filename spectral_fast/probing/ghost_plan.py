"""How many samples to run at once and how many to keep, within a memory limit: predicted before the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["GhostPlan", "plan_ghost"]

WORKING_COPIES = 5  # n x n float64 arrays alive while eigenvalues are computed
SCRATCH = 3  # of the products of one parameter: a tile, what it is added to, its unfolded inputs


@dataclass(frozen=True)
class GhostPlan:
    """chunk: samples run at once, at most (never across batches); hold: samples whose inputs and output gradients are kept for later ones. layer_spectra:
    whether Grams per parameter fit. evaluations: samples run in all. bytes: predicted need above the model and the data."""

    chunk: int
    hold: int
    layer_spectra: bool
    evaluations: int
    bytes: int


def plan_ghost(n: int, widths: Sequence[int], limit: int, run_bytes: float, held_bytes: float, layer_spectra: bool) -> GhostPlan:
    """widths: sides of the square arrays kept per parameter for its eigenvalues. run_bytes: per sample while it is run; held_bytes: per sample that is kept.

    Gives up eigenvalues per layer before it runs samples again, as long as a quarter of the room would not hold them.
    """
    square = 8 * WORKING_COPIES * n * n
    per_layer = 8 * sum(w * w for w in widths)
    free = max(limit - square, 0)
    layers = layer_spectra and (per_layer <= free // 4 or free - per_layer >= n * (run_bytes + held_bytes))
    free -= per_layer if layers else 0
    run_bytes, held_bytes = max(run_bytes, 1.0), max(held_bytes, 1.0)
    if n * run_bytes <= free:
        # one pass if the samples are one batch; several batches keep what later ones are compared with
        chunk = n
    else:
        chunk = int(max(1, min(n, free / 2 / run_bytes)))
    tile = 8 * SCRATCH * chunk * n
    room = free - tile - min(chunk, n) * run_bytes
    hold = int(min(n, max(room / held_bytes, 1)))
    if chunk == n and hold < n and n * (run_bytes + held_bytes) > free:
        chunk = int(max(1, min(n, free / 2 / run_bytes)))
        hold = int(min(n, max((free - chunk * run_bytes) / held_bytes, 1)))
    chunk = min(chunk, max(hold, 1)) if hold < n else chunk
    evaluations = sum(n - start for start in range(0, n, hold))
    used = square + (per_layer if layers else 0) + int(chunk * run_bytes + min(hold, n) * held_bytes)
    return GhostPlan(chunk, hold, layers, evaluations, used)
