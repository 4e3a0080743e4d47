"""The model run over its data: the labelled inputs of one layer, and their class moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..metrics.collapse_moments import ClassMoments
from ..probing.batches import Batch, Batches, call_model, logits_of
from ..probing.capture import capture_inputs, origin_of_nan
from ..probing.losses import IGNORE_INDEX
from ..progress import Progress
from ..results import Status
from .layers import LayerPass

__all__ = ["CannotAnalyse", "FeaturePass", "Labelled", "check_targets"]

I64 = NDArray[np.int64]
NEEDS_CLASSES = "neural collapse needs integer class targets"


BEFORE_THE_FIRST = "interrupted before the first batch was done"


class CannotAnalyse(Exception):
    """Ends the analysis in a result without numbers: "skipped" (not the kind of data or model it is about), "failed", or "incomplete" after Ctrl-C."""

    def __init__(self, reason: str, status: Status = "skipped") -> None:
        super().__init__(reason)
        self.status = status


def _kind(targets: Any) -> str:
    """What they are, in words, and what to do about it."""
    if isinstance(targets, Tensor):
        name = str(targets.dtype).removeprefix("torch.")
        return f"{name} (class indices as integers, targets.long(); of one-hot rows their argmax)" if targets.is_floating_point() else name
    if isinstance(targets, np.ndarray):
        inner = f" of {'str' if targets.dtype.kind in 'OSU' else targets.dtype}"
    else:
        inner = f" of {type(targets[0]).__name__}" if isinstance(targets, (list, tuple)) and targets else ""
    if targets is None:
        return "none: the loader yields no targets"
    return f"{type(targets).__name__}{inner}{' (number the classes from 0)' if inner == ' of str' else ''}"


def check_targets(batch: Batch) -> None:
    t = batch.targets
    if not isinstance(t, Tensor) or t.is_floating_point() or t.is_complex():
        raise CannotAnalyse(f"{NEEDS_CLASSES}, got {_kind(t)}")


@dataclass(frozen=True)
class Labelled:
    """features (B, d) in their own dtype, where they are worked on; targets and the model's decisions (B,), decisions -1 where outputs are no classes."""

    features: Tensor
    targets: I64
    decisions: I64


def as_array(features: Tensor) -> NDArray[Any]:
    """On the CPU, in place where numpy and the kernels know the format, else as float32, which holds bfloat16."""
    return np.asarray(features.numpy() if features.dtype in (torch.float64, torch.float32) else features.float().numpy())


class FeaturePass:
    """The model run over the batches: moments of the features, and the features themselves while they fit."""

    def __init__(self, model: nn.Module, run: Callable[..., Any], name: str, module: nn.Module, batches: Batches, limit: int, device: str = "cpu") -> None:
        self.model, self.run_model, self.name, self.module, self.batches = model, run, name, module, batches
        self.limit, self._device = limit, device  # where the features are worked on, and bytes there
        self.shifted = False  # a target belongs to the position before it
        self.layers: LayerPass | None = None  # others, watched during the first pass
        self._labels: I64 = np.zeros(0, dtype=np.int64)  # of all rows of the last batch
        self.moments: ClassMoments | None = None
        self.n_classes = 0
        self.kept: list[Labelled] | None = []
        self.kept_bytes = 0
        self.done = 0  # batches in the moments
        self.n_samples = 0
        self.correct = 0
        self.decided = True
        self._known = True  # are the outputs of the last batch numbers?
        self.eps = float(np.finfo(np.float64).eps)
        self.second_pass = False

    def run(self, report: Progress, asked_to_stop: Callable[[], bool] = lambda: False) -> bool:
        """True when interrupted."""
        try:
            for i in range(len(self.batches)):
                if asked_to_stop():
                    return True
                self._add(self._labelled(i, self.layers))
                report(i + 1, len(self.batches), "class moments")
        except KeyboardInterrupt:
            return True
        return asked_to_stop()

    def _labelled(self, i: int, layers: LayerPass | None = None) -> Labelled:
        batch = self.batches[i]
        check_targets(batch)
        others = nullcontext() if layers is None else layers.watching(batch.targets, self.shifted)
        with capture_inputs(self.model, self.name) as inputs, others:
            outputs = call_model(self.run_model, batch)
        if len(inputs) != 1:
            raise CannotAnalyse(f"layer {self.name!r} is called {len(inputs)} times in one forward pass; its input is not one feature per sample")
        features, targets = inputs[0], batch.targets
        assert isinstance(targets, Tensor)
        if targets.ndim == features.ndim and targets.shape[-1] == 1:
            targets = targets.squeeze(-1)
        if targets.ndim == 0 or features.shape[:-1] != targets.shape:
            shapes = f"features {tuple(features.shape)}, targets {tuple(targets.shape)}"
            raise CannotAnalyse(f"the input of {self.name!r} is not one vector per target: {shapes}")
        if self.shifted:
            features, targets = features[:, :-1], targets[:, 1:]
        self.eps = max(torch.finfo(features.dtype).eps, self.eps)
        labels = targets.reshape(-1).to(torch.int64).cpu()
        decisions = self._decisions(outputs, targets)
        valid = labels != IGNORE_INDEX
        self._labels = labels.numpy()
        flat = features.reshape(-1, features.shape[-1]).to(self._device)
        return Labelled(flat[valid.to(flat.device)], labels[valid].numpy(), decisions[valid].numpy())

    def _decisions(self, outputs: Any, targets: Tensor) -> Tensor:
        logits = logits_of(outputs)
        if self.shifted:
            logits = logits[:, :-1]
        if logits.ndim == targets.ndim and logits.shape[1:] == targets.shape[1:]:
            logits = logits.unsqueeze(-1)
        if logits.shape[:-1] != targets.shape:
            self.decided = False
            return torch.full((targets.numel(),), -1)
        flat = logits.reshape(-1, logits.shape[-1])
        self._known = not bool(torch.isnan(flat).any())  # else the largest score says nothing; minus infinity is a class ruled out
        # one logit decides between classes 0 and 1
        self._expect_classes(max(flat.shape[1], 2))
        return (flat.argmax(dim=1) if flat.shape[1] > 1 else (flat[:, 0] > 0).to(torch.int64)).cpu()

    def _expect_classes(self, n: int) -> None:
        if self.n_classes not in (0, n):
            raise CannotAnalyse(f"the model's output has {n} classes in one batch and {self.n_classes} in another")
        self.n_classes = n

    def _add(self, part: Labelled) -> None:
        if self.n_classes == 0:
            raise CannotAnalyse("the model's output is not one score per class")
        bad = part.targets[(part.targets < 0) | (part.targets >= self.n_classes)]
        if len(bad):
            raise ValueError(f"loader: target {bad[0]} is outside the model's {self.n_classes} classes (0 .. {self.n_classes - 1})")
        if self.moments is None:
            dim = part.features.shape[1]
            need = ClassMoments.nbytes(self.n_classes, dim)
            if need > self.limit:
                raise CannotAnalyse(f"needs {need / 1e9:.3g} GB for the scatter of {dim} features, {self.limit / 1e9:.3g} GB allowed (max_memory)")
            self.moments = ClassMoments(self.n_classes, dim, device=self._device)
            if self.layers is not None:
                self.layers.limit -= need
        if not bool(torch.isfinite(part.features).all()):
            raise CannotAnalyse(f"the input of {self.name!r} holds NaN or Inf in batch {self.done}{self._origin()}", "failed")
        if not self._known:
            raise CannotAnalyse(f"the model's output holds NaN in batch {self.done}{self._origin()}", "failed")
        self.moments.add(as_array(part.features) if self._device == "cpu" else part.features, part.targets)
        if self.layers is not None:
            self.layers.add(self._labels, self.n_classes, self.done)
        self.done += 1
        self.n_samples += len(part.targets)
        self.correct += int(np.count_nonzero(part.targets == part.decisions))
        if self.kept is not None:
            self.kept_bytes += part.features.numel() * part.features.element_size()
            self.kept.append(part)
            if self.kept_bytes > self.limit // 2:
                self.kept = None

    def _origin(self) -> str:
        return origin_of_nan(self.model, self.run_model, self.batches[self.done])

    def again(self) -> Iterator[tuple[Labelled, dict[str, Tensor]]]:
        """The labelled features of every batch a second time, and the layers' inputs by name: those kept, or of another forward pass over the same batches."""
        for i in range(self.done):
            layers = self.layers if self.layers is not None and self.layers.moments else None
            inputs = {} if layers is None or layers.kept is None else layers.kept[i]
            part = None if self.kept is None else self.kept[i]
            watched = layers if layers is not None and layers.kept is None else None
            if part is None or watched is not None:
                self.second_pass = True
                run = self._labelled(i, watched)
                part = run if part is None else part
                inputs = inputs if watched is None else watched.taken(self._labels)
            yield part, inputs
