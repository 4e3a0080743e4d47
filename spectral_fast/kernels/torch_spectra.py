"""Singular values and power-law tails in torch's functions; part of ``torch_kernels``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["as_chunks", "power_law", "power_of_two", "scaled", "singular_values"]

_WORK = 1 << 30  # bytes of working matrices at a time
_ROWS = 8192  # of a long matrix that are converted at once
_PAIRS = 1 << 24  # (start, value) pairs looked at at once
_LN2 = 0.6931471805599453


def power_of_two(exponent: Tensor) -> Tensor:
    """2.0 ** exponent, exact; exponent int64 in -1022 ... 1023. (Torch's own ldexp goes through float32.)"""
    return ((exponent + 1023) << 52).view(torch.float64)


def scaled(top: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """top (b,) >= 0: which are finite; the two factors that bring the largest entry into [0.5, 1), one after the other since a single one may overflow;
    and the two that bring values back."""
    finite = torch.isfinite(top)
    exponent = torch.frexp(torch.where(finite, top, 0.0).double()).exponent.long()
    half = torch.div(exponent, 2, rounding_mode="floor")
    return finite, (power_of_two(-half), power_of_two(half - exponent)), (power_of_two(half), power_of_two(exponent - half))


def as_chunks(count: int, each: int, device: torch.device) -> list[slice]:
    """Slices of ``count`` matrices that need ``each`` bytes: on a GPU as many as fill a quarter of what is free, for it is idle with few."""
    work = _WORK
    if device.type == "cuda" and count * each > work:
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        work = max(work, free // 4)
    step = max(1, work // max(1, each))
    return [slice(i, min(count, i + step)) for i in range(0, count, step)]


def ascending_reversed(gram: Tensor) -> Tensor:
    """Eigenvalues (b, n) of Hermitian matrices (b, n, n), descending."""
    values: Tensor = torch.linalg.eigvalsh(gram).flip(-1)
    return values


def singular_values(a: Tensor, *, accuracy: str = "standard", eigenvalues: Callable[[Tensor], Tensor] = ascending_reversed) -> Tensor:
    """See :func:`spectral_fast.kernels.numpy_kernels.singular_values`. "standard" and "fast": eigenvalues of the Gram matrix in float64; "high": torch's
    singular values in float64. a: (batch, m, n) of any dtype and strides, on any device with float64. eigenvalues: of Gram matrices, descending; may
    destroy them."""
    if accuracy not in ("standard", "high", "fast"):
        raise ValueError(f"accuracy: got {accuracy!r}; known: standard, high, fast")
    batch, m, n = a.shape
    d = min(m, n)
    s = torch.empty((batch, d), dtype=torch.float64, device=a.device)
    if s.numel() == 0:
        return s
    rows = min(max(m, n), _ROWS) if accuracy != "high" else max(m, n)
    for part in as_chunks(batch, 8 * d * (2 * rows + 3 * d), a.device):
        s[part] = _values(a[part], accuracy, eigenvalues)
    return s


def _values(a: Tensor, accuracy: str, eigenvalues: Callable[[Tensor], Tensor]) -> Tensor:
    wide = torch.complex128 if a.is_complex() else torch.float64
    long = a if a.shape[1] >= a.shape[2] else a.mT
    first = slice(0, long.shape[1] if accuracy == "high" else _ROWS)
    finite, (once, twice), back = scaled(_largest(long))

    def working(rows: slice) -> Tensor:
        w = long[:, rows].to(wide) * once[:, None, None]
        w *= twice[:, None, None]
        return torch.where(finite[:, None, None], w, 0.0)

    if accuracy == "high":
        s = torch.linalg.svdvals(working(first))
    else:
        gram = torch.zeros((len(a), long.shape[2], long.shape[2]), dtype=wide, device=a.device)
        for i in range(0, long.shape[1], _ROWS):
            w = working(slice(i, i + _ROWS))
            gram += w.mH @ w
        s = eigenvalues(gram).clamp_min(0.0).sqrt()
    s = s * back[0][:, None] * back[1][:, None]
    return torch.where(finite[:, None], s, math.nan)


def _largest(a: Tensor) -> Tensor:
    """(b,) float64: the largest magnitude of each matrix, not finite where one entry is not."""
    x = torch.view_as_real(a.resolve_conj()).flatten(-2) if a.is_complex() else a
    if not x.is_floating_point() or x.element_size() == 1:  # torch has no extrema of the 8-bit floats
        x = x.double()
    return torch.maximum(x.amax((1, 2)).double(), -x.amin((1, 2)).double())


def power_law(values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`spectral_fast.kernels.numpy_kernels.power_law`. values: (total,) float64, offsets: (n_spectra + 1,) int64, of one device."""
    bounds = check_spectra(values, offsets)
    alpha, D = torch.full_like(values, math.nan), torch.full_like(values, math.nan)
    best = torch.full((len(bounds) - 1,), -1, dtype=torch.int64, device=values.device)
    for k, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        if end - begin < 2:
            continue
        inside = slice(begin, end - 1)
        alpha[inside], D[inside] = _tails(values[begin:end])
        least, at = torch.where(D[inside].isnan(), math.inf, D[inside]).min(0)
        best[k] = torch.where(least < math.inf, at, -1)
    return alpha, D, best


def check_spectra(values: Tensor, offsets: Tensor) -> list[int]:
    """The checks of the numpy kernel, which wait for the device; the bounds of the spectra."""
    for name, tensor, dtype in (("values", values, torch.float64), ("offsets", offsets, torch.int64)):
        if tensor.dtype != dtype:
            raise TypeError(f"{name}: wanted a one-dimensional {dtype} tensor, got {tensor.dtype}")
        if tensor.ndim != 1:
            raise ValueError(f"{name}: wanted a one-dimensional {dtype} tensor, got {tensor.ndim} dimensions")
        if tensor.device != values.device:
            raise ValueError(f"{name}: wanted a tensor on {values.device}, got {tensor.device}")
    total, bounds = len(values), [int(i) for i in offsets.cpu().tolist()]
    if not bounds or bounds[0] != 0 or bounds[-1] != total or any(b < a for a, b in zip(bounds, bounds[1:], strict=False)):
        raise ValueError(f"offsets: wanted the n_spectra + 1 ascending bounds of the spectra, from 0 to {total}")
    if not bool((torch.isfinite(values) & (values > 0)).all()):
        raise ValueError("values: a spectrum has to be positive and finite")
    descends = torch.nonzero(values.diff() < 0).flatten() + 1
    if not bool(torch.isin(descends, offsets).all()):
        raise ValueError("values: a spectrum has to be ascending")
    return bounds


def _tails(x: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and D of all starts but the last of one ascending spectrum."""
    n = len(x)
    gap = _log_ratios(x)
    index = torch.arange(n, dtype=torch.float64, device=x.device)
    hi, lo = _running_sums(index[1:] * gap.flip(0))
    n_tail = n - index[:-1]
    slope = n_tail / (hi + lo).flip(0)  # alpha - 1
    hi, lo = (torch.cat((part.new_zeros(1), part)) for part in _running_sums(gap))
    D = torch.empty_like(slope)
    step = max(1, _PAIRS // n)
    for first in range(0, n - 1, step):
        i = slice(first, min(first + step, n - 1))
        log_x = (hi[None, first:] - hi[i, None]) + (lo[None, first:] - lo[i, None])
        place = index[None, first:] - index[i, None]
        below = place < 0  # not of this tail: both distributions are 0 there
        model = -torch.expm1(-slope[i, None] * torch.where(below, 0.0, log_x))
        D[i] = (model - torch.where(below, 0.0, place / n_tail[i, None])).abs().amax(1)
    D[torch.isinf(slope)] = math.nan
    return 1.0 + slope, D


def _log_ratios(x: Tensor) -> Tensor:
    """ln(x_{j+1} / x_j) without cancellation for close values, without overflow for distant ones."""
    a, b = x[:-1], x[1:]
    (mantissa_a, exponent_a), (mantissa_b, exponent_b) = torch.frexp(a), torch.frexp(b)
    far = torch.log(mantissa_b / mantissa_a) + (exponent_b - exponent_a).double() * _LN2
    close = b / 2 <= a
    near = torch.log1p(torch.where(close, b - a, 0.0) / a)
    return torch.where(close, near, far)


def _running_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Cumulative sums as hi + lo, lo collecting the rounding errors of hi (Ogita, Rump & Oishi 2005, algorithm Sum2)."""
    hi = torch.cumsum(x, 0)
    before = torch.cat((hi.new_zeros(1), hi[:-1]))
    back = hi - before
    return hi, torch.cumsum((before - (hi - back)) + (x - back), 0)
