"""The Gram matrix of per-sample gradients, summed over layers in float64, a block of samples and a tile of columns at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .per_sample import PerSampleGradients, Unit

__all__ = ["GradientGram"]

F64 = NDArray[np.float64]

class GradientGram:
    """K and, per layer, what its spectrum and noise scale need, built up unit by unit; the first `done` units are complete.

    Per layer with P_l < n: sum w g gᵀ (P_l x P_l); otherwise its own Gram matrix. Always: sum w g and sum w |g|².
    """

    def __init__(
        self, units: list[Unit], sizes: dict[str, int], device: torch.device, *, hold: int, chunk: int, layer_spectra: bool, column_bytes: int = 16 << 20
    ) -> None:
        """sizes: parameter name -> P_l. hold: gradients kept at once; chunk: gradients compared with them at once; layer_spectra:
        whether to keep what eigenvalues per layer need; column_bytes: float64 columns converted at once."""
        self.units, self.sizes, self.device = units, sizes, device
        self.hold, self.chunk, self.column_bytes = hold, chunk, column_bytes
        n = len(units)
        self.exact = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        self.weights = np.array([u.weight for u in units])
        self.done = 0
        self.gram = np.zeros((n, n))
        self.mean = {name: torch.zeros(p, dtype=self.exact, device=device) for name, p in sizes.items()}
        self.second = dict.fromkeys(sizes, 0.0)
        spectra = list(sizes) if layer_spectra else []
        self.moments = {name: torch.zeros((sizes[name], sizes[name]), dtype=self.exact, device=device) for name in spectra if sizes[name] < n}
        self.grams = {name: np.zeros((n, n)) for name in spectra if sizes[name] >= n}
        self.bad: dict[int, str] = {}  # unit -> first layer whose gradient is not finite

    def run(self, engine: PerSampleGradients, report: Callable[[int, int, str], None]) -> None:
        n, evaluated = len(self.units), 0
        total = sum(n - start for start in range(0, n, self.hold))
        dtypes = {name: p.dtype for name, p in engine.functional.parameters.items()}
        for start in range(0, n, self.hold):
            stop = min(start + self.hold, n)
            held = {name: torch.empty((stop - start, p), dtype=dtypes[name], device=self.device) for name, p in self.sizes.items()}
            for a in range(start, n, self.chunk):
                # a chunk lies in the block or after it, never across
                edges = [a, stop, min(a + self.chunk, n)] if a < stop < a + self.chunk else [a, min(a + self.chunk, n)]
                for lo, hi in zip(edges[:-1], edges[1:], strict=True):
                    self._chunk(engine, held, start, stop, lo, hi)
                    evaluated += hi - lo
                    report(evaluated, total, "per-sample gradients")

    def _chunk(self, engine: PerSampleGradients, held: dict[str, Tensor], start: int, stop: int, lo: int, hi: int) -> None:
        inside = lo < stop
        if inside:
            rows = {name: h[lo - start : hi - start] for name, h in held.items()}
        else:
            rows = {name: h.new_empty((hi - lo, h.shape[1])) for name, h in held.items()}
        for piece, gradients in engine.rows(self.units, lo, hi):
            for name, g in gradients.items():
                rows[name][piece.start - lo : piece.stop - lo] = g
        end = hi if inside else stop
        for name, h in held.items():
            tile = _products(rows[name], h[: end - start], self.exact, self.column_bytes)
            self.gram[lo:hi, start:end] += tile
            if name in self.grams:
                self.grams[name][lo:hi, start:end] = tile
        if inside:
            self._commit(rows, lo, hi)

    def _commit(self, rows: dict[str, Tensor], lo: int, hi: int) -> None:
        w = torch.as_tensor(self.weights[lo:hi], dtype=self.exact, device=self.device)
        for name, g in rows.items():
            for columns in _column_tiles(g.shape[1], 2 * (hi - lo), self.column_bytes):
                x = g[:, columns].to(self.exact)
                norms2 = x.square().sum(dim=1)
                for i in torch.nonzero(~torch.isfinite(norms2)).flatten().tolist():
                    self.bad.setdefault(lo + i, name)
                self.second[name] += float(w @ norms2)
                self.mean[name][columns] += w @ x
            if name in self.moments:
                x = g.to(self.exact)
                self.moments[name] += x.T @ (w[:, None] * x)
        self.done = hi

    def full(self, gram: F64) -> F64:
        """The lower triangle of what is done, mirrored."""
        lower = np.tril(gram[: self.done, : self.done])
        return np.asarray(lower + np.tril(lower, -1).T)


def _column_tiles(n_columns: int, n_rows: int, column_bytes: int) -> list[slice]:
    width = max(column_bytes // (8 * max(n_rows, 1)), 64)
    return [slice(j, min(j + width, n_columns)) for j in range(0, n_columns, width)]


def _products(left: Tensor, right: Tensor, exact: torch.dtype, column_bytes: int) -> F64:
    """left (a, P) rightᵀ (P, b), converted to float64 a tile of columns at a time."""
    total = torch.zeros((left.shape[0], right.shape[0]), dtype=exact, device=left.device)
    for columns in _column_tiles(left.shape[1], left.shape[0] + right.shape[0], column_bytes):
        total += left[:, columns].to(exact) @ right[:, columns].to(exact).T
    return np.asarray(total.cpu().numpy(), dtype=np.float64)
