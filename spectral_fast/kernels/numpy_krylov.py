"""The two things an eigensolver does to its basis: add vectors, and take linear combinations of its rows. Definition and fallback in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Orthogonalized", "orthogonalize", "recombine"]

F64 = NDArray[np.float64]
Orthogonalized = tuple[F64, NDArray[np.bool_]]
Reduce = Callable[[F64], None]

# bytes of all rows of a stripe of columns, as float64: what is read for one thing is still near for the next
_STRIPE_BYTES = 1 << 19
_LOST = 0.01  # of the squared norm: nine tenths of a vector


def _stripes(n: int, rows: int) -> list[slice]:
    width = max(256, _STRIPE_BYTES // max(1, 8 * rows))
    return [slice(a, min(n, a + width)) for a in range(0, n, width)]


def _read(rows: NDArray[Any]) -> NDArray[Any]:
    """Stored rows as float64; uint16 holds bfloat16."""
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return rows.astype(np.float64, copy=False)


def _write(into: NDArray[Any], x: F64) -> None:
    """Round to the stored format (bfloat16: to nearest, ties to even; values that are not finite never come here)."""
    if into.dtype == np.uint16:
        bits = x.astype(np.float32).view(np.uint32)
        into[...] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    else:
        into[...] = x


def _sweep(v: NDArray[Any], w: NDArray[Any], minus: F64 | None, reduce: Reduce | None, dots: bool = True) -> tuple[F64, F64]:
    """w -= minusᵀ v where given (t, b), then -> (dots v wᵀ (t, b), squared norms of w (b,)), summed over all processes."""
    sums = np.zeros((len(v) + 1, len(w)))
    for part in _stripes(w.shape[1], len(v) + len(w)):
        rows, x = _read(v[:, part]), w[:, part].astype(np.float64)
        if minus is not None:
            x -= minus.T @ rows
            w[:, part] = x
        if dots:
            sums[:-1] += rows @ x.T
        sums[-1] += np.einsum("ij,ij->i", x, x)
    if reduce is not None:
        reduce(sums)
    return sums[:-1], sums[-1]


def orthogonalize(
    basis: NDArray[Any], t: int, w: NDArray[Any], floor: F64, *, relative: float = 0.0, reduce: Reduce | None = None, threads: int = 0
) -> Orthogonalized:
    """Block classical Gram-Schmidt, twice: what is left of w, normalised, becomes rows t, t + 1, ... of ``basis``.

    basis: (rows, n) float64, float32, or uint16 with the bits of bfloat16; its first t rows orthonormal to the accuracy of the format;
    where there is no room for another row, further vectors are left out.
    w: (b, n) float64 or float32, C-contiguous; overwritten. floor: (b,), relative: vector i is left out where
    its norm ends at or below the larger of floor[i] and ``relative`` times the norm it came with: only rounding is left.
    reduce: where every process holds a share of the columns: adds up the given float64 array over all of them, in place.

    Returns (coefficients, kept). coefficients (t + b, b) float64: w[i] as given = sum_j coefficients[j, i] row_j, the rows being those stored (but for
    vectors left out, and rounding). kept (b,): which became rows, in this order. Sums are float64 over fixed stripes of columns: the number of threads
    changes no bit. Where w holds NaN or Inf nothing is kept, and ``coefficients`` is NaN.

    One pass of the basis gives the dots; a second subtracts and, while the rows are in cache, takes the dots again; a third subtracts again (Giraud, Langou,
    Rozloznik & van den Eshof 2005: twice is enough). The vectors of a block are then taken one by one against the rows new in it; one that
    loses nine tenths of itself there is taken against all rows twice more. Rows of bfloat16 are orthonormal to a hundredth only, and two passes leave the
    square of that: what loses nine tenths is taken against them until it loses no more, or is left out.
    """
    b = len(w)
    coefficients = np.zeros((t + b, b))
    kept = np.zeros(b, dtype=bool)
    v = basis[:t]
    dots, squares = _sweep(v, w, None, reduce)
    if not (np.isfinite(squares).all() and np.isfinite(dots).all()):
        coefficients[:] = np.nan
        return coefficients, kept
    came, least = squares, np.maximum(floor, relative * np.sqrt(squares))
    coefficients[:t] = dots
    if t:
        dots, _ = _sweep(v, w, dots, reduce)
        coefficients[:t] += dots
        _, squares = _sweep(v, w, dots, reduce, dots=False)
    narrow = basis.dtype == np.uint16
    new = 0
    for i in range(b):
        one, square = w[i : i + 1], squares[i]
        first = 0 if narrow and square <= _LOST * came[i] else t
        for _ in range(4 if narrow else 2):
            if first == t + new:  # no rows that it has not been taken against
                break
            before = square
            for _ in range(2):
                rows = basis[first : t + new]
                dots, _ = _sweep(rows, one, None, reduce)
                coefficients[first : t + new, i] += dots[:, 0]
                _, (square,) = _sweep(rows, one, dots, reduce, dots=False)
            if square > _LOST * before or np.sqrt(square) <= least[i]:
                break
            first = 0
        norm = float(np.sqrt(square))
        if norm > least[i] and t + new < len(basis):
            for part in _stripes(w.shape[1], 2):
                _write(basis[t + new, part], one[0, part].astype(np.float64) * (1.0 / norm))
            coefficients[t + new, i] = norm
            kept[i] = True
            new += 1
    return coefficients, kept


def recombine(basis: NDArray[Any], m: int, s: F64, into: NDArray[Any], *, threads: int = 0) -> None:
    """into[:q] = sᵀ basis[:m] for s (m, q) float64: the vectors of a restart, or eigenvectors.

    basis: (rows, n) as in :func:`orthogonalize`. into: (at least q, n) in one of its formats; it may be ``basis`` itself, whose stripes of columns are read
    whole before they are written, and nothing else that overlaps it. Sums are float64, in the order of the rows.
    """
    q = s.shape[1]
    for part in _stripes(basis.shape[1], m + q):
        x = np.zeros((q, part.stop - part.start))
        for i in range(0, m, 64):
            x += s[i : i + 64].T @ _read(basis[i : min(m, i + 64), part])
        _write(into[:q, part], x)
