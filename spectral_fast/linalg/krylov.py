"""The Krylov basis behind eigsh and spectral_density: block Lanczos with full reorthogonalization, kept so that it can be restarted.

Band form (Ruhe 1979; Freund 2000): rows are multiplied in any order, some at a time, so that a block of any size, a start from several vectors and a
random vector put in later are the same code. With M the rows already multiplied, P those that wait and V all of them,

    A V_M = V T[:, M],   V orthonormal, T = Vᵀ A V,

and the residual of a Ritz pair (theta, V_M s) is ||T[P, M] s||. With full reorthogonalization all of T's entries are at hand, so a thick restart (Wu & Simon
2000) is a change of basis and needs no formulas of its own. The rows lie in one flat buffer that never leaves its place: see kernels' ``orthogonalize``
and ``recombine``.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.select import select
from .places import BASIS_DTYPES, DevicePlace, HostPlace, place_of
from .products import Apply
from .share import PIECE, Share

__all__ = ["BASIS_DTYPES", "Krylov", "dtype_of_basis", "uninterrupted"]

F64 = NDArray[np.float64]


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


def dtype_of_basis(basis_dtype: Any) -> str:
    """The name of a format of BASIS_DTYPES ("bf16" is "bfloat16"; numpy's and torch's types are known), "" for None. Raises ValueError."""
    if basis_dtype is None:
        return ""
    name = str(basis_dtype).removeprefix("torch.") if not isinstance(basis_dtype, type) else np.dtype(basis_dtype).name
    name = {"bf16": "bfloat16"}.get(name, name)
    if name not in BASIS_DTYPES:
        raise ValueError(f"basis_dtype: unknown {name}; known: {', '.join(BASIS_DTYPES)}")
    return name


class Krylov:
    """Rows V (t, n), T (t, t); ``order``: the m rows already multiplied; ``pending``: those that wait. ``products`` counts the multiplications made here.

    At any moment, also after an exception in a product, the multiplied rows and T describe one another. capacity: rows before a restart; spare: rows beyond
    it for those that wait for their product; both grow when more is asked for. dtype: a key of BASIS_DTYPES. rows: memory of the host to use instead of new
    memory. The rows lie where ``apply`` multiplies: on its device they are tensors, and only what is decided from comes to the host.
    """

    def __init__(
        self,
        apply: Apply,
        n: int,
        capacity: int,
        *,
        seed: int,
        stream: int = 0,
        dtype: str = "float64",
        spare: int = 1,
        share: Share | None = None,
        rows: Callable[[tuple[int, int], str], NDArray[Any]] | None = None,
        backend: str = "auto",
        place: HostPlace | DevicePlace | None = None,
    ) -> None:
        self.apply, self.n, self.dtype = apply, n, dtype
        self.share = share or Share(n)
        self.capacity = max(1, min(capacity, n))
        self._memory = rows
        shape = (min(n, self.capacity + spare), self.share.width)
        if place is None:
            place = place_of(apply, shape[0] * shape[1], dtype) if rows is None and self.share.reduce is None else HostPlace()
        self.place = place
        self.rows: Any = self._make(shape)
        self.T: F64 = np.zeros((len(self.rows), len(self.rows)))
        self.eps = 2.0**-52 if dtype == "float64" else 2.0**-23  # what is left of a vector is known to the accuracy of products, not to that of bfloat16
        self.t = 0
        self.order: list[int] = []
        self.pending: list[int] = []
        self.chain: list[int] = []  # rows of a search under way, see missed.look_for_missed
        self.products = 0
        self.scale = 0.0  # largest ||A v|| seen
        self.defect = 0.0  # largest |v_iᵀ A v_j - v_jᵀ A v_i| seen: asymmetry and noise of the operator, measured for free
        self.seed, self.stream = seed, stream
        self._orthogonalize, self.backend = select("orthogonalize", backend, self.place.device)
        self._recombine, _ = select("recombine", backend, self.place.device)

    def _make(self, shape: tuple[int, int]) -> Any:
        return self.place.zeros(shape, self.dtype) if self._memory is None else self._memory(shape, BASIS_DTYPES[self.dtype])

    @property
    def _own(self) -> bool:
        """Are the rows an array of the host that nobody else owns, whose memory can grow and shrink where it lies?"""
        return isinstance(self.rows, np.ndarray) and bool(self.rows.flags.owndata)

    @property
    def m(self) -> int:
        return len(self.order)

    @property
    def full(self) -> bool:
        """Does the basis span the whole space, all of it multiplied?"""
        return len(self.order) >= self.n

    def _room(self, t: int) -> None:
        if t > len(self.rows):
            shape = (max(t, len(self.rows) + 8) if t < self.n else t, self.share.width)
            try:
                if self._memory is not None or not self._own:
                    raise ValueError
                self.rows.resize(shape)  # where it lies, if the system can: a copy would take the memory twice
            except ValueError:  # somebody looks at the rows, or they are not this memory's own
                more = self._make(shape)
                more[: self.t] = self.rows[: self.t]
                self.rows = more
        if t > len(self.T):
            self.T = np.pad(self.T, (0, len(self.rows) - len(self.T)))

    def vectors_of(self, indices: Sequence[int]) -> Any:
        """Rows as the operator takes them (b, n): a view where they lie side by side."""
        first = indices[0]
        together = list(indices) == list(range(first, first + len(indices)))
        rows = self.rows[first : first + len(indices)] if together else self.place.chosen(self.rows, indices)
        return self.place.readable(rows, self.dtype)

    def add(self, w: Any) -> tuple[F64, list[int]]:
        """Orthogonalize the rows of ``w`` (b, n), overwriting it, and let what is left wait. -> (coefficients (t + b, b), indices of the new rows).

        Directions of which nothing but rounding is left are dropped; so are those beyond the dimension of the space.
        Raises ArithmeticError where ``w`` is not finite.
        """
        w = self.place.take(w)
        self._room(min(self.n, self.t + len(w)))
        floor = np.full(len(w), 10.0 * self._rounding() * self.scale)
        c, kept = self._orthogonalize(self.rows, self.t, w, floor, relative=10.0 * self._rounding(), reduce=self.share.reduce)
        if not np.isfinite(c).all():
            raise ArithmeticError("op: its product with a unit vector holds NaN or Inf, or numbers whose squares overflow")
        new = list(range(self.t, self.t + int(kept.sum())))
        self.t += len(new)
        self.pending += new
        return c, new

    def _rounding(self) -> float:
        """A float64 product's sums round to sqrt(n) eps; in single precision the vectors themselves do, entry by entry."""
        return self.eps * (float(np.sqrt(self.n)) if self.dtype == "float64" else 1.0)

    def add_random(self, *, bell: bool = False) -> list[int]:
        """Let a random direction wait that is not coupled to the basis; [] where the basis spans the whole space. bell: a Gaussian one."""
        while self.t < self.n:
            self.stream += 1
            new = self.add(self.random(self.stream, bell=bell))[1]
            if new:
                return new
        return []

    def random(self, stream: int, *, bell: bool = False) -> Any:
        """(1, n) Rademacher or Gaussian vector, of about the size of a product."""
        return self.drawn([stream], "gaussian" if bell else "rademacher", max(1.0, self.scale) / float(np.sqrt(self.n)))

    def drawn(self, streams: Sequence[int], kind: str = "rademacher", size: float = 1.0) -> Any:
        """(streams, n): a random vector of each, times ``size``, where the rows lie."""
        first, width = self.share.columns.start, self.share.width
        out = self.place.vectors((len(streams), width), self.dtype)
        for i, stream in enumerate(streams):
            for a in range(0, width, PIECE):
                b = min(width, a + PIECE)
                out[i, a:b] = self.place.draw(kind, b - a, self.seed, stream, first + a) * size
        return out

    def step(self, take: Sequence[int] | None = None, before: Callable[[Any], None] | None = None) -> list[int]:
        """Multiply the rows ``take`` (the one that waits longest). -> their indices, [] where the whole space is spanned.

        before: sees the products (b, n) before they are orthogonalized away."""
        if take is None:
            if not self.pending and not self.add_random():
                return []
            take = self.pending[:1]
        w = self.apply(self.vectors_of(take))
        self.products += len(take)
        if before is not None:
            before(w)
        with uninterrupted():
            c, _ = self.add(w)
            self._learn(list(take), c)
        return list(take)

    def _learn(self, take: list[int], c: F64) -> None:
        """The columns of T that the products of ``take`` have shown."""
        known = min(len(c), self.t)
        for i, j in enumerate(take):
            column = c[:known, i]
            self.scale = max(self.scale, float(np.linalg.norm(column)))
            seen = self.order + take[:i]
            self.defect = max(self.defect, float(np.abs(column[seen] - self.T[seen, j]).max(initial=0.0)))
            self.T[:known, j] = column
            self.T[j, :known] = column
        for j in take:
            self.pending.remove(j)
        self.order += take

    def ritz(self) -> tuple[F64, F64, F64]:
        """-> (values ascending (m,), coefficients on ``order`` (m, m) by column, residual norms (m,))."""
        projected = self.T[np.ix_(self.order, self.order)]
        values, s = np.linalg.eigh((projected + projected.T) / 2)
        if self.share.agree is not None:
            self.share.agree(values)
            self.share.agree(s)
        residuals = np.linalg.norm(self.T[np.ix_(self.pending, self.order)] @ s, axis=0)
        return values, s, residuals

    def _full(self, s: F64, more: Sequence[int] = ()) -> F64:
        """Coefficients on ``order`` as coefficients on all rows, with unit columns for the rows ``more`` behind them."""
        out = np.zeros((self.t, s.shape[1] + len(more)))
        out[self.order, : s.shape[1]] = s
        out[list(more), np.arange(s.shape[1], s.shape[1] + len(more))] = 1.0
        return out

    def compress(self, values: F64, s: F64) -> None:
        """Thick restart: keep the Ritz vectors with coefficients ``s`` (m, q) and all rows not yet multiplied: in place, or in new memory of the kind
        that was given, so that the old rows stay as they are."""
        q, pending = s.shape[1], list(self.pending)
        coupling = self.T[np.ix_(pending, self.order)] @ s
        waiting = self.T[np.ix_(pending, pending)]
        into = self.rows if self._memory is None or self._own else self._make(self.rows.shape)
        with uninterrupted():
            self._recombine(self.rows, self.t, self._full(s, pending), into)
            self.rows = into
            self.t = q + len(pending)
            self.T[:] = 0.0
            self.T[np.arange(q), np.arange(q)] = values
            self.T[q : self.t, :q] = coupling
            self.T[:q, q : self.t] = coupling.T
            self.T[q : self.t, q : self.t] = waiting
            self.order, self.pending, self.chain = list(range(q)), list(range(q, self.t)), []

    def drop(self, last: Sequence[int]) -> None:
        """Forget the rows ``last``, the newest ones, to which the products of the others do not couple."""
        gone = set(last)
        self.t -= len(gone)
        self.chain = []
        self.order = [j for j in self.order if j not in gone]
        self.pending = [j for j in self.pending if j not in gone]
        self.T[self.t :, :] = 0.0
        self.T[:, self.t :] = 0.0

    def load(self, vectors: NDArray[Any], products: NDArray[Any]) -> None:
        """Start from orthonormal rows (q, n) whose products are known; what the products add waits. ``products`` is overwritten.

        Not for bfloat16: the rows would not be those that were multiplied."""
        if self.dtype == "bfloat16":
            raise ValueError("load: rows of bfloat16 are not the vectors whose products are known")
        q = len(vectors)
        self._room(min(self.n, 2 * q))
        self.rows[:q] = self.place.take(vectors)
        self.t = q
        self.order, self.pending = [], list(range(q))
        self.T[:] = 0.0
        for j in range(q):
            c, _ = self.add(products[j : j + 1])
            self._learn([j], c)

    def vectors(self, s: F64, dtype: str = "float64") -> NDArray[Any]:
        """Ritz vectors (q, n) by row for coefficients ``s`` (m, q), as an array of the host in float64 or, with another ``dtype``, float32."""
        out = self.place.vectors((s.shape[1], self.share.width), dtype)
        self._recombine(self.rows, self.t, self._full(s), out)
        return self.place.host(out)

    def combination(self, c: F64, into: Any = None) -> Any:
        """Σ c_j row_j of all rows, (1, n) in the precision of products: float64 or float32."""
        out = self.place.vectors((1, self.share.width), self.dtype) if into is None else into
        self._recombine(self.rows, self.t, np.ascontiguousarray(c[: self.t, None]), out)
        return out

    def relation_error(self, c: F64, apply: Apply) -> float:
        """||A V_M c - V T[:, M] c|| for coefficients ``c`` (m,) on ``order``, from one product."""
        on_all = np.zeros(self.t)
        on_all[self.order] = c
        v = self.combination(on_all)
        w = apply(v)
        self.combination(self.T[: self.t, self.order] @ c, into=v)
        w -= v
        return self.share.norm(w[0])

    def free(self) -> None:
        """Give the memory of the basis back; it cannot be used any more."""
        self.rows = self.place.zeros((0, self.share.width), self.dtype)
        self.t, self.order, self.pending = 0, [], []

    def taken(self, s: F64) -> NDArray[Any]:
        """Ritz vectors (q, n) for coefficients ``s`` (m, q), normalised, in the place of the first rows, whose memory they keep; the basis is gone.

        float64 or float32; in new memory where rows are bfloat16, lie in a file or on a device, or where the operator has kept a vector that it was given."""
        q = s.shape[1]
        if self.dtype == "bfloat16" or not self._own:
            out: NDArray[Any] = self.vectors(s, self.dtype)
            self.free()
        else:
            self._room(q)
            self._recombine(self.rows, self.t, self._full(s), self.rows)
            out = self.rows
            self.free()
            try:
                out.resize((q, self.share.width))
            except ValueError:  # something still looks at the rows: their memory has to stay
                out = out[:q].copy()
        for row in out:
            row /= self.share.norm(row)
        return out
