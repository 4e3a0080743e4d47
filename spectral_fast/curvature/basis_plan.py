"""How large the Krylov bases of a curvature analysis may be within a memory limit: predicted before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..linalg.restart import Ends, basis_size

__all__ = ["BasisPlan", "plan_basis"]

WORKING_VECTORS = 6  # float64 vectors alive in one product: v and its cast, the sum over batches, a batch's gradient, the product and its copy


@dataclass(frozen=True)
class BasisPlan:
    """k, k_bottom: pairs at the ends. rows: of the eigensolver's bases; steps: of the density's recurrences; dtype: of both.
    bytes: predicted peak of bases, eigenvectors and ``fixed``. notes: what was given up for the limit, in words."""

    k: int
    k_bottom: int
    rows: int
    steps: int
    dtype: str
    bytes: int
    notes: tuple[str, ...] = ()


def predicted_bytes(n: int, k: int, k_bottom: int, rows: int, steps: int, itemsize: int) -> int:
    """The largest of the three parts. One basis lives at a time; beside it the pairs taken from it, or, while pairs are polished, as many
    rows more, the pairs, their products and better ones; and the eigenvectors of the results made before, all in float64."""
    total = k + k_bottom
    hessian = max(itemsize * (max(rows, steps) + 1 + total) + 8 * total, itemsize * (rows + 1 + total) + 8 * 3 * total)
    ggn = itemsize * (rows + 1 + k) + 8 * (3 * k + total)
    density = itemsize * (steps + 1) + 8 * (total + k)
    return n * (max(hessian, ggn, density) + 8 * WORKING_VECTORS)


def plan_basis(n: int, k: int, k_bottom: int, steps: int, limit: int, fixed: int = 0) -> BasisPlan:
    """n: number of parameters. limit: bytes; fixed: those among them taken anyway (the graph of a batch).

    Degrades in this order: bases in float32; fewer rows, and fewer steps of the density with them; fewer pairs. Raises MemoryError,
    naming the need, when not even one pair at each end fits.
    """
    first = need = 0
    for pairs, bottom in _fewer(k, k_bottom):
        full = basis_size(n, Ends(top=pairs, bottom=bottom))
        for rows, recurrence, dtype, itemsize in _smaller(n, full, pairs + bottom, steps):
            need = fixed + predicted_bytes(n, pairs, bottom, rows, recurrence, itemsize)
            first = first or need
            if need <= limit:
                why = f"all of it in float64 needs {first / 1e9:.3g} GB, {limit / 1e9:.3g} GB allowed (max_memory)"
                notes = [f"Krylov basis in {dtype}: {why}"] if dtype != "float64" else []
                if rows < full:
                    notes.append(f"Krylov basis of {rows} rows instead of {full} (max_memory): more products are needed")
                if recurrence < steps:
                    notes.append(f"density from {recurrence} steps instead of {steps} (max_memory)")
                if (pairs, bottom) != (k, k_bottom):
                    notes.append(f"k = {pairs}, k_bottom = {bottom} instead of {k}, {k_bottom} (max_memory)")
                return BasisPlan(pairs, bottom, rows, recurrence, dtype, need, tuple(notes))
    raise MemoryError(f"needs {need / 1e9:.3g} GB for one eigenpair at each end of {n} parameters, {limit / 1e9:.3g} GB allowed (max_memory)")


def _fewer(k: int, k_bottom: int) -> Iterator[tuple[int, int]]:
    while True:
        yield k, k_bottom
        if k == 1 and k_bottom <= 1:
            return
        k = max(1, k // 2)
        k_bottom = min(k_bottom, k)


def _smaller(n: int, full: int, total: int, steps: int) -> Iterator[tuple[int, int, str, int]]:
    """(rows, steps, dtype, itemsize), the best first."""
    yield full, steps, "float64", 8
    most, least = max(full, steps), min(n, total + max(6, total // 2))
    for rows in range(most, min(most, least) - 1, -1):
        yield min(full, rows), min(steps, rows), "float32", 4
