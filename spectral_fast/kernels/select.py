"""Which function computes an op: one table, looked at once per call of a public function, never inside a loop."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

__all__ = ["BACKENDS", "OPS", "select", "show_config", "why_not"]

# op -> the backends that have it; "auto" takes the first one of the device's list that has the op and can be used
OPS: dict[str, tuple[str, ...]] = {
    "class_moments": ("numpy", "native", "torch"),
    "decode": ("numpy", "native"),
    "gradient_gram": ("numpy", "native", "torch"),
    "marchenko_pastur": ("numpy", "native"),
    "orthogonalize": ("numpy", "native", "torch", "cuda"),
    "power_law": ("numpy", "native", "torch", "cuda"),
    "randomized_svd": ("numpy", "native", "torch", "cuda"),
    "recombine": ("numpy", "native", "torch", "cuda"),
    "singular_values": ("numpy", "native", "torch", "cuda"),
    "storage_noise": ("numpy", "native"),
}

# device -> backends, fastest first
BACKENDS: dict[str, tuple[str, ...]] = {
    "cpu": ("native", "numpy"),
    "cuda": ("cuda", "torch"),
    "xpu": ("torch",),
}

_KNOWN = ("numpy", "native", "torch", "cuda")


def why_not(backend: str) -> str:
    """Why a backend cannot be used in this process; empty when it can."""
    return str(getattr(_module(backend), "why_not", ""))


def select(op: str, backend: str = "auto", device: str = "cpu") -> tuple[Callable[..., Any], str]:
    """The function that computes ``op`` and the name of its backend.

    op: a key of :data:`OPS`. backend: "auto" or a backend's name. device: "cpu", "cuda" or "cuda:1", where the arrays are;
    nothing is ever moved to another device.
    Errors: ValueError for an unknown name (the known ones are listed) or a backend that does not work on the device;
    RuntimeError with the reason where a backend that was asked for cannot be used here.
    """
    if op not in OPS:
        raise ValueError(f"op: {op!r} is unknown; known: {', '.join(sorted(OPS))}")
    kind = device.partition(":")[0]
    if kind not in BACKENDS:
        raise ValueError(f"device: no kernels for {device!r}; known: {', '.join(BACKENDS)}")
    usable = [name for name in BACKENDS[kind] if name in OPS[op]]
    if backend == "auto":
        reasons = []
        for name in usable:
            reason = why_not(name)
            if not reason:
                return getattr(_module(name), op), name
            reasons.append(f"{name}: {reason}")
        raise RuntimeError(f"op {op!r} cannot be computed on {device!r} ({'; '.join(reasons) or 'no backend has it'})")
    if backend not in _KNOWN:
        raise ValueError(f"backend: {backend!r} is unknown; known: auto, {', '.join(_KNOWN)}")
    if backend not in usable:
        raise ValueError(f"backend: {backend!r} has no {op!r} for arrays on {device!r}; usable there: {', '.join(usable)}")
    reason = why_not(backend)
    if reason:
        raise RuntimeError(f"backend {backend!r} was asked for but is {reason}")
    return getattr(_module(backend), op), backend


def show_config() -> dict[str, Any]:
    """What this installation runs on, and why not on more. JSON-safe; loads no torch.

    native: the instruction-set level in use, or why the compiled module is not; levels: those this CPU can run; threads: the
    default number; cuda: the number of devices, or why none is used.
    """
    native, cuda = _module("native"), _module("cuda")
    level, threads = f"off ({native.why_not}); numpy kernels are used", 1
    if not native.why_not:
        threads = native.threads()
        try:
            level = native.default_level()
        except ValueError as error:
            level = f"unusable: {error}"
    return {
        "native": level,
        "levels": native.levels(),
        "threads": threads,
        "cuda": f"off ({cuda.why_not})" if cuda.why_not else f"{cuda.device_count()} device(s)",
    }


@cache
def _module(backend: str) -> Any:
    return importlib.import_module(f"{__package__}.{backend}_kernels")
