"""Which samples, or batches, gradients are taken of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..probing.batches import Batches
from ..probing.distributed import Ranks
from ..probing.functional import FunctionalModel
from ..probing.gathered import gathered
from ..probing.losses import Loss
from ..probing.per_sample import Unit, samples_of

__all__ = ["DEFAULT_SAMPLES", "affordable", "compare_with_batch", "samples_of_ranks", "units_of"]

DEFAULT_SAMPLES = 2048  # without max_samples; the Gram's cost grows with the square
DEFAULT_FLOPS = 1e13  # without max_samples: N² P is kept below this, minutes on a laptop


def samples_of_ranks(
    ranks: Ranks, loader: Any, notes: list[str], limit: int, *, max_samples: int | None, device: torch.device, dtype: torch.dtype | None, **reading: Any
) -> Batches:
    """The samples of all ranks. Raises MemoryError where they do not fit into ``limit`` bytes."""
    each = None if max_samples is None else -(-max_samples // ranks.size)
    with ranks.agreed("reading the samples"):
        batches = Batches(loader, device=device, dtype=dtype, max_samples=each, may_be_empty=ranks.size > 1, **reading)
    if batches.note:
        said = batches.note if ranks.size == 1 else batches.note.replace(f"max_samples = {each}", f"max_samples = {max_samples} over {ranks.size} ranks")
        notes.append(said)
    if ranks.size == 1:
        return batches
    counts = [row[0] for row in ranks.gather([batches.n_samples])]
    notes.append(f"{sum(counts):,} samples, over {ranks.size} ranks: {', '.join(map(str, counts[:8]))}{', ...' if ranks.size > 8 else ''}")
    return Batches(gathered(ranks, batches, limit), device=device, dtype=dtype)


def units_of(batches: Batches, loss: Loss, unit: str, notes: list[str]) -> list[Unit]:
    """What gradients are taken of. Raises ValueError where no target is valid."""
    if unit == "batch":
        units = [Unit(b, None, w) for b, w in enumerate(loss.weights(batches)) if w > 0]
        notes.append(f"unit: mean gradients of {len(units)} batches; the noise scale is in samples, {batches.n_samples / len(batches):.4g} per batch")
        return units
    units, empty = samples_of(batches, loss)
    if empty:
        notes.append(f"{empty} samples without a valid target left out")
    if not units:
        raise ValueError("loader: no valid targets in the sample set")
    return units


def affordable(n: int, n_params: int, max_samples: int | None) -> int:
    """How many of n gradients are taken: max_samples, or what takes minutes."""
    if max_samples is not None:
        return min(n, max_samples)
    return min(n, DEFAULT_SAMPLES, max(int(math.sqrt(DEFAULT_FLOPS / n_params)), 2))


def compare_with_batch(
    functional: FunctionalModel, batches: Batches, loss: Loss, losses: Mapping[int, float], units: list[Unit], unit: str, notes: list[str]
) -> None:
    """Is the loss of a batch the mean of its samples' own losses? Where it is not (summed losses, in-batch negatives), say it."""
    first = batches[units[0].batch]
    own = [i for i, u in enumerate(units) if u.batch == units[0].batch]
    if unit == "batch" or len(own) != first.size:
        return
    with torch.no_grad():
        whole = float(loss.batch(functional, first))
    w = np.array([units[i].weight for i in own])
    mean = float(w @ np.array([losses[i] for i in own]) / w.sum())
    if math.isfinite(whole) and abs(whole - mean) > 1e-3 * max(abs(whole), abs(mean)):
        notes.append(f"the loss of the first batch is {whole:.6g}, the mean of its samples' own losses {mean:.6g}: it is not a mean over independent samples")
