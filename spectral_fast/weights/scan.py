"""``scan``: the spectra of all weight matrices of a checkpoint, a state dict or a model."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.native_kernels import release_memory
from ..linalg.lowrank import whole_number
from ..linalg.options import seed_number
from ..memory import byte_size, host_memory_limit
from ..progress import Bar, Progress, ProgressOption, progress_reporter
from ..results import Skipped, Status
from .ahead import ReadAhead, measured_units
from .baseline import beside_baseline, open_baseline
from .batches import Pending, SingularValues, usable_device
from .compute import STAGES, TOP_ABOVE, Calculator, Measured, Options
from .measure import matrix_spectra
from .sources import TensorList, TensorRecord, open_source
from .spectra import MatrixSpectrum, WeightSpectra
from .store import ScanStore, fingerprint, read_store
from .structure import plan_matrices
from .work import Costs, WorkUnit, work_units

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = ["NULLS", "TOP_ABOVE", "check_null", "scan", "weight_spectra"]

NULLS = (None, "permutation")
_KEPT = 8  # at most this part of the memory is left with the allocator before it is told to give back what is free


def scan(
    source: Any,
    *,
    layers: str | Sequence[str] | None = None,
    progress: ProgressOption = None,
    backend: str = "auto",
    slices: bool = False,
    null: str | None = None,
    seed: int = 0,
    baseline: Any = None,
    top: int | None = None,
    top_above: int = TOP_ABOVE,
    store: str | os.PathLike[str] | None = None,
    resume: bool = True,
    executor: Executor | None = None,
    max_memory: int | float | None = None,
    device: Any = None,
) -> WeightSpectra:
    """Spectra of every weight matrix: norms, condition, rank under every rule, power law, bulk and spikes, beside a random matrix of the same shape.

    source:   a checkpoint file (safetensors; .pt, .pth and .bin, new and legacy, and TorchScript archives, read without running any code in them;
              GGUF, .npz), a directory holding one or a torch.distributed.checkpoint, a state dict (mapping of names to arrays or tensors, nested or not) or a
              ``torch.nn.Module``.
    layers:   glob or globs over tensor names; None: all.
    progress: None: a bar on a terminal after a second; False: none; or a function called as progress(done, total, what).
    backend:  of the singular values: "auto", "native" or "numpy".
    slices:   also the singular values of every convolution slice by slice, W[:, :, i, j], and of every fused tensor as a whole
              (``WeightSpectra.slices``). ``to_pandas(view="weightwatcher")`` needs them; off by default because they cost about as much again
              as the spectra of the convolutions.
    null:     "permutation": also the spectra of 20 shuffles of every matrix's entries (``MatrixSpectrum.permutation``), at 20 times the cost.
    seed:     of the shuffles, and of random test matrices.
    top:      of matrices with more than ``top_above`` entries only so many leading singular values (randomized_svd), many times as fast. Such a
              matrix has status "incomplete": its norms and stable rank are known, what needs all values is NaN or absent, and no findings
              are made of it.
    baseline: another source, or the result of a scan or a diagnosis: findings then compare every matrix with the one of the same name there, such as
              the weights before fine-tuning, instead of with a random matrix (``MatrixSpectrum.baseline``). Matrices that have no partner of their
              shape are compared as without a baseline and listed in ``WeightSpectra.not_compared``.

    store:    an SQLite file to which every matrix is written as soon as it is done; a scan that was killed goes on from there when it is started
              again with the same file. For a path as source, and not with ``slices`` or ``null``. ``WeightSpectra.open(store)`` gives the result.
    resume:   False: begin anew, whatever the store holds.
    executor: a concurrent.futures executor, such as ProcessPoolExecutor() or Dask's ``Client.get_executor()``: its workers read the tensors themselves from
              the path ``source``, which they all have to see, and this process gathers the values (and writes the store).
    max_memory: bytes that tensors and computation may take together, on every worker for itself with an ``executor``; None: 60 % of what is free. What
              cannot be computed within it is listed in ``skipped``, and the result is "incomplete".
    device:   where the singular values are computed: None or "cpu", or a device of torch such as "cuda", to which matrices travel as they are stored
              while the next ones are read; with an ``executor`` that of every worker, whose processes
              must not be forked from this one (multiprocessing's context "spawn").

    Returns WeightSpectra; tensors that hold no weight matrix are in its ``skipped`` with the reason, matrices with NaN or Inf among its
    ``matrices`` with status "failed" and the place of the first. Values are computed with "standard" accuracy and again with "high" where
    that leaves a rank or s_min open (``redone``, ``WeightSpectra.redone_share``).
    Raises TypeError for another kind of source or baseline, checkpoints.CheckpointError (a ValueError) for a missing file or one that cannot be read,
    ValueError when ``layers`` matches nothing, for an unknown ``null`` or ``backend``, a ``device`` that cannot be used,
    a ``top`` or ``top_above`` that is no number of values or entries,
    a ``store`` of another scan, a ``max_memory`` that is no number above 0.
    """
    check_null(null)
    seed_number(seed)
    if store is not None and (slices or null):
        raise ValueError(f"store: keeps no {'slices' if slices else 'permutations'}; leave out {'slices' if slices else 'null'}=")
    if top is not None:
        whole_number("top", top, 1)
    elif top_above != TOP_ABOVE:
        raise ValueError(f"top_above: got {top_above}, which says nothing without top=")
    whole_number("top_above", top_above, 0)
    host_memory_limit(max_memory)
    if executor is not None:
        from .remote import check_executor

        check_executor(executor)
        if not isinstance(source, (str, os.PathLike)):
            raise TypeError(f"executor: source is a {type(source).__name__}; wanted a path, from which the workers read for themselves")
    # the baseline is opened first: what is wrong with it should not wait for the spectra
    with (
        open_baseline(baseline) as reference,
        open_source(source) as tensors,
        progress_reporter(progress) as report,
        _open_store(
            store,
            tensors,
            resume,
            layers=[layers] if isinstance(layers, str) else layers,
            backend=SingularValues(backend, usable_device(device)).backend,
            seed=seed,
            top=top,
            top_above=top_above,
        ) as kept,
    ):
        measure = partial(weight_spectra, top=top, top_above=top_above, executor=executor, max_memory=max_memory, device=device)
        spectra = measure(tensors, layers=layers, progress=report, backend=backend, slices=slices, null=null, seed=seed, kept=kept)
        return beside_baseline(spectra, reference, measure, layers=layers, progress=report, backend=backend)


def _open_store(store: str | os.PathLike[str] | None, tensors: TensorList, resume: bool, **options: Any) -> AbstractContextManager[ScanStore | None]:
    if store is None:
        return nullcontext()
    from .. import __version__

    return ScanStore(store, {"version": __version__, "files": fingerprint(tensors), "options": options}, resume)


def opened(path: str | os.PathLike[str]) -> WeightSpectra:
    """See :meth:`WeightSpectra.open`."""
    done, skipped, fields = read_store(path)
    matrices, power_law_backend = matrix_spectra(done, {p.plan.name: i for i, p in enumerate(done)}, {})
    fields = {"source": os.fspath(path), "backend": f"power law: {power_law_backend}", **fields}
    return WeightSpectra(**fields, matrices=tuple(matrices), skipped=tuple(skipped))


def check_null(null: str | None) -> None:
    """Raises ValueError for an unknown null."""
    if null not in NULLS:
        raise ValueError(f"null: got {null!r}; known: {', '.join(map(repr, NULLS))}")


def weight_spectra(
    tensors: TensorList,
    *,
    layers: str | Sequence[str] | None = None,
    progress: Progress | None = None,
    backend: str = "auto",
    slices: bool = False,
    null: str | None = None,
    seed: int = 0,
    top: int | None = None,
    top_above: int = TOP_ABOVE,
    kept: ScanStore | None = None,
    executor: Executor | None = None,
    max_memory: int | float | None = None,
    device: Any = None,
) -> WeightSpectra:
    """Spectra of all matrices in ``tensors``; arguments as of :func:`scan`. progress: called as progress(done, total, what). kept: the open store.

    Matrices of one shape are computed in one call while the next are read; a tensor that cannot be read or is not finite is listed and the rest goes
    on. On Ctrl-C what is done is returned with status "incomplete".
    """
    check_null(null)
    start = time.perf_counter()
    globs = None if layers is None else (layers,) if isinstance(layers, str) else tuple(layers)
    options = Options(globs, backend, slices, null, seed, top, top_above, "cpu" if device is None else str(device))
    calculator = Calculator(options)
    plans, skipped = plan_matrices(tensors.entries, layers, tensors.adapter)
    skipped = [*tensors.skipped, *skipped]
    lost: list[Skipped] = []
    clock = dict.fromkeys((*STAGES, "store", "power law", "marchenko-pastur", "waiting for the reader"), 0.0)
    done: list[Pending] = []
    cuts: dict[str, NDArray[np.float64]] = {}
    interrupted, failed = False, ""
    backends: set[str] = set()
    try:
        known = kept.load(plans) if kept is not None else {}
        done.extend(known.values())
        limit = host_memory_limit(max_memory)
        costs = Costs(calculator.values.backend, calculator.values.reads_bits, calculator.leading, extra=2 * bool(slices or null))
        work = work_units([p for p in plans if p.name not in known], costs, limit)
        lost += work.too_large
        if work.too_large:
            failed = f"max_memory, {byte_size(limit)}, is too little for {len(work.too_large)} of the tensors; {byte_size(work.memory)} would do"
        told = _Told(progress, work.flops, len(done), len(plans))
        for unit, measured in _run(tensors, work.units, calculator, options, executor, limit - work.fixed, clock):
            t = time.perf_counter()
            if kept is not None:
                kept.keep(measured.done)
            clock["store"] += time.perf_counter() - t
            done += measured.done
            lost += measured.lost
            cuts |= measured.cuts
            for stage, seconds in measured.clock.items():
                clock[stage] += seconds
            failed = failed or measured.failed
            backends.add(measured.backend)
            told(unit)
    except KeyboardInterrupt:
        interrupted = True
    order = {p.name: i for i, p in enumerate(plans)}
    matrices, power_law_backend = matrix_spectra(done, order, clock)
    finished = {m.name for m in matrices}
    without = {s.name for s in lost}
    entries = {e.name: i for i, e in enumerate(tensors.entries)}
    skipped += sorted(lost, key=lambda s: (entries.get(s.name, len(entries)), order.get(s.name, 0)))
    if interrupted:
        skipped += [Skipped(p.name, "interrupted before it was done", p.shape) for p in plans if p.name not in finished and p.entry.name not in without]
    status: Status = "incomplete" if interrupted or failed else "ok" if matrices else "skipped"
    reason = "" if matrices else f"none of {len(plans)} matrices could be computed" if plans else "no weight matrix found"
    if interrupted:
        there = f", which are in {kept.path}: the same scan goes on from there" if kept is not None and matrices else ""
        reason = f"interrupted after {len(matrices)} of {len(plans)} matrices{there}"
    elif failed:
        reason = f"failed: {len(plans) - len(matrices)} of {len(plans)} matrices were not computed, the first because {failed}"
    values_backend = " and ".join(sorted(backends - {""})) or calculator.values.backend
    spectra = WeightSpectra(
        status=status,
        reason=reason,
        backend=f"singular values: {values_backend}{_redone(matrices)}, power law: {power_law_backend}",
        source=tensors.label,
        matrices=tuple(matrices),
        skipped=tuple(skipped),
        seconds=time.perf_counter() - start,
        timings=clock,
        slices={name: cuts[name] for name in sorted(cuts, key=lambda name: entries[name])},
        tensors=tuple(TensorRecord(e.name, e.shape, e.owner, e.module) for e in tensors.entries),
    )
    if kept is not None:
        kept.finish(spectra)
    return spectra


def _run(
    tensors: TensorList,
    units: Sequence[WorkUnit],
    calculator: Calculator,
    options: Options,
    executor: Executor | None,
    limit: int,
    clock: dict[str, float],
) -> Iterator[tuple[WorkUnit, Measured]]:
    """Units as they are done: by an executor, beside a thread that reads ahead, or one after the other where all is in memory."""
    if executor is not None and tensors.path:
        from .remote import measured_by

        yield from measured_by(executor, tensors.path, units, options)
    elif tensors.path:
        held = 0  # since memory was last given back
        with ReadAhead(units, calculator.read, limit, calculator.at_once) as ahead:
            for unit, measured in measured_units(ahead, calculator):
                clock["waiting for the reader"] = ahead.waited
                held += unit.memory
                if held > limit // _KEPT:
                    release_memory()
                    held = 0
                yield unit, measured
    else:
        for unit in units:
            yield unit, calculator.measure(calculator.read(unit.plans))


class _Told:
    """Tells of progress: matrices to a function of the caller's; to the bar also the share of the work and its rate, for matrices differ in cost."""

    def __init__(self, progress: Progress | None, flops: float, done: int, total: int) -> None:
        self._progress, self._flops, self._done, self._total = progress, flops, done, total
        self._spent, self._start = 0.0, time.perf_counter()

    def __call__(self, unit: WorkUnit) -> None:
        self._done += len(unit.plans)
        self._spent += unit.flops
        if self._progress is None:
            return
        seconds = time.perf_counter() - self._start
        if isinstance(self._progress, Bar):
            self._progress.work(self._spent / max(self._flops, 1.0), f"{self._spent / max(seconds, 1e-9) / 1e9:.0f} GFLOP/s")
        self._progress(self._done, self._total, unit.plans[-1].name)


def _redone(matrices: Sequence[MatrixSpectrum]) -> str:
    n = sum(m.redone for m in matrices)
    return f" ({n} of {len(matrices)} again with high accuracy)" if n else ""
