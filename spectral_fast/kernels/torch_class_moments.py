"""Counts, means and scatter of labelled vectors in torch's functions; part of ``torch_kernels``."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["class_moments"]

_CHUNK_BYTES = 1 << 28  # of rows held as float64 at once


def class_moments(features: Tensor, labels: Tensor, counts: Tensor, means: Tensor, scatter: Tensor, spread: Tensor) -> None:
    """See :func:`spectral_fast.kernels.numpy_kernels.class_moments`, with tensors of one device; of bfloat16 features too."""
    _check(features, labels, counts, means, scatter, spread)
    taken = torch.nonzero(labels >= 0)[:, 0]
    if len(taken) == 0:
        return
    sorted_labels, place = labels[taken].sort(stable=True)
    order = taken[place]
    present, local, new = torch.unique_consecutive(sorted_labels, return_inverse=True, return_counts=True)
    ends = new.cumsum(0)
    starts = ends - new
    # the sum is taken after removing one member of each class: sums of equal vectors then come out exactly
    first = features[order[starts]].double()
    sums, squares = torch.zeros_like(first), first.new_zeros(len(present))
    step = max(1, _CHUNK_BYTES // (8 * max(1, features.shape[1])))
    parts = [slice(i, min(i + step, len(order))) for i in range(0, len(order), step)]

    def by_class(rows: Tensor, part: slice) -> Tensor:
        lengths = (ends.clamp_max(part.stop) - starts.clamp_min(part.start)).clamp_min(0)
        out: Tensor = torch.segment_reduce(rows, "sum", lengths=lengths)
        return out

    for part in parts:
        sums += by_class(features[order[part]].double() - first[local[part]], part)
    block = first + sums / new[:, None]
    products = torch.zeros_like(scatter)
    for part in parts:
        centred = features[order[part]].double() - block[local[part]]
        products += centred.mT @ centred
        squares += by_class((centred * centred).sum(1, keepdim=True), part)[:, 0]
    old = counts[present]
    known = (old > 0)[:, None]
    total = (old + new).double()
    away = torch.where(known, block - means[present], 0.0)
    weighted = (old * (new / total)).sqrt()[:, None] * away
    products += weighted.mT @ weighted
    scatter += torch.tril(products) + torch.tril(products, -1).mT  # products of torch's may differ in the last bit on either side
    spread[present] += squares + (weighted * weighted).sum(1)
    # exact for a first block, where new / total = 1 must not round
    means[present] = torch.where(known, means[present] + away * (new / total)[:, None], block)
    counts[present] += new


def _check(features: Tensor, labels: Tensor, counts: Tensor, means: Tensor, scatter: Tensor, spread: Tensor) -> None:
    if features.ndim != 2 or not features.is_floating_point():
        raise ValueError(f"features: wanted a (B, d) tensor of floating-point numbers, got {tuple(features.shape)} of {features.dtype}")
    (rows, dim), n_classes = features.shape, len(counts)
    wanted = {
        "labels": (labels, (rows,), torch.int64),
        "counts": (counts, (n_classes,), torch.int64),
        "means": (means, (n_classes, dim), torch.float64),
        "scatter": (scatter, (dim, dim), torch.float64),
        "spread": (spread, (n_classes,), torch.float64),
    }
    for name, (tensor, shape, dtype) in wanted.items():
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise ValueError(f"{name}: wanted {shape} of {dtype}, got {tuple(tensor.shape)} of {tensor.dtype}")
    if rows and int(labels.max()) >= n_classes:
        row = int((labels >= n_classes).long().argmax())
        raise ValueError(f"labels: wanted classes below {n_classes}, got {int(labels[row])} in row {row}")
