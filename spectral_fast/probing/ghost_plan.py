"""How many samples to run at once and how many to keep, within a memory limit: predicted before the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["GhostPlan", "blocks_of", "plan_ghost"]

WORKING_COPIES = 5  # n x n float64 arrays alive while eigenvalues are computed
SCRATCH = 3  # of the products of one parameter: a tile, what it is added to, its unfolded inputs


def blocks_of(n: int, hold: int, rank: int = 0, size: int = 1) -> list[tuple[int, int]]:
    """The blocks (from, to) of at most ``hold`` of n samples whose products with themselves and all later ones are rank's to compute: of two blocks one has as
    much more to do than half as the other has less."""
    each = hold if size == 1 else max(1, min(hold, -(-n // (2 * size))))
    starts = range(0, n, each)
    turns = [i % (2 * size) for i in range(len(starts))]
    return [(start, min(start + each, n)) for start, turn in zip(starts, turns, strict=True) if rank in (turn, 2 * size - 1 - turn)]


@dataclass(frozen=True)
class GhostPlan:
    """chunk: samples run at once, at most (never across batches); hold: samples whose inputs and output gradients are kept for later ones. layer_spectra:
    whether Grams per parameter fit. evaluations: samples run in all. bytes: predicted need above the model and the data; run_bytes, held_bytes: per sample."""

    chunk: int
    hold: int
    layer_spectra: bool
    evaluations: int
    bytes: int
    run_bytes: float
    held_bytes: float


def plan_ghost(n: int, largest: int, widths: Sequence[int], limit: int, run_bytes: float, held_bytes: float, layer_spectra: bool) -> GhostPlan:
    """largest: samples of the largest batch. widths: sides of the square arrays kept per parameter for its eigenvalues. run_bytes: per sample while it is
    run; held_bytes: per sample that is kept for later ones.

    One batch that fits is run whole and nothing is kept. Otherwise half of the room is for the samples that are run and the rest for those that are kept.
    Eigenvalues per layer are given up where they would take more than a quarter of the room away from that.
    """
    run_bytes, held_bytes = max(run_bytes, 1.0), max(held_bytes, 1.0)
    square = 8 * WORKING_COPIES * n * n
    per_layer = 8 * sum(w * w for w in widths)
    scratch = 8 * SCRATCH * n  # per sample that is run
    once = n * (run_bytes + scratch + (held_bytes if largest < n else 0.0))
    free = float(max(limit - square, 0))
    layers = layer_spectra and (per_layer <= free / 4 or free - per_layer >= once)
    free -= per_layer if layers else 0
    if once <= free:
        chunk, hold = largest, n
    else:
        chunk = int(max(1, min(largest, free / 2 / (run_bytes + scratch))))
        hold = int(max(1, min(n, (free - chunk * (run_bytes + scratch)) / held_bytes)))
        chunk = min(chunk, hold)
    kept = 0 if largest == n and chunk == n else hold
    least = square + run_bytes + scratch + (0.0 if largest == n and chunk == n else held_bytes)
    if least > limit:
        raise MemoryError(f"needs {least / 1e9:.3g} GB for one sample and the products of {n}, {limit / 1e9:.3g} GB allowed (max_memory)")
    used = square + (per_layer if layers else 0) + int(chunk * (run_bytes + scratch) + kept * held_bytes)
    return GhostPlan(chunk, hold, layers, sum(n - start for start in range(0, n, hold)), used, run_bytes, held_bytes)
