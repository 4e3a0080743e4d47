"""``scan``: the spectra of all weight matrices of a checkpoint, a state dict or a model."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..linalg.arrays import CodedArray, RawArray, as_numpy, bfloat16_bits, dtype_name
from ..linalg.lowrank import whole_number
from ..metrics.random_matrix import permutation_null
from ..progress import Progress, ProgressOption, progress_reporter
from ..results import Skipped, Status
from .baseline import beside_baseline, open_baseline
from .batches import Key, Leading, Pending, ShapeBatches, SingularValues
from .measure import look_at, matrix_spectra, product_of
from .slices import cut_differently, slice_values
from .sources import TensorList, TensorRecord, open_source
from .spectra import MatrixSpectrum, WeightSpectra
from .store import ScanStore, fingerprint, read_store
from .structure import MatrixPlan, plan_matrices

__all__ = ["NULLS", "TOP_ABOVE", "check_null", "scan", "weight_spectra"]

NULLS = (None, "permutation")
TOP_ABOVE = 1 << 24


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

    Returns WeightSpectra; tensors that hold no weight matrix are in its ``skipped`` with the reason, matrices with NaN or Inf among its
    ``matrices`` with status "failed" and the place of the first. Values are computed with "standard" accuracy and again with "high" where
    that leaves a rank or s_min open (``redone``, ``WeightSpectra.redone_share``).
    Raises TypeError for another kind of source or baseline, checkpoints.CheckpointError (a ValueError) for a missing file or one that cannot be read,
    ValueError when ``layers`` matches nothing, for an unknown ``null`` or ``backend``, a ``top`` or ``top_above`` that is no number of values or entries,
    a ``store`` of another scan.
    """
    check_null(null)
    if store is not None and (slices or null):
        raise ValueError(f"store: keeps no {'slices' if slices else 'permutations'}; leave out {'slices' if slices else 'null'}=")
    if top is not None:
        whole_number("top", top, 1)
    elif top_above != TOP_ABOVE:
        raise ValueError(f"top_above: got {top_above}, which says nothing without top=")
    whole_number("top_above", top_above, 0)
    # the baseline is opened first: what is wrong with it should not wait for the spectra
    with (
        open_baseline(baseline) as reference,
        open_source(source) as tensors,
        progress_reporter(progress) as report,
        _open_store(store, source, resume, layers=layers, backend=SingularValues(backend).backend, seed=seed, top=top, top_above=top_above) as kept,
    ):
        spectra = weight_spectra(
            tensors, layers=layers, progress=report, backend=backend, slices=slices, null=null, seed=seed, top=top, top_above=top_above, kept=kept
        )
        measure = partial(weight_spectra, top=top, top_above=top_above)
        return beside_baseline(spectra, reference, measure, layers=layers, progress=report, backend=backend)


def _open_store(store: str | os.PathLike[str] | None, source: Any, resume: bool, **options: Any) -> AbstractContextManager[ScanStore | None]:
    if store is None:
        return nullcontext()
    from .. import __version__

    return ScanStore(store, {"version": __version__, "files": fingerprint(source, store), "options": options}, resume)


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
) -> WeightSpectra:
    """Spectra of all matrices in ``tensors``; arguments as of :func:`scan`. progress: called as progress(done, total, what). kept: the open store.

    Matrices of one shape are computed in one call; a tensor that cannot be read or is not finite is listed and the rest goes on. On Ctrl-C
    what is done is returned with status "incomplete".
    """
    check_null(null)
    start = time.perf_counter()
    plans, skipped = plan_matrices(tensors.entries, layers, tensors.adapter)
    skipped = [*tensors.skipped, *skipped]
    clock = {"read": 0.0, "noise": 0.0, "singular values": 0.0, "slices": 0.0, "permutation null": 0.0, "power law": 0.0, "marchenko-pastur": 0.0}
    done: list[Pending] = []
    cuts: dict[str, NDArray[np.float64]] = {}
    values, leading = SingularValues(backend), Leading(top, top_above, backend, seed)
    batches = ShapeBatches(values)
    interrupted = False

    def finish(*pending: Pending) -> None:
        done.extend(pending)
        if kept is not None:
            kept.keep(pending)

    def flush(key: Key) -> None:
        t = time.perf_counter()
        pending, arrays = batches.compute(key)
        clock["singular values"] += time.perf_counter() - t
        t = time.perf_counter()
        if null == "permutation":
            for p, w in zip(pending, arrays, strict=True):
                p.permutation = permutation_null(w, seed=seed, backend=backend) if p.s is not None else None
        clock["permutation null"] += time.perf_counter() - t
        finish(*pending)
        if progress:
            progress(len(done), len(plans), pending[-1].plan.name)

    try:
        known = kept.load(plans) if kept is not None else {}
        done.extend(known.values())
        tensor: NDArray[Any] | RawArray | None = None
        coded: CodedArray | None = None
        current: object = None
        for plan in plans:
            if plan.name in known:
                continue
            t = time.perf_counter()
            if plan.lora is not None:
                try:
                    finish(product_of(plan, plan.lora))
                except (ValueError, OSError) as e:
                    skipped.append(Skipped(plan.name, f"cannot be read: {e}", plan.shape))
                clock["singular values"] += time.perf_counter() - t
                continue
            if current is not plan.entry:
                current, tensor = plan.entry, None
                try:
                    elements = plan.entry.read()
                    tensor, coded = _readable(elements, values), elements if isinstance(elements, CodedArray) else None
                except (ValueError, OSError) as e:
                    skipped.append(Skipped(plan.entry.name, f"cannot be read: {e}", plan.entry.shape))
                except MemoryError:
                    skipped.append(Skipped(plan.entry.name, "cannot be read: not enough memory", plan.entry.shape))
            if tensor is None:
                continue
            w = _matrix(tensor, plan)
            clock["read"] += time.perf_counter() - t
            t = time.perf_counter()
            if slices and plan.entry.name not in cuts and cut_differently(plan.kind, plan.shape, plan.entry.shape):
                cuts.update(dict.fromkeys((plan.entry.name, *plan.tied), slice_values(as_numpy(tensor), plan.in_out, values)))
            clock["slices"] += time.perf_counter() - t
            t = time.perf_counter()
            pending = look_at(plan, w, coded)
            clock["noise"] += time.perf_counter() - t
            if pending.why:
                finish(pending)
            elif leading.wanted(plan.shape):
                t = time.perf_counter()
                leading.compute(pending, w)
                clock["singular values"] += time.perf_counter() - t
                finish(pending)
                if progress:
                    progress(len(done), len(plans), plan.name)
            else:
                full = batches.add(pending, w)
                if full:
                    flush(full)
        for key in batches.keys():
            flush(key)
    except KeyboardInterrupt:
        interrupted = True
    matrices, power_law_backend = matrix_spectra(done, {p.name: i for i, p in enumerate(plans)}, clock)
    finished = {m.name for m in matrices}
    lost = {s.name for s in skipped}
    if interrupted:
        skipped += [Skipped(p.name, "interrupted before it was done", p.shape) for p in plans if p.name not in finished and p.entry.name not in lost]
    status: Status = "incomplete" if interrupted else "ok" if matrices else "skipped"
    reason = f"interrupted after {len(matrices)} of {len(plans)} matrices" if interrupted else "" if matrices else "no weight matrix found"
    spectra = WeightSpectra(
        status=status,
        reason=reason,
        backend=f"singular values: {values.backend}{_redone(matrices)}, power law: {power_law_backend}",
        source=tensors.label,
        matrices=tuple(matrices),
        skipped=tuple(skipped),
        seconds=time.perf_counter() - start,
        timings=clock,
        slices=cuts,
        tensors=tuple(TensorRecord(e.name, e.shape, e.owner, e.module) for e in tensors.entries),
    )
    if kept is not None:
        kept.finish(spectra)
    return spectra


def _readable(values_read: Any, kernel: SingularValues) -> NDArray[Any] | RawArray:
    """bfloat16 as its bits where the kernels read those, anything else as a numpy array."""
    if kernel.reads_bits and dtype_name(values_read) == "bfloat16":
        return RawArray(bfloat16_bits(values_read), "bfloat16")
    return as_numpy(values_read)


def _matrix(tensor: NDArray[Any] | RawArray, plan: MatrixPlan) -> NDArray[Any] | RawArray:
    if isinstance(tensor, RawArray):
        return RawArray(tensor.bits.reshape(plan.view)[plan.part], tensor.dtype)
    w: NDArray[Any] = tensor.reshape(plan.view)[plan.part]
    return w


def _redone(matrices: Sequence[MatrixSpectrum]) -> str:
    n = sum(m.redone for m in matrices)
    return f" ({n} of {len(matrices)} again with high accuracy)" if n else ""
