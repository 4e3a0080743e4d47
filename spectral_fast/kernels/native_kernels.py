"""The ops compiled for the CPU; the only module that imports ``_native``.

Contracts: the functions of the same names in ``numpy_kernels``. Beyond them every function takes ``level`` (an
instruction-set level of :func:`levels`, default ``SPECTRAL_FAST_ISA`` or the fastest) and ``threads`` (0: as many as this
process may use); neither changes a bit of the result.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["default_level", "levels", "power_law", "threads", "why_not"]

why_not = ""  # why the compiled module cannot be used; empty when it can
try:
    import spectral_fast._native as _native
except ModuleNotFoundError as error:
    if error.name != "spectral_fast._native":
        raise
    why_not = "not built"
except ImportError as error:  # it is there but the loader refused it
    why_not = f"built but cannot be loaded: {error}"


def levels() -> list[str]:
    """Instruction-set levels that run here, slowest first; empty without the compiled module."""
    return [] if why_not else _native.levels()


def default_level() -> str:
    """The level used when none is named. ValueError when SPECTRAL_FAST_ISA names one that cannot be used."""
    return _native.default_level()


def threads() -> int:
    """Threads used when no number is given: CPUs of the affinity mask within the cgroup's quota."""
    return _native.threads()


def power_law(
    values: NDArray[np.float64], offsets: NDArray[np.int64], *, level: str | None = None, threads: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """See :func:`spectral_fast.kernels.numpy_kernels.power_law`."""
    return _native.power_law(values, offsets, level=level, threads=threads)
