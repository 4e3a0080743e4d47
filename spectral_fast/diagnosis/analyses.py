"""``diagnose``: runs the four analyses on a model and its data, and reads their numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

from ..findings import SEVERITIES, collapse_findings, curvature_findings, gradient_findings, stability_of, weight_findings
from ..linalg.options import seed_number
from ..memory import host_memory_limit
from ..progress import Progress, ProgressOption, progress_reporter
from ..results import Skipped
from ..weights.baseline import Reference, beside_baseline, open_baseline
from ..weights.scan import check_null, weight_spectra
from ..weights.sources import open_source
from ..weights.spectra import WeightSpectra
from .overlaps import Overlaps, gradient_overlaps
from .result import Diagnosis
from .steps import Steps

if TYPE_CHECKING:
    from ..collapse import NeuralCollapse
    from ..curvature import CurvatureSpectra
    from ..gradients import GradientSpectrum
    from ..probing.batches import Batches
    from ..probing.losses import Loss

__all__ = ["ANALYSES", "BUDGETS", "Budget", "diagnose"]

ANALYSES = ("weights", "gradients", "curvature", "collapse")


class Budget(NamedTuple):
    """Caps of one level: Lanczos products per end, density probes and steps, samples of the gradient covariance and of the other analyses."""

    max_matvecs: int
    probes: int
    steps: int
    gradient_samples: int
    max_samples: int


BUDGETS = {
    "quick": Budget(60, 2, 24, 256, 2_048),
    "standard": Budget(400, 4, 48, 512, 8_192),
    "thorough": Budget(4_000, 16, 96, 2_048, 65_536),
}


def diagnose(
    model: Any,
    loader: Any = None,
    loss: str | None = None,
    *,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    include: Sequence[str] = ANALYSES,
    params: Any = None,
    k: int = 10,
    tol: float = 1e-3,
    budget: str = "standard",
    max_batches: int | None = None,
    max_memory: int | float | None = None,
    layer: str | None = None,
    device: Any = None,
    seed: int = 0,
    progress: ProgressOption = None,
    unpack: Callable[[Any], tuple[Any, Any]] | None = None,
    optimizer: Any = None,
    null: str | None = None,
    baseline: Any = None,
) -> Diagnosis:
    """Weight spectra, gradient covariance, Hessian and neural collapse of a model, and what they mean.

    model:   a ``torch.nn.Module``. It is left as it was: mode, gradients, buffers, parameters and random states.
    loader:  any re-iterable of batches (x, y), dicts, or one tuple (X, y) of arrays or tensors. None: only the weights.
    loss:    "cross_entropy", "mse", "bce" or None. None guesses: the model's own ``.loss`` for dict batches with labels, cross-entropy for
             integer targets, mean squared error for float ones. loss_fn(outputs, targets) -> mean loss overrides it.
    include: which of "weights", "gradients", "curvature", "collapse".
    params:  which parameters gradients and curvature are about: glob, globs or callable(name, parameter); None: all trainable.
    k:       Hessian eigenvalues wanted at the top. tol: their residual relative to the largest.
    budget:  "quick", "standard" or "thorough": caps on products and samples, stated in the result.
    max_memory: bytes each analysis may take; None: 60 % of what is free. Above it they degrade as their notes say.
    layer:   the classifier, for neural collapse; None finds it.
    unpack:  batch -> (inputs, targets), for loaders of another form.
    optimizer: a ``torch.optim`` SGD, Adam, AdamW or RMSprop, whose stability threshold lambda_1 is compared with.
    null:    "permutation": also the spectra of 20 shuffles of every weight's entries, at 20 times the cost of the weights.
    baseline: what the weights are compared with instead of random matrices: a model, a state dict, a path, or the result of a scan or diagnosis;
             matrices are matched by name, those without a partner are listed (``weights.not_compared``).
    progress: None: a bar on a terminal after a second; False: none; or a function called as progress(done, total, what).

    Returns a Diagnosis; ``print`` it, or ``save_html``. An analysis that cannot be done is listed in its ``skipped`` with the reason; on
    Ctrl-C what is done is returned with status "incomplete".
    Raises TypeError or ValueError, naming the argument, for arguments that no analysis could use.
    """
    start = time.perf_counter()
    _check(model, include, budget, k, tol, params, layer)
    seed_number(seed)
    if max_memory is not None:
        host_memory_limit(max_memory)
    if optimizer is not None and not getattr(optimizer, "param_groups", None):
        raise TypeError(f"optimizer: wanted a torch.optim optimizer, got {type(optimizer).__name__}")
    if unpack is not None and not callable(unpack):
        raise TypeError(f"unpack: wanted a function of a batch, got {type(unpack).__name__}")
    _check_weights(include, null, baseline)
    caps = BUDGETS[budget]
    run = Steps()
    overlaps: Overlaps | None = None
    with open_baseline(baseline) as reference, progress_reporter(progress) as report:
        # the loader is read and the loss settled first: what is wrong with them should not wait for the weights
        data = _batches(model, loader, caps, max_batches, unpack, device) if loader is not None else None
        settled = _loss(model, data, loss, loss_fn) if data is not None and {"gradients", "curvature"} & set(include) else None
        weights = run("weights", include, lambda: _weights(model, reference, null, seed, report))
        if data is None:
            for name in ANALYSES[1:]:
                if name in include:
                    run.skipped.append(Skipped(name, "no loader"))
            gradients = curvature = collapse = None
        else:
            shared: dict[str, Any] = {"loss": settled, "params": params, "device": device, "seed": seed, "progress": report}
            gradients = run("gradients", include, lambda: _gradients(model, data, caps, max_memory, shared))
            curvature = run("curvature", include, lambda: _curvature(model, data, caps, k, tol, {**shared, "max_memory": max_memory, "optimizer": optimizer}))
            collapse = run("collapse", include, lambda: _collapse(model, data, layer, device, max_memory, report))
            overlaps = run.aside("overlaps of the gradients' top space", lambda: _overlaps(model, data, gradients, curvature, weights, k, max_memory, shared))
    stability = None if optimizer is None or (curvature is not None and curvature.sharpness is not None) else stability_of(optimizer)
    findings = [
        *(weight_findings(weights) if weights else ()),
        *(gradient_findings(gradients, _batch_size(loader), collapse.n_classes if collapse else None) if gradients else ()),
        *(curvature_findings(curvature, stability if not isinstance(stability, str) else None) if curvature else ()),
        *(collapse_findings(collapse) if collapse else ()),
    ]
    status, reason = run.outcome()
    return Diagnosis(
        status=status,
        reason=reason,
        backend=next((r.backend for r in (weights, curvature, gradients) if r is not None), "none"),
        model_name=type(model).__name__,
        weights=weights,
        gradients=gradients,
        curvature=curvature,
        collapse=collapse,
        overlaps=overlaps,
        findings=tuple(sorted(findings, key=lambda f: -SEVERITIES.index(f.severity))),
        skipped=tuple(run.skipped),
        seconds=time.perf_counter() - start,
        notes=(f"budget {budget!r}: {_words(caps)}", *run.notes, *((stability,) if isinstance(stability, str) else ())),
        model=model,
        data=None if data is None else data.full,
        loss=settled if settled is not None else loss if loss_fn is None else loss_fn,
    )


def _words(caps: Budget) -> str:
    return (
        f"at most {caps.max_matvecs} products for each eigenvalue run, density from {caps.probes} probes x {caps.steps} steps, "
        f"{caps.gradient_samples} samples for the gradient covariance, {caps.max_samples} for the rest"
    )


def _check_weights(include: Sequence[str], null: str | None, baseline: Any) -> None:
    check_null(null)
    for name, given in (("null", null), ("baseline", baseline)):
        if given is not None and "weights" not in include:
            raise ValueError(f"{name}: is about the weights, and include has no 'weights'")


def _check(model: Any, include: Sequence[str], budget: str, k: int, tol: float, params: Any, layer: str | None) -> None:
    import torch

    from ..probing.functional import select_parameters, unwrap

    if not isinstance(model, torch.nn.Module):
        hint = "; for a state dict or a file use spectral_fast.scan" if isinstance(model, (str, dict)) else ""
        raise TypeError(f"model: got {type(model).__name__}; wanted a torch.nn.Module{hint}")
    if isinstance(include, str) or not include or not set(include) <= set(ANALYSES):
        raise ValueError(f"include: got {include!r}; wanted some of {ANALYSES}")
    if budget not in BUDGETS:
        raise ValueError(f"budget: got {budget!r}; known: {', '.join(BUDGETS)}")
    most = BUDGETS[budget].max_matvecs // 4
    if not isinstance(k, Integral) or not 1 <= k <= most:
        raise ValueError(f"k: got {k!r}; wanted an integer from 1 to {most} with budget {budget!r}")
    if not 0 < tol < 1:
        raise ValueError(f"tol: got {tol!r}; wanted a number between 0 and 1")
    if layer is not None and layer not in dict(unwrap(model).named_modules()):
        raise ValueError(f"layer: {layer!r} is no module of the model")
    if {"gradients", "curvature"} & set(include) and any(True for _ in model.parameters()):
        select_parameters(unwrap(model), params)


@dataclass(frozen=True)
class _Data:
    """The fixed sample set, and a smaller one for per-sample gradients."""

    full: Batches
    small: Batches


def _loss(model: Any, data: _Data, loss: Any, loss_fn: Any) -> Loss:
    from ..probing.losses import resolve_loss
    from ..probing.state import leave_no_trace

    with leave_no_trace(model):
        return resolve_loss(model, data.full, loss, loss_fn)


def _batches(model: Any, loader: Any, caps: Budget, max_batches: int | None, unpack: Callable[[Any], tuple[Any, Any]] | None, device: Any) -> _Data:
    from ..probing.batches import Batches

    full = Batches(loader, device=_device(model, device), max_batches=max_batches, max_samples=caps.max_samples, unpack=unpack)
    return _Data(full, full.head(caps.gradient_samples))


def _device(model: Any, device: Any) -> Any:
    return device if device is not None else next((p.device for p in model.parameters()), None)


def _weights(model: Any, reference: Reference, null: str | None, seed: int, progress: Progress) -> WeightSpectra:
    def reported(done: int, total: int, what: str) -> None:
        progress(done, total, f"weights: {what}")

    with open_source(model) as tensors:
        return beside_baseline(weight_spectra(tensors, null=null, seed=seed, progress=reported), reference, weight_spectra, progress=reported)


def _gradients(model: Any, data: _Data, caps: Budget, max_memory: int | float | None, shared: dict[str, Any]) -> GradientSpectrum:
    from ..gradients import gradient_covariance

    return gradient_covariance(model, data.small, max_memory=max_memory, **shared)


def _curvature(model: Any, data: _Data, caps: Budget, k: int, tol: float, shared: dict[str, Any]) -> CurvatureSpectra:
    from ..curvature.analysis import curvature

    return curvature(
        model, data.full, k=k, tol=tol, max_matvecs=caps.max_matvecs, probes=caps.probes, steps=caps.steps, data_errors=caps.max_matvecs > 60, **shared
    )


def _overlaps(
    model: Any, data: _Data, gradients: GradientSpectrum | None, curvature: CurvatureSpectra | None, weights: WeightSpectra | None,
    k: int, max_memory: int | float | None, shared: dict[str, Any],
) -> Overlaps | None:  # fmt: skip
    """None where there is nothing to compare the gradients' top space with."""
    from ..gradients import GradientCovariance

    if gradients is None or gradients.status != "ok" or (weights is None and (curvature is None or curvature.hessian_top is None)):
        return None
    op = GradientCovariance(model, data.small, shared["loss"], params=shared["params"], device=shared["device"], centered=gradients.centered)
    return gradient_overlaps(op, gradients, curvature, weights=weights is not None, k=k, max_memory=max_memory)


def _collapse(model: Any, data: _Data, layer: str | None, device: Any, max_memory: int | float | None, progress: Progress) -> NeuralCollapse:
    from ..collapse import neural_collapse

    return neural_collapse(model, data.full, layer=layer, device=device, max_memory=max_memory, progress=progress)


def _batch_size(loader: Any) -> int | None:
    size = getattr(loader, "batch_size", None)
    return size if isinstance(size, int) else None
