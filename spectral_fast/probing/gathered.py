"""The batches of all ranks on every rank, for analyses that compare every sample with every other."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .batches import Batch, Batches
from .distributed import Ranks

__all__ = ["gathered"]

_PLAIN = (type(None), bool, int, float, str)
_DTYPES = {str(t): t for t in vars(torch).values() if isinstance(t, torch.dtype)}


def gathered(ranks: Ranks, batches: Batches, limit: int) -> list[Batch]:
    """The ranks' batches, one rank's behind the other's, the same on all of them.

    Tensors travel as bytes, what is beside them as text: None, numbers, truth values and strings in tuples, lists and dicts. Raises TypeError for other
    things in a batch, ValueError where no rank has a sample, MemoryError where they need more than ``limit`` bytes; on all ranks alike."""
    with ranks.agreed("the samples of all ranks"):
        mine = [_outline(batch) for batch in batches]
    told: list[list[dict[str, Any]]] = [json.loads(text) for text in ranks.gather_text(json.dumps(mine))]
    if not any(told):
        raise ValueError("loader: no samples on any rank")
    need = 2 * sum(_bytes(words) for outlines in told for outline in outlines for words in outline["leaves"] if "shape" in words)
    if need > limit:
        raise MemoryError(f"handing the samples of all ranks round needs {need / 1e9:.3g} GB, {limit / 1e9:.3g} GB allowed (max_samples, max_memory)")
    out: list[Batch] = []
    for rank, outlines in enumerate(told):
        own = [leaf for batch in batches for leaf in pytree.tree_leaves((batch.inputs, batch.targets)) if isinstance(leaf, Tensor)]
        sizes = [_bytes(words) for outline in outlines for words in outline["leaves"] if "shape" in words]
        if rank == ranks.rank:
            pieces = [t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in own]
            data = torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.uint8)
        else:
            data = torch.empty(sum(sizes), dtype=torch.uint8)
        if sizes:
            ranks.of_one(data, rank)
        parts = iter(torch.split(data, sizes))
        out += [_batch(outline, parts) for outline in outlines]
    return out


def _bytes(words: dict[str, Any]) -> int:
    return int(math.prod(words["shape"])) * _DTYPES[words["dtype"]].itemsize


def _outline(batch: Batch) -> dict[str, Any]:
    leaves, spec = pytree.tree_flatten((batch.inputs, batch.targets))
    words: list[dict[str, Any]] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            if leaf.layout is not torch.strided:
                raise TypeError(f"loader: a batch holds a {leaf.layout} tensor, which cannot go to the other ranks")
            words.append({"shape": list(leaf.shape), "dtype": str(leaf.dtype)})
        elif isinstance(leaf, _PLAIN):
            words.append({"value": leaf})
        else:
            raise TypeError(f"loader: a batch holds a {type(leaf).__name__}, which cannot go to the other ranks; give unpack=")
    return {"leaves": words, "spec": pytree.treespec_dumps(spec), "size": batch.size, "label_key": batch.label_key}


def _batch(outline: dict[str, Any], parts: Any) -> Batch:
    leaves: list[Any] = []
    for words in outline["leaves"]:
        if "shape" in words:
            data = next(parts).clone()  # aligned, and not held by the others
            leaves.append(data.view(_DTYPES[words["dtype"]]).reshape(words["shape"]))
        else:
            leaves.append(words["value"])
    inputs, targets = pytree.tree_unflatten(leaves, pytree.treespec_loads(outline["spec"]))
    return Batch(inputs, targets, outline["size"], outline["label_key"])
