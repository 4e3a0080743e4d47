"""One gradient per sample (or per batch): rows of the matrix G whose Gram matrix the gradient covariance needs.

The gradient of a sample is that of its own mean loss, with the sample alone in its batch. All samples of a piece go through
vmap(grad(loss)) at once; a model that cannot be vectorised that way is run sample by sample, which the notes say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from .batches import Batch, Batches
from .functional import FunctionalModel
from .losses import Loss

__all__ = ["PerSampleGradients", "Unit", "samples_of", "take"]

# what torch raises when vmap meets in-place writes, data-dependent control flow or an operation without a batching rule
_CANNOT_VECTORISE = (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError, AssertionError)


@dataclass(frozen=True)
class Unit:
    """What one row of G belongs to: row ``row`` of batch ``batch``, or the whole batch (row None). weight: its number of equal terms."""

    batch: int
    row: int | None
    weight: float


def take(batch: Batch, rows: NDArray[np.int64] | list[int]) -> Batch:
    """The given samples of a batch; tensors whose first dimension is not the batch's size are shared by all samples and kept."""
    index = torch.as_tensor(np.asarray(rows), dtype=torch.int64)

    def pick(t: Tensor) -> Tensor:
        return t[index.to(t.device)] if _per_sample(t, batch.size) else t

    inputs, targets = pytree.tree_map_only(Tensor, pick, (batch.inputs, batch.targets))
    return Batch(inputs, targets, len(index), batch.label_key)


def _per_sample(t: Any, size: int) -> bool:
    return isinstance(t, Tensor) and t.ndim > 0 and t.shape[0] == size


def samples_of(batches: Batches, loss: Loss) -> tuple[list[Unit], int]:
    """One unit per sample, and the number of samples left out because none of their targets is valid (weight 0)."""
    units, empty = [], 0
    for b, batch in enumerate(batches):
        terms = loss.terms_of_each(batch)
        weights = None if terms is None else terms.tolist()
        for row in range(batch.size):
            weight = _terms_alone(loss, batch, row) if weights is None else float(weights[row])
            if weight > 0:
                units.append(Unit(b, row, weight))
            else:
                empty += 1
    return units, empty


def _terms_alone(loss: Loss, batch: Batch, row: int) -> float:
    """The number of terms, which is a matter of the targets alone."""

    def own(t: Tensor) -> Tensor:
        return t[row : row + 1] if _per_sample(t, batch.size) else t

    return loss.terms(Batch(None, pytree.tree_map_only(Tensor, own, batch.targets), 1, batch.label_key))


class PerSampleGradients:
    """Gradients of units, in pieces. Use inside leave_no_trace(model) and twice_differentiable(model).

    functional: the model on detached parameters. vectorise: samples per vmap call. seed: the generator is set from it before
    every sample of the fallback loop, so that a model with randomness of its own has the same gradient each time it is asked.
    """

    def __init__(self, functional: FunctionalModel, batches: Batches, loss: Loss, *, vectorise: int = 64, seed: int = 0) -> None:
        self.functional = functional
        self.batches = batches
        self.loss = loss
        self.vectorise = max(vectorise, 1)
        self.seed = seed
        self.notes: list[str] = []
        self.losses: dict[int, float] = {}  # index of unit -> its own mean loss
        self._use_vmap = True
        self._checked = False

    def rows(self, units: list[Unit], start: int, stop: int) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Gradients of units[start:stop]: pairs (slice of unit indices, name -> (m, P_l) tensor in the parameters' dtype)."""
        i = start
        while i < stop:
            j = i + 1
            if units[i].row is not None:
                while j < stop and units[j].batch == units[i].batch and j - i < self.vectorise:
                    j += 1
            yield slice(i, j), self._piece(units, i, j)
            i = j

    def _piece(self, units: list[Unit], i: int, j: int) -> dict[str, Tensor]:
        batch = self.batches[units[i].batch]
        rows = [u.row for u in units[i:j] if u.row is not None]
        if not rows:
            return self._loop([batch], i)
        part = take(batch, rows)
        if self._use_vmap:
            try:
                gradients, losses = self._vectorised(part)
                if not self._checked:
                    self._check(gradients, take(part, [0]), i)
            except torch.OutOfMemoryError:
                if len(rows) == 1:
                    raise
                self.vectorise = max(len(rows) // 2, 1)
                halves = [self._piece(units, a, b) for a, b in ((i, i + self.vectorise), (i + self.vectorise, j))]
                return {name: torch.cat([h[name] for h in halves]) for name in halves[0]}
            except _CANNOT_VECTORISE as error:
                self._use_vmap = False
                why = str(error).strip().splitlines()
                self.notes.append(f"per-sample gradients one sample at a time: vmap refused this model ({type(error).__name__}: {why[0][:160] if why else ''})")
            else:
                self.losses.update(zip(range(i, j), losses.double().tolist(), strict=True))
                return gradients
        return self._loop([take(part, [r]) for r in range(len(rows))], i)

    def _check(self, gradients: Mapping[str, Tensor], first: Batch, i: int) -> None:
        """The first sample's gradient again by plain autograd: batching rules are many, and a wrong one would be silent."""
        plain = self._loop([first], i)
        difference = sum(float((gradients[n][0] - plain[n][0]).double().square().sum()) for n in plain)
        size = sum(float(plain[n].double().square().sum()) for n in plain)
        tolerance = 1e3 * torch.finfo(next(iter(plain.values())).dtype).eps
        if np.isfinite(size) and difference > tolerance**2 * size:
            raise ValueError(f"vmap's gradient differs from autograd's by {np.sqrt(difference / size):.1g}")
        self._checked = True

    def _vectorised(self, part: Batch) -> tuple[dict[str, Tensor], Tensor]:
        leaves, spec = pytree.tree_flatten((part.inputs, part.targets))
        batched = [k for k, leaf in enumerate(leaves) if _per_sample(leaf, part.size)]

        def one(parameters: dict[str, Tensor], *samples: Tensor) -> Tensor:
            filled = list(leaves)
            for k, sample in zip(batched, samples, strict=True):
                filled[k] = sample.unsqueeze(0)
            inputs, targets = pytree.tree_unflatten(filled, spec)
            return self._loss(parameters, Batch(inputs, targets, 1, part.label_key))

        parameters = {name: p.detach() for name, p in self.functional.parameters.items()}
        in_dims = (None, *(0 for _ in batched))
        gradients, losses = torch.func.vmap(torch.func.grad_and_value(one), in_dims=in_dims)(parameters, *(leaves[k] for k in batched))
        return {name: g.detach().reshape(part.size, -1) for name, g in gradients.items()}, losses.detach()

    def _loop(self, parts: list[Batch], first: int) -> dict[str, Tensor]:
        leaves = self.functional.parameters
        out = {name: p.new_zeros((len(parts), p.numel())).detach() for name, p in leaves.items()}
        for k, part in enumerate(parts):
            torch.manual_seed((self.seed + first + k) % 2**63)
            loss = self._loss(leaves, part)
            if not loss.requires_grad:
                raise ValueError("loss: does not depend on the selected parameters (a loss computed under no_grad, or a frozen output?)")
            found = torch.autograd.grad(loss, tuple(leaves.values()), allow_unused=True)
            self.losses[first + k] = float(loss.detach())
            for (name, _), g in zip(leaves.items(), found, strict=True):
                if g is not None:
                    out[name][k] = g.detach().reshape(-1)
        return out

    def _loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return self.loss.batch(lambda *args, **kwargs: self.functional(*args, leaves=parameters, **kwargs), batch)
