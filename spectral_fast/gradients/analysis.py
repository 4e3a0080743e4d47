"""Gradient covariance: how the gradients of single samples differ, as an exact spectrum.

The N x N Gram matrix of per-sample gradients has the nonzero eigenvalues of the P x P covariance. It is summed over layers in float64 from their
inputs and the gradients of their outputs, which one backward pass gives for all samples of a batch: G (N x P) is never formed (probing.ghost_gram). A model
for which that cannot be done, and unit="batch", have their gradients formed one by one (probing.per_sample).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..linalg.options import seed_number, whole_number
from ..metrics.gradient_noise import (
    Concentration,
    Spectrum,
    class_parts,
    concentration,
    gram_spectrum,
    moment_spectrum,
    noise_scale,
    signal_share,
)
from ..metrics.gram_plan import COLUMN_TILE, GramPlan, plan_gram, samples_that_fit
from ..probing.batches import Batches, device_named
from ..probing.capture import origin_of_nan
from ..probing.distributed import ranks_of
from ..probing.functional import FunctionalModel, ParameterFilter, frozen_note, select_parameters, twice_differentiable, unwrap
from ..probing.ghost_gram import GhostGram
from ..probing.gradient_gram import GradientGram
from ..probing.gram_kernel import gram_kernel
from ..probing.losses import Loss, resolve_loss
from ..probing.memory import memory_limit
from ..probing.operator import compute_dtype
from ..probing.per_sample import PerSampleGradients, Unit
from ..probing.state import eval_notes, leave_no_trace
from ..progress import ProgressOption, progress_reporter
from .result import GradientSpectrum, LayerGradient
from .united import run_formed, run_ghost
from .units import DEFAULT_SAMPLES, affordable, compare_with_batch, samples_of_ranks, units_of

__all__ = ["UNITS", "gradient_covariance"]

F64 = NDArray[np.float64]
UNITS = ("sample", "batch")
NAN = math.nan


def gradient_covariance(
    model: nn.Module,
    loader: Any,
    loss: str | Loss | None = None,
    *,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    centered: bool = True,
    unit: str = "sample",
    params: ParameterFilter = None,
    k: int | None = None,
    max_samples: int | None = None,
    max_memory: int | float | None = None,
    max_batches: int | None = None,
    unpack: Callable[[Any], tuple[Any, Any]] | None = None,
    device: torch.device | str | None = None,
    process_group: Any = None,
    seed: int = 0,
    progress: ProgressOption = None,
) -> GradientSpectrum:
    """Exact spectrum of the covariance of per-sample gradients, in evaluation mode; the model is left as it was.

    centered: C = 1/(n-1) sum (g_n - g)(g_n - g)ᵀ; False: (1/n) sum g_n g_nᵀ, the empirical Fisher. Samples with different numbers
        of terms (tokens) are weighted by them. unit: "sample", or "batch" for the mean gradients of the loader's batches.
    k: how many eigenvalues are kept, None: all. max_samples: None: up to 2048, fewer where n² P would pass 1e13 (the notes say so).
    max_memory: bytes, None: 60 % of what is free. Fewer samples are taken where the products of all do not fit; samples are run again in blocks and
        eigenvalues per layer left out where the rest does not, which the notes say; "skipped" with the need where not even one sample fits. A model whose
        gradients have to be formed one by one (the notes say why) is skipped where those of the samples taken do not fit.
    seed: which samples are taken where not all that were read are; with max_samples (2048) or max_batches the first ones are read, so that a loader
        should shuffle them; a note says where they seem to come class by class. Half-precision models are run in float32 on a copy.
    process_group: a group of torch.distributed, or "world": ``loader`` is this rank's shard of the samples, of any size; up to max_samples / ranks of each are
        handed to all, every rank computes its share of the products, and the result is that of the samples of all ranks, the same on each.

    Ctrl-C while gradients are computed returns the samples done so far, over several ranks none, status "incomplete".
    Raises ValueError for an unknown unit or a bad argument; loader,
    loss, loss_fn, params, unpack: see probing.Batches, resolve_loss, select_parameters.
    """
    started = time.perf_counter()
    ranks = ranks_of(model, process_group, loader)
    with ranks.agreed("reading the arguments"):
        if not isinstance(centered, (bool, np.bool_)):
            raise ValueError(f"centered: wanted True or False, got {centered!r}")
        if unit not in UNITS:
            only = "for products with GradientCovariance alone"
            raise ValueError(f"unit: {unit!r} is {only if unit == 'position' else 'unknown'}; known: {', '.join(UNITS)}")
        for name, value in (("k", k), ("max_samples", max_samples)):
            if value is not None:
                whole_number(name, value)
        seed_number(seed)
        model = unwrap(model)
        chosen = select_parameters(model, params)
        first = next(iter(chosen.values()))
        where = device_named(device) if device is not None else first.device
        precision = compute_dtype(model)
        room = memory_limit(max_memory, where)
    limit = ranks.least(room)
    settings = f"{where.type}, {precision.dtype}, {list(chosen)}, {centered}, {unit}, {k}, {max_samples}, {max_batches}, {seed}"
    buffers = ranks.same_model(model, settings)
    notes = [*ranks.notes, *eval_notes(model), *(note for note in (precision.note, frozen_note(model, chosen)) if note)]
    job = _Job(unit, centered, k, "", sum(p.numel() for p in chosen.values()), started)
    with leave_no_trace(model), progress_reporter(progress) as told, ranks.one_interrupt():
        report = ranks.stopping(told)
        wanted = max_samples if max_samples is not None or unit == "batch" else DEFAULT_SAMPLES
        reading: dict[str, Any] = {"max_batches": max_batches, "max_samples": wanted, "unpack": unpack}
        try:
            batches = samples_of_ranks(ranks, loader, notes, limit, device=where, dtype=precision.dtype, **reading)
        except MemoryError as error:
            return _empty(job, "skipped", str(error), notes)
        functional = FunctionalModel(model, chosen, where, precision.dtype if precision.casts else None)
        functional.use_buffers(buffers)
        own_function = next((f for f in (loss_fn, loss) if callable(f)), None)
        with ranks.agreed("choosing the loss"):
            resolved = resolve_loss(model, batches, loss, loss_fn, run=functional)
        resolved = ranks.same_loss(resolved, batches, own_function)
        if resolved.note(batches):
            notes.append(resolved.note(batches))
        units = units_of(batches, resolved, unit, notes)
        sizes = {name: (p.numel(), p.element_size()) for name, p in functional.parameters.items()}
        job = replace(job, loss_name=resolved.name)
        single = unit == "sample"
        try:
            enough = affordable(len(units), job.n_params, max_samples)
            # single samples' gradients are not formed: only their products have to fit
            fitting = samples_that_fit(enough, limit) if single else plan_gram(enough, sizes, limit).n_samples
        except MemoryError as error:
            return _empty(job, "skipped", str(error), notes)
        if fitting < len(units):
            why = f"memory or n² P flops with P = {job.n_params}; max_samples and max_memory decide"
            notes.append(f"{fitting} of {len(units)} {unit} gradients taken at random: {why}")
            kept = np.sort(np.random.default_rng(seed).choice(len(units), fitting, replace=False))
            units = [units[i] for i in kept]
        else:
            kept = np.arange(len(units))
        with ExitStack() as forming:

            def formed() -> tuple[GradientGram, PerSampleGradients]:
                fits = plan_gram(len(units), sizes, limit)
                if fits.n_samples < len(units):
                    raise MemoryError(f"{len(units)} gradients of {job.n_params} parameters do not fit, {fits.n_samples} would (max_samples, max_memory)")
                _say_plan(fits, unit, notes)
                forming.enter_context(twice_differentiable(model))
                engine = PerSampleGradients(functional, batches, resolved, vectorise=min(64, fits.chunk), seed=seed)
                widths = {name: p for name, (p, _) in sizes.items()}
                return GradientGram(units, widths, where, hold=fits.hold, chunk=fits.chunk, layer_spectra=fits.layer_spectra, column_bytes=COLUMN_TILE), engine

            kernel, backend = gram_kernel(where)
            share = (ranks.rank, ranks.size)
            sums = GhostGram(units, functional, batches, resolved, kernel, limit=limit, fallback=formed, seed=seed, share=share) if single else None
            interrupted = False
            losses: Mapping[int, float] = {}
            made: GhostGram | GradientGram
            try:
                if sums is not None:
                    made = sums
                    run_ghost(ranks, sums, report)
                    losses = sums.losses
                else:
                    made, engine = formed()
                    losses = engine.losses
                    losses = run_formed(ranks, made, engine, report)
                    notes += engine.notes
                compare_with_batch(functional, batches, resolved, losses, units, unit, notes)
            except MemoryError as error:
                return _empty(job, "skipped", str(error), [*notes, *(sums.notes if sums is not None else ())])
            except KeyboardInterrupt:
                if ranks.size > 1:
                    return _empty(job, "incomplete", "interrupted: the ranks' parts of the products were not complete", notes)
                interrupted = True
                losses = losses if sums is None else sums.losses
        if sums is not None:
            notes += sums.notes
        how = f"torch, {backend}" if sums is not None and sums.engine == "ghost" else "torch"
        result = replace(_result(job, made, units, batches, functional, losses, notes, how), units=kept[: made.done])
        if interrupted:
            done = f"interrupted after {made.done} of {len(units)} {unit} gradients"
            result = replace(result, status="incomplete", reason=done if result.status == "ok" else f"{done}; {result.reason}")
        return replace(result, seconds=time.perf_counter() - started)


@dataclass(frozen=True)
class _Job:
    unit: str
    centered: bool
    k: int | None
    loss_name: str
    n_params: int
    started: float


def _say_plan(plan: GramPlan, unit: str, notes: list[str]) -> None:
    if plan.hold < plan.n_samples:
        notes.append(f"gradients computed in blocks of {plan.hold}: {plan.evaluations} evaluations for {plan.n_samples} (max_memory)")
    if not plan.layer_spectra:
        notes.append("no eigenvalues per layer: their Gram matrices do not fit (max_memory)")


def _empty(job: _Job, status: Any, reason: str, notes: list[str], gram: F64 | None = None, weights: F64 | None = None, n: int = 0) -> GradientSpectrum:
    none = np.zeros(0)
    return GradientSpectrum(
        status=status, reason=reason, backend="torch", eigenvalues=none, other=none, centered=job.centered, unit=job.unit, trace=NAN, effective_rank=NAN,
        participation_ratio=NAN, top_share=NAN, noise_scale=NAN, noise_scale_interval=(NAN, NAN), gradient_norm2=NAN, noise_floor=NAN, n_resolved=0,
        n_samples=n, n_units=n, n_params=job.n_params, by_layer={}, gram=np.zeros((0, 0)) if gram is None else gram,
        weights=none if weights is None else weights, loss=NAN, loss_name=job.loss_name, seconds=time.perf_counter() - job.started, notes=tuple(notes),
    )  # fmt: skip


def _result(
    job: _Job,
    sums: GhostGram | GradientGram,
    units: list[Unit],
    batches: Batches,
    functional: FunctionalModel,
    losses: Mapping[int, float],
    notes: list[str],
    backend: str,
) -> GradientSpectrum:
    n = sums.done
    gram, w = sums.full(sums.gram), sums.weights[:n]
    per_unit = 1.0 if job.unit == "sample" else batches.n_samples / len(batches)
    n_samples = n if job.unit == "sample" else sum(batches[u.batch].size for u in units[:n])
    bad = {i: name for i, name in sums.bad.items() if i < n}
    if n < 2 or bad:
        named = ", ".join(f"{units[i].batch}:{units[i].row if units[i].row is not None else 'all'} ({name})" for i, name in list(bad.items())[:5])
        reason = f"a covariance needs at least 2 {job.unit} gradients, got {n}"
        if bad:
            where = origin_of_nan(functional.model, functional, batches[units[min(bad)].batch])
            reason = f"gradients of {len(bad)} {job.unit}s are not finite; batch:row (parameter) {named}{where}"
        return replace(_empty(job, "failed" if bad else "unresolved", reason, notes, gram, w / w.sum() if n else w, n), n_samples=n_samples)
    eps = max(torch.finfo(p.dtype).eps for p in functional.parameters.values())
    spectra = {c: gram_spectrum(gram, w, job.n_params, centered=c, gradient_eps=eps) for c in (True, False)}
    main, other = spectra[job.centered], spectra[not job.centered]
    p = w / w.sum()
    noise = noise_scale(np.diagonal(gram).copy(), gram @ p, w)
    if noise.reason:
        notes.append(f"noise scale: {noise.reason}")
    shares = concentration(main.evals)
    signal = signal_share(noise)
    parts = _class_parts(gram, w, units[:n], batches, job)
    zero = not main.trace > 0.0
    return GradientSpectrum(
        status="unresolved" if zero else "ok", reason=_why_zero(gram) if zero else "", backend=backend,
        eigenvalues=main.evals[: job.k], other=other.evals[: job.k], centered=job.centered, unit=job.unit, trace=main.trace,
        effective_rank=shares.effective_rank, participation_ratio=shares.participation_ratio, top_share=shares.top_share,
        noise_scale=noise.value * per_unit, noise_scale_interval=(noise.interval[0] * per_unit, noise.interval[1] * per_unit),
        gradient_norm2=noise.gradient_norm2, noise_floor=main.floor, n_resolved=main.n_resolved, n_samples=n_samples, n_units=n, n_params=job.n_params,
        by_layer={name: _layer(name, sums, w, job, eps, per_unit) for name in sums.sizes}, gram=gram, weights=p,
        loss=float(p @ np.array([losses[i] for i in range(n)])), loss_name=job.loss_name, seconds=0.0, notes=tuple(notes),
        signal_share=signal[0], signal_share_interval=signal[1], **parts,
    )  # fmt: skip


def _class_parts(gram: F64, w: F64, units: list[Unit], batches: Batches, job: _Job) -> dict[str, Any]:
    """The parts of the trace between and within classes, where every sample has one class index."""
    targets: list[Any] = [batch.targets for batch in batches]
    if job.unit != "sample" or job.loss_name == "mse":
        return {}
    if not all(isinstance(t, Tensor) and t.ndim == 1 and not (t.is_floating_point() or t.is_complex()) for t in targets):
        return {}
    classes = torch.stack([targets[u.batch][u.row] for u in units if u.row is not None]).cpu().numpy().astype(np.int64)
    found = class_parts(gram, w, classes)
    return {} if found is None else {"between_classes": found.between, "within_classes": found.within, "n_classes": found.n_classes}


def _why_zero(gram: F64) -> str:
    return "all gradients are zero" if not np.any(gram) else "all gradients are equal"


def _layer(name: str, sums: GhostGram | GradientGram, w: F64, job: _Job, eps: float, per_unit: float) -> LayerGradient:
    n_params = sums.sizes[name]
    second, mean2 = sums.layer_moments(name)
    p = w / w.sum()
    s2 = float(p @ p)
    trace = max((second - mean2) / (1.0 - s2), 0.0)
    norm2 = mean2 - s2 * trace
    scale = NAN if trace == 0.0 and mean2 == 0.0 else trace / norm2 * per_unit if norm2 > 0.0 else math.inf
    spectrum, shares = Spectrum(np.zeros(0), NAN, NAN), Concentration(NAN, NAN, NAN)
    if name in sums.moments:
        moment, mean = sums.layer_moment(name)
        spectrum = moment_spectrum(moment, mean, w, centered=job.centered, gradient_eps=eps)
    elif name in sums.grams:
        spectrum = gram_spectrum(sums.full(sums.grams[name]), w, n_params, centered=job.centered, gradient_eps=eps)
    if len(spectrum.evals):
        shares = concentration(spectrum.evals)
    algorithm, flops = sums.routes.get(name, ("", NAN))
    return LayerGradient(
        spectrum.evals[: job.k],
        trace if job.centered else second,
        scale,
        shares.effective_rank,
        n_params,
        algorithm,
        flops,
        sums.seconds.get(name, NAN),
    )
