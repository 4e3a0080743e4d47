"""What is known of the weight matrices: ``MatrixSpectrum`` of one, ``WeightSpectra`` of all of a model or checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..metrics.marchenko_pastur import MarchenkoPasturFit
from ..metrics.power_law import PowerLawFit
from ..metrics.random_matrix import PermutationNull
from ..results import Result, Skipped
from .roles import UNKNOWN
from .sources import TensorRecord

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MatrixSpectrum", "WeightSpectra"]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class MatrixSpectrum(Result):
    """One matrix and its spectrum.

    s: (d_min,) float64, descending, or with status "incomplete" only the leading ones, asked for by ``scan(..., top=k)``; bound: error bound of every
    value, then the Frobenius norm of what is left, far more than their errors from below; redone: computed again with "high" accuracy, because
    "standard" (svdvals) left a rank or s_min open.
    metrics: see metrics.norms, plus condition_number_is_lower_bound, near_zero_fraction, and of the power law alpha_weighted and log_alpha_norm, NaN
    where ``power_law.status`` is not "ok". ranks, rank_tolerances: per rule of metrics.rank.
    null: norms and condition of a random matrix of this shape and mean square. baseline: with ``scan(..., baseline=...)``, the metrics of the matrix of
    this name there, and its alpha, alpha_stderr, n_tail, rank (storage), effective_precision, zero_rows and zero_columns; empty without a partner.
    mp: Marchenko-Pastur fit of the bulk and the spikes above it. permutation: of the shuffled entries, with ``scan(..., null="permutation")``.
    storage_noise: bound on the norm of the rounding error (metrics.rank.storage_noise). role: what the matrix does in the network (roles.py), e.g.
    "attention.q"; in_out: stored (in, out), the transpose of torch's (out, in). kind "lora": the product B A of shape (m, n) and rank at most r, never
    formed: s holds its min(m, n, r) values that can differ from 0, and null is NaN, for a random matrix of the shape says nothing about it.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    tensor_shape: tuple[int, ...]
    dtype: str
    effective_precision: int
    s: NDArray[np.float64]
    bound: float
    metrics: dict[str, float]
    ranks: dict[str, int]
    rank_tolerances: dict[str, float]
    power_law: PowerLawFit
    mp: MarchenkoPasturFit
    null: dict[str, float]
    baseline: dict[str, float] = field(default_factory=dict)
    permutation: PermutationNull | None = None
    zero_rows: int = 0
    zero_columns: int = 0
    tied: tuple[str, ...] = ()
    storage_noise: float = float("nan")
    role: str = UNKNOWN
    in_out: bool = False
    redone: bool = False

    @property
    def evals(self) -> NDArray[np.float64]:
        """(d_min,) eigenvalues of WᵀW, descending: s²."""
        return self.s * self.s


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class WeightSpectra(Result):
    """Spectra of all weight matrices of a model or checkpoint, and the list of tensors that were not analysed with the reasons.

    slices: with ``scan(..., slices=True)``, for each convolution of more than one tap and each fused tensor: tensor name -> (slices, d_min)
    singular values of W[:, :, i, j] for every (i, j), of the whole tensor where it is 2-D. tensors: all of the source, in its order.
    baseline: what it was compared with, empty without one; not_compared: matrices that have no partner there, or none of their shape, and why.
    """

    source: str
    matrices: tuple[MatrixSpectrum, ...]
    skipped: tuple[Skipped, ...]
    seconds: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)
    slices: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    baseline: str = ""
    not_compared: tuple[Skipped, ...] = ()
    tensors: tuple[TensorRecord, ...] = field(default=(), repr=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> WeightSpectra:
        """What a store holds (``scan(..., store=path)``), also of a scan that has not ended: status "incomplete" then.

        The result of the scan again, but for ``slices``, ``baseline`` and ``timings``. Raises ValueError for a file that is no store.
        """
        from .scan import opened

        return opened(path)

    @property
    def redone_share(self) -> float:
        """Share of the matrices whose singular values were computed again with "high" accuracy; NaN without matrices."""
        return sum(m.redone for m in self.matrices) / len(self.matrices) if self.matrices else float("nan")

    def __len__(self) -> int:
        return len(self.matrices)

    def __iter__(self) -> Iterator[MatrixSpectrum]:
        return iter(self.matrices)

    def spectrum(self, name: str) -> MatrixSpectrum:
        """The matrix called ``name``; KeyError says why when it was skipped."""
        for m in self.matrices:
            if m.name == name:
                return m
        for s in self.skipped:
            if s.name == name:
                raise KeyError(f"{name}: skipped: {s.reason}")
        raise KeyError(f"{name}: no such matrix; there are {len(self.matrices)}, e.g. {', '.join(m.name for m in self.matrices[:3])}")

    def to_pandas(self, view: str | None = None) -> pd.DataFrame:
        """A row per matrix and per skipped tensor; with ``view="weightwatcher"`` the table that tool gives (weights.weightwatcher_view).

        That view needs ``scan(..., slices=True)`` where there are convolutions or fused tensors.
        Raises ImportError without pandas, ValueError for an unknown view or missing slices.
        """
        if view is None:
            return super().to_pandas()
        if view != "weightwatcher":
            raise ValueError(f"view: got {view!r}; known: None, 'weightwatcher'")
        from .weightwatcher_view import weightwatcher_frame

        return weightwatcher_frame(self)
