"""The Gram matrix by the fast engine, and gradients of single samples formed one by one in float64 to compare it with."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from ghost_models import FAST
from gram_reference import gradient_gram
from numpy.typing import NDArray
from torch import Tensor, nn

from spectral_fast.probing.batches import Batches
from spectral_fast.probing.functional import FunctionalModel, select_parameters
from spectral_fast.probing.ghost_gram import GhostGram
from spectral_fast.probing.gradient_gram import GradientGram
from spectral_fast.probing.losses import resolve_loss
from spectral_fast.probing.per_sample import PerSampleGradients, samples_of
from spectral_fast.probing.state import leave_no_trace

F64 = NDArray[np.float64]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def cast(t: Any, dtype: torch.dtype) -> Any:
    return t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t


def split(x: Tensor, y: Tensor, edges: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    return [(x[a:b], y[a:b]) for a, b in zip((0, *edges), (*edges, len(x)), strict=True)]


def materialized(model: nn.Module, loader: list[Any], **options: Any) -> tuple[dict[str, F64], F64]:
    """name -> (n, P) gradients in float64, one backward pass per sample; own losses."""
    model = copy.deepcopy(model).double().eval()
    batches = Batches(loader, dtype=torch.float64)
    functional = FunctionalModel(model, select_parameters(model), torch.device("cpu"), None)
    with leave_no_trace(model):
        loss = resolve_loss(model, batches, **options)
        units, _ = samples_of(batches, loss)
        engine = PerSampleGradients(functional, batches, loss)
        engine._use_vmap = False
        pieces = [g for _, g in engine.rows(units, 0, len(units))]
    rows = {name: torch.cat([p[name] for p in pieces]).numpy() for name in pieces[0]}
    return rows, np.array([engine.losses[i] for i in range(len(units))])


def ghost(model: nn.Module, loader: list[Any], limit: int = 1 << 30, falls_back: bool = False, kernel: Any = gradient_gram, **options: Any) -> GhostGram:
    settings = {k: options.pop(k) for k in ("algorithm", "layer_spectra") if k in options}
    batches = Batches(loader)
    functional = FunctionalModel(model, select_parameters(model), torch.device("cpu"), None)
    with leave_no_trace(model):
        loss = resolve_loss(model, batches, **options)
        units, _ = samples_of(batches, loss)
        sizes = {name: p.numel() for name, p in functional.parameters.items()}

        def fallback() -> tuple[GradientGram, PerSampleGradients]:
            assert falls_back
            return GradientGram(units, sizes, torch.device("cpu"), hold=50, chunk=50, layer_spectra=True), PerSampleGradients(functional, batches, loss)

        sums = GhostGram(units, functional, batches, loss, kernel, limit=limit, fallback=fallback, **settings)
        sums.run(lambda done, total, what: None)
    return sums


def spectrum(gram: F64, w: F64, centered: bool) -> F64:
    p = w / w.sum()
    j = np.eye(len(p)) - (p if centered else 0.0)
    return np.asarray(np.linalg.eigvalsh(np.sqrt(p)[:, None] * (j @ gram @ j.T) * np.sqrt(p))[::-1])


def assert_same(sums: GhostGram, rows: dict[str, F64], losses: F64, tol: float) -> None:
    n = len(losses)
    whole = np.concatenate(list(rows.values()), axis=1)
    gram, w = sums.full(sums.gram), sums.weights
    assert sums.done == n and set(sums.sizes) == set(rows)
    assert np.allclose([sums.losses[i] for i in range(n)], losses, rtol=10 * tol)
    for centered in (True, False):
        want, got = spectrum(whole @ whole.T, w, centered), spectrum(gram, w, centered)
        real = want > 1e-3 * want[0]
        assert np.abs(got - want).max() <= tol * want[0] and np.abs(got / want - 1)[real].max() <= tol
    p = w / w.sum()
    size = np.sqrt(np.trace(whole @ whole.T))
    for name, g in rows.items():
        second, mean2 = sums.layer_moments(name)
        floor = (tol * size) ** 2
        assert second == pytest.approx(p @ (g**2).sum(1), rel=10 * tol, abs=floor), name
        assert mean2 == pytest.approx(((p @ g) ** 2).sum(), rel=10 * tol, abs=tol * second + floor), name
        if name in sums.grams:
            k = g @ g.T
            assert np.abs(sums.full(sums.grams[name]) - k).max() <= 10 * tol * np.abs(k).max() + floor, name
        elif name in sums.moments:
            assert np.abs(sums.moments[name] - (g.T * w) @ g).max() <= 10 * tol * w.sum() * second + floor, name
            assert np.abs(sums.means[name] - w @ g).max() <= 10 * tol * w.sum() * np.sqrt(second) + tol * size, name


def three_batches(name: str, seed: int = 2) -> tuple[nn.Module, list[tuple[Tensor, Tensor]], dict[str, F64], F64]:
    torch.manual_seed(seed)
    model, x, y = FAST[name]()
    model, x = model.double(), cast(x, torch.float64)
    loader = split(x, y, (5, 6, 11))
    return model, loader, *materialized(model, loader)


def plain_run(model: nn.Module, loader: list[Any], **options: Any) -> GhostGram:
    """Without a fallback."""
    batches = Batches(loader)
    functional = FunctionalModel(model, select_parameters(model), torch.device("cpu"), None)
    with leave_no_trace(model):
        loss = resolve_loss(model, batches)
        sums = GhostGram(samples_of(batches, loss)[0], functional, batches, loss, gradient_gram, limit=1 << 28, **options)
        sums.run(lambda done, total, what: None)
    return sums
