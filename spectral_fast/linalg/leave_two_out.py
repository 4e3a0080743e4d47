"""XTrace's samples with one and with two probes left out of the sketch, by block of rows, in the k dimensions of the sketch.

A Omega = Q R (n, k), Z = A Q, H = Qᵀ Z, w = Qᵀ Omega. The span of A Omega without columns i and j is that of Q without the span of s_i
and s_j, columns of S = R^-T (Epperly, Tropp & Webber 2024, for one column). With V an orthonormal basis of that span and
Pi = ([s_i s_j]ᵀ [s_i s_j])^-1, so that V Vᵀ = [s_i s_j] Pi [s_i s_j]ᵀ, the projector is P = Q (I - V Vᵀ) Qᵀ and the residual of probe i

    u = (I - P) omega_i = p_i + Q c,     p = Omega - Q w,     c = V Vᵀ w_i = a s_i + b s_j.

Everything below is the sample

    tr E (P A + A P - P A P) + u_lᵀ ((I - P) A u)_l

written in products of s_i, s_j with k x k matrices of the block, for all pairs at once: O(k³) beside the n k² of those matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["LeaveTwoOut", "RowGrams"]

F64 = NDArray[np.float64]

PARALLEL = 1e-10  # s_i and s_j whose 1 - cos² is below are one direction: what tells them apart is rounding


@dataclass
class RowGrams:
    """Sums over the rows of a block, each (k, k) but ``pap`` (k,): with Q, Z, p and A p = Q R - Z w cut to these rows."""

    qz: F64  # Qᵀ Z
    qq: F64  # Qᵀ Q
    pz: F64  # pᵀ Z
    pq: F64  # pᵀ Q
    apq: F64  # (A p)ᵀ Q
    pap: F64  # p_iᵀ (A p_i)

    @classmethod
    def zeros(cls, k: int) -> RowGrams:
        square = [np.zeros((k, k)) for _ in range(5)]
        return cls(square[0], square[1], square[2], square[3], square[4], np.zeros(k))

    def __iadd__(self, other: RowGrams) -> RowGrams:
        for name in ("qz", "qq", "pz", "pq", "apq", "pap"):
            mine = getattr(self, name)
            mine += getattr(other, name)
        return self


def _diagonal_rows(x: F64) -> F64:
    """x_ii at (i, j)."""
    return np.broadcast_to(np.diag(x)[:, None], x.shape)


class LeaveTwoOut:
    """r, h, w: R, H, Qᵀ Omega, all (k, k)."""

    def __init__(self, r: F64, h: F64, w: F64) -> None:
        k = len(r)
        self.k, self.r, self.w = k, r, w
        self.h = (h + h.T) / 2
        self.s = _directions(r)
        g = self.s.T @ self.s
        one = 1.0 - g * g < PARALLEL  # the diagonal too: i alone
        np.fill_diagonal(one, True)
        with np.errstate(divide="ignore", invalid="ignore"):
            self.same: F64 = np.where(one, 1.0, 1.0 / (1.0 - g * g))  # Pi = [[same, cross], [cross, last]]
        self.cross: F64 = np.where(one, 0.0, -g * self.same)
        self.last: F64 = np.where(one, 0.0, self.same)
        self.e = r - self.h @ w  # Qᵀ A p
        self.hs = self.h @ self.s
        self.shs = self.s.T @ self.hs
        sw, se = self.s.T @ w, self.s.T @ self.e
        self.a, self.b = self._solve(_diagonal_rows(sw), sw.T)
        # V Vᵀ (e_i + H c) = a2 s_i + b2 s_j
        at_i = _diagonal_rows(se) + self.a * np.diag(self.shs)[:, None] + self.b * self.shs
        at_j = se.T + self.a * self.shs.T + self.b * np.diag(self.shs)[None, :]
        self.a2, self.b2 = self._solve(at_i, at_j)

    def _solve(self, at_i: F64, at_j: F64) -> tuple[F64, F64]:
        """Pi [at_i, at_j]."""
        return self.same * at_i + self.cross * at_j, self.cross * at_i + self.last * at_j

    def _times(self, x: F64) -> tuple[F64, F64, F64, F64]:
        """Entries ii, ij, ji, jj of Pi X for the 2 x 2 parts X of ``x`` = Sᵀ (...) S."""
        x_ii, x_jj = np.diag(x)[:, None], np.diag(x)[None, :]
        first, second = self._solve(x_ii, x.T), self._solve(x, x_jj)
        return first[0], second[0], first[1], second[1]

    def _trace(self, x: F64) -> F64:
        """tr Pi X = tr V Vᵀ (...)."""
        entries = self._times(x)
        return entries[0] + entries[3]

    def grams(self, q: F64, z: F64, omega: F64) -> RowGrams:
        """q, z, omega: rows (m, k) of Q, Z and Omega."""
        p, ap = omega - q @ self.w, q @ self.r - z @ self.w
        return RowGrams(q.T @ z, q.T @ q, p.T @ z, p.T @ q, ap.T @ q, np.einsum("ij,ij->j", p, ap))

    def samples(self, x: RowGrams) -> F64:
        """(k, k): at (i, j) the sample of probe i with the sketch without i and j, at (i, i) that without i."""
        s, a, b, a2, b2 = self.s, self.a, self.b, self.a2, self.b2
        f = s.T @ ((x.qz + x.qz.T) / 2) @ s
        g = s.T @ x.qq @ s
        hg = self.h @ x.qq
        left, right = self._times(self.shs), self._times(g)
        php = left[0] * right[0] + left[1] * right[2] + left[2] * right[1] + left[3] * right[3]
        known = 2.0 * (np.trace(x.qz) - self._trace(f)) - (np.trace(hg) - self._trace(s.T @ (hg + hg.T) @ s) + php)
        # (p_i + Q c) . (A p_i + Z c - Q d),  d = (I - V Vᵀ) (e_i + H c) = e_i + H c - a2 s_i - b2 s_j
        linear = (x.pz + x.apq) @ s
        f_i, f_j = np.diag(f)[:, None], np.diag(f)[None, :]
        residual = x.pap[:, None] + a * _diagonal_rows(linear) + b * linear + a * a * f_i + 2.0 * a * b * f + b * b * f_j
        pqh, pqs = x.pq @ self.hs, x.pq @ s
        pqe = np.einsum("ij,ji->i", x.pq, self.e)[:, None]
        residual = residual - (pqe + a * _diagonal_rows(pqh) + b * pqh - a2 * _diagonal_rows(pqs) - b2 * pqs)
        ge, gh = s.T @ x.qq @ self.e, s.T @ x.qq @ self.hs
        g_i, g_j = np.diag(g)[:, None], np.diag(g)[None, :]
        at_i = _diagonal_rows(ge) + a * np.diag(gh)[:, None] + b * gh - a2 * g_i - b2 * g
        at_j = ge.T + a * gh.T + b * np.diag(gh)[None, :] - a2 * g.T - b2 * g_j
        return np.asarray(known + residual - a * at_i - b * at_j)


def _directions(r: F64) -> F64:
    """Columns of R^-T, normalised. Where R is singular to rounding they lie in what its range lacks: directions of Q that were filled up
    and that A, being symmetric, knows nothing of, so that leaving them out changes nothing, as it should."""
    u, values, vt = np.linalg.svd(r)
    if values[0] == 0.0:
        return np.eye(len(r))
    s = u @ (vt / np.maximum(values, np.finfo(np.float64).eps * values[0])[:, None])
    return np.asarray(s / np.linalg.norm(s, axis=0))
