"""A fresh interpreter for what a test cannot do in its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import spectral_fast

PACKAGE_FOLDER = Path(spectral_fast.__file__).parents[1]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a child that imports the same spectral_fast as this process.

    Not in the current directory: python would put it first on the child's path, and in the repository find the uncompiled package.
    """
    path = os.pathsep.join([str(PACKAGE_FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, **environment}
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run([sys.executable, "-c", code], env=env, cwd=folder, capture_output=True, text=True, timeout=120)
