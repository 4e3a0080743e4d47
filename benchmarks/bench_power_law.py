"""Power-law fit of one spectrum of 4,096 values, every xmin: against weightwatcher 0.7.7 and the powerlaw package.

The peers' environment: benchmarks/peers/requirements.txt.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from spectral_fast.metrics.power_law import fit_power_law, fit_power_laws


def spectrum(rng: np.random.Generator, n: int) -> np.ndarray:
    """A body and a Pareto tail (alpha = 3), as the eigenvalues of a trained layer."""
    return rng.pareto(2.0, n) + 0.05 * rng.random(n) + 0.01


def quietly(function: Callable[[], Any]) -> Callable[[], Any]:
    """The same call without its prints and warnings."""

    def call() -> Any:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function()

    return call


def test_weightwatcher_and_powerlaw(against: Callable[..., dict[str, float]], rng: np.random.Generator) -> None:
    ww = pytest.importorskip("weightwatcher.WW_powerlaw", reason="peers are not installed: benchmarks/peers/requirements.txt")
    powerlaw = pytest.importorskip("powerlaw", reason="peers are not installed: benchmarks/peers/requirements.txt")
    x = spectrum(rng, 4096)
    ours, theirs = fit_power_law(x), quietly(lambda: ww.WWFit(x))()
    # the same numbers first: same start, or equally good ones
    assert ours.xmin == theirs.xmin or abs(ours.D - theirs.D) < 1e-12
    assert abs(ours.D - theirs.D) < 1e-9 and (ours.xmin != theirs.xmin or abs(ours.alpha - theirs.alpha) < 1e-9)
    ratios = against(
        lambda: fit_power_law(x),
        {"weightwatcher": quietly(lambda: ww.WWFit(x)), "powerlaw": quietly(lambda: powerlaw.Fit(x, verbose=False))},
        rounds=5,
    )
    assert ratios["weightwatcher"] >= 30
    assert ratios["powerlaw"] >= 100


@pytest.mark.parametrize("n", [512, 4096])
def test_against_our_numpy_kernel(against: Callable[..., dict[str, float]], rng: np.random.Generator, n: int) -> None:
    x = spectrum(rng, n)
    against(lambda: fit_power_law(x), {"numpy": lambda: fit_power_law(x, backend="numpy")}, rounds=3)


def test_one_call_for_many_spectra(against: Callable[..., dict[str, float]], rng: np.random.Generator) -> None:
    spectra = [spectrum(rng, n) for n in (64, 256, 1024) for _ in range(50)]
    against(lambda: fit_power_laws(spectra), {"one by one": lambda: [fit_power_law(x) for x in spectra]})
