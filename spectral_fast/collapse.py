"""Neural collapse: how far the features of a classifier's input have collapsed to their class means (Papyan, Han & Donoho 2020).

One pass over the data gives counts, means and scatter (Chan merge in float64): NC1 to NC3. NC4 compares each sample with the
finished means: from features kept in their own dtype where they fit, by a second pass otherwise; the notes say which.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .metrics.collapse_moments import ClassMoments, between_rank_tolerance, cdnv, nc1, nc2, nc3, nearest_mean, norm_spread
from .probing.batches import Batch, Batches, call_model, logits_of, to_tensors
from .probing.capture import capture_inputs, find_classifier
from .probing.functional import FunctionalModel, unwrap
from .probing.losses import IGNORE_INDEX, resolve_loss
from .probing.memory import memory_limit
from .probing.operator import compute_dtype
from .probing.state import eval_notes, leave_no_trace
from .progress import Progress, ProgressOption, progress_reporter
from .results import Result, Status

__all__ = ["GLOBAL_MEANS", "NeuralCollapse", "neural_collapse"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
GLOBAL_MEANS = ("classes", "samples")
NAN = math.nan
NEEDS_CLASSES = "neural collapse needs integer class targets"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class NeuralCollapse(Result):
    """Neural-collapse numbers at the input of `layer` (definitions.md, "Neural collapse"); all are 0 at full collapse, NaN where unknown.

    C = n_classes counts the classes that occur in the samples, in every number here; class_counts: samples of every class of the
    model, zeros included, so len(class_counts) is the model's number of classes.
    nc1: tr(S_W S_B^+)/C, with nc1_rank directions of S_B above nc1_tolerance (a singular value of the centred means).
    cdnv: class-distance normalized variance. nc2_norms, nc2_norms_classifier: std/mean of the lengths of class means and of
    classifier rows; nc2_angles: mean |cos + 1/(C-1)|; nc2_etf: distance to a simplex ETF, which exists only if etf_exists (C <= d + 1).
    nc3: distance of the normalised classifier and class means. nc4: share of samples where the model's decision differs from the
    nearest class mean. accuracy: share decided right. means: (C, d) float64 class means of the classes that occur.
    """

    nc1: float = NAN
    nc1_rank: int = 0
    nc1_tolerance: float = NAN
    cdnv: float = NAN
    nc2_norms: float = NAN
    nc2_norms_classifier: float = NAN
    nc2_angles: float = NAN
    nc2_etf: float = NAN
    nc3: float = NAN
    nc4: float = NAN
    accuracy: float = NAN
    n_classes: int = 0
    n_samples: int = 0
    feature_dim: int = 0
    layer: str = ""
    etf_exists: bool = False
    class_counts: I64 = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    means: F64 = field(default_factory=lambda: np.zeros((0, 0)), repr=False)  # repr=False: too large for to_dict
    global_mean: str = "classes"
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


class _CannotAnalyse(Exception):
    """Ends the analysis in a result without numbers: "skipped" (not the kind of data or model it is about) or "failed"."""

    def __init__(self, reason: str, status: Status = "skipped") -> None:
        super().__init__(reason)
        self.status = status


def neural_collapse(
    model: nn.Module,
    loader: Any,
    *,
    layer: str | None = None,
    global_mean: str = "classes",
    per_class: bool = True,
    max_batches: int | None = None,
    max_memory: int | float | None = None,
    unpack: Callable[[Any], tuple[Any, Any]] | None = None,
    device: torch.device | str | None = None,
    progress: ProgressOption = None,
) -> NeuralCollapse:
    """NC1 to NC4 in evaluation mode; the model is left as it was.

    layer: the module whose input is looked at; None: the linear layer whose output is the model's output. global_mean: of "classes"
    or of "samples". per_class=False: NC1 without the division by C. max_memory: bytes, None: 60 % of what is free; decides whether
    features are kept for NC4. Targets are class indices of the model; those of -100 are left out; (B, T) targets with (B, T, d) features count per
    position.

    Targets that are no classes, models without such a layer and fewer than two classes give status "skipped" with the reason.
    Raises ValueError for an unknown layer or global_mean and for targets outside the model's classes. Ctrl-C returns what the
    samples seen so far give, status "incomplete".
    """
    started = time.perf_counter()
    if global_mean not in GLOBAL_MEANS:
        raise ValueError(f"global_mean: unknown {global_mean!r}; known: {', '.join(GLOBAL_MEANS)}")
    model = unwrap(model)
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    where = torch.device(device) if device is not None else first.device if first is not None else torch.device("cpu")
    limit = memory_limit(max_memory, torch.device("cpu"))
    notes = list(eval_notes(model))
    with leave_no_trace(model), progress_reporter(progress) as report, torch.no_grad():
        precision = compute_dtype(model) if first is not None else None
        dtype = None if precision is None else precision.dtype
        batches = Batches(loader, device=where, dtype=dtype, max_batches=max_batches, unpack=unpack)
        # half precision is too coarse for the ranks of the scatter matrices
        run: Callable[..., Any] = FunctionalModel(model, {}, where, dtype) if precision is not None and precision.casts else model
        if precision is not None and precision.note:
            notes.append(precision.note)
        if batches.note:
            notes.append(batches.note)
        name = layer or ""
        try:
            _check_targets(batches[0])
            try:
                # the model itself runs here, so in its own precision
                sample = batches[0] if run is model or first is None else replace(batches[0], inputs=to_tensors(batches[0].inputs, where, first.dtype))
                name, module = find_classifier(model, sample, layer)
            except ValueError as error:
                if layer is not None:
                    raise
                raise _CannotAnalyse(str(error)) from error
            seen = _Pass(model, run, name, module, batches, limit)
            seen.shifted = _shifted(model, run, batches)
            interrupted = seen.run(report)
            return _numbers(seen, global_mean, per_class, interrupted, notes, started)
        except _CannotAnalyse as error:
            seconds = time.perf_counter() - started
            return NeuralCollapse(status=error.status, reason=str(error), layer=name, global_mean=global_mean, seconds=seconds, notes=tuple(notes))


def _shifted(model: nn.Module, run: Callable[..., Any], batches: Batches) -> bool:
    """Whether the model's own loss compares position t with label t + 1, as causal language models do."""
    first = batches[0]
    if first.label_key != "labels" or not isinstance(first.targets, Tensor) or first.targets.ndim < 2:
        return False
    own = resolve_loss(model, batches, run=run)
    if own.from_model and own.form is None:
        raise _CannotAnalyse("the model computes its own loss in an unknown form, so which label belongs to which position is unknown; give unpack=")
    return own.shifted


def _check_targets(batch: Batch) -> None:
    t = batch.targets
    if not isinstance(t, Tensor) or t.is_floating_point() or t.is_complex():
        raise _CannotAnalyse(f"{NEEDS_CLASSES}, got {str(t.dtype).removeprefix('torch.') if isinstance(t, Tensor) else type(t).__name__}")


@dataclass(frozen=True)
class _Labelled:
    """features (B, d) in their own dtype on the CPU; targets and the model's decisions (B,), decisions -1 where outputs are no classes."""

    features: Tensor
    targets: I64
    decisions: I64


class _Pass:
    """The model run over the batches: moments of the features, and the features themselves while they fit."""

    def __init__(self, model: nn.Module, run: Callable[..., Any], name: str, module: nn.Module, batches: Batches, limit: int) -> None:
        self.model, self.run_model, self.name, self.module, self.batches, self.limit = model, run, name, module, batches, limit
        self.shifted = False  # a target belongs to the position before it
        self.moments: ClassMoments | None = None
        self.n_classes = 0
        self.kept: list[_Labelled] | None = []
        self.kept_bytes = 0
        self.done = 0  # batches in the moments
        self.n_samples = 0
        self.correct = 0
        self.decided = True
        self.eps = float(np.finfo(np.float64).eps)
        self.second_pass = False

    def run(self, report: Progress) -> bool:
        """True when interrupted."""
        try:
            for i in range(len(self.batches)):
                self._add(self._labelled(i))
                report(i + 1, len(self.batches), "class moments")
        except KeyboardInterrupt:
            return True
        return False

    def _labelled(self, i: int) -> _Labelled:
        batch = self.batches[i]
        _check_targets(batch)
        with capture_inputs(self.model, self.name) as inputs:
            outputs = call_model(self.run_model, batch)
        if len(inputs) != 1:
            raise _CannotAnalyse(f"layer {self.name!r} is called {len(inputs)} times in one forward pass; its input is not one feature per sample")
        features, targets = inputs[0], batch.targets
        assert isinstance(targets, Tensor)
        if targets.ndim == features.ndim and targets.shape[-1] == 1:
            targets = targets.squeeze(-1)
        if targets.ndim == 0 or features.shape[:-1] != targets.shape:
            shapes = f"features {tuple(features.shape)}, targets {tuple(targets.shape)}"
            raise _CannotAnalyse(f"the input of {self.name!r} is not one vector per target: {shapes}")
        if self.shifted:
            features, targets = features[:, :-1], targets[:, 1:]
        self.eps = max(torch.finfo(features.dtype).eps, self.eps)
        labels = targets.reshape(-1).to(torch.int64).cpu()
        decisions = self._decisions(outputs, targets)
        valid = labels != IGNORE_INDEX
        flat = features.reshape(-1, features.shape[-1]).cpu()
        return _Labelled(flat[valid], labels[valid].numpy(), decisions[valid].numpy())

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
        # one logit decides between classes 0 and 1
        self._expect_classes(max(flat.shape[1], 2))
        return (flat.argmax(dim=1) if flat.shape[1] > 1 else (flat[:, 0] > 0).to(torch.int64)).cpu()

    def _expect_classes(self, n: int) -> None:
        if self.n_classes not in (0, n):
            raise _CannotAnalyse(f"the model's output has {n} classes in one batch and {self.n_classes} in another")
        self.n_classes = n

    def _add(self, part: _Labelled) -> None:
        if self.n_classes == 0:
            raise _CannotAnalyse("the model's output is not one score per class")
        bad = part.targets[(part.targets < 0) | (part.targets >= self.n_classes)]
        if len(bad):
            raise ValueError(f"loader: target {bad[0]} is outside the model's {self.n_classes} classes (0 .. {self.n_classes - 1})")
        if self.moments is None:
            dim = part.features.shape[1]
            need = 8 * (2 * dim * dim + 2 * self.n_classes * dim)  # scatter, a block's scatter, means
            if need > self.limit:
                raise _CannotAnalyse(f"needs {need / 1e9:.3g} GB for the scatter of {dim} features, {self.limit / 1e9:.3g} GB allowed (max_memory)")
            self.moments = ClassMoments(self.n_classes, dim)
        if not bool(torch.isfinite(part.features).all()):
            raise _CannotAnalyse(f"the input of {self.name!r} holds NaN or Inf in batch {self.done}", "failed")
        self.moments.add(part.features.double().numpy(), part.targets)
        self.done += 1
        self.n_samples += len(part.targets)
        self.correct += int(np.count_nonzero(part.targets == part.decisions))
        if self.kept is not None:
            self.kept_bytes += part.features.numel() * part.features.element_size()
            self.kept.append(part)
            if self.kept_bytes > self.limit // 2:
                self.kept = None

    def again(self) -> Iterator[_Labelled]:
        """The labelled features a second time: those kept, or another forward pass over the same batches."""
        if self.kept is not None:
            yield from self.kept
            return
        self.second_pass = True
        for i in range(self.done):
            yield self._labelled(i)


def _numbers(seen: _Pass, global_mean: str, per_class: bool, interrupted: bool, notes: list[str], started: float) -> NeuralCollapse:
    moments = seen.moments
    if moments is None or seen.n_samples == 0:
        raise _CannotAnalyse("interrupted before the first batch was done" if interrupted else "no sample has a valid target")
    present = np.flatnonzero(moments.counts)
    n_present, dim = len(present), moments.means.shape[1]
    if n_present < 2:
        raise _CannotAnalyse(f"neural collapse needs at least two classes, the samples hold {n_present}")
    means, counts = moments.means[present], moments.counts[present]
    centre = means.mean(axis=0) if global_mean == "classes" else (counts / counts.sum()) @ means
    a = means - centre
    _say_classes(seen, n_present, dim, counts, notes)
    one = nc1(moments.scatter, seen.n_samples, a, between_rank_tolerance(means, seen.eps), per_class=per_class)
    if one.rank < min(n_present - 1, dim):
        notes.append(f"NC1: the class means span {one.rank} of {min(n_present - 1, dim)} directions above rounding")
    two = nc2(a)
    w = _classifier_rows(seen, present, notes)
    nc4, stopped = _nc4(seen, centre, a, present, notes)
    status: Status = "incomplete" if interrupted or stopped else "unresolved" if one.rank == 0 else "ok"
    reason = {"incomplete": f"interrupted: {seen.done} of {len(seen.batches)} batches", "unresolved": "the class means are equal to rounding", "ok": ""}[status]
    return NeuralCollapse(
        status=status, reason=reason, backend="numpy", nc1=one.value, nc1_rank=one.rank, nc1_tolerance=one.tolerance,
        cdnv=cdnv(moments.spread[present], counts, a), nc2_norms=two.norms, nc2_norms_classifier=NAN if w is None else norm_spread(w),
        nc2_angles=two.angles, nc2_etf=two.etf, nc3=NAN if w is None else nc3(w, a), nc4=nc4,
        accuracy=seen.correct / seen.n_samples if seen.decided else NAN, n_classes=n_present, n_samples=seen.n_samples, feature_dim=dim,
        layer=seen.name, etf_exists=n_present <= dim + 1, class_counts=moments.counts, means=means, global_mean=global_mean,
        seconds=time.perf_counter() - started, notes=tuple(notes),
    )  # fmt: skip


def _say_classes(seen: _Pass, n_present: int, dim: int, counts: I64, notes: list[str]) -> None:
    if n_present < seen.n_classes:
        absent = [int(c) for c in np.flatnonzero(seen.moments.counts == 0)] if seen.moments is not None else []
        named = ", ".join(map(str, absent[:10])) + (", .." if len(absent) > 10 else "")
        notes.append(f"{len(absent)} of {seen.n_classes} classes do not occur and are left out: {named}")
    if n_present > dim + 1:
        notes.append(f"no simplex ETF of {n_present} classes exists in {dim} dimensions (C > d + 1): NC2 cannot reach 0")
    single = int(np.count_nonzero(counts == 1))
    if single:
        notes.append(f"{single} classes have one sample and add nothing to the within-class scatter")


def _classifier_rows(seen: _Pass, present: NDArray[np.intp], notes: list[str]) -> F64 | None:
    """Rows (C, d) of the classes that occur, or None where the layer's weight is no C x d matrix."""
    weight = getattr(seen.module, "weight", None)
    dim = seen.moments.means.shape[1] if seen.moments is not None else 0
    shape = tuple(weight.shape) if isinstance(weight, Tensor) else None
    if not isinstance(weight, Tensor) or shape != (seen.n_classes, dim):
        notes.append(f"NC3 and the classifier's norms need a weight of shape ({seen.n_classes}, {dim}); {seen.name!r} has {shape}")
        return None
    rows = weight.detach().double().cpu().numpy()[present]
    if len(present) < seen.n_classes:
        # the means of the classes that occur are centred among themselves; only rows centred likewise can match them
        rows = rows - rows.mean(axis=0)
        notes.append("NC3 and the classifier's norms: rows of the classes that occur, centred among themselves")
    return np.asarray(rows)


def _nc4(seen: _Pass, centre: F64, a: F64, present: NDArray[np.intp], notes: list[str]) -> tuple[float, bool]:
    if not seen.decided:
        notes.append("NC4: the model's output is not one score per class and target")
        return NAN, False
    differs = 0
    try:
        for part in seen.again():
            nearest = present[nearest_mean(part.features.double().numpy(), centre, a)]
            differs += int(np.count_nonzero(nearest != part.decisions))
    except KeyboardInterrupt:
        return NAN, True
    dtype = str(seen.kept[0].features.dtype).removeprefix("torch.") if seen.kept else ""
    kept = f"from features kept in {dtype} ({seen.kept_bytes / 1e6:.3g} MB)"
    notes.append(f"NC4: {'second forward pass over the same batches' if seen.second_pass else kept}")
    return differs / seen.n_samples, False
