"""The curvature of a network's loss in one call: extreme eigenpairs of Hessian and GGN, spectral density, trace by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..linalg.eigsh import tol_of
from ..linalg.options import seed_number, whole_number
from ..probing.functional import ParameterFilter
from ..probing.losses import Loss
from ..progress import ProgressOption, progress_reporter
from .operators import Hessian
from .spectra import CurvatureSpectra
from .steps import Steps

__all__ = ["curvature"]


def curvature(
    model: nn.Module,
    loader: Any,
    loss: str | Loss | None = None,
    *,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    params: ParameterFilter = None,
    k: int = 10,
    k_bottom: int = 3,
    tol: float = 1e-3,
    probes: int = 4,
    steps: int = 64,
    max_matvecs: int | None = None,
    max_memory: int | float | None = None,
    max_batches: int | None = None,
    max_samples: int | None = None,
    unpack: Callable[[Any], tuple[Any, Any]] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    basis_dtype: str | None = None,
    optimizer: Any = None,
    data_errors: bool = True,
    process_group: Any = None,
    seed: int = 0,
    progress: ProgressOption = None,
) -> CurvatureSpectra:
    """Largest and smallest eigenvalues of the Hessian, largest of the GGN, density and trace of the Hessian.

    model, loader, loss, loss_fn, params, unpack, max_batches, max_samples, device, dtype: see ModelOperator. k, k_bottom: pairs at
    the top (Hessian and GGN) and at the bottom (Hessian), at most the number of parameters. tol: relative residual. probes, steps:
    of the density, of one Krylov space in which the eigensolver goes on; the trace comes from its first products. max_matvecs: budget of each of the two
    eigenvalue runs. max_memory: bytes of host memory for Krylov bases, eigenvectors and kept graphs, None: 60 % of what is free; above it bases are kept
    in float32, then shortened, then kept in bfloat16, then fewer pairs computed, in this order (the notes say so); "skipped" with the need when one pair does
    not fit. basis_dtype: see eigsh. optimizer: a torch.optim SGD, Adam, AdamW or RMSprop, whose stability threshold lambda_1 is
    compared with. data_errors: standard errors of the top eigenvalues from the sampling of the data, at k + 1 products. process_group: see ModelOperator;
    on all ranks, which get the same result. progress: see progress_reporter.

    Ctrl-C returns what is done, eigenvalues as they stand, with status "incomplete"; NaN or Inf in the loss or in a product gives
    status "failed". Raises TypeError, ValueError naming the argument.
    """
    for name, value, least in (("k", k, 1), ("k_bottom", k_bottom, 0), ("probes", probes, 1), ("steps", steps, 1)):
        whole_number(name, value, least)
    seed_number(seed)
    tol_of(tol, "float64")
    if optimizer is not None and not getattr(optimizer, "param_groups", None):
        raise TypeError(f"optimizer: wanted a torch.optim optimizer, got {type(optimizer).__name__}")
    hessian = Hessian(
        model,
        loader,
        loss,
        loss_fn=loss_fn,
        params=params,
        max_batches=max_batches,
        max_samples=max_samples,
        unpack=unpack,
        device=device,
        dtype=dtype,
        process_group=process_group,
    )
    parts = Steps(
        hessian, tol=tol, probes=int(probes), max_matvecs=max_matvecs, seed=seed, basis_dtype=basis_dtype, optimizer=optimizer, data_errors=data_errors
    )
    try:
        parts.fit(k, k_bottom, steps, max_memory)
    except MemoryError as why:
        return parts.result("skipped", str(why))
    with progress_reporter(progress if hessian.ranks.rank == 0 else False) as report:
        try:
            with hessian.ranks.one_interrupt():
                parts.work(report)
        except KeyboardInterrupt:
            parts.interrupted()
            return parts.result("incomplete", "interrupted")
        except ArithmeticError as why:
            return parts.result("failed", str(why))
    return parts.result("ok", "")
