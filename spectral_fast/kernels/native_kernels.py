"""The ops compiled for the CPU; the only module that imports ``_native``.

Contracts: the functions of the same names in ``numpy_kernels``. Beyond them every function takes ``level`` (an
instruction-set level of :func:`levels`, default ``SPECTRAL_FAST_ISA`` or the fastest) and ``threads`` (0: as many as this
process may use). The number of threads changes no bit of a result; where products are summed, the level changes rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .numpy_kernels import EntryCounts, LowRank, Orthogonalized, plan

__all__ = [
    "decode",
    "default_level",
    "levels",
    "class_moments",
    "gradient_gram",
    "marchenko_pastur",
    "orthogonalize",
    "power_law",
    "randomized_svd",
    "recombine",
    "release_memory",
    "singular_values",
    "storage_noise",
    "threads",
    "why_not",
]

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


def release_memory() -> None:
    """Give memory that is free back to the system, where the allocator can be told to (glibc); without the compiled module nothing."""
    if not why_not:
        _native.release_memory()


def threads() -> int:
    """Threads used when no number is given: CPUs of the affinity mask within the cgroup's quota."""
    return _native.threads()


def decode(
    raw: NDArray[np.uint8],
    out: NDArray[np.float32],
    *,
    format: str,
    steps: NDArray[np.float32] | None = None,
    byteorder: str = "little",
    level: str | None = None,
    threads: int = 0,
) -> None:
    """See :func:`spectral_fast.kernels.numpy_kernels.decode`."""
    _native.decode(raw, out, format=format, steps=steps, byteorder=byteorder, level=level, threads=threads)


def class_moments(
    features: NDArray[Any],
    labels: NDArray[np.int64],
    counts: NDArray[np.int64],
    means: NDArray[np.float64],
    scatter: NDArray[np.float64],
    spread: NDArray[np.float64],
    *,
    bits: str | None = None,
    level: str | None = None,
    threads: int = 0,
) -> None:
    """See :func:`spectral_fast.kernels.numpy_kernels.class_moments`; also bfloat16, as uint16 with ``bits="bfloat16"``.

    Rows are read in place, at any distance from one another; features whose rows are not of adjacent elements are copied.
    """
    a = _readable(features, bits)
    if a.ndim == 2 and a.shape[1] > 1 and a.strides[1] != a.itemsize:
        a = np.ascontiguousarray(a)
    _native.class_moments(
        a[None],
        format=bits or _NAMES.get(a.dtype.char) or a.dtype.name,
        labels=labels,
        counts=counts,
        means=means,
        scatter=scatter,
        spread=spread,
        level=level,
        threads=threads,
    )


def gradient_gram(
    gram: NDArray[np.float64],
    a: NDArray[Any],
    b: NDArray[Any] | None = None,
    a2: NDArray[Any] | None = None,
    b2: NDArray[Any] | None = None,
    *,
    algorithm: str,
    times: NDArray[np.float64] | None = None,
    level: str | None = None,
    threads: int = 0,
) -> None:
    """See :func:`spectral_fast.kernels.numpy_kernels.gradient_gram`."""
    _native.gradient_gram(gram, a, b, a2, b2, algorithm=algorithm, times=times, level=level, threads=threads)


def orthogonalize(
    basis: NDArray[Any],
    t: int,
    w: NDArray[Any],
    floor: NDArray[np.float64],
    *,
    relative: float = 0.0,
    reduce: Callable[[NDArray[np.float64]], None] | None = None,
    level: str | None = None,
    threads: int = 0,
) -> Orthogonalized:
    """See :func:`spectral_fast.kernels.numpy_kernels.orthogonalize`."""
    return _native.orthogonalize(basis, t, w, floor, relative=relative, reduce=reduce, level=level, threads=threads)


def recombine(basis: NDArray[Any], m: int, s: NDArray[np.float64], into: NDArray[Any], *, level: str | None = None, threads: int = 0) -> None:
    """See :func:`spectral_fast.kernels.numpy_kernels.recombine`."""
    _native.recombine(basis, m, s, into, level=level, threads=threads)


def power_law(
    values: NDArray[np.float64], offsets: NDArray[np.int64], *, level: str | None = None, threads: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """See :func:`spectral_fast.kernels.numpy_kernels.power_law`."""
    return _native.power_law(values, offsets, level=level, threads=threads)


def marchenko_pastur(
    values: NDArray[np.float64], d_max: int, start: float, quantile: float, *, min_bulk: int, level: str | None = None, threads: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """See :func:`spectral_fast.kernels.numpy_kernels.marchenko_pastur`."""
    return _native.marchenko_pastur(values, d_max, start, quantile, min_bulk=min_bulk, level=level, threads=threads)


_NAMES = {"e": "float16", "f": "float32", "d": "float64"}  # numpy makes up a dtype's name anew each time, slowly


def storage_noise(w: NDArray[Any], *, floor: int, bits: str | None = None, level: str | None = None, threads: int = 0) -> EntryCounts:
    """See :func:`spectral_fast.kernels.numpy_kernels.storage_noise`; also bfloat16, as uint16 with ``bits="bfloat16"``. Read once, in place."""
    if not (w.dtype.isnative and w.flags.aligned):
        w = w.astype(w.dtype.newbyteorder("="))
    return EntryCounts(*_native.storage_noise(w[None], format=bits or _NAMES.get(w.dtype.char) or w.dtype.name, floor=floor, level=level, threads=threads))


def randomized_svd(
    a: NDArray[Any],
    *,
    rank: int,
    oversample: int = 8,
    n_iter: int = 2,
    method: str = "auto",
    tol: float | None = None,
    seed: int = 0,
    omega: NDArray[Any] | None = None,
    bits: str | None = None,
    level: str | None = None,
    threads: int = 0,
) -> LowRank:
    """See :func:`spectral_fast.kernels.numpy_kernels.randomized_svd`; also bfloat16, as uint16 with ``bits="bfloat16"``.

    float32 and narrower formats are worked on in float32 (``omega`` too), their norms and coefficients in float64. Matrices are read in place, or in
    panels that are converted.
    """
    a = _readable(a, bits)
    batch, m, n = a.shape
    k = min(rank, m, n)
    if k == 0 or batch == 0:
        working = np.float64 if a.dtype.itemsize == 8 else np.float32
        empty = np.zeros((batch, m, k), working), np.zeros((batch, k), working), np.zeros((batch, k, n), working)
        return LowRank(*empty, np.zeros(batch), np.zeros(batch, np.int64), np.ones(batch, np.bool_))
    how = plan(m, n, rank, oversample=oversample, n_iter=n_iter, method=method, tol=tol, omega=omega)
    if omega is not None:
        omega = np.ascontiguousarray(omega, dtype=np.float64)
    return LowRank(
        *_native.randomized_svd(
            a,
            format=bits or _NAMES.get(a.dtype.char) or a.dtype.name,
            rank=k,
            width=how.width,
            blocks=how.blocks,
            krylov=how.krylov,
            sketch=how.sketch.rows,
            sketch_width=how.sketch.width,
            sketch_blocks=how.sketch.blocks,
            n_iter=n_iter,
            tol=tol or 0.0,
            seed=seed,
            omega=omega,
            level=level,
            threads=threads,
        )
    )


def _readable(a: NDArray[Any], bits: str | None) -> NDArray[Any]:
    """Matrices as the kernels read them, real or complex128: other dtypes, foreign byte orders and unaligned data are copied."""
    if bits is None and a.dtype.char not in (*_NAMES, "D"):
        return a.astype(np.complex128 if a.dtype.kind == "c" else np.float64)
    return a if a.dtype.isnative and a.flags.aligned else a.astype(a.dtype.newbyteorder("="))


def singular_values(
    a: NDArray[Any],
    *,
    accuracy: str = "standard",
    bits: str | None = None,
    level: str | None = None,
    threads: int = 0,
    seconds: dict[str, float] | None = None,
) -> NDArray[np.float64]:
    """See :func:`spectral_fast.kernels.numpy_kernels.singular_values`.

    Matrices are read in place, whatever their strides; float16, float32, float64, complex128 and, as uint16 with ``bits="bfloat16"``, bfloat16.
    Other dtypes, foreign byte orders and unaligned data are copied to float64 or complex128 first. seconds: receives the thread seconds spent
    in each stage.
    """
    a = _readable(a, bits)
    if a.dtype.kind == "c":
        s, spent = _complex_singular_values(a, accuracy, level, threads)
    else:
        s, spent = _native.singular_values(a, format=bits or a.dtype.name, accuracy=accuracy, level=level, threads=threads)
    if seconds is not None:
        seconds.update(spent)
    return s


# Complex matrices with more columns than the first and at most the second have kernels of their own for "standard".
_HERMITIAN = (32, 320)


def _complex_singular_values(a: NDArray[Any], accuracy: str, level: str | None, threads: int) -> tuple[NDArray[np.float64], dict[str, float]]:
    """x + iy has the values of the real matrix [[x, -y], [y, x]], there twice each: four times the numbers, where nothing better is at hand."""
    n = min(a.shape[1:])
    accuracy = "standard" if accuracy == "fast" else accuracy  # nothing to be gained here
    if accuracy == "standard" and _HERMITIAN[0] < n <= _HERMITIAN[1]:
        return _native.complex_singular_values(a.real, a.imag, level=level, threads=threads)
    twice = np.block([[a.real, -a.imag], [a.imag, a.real]])
    s, spent = _native.singular_values(twice, format="float64", accuracy=accuracy, level=level, threads=threads)
    return np.ascontiguousarray(s[:, ::2]), spent
