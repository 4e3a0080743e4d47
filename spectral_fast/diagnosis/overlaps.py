"""Do the directions that gradients vary along, those the loss curves along, and those the weights act along agree?

Every overlap is the mean squared cosine of the principal angles between two spaces (linalg's subspace_overlap): 1 for equal spaces, 0 for orthogonal
ones, k/n in the mean for random spaces of k in n dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..linalg.lowrank import randomized_svd, subspace_overlap
from ..memory import byte_size, host_memory_limit

if TYPE_CHECKING:
    from ..curvature import CurvatureSpectra
    from ..gradients import GradientCovariance, GradientSpectrum

__all__ = ["Overlaps", "WeightOverlap", "gradient_overlaps", "overlap_with_weight"]

F64 = NDArray[np.float64]
SMALL = 512  # matrices of a smaller side get an exact SVD


@dataclass(frozen=True)
class WeightOverlap:
    """Of a weight W (m, n), m outputs: its ``rank`` leading singular vectors against those of the top directions' own part for it. output: left ones, by
    chance rank/m; input: right ones, by chance rank/n."""

    output: float
    input: float
    rank: int
    shape: tuple[int, int]

    @property
    def by_chance(self) -> tuple[float, float]:
        return self.rank / self.shape[0], self.rank / self.shape[1]


@dataclass(frozen=True)
class Overlaps:
    """Of the top space of the gradient covariance. directions: its dimension k, eigenvectors above the noise floor. hessian: mean squared cosine with the
    k_hessian top eigenvectors of the Hessian's, NaN without them; both are cut to the same dimension. cosines: (k_hessian,) of the angles, descending.
    weights: parameter name -> WeightOverlap, for matrices (convolutions as (out, rest)) with at least four rows and columns."""

    directions: int
    n_params: int
    hessian: float = float("nan")
    k_hessian: int = 0
    cosines: F64 = field(default_factory=lambda: np.zeros(0))
    weights: dict[str, WeightOverlap] = field(default_factory=dict)

    @property
    def by_chance(self) -> float:
        """The overlap with the Hessian's space that a random one has in the mean."""
        return self.k_hessian / self.n_params


def gradient_overlaps(
    op: GradientCovariance,
    gradients: GradientSpectrum,
    curvature: CurvatureSpectra | None,
    *,
    weights: bool,
    k: int = 10,
    max_memory: int | float | None = None,
) -> Overlaps:
    """op: over the sample set of ``gradients``. The eigenvectors come from its Gram matrix, one backward pass each; see top_directions.

    curvature: of the same parameters, or None; weights: whether the singular spaces are compared too. Raises MemoryError where the k vectors and
    what they are compared with do not fit into max_memory, ValueError where no eigenvalue is above the noise floor."""
    from ..gradients import top_directions

    need = 4 * 8 * k * op.shape[0]
    if need > host_memory_limit(max_memory):
        raise MemoryError(f"{k} directions of {op.shape[0]} parameters need {byte_size(need)} (max_memory)")
    values, vectors = top_directions(op, gradients, k)
    if not len(values):
        raise ValueError("no eigenvalue of the gradient covariance is above the noise floor")
    found: dict[str, Any] = {}
    top = None if curvature is None else curvature.hessian_top
    if top is not None and top.columns is None and top.vectors.shape[0] == len(vectors):
        usable = np.cumprod(np.asarray(top.converged, dtype=bool) & np.isfinite(top.values))
        dimension = min(int(usable.sum()), len(values))
        if dimension:
            cosines = subspace_overlap(np.asarray(top.vectors, dtype=np.float64), vectors, dimension)
            found = {"hessian": float(np.mean(cosines**2)), "k_hessian": dimension, "cosines": cosines}
    if weights:
        parts = {name: vectors[block] * np.sqrt(values) for name, block in op.blocks.items() if len(op.shapes[name]) > 1}
        leaves = dict(zip(op.names, op.leaves, strict=True))
        every = {name: overlap_with_weight(leaves[name].detach().double().cpu().numpy(), part) for name, part in parts.items()}
        found["weights"] = {name: one for name, one in every.items() if one is not None}
    return Overlaps(directions=len(values), n_params=op.shape[0], **found)


def overlap_with_weight(weight: F64, directions: F64) -> WeightOverlap | None:
    """weight (m, ...), directions (P_l, k): the parts for it of k directions, scaled by their importance. Of a matrix M_j per direction, the left
    singular vectors of (M_1 .. M_k) side by side, and the right ones of M_1 .. M_k below each other, against those of the weight.

    None where the matrix is smaller than 4 x 4, or one of the two is zero."""
    w = weight.reshape(len(weight), -1)
    m, n = w.shape
    if min(m, n) < 4:
        return None
    each = directions.T.reshape(-1, m, n)
    rank = min(len(each), min(m, n) // 4)
    sides = (w, w.T, np.concatenate(list(each), axis=1), np.concatenate([x.T for x in each], axis=1))
    spaces = [_leading(side, rank) for side in sides]
    rank = min(space.shape[1] for space in spaces)
    if rank == 0:
        return None
    output, inputs = (float(np.mean(subspace_overlap(spaces[i], spaces[i + 2], rank) ** 2)) for i in (0, 1))
    return WeightOverlap(output, inputs, rank, (m, n))


def _leading(a: F64, rank: int) -> F64:
    """(m, r) leading left singular vectors, r <= rank of those whose singular values are not zero to rounding."""
    if min(a.shape) <= SMALL:
        # the side of the smaller dimension is what an SVD costs: of a wide matrix the triangular factor has the same left vectors
        u, s, _ = np.linalg.svd(np.asarray(np.linalg.qr(a.T, mode="r")).T if a.shape[1] > a.shape[0] else a, full_matrices=False)
    else:
        low = randomized_svd(a, rank, n_iter=4)
        u, s = low.u, low.s
    if not np.isfinite(s).all():
        return np.zeros((len(a), 0))
    return np.asarray(u[:, : min(rank, int(np.count_nonzero(s > 1e-12 * s[0])))])
