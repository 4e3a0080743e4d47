"""``sf.randomized_svd`` and ``sf.subspace_overlap``: argument checks and results; the work is a kernel's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.numpy_lowrank import METHODS
from ..kernels.select import select
from ..results import Result, Status
from .arrays import as_float64, as_numpy, as_tensor, bfloat16_bits, device_of, dtype_name, like, storage_format
from .options import seed_number

__all__ = ["LowRankSVD", "randomized_svd", "subspace_overlap", "whole_number"]

# |A - u s vt|_F / |A|_F that rounding in the working precision leaves room for
_TOL_FLOOR = {"float32": 1e-6, "float64": 1e-13}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class LowRankSVD(Result):
    """u (..., m, k) and vt (..., k, n) with orthonormal columns and rows, s (..., k) descending, in float32 for float32 and narrower formats, else
    float64; the largest entry of each column of u is positive. error (...): a bound on the spectral norm of A - u s vt, its
    Frobenius norm (of SketchSVD one that fails with probability 1e-6). ranks (...): triplets of each matrix; with ``tol`` they differ within a
    batch, and what is behind them is zero. Arrays are torch tensors on the input's device where that was one. status "incomplete": ``tol`` was
    not met with ``rank`` triplets everywhere, or a matrix is not finite; "failed": none is.
    """

    u: NDArray[Any] = field(repr=False)
    s: NDArray[Any]
    vt: NDArray[Any] = field(repr=False)
    error: NDArray[np.float64]
    ranks: NDArray[np.int64]


def randomized_svd(
    a: Any,
    rank: int | None = None,
    *,
    oversample: int = 8,
    n_iter: int = 2,
    method: str = "auto",
    tol: float | None = None,
    seed: int = 0,
    omega: Any = None,
    backend: str = "auto",
) -> LowRankSVD:
    """Leading singular triplets of a matrix or of every matrix of a stack, from random products (Halko, Martinsson & Tropp 2011).

    a:          (..., m, n) real array or torch tensor: float16, bfloat16, float32, float64, integers, or a RawArray.
    rank:       triplets wanted, at most min(m, n); with ``tol`` the most that are computed (None: min(m, n)).
    oversample: further columns of the test matrix: with 5 to 10 the values wanted are seldom missed.
    n_iter:     passes A A^T beyond the first: 0 for spectra that fall fast, 2 for slow ones. Values are found from below: the last of those wanted may
                be several per cent short where those behind it are as large; 8 is for when they count.
    method:     "subspace" iteration (Halko et al., algorithm 4.4); "krylov": a Krylov space of narrow blocks, as close as subspace iteration to within
                about one per cent of what is left for half the products (Musco & Musco 2015; Meyer, Musco & Musco 2024); "sketch": the
                leading vectors of 6 l or a few more random combinations of the rows (of the columns, where these are more), then one product with A
                and one with A^T (n_iter has no effect): least work for matrices with one long side. With oversample >= 8 as little is left in all,
                to within about two per cent, but single values are less close where they fall slowly; "auto": "krylov" for all but small
                matrices, where its blocks have at most half of min(m, n) columns and n_iter > 0, and "sketch" in its place for n_iter 1 where the
                longer side is six times that many combinations.
    tol:        |A - u s vt|_F <= tol |A|_F with as few triplets as random products find; not with ``omega``.
    seed:       of the Rademacher test matrix; the same for all matrices, so that a matrix's result does not depend on its batch.
    omega:      (n, l) test matrix instead, l >= rank.
    backend:    "auto"; of the CPU "native" or "numpy". A tensor on a GPU is worked on there ("torch"), and the result's arrays stay there.

    Raises TypeError for complex or non-numeric arrays, ValueError for wrong shapes, ranks, unknown names, and a ``tol`` below what the working
    precision can tell (1e-6 for float32 and narrower, 1e-13 for float64). A matrix with a NaN or an infinity gives NaN.
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}; known: {', '.join(METHODS)}")
    function, name = select("randomized_svd", backend, device_of(a))
    on_device = name in ("torch", "cuda")
    bits = {"bits": "bfloat16"} if name == "native" and dtype_name(a) == "bfloat16" else {}
    x: Any = as_tensor(a) if on_device else bfloat16_bits(a) if bits else as_numpy(a)
    if x.is_complex() if on_device else x.dtype.kind not in "fiub":
        raise TypeError(f"a: got dtype {dtype_name(a)}; wanted real numbers")
    if x.ndim < 2:
        raise ValueError(f"a: got shape {tuple(x.shape)}; wanted (..., m, n)")
    if not on_device and x.dtype.kind != "f" and not bits:
        x = x.astype(np.float64)
    m, n = x.shape[-2:]
    d = min(m, n)
    whole_number("oversample", oversample, 0)
    whole_number("n_iter", n_iter, 0)
    seed_number(seed)
    if rank is None:
        if tol is None:
            raise ValueError("rank: got None; wanted a number of triplets, or tol=")
        rank = d
    whole_number("rank", rank, 1 if d else 0)
    if rank > d:
        raise ValueError(f"rank: got {rank}; a matrix of shape {(m, n)} has {d} singular values")
    if tol is not None:
        floor = _TOL_FLOOR["float32" if storage_format(a) is not None and x.dtype.itemsize <= 4 else "float64"]
        if not isinstance(tol, float | int | np.floating) or not floor <= tol < 1.0:
            raise ValueError(f"tol: got {tol!r}; wanted a number in [{floor}, 1): below it rounding to {dtype_name(a)} decides")
        if omega is not None:
            raise ValueError("omega: cannot be given together with tol, which draws its test vectors block by block")
    if method == "sketch" and not (omega is None and tol is None):
        raise ValueError("method: 'sketch' goes neither with omega, whose place it takes, nor with tol")
    if omega is not None:
        omega = as_float64(omega)
        if omega.ndim != 2 or omega.shape[0] != n or not rank <= omega.shape[1] <= d or not np.isfinite(omega).all():
            raise ValueError(f"omega: got shape {omega.shape}; wanted ({n}, l) with {rank} <= l <= {d}, finite")
        omega = np.ldexp(omega, -np.frexp(np.abs(omega).max(axis=0))[1])  # only directions matter, and large ones should not hide small ones
    lead = x.shape[:-2]
    batch = x.reshape((int(np.prod(lead, dtype=np.int64)), m, n))
    found = function(batch, rank=rank, oversample=oversample, n_iter=n_iter, method=method, tol=tol, seed=seed, omega=omega, **bits)
    ranks = as_numpy(found.ranks)
    k = rank if tol is None else int(ranks.max(initial=0))
    status: Status = "ok"
    reason = ""
    short, bad = int((~as_numpy(found.reached)).sum()), int(np.isnan(as_numpy(found.error)).sum())
    if bad:
        status, reason = "failed" if bad == len(batch) else "incomplete", f"{bad} of {len(batch)} matrices have a NaN or an infinity"
    elif short:
        status, reason = "incomplete", f"tol {tol} needs more than {rank} triplets in {short} of {len(batch)} matrices"

    def give(x: Any) -> Any:
        return x if on_device else like(a, x)

    return LowRankSVD(
        u=give(found.u[..., :k].reshape((*lead, m, k))),
        s=give(found.s[..., :k].reshape((*lead, k))),
        vt=give(found.vt[:, :k].reshape((*lead, k, n))),
        error=give(found.error.reshape(lead)),
        ranks=give(found.ranks.reshape(lead)),
        backend=name,
        status=status,
        reason=reason,
    )


def subspace_overlap(a: Any, b: Any, k: int | None = None) -> Any:
    """Cosines of the principal angles between the spans of the first ``k`` columns of ``a`` and of ``b`` (Björck & Golub 1973), descending.

    a: (n, p), b: (n, q) real, not necessarily orthonormal; k: at most min(p, q), None: all columns of each. Returns (min(p, q),) or (k,) float64 in
    [0, 1]: all 1 for equal spans, 0 for orthogonal ones. A cosine near 1 tells angles apart down to about 1e-8 only. Columns that depend
    on the others to rounding are an error: they span nothing of their own.
    """
    bases = []
    for name, x in (("a", a), ("b", b)):
        y = as_float64(x)
        if y.ndim != 2 or y.shape[1] < 1 or y.shape[1] > y.shape[0] or not np.isfinite(y).all():
            raise ValueError(f"{name}: got shape {y.shape}; wanted (n, p) with 1 <= p <= n, finite")
        if k is not None:
            whole_number("k", k, 1)
            if k > y.shape[1]:
                raise ValueError(f"k: got {k}; {name} has {y.shape[1]} columns")
            y = y[:, :k]
        sizes = np.linalg.norm(y, axis=0)
        if not (sizes > 0.0).all():
            raise ValueError(f"{name}: column {int(np.argmin(sizes))} is zero")
        q, r = np.linalg.qr(y / sizes)
        if np.abs(np.diag(r)).min() <= 1e-13 * len(y) ** 0.5:
            raise ValueError(f"{name}: column {int(np.abs(np.diag(r)).argmin())} depends on those before it")
        bases.append(q)
    if len(bases[0]) != len(bases[1]):
        raise ValueError(f"b: got vectors of length {len(bases[1])}; those of a have {len(bases[0])}")
    return like(a, np.clip(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False), 0.0, 1.0))


def whole_number(name: str, value: object, least: int) -> None:
    """Raises ValueError unless ``value`` is an integer of at least ``least``."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: got {value!r}; wanted an integer >= {least}")
