"""Where in a network an eigenvector lives: its length and its curvature by block of parameters, without a further product.

With v = (v_1, ..., v_L) over the blocks and H v = theta v + r, block l has the share |v_l|² of the eigenvector and the part
v_lᵀ (H v)_l = theta |v_l|² + v_lᵀ r_l of its eigenvalue, |v_lᵀ r_l| <= |v_l| |r|; both add up over the blocks, to 1 and to the Rayleigh quotient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..linalg.arrays import as_float64
from ..linalg.eigsh import EigenResult
from ..linalg.share import PIECE, Share

__all__ = ["LayerMass", "layer_mass"]

F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerMass:
    """names: of the L blocks. mass: (L, k), share of each eigenvector's squared length, columns of sum 1. rayleigh: (L, k), the blocks' parts
    of each eigenvalue, columns of sum theta. error: (L, k), by how much the residual may move a part. NaN for pairs that were never reached."""

    names: tuple[str, ...]
    mass: F64
    rayleigh: F64
    error: F64

    def of(self, name: str) -> F64:
        """Shares (k,) of one block. Raises KeyError."""
        if name not in self.names:
            raise KeyError(name)
        return np.asarray(self.mass[self.names.index(name)])


def layer_mass(pairs: EigenResult, blocks: Mapping[str, slice], share: Share | None = None) -> LayerMass:
    """blocks: name -> place in the vectors. share: where ``pairs.vectors`` are only those rows that this process holds; all processes get the same."""
    first = 0 if share is None else share.columns.start
    mass = np.zeros((len(blocks), pairs.vectors.shape[1]))
    for row, block in zip(mass, blocks.values(), strict=True):
        start, stop = max(block.start - first, 0), min(block.stop - first, len(pairs.vectors))
        for a in range(start, stop, PIECE):
            row += np.square(as_float64(pairs.vectors[a : min(a + PIECE, stop)])).sum(axis=0)
    if share is not None and share.reduce is not None:
        share.reduce(mass)
    with np.errstate(invalid="ignore"):
        mass /= mass.sum(axis=0)  # vectors kept in bfloat16 or float32 have length 1 to their rounding
    return LayerMass(
        names=tuple(blocks),
        mass=mass,
        rayleigh=mass * np.asarray(pairs.values),
        error=np.sqrt(mass) * np.abs(np.asarray(pairs.residuals) + pairs.residual_error),
    )
