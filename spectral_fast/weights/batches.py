"""Singular values of weights: the one place of this package that calls the kernels, many matrices of one shape at a time.

Everything else here gets its values, and how exact they are, from these functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.select import select
from ..linalg.svd import svd_bound, svdvals
from ..metrics.rank import rank_tolerances, undecided

if TYPE_CHECKING:
    from ..metrics.random_matrix import PermutationNull
    from ..metrics.rank import StorageNoise
    from .structure import MatrixPlan

__all__ = ["Pending", "ShapeBatches", "SingularValues", "core_values"]

# Matrices of one shape are computed together up to this size and this many flops: a fraction of a second, so that progress is seen and
# an interruption loses little.
_BATCH_BYTES = 64 << 20
_BATCH_FLOPS = 1e9

F64 = NDArray[np.float64]
Shape = tuple[int, int]


@dataclass
class Pending:
    """A matrix on its way: what its entries told, and its values once they are there.

    s: (d_min,) descending, None until computed or where ``why`` says that they cannot be; bound: of every value's error. redone: a second time, with
    "high" accuracy, because "standard" left a rank or s_min open.
    """

    plan: MatrixPlan
    noise: StorageNoise
    s: F64 | None = None
    why: str = ""
    bound: float = float("nan")
    permutation: PermutationNull | None = None
    zero_rows: int = 0
    zero_columns: int = 0
    redone: bool = False


class SingularValues:
    """The kernel of one backend. backend: its name; exact: it keeps "high" accuracy whatever is asked."""

    def __init__(self, backend: str = "auto") -> None:
        self._kernel, self.backend = select("singular_values", backend)
        self.exact = self.backend == "numpy"

    def __call__(self, stack: NDArray[Any], accuracy: str = "high") -> tuple[F64, F64]:
        """(b, m, n) -> values (b, d_min), descending, and the bound of every value's error, alike. NaN where a matrix is not finite."""
        s = self._kernel(stack, accuracy=accuracy)
        return s, svd_bound(s, "high" if self.exact else accuracy)


def core_values(a: Any) -> F64:
    """Values (..., d_min) of small matrices (..., m, n), such as the cores of products of factors, as exact as can be had."""
    return np.asarray(svdvals(a, accuracy="high"), dtype=np.float64)


class ShapeBatches:
    """Matrices that wait for others of their shape."""

    def __init__(self, values: SingularValues) -> None:
        self._values = values
        self._waiting: dict[Shape, tuple[list[Pending], list[NDArray[Any]]]] = {}

    def add(self, pending: Pending, w: NDArray[Any]) -> bool:
        """Let ``w`` (m, n) wait. Returns whether its shape is now worth a call."""
        group, arrays = self._waiting.setdefault(pending.plan.shape, ([], []))
        group.append(pending)
        arrays.append(w)
        return len(arrays) * w.size * 8 > _BATCH_BYTES or len(arrays) * 4.0 * w.size * min(pending.plan.shape) > _BATCH_FLOPS

    def shapes(self) -> list[Shape]:
        """Shapes that still wait."""
        return list(self._waiting)

    def compute(self, shape: Shape) -> tuple[list[Pending], list[NDArray[Any]]]:
        """Fill in the values of all that wait with this shape; returns them with their matrices, and forgets them."""
        pending, arrays = self._waiting.pop(shape)
        self._compute(pending, arrays)
        return pending, arrays

    def _compute(self, pending: list[Pending], arrays: list[NDArray[Any]]) -> None:
        """The spectra of one batch; where that fails, of its matrices one by one, so that a bad one costs only itself."""
        stack = np.stack(arrays) if len(arrays) > 1 else arrays[0][None]
        try:
            values, bounds = self._values(stack, "standard")
            again = [] if self._values.exact else [i for i, p in enumerate(pending) if _undecided(p, values[i], bounds[i])]
            if again:
                values[again], bounds[again] = self._values(stack[again] if len(again) < len(stack) else stack, "high")
        except (MemoryError, np.linalg.LinAlgError) as e:
            if len(pending) > 1:
                for p, w in zip(pending, arrays, strict=True):
                    self._compute([p], [w])
            else:
                pending[0].why = "not enough memory for its singular values" if isinstance(e, MemoryError) else f"no singular values: {e}"
            return
        for i, p in enumerate(pending):
            p.s, p.bound, p.redone = values[i], float(bounds[i].max(initial=0.0)), i in again


def _undecided(p: Pending, s: F64, bound: F64) -> bool:
    """Whether "standard" accuracy leaves something open that "high" can decide: a rank (weightwatcher's rule too), or s_min."""
    shape = p.plan.shape
    rules = rank_tolerances(s, shape, p.plan.entry.dtype, storage_tol=p.noise.tolerance)
    return undecided(s, bound, (*rules.values(), rank_tolerances(s, shape, "float64")["numpy"]), p.noise.tolerance)
