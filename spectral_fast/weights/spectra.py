"""The spectrum of every weight matrix and what it says: ``WeightSpectra``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.select import select
from ..linalg.arrays import FORMATS, as_numpy
from ..linalg.svd import svd_bound
from ..metrics.marchenko_pastur import MarchenkoPasturFit, mp_unresolved
from ..metrics.norms import SPECTRUM_METRICS, spectrum_metrics
from ..metrics.power_law import PowerLawFit, fit_power_laws
from ..metrics.random_matrix import PermutationNull, permutation_null, random_matrix_reference
from ..metrics.rank import StorageNoise, rank_tolerances, storage_noise
from ..progress import Progress
from ..results import Result, Skipped, Status
from .adapters import LoraPair, product_spectrum
from .fits import fit_bulks, fit_tails
from .roles import UNKNOWN
from .slices import cut_differently, slice_values
from .sources import TensorList, TensorRecord
from .structure import MatrixPlan, plan_matrices

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MatrixSpectrum", "WeightSpectra", "weight_spectra"]

# Matrices of one shape are computed together up to this size and this many flops: a fraction of a second, so that progress is seen and
# an interruption loses little.
_BATCH_BYTES = 64 << 20
_BATCH_FLOPS = 1e9


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class MatrixSpectrum(Result):
    """One matrix and its spectrum.

    s: (d_min,) float64, descending; bound: error bound of every value. metrics: see metrics.norms, plus condition_number_is_lower_bound and
    near_zero_fraction. ranks, rank_tolerances: per rule of metrics.rank. null: the same numbers of a random matrix of this shape and mean square.
    mp: Marchenko-Pastur fit of the bulk and the spikes above it. permutation: of the shuffled entries, with ``scan(..., null="permutation")``.
    storage_noise: bound on the norm of the rounding error (metrics.rank.storage_noise). role: what the matrix does in the network (roles.py), e.g.
    "attention.q"; in_out: stored (in, out), the transpose of torch's (out, in). kind "lora": the product B A of shape (m, n) and rank at most r, never
    formed: s holds its min(m, n, r) values that can differ from 0, and null is NaN, for a random matrix of the shape says nothing about it.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    tensor_shape: tuple[int, ...]
    dtype: str
    effective_precision: int
    s: NDArray[np.float64]
    bound: float
    metrics: dict[str, float]
    ranks: dict[str, int]
    rank_tolerances: dict[str, float]
    power_law: PowerLawFit
    mp: MarchenkoPasturFit
    null: dict[str, float]
    permutation: PermutationNull | None = None
    zero_rows: int = 0
    zero_columns: int = 0
    tied: tuple[str, ...] = ()
    storage_noise: float = float("nan")
    role: str = UNKNOWN
    in_out: bool = False

    @property
    def evals(self) -> NDArray[np.float64]:
        """(d_min,) eigenvalues of WᵀW, descending: s²."""
        return self.s * self.s


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class WeightSpectra(Result):
    """Spectra of all weight matrices of a model or checkpoint, and the list of tensors that were not analysed with the reasons.

    slices: with ``scan(..., slices=True)``, for each convolution of more than one tap and each fused tensor: tensor name -> (slices, d_min)
    singular values of W[:, :, i, j] for every (i, j), of the whole tensor where it is 2-D. tensors: all of the source, in its order.
    """

    source: str
    matrices: tuple[MatrixSpectrum, ...]
    skipped: tuple[Skipped, ...]
    seconds: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)
    slices: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    tensors: tuple[TensorRecord, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.matrices)

    def __iter__(self) -> Iterator[MatrixSpectrum]:
        return iter(self.matrices)

    def spectrum(self, name: str) -> MatrixSpectrum:
        """The matrix called ``name``; KeyError says why when it was skipped."""
        for m in self.matrices:
            if m.name == name:
                return m
        for s in self.skipped:
            if s.name == name:
                raise KeyError(f"{name}: skipped: {s.reason}")
        raise KeyError(f"{name}: no such matrix; there are {len(self.matrices)}, e.g. {', '.join(m.name for m in self.matrices[:3])}")

    def to_pandas(self, view: str | None = None) -> pd.DataFrame:
        """A row per matrix and per skipped tensor; with ``view="weightwatcher"`` the table that tool gives (weights.weightwatcher_view).

        That view needs ``scan(..., slices=True)`` where there are convolutions or fused tensors.
        Raises ImportError without pandas, ValueError for an unknown view or missing slices.
        """
        if view is None:
            return super().to_pandas()
        if view != "weightwatcher":
            raise ValueError(f"view: got {view!r}; known: None, 'weightwatcher'")
        from .weightwatcher_view import weightwatcher_frame

        return weightwatcher_frame(self)


@dataclass
class _Pending:
    plan: MatrixPlan
    noise: StorageNoise
    s: NDArray[np.float64] | None = None
    why: str = ""
    bound: float = float("nan")  # of the values; NaN: that of one decomposition
    permutation: PermutationNull | None = None
    zero_rows: int = 0
    zero_columns: int = 0


def weight_spectra(
    tensors: TensorList,
    *,
    layers: str | Sequence[str] | None = None,
    progress: Progress | None = None,
    backend: str = "auto",
    slices: bool = False,
    null: str | None = None,
    seed: int = 0,
) -> WeightSpectra:
    """Spectra of all matrices in ``tensors``.

    layers: glob or globs over tensor names. progress: called as progress(done, total, what). slices: also fill WeightSpectra.slices.
    null: "permutation": also MatrixSpectrum.permutation, of shuffles fixed by ``seed``. ValueError for another one.
    Matrices of one shape are computed in one call; a tensor that cannot be read or is not finite is listed and the rest goes on. On Ctrl-C
    what is done is returned with status "incomplete".
    """
    if null not in (None, "permutation"):
        raise ValueError(f"null: got {null!r}; known: None, 'permutation'")
    start = time.perf_counter()
    plans, skipped = plan_matrices(tensors.entries, layers, tensors.adapter)
    skipped = [*tensors.skipped, *skipped]
    clock = {"read": 0.0, "noise": 0.0, "singular values": 0.0, "slices": 0.0, "permutation null": 0.0, "power law": 0.0, "marchenko-pastur": 0.0}
    done: list[_Pending] = []
    cuts: dict[str, NDArray[np.float64]] = {}
    batches: dict[tuple[int, int], tuple[list[_Pending], list[NDArray[Any]]]] = {}
    kernel, backend_name = select("singular_values", backend)
    interrupted = False

    def flush(shape: tuple[int, int]) -> None:
        pending, arrays = batches[shape]
        t = time.perf_counter()
        _compute(kernel, pending, arrays)
        clock["singular values"] += time.perf_counter() - t
        t = time.perf_counter()
        if null == "permutation":
            for p, w in zip(pending, arrays, strict=True):
                p.permutation = permutation_null(w, seed=seed, backend=backend) if p.s is not None else None
        clock["permutation null"] += time.perf_counter() - t
        done.extend(pending)
        del batches[shape]
        if progress:
            progress(len(done), len(plans), pending[-1].plan.name)

    try:
        tensor: NDArray[Any] | None = None
        current: object = None
        for plan in plans:
            t = time.perf_counter()
            if plan.lora is not None:
                try:
                    done.append(_product(plan, plan.lora))
                except (ValueError, OSError) as e:
                    skipped.append(Skipped(plan.name, f"cannot be read: {e}", plan.shape))
                clock["singular values"] += time.perf_counter() - t
                continue
            if current is not plan.entry:
                current, tensor = plan.entry, None
                try:
                    tensor = as_numpy(plan.entry.read())
                except (ValueError, OSError) as e:
                    skipped.append(Skipped(plan.entry.name, f"cannot be read: {e}", plan.entry.shape))
                except MemoryError:
                    skipped.append(Skipped(plan.entry.name, "cannot be read: not enough memory", plan.entry.shape))
            if tensor is None:
                continue
            w = tensor.reshape(plan.view)[plan.part]
            clock["read"] += time.perf_counter() - t
            t = time.perf_counter()
            if slices and plan.entry.name not in cuts and cut_differently(plan.kind, plan.shape, plan.entry.shape):
                cuts.update(dict.fromkeys((plan.entry.name, *plan.tied), slice_values(tensor, plan.in_out, kernel)))
            clock["slices"] += time.perf_counter() - t
            t = time.perf_counter()
            pending = _look(plan, w)
            clock["noise"] += time.perf_counter() - t
            if pending.why:
                done.append(pending)
                continue
            group, arrays = batches.setdefault(plan.shape, ([], []))
            group.append(pending)
            arrays.append(w)
            if len(arrays) * w.size * 8 > _BATCH_BYTES or len(arrays) * 4.0 * w.size * min(plan.shape) > _BATCH_FLOPS:
                flush(plan.shape)
        for shape in list(batches):
            flush(shape)
    except KeyboardInterrupt:
        interrupted = True
    matrices, power_law_backend = _finish(done, {p.name: i for i, p in enumerate(plans)}, clock)
    finished = {m.name for m in matrices}
    lost = {s.name for s in skipped}
    if interrupted:
        skipped += [Skipped(p.name, "interrupted before it was done", p.shape) for p in plans if p.name not in finished and p.entry.name not in lost]
    status: Status = "incomplete" if interrupted else "ok" if matrices else "skipped"
    reason = f"interrupted after {len(matrices)} of {len(plans)} matrices" if interrupted else "" if matrices else "no weight matrix found"
    return WeightSpectra(
        status=status,
        reason=reason,
        backend=f"singular values: {backend_name}, power law: {power_law_backend}",
        source=tensors.label,
        matrices=tuple(matrices),
        skipped=tuple(skipped),
        seconds=time.perf_counter() - start,
        timings=clock,
        slices=cuts,
        tensors=tuple(TensorRecord(e.name, e.shape, e.owner, e.module) for e in tensors.entries),
    )


def _compute(kernel: Callable[..., NDArray[np.float64]], pending: list[_Pending], arrays: list[NDArray[Any]]) -> None:
    """The spectra of one batch; where that fails, of its matrices one by one, so that a bad one costs only itself."""
    try:
        values = kernel(np.stack(arrays) if len(arrays) > 1 else arrays[0][None])
    except (MemoryError, np.linalg.LinAlgError) as e:
        if len(pending) > 1:
            for p, w in zip(pending, arrays, strict=True):
                _compute(kernel, [p], [w])
        else:
            pending[0].why = "not enough memory for its singular values" if isinstance(e, MemoryError) else f"no singular values: {e}"
        return
    for p, s in zip(pending, values, strict=True):
        p.s = s


def _look(plan: MatrixPlan, w: NDArray[Any]) -> _Pending:
    """What is needed of the entries themselves, before only the spectrum is kept."""
    stored = FORMATS[plan.entry.dtype]
    if not np.isfinite(w).all():
        bad = np.argwhere(~np.isfinite(w))
        i, j = (int(v) for v in bad[0])
        why = f"{len(bad)} of {w.size} entries are not finite, the first at [{i}, {j}]"
        return _Pending(plan, StorageNoise(float("nan"), stored.precision, stored.name), why=why)
    zero = (w.shape[0] - int(np.count_nonzero(w.any(axis=1))), w.shape[1] - int(np.count_nonzero(w.any(axis=0))))
    return _Pending(plan, storage_noise(w, stored), zero_rows=zero[0], zero_columns=zero[1])


def _product(plan: MatrixPlan, pair: LoraPair) -> _Pending:
    found = product_spectrum(pair)
    return _Pending(plan, found.noise, None if found.why else found.s, found.why, found.bound)


def _mean_square(frobenius: float, shape: tuple[int, int]) -> float:
    """Mean square of the entries; 0 or inf where it is beyond float64."""
    return frobenius / shape[0] * (frobenius / shape[1])


def _finish(done: list[_Pending], order: dict[str, int], clock: dict[str, float]) -> tuple[list[MatrixSpectrum], str]:
    done = sorted(done, key=lambda p: order[p.plan.name])
    ready = [p for p in done if p.s is not None]
    spectra = [p.s for p in ready if p.s is not None]
    floors = [max(p.noise.tolerance, _bound(p)) for p in ready]
    t = time.perf_counter()
    tails = fit_tails(spectra, floors)
    clock["power law"] = time.perf_counter() - t
    t = time.perf_counter()
    bulks = fit_bulks(spectra, [p.plan.shape for p in ready], floors, [p.plan.lora is not None for p in ready])
    clock["marchenko-pastur"] = time.perf_counter() - t
    by_name = {p.plan.name: (tail, bulk, floor) for p, tail, bulk, floor in zip(ready, tails, bulks, floors, strict=True)}
    matrices = []
    for p in done:
        if p.s is None:
            matrices.append(_failed(p))
        else:
            matrices.append(_matrix(p, p.s, *by_name[p.plan.name]))
    return matrices, tails[0].backend if tails else "none"


def _bound(p: _Pending) -> float:
    if p.s is None or not np.isnan(p.bound):
        return p.bound
    return float(svd_bound(p.s)[0]) if p.s.size else 0.0


def _matrix(p: _Pending, s: NDArray[np.float64], fit: PowerLawFit, mp: MarchenkoPasturFit, floor: float) -> MatrixSpectrum:
    plan = p.plan
    tolerances = rank_tolerances(s, plan.shape, plan.entry.dtype, storage_tol=floor)
    metrics: dict[str, float] = dict(spectrum_metrics(s))
    zero = s[0] == 0.0
    small = float(np.count_nonzero(s <= floor)) / s.size
    metrics["near_zero_fraction"] = float("nan") if zero else small
    metrics["condition_number_is_lower_bound"] = bool(s[-1] <= floor)
    if s[-1] <= floor and not zero:
        # Below the floor s_min is anything between 0 and the floor: what is known of the ratio is its least value.
        metrics["condition_number"] = float(s[0] / floor)
        metrics["gram_condition_number"] = metrics["condition_number"] ** 2
    return MatrixSpectrum(
        status="unresolved" if zero else "ok",
        reason="zero matrix" if zero else "",
        backend=fit.backend,
        name=plan.name,
        kind=plan.kind,
        shape=plan.shape,
        tensor_shape=plan.entry.shape,
        dtype=plan.entry.dtype,
        effective_precision=p.noise.precision,
        s=s,
        bound=_bound(p),
        metrics=metrics,
        ranks={rule: int(np.count_nonzero(s > tol)) for rule, tol in tolerances.items()},
        rank_tolerances=tolerances,
        power_law=fit,
        mp=mp,
        permutation=p.permutation,
        zero_rows=p.zero_rows,
        zero_columns=p.zero_columns,
        null=random_matrix_reference(plan.shape, float("nan") if plan.lora else _mean_square(metrics["frobenius"], plan.shape)),
        tied=plan.tied,
        storage_noise=p.noise.tolerance,
        role=plan.role,
        in_out=plan.in_out,
    )


def _failed(p: _Pending) -> MatrixSpectrum:
    nan = float("nan")
    plan = p.plan
    d_min = min(plan.shape)
    return MatrixSpectrum(
        status="failed",
        reason=p.why,
        name=plan.name,
        kind=plan.kind,
        shape=plan.shape,
        tensor_shape=plan.entry.shape,
        dtype=plan.entry.dtype,
        effective_precision=p.noise.precision,
        s=np.full(d_min, nan),
        bound=nan,
        metrics={**dict.fromkeys(SPECTRUM_METRICS, nan), "near_zero_fraction": nan, "condition_number_is_lower_bound": False},
        ranks={},
        rank_tolerances={},
        power_law=fit_power_laws([np.empty(0)], [0.0])[0],
        mp=mp_unresolved(p.why),
        null=random_matrix_reference(plan.shape, nan),
        tied=plan.tied,
        role=plan.role,
        in_out=plan.in_out,
    )
