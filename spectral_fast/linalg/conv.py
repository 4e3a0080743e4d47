"""Singular values of a convolution as the linear operator it is, without its matrix.

With a periodic boundary the discrete Fourier transform turns the operator into one small matrix per frequency f,

    K̂(f) = sum_p K[:, :, p] exp(-2 pi i <f, p>)

and its singular values are those of all these matrices together (Sedghi, Gupta & Long 2019, theorem 6). A stride t ties the t^d
frequencies that alias to one: the block there is [K̂(f_1), ..., K̂(f_{t^d})] t^(-d/2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..kernels.select import select
from .arrays import as_float64, as_numpy, dtype_name, like
from .svd import svd_bound

__all__ = ["conv_svdvals"]

_BOUNDARIES = ("periodic", "bound")
_CHUNK_BYTES = 64 << 20  # complex blocks held at once
_PROMISE = 1e-10  # error of every value, relative to the largest of its frequency
_BOUND_EXCESS = 1.01  # the grid of boundary="bound" is fine enough for at most 1 % too much

Ints = tuple[int, ...]


def conv_svdvals(
    kernel: Any,
    input_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    transposed: bool = False,
    boundary: Literal["periodic", "bound"] = "periodic",
) -> Any:
    """All singular values of a convolution, or a bound on its norm under zero padding.

    kernel:     (C_out, C_in / groups, k_1, ..., k_d), d = 1 to 3, real array or torch tensor, as torch's ConvNd keeps it; for ``transposed`` as
                ConvTransposeNd keeps it, (C_in, C_out / groups, k_1, ..., k_d).
    input_size: grid the operator is applied to, one number for all axes or one per axis; kernels larger than the grid wrap around it.
    stride:     has to divide the grid. ``transposed``: the output's grid is stride times the input's, so that any stride does.
    boundary:   "periodic": torch's padding_mode="circular". "bound": what zero padding of any width and a grid of any size can reach.

    Returns, for "periodic", the complete list: min(rows, columns) float64 values of the operator's matrix, descending, repeated values
    repeated. A transposed convolution is the adjoint of the convolution with the same kernel: the same values. For "bound", shape (1,): an
    upper bound of sup_f ||K̂(f)||, at most 1 % above it. It bounds the norm of every zero-padded version, whatever its input_size: each is a
    compression of the convolution of infinite sequences.
    Errors: at most 1e-10 of the largest value at the same frequency.
    A torch tensor on the kernel's device where the kernel is one. A NaN or infinity in the kernel gives NaN.
    Cost: one singular value decomposition per frequency, half of them by the symmetry of real kernels, a bounded number at a time.

    The bound samples a grid of n_i frequencies per axis. Along an axis <u, K̂(f) v> is of exponential type D_i = dilation (k_i - 1) / 2 (up to a
    phase), so that from its maximum it falls no faster than the cosine (Duffin & Schaeffer 1938: f² + (f'/D)² <= sup f²): between grid points
    the norm exceeds the largest sampled value by at most the factor prod_i 1 / cos(pi D_i / n_i).

    Raises TypeError for a kernel of complex or other elements, ValueError naming the argument for a shape, size, stride, dilation, groups or
    boundary that makes no such operator.
    """
    w = _checked_kernel(kernel)
    d = w.ndim - 2
    size = _per_axis("input_size", input_size, d)
    step = _per_axis("stride", stride, d)
    spread = _per_axis("dilation", dilation, d)
    if boundary not in _BOUNDARIES:
        raise ValueError(f"boundary: got {boundary!r}; known: {', '.join(_BOUNDARIES)}")
    if not isinstance(groups, (int, np.integer)) or groups < 1 or w.shape[0] % groups:
        raise ValueError(f"groups: got {groups!r}; wanted a divisor of the kernel's {w.shape[0]} rows")
    if transposed:
        size = tuple(n * t for n, t in zip(size, step, strict=True))
    elif boundary == "periodic" and any(n % t for n, t in zip(size, step, strict=True)):
        raise ValueError(f"stride: got {step}; it has to divide the grid {size}: otherwise the periodic operator is not defined")
    factor = 1.0
    if boundary == "bound":
        size, factor = _fine_grid(w.shape[2:], step, spread)
    count = min(w.shape[0] // groups, w.shape[1] * math.prod(step)) * groups * math.prod(n // t for n, t in zip(size, step, strict=True))
    if not np.isfinite(w).all():
        return like(kernel, np.full(count if boundary == "periodic" else 1, np.nan))
    exponent = int(np.frexp(np.abs(w).max())[1])  # a power of two out of the way, so that nothing overflows or vanishes
    scaled = np.ldexp(np.ldexp(w, -(exponent // 2)), exponent // 2 - exponent)
    # One tap along an axis: K̂ is the same at all frequencies there.
    constant = [k == t == 1 for k, t in zip(w.shape[2:], step, strict=True)]
    repeats = math.prod(n for n, same in zip(size, constant, strict=True) if same)
    size = tuple(1 if same else n for n, same in zip(size, constant, strict=True))
    found = [(s, twice * repeats) for part in np.split(scaled, groups) for s, twice in _values(part, size, step, spread)]
    if boundary == "bound":
        rounding = 1.0 + 100.0 * max(w.shape[0], w.shape[1] * math.prod(w.shape[2:])) * 2.0**-52
        bound = max(float(s[:, 0].max()) for s, _ in found) * factor * rounding
        return like(kernel, np.ldexp(np.array([bound]), exponent))
    values = np.concatenate([np.repeat(s, twice, axis=0).ravel() for s, twice in found])
    return like(kernel, np.ldexp(np.sort(values)[::-1], exponent))


def _checked_kernel(kernel: Any) -> NDArray[np.float64]:
    raw = as_numpy(kernel)
    if raw.dtype.kind not in "fiu":
        raise TypeError(f"kernel: got dtype {dtype_name(kernel)}; wanted real numbers")
    if not 3 <= raw.ndim <= 5 or 0 in raw.shape:
        raise ValueError(f"kernel: got shape {raw.shape}; wanted (C_out, C_in / groups, k_1, ...) with 1 to 3 axes k and nothing empty")
    return as_float64(raw)


def _per_axis(name: str, value: int | Sequence[int], d: int) -> Ints:
    values: Sequence[Any] = [value] * d if isinstance(value, (int, np.integer)) else list(value) if isinstance(value, Sequence) else []
    if len(values) != d or not all(isinstance(v, (int, np.integer)) and v >= 1 for v in values):
        raise ValueError(f"{name}: got {value!r}; wanted a positive integer or {d} of them")
    return tuple(int(v) for v in values)


def _fine_grid(kernel_size: Ints, stride: Ints, dilation: Ints) -> tuple[Ints, float]:
    """A grid of frequencies, multiples of the stride, and the factor that the norm can exceed its largest value on it by."""
    share = _BOUND_EXCESS ** (1.0 / max(1, sum(k > 1 for k in kernel_size)))
    grid, factor = [], 1.0
    for k, t, a in zip(kernel_size, stride, dilation, strict=True):
        degree = a * (k - 1) / 2
        n = t * max(1, math.ceil(math.pi * degree / math.acos(1.0 / share) / t))
        grid.append(n)
        factor /= math.cos(math.pi * degree / n)
    return tuple(grid), factor


def _values(w: NDArray[np.float64], size: Ints, stride: Ints, dilation: Ints) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Singular values of one group at half of the frequencies, chunk by chunk: s (chunk, d_min) and how often each row counts."""
    rows, columns = w.shape[:2]
    positions, flat = _folded(w, size, dilation)
    frequencies, twice = _half_of_the_frequencies(tuple(n // t for n, t in zip(size, stride, strict=True)))
    aliases = _points(stride) * [n // t for n, t in zip(size, stride, strict=True)]
    period = math.lcm(*size)
    turns = positions * [period // n for n in size]  # <f, p> in units of 1 / period: integers, so that no phase loses digits
    scale = 1.0 / math.sqrt(len(aliases))
    per_frequency = 16 * len(aliases) * (2 * rows * columns + len(positions))
    chunk = max(1, _CHUNK_BYTES // per_frequency)
    for first in range(0, len(frequencies), chunk):
        some = frequencies[first : first + chunk]
        f = (some[:, None, :] + aliases[None, :, :]).reshape(-1, len(size))
        phases = np.exp((-2j * np.pi / period) * ((f @ turns.T) % period))
        blocks = (phases @ flat).reshape(len(some), len(aliases), rows, columns)
        side_by_side = blocks.transpose(0, 2, 1, 3).reshape(len(some), rows, len(aliases) * columns)
        yield _block_values(side_by_side) * scale, twice[first : first + chunk]


def _block_values(blocks: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Singular values of complex matrices (f, m, n) to _PROMISE: with "standard" accuracy, and once more with "high" where that may not do."""
    values, name = select("singular_values")
    s: NDArray[np.float64] = values(blocks, accuracy="standard")
    if name != "numpy" and s.size:
        # twice the size: complex matrices are bounded as the real ones they stand for
        doubled = np.repeat(s, 2, axis=1)
        again = np.flatnonzero(svd_bound(doubled, "standard").max(axis=1) > _PROMISE * s[:, 0])
        if again.size:
            s[again] = values(blocks[again], accuracy="high")
    return s


def _folded(w: NDArray[np.float64], size: Ints, dilation: Ints) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Where the kernel's taps are on the grid, (taps, d), and their matrices, (taps, rows * columns); what wraps onto one point is added."""
    taps = _points(w.shape[2:]) * np.array(dilation) % np.array(size)
    matrices: NDArray[np.float64] = w.reshape(w.shape[0] * w.shape[1], -1).T
    positions, which = np.unique(taps, axis=0, return_inverse=True)
    folded = np.zeros((len(positions), matrices.shape[1]))
    for place, matrix in zip(which.ravel(), matrices, strict=True):
        folded[place] += matrix
    return positions, folded


def _points(size: Ints) -> NDArray[np.int64]:
    """All points of a grid, (points, d), the last axis fastest."""
    return np.asarray(np.indices(size, dtype=np.int64).reshape(len(size), -1).T)


def _half_of_the_frequencies(size: Ints) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One of each pair f, -f: (frequencies, d), with 2 where there are two and 1 where f = -f. A real kernel has K̂(-f) = conj K̂(f)."""
    f = _points(size)
    index = np.arange(len(f))
    mirrored = np.ravel_multi_index(tuple((-f % list(size)).T), size)
    kept = index <= mirrored
    return f[kept], np.where(index == mirrored, 1, 2)[kept]
