"""Leading singular triplets of a batch from random products, in torch's functions; part of ``torch_kernels``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .counters import random_words
from .numpy_lowrank import METHODS, Plan, plan
from .torch_counters import rademacher, uniform
from .torch_spectra import as_chunks, scaled

__all__ = ["TensorLowRank", "randomized_svd", "svd_of", "triangle"]

F64 = NDArray[np.float64]

_LEFT_FILL, _RIGHT_FILL, _SPARSE = 2 << 32, 3 << 32, 4 << 32  # streams of the counters, as in numpy_lowrank
_PARTS = 4
_DROWNED = 1e-11
_ROOM = 2e-14
_EPS = 2.0**-52
_STEEP = 1e-5  # least entry on the diagonal of a Cholesky factor of columns of unit length: its inverse squared times eps is 2e-6


Decompose = Callable[[Tensor], "tuple[Tensor, Tensor, Tensor]"]


def svd_of(b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """left (b, r, r), values (b, r) descending and right (b, r, n) of small wide matrices (b, r, n)."""
    left, values, right = torch.linalg.svd(b, full_matrices=False)
    return left, values, right


class TensorLowRank(NamedTuple):
    """The fields of numpy_lowrank's LowRank as tensors of one device."""

    u: Tensor
    s: Tensor
    vt: Tensor
    error: Tensor
    ranks: Tensor
    reached: Tensor


def randomized_svd(
    a: Tensor,
    *,
    rank: int,
    oversample: int = 8,
    n_iter: int = 2,
    method: str = "auto",
    tol: float | None = None,
    seed: int = 0,
    omega: F64 | None = None,
    decompose: Decompose = svd_of,
) -> TensorLowRank:
    """See :func:`spectral_fast.kernels.numpy_kernels.randomized_svd`. a: (batch, m, n) on any device with float64, in which all matrices are worked on at
    once; with ``tol`` one after the other, since each has a rank of its own. The result's fields are tensors of the device. decompose: see
    :func:`svd_of`."""
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}; known: {', '.join(METHODS)}")
    batch, m, n = a.shape
    working = torch.float32 if a.is_floating_point() and a.element_size() <= 4 else torch.float64
    k = min(rank, m, n)
    u, s, vt = (torch.zeros((batch, *shape), dtype=working, device=a.device) for shape in ((m, k), (k,), (k, n)))
    error, ranks = s.new_zeros(batch, dtype=torch.float64), s.new_zeros(batch, dtype=torch.int64)
    reached = s.new_ones(batch, dtype=torch.bool)
    if k == 0 or batch == 0:
        return TensorLowRank(u, s, vt, error, ranks, reached)
    how = plan(m, n, rank, oversample=oversample, n_iter=n_iter, method=method, tol=tol, omega=omega)
    for part in [slice(i, i + 1) for i in range(batch)] if tol is not None else as_chunks(batch, 8 * 5 * m * n, a.device):
        x = a[part].double()
        finite, (once, twice), (back, again) = scaled(torch.maximum(x.amax((1, 2)), -x.amin((1, 2))))
        x = x * once[:, None, None] * twice[:, None, None]
        x = torch.where(finite[:, None, None], x, 0.0)
        zero = x.abs().amax((1, 2)) == 0.0
        turned = how.sketch.rows > 0 and m < n
        y = x.mT if turned else x
        left, values, right, lost = _triplets(y, how, n_iter, tol, k, seed, omega, zero, decompose)
        keep, met = torch.where(zero & (tol is not None), 0, k), torch.ones_like(zero)
        if tol is not None:
            squares = values * values
            tails = torch.cat((squares.flip(-1).cumsum(-1).flip(-1), squares.new_zeros((len(y), 1))), -1) + lost[:, None]
            fits = tails <= tol**2 * (x * x).sum((1, 2))[:, None]
            # the tails fall: the first that fits is as many as do not fit
            least = torch.where(fits.any(-1), (~fits).sum(-1), values.shape[-1])
            met = zero | (fits.any(-1) & (least <= k))
            keep = torch.where(zero, 0, least.clamp_max(k))
        columns = torch.arange(min(k, values.shape[-1]), device=a.device)
        inside = columns < keep[:, None]
        left, values, right = left[..., : len(columns)], torch.where(inside, values[..., : len(columns)], 0.0), right[:, : len(columns)]
        left, right = torch.where(inside[:, None], left, 0.0), torch.where(inside[..., None], right, 0.0)
        if turned:
            left, right = right.mT, left.mT
        at = left.abs().argmax(1, keepdim=True)
        sign = torch.where(left.gather(1, at) < 0.0, -1.0, 1.0)
        u[part, :, : len(columns)], vt[part, : len(columns)] = left * sign, right * sign.mT
        away = _error(x, u[part, :, : len(columns)], values, vt[part, : len(columns)])
        for into, found in ((s[part, : len(columns)], values * back[:, None] * again[:, None]), (error[part], away * back * again)):
            into.copy_(found)
        bad = ~finite
        for spoiled in (u[part], s[part], vt[part], error[part]):
            spoiled.masked_fill_(bad.reshape(-1, *[1] * (spoiled.ndim - 1)), math.nan)
        ranks[part], reached[part] = torch.where(bad, 0, keep), met | bad
    return TensorLowRank(u, s, vt, error, ranks, reached)


def _triplets(
    x: Tensor, how: Plan, n_iter: int, tol: float | None, k: int, seed: int, omega: F64 | None, zero: Tensor, decompose: Decompose
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """left (b, m, r), values (b, r), right (b, r, n) and what B lacks of |x|_F^2; any orthonormal vectors for the matrices that are zero."""
    m, n = x.shape[1:]
    test = _leading(x, how, seed, decompose) if how.sketch.rows else None if omega is None else _on(omega, x)
    q, b, lost = _basis(x, how, n_iter, tol, k, seed, test)
    left, values, right = decompose(b)
    left = q @ left
    r = values.shape[-1]
    first, second = torch.eye(m, r, dtype=x.dtype, device=x.device), torch.eye(r, n, dtype=x.dtype, device=x.device)
    here = zero[:, None, None]
    return torch.where(here, first, left), torch.where(zero[:, None], 0.0, values), torch.where(here, second, right), lost


def _error(x: Tensor, u: Tensor, s: Tensor, vt: Tensor) -> Tensor:
    """(b,) |x - u s vt|_F from the norms of both, at least, with room for rounding; from the difference where little is left."""
    total, kept = (x * x).sum((1, 2)), (s * s).sum(-1)
    left, eps = (total - kept).clamp_min(0.0), torch.finfo(u.dtype).eps
    roomy = (left + 64.0 * _EPS * total).sqrt() + 2.0 * eps * kept.sqrt()
    drowned = left < _DROWNED * total
    if not bool(drowned.any()):
        return roomy
    difference = x - (u.double() * s.to(u.dtype).double()[:, None]) @ vt.double()
    return torch.where(drowned, (difference * difference).sum((1, 2)).sqrt() + 2.0 * _EPS * total.sqrt(), roomy)


def _on(numbers: F64, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers)).to(device=like.device, dtype=torch.float64)


def _random(n: int, columns: int, seed: int, stream: int, like: Tensor) -> Tensor:
    return rademacher(n * columns, seed, stream, device=like.device).reshape(n, columns)


def _fill(n: int, columns: int, seed: int, stream: int, like: Tensor) -> Tensor:
    return uniform(n * columns, seed, stream, device=like.device).reshape(n, columns)


def _leading(x: Tensor, how: Plan, seed: int, decompose: Decompose) -> Tensor:
    """(b, n, l): the leading right singular vectors of a sketch of each (m, n) matrix."""
    m, n = x.shape[1:]
    rows, width, blocks = how.sketch
    part = rows // _PARTS
    words = random_words(_PARTS * m, seed, _SPARSE).reshape(m, _PARTS).astype(np.int64)
    places, signs = ((words >> 1) * part) >> 31, np.where(words & 1, -1.0, 1.0)
    sums = x.new_zeros((len(x), rows, n))
    for t in range(_PARTS):
        # a product with the sparse matrix as a dense one where it is small would do too; sums in an order of their own would change from run to run
        order = np.argsort(places[:, t], kind="stable")
        taken, first = np.unique(places[order, t], return_index=True)
        lengths = torch.from_numpy(np.diff(np.append(first, m))).to(x.device)
        sorted_rows = x[:, torch.from_numpy(order).to(x.device)] * _on(signs[order, t], x)[:, None]
        sums[:, torch.from_numpy(t * part + taken).to(x.device)] = torch.segment_reduce(sorted_rows, "sum", lengths=lengths.expand(len(x), -1), axis=1)
    b = _basis(sums, Plan(width, blocks, True), 0, None, how.width, seed, None)[1]
    return decompose(b)[2][:, : how.width].mT


def _basis(x: Tensor, how: Plan, n_iter: int, tol: float | None, most: int, seed: int, omega: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal Q (b, m, r), B = Q^T x (b, r, n) and |x - Q B|_F^2 (b,); with ``tol``, one matrix at a time, Q has ``most`` columns, or a few more."""
    batch, m, n = x.shape
    d = min(m, n)
    q, b, v = x.new_zeros((batch, m, 0)), x.new_zeros((batch, 0, n)), x.new_zeros((batch, n, 0))
    total = (x * x).sum((1, 2))
    lost, norm = total, total.sqrt()
    whole = how.width == d and omega is None  # no chance is taken
    block, further = 0, n_iter if how.krylov else 0

    def refill(draw: int, columns: int) -> Tensor:
        stream = _LEFT_FILL + (draw << 20) + block
        return x @ _fill(n, columns, seed, stream, x) if draw == 0 else _fill(m, columns, seed, stream, x)

    def refill_rows(draw: int, columns: int) -> Tensor:
        return _fill(n, columns, seed, _RIGHT_FILL + (draw << 20) + block, x)

    while True:
        width = min(how.width, d - q.shape[2])
        if how.krylov and block:
            z = _apart_from(v, b[:, -how.width :].mT, norm, refill_rows)
            v = torch.cat((v, z), 2)
            test = z[..., :width]
        elif whole:
            test = torch.eye(n, n if n == d else 0, dtype=x.dtype, device=x.device)
        elif omega is not None:
            test = omega
        else:
            test = _random(n, width, seed, block + (tol is not None), x)
        if whole and m == d:
            fresh = torch.eye(m, dtype=x.dtype, device=x.device).expand(batch, m, m)
        else:
            fresh = _apart_from(q, x @ test, norm, refill)
        for _ in range(0 if how.krylov or whole else n_iter):
            fresh = _apart_from(q, x @ _spanning(x.mT @ fresh), norm, refill)
        rows = fresh.mT @ x
        q, b = torch.cat((q, fresh), 2), torch.cat((b, rows), 1)
        lost = (lost - (rows * rows).sum((1, 2))).clamp_min(0.0)
        block += 1
        full = q.shape[2] == d
        if tol is None:
            if full or block == how.blocks:
                return q, b, lost
            continue
        left, allowed, size = float(lost), tol**2 * float(total), float(total)
        if full or abs(left - allowed) < _ROOM * size:  # the difference of the norms does not tell
            difference = x - q @ b
            lost = (difference * difference).sum((1, 2))
            left = float(lost)
        if full and left > allowed and not whole:  # the columns do not span x to rounding: those of x do
            return _basis(x, Plan(d, 1, False), 0, None, most, seed, None)
        if full or left <= allowed or q.shape[2] >= most:
            if full or further == 0:
                return q, b, lost
            further -= 1


def triangle(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q (b, m, c) with y = Q R by the Cholesky factor of yᵀ y, columns of unit length; R (b, c, c); whether Q's columns are orthogonal to about 1e-4 (b,),
    which a second time makes rounding (CholeskyQR2: Yamamoto, Nakatsukasa, Yanagisawa & Fukaya 2015)."""
    lengths = torch.linalg.vector_norm(y, dim=1)
    unit = y / torch.where(lengths > 0.0, lengths, 1.0)[:, None]
    r, info = torch.linalg.cholesky_ex(unit.mT @ unit, upper=True)
    good = (info == 0) & (r.diagonal(dim1=1, dim2=2) > _STEEP).all(1)
    r = torch.where(good[:, None, None], r, torch.eye(r.shape[-1], dtype=r.dtype, device=r.device))
    return torch.linalg.solve_triangular(r, unit, upper=True, left=False), r * lengths[:, None], good


def _spanning(y: Tensor) -> Tensor:
    """Columns (b, m, c) that span what those of y do and are far from depending on each other."""
    q, _, good = triangle(y)
    if not bool(good.all()):
        bad = torch.nonzero(~good)[:, 0]
        q[bad] = torch.linalg.qr(y[bad])[0]
    return q


def _apart_from(known: Tensor, y: Tensor, norm: Tensor, refill: Callable[[int, int], Tensor]) -> Tensor:
    """Orthonormal columns (b, m, c) that with ``known`` span what ``y``, a product with matrices of these norms, adds to it; in the place of those that add
    nothing, refill(draw, c) has others, for draw = 0, 1, ... Twice, as one pass leaves what rounding puts back."""
    size = torch.linalg.vector_norm(y, dim=1)
    once, first, good = triangle(y - known @ (known.mT @ y))
    twice, second, fine = triangle(once - known @ (known.mT @ once))
    r, kept = (x.diagonal(dim1=1, dim2=2) for x in (first, second))
    good &= fine & (r > 100.0 * _EPS * torch.maximum(4.0 * size, norm[:, None])).all(1) & (kept > 0.5).all(1)
    if not bool(good.all()):
        bad = torch.nonzero(~good)[:, 0]

        def of_these(draw: int, columns: int) -> Tensor:
            other = refill(draw, columns)
            return other[bad] if other.ndim == 3 else other

        twice[bad] = _apart_by_reflections(known[bad], y[bad], norm[bad], of_these)
    return twice


def _apart_by_reflections(known: Tensor, y: Tensor, norm: Tensor, refill: Callable[[int, int], Tensor]) -> Tensor:
    """The same for columns that may depend on each other."""
    size, norm = torch.linalg.vector_norm(y, dim=1), norm[:, None]
    twice = y
    for draw in range(8):
        once, r = torch.linalg.qr(y - known @ (known.mT @ y))
        twice, kept = torch.linalg.qr(once - known @ (known.mT @ once))
        small = r.diagonal(dim1=1, dim2=2).abs() <= _EPS * torch.maximum(4.0 * size, norm)
        gone = small | (kept.diagonal(dim1=1, dim2=2).abs() <= 0.5)
        if not bool(gone.any()):
            break
        other = refill(draw, y.shape[2])
        y = torch.where(gone[:, None], other, y)
        size, norm = torch.where(gone, torch.linalg.vector_norm(other, dim=-2), size), torch.where(gone.any(1, keepdim=True), 0.0, norm)
    return twice
