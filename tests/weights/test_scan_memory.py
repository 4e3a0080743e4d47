"""A scan of a file four times larger than the memory it may take, in a child process: what it holds, and whether it can live without more."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from children import run_python

pytestmark = [
    pytest.mark.native_only,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is read from /proc, which this system does not have"),
]

MAX_MEMORY = 64_000_000
SHAPES = {"BF16": [(8192, 512)] * 18 + [(36000, 512)], "F16": [(256, 4096)] * 8, "F32": [(1500, 1500)] * 5 + [(64, 64)] * 40, "F8_E4M3": [(4096, 768)] * 4}
WIDTHS = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1}

CHILD = """
import resource, sys, threading, time
import spectral_fast as sf
from spectral_fast.weights import scan as _loaded_before

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

limit, capped = {limit}, {capped}
if capped:
    most = status("VmSize") + limit + 512_000_000
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
before, peak, over, samples = status("RssAnon"), 0, threading.Event(), 0

def watch():
    global peak, samples
    while not over.is_set():
        peak = max(peak, status("RssAnon"))
        samples += 1
        time.sleep(0.001)

watcher = threading.Thread(target=watch)
watcher.start()
spectra = sf.scan({path!r}, max_memory=limit, progress=False)
over.set()
watcher.join()
assert spectra.status == "ok" and not spectra.skipped, spectra.skipped
print(len(spectra), peak - before, samples)
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every format the kernels take or widen, in matrices below and above what is computed in one call."""
    rng = np.random.default_rng(0)
    bits = (rng.standard_normal(1 << 21, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
    sources = {
        "BF16": bits.tobytes(),
        "F16": rng.standard_normal(1 << 20).astype(np.float16).tobytes(),
        "F32": rng.standard_normal(1 << 20, dtype=np.float32).tobytes(),
        "F8_E4M3": rng.integers(0, 120, 1 << 20, dtype=np.uint8).tobytes(),
    }
    path = tmp_path_factory.mktemp("memory") / "model.safetensors"
    header: dict[str, object] = {}
    parts, at = [], 0
    for dtype, shapes in SHAPES.items():
        for i, shape in enumerate(shapes):
            size = WIDTHS[dtype] * shape[0] * shape[1]
            header[f"{dtype}.{i}.weight"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
            parts.append((dtype, size, 2 * int(rng.integers(1 << 18))))
            at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for dtype, size, start in parts:
            out.write((sources[dtype][start:] + sources[dtype] * (size // len(sources[dtype]) + 1))[:size])
    return path


@pytest.mark.parametrize("capped", [False, True])
def test_four_times_the_memory(file: Path, capped: bool) -> None:
    assert file.stat().st_size >= 4 * MAX_MEMORY
    run = run_python(CHILD.format(limit=MAX_MEMORY, capped=capped, path=str(file)))
    assert run.returncode == 0, run.stderr
    matrices, peak, samples = map(int, run.stdout.split())
    print(f"{file.stat().st_size / 1e6:.0f} MB in {matrices} matrices: {peak / 1e6:.1f} MB held of {MAX_MEMORY / 1e6:.0f}; {samples} samples")
    assert matrices == sum(map(len, SHAPES.values())) and samples >= 100
    assert 0 < peak <= MAX_MEMORY
