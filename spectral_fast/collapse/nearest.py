"""Which class mean is nearest to each sample's features: NC4 and the accuracy of that decision, at the classifier's input and at every layer's."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..metrics.collapse_moments import ClassMoments, nearest_mean
from ..probing.distributed import Ranks
from .features import FeaturePass, Labelled
from .result import F64, I64, NAN

__all__ = ["Means", "Nearest", "nearest_means"]


@dataclass(frozen=True)
class Means:
    """Class means to compare with. classes (C,): the model's number of each that occurs; centre (d,): what is taken away first; centred (C, d): the means
    without it."""

    classes: NDArray[np.intp]
    centre: F64
    centred: F64

    @staticmethod
    def of(moments: ClassMoments, global_mean: str) -> Means:
        present = np.flatnonzero(moments.counts)
        means, counts = moments.means[present], moments.counts[present]
        centre = means.mean(axis=0) if global_mean == "classes" else (counts / counts.sum()) @ means
        return Means(present, centre, means - centre)

    def counted(self, features: Tensor, part: Labelled) -> NDArray[np.int64]:
        """(samples whose nearest mean is of another class than the model decides for, of their own class)."""
        x = features.double()
        if x.device.type == "cpu":
            at = nearest_mean(x.numpy(), self.centre, self.centred)
        else:
            centre, centred = (torch.from_numpy(np.ascontiguousarray(y)).to(x.device) for y in (self.centre, self.centred))
            at = ((x - centre) @ centred.mT - 0.5 * (centred * centred).sum(1)).argmax(1).cpu().numpy()
        nearest: I64 = self.classes[at]
        return np.array([np.count_nonzero(nearest != part.decisions), np.count_nonzero(nearest == part.targets)])


@dataclass(frozen=True)
class Nearest:
    """(NC4, accuracy of the nearest mean): with the samples' own class means, with ``others`` (see nearest_means), by layer; NaN where unknown. stopped: by
    Ctrl-C."""

    own: tuple[float, float] = (NAN, NAN)
    others: tuple[float, float] = (NAN, NAN)
    by_layer: dict[str, tuple[float, float]] = field(default_factory=dict)
    stopped: bool = False


def nearest_means(seen: FeaturePass, ranks: Ranks, global_mean: str, others: Means | None, notes: list[str]) -> Nearest:
    """Of all ranks' samples. others: class means of other samples (those trained on), for the classifier's input."""
    if not seen.decided:
        notes.append("NC4: the model's output is not one score per class and target")
        return Nearest()
    assert seen.moments is not None
    layers = {} if seen.layers is None else {name: m for name, m in seen.layers.moments.items() if np.count_nonzero(m.counts) >= 2}
    means = [Means.of(m, global_mean) for m in layers.values()]
    own = Means.of(seen.moments, global_mean)
    counts = np.zeros((2 + len(layers), 2), dtype=np.int64)
    missing, stopped = np.zeros(len(layers), dtype=np.int64), False
    with ranks.agreed("the nearest class means"):
        try:
            for part, inputs in seen.again():
                if ranks.asked_to_stop():
                    stopped = True
                    break
                counts[0] += own.counted(part.features, part)
                if others is not None:
                    counts[1] += others.counted(part.features, part)
                for i, name in enumerate(layers):
                    if name in inputs:
                        counts[2 + i] += means[i].counted(inputs[name], part)
                    else:
                        missing[i] = 1
            stopped = stopped or ranks.asked_to_stop()
        except KeyboardInterrupt:
            stopped = True
    told = np.array(ranks.gather([int(stopped), *missing.tolist(), *counts.ravel().tolist()])).sum(axis=0)
    if told[0]:
        return Nearest(stopped=True)
    if others is not None:
        unknown = int(seen.moments.counts[~np.isin(np.arange(len(seen.moments.counts)), others.classes)].sum())
        if unknown:
            notes.append(f"{unknown} samples are of classes without samples in loader: for its class means they count as wrong")
    counts = told[1 + len(layers) :].reshape(-1, 2)
    shares = [(float(differs) / seen.n_samples, float(right) / seen.n_samples) for differs, right in counts]
    by_layer = {name: (NAN, NAN) if told[1 + i] else shares[2 + i] for i, name in enumerate(layers)}
    dtype = str(seen.kept[0].features.dtype).removeprefix("torch.") if seen.kept else ""
    kept = f"from features kept in {dtype} ({seen.kept_bytes / 1e6:.3g} MB)"
    notes.append(f"NC4: {'second forward pass over the same batches' if seen.second_pass else kept}")
    return Nearest(shares[0], (NAN, NAN) if others is None else shares[1], {**by_layer, seen.name: shares[0]})
