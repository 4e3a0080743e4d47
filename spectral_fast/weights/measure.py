"""From the entries of a matrix and its singular values to its ``MatrixSpectrum``."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..linalg.arrays import FORMATS, CodedArray, RawArray
from ..metrics.marchenko_pastur import MarchenkoPasturFit, mp_unresolved
from ..metrics.norms import SPECTRUM_METRICS, spectrum_metrics
from ..metrics.power_law import PowerLawFit, fit_power_laws
from ..metrics.random_matrix import random_matrix_reference
from ..metrics.rank import coded_noise, entries_and_noise, rank_tolerances
from .adapters import LoraPair, product_spectrum
from .batches import Pending
from .fits import TAIL_METRICS, fit_bulks, fit_tails, tail_metrics
from .spectra import MatrixSpectrum
from .structure import MatrixPlan

__all__ = ["look_at", "matrix_spectra", "product_of"]


def look_at(plan: MatrixPlan, w: NDArray[Any] | RawArray, coded: CodedArray | None = None) -> Pending:
    """What is needed of the entries themselves, before only the spectrum is kept. coded: the tensor, where it was stored as codes with scales."""
    counts, noise = entries_and_noise(w, FORMATS[plan.entry.dtype])
    if coded is not None and not counts.bad:
        noise = coded_noise(*coded.steps_of(plan.view, plan.part), coded.bits, coded.format)
    if counts.bad:
        i, j = counts.first_bad
        return Pending(plan, noise, why=f"{counts.bad} of {math.prod(plan.shape)} entries are not finite, the first at [{i}, {j}]")
    return Pending(plan, noise, zero_rows=counts.zero_rows, zero_columns=counts.zero_columns)


def product_of(plan: MatrixPlan, pair: LoraPair) -> Pending:
    """The spectrum of a product of LoRA factors. Raises ValueError or OSError where a factor cannot be read."""
    found = product_spectrum(pair)
    return Pending(plan, found.noise, None if found.why else found.s, found.why, found.bound)


def _mean_square(frobenius: float, shape: tuple[int, int]) -> float:
    """Mean square of the entries; 0 or inf where it is beyond float64."""
    return frobenius / shape[0] * (frobenius / shape[1])


def matrix_spectra(done: list[Pending], order: Mapping[str, int], clock: dict[str, float]) -> tuple[list[MatrixSpectrum], str]:
    """The results of all matrices and the backend of their power laws.

    order: name -> place in the results. clock: where the seconds of the fits go.
    """
    done = sorted(done, key=lambda p: order[p.plan.name])
    ready = [p for p in done if p.s is not None and p.frobenius is None]
    spectra = [p.s for p in ready if p.s is not None]
    floors = [max(p.noise.tolerance, p.bound) for p in ready]
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
        elif p.frobenius is not None:
            matrices.append(_leading(p, p.s, p.frobenius))
        else:
            matrices.append(_matrix(p, p.s, *by_name[p.plan.name]))
    return matrices, tails[0].backend if tails else "none"


def _matrix(p: Pending, s: NDArray[np.float64], fit: PowerLawFit, mp: MarchenkoPasturFit, floor: float) -> MatrixSpectrum:
    plan = p.plan
    tolerances = rank_tolerances(s, plan.shape, plan.entry.dtype, storage_tol=floor)
    metrics: dict[str, float] = {**spectrum_metrics(s), **tail_metrics(s, fit)}
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
        bound=p.bound,
        metrics=metrics,
        ranks=dict(zip(tolerances, (s.size - np.searchsorted(s[::-1], list(tolerances.values()), side="right")).tolist(), strict=True)),
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
        redone=p.redone,
    )


def _leading(p: Pending, s: NDArray[np.float64], frobenius: float) -> MatrixSpectrum:
    """What the leading values and the Frobenius norm tell."""
    why = f"only the {s.size} leading of {min(p.plan.shape)} singular values were computed"
    known = {"spectral_norm": float(s[0]), "lambda_max": float(s[0]) ** 2, "frobenius": frobenius, "stable_rank": float((frobenius / s[0]) ** 2)}
    blank = _failed(p)
    return replace(
        blank,
        status="incomplete",
        reason=why,
        backend=p.backend,
        s=s,
        bound=p.bound,
        metrics={**blank.metrics, **known},
        mp=mp_unresolved(why),
        zero_rows=p.zero_rows,
        zero_columns=p.zero_columns,
        null=random_matrix_reference(p.plan.shape, _mean_square(frobenius, p.plan.shape)),
        storage_noise=p.noise.tolerance,
    )


def _failed(p: Pending) -> MatrixSpectrum:
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
        s=np.broadcast_to(np.float64(nan), d_min),  # takes no memory
        bound=nan,
        metrics={**dict.fromkeys((*SPECTRUM_METRICS, *TAIL_METRICS), nan), "near_zero_fraction": nan, "condition_number_is_lower_bound": False},
        ranks={},
        rank_tolerances={},
        power_law=fit_power_laws([np.empty(0)], [0.0])[0],
        mp=mp_unresolved(p.why),
        null=random_matrix_reference(plan.shape, nan),
        tied=plan.tied,
        role=plan.role,
        in_out=plan.in_out,
    )
