"""A low-rank factorization as a section: its values, matrix by matrix, and how far it may be off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .blocks import Block, Facts, Note, Section, Table
from .words import Column, integer, number, plain

if TYPE_CHECKING:
    from ..linalg.lowrank import LowRankSVD

__all__ = ["lowrank_section"]

_MATRICES_SHOWN = 20
_VALUES_SHOWN = 12


def lowrank_section(r: LowRankSVD) -> Section:
    s = np.asarray(r.s, dtype=np.float64)
    many = s.reshape(-1, s.shape[-1]) if s.size else s.reshape(0, s.shape[-1])
    errors, ranks = np.asarray(r.error, dtype=np.float64).reshape(-1), np.asarray(r.ranks).reshape(-1)
    m, n = np.shape(r.u)[-2], np.shape(r.vt)[-1]
    facts = [("matrices", f"{integer(len(many))} of {m} x {n}"), ("triplets", f"at most {integer(s.shape[-1])}")]
    if r.status != "ok":
        facts.insert(0, ("status", f"{r.status}: {plain(r.reason)}"))
    blocks: list[Block] = [Facts(facts)]
    if len(many) == 1:
        shown = min(int(ranks[0]), _VALUES_SHOWN)
        values = (Column("#", [str(k + 1) for k in range(shown)]), Column("singular value", [number(v, 6) for v in many[0, :shown]]))
        blocks.append(Table(values, "leading singular values", f"spectral norm of what is left: at most {number(errors[0], 3)}"))
        if ranks[0] > shown:
            blocks.append(Note(f"and {integer(int(ranks[0]) - shown)} more", "note"))
    elif len(many):
        rows = range(min(len(many), _MATRICES_SHOWN))
        columns = (
            Column("matrix", [str(i) for i in rows]),
            Column("triplets", [integer(int(ranks[i])) for i in rows]),
            Column("largest value", [number(many[i, 0], 6) if many.shape[1] else "" for i in rows]),
            Column("what is left", [number(errors[i], 3) for i in rows]),
        )  # fmt: skip
        blocks.append(Table(columns, "matrices", "what is left: a bound on its spectral norm"))
        if len(many) > len(rows):
            blocks.append(Note(f"and {integer(len(many) - len(rows))} more", "note"))
    return Section("LEADING SINGULAR TRIPLETS", blocks, "lowrank")
