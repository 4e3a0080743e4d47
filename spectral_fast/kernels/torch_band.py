"""From symmetric matrices to symmetric bands with the same eigenvalues, many at once, in torch's functions: the first of two stages to their eigenvalues.

Panel by panel (Bischof, Lang & Sun 2000), with products of matrices alone: the panel's Q and R by Cholesky factors, and in the place of Householder vectors
the block reflector of Q (Schreiber & Parlett 1988). With Q's top block U S Vᵀ and W = -U Vᵀ, Q Wᵀ has a symmetric top block -U S Uᵀ, so that

    H = I - Y M Yᵀ,   Y = E - Q Wᵀ,   M = (I + U S Uᵀ)^-1,   E the first columns of I,

is symmetric and orthogonal, takes the panel Q R to E W R, and M's condition is at most 2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .torch_lowrank import svd_of, triangle

__all__ = ["band_of"]

Decompose = Callable[[Tensor], "tuple[Tensor, Tensor, Tensor]"]


def band_of(a: Tensor, width: int, *, ld: int | None = None, decompose: Decompose = svd_of) -> Tensor:
    """Bands (b, n, ld): entry (i, j) of a matrix orthogonally similar to each of ``a``, for j <= i <= j + width, at [j, i - j]; zeros behind.

    a: (b, n, n) symmetric, finite, float64, destroyed. ld: width + 1 or more. decompose: see torch_lowrank's svd_of, here of (b, width, width). The similarity
    is orthogonal to a few n / width eps.
    """
    batch, n, _ = a.shape
    for k in range(0, n - width - 1, width):
        below, rest = a[:, k + width :, k : k + width], a[:, k + width :, k + width :]
        rows = below.shape[1]
        if rows < width:  # the last one, wider than it is long
            q, r = torch.linalg.qr(below)
            rest.copy_(q.mT @ rest @ q)
            below.copy_(r)
            continue
        q, r = _panel(below)
        u, s, vt = decompose(q[:, :width].contiguous())
        turn = -(u @ vt)
        y = -(q @ turn.mT)
        y[:, :width] += torch.eye(width, dtype=a.dtype, device=a.device)
        middle = (u / (1.0 + s[:, None])) @ u.mT
        x = rest @ (y @ middle)
        z = x - 0.5 * (y @ (middle @ (y.mT @ x)))
        rest.baddbmm_(torch.cat((y, z), 2), torch.cat((z, y), 2).mT, alpha=-1.0)
        # after H the panel's R would be W R: W goes to the next rows and columns, and R stays a triangle
        rest[:, :width] = turn.mT @ rest[:, :width]
        rest[:, :, :width] = rest[:, :, :width] @ turn
        below[:, :width] = r
        below[:, width:] = 0.0
    out = a.new_zeros((batch, n, width + 1 if ld is None else ld))
    for d in range(min(width, n - 1) + 1):
        out[:, : n - d, d] = a.diagonal(-d, 1, 2)
    return out


def _panel(panel: Tensor) -> tuple[Tensor, Tensor]:
    """Q (b, m, w) with orthonormal columns and the triangle R (b, w, w) of panels, m >= w; by reflections where the columns nearly depend on each other."""
    once, first, good = triangle(panel)
    q, second, fine = triangle(once)
    r = second @ first
    good &= fine
    if not bool(good.all()):
        bad = torch.nonzero(~good)[:, 0]
        q[bad], r[bad] = torch.linalg.qr(panel[bad])
    return q, r
