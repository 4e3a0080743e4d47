"""``neural_collapse``: how far the features at a classifier's input have collapsed to their class means (Papyan, Han & Donoho 2020).

One pass over the data gives counts, means and scatter (Chan merge in float64): NC1 to NC3. NC4 compares each sample with the
finished means: from features kept in their own dtype where they fit, by a second pass otherwise; the notes say which.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..kernels.select import BACKENDS
from ..linalg.arrays import device_of_name
from ..metrics.collapse_moments import between_rank_tolerance, cdnv, nc1, nc2, nc3, norm_spread, relative_spread
from ..probing.batches import Batches, device_named, to_tensors
from ..probing.capture import find_classifier
from ..probing.distributed import Ranks, ranks_of
from ..probing.functional import FunctionalModel, unwrap
from ..probing.losses import resolve_loss
from ..probing.memory import memory_limit
from ..probing.operator import compute_dtype
from ..probing.state import eval_notes, leave_no_trace
from ..progress import ProgressOption, progress_reporter
from ..results import Status
from .features import BEFORE_THE_FIRST, CannotAnalyse, FeaturePass, check_targets
from .layers import LayerPass, classifier_rows, layer_numbers, layers_named
from .nearest import Means, Nearest, nearest_means
from .result import F64, I64, NAN, LayerCollapse, NeuralCollapse
from .shards import united

__all__ = ["GLOBAL_MEANS", "neural_collapse"]

GLOBAL_MEANS = ("classes", "samples")


def neural_collapse(
    model: nn.Module,
    loader: Any,
    *,
    test_loader: Any = None,
    layer: str | None = None,
    layers: str | Sequence[str] | None = None,
    global_mean: str = "classes",
    per_class: bool = True,
    max_batches: int | None = None,
    max_memory: int | float | None = None,
    unpack: Callable[[Any], tuple[Any, Any]] | None = None,
    device: torch.device | str | None = None,
    process_group: Any = None,
    progress: ProgressOption = None,
) -> NeuralCollapse:
    """NC1 to NC4 in evaluation mode; the model is left as it was.

    layer: the module whose input is looked at; None: the linear layer whose output is the model's output. global_mean: of "classes"
    or of "samples". per_class=False: NC1 without the division by C. max_memory: bytes, None: 60 % of what is free; decides whether
    features are kept for NC4, and how many of ``layers`` there is room for. Targets are class indices of the model; those of -100 are
    left out; (B, T) targets with (B, T, d) features count per position.

    layers: a glob on the names of modules, or several: the same numbers for the input of each of them, ``by_layer``, from the same pass
    over the data: collapse by depth, and along how many dimensions the features of a layer spread. What an input has beyond one vector
    for each target, the positions of an image or a sequence, is averaged; of modules with the very same input the first is listed.
    Each has its NC4 and the accuracy of its nearest class means (Ben-Shaul & Dekel 2022), from inputs that were kept or a second pass.
    Layers that do not fit into max_memory (3 d² + 2 C d numbers each) or have no such input are in ``skipped``, with the reason.

    test_loader: other samples, whose numbers are in ``test``: about their own class means, as Galanti, Gyorgy & Hutter (2021) have them for test data and new
    classes, and NC4 with the class means of ``loader``'s samples, those trained on (Papyan, Han & Donoho 2020).

    process_group: a group of torch.distributed, or "world": ``loader`` is this rank's shard of the samples, of any size, and the numbers are those of the
    samples of all ranks, the same on each; see ModelOperator. A DistributedDataParallel model brings its group.

    Targets that are no classes, models without such a layer and fewer than two classes give status "skipped" with the reason.
    Raises ValueError for an unknown layer, layers that match nothing, an unknown global_mean and targets outside the model's classes.
    Ctrl-C returns what the samples seen so far give, status "incomplete".
    """
    ranks = ranks_of(model, process_group, loader)
    with ranks.agreed("reading the arguments"):
        if global_mean not in GLOBAL_MEANS:
            raise ValueError(f"global_mean: unknown {global_mean!r}; known: {', '.join(GLOBAL_MEANS)}")
        names = None if layers is None else layers_named(unwrap(model), layers)
        first = next((p for p in unwrap(model).parameters() if p.is_floating_point()), None)
        where = device_named(device) if device is not None else first.device if first is not None else torch.device("cpu")
        works_on = device_of_name(where) if where.type in BACKENDS else "cpu"
        limit = memory_limit(max_memory, torch.device(works_on))
    how = _How(global_mean, per_class, max_batches, limit, works_on, unpack, where, progress, test_loader is not None)
    with ranks.one_interrupt():
        result, means = _collapse(model, ranks, loader, layer, names, how, None)
        if test_loader is None:
            return result
        if result.status == "incomplete":
            return replace(result, notes=(*result.notes, "interrupted before the samples of test_loader"))
        ranks.notes = ranks_of(model, process_group, test_loader).notes
        try:
            test = _collapse(model, ranks, test_loader, (result.layer or layer) if means else layer, names, how, means)[0]
        except (TypeError, ValueError) as error:
            told = re.sub(r"(^|: )loader:", r"\1test_loader:", str(error), count=1)  # of another rank it stands behind the rank's number
            raise type(error)(told) from error
    if test.status == "incomplete":
        return replace(result, test=test, status="incomplete", reason=f"test_loader: {test.reason}")
    return replace(result, test=test)


@dataclass(frozen=True)
class _How:
    global_mean: str
    per_class: bool
    max_batches: int | None
    limit: int
    works_on: str
    unpack: Callable[[Any], tuple[Any, Any]] | None
    where: torch.device
    progress: ProgressOption
    tests: bool


def _collapse(
    model: nn.Module, ranks: Ranks, loader: Any, layer: str | None, names: list[str] | None, how: _How, others: Means | None
) -> tuple[NeuralCollapse, Means | None]:
    """(the numbers of one set of samples, its class means). names: of the layers by depth. others: class means of other samples."""
    started = time.perf_counter()
    model, where, limit = unwrap(model), how.where, how.limit
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    buffers = ranks.same_model(model, f"{where.type}, {layer}, {names}, {how.global_mean}, {how.per_class}, test_loader {how.tests}")
    notes = [*ranks.notes, *eval_notes(model)]
    with leave_no_trace(model), progress_reporter(how.progress) as report, torch.no_grad():
        refused: CannotAnalyse | None = None
        seen: FeaturePass | None = None
        interrupted = False
        with ranks.agreed("the features' class moments"):
            precision = compute_dtype(model) if first is not None else None
            dtype = None if precision is None else precision.dtype
            batches = Batches(loader, device=where, dtype=dtype, max_batches=how.max_batches, unpack=how.unpack, may_be_empty=ranks.size > 1)
            # half precision is too coarse for the ranks of the scatter matrices
            run: Callable[..., Any] = model
            if precision is not None and (precision.casts or buffers):
                run = FunctionalModel(model, {}, where, dtype if precision.casts else None)
                run.use_buffers(buffers)
            notes += [note for note in (precision.note if precision is not None else "", batches.note) if note]

            def look_at(name: str) -> FeaturePass:
                found = FeaturePass(model, run, name, dict(model.named_modules())[name], batches, limit, how.works_on)
                if names is not None:
                    found.layers = LayerPass(model, names, name, limit // 2, how.works_on)
                return found

            try:
                if len(batches):
                    seen = look_at(_classifier(model, run, batches, layer, where, first))
                    seen.shifted = _shifted(model, run, batches)
                    interrupted = seen.run(report, ranks.asked_to_stop)
            except CannotAnalyse as error:
                refused = error
        # with several ranks it is not known here what the others found
        name = layer or (seen.name if seen is not None and ranks.size == 1 else "")
        try:
            if ranks.size > 1:
                seen, interrupted = united(ranks, seen, interrupted, refused, look_at)
            elif refused is not None:
                raise refused
            assert seen is not None
            return _numbers(seen, ranks, how, others, interrupted, notes, started)
        except CannotAnalyse as error:
            seconds = time.perf_counter() - started
            notes_so_far = tuple(notes)
            empty = NeuralCollapse(status=error.status, reason=str(error), layer=name, global_mean=how.global_mean, seconds=seconds, notes=notes_so_far)
            return empty, None


def _classifier(model: nn.Module, run: Any, batches: Batches, layer: str | None, where: torch.device, first: nn.Parameter | None) -> str:
    """The name of the layer whose input is looked at."""
    check_targets(batches[0])
    try:
        # the model itself runs here, so in its own precision
        sample = batches[0] if run is model or first is None else replace(batches[0], inputs=to_tensors(batches[0].inputs, where, first.dtype))
        return find_classifier(model, sample, layer)[0]
    except ValueError as error:
        if layer is not None:
            raise
        raise CannotAnalyse(str(error)) from error


def _shifted(model: nn.Module, run: Callable[..., Any], batches: Batches) -> bool:
    """Whether the model's own loss compares position t with label t + 1, as causal language models do."""
    first = batches[0]
    if first.label_key != "labels" or not isinstance(first.targets, Tensor) or first.targets.ndim < 2:
        return False
    own = resolve_loss(model, batches, run=run)
    if own.from_model and own.form is None:
        raise CannotAnalyse("the model computes its own loss in an unknown form, so which label belongs to which position is unknown; give unpack=")
    return own.shifted


def _numbers(
    seen: FeaturePass, ranks: Ranks, how: _How, others: Means | None, interrupted: bool, notes: list[str], started: float
) -> tuple[NeuralCollapse, Means]:
    moments = seen.moments
    if moments is None or seen.n_samples == 0:
        if interrupted:
            raise CannotAnalyse(BEFORE_THE_FIRST, "incomplete")
        raise CannotAnalyse("no sample has a valid target")
    present = np.flatnonzero(moments.counts)
    n_present, dim = len(present), moments.means.shape[1]
    if n_present < 2:
        raise CannotAnalyse(f"neural collapse needs at least two classes, the samples hold {n_present}")
    means, counts = moments.means[present], moments.counts[present]
    about = Means.of(moments, how.global_mean)
    a = about.centred
    _say_classes(seen, n_present, dim, counts, notes)
    one = nc1(moments.scatter, seen.n_samples, a, between_rank_tolerance(means, seen.eps), per_class=how.per_class)
    if one.rank < min(n_present - 1, dim):
        notes.append(f"NC1: the class means span {one.rank} of {min(n_present - 1, dim)} directions above rounding")
    two = nc2(a)
    w = _classifier_rows(seen, present, notes)
    nearest = nearest_means(seen, ranks, how.global_mean, others, notes)
    by_layer = _by_layer(seen, nearest, how, notes)
    status: Status = "incomplete" if interrupted or nearest.stopped else "unresolved" if one.rank == 0 else "ok"
    stopped = f"interrupted: {seen.done} of {len(seen.batches)} batches" if interrupted else "interrupted before NC4 was known"
    reason = {"incomplete": stopped, "unresolved": "the class means are equal to rounding", "ok": ""}[status]
    result = NeuralCollapse(
        status=status, reason=reason, backend=moments.backend, nc1=one.value, nc1_rank=one.rank, nc1_tolerance=one.tolerance,
        mean_values=one.values, spread=relative_spread(moments.scatter, means, counts),
        cdnv=cdnv(moments.spread[present], counts, a), nc2_norms=two.norms, nc2_norms_classifier=NAN if w is None else norm_spread(w),
        nc2_angles=two.angles, nc2_etf=two.etf, nc3=NAN if w is None else nc3(w, a), nc4=nearest.own[0], ncc_accuracy=nearest.own[1],
        accuracy=seen.correct / seen.n_samples if seen.decided else NAN, n_classes=n_present, n_samples=seen.n_samples, feature_dim=dim,
        layer=seen.name, etf_exists=n_present <= dim + 1, class_counts=moments.counts, means=means, global_mean=how.global_mean,
        nc4_train=nearest.others[0], ncc_accuracy_train=nearest.others[1], by_layer=by_layer, skipped=seen.layers.skipped if seen.layers is not None else (),
        seconds=time.perf_counter() - started, notes=tuple(notes),
    )  # fmt: skip
    return result, about


def _say_classes(seen: FeaturePass, n_present: int, dim: int, counts: I64, notes: list[str]) -> None:
    if n_present < seen.n_classes:
        absent = [int(c) for c in np.flatnonzero(seen.moments.counts == 0)] if seen.moments is not None else []
        named = ", ".join(map(str, absent[:10])) + (", .." if len(absent) > 10 else "")
        notes.append(f"{len(absent)} of {seen.n_classes} classes do not occur and are left out: {named}")
    if n_present > dim + 1:
        notes.append(f"no simplex ETF of {n_present} classes exists in {dim} dimensions (C > d + 1): NC2 cannot reach 0")
    single = int(np.count_nonzero(counts == 1))
    if single:
        notes.append(f"{single} classes have one sample and add nothing to the within-class scatter")


def _classifier_rows(seen: FeaturePass, present: NDArray[np.intp], notes: list[str]) -> F64 | None:
    dim = seen.moments.means.shape[1] if seen.moments is not None else 0
    rows = classifier_rows(seen.module, seen.n_classes, dim, present)
    if rows is None:
        weight = getattr(seen.module, "weight", None)
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else None
        notes.append(f"NC3 and the classifier's norms need a weight of shape ({seen.n_classes}, {dim}); {seen.name!r} has {shape}")
    elif len(present) < seen.n_classes:
        notes.append("NC3 and the classifier's norms: rows of the classes that occur, centred among themselves")
    return rows


def _by_layer(seen: FeaturePass, nearest: Nearest, how: _How, notes: list[str]) -> dict[str, LayerCollapse]:
    if seen.layers is None or seen.moments is None:
        return {}
    others = seen.layers
    if others.same:
        named = ", ".join(f"{name} = {other}" for name, other in list(others.same.items())[:8]) + (", .." if len(others.same) > 8 else "")
        notes.append(f"layers with the very same input are listed once: {named}")
    found = {
        name: layer_numbers(moments, others.module(name), others.eps[name], how.global_mean, how.per_class)
        for name, moments in others.moments.items()
        if np.count_nonzero(moments.counts) >= 2
    }
    found[seen.name] = layer_numbers(seen.moments, seen.module, seen.eps, how.global_mean, how.per_class)
    at = {name: nearest.by_layer.get(name, (NAN, NAN)) for name in found}
    return {name: replace(numbers, nc4=at[name][0], ncc_accuracy=at[name][1]) for name, numbers in found.items()}
