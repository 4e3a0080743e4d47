"""The loss of every sample of a fixed set, asked again and again while something in the model changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .batches import Batches, call_model, logits_of
from .losses import Loss
from .per_sample import samples_of

__all__ = ["SampleLosses", "paired_change"]

F64 = NDArray[np.float64]

# what torch or a user's loss raises where single samples cannot be told apart
_CANNOT_SPLIT = (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError, AttributeError)


class SampleLosses:
    """``losses()``: the mean loss of every sample as the model stands now, float64 (n,). Use inside leave_no_trace(model) and no_grad.

    weights: (n,), sum 1: sum(weights * losses()) is the loss of the whole set, exact for ragged batches. unit: "sample", or "batch" where the
    loss of a single sample cannot be had from the outputs (only the model knows it, or the loss is no mean over samples); note says why.
    The generator is set from ``seed`` before every pass, so that a model with randomness of its own sees the same numbers each time.
    """

    def __init__(self, model: nn.Module, batches: Batches, loss: Loss, *, seed: int = 0) -> None:
        self.model, self.batches, self.loss, self.seed = model, batches, loss, seed
        self.note = ""
        units, _ = samples_of(batches, loss)
        self._rows: list[list[int]] = [[] for _ in batches]
        for u in units:
            if u.row is not None:
                self._rows[u.batch].append(u.row)
        terms = np.array([u.weight for u in units])
        self.unit = "sample"
        self.weights: F64 = terms / terms.sum() if terms.size else terms
        shares = np.array(loss.weights(batches))
        try:
            single = self._samples()
            means = self._batches()
            # the samples' losses have to make up the batches' means, else the loss is no mean over samples
            if not np.isclose(self.weights @ single, shares @ means, rtol=self._tolerance(), atol=0.0, equal_nan=True):
                raise ValueError(f"the samples' mean loss is {self.weights @ single:.6g}, that of the batches {shares @ means:.6g}")
        except _CANNOT_SPLIT as error:
            why = str(error).strip().splitlines()
            self.note = f"error bars from batches: the loss of single samples cannot be told ({type(error).__name__}: {why[0][:160] if why else ''})"
            self.unit, self.weights = "batch", shares

    def __call__(self) -> F64:
        return self._samples() if self.unit == "sample" else self._batches()

    @property
    def n_units(self) -> int:
        return int(self.weights.size)

    def _samples(self) -> F64:
        torch.manual_seed(self.seed)
        found = []
        for batch, rows in zip(self.batches, self._rows, strict=True):
            outputs = call_model(self.model, batch)
            z: Any = logits_of(outputs) if self.loss.form is not None else outputs
            values: Tensor = torch.func.vmap(self.loss.sample)(z, batch.targets)
            found.append(values.double().cpu().numpy()[rows])
        return np.concatenate(found)

    def _batches(self) -> F64:
        torch.manual_seed(self.seed)
        return np.array([float(self.loss.batch(self.model, batch).double()) for batch in self.batches])

    def _tolerance(self) -> float:
        """Two sums of n terms in the model's precision, in another order (Higham & Mary 2019, lambda = 4, and both sums)."""
        eps = max((torch.finfo(p.dtype).eps for p in self.model.parameters() if p.is_floating_point()), default=2.0**-23)
        return 16.0 * eps * max(1.0, float(np.sqrt(max(b.size for b in self.batches))))


def paired_change(before: F64, after: F64, weights: F64) -> tuple[float, float]:
    """Weighted mean of ``after - before`` over the units and its standard error.

    before, after, weights: (n,), weights with sum 1. The standard error is that of a ratio estimate over the same units (Cochran 1977,
    chapter 6): sqrt(n/(n-1) sum w² (d - mean)²), for equal weights the sample's deviation over sqrt(n). NaN for fewer than two units.
    """
    d = after - before
    mean = float(weights @ d)
    n = d.size
    if n < 2:
        return mean, float("nan")
    return mean, float(np.sqrt(n / (n - 1) * np.sum((weights * (d - mean)) ** 2)))
