"""The Gram matrix of per-sample gradients, summed over layers in float64, a block of samples and a tile of columns at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .ghost_plan import blocks_of
from .per_sample import PerSampleGradients, Unit

__all__ = ["GradientGram"]

F64 = NDArray[np.float64]


class GradientGram:
    """K and, per layer, what its spectrum and noise scale need, built up unit by unit; the first `done` units are complete.

    Per layer with P_l < n: sum w g gᵀ (P_l x P_l); otherwise its own Gram matrix. Always: sum w g and sum w |g|².
    """

    def __init__(
        self, units: list[Unit], sizes: dict[str, int], device: torch.device, *, hold: int, chunk: int, layer_spectra: bool, column_bytes: int = 8 << 20
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
        self.routes: dict[str, tuple[str, float]] = {}
        self.seconds: dict[str, float] = {}
        self.bad: dict[int, str] = {}  # unit -> first layer whose gradient is not finite

    def run(self, engine: PerSampleGradients, report: Callable[[int, int, str], None], share: tuple[int, int] = (0, 1)) -> None:
        """share: (rank, size), which part of the products are this process's; see add_over."""
        n, evaluated = len(self.units), 0
        blocks = blocks_of(n, self.hold, *share)
        total = sum(n - start for start, _ in blocks)
        dtypes = {name: p.dtype for name, p in engine.functional.parameters.items()}
        for start, stop in blocks:
            held = {name: torch.empty((stop - start, p), dtype=dtypes[name], device=self.device) for name, p in self.sizes.items()}
            for a in range(start, n, self.chunk):
                # a chunk lies in the block or after it, never across
                edges = [a, stop, min(a + self.chunk, n)] if a < stop < a + self.chunk else [a, min(a + self.chunk, n)]
                for lo, hi in zip(edges[:-1], edges[1:], strict=True):
                    self._chunk(engine, held, start, stop, lo, hi)
                    evaluated += hi - lo
                    report(evaluated, total, "per-sample gradients")

    def add_over(self, add_up: Callable[[Tensor], None]) -> None:
        """The parts that all ranks have computed; add_up: t <- sum of the ranks' t."""
        second = torch.tensor(list(self.second.values()), dtype=torch.float64)
        for t in (torch.from_numpy(self.gram), *map(torch.from_numpy, self.grams.values()), *self.mean.values(), *self.moments.values(), second):
            add_up(t)
        self.second = dict(zip(self.second, second.tolist(), strict=True))
        self.done = len(self.units)

    def _chunk(self, engine: PerSampleGradients, held: dict[str, Tensor], start: int, stop: int, lo: int, hi: int) -> None:
        """Gradients lo .. hi against the block that starts at `start`; inside the block they join it."""
        inside = lo < stop
        if inside:
            rows = {name: h[lo - start : hi - start] for name, h in held.items()}
        else:
            rows = {name: h.new_empty((hi - lo, h.shape[1])) for name, h in held.items()}
        for piece, gradients in engine.rows(self.units, lo, hi):
            for name, g in gradients.items():
                rows[name][piece.start - lo : piece.stop - lo] = g
        end = hi if inside else stop
        w = torch.as_tensor(self.weights[lo:hi], dtype=self.exact, device=self.device)
        for name, h in held.items():
            tile = self._products(name, rows[name], h[: end - start], w if inside else None)
            self.gram[lo:hi, start:end] += tile
            if name in self.grams:
                self.grams[name][lo:hi, start:end] = tile
            if inside:
                norms2 = np.diagonal(tile, lo - start)
                self.second[name] += float(self.weights[lo:hi] @ norms2)
                for i in np.flatnonzero(~np.isfinite(norms2)).tolist():
                    self.bad.setdefault(lo + i, name)
        if inside:
            self.done = hi

    def _products(self, name: str, left: Tensor, right: Tensor, weights: Tensor | None) -> F64:
        """left (a, P_l) rightᵀ (P_l, b) in float64, a tile of columns at a time. With weights (a,), left being the last rows of
        right, the sums over samples are advanced from the same converted tiles."""
        (a, n_columns), b = left.shape, right.shape[0]
        total = torch.zeros((a, b), dtype=self.exact, device=self.device)
        width = min(max(self.column_bytes // (8 * (a + b)), 64), n_columns)
        convert = left.dtype != self.exact
        # one buffer for all tiles: fresh ones would cost more in page faults than the conversion itself
        buffer = torch.empty((a + b) * width if convert else 0, dtype=self.exact, device=self.device)
        for j in range(0, n_columns, width):
            x, y = right[:, j : j + width], left[:, j : j + width]
            if convert:
                x = buffer[: x.numel()].view(x.shape).copy_(x)
                y = x[b - a :] if weights is not None else buffer[x.numel() : x.numel() + y.numel()].view(y.shape).copy_(y)
            total += y @ x.T
            if weights is not None:
                self.mean[name][j : j + width] += weights @ y
        if weights is not None and name in self.moments:
            y = left.to(self.exact)
            self.moments[name] += y.T @ (weights[:, None] * y)
        return np.asarray(total.cpu().numpy(), dtype=np.float64)

    def layer_moments(self, name: str) -> tuple[float, float]:
        """(weighted mean of |g|², |weighted mean of g|²) of one parameter over the units that are done, weights of sum 1."""
        total = float(self.weights[: self.done].sum())
        mean = self.mean[name].double().cpu().numpy() / total
        return self.second[name] / total, float(mean @ mean)

    def layer_moment(self, name: str) -> tuple[F64, F64]:
        """(weighted mean of g gᵀ, of g) of one of ``moments``."""
        total = float(self.weights[: self.done].sum())
        return self.moments[name].double().cpu().numpy() / total, self.mean[name].double().cpu().numpy() / total

    def full(self, gram: F64) -> F64:
        """The lower triangle of what is done, mirrored."""
        lower = np.tril(gram[: self.done, : self.done])
        return np.asarray(lower + np.tril(lower, -1).T)
