"""A weight matrix inside a model: found by the name ``scan`` gives it, replaced by a treated one, and put back bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..linalg.arrays import as_float64, is_torch
from ..linalg.svd import svd_bound
from .sources import open_source
from .structure import MatrixPlan, plan_matrices

__all__ = ["TreatedWeight", "find_matrix"]

F64 = NDArray[np.float64]


def find_matrix(model: Any, layer: str) -> MatrixPlan:
    """The plan of the matrix called ``layer``, also under a tied name or that of a module with one ".weight". ValueError says what there is instead."""
    with open_source(model) as tensors:
        plans, skipped = plan_matrices(tensors.entries)
        skipped = [*tensors.skipped, *skipped]
    names: dict[str, MatrixPlan] = {}
    for p in plans:
        part = p.name.removeprefix(p.entry.name)
        for name in (p.entry.name, *p.tied):
            names.setdefault(name + part, p)
    for name in (layer, f"{layer}.weight"):
        if name in names:
            return names[name]
    parts = [n for n in names if n.startswith(f"{layer}[") or n.startswith(f"{layer}.weight[")]
    if parts:
        raise ValueError(f"layer: {layer!r} holds {len(parts)} matrices; name one of {', '.join(parts[:8])}")
    for s in skipped:
        if s.name == layer:
            raise ValueError(f"layer: {layer!r} has no spectrum to treat: {s.reason}")
    raise ValueError(f"layer: no matrix is called {layer!r}; there are {len(plans)}: {', '.join(p.name for p in plans[:8])}")


class TreatedWeight:
    """One matrix inside a model's tensor: its singular value decomposition, and the way to replace and restore it."""

    def __init__(self, plan: MatrixPlan) -> None:
        if plan.lora is not None:
            raise ValueError(f"layer: {plan.name} is the product of {plan.lora.b.name} and {plan.lora.a.name}; name one of these")
        tensor = plan.entry.read()
        if not is_torch(tensor):
            raise TypeError(f"layer: {plan.name} is a {type(tensor).__name__}, not a tensor of the model")
        # .data shares the memory, not the version counter: leave_no_trace watches that for writes of the model's own
        self._tensor = tensor.data
        self._plan = plan
        self.w: F64 = np.array(as_float64(tensor).reshape(plan.view)[plan.part])  # a copy: the tensor's memory is about to change
        if not np.isfinite(self.w).all():
            raise ValueError(f"layer: {plan.name} has entries that are not finite")
        self.u, self.s, self.vt = np.linalg.svd(self.w, full_matrices=False)
        self.bound = float(svd_bound(self.s).max(initial=0.0))

    def levels(self) -> F64:
        """The different singular values, ascending: of those within the decomposition's own error of each other the largest."""
        s = self.s[::-1]
        return np.asarray(s[np.append(np.diff(s) > self.bound, True)])

    @contextmanager
    def replaceable(self) -> Iterator[None]:
        """Whatever ``put`` writes inside, the tensor is afterwards what it was, bit for bit."""
        import torch

        self._saved = self._tensor.clone(memory_format=torch.contiguous_format)
        try:
            yield
        finally:
            self._tensor.copy_(self._saved)

    def put(self, cut: F64) -> None:
        """Write the matrix with ``cut`` (d_min,) taken off its singular values; what is not cut keeps its bits as far as the dtype allows."""
        import torch

        chosen = cut > 0
        whole = np.array_equal(cut[chosen], self.s[chosen])
        if whole and 2 * np.count_nonzero(chosen) > cut.size:  # the smaller product, and exactly zero when nothing stays
            new = (self.u[:, ~chosen] * self.s[~chosen]) @ self.vt[~chosen]
        else:
            new = self.w - (self.u[:, chosen] * cut[chosen]) @ self.vt[chosen]
        full = self._saved.clone()
        part = full.reshape(self._plan.view)[self._plan.part]
        part.copy_(torch.from_numpy(np.ascontiguousarray(new)))
        self._tensor.copy_(full)
