"""A fresh interpreter for what a test cannot do in its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import spectral_fast

# For code that asks what some work takes: peak(work) -> (most anonymous memory in use meanwhile in bytes, at the beginning, what work() returned)
PEAK = """
import threading, time

def now():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])

def peak(work):
    seen, going = [now()], True
    def look():
        while going:
            seen.append(now())
            time.sleep(0.0005)
    thread = threading.Thread(target=look)
    thread.start()
    try:
        result = work()
    finally:
        going = False
        thread.join()
    return max(seen), seen[0], result
"""

PACKAGE_FOLDER = Path(spectral_fast.__file__).parents[1]


def run_python(code: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a child that imports the same spectral_fast as this process.

    Not in the current directory: python would put it first on the child's path, and in the repository find the uncompiled package.
    """
    path = os.pathsep.join([str(PACKAGE_FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, **environment}
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run([sys.executable, "-c", code], env=env, cwd=folder, capture_output=True, text=True, timeout=timeout)


def found_by_ranks(script: str | Path, folder: Path) -> list[dict[str, Any]]:
    """What two ranks have written to rank0.npz and rank1.npz: ``script`` is run with ``folder`` as its argument."""
    script = Path(script)
    setup = f"import runpy, sys\nsys.path.insert(0, {str(script.parent)!r})\nsys.argv = ['x', {str(folder)!r}]\n"
    run = run_python(f"{setup}runpy.run_path({str(script)!r}, run_name='__main__')", OMP_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr[-3000:]
    both = []
    for rank in range(2):
        with np.load(folder / f"rank{rank}.npz") as file:
            both.append({name: file[name] for name in file.files})
    return both
