"""The Krylov basis behind eigsh and spectral_density: Lanczos with full reorthogonalization, kept so that it can be restarted.

Band form (Ruhe 1979; Freund 2000): vectors are multiplied one by one in the order they entered, so a block of any size, a start
from several vectors and a random vector put in after a breakdown are the same code. After m products

    A V_m = V_t T[:t, :m],   t >= m,   V_t orthonormal, T = Vᵀ A V,

and the residual of a Ritz pair (theta, V_m s) is ||T[m:t, :m] s||. With full reorthogonalization all of T's entries are at hand,
so a thick restart (Wu & Simon 2000) is a change of basis and needs no formulas of its own.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.counters import rademacher
from .arrays import is_torch

__all__ = ["Apply", "Krylov", "check_operator", "product_of"]

F64 = NDArray[np.float64]
Apply = Callable[[F64], F64]


def check_operator(op: Any) -> int:
    """n of a square operator. Raises TypeError or ValueError naming ``op``."""
    shape = getattr(op, "shape", None)
    if shape is None or not hasattr(op, "__matmul__"):
        raise TypeError(f"op: wanted something with .shape and @ (array, tensor, LinearOperator, ModelOperator), got {type(op).__name__}")
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        raise ValueError(f"op: wanted a square matrix, got shape {tuple(shape)}")
    return int(shape[0])


def product_of(op: Any) -> Apply:
    """v -> op @ v in float64, checked: ArithmeticError when the product is not finite."""
    if is_torch(op):
        import sys

        torch = sys.modules["torch"]
        matrix = op.detach()

        def multiply(v: F64) -> Any:
            return (matrix @ torch.from_numpy(v).to(device=matrix.device, dtype=matrix.dtype)).cpu().double().numpy()
    else:

        def multiply(v: F64) -> Any:
            return op @ v

    def apply(v: F64) -> F64:
        w = np.asarray(multiply(v), dtype=np.float64).reshape(-1)
        if w.shape != v.shape:
            raise ValueError(f"op: its product with a vector of shape {v.shape} has shape {w.shape}")
        if not np.isfinite(w).all():
            raise ArithmeticError(f"op: its product with a unit vector holds {int((~np.isfinite(w)).sum())} NaN or Inf of {w.size} entries")
        return w

    return apply


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block is done: a basis changed in place is nothing in between."""
    if threading.current_thread() is not threading.main_thread() or not callable(signal.getsignal(signal.SIGINT)):
        yield
        return
    came: list[tuple[int, Any]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came and callable(before):
            before(*came[0])


class Krylov:
    """Basis rows V (t, n), T (t, t), m rows already multiplied. ``products`` counts the multiplications made here.

    At any moment, also after an exception in a product, the m multiplied rows and T describe one another. spare: rows beyond
    ``capacity`` for those that wait for their product. deflate: orthonormal rows (q, n) every vector is kept orthogonal to (the run
    is then one of (I - QQᵀ) A (I - QQᵀ)).
    """

    def __init__(
        self, apply: Apply, n: int, capacity: int, *, seed: int, stream: int = 0, dtype: Any = np.float64, deflate: F64 | None = None, spare: int = 1
    ) -> None:
        self.apply, self.n = apply, n
        self.deflate = deflate if deflate is not None and len(deflate) else None
        self.space = n - (0 if self.deflate is None else len(self.deflate))
        self.capacity = max(1, min(capacity, self.space))
        spare = min(self.space, spare)
        self.rows: NDArray[Any] = np.zeros((self.capacity + spare, n), dtype=dtype)
        self.T: F64 = np.zeros((self.capacity + spare, self.capacity + spare))
        self.eps = float(np.finfo(dtype).eps)
        self.m = self.t = 0
        self.products = 0
        self.scale = 0.0  # largest ||A v|| seen
        self.defect = 0.0  # largest |v_iᵀ A v_j - v_jᵀ A v_i| seen: asymmetry and noise of the operator, measured for free
        self._seed, self._stream = seed, stream

    def _grow(self, t: int) -> None:
        """Room for ``t`` rows (a block start has more pending rows than one)."""
        if t > len(self.rows):
            more = t - len(self.rows)
            self.rows = np.concatenate([self.rows, np.zeros((more, self.n), dtype=self.rows.dtype)])
            self.T = np.pad(self.T, (0, more))

    def orthogonalize(self, w: F64) -> tuple[F64, float]:
        """Gram-Schmidt twice against deflated vectors and basis, in place. -> (coefficients on the basis (t,), norm afterwards).

        Twice is enough (Giraud, Langou, Rozloznik & van den Eshof 2005); the norm is taken after the second pass.
        """
        v = self.rows[: self.t]
        coefficients = np.zeros(self.t)
        for _ in range(2):
            if self.deflate is not None:
                w -= (self.deflate @ w) @ self.deflate
            if self.t:
                c = np.asarray(v @ w.astype(v.dtype, copy=False), dtype=np.float64)
                w -= c.astype(v.dtype, copy=False) @ v
                coefficients += c
        return coefficients, float(np.linalg.norm(w))

    def append(self, w: F64, *, size: float | None = None) -> tuple[F64, float]:
        """Orthogonalize ``w`` and add its direction. -> (coefficients, norm), norm 0 when nothing but rounding was left.

        The test is relative to ``size``, the norm ``w`` is to be judged against (its own by default).
        """
        before = float(np.linalg.norm(w)) if size is None else size
        coefficients, beta = self.orthogonalize(w)
        if self.t >= self.space or beta <= 10.0 * np.sqrt(self.n) * self.eps * before:
            return coefficients, 0.0
        self._grow(self.t + 1)
        self.rows[self.t] = w / beta
        self.t += 1
        return coefficients, beta

    def append_random(self) -> bool:
        """Add a random direction not coupled to the basis; False when the basis already spans the whole space."""
        while self.t < self.space:
            self._stream += 1
            if self.append(rademacher(self.n, self._seed, self._stream))[1] > 0.0:
                return True
        return False

    def step(self) -> F64 | None:
        """Multiply the next row. -> its product (before orthogonalization), or None when the whole space is spanned."""
        if self.m == self.t and not self.append_random():
            return None
        j = self.m
        product = self.apply(np.asarray(self.rows[j], dtype=np.float64))
        self.products += 1
        w = product.copy()
        size = float(np.linalg.norm(w))
        self.scale = max(self.scale, size)
        coefficients, beta = self.append(w, size=max(size, self.scale))
        known = len(coefficients)
        self.defect = max(self.defect, float(np.abs(coefficients[:j] - self.T[:j, j]).max(initial=0.0)))
        self.T[:known, j] = coefficients
        self.T[j, :known] = coefficients
        if beta > 0.0:
            self.T[known, j] = self.T[j, known] = beta
        self.m += 1
        return product

    def ritz(self) -> tuple[F64, F64, F64]:
        """-> (values ascending (m,), coefficients (m, m) by column, residual norms (m,))."""
        projected = self.T[: self.m, : self.m]
        values, s = np.linalg.eigh((projected + projected.T) / 2)
        residuals = np.linalg.norm(self.T[self.m : self.t, : self.m] @ s, axis=0)
        return values, s, residuals

    def compress(self, values: F64, s: F64) -> None:
        """Thick restart: keep the Ritz vectors with coefficients ``s`` (m, q) and all rows not yet multiplied."""
        q, pending = s.shape[1], self.t - self.m
        coupling = self.T[self.m : self.t, : self.m] @ s
        # by column stripes: the whole product would need a second basis in memory
        stripe = max(1, 2**22 // max(1, self.m))
        with uninterrupted():
            for a in range(0, self.n, stripe):
                part = self.rows[: self.m, a : a + stripe]
                self.rows[:q, a : a + stripe] = s.T.astype(part.dtype, copy=False) @ part
            self.rows[q : q + pending] = self.rows[self.m : self.t]
            self.T[:] = 0.0
            self.T[np.arange(q), np.arange(q)] = values
            self.T[q : q + pending, :q] = coupling
            self.T[:q, q : q + pending] = coupling.T
            self.m, self.t = q, q + pending

    def load(self, vectors: F64, products: F64) -> None:
        """Start from orthonormal rows (q, n) whose products are known; what the products add becomes the pending rows."""
        q = len(vectors)
        self._grow(2 * q)
        self.rows[:q] = vectors
        self.m = self.t = 0
        self.t = q
        self.T[:] = 0.0
        for j in range(q):
            w = products[j].copy()
            size = float(np.linalg.norm(w))
            self.scale = max(self.scale, size)
            coefficients, beta = self.append(w, size=max(size, self.scale))
            self.T[: len(coefficients), j] = coefficients
            self.T[j, : len(coefficients)] = coefficients
            if beta > 0.0:
                self.T[len(coefficients), j] = self.T[j, len(coefficients)] = beta
        self.m = q

    def vectors(self, s: F64) -> F64:
        """Ritz vectors (q, n) by row for coefficients ``s`` (m, q), normalised."""
        out = np.asarray(s.T.astype(self.rows.dtype, copy=False) @ self.rows[: self.m], dtype=np.float64)
        for row in out:
            row /= np.linalg.norm(row)
        return out

    def free(self) -> None:
        """Give the memory of the basis back; it cannot be used any more."""
        self.rows = np.zeros((0, self.n), dtype=self.rows.dtype)
        self.m = self.t = 0
