"""How large the Krylov bases of a curvature analysis may be within a memory limit: predicted before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..linalg.restart import SEARCH_ROWS, Ends, basis_size

__all__ = ["BasisPlan", "plan_basis", "predicted_bytes"]

ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2}
# Vectors alive in one product beside the basis: the one that is multiplied where it is a copy, the sum over batches, a batch's gradient, the product; in
# float64, or in single precision for the large models whose sums are (probing.operator.LARGE).
WORKING_VECTORS = 5


@dataclass(frozen=True)
class BasisPlan:
    """k, k_bottom: pairs at the ends. rows: of the eigensolver's bases; steps: of the density's probes; dtype: of the bases; polish: whether pairs may be
    computed again from their products where products are noisy. bytes: predicted peak of bases, eigenvectors and ``fixed``. notes: what was given up for the
    limit, in words."""

    k: int
    k_bottom: int
    rows: int
    steps: int
    dtype: str
    bytes: int
    polish: bool = True
    notes: tuple[str, ...] = ()


def predicted_bytes(n: int, k: int, k_bottom: int, rows: int, probes: int, dtype: str, work: int = 8, *, polish: bool = True) -> int:
    """The largest of the parts. One basis lives at a time, with room for a block of ``probes`` behind its rows; pairs stay in its memory. Beside the GGN's
    basis lie the Hessian's pairs; polishing takes pairs, products and a small basis. work: bytes of a working number."""
    total, item = k + k_bottom, ITEMSIZE[dtype]
    kept = max(item, 4)
    main = item * (rows + probes)
    ggn = kept * total + item * (min(rows, basis_size(n, Ends(top=k))) + 1)
    polished = kept * total + item * 3 * total + kept * 2 * total if polish else 0
    taken = (item * (rows + probes) if dtype == "bfloat16" else 0) + kept * total
    return n * (max(main, ggn, polished, taken) + work * WORKING_VECTORS)


def plan_basis(n: int, k: int, k_bottom: int, probes: int, steps: int, limit: int, fixed: int = 0, dtype: str = "float64") -> BasisPlan:
    """n: number of parameters. probes, steps: of the density. limit: bytes; fixed: those among them taken anyway (the graph of a batch). dtype: of the basis
    where there is room: that of the model.

    Degrades in this order: bases in float32; fewer rows, and fewer steps of the density with them; bfloat16; still fewer rows, without polishing; fewer
    pairs. Raises MemoryError, naming the need, when not even one pair at each end fits.
    """
    first = need = 0
    work = 8 if dtype == "float64" or n < 1 << 22 else 4
    for pairs, bottom in _fewer(k, k_bottom):
        full = max(basis_size(n, Ends(top=pairs, bottom=bottom)), min(n, probes * steps))
        for rows, stored, polish in _smaller(n, full, pairs + bottom, dtype):
            need = fixed + predicted_bytes(n, pairs, bottom, rows, probes, stored, work, polish=polish)
            first = first or need
            if need <= limit:
                why = f"all of it in {dtype} needs {first / 1e9:.3g} GB, {limit / 1e9:.3g} GB allowed (max_memory)"
                notes = [f"Krylov basis in {stored}: {why}"] if stored != dtype else []
                recurrence = max(1, min(steps, rows // probes))
                if rows < full:
                    notes.append(f"Krylov basis of {rows} rows instead of {full} (max_memory): more products are needed")
                if recurrence < min(steps, max(1, n // probes)):
                    notes.append(f"density from {recurrence} steps instead of {steps} (max_memory)")
                if (pairs, bottom) != (k, k_bottom):
                    notes.append(f"k = {pairs}, k_bottom = {bottom} instead of {k}, {k_bottom} (max_memory)")
                return BasisPlan(pairs, bottom, rows, recurrence, stored, need, polish, tuple(notes))
    raise MemoryError(f"needs {need / 1e9:.3g} GB for one eigenpair at each end of {n} parameters, {limit / 1e9:.3g} GB allowed (max_memory)")


def _fewer(k: int, k_bottom: int) -> Iterator[tuple[int, int]]:
    while True:
        yield k, k_bottom
        if k == 1 and k_bottom <= 1:
            return
        k = max(1, k // 2)
        k_bottom = min(k_bottom, k)


def _smaller(n: int, full: int, total: int, dtype: str) -> Iterator[tuple[int, str, bool]]:
    """(rows, dtype, polish), the best first."""
    easy, least = min(full, 2 * total + 24), min(full, n, total + SEARCH_ROWS)
    yield full, dtype, True
    for rows in range(full, easy - 1, -1):
        yield rows, "float32", True
    for rows in range(full, easy - 1, -1):
        yield rows, "bfloat16", True
    for rows in range(easy, least - 1, -1):
        yield rows, "bfloat16", False
