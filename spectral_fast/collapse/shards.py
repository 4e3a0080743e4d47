"""Class moments of samples that are spread over processes (torch.distributed): every rank runs the model over its shard, then the moments are merged."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..metrics.collapse_moments import ClassMoments
from ..probing.distributed import Ranks
from ..probing.sharded import on_tensor
from .features import BEFORE_THE_FIRST, CannotAnalyse, FeaturePass
from .layers import LayerPass

__all__ = ["united"]


def united(
    ranks: Ranks, seen: FeaturePass | None, interrupted: bool, refused: CannotAnalyse | None, empty: Callable[[str], FeaturePass]
) -> tuple[FeaturePass, bool]:
    """(this rank's pass with the moments and counts of all ranks, whether any of them was interrupted).

    seen: None where this rank has no samples, or found a reason not to look at them, ``refused``. empty: layer -> a pass over no samples.
    Raises CannotAnalyse where a rank was refused, ValueError where no rank has samples or they looked at different layers: on all ranks alike."""
    told: list[dict[str, Any]] = [json.loads(text) for text in ranks.gather_text(json.dumps(_outline(seen, interrupted, refused)))]
    for rank, words in enumerate(told):
        if words["refused"]:
            reason, status = words["refused"]
            raise CannotAnalyse(f"rank {rank}: {reason}", status)
    full = [words for words in told if words["shape"]]
    interrupted = any(words["interrupted"] for words in told)
    if not full:
        if interrupted:
            raise CannotAnalyse(BEFORE_THE_FIRST, "incomplete")
        raise ValueError("loader: no samples on any rank")
    first = full[0]
    for words in full:
        if (words["name"], words["shape"]) != (first["name"], first["shape"]):
            raise ValueError(f"layer: {first['name']} {first['shape']} on one rank, {words['name']} {words['shape']} on another")
    if seen is None or seen.moments is None:
        seen = empty(first["name"])
        seen.moments, seen.n_classes = ClassMoments(*first["shape"]), first["shape"][0]
    assert seen.moments is not None
    seen.n_samples, seen.correct = (sum(words[name] for words in full) for name in ("n_samples", "correct"))
    seen.decided = all(words["decided"] for words in full)
    seen.eps = max(words["eps"] for words in full)
    seen.moments.add_over(lambda x: on_tensor(x, ranks.add_up))
    if seen.layers is not None:
        _unite_layers(ranks, seen.layers, full)
    return seen, interrupted


def _outline(seen: FeaturePass | None, interrupted: bool, refused: CannotAnalyse | None) -> dict[str, Any]:
    out: dict[str, Any] = {"interrupted": interrupted, "refused": [str(refused), refused.status] if refused is not None else None, "shape": None}
    if seen is None or seen.moments is None:
        return out
    layers = seen.layers
    return out | {
        "name": seen.name,
        "shape": seen.moments.means.shape,
        "n_samples": seen.n_samples,
        "correct": seen.correct,
        "decided": seen.decided,
        "eps": seen.eps,
        "layers": {name: [*m.means.shape, layers.eps[name]] for name, m in layers.moments.items()} if layers is not None else {},
        "reasons": {s.name: s.reason for s in layers.skipped} if layers is not None else {},
        "same": layers.same if layers is not None else {},
    }


def _unite_layers(ranks: Ranks, layers: LayerPass, full: list[dict[str, Any]]) -> None:
    """The layers that all ranks with samples have, of the same width; what one of them skips, all skip."""
    first = full[0]["layers"]
    both = [name for name in first if all(words["layers"].get(name, [None] * 3)[:2] == first[name][:2] for words in full)]
    reasons = {name: why for words in full for name, why in words["reasons"].items()}
    for name in dict.fromkeys(name for words in full for name in words["layers"] if name not in both):
        reasons.setdefault(name, "the ranks see inputs of different widths")
    moments = {name: layers.moments.get(name) or ClassMoments(*first[name][:2]) for name in both}
    for m in moments.values():
        m.add_over(lambda x: on_tensor(x, ranks.add_up))
    layers.replace(moments, {name: max(words["layers"][name][2] for words in full) for name in both}, reasons, full[0]["same"])
