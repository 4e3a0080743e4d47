"""How long a scan takes to its first matrix, the start of Python included, against importing numpy and scipy.linalg alone.

    pytest -s benchmarks/bench_start.py

A file of eight matrices of 64 x 64; every round starts one process of each kind.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

NOTHING = "import numpy, scipy.linalg"
SCAN = """
import sys
import spectral_fast as sf

class Done(BaseException):
    pass

def first(done, total, what):
    raise Done

try:
    sf.scan({path!r}, progress=first)
except Done:
    pass
else:
    raise SystemExit("no matrix")
assert "torch" not in sys.modules
"""


def write(path: Path, rng: np.random.Generator) -> None:
    """A safetensors file without its package."""
    import json
    import struct

    header = {f"layers.{i}.weight": {"dtype": "F32", "shape": [64, 64], "data_offsets": [16384 * i, 16384 * (i + 1)]} for i in range(8)}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + rng.standard_normal((8, 64, 64), dtype=np.float32).tobytes())


def seconds(code: str, folder: Path) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder)
    return time.perf_counter() - start


def test_start(tmp_path: Path, rng: np.random.Generator, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "model.safetensors", rng)
    scan = SCAN.format(path=str(tmp_path / "model.safetensors"))
    rounds = request.config.getoption("--rounds") or 9
    pairs = [(seconds(NOTHING, tmp_path), seconds(scan, tmp_path)) for _ in range(rounds + 1)][1:]
    base, ours = (statistics.median(p[k] for p in pairs) for k in (0, 1))
    with capsys.disabled():
        print(f"\nimports of numpy and scipy.linalg {base * 1e3:.0f} ms, to a scan's first matrix {ours * 1e3:.0f} ms (bar {2.5 * base * 1e3 + 200:.0f})")
    assert ours <= 2.5 * base + 0.2
