"""``sf.SketchSVD``: leading singular triplets of a matrix whose rows pass by once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.counters import gaussian
from ..kernels.numpy_lowrank import signed
from .arrays import as_numpy, dtype_name
from .lowrank import LowRankSVD, whole_number
from .options import seed_number

__all__ = ["SketchSVD"]

ERROR_VECTORS = 6  # Gaussian, for the error bound (Halko, Martinsson & Tropp 2011, equation 4.3)

F64 = NDArray[np.float64]

_ROWS, _COLUMNS = 1 << 33, 1 << 34  # streams of the counters
_AT_ONCE = 1 << 22  # entries of test matrices made at a time


class SketchSVD:
    """Leading singular triplets of an (m, n) matrix from one pass over its rows (Tropp, Yurtsever, Udell & Cevher 2019, algorithm 4.4).

    shape: (m, n). rank: triplets wanted, r. k, s: sizes of the sketches; None: k = 4 r + 1 (the paper's choice), at most
    min(m, n), and s = 2 k + 1, at most max(m, n). A given s is at least 2 k + 1 or max(m, n). seed: of the test matrices.

    Kept are Y = A Omega^T (m, k), X = Upsilon A (k, n), Z = Phi A Psi^T (s, s) and, for the error bound, six random combinations of the rows, in
    float64. The test matrices are Gaussian, made from counters when they are needed and not stored, so that rows may come in blocks of any
    size: the result is the same to rounding. With t(p) the sum of the squares of all singular values but the first p, the approximation before
    it is cut at ``rank`` has an expected squared Frobenius error of at most (s-1)/(s-k-1) min_{p<k-1} (k+p-1)/(k-p-1) t(p) (their theorem 5.1).

        sketch = sf.SketchSVD((100_000, 768), rank=10)
        for block in blocks:      # (rows, 768) each, in order
            sketch.add(block)
        r = sketch.result()       # LowRankSVD: u, s, vt, error
    """

    def __init__(self, shape: tuple[int, int], rank: int, *, k: int | None = None, s: int | None = None, seed: int = 0) -> None:
        if len(shape) != 2:
            raise ValueError(f"shape: got {shape!r}; wanted (m, n)")
        for size in shape:
            whole_number("shape", size, 1)
        self.shape = (int(shape[0]), int(shape[1]))
        least = min(self.shape)
        whole_number("rank", rank, 1)
        if rank > least:
            raise ValueError(f"rank: got {rank}; a matrix of shape {self.shape} has {least} singular values")
        seed_number(seed)
        self.rank, self._seed = rank, seed
        self._k = min(4 * rank + 1, least) if k is None else k
        whole_number("k", self._k, rank)
        if self._k > least:
            raise ValueError(f"k: got {k}; at most min(m, n) = {least}")
        self._s = min(2 * self._k + 1, max(self.shape)) if s is None else s
        whole_number("s", self._s, 1)
        if self._s < 2 * self._k + 1 and self._s < max(self.shape):
            raise ValueError(f"s: got {self._s}; wanted at least 2 k + 1 = {2 * self._k + 1}")
        m, n = self.shape
        self.rows = 0  #: rows added so far
        self._y = np.empty((m, self._k))
        self._x = np.zeros((self._k, n))
        self._z = np.zeros((self._s, self._s))
        self._w = np.zeros((ERROR_VECTORS, n))

    def add(self, block: Any) -> SketchSVD:
        """The next rows, (rows, n), real and finite: array, torch tensor or RawArray. Returns itself.

        Raises TypeError for other numbers, ValueError for another width, more rows than there are, a NaN or an infinity; the sketch is then as it
        was before.
        """
        a = as_numpy(block)
        if a.dtype.kind not in "fiub":
            raise TypeError(f"block: got dtype {dtype_name(block)}; wanted real numbers")
        m, n = self.shape
        if a.ndim != 2 or a.shape[1] != n:
            raise ValueError(f"block: got shape {a.shape}; wanted (rows, {n})")
        if self.rows + len(a) > m:
            raise ValueError(f"block: got {len(a)} rows after {self.rows}; the matrix has {m}")
        if not np.isfinite(a).all():
            raise ValueError(f"block: row {self.rows + int(np.argwhere(~np.isfinite(a))[0, 0])} has a NaN or an infinity")
        right = self._columns_test()
        for first in range(0, len(a), self._step):
            part = np.asarray(a[first : first + self._step], dtype=np.float64)
            left = self._rows_test(self.rows, len(part))
            both = part @ right  # A Omega^T, A Psi^T
            self._y[self.rows : self.rows + len(part)] = both[:, : self._k]
            self._x += left[:, : self._k].T @ part
            self._z += left[:, self._k : self._k + self._s].T @ both[:, self._k :]
            self._w += left[:, self._k + self._s :].T @ part
            self.rows += len(part)
        return self

    def result(self) -> LowRankSVD:
        """The triplets. ``error`` bounds the spectral norm of A - u s vt but for a probability of 1e-6 (Halko et al. 2011, equation 4.3).

        Raises ValueError while rows are missing.
        """
        m, n = self.shape
        if self.rows < m:
            raise ValueError(f"result: {self.rows} of {m} rows have been added")
        k, s = self._k, self._s
        q = np.linalg.qr(self._y)[0]
        p = np.linalg.qr(self._x.T)[0]
        phi_q, g_q = np.zeros((s, k)), np.zeros((ERROR_VECTORS, k))
        for first in range(0, m, self._step):
            left = self._rows_test(first, min(self._step, m - first))
            phi_q += left[:, k : k + s].T @ q[first : first + len(left)]
            g_q += left[:, k + s :].T @ q[first : first + len(left)]
        psi_p = self._columns_test()[:, k:].T @ p
        core = np.linalg.lstsq(phi_q, self._z, rcond=None)[0]
        core = np.linalg.lstsq(psi_p, core.T, rcond=None)[0].T
        left_core, values, right_core = np.linalg.svd(core)
        r = self.rank
        residual = self._w - (g_q @ left_core[:, :r] * values[:r]) @ (right_core[:r] @ p.T)
        error = 10.0 * np.sqrt(2.0 / np.pi) * float(np.linalg.norm(residual, axis=1).max())
        u, values, vt = signed(q @ left_core[:, :r], values[:r], right_core[:r] @ p.T)
        return LowRankSVD(u=u, s=values, vt=vt, error=np.asarray(error), ranks=np.asarray(r), backend="numpy")

    @property
    def _step(self) -> int:
        return max(1, _AT_ONCE // (self._k + self._s + ERROR_VECTORS))

    def _rows_test(self, first: int, count: int) -> F64:
        """Rows of [Upsilon^T Phi^T G^T], (count, k + s + 6)."""
        width = self._k + self._s + ERROR_VECTORS
        return gaussian(count * width, self._seed, _ROWS, first * width).reshape(count, width)

    def _columns_test(self) -> F64:
        """[Omega^T Psi^T], (n, k + s)."""
        return gaussian(self.shape[1] * (self._k + self._s), self._seed, _COLUMNS).reshape(self.shape[1], self._k + self._s)
