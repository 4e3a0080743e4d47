"""Fixtures and rules of the whole suite.

Environment: SPECTRAL_FAST_REAL_INPUTS is the folder with unpacked real checkpoints (tests marked ``real`` are skipped
without it); SPECTRAL_FAST_EXPECT_NATIVE=1 turns a missing compiled module from a skip into a failure.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pretend_device import on_device

from spectral_fast.kernels import native_kernels, select, torch_kernels

EXPECT_NATIVE = os.environ.get("SPECTRAL_FAST_EXPECT_NATIVE") == "1"

# ops that torch's backend does not have: their suites are for the others
NOT_IN_TORCH = {f"test_{op}" for op, backends in select.OPS.items() if "torch" not in backends}

Kernels = Callable[[str], Callable[..., Any]]


def pytest_configure() -> None:
    # A shell starts background jobs with Ctrl-C ignored, and children inherit that; the tests of interruption need it heard.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _native_missing() -> str:
    return f"compiled module: {native_kernels.why_not}" if native_kernels.why_not else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not (item.name.find("[torch") >= 0 and item.path.stem in NOT_IN_TORCH)]
    folder = os.environ.get("SPECTRAL_FAST_REAL_INPUTS")
    for item in items:
        if item.get_closest_marker("real") and not (folder and Path(folder).is_dir()):
            item.add_marker(pytest.mark.skip(reason="no folder of real checkpoints in SPECTRAL_FAST_REAL_INPUTS"))
        if item.get_closest_marker("native_only") and _native_missing() and not EXPECT_NATIVE:
            item.add_marker(pytest.mark.skip(reason=_native_missing()))


def pytest_report_header() -> str:
    return f"spectral_fast: {select.show_config()}"


@pytest.fixture(scope="session")
def real_inputs() -> Path:
    """Folder of unpacked real checkpoints; for tests marked ``real``."""
    return Path(os.environ["SPECTRAL_FAST_REAL_INPUTS"])


def _backends() -> list[Any]:
    levels = native_kernels.levels() or ["baseline"]  # without the module one skip (or failure) says so
    return ["numpy", "torch", *(pytest.param(f"native-{level}", marks=pytest.mark.native_only) for level in levels)]


@pytest.fixture(params=_backends())
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """``kernels(op)``: the op's function in every CPU backend and at every instruction-set level that runs here, and torch's on a device."""
    backend, _, level = request.param.partition("-")

    def get(op: str) -> Callable[..., Any]:
        if backend == "torch":
            return on_device(getattr(torch_kernels, op))
        function, _ = select.select(op, backend)
        return functools.partial(function, level=level) if level else function

    return get
