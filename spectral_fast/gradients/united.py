"""Products of the gradients of all ranks' samples: every rank computes some of them, then they are added up."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

from ..probing.distributed import Ranks
from ..probing.ghost_gram import GhostGram
from ..probing.gradient_gram import GradientGram
from ..probing.per_sample import PerSampleGradients
from ..progress import Progress

__all__ = ["run_formed", "run_ghost"]


def run_ghost(ranks: Ranks, sums: GhostGram, report: Progress) -> None:
    """``sums`` run on every rank for its share, then the same on all. What one rank computes sample by sample all do: its samples may be the only ones that
    show the need for it."""
    if ranks.size == 1:
        sums.run(report)
        return
    with ranks.agreed("the gradients' products"):
        sums.run(report)
    while True:
        told = [json.loads(text) for text in ranks.gather_text(json.dumps([sums.engine, sums.slow]))]
        slow = {name: why for _, found in told for name, why in found.items()}
        formed = any(engine != "ghost" for engine, _ in told)
        if all(set(found) == set(slow) and (engine != "ghost") == formed for engine, found in told):
            break
        with ranks.agreed("the gradients' products, once more"):
            if not formed:
                sums.start(slow)
                sums.run(report)
            elif sums.engine == "ghost":
                sums.start({})
                sums.fall_back(next(iter(slow.values())), report)
    with ranks.agreed("the parts of the products"):
        shapes = {name: m.shape[0] for name, m in sorted(sums.moments.items())} | {name: g.shape[0] for name, g in sorted(sums.grams.items())}
    if len(set(ranks.gather_text(json.dumps(shapes)))) > 1:  # other room for the eigenvalues of layers
        sums.grams, sums.moments, sums.means = {}, {}, ({} if sums.engine == "ghost" else sums.means)
        sums.notes.append("no eigenvalues per layer: the ranks keep different ones")
    sums.add_over(ranks.add_up)
    sums.losses = _losses(ranks, sums.losses, len(sums.units))
    sums.bad = _of_all(ranks, sums.bad)


def run_formed(ranks: Ranks, sums: GradientGram, engine: PerSampleGradients, report: Progress) -> Mapping[int, float]:
    """The same of gradients that are formed one by one -> the losses of all units."""
    with ranks.agreed("the gradients' products"):
        sums.run(engine, report, (ranks.rank, ranks.size))
    if ranks.size > 1:
        sums.add_over(ranks.add_up)
        sums.bad = _of_all(ranks, sums.bad)
    return _losses(ranks, engine.losses, len(sums.units))


def _losses(ranks: Ranks, losses: Mapping[int, float], n: int) -> dict[int, float]:
    """Of all units: the first rank has run all of them."""
    if ranks.size == 1:
        return dict(losses)
    found = torch.tensor([losses.get(i, 0.0) for i in range(n)], dtype=torch.float64)
    ranks.first(found)
    return dict(enumerate(found.tolist()))


def _of_all(ranks: Ranks, bad: Mapping[int, str]) -> dict[int, str]:
    """The ranks' entries, each unit's being of one rank, in the units' order."""
    told = [json.loads(text) for text in ranks.gather_text(json.dumps(bad))]
    return dict(sorted((int(i), name) for one in told for i, name in one.items()))
