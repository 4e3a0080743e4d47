"""What a report consists of, before it is text or a page: sections of facts, tables, bars, notes and findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from .words import Column

if TYPE_CHECKING:
    from ..findings import Finding

__all__ = ["Bars", "Block", "Facts", "Findings", "Note", "Section", "Table"]


@dataclass(frozen=True)
class Facts:
    """Labelled values, one a line."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Columns of ready-made texts. caption stands above, legend (how to read it) below."""

    columns: Sequence[Column]
    caption: str = ""
    legend: str = ""

    @property
    def height(self) -> int:
        return len(self.columns[0].texts) if self.columns else 0


@dataclass(frozen=True)
class Bars:
    """A histogram: (label, share of the whole, in 0..1) from top to bottom. what: of which values."""

    rows: Sequence[tuple[str, float]]
    caption: str = ""
    legend: str = ""
    what: str = "eigenvalues"


@dataclass(frozen=True)
class Note:
    """A paragraph. lead: a word before it ("note", "skipped")."""

    text: str
    lead: str = ""


@dataclass(frozen=True)
class Findings:
    """Findings, already in the order to show."""

    findings: Sequence[Finding]

    @property
    def groups(self) -> list[list[Finding]]:
        """Findings that say the same of several places together, in the order of their first one."""
        together: dict[tuple[str, ...], list[Finding]] = {}
        for f in self.findings:
            together.setdefault((f.severity, f.title, f.source, f.analysis), []).append(f)
        return list(together.values())


Block: TypeAlias = "Facts | Table | Bars | Note | Findings"


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it. key: which analysis ("weights", "gradients", ...), for anchors and figures."""

    title: str
    blocks: Sequence[Block]
    key: str = ""
