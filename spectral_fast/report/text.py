"""Results as plain text: deterministic, aligned, at most ``width`` columns, no control characters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .blocks import Bars, Block, Facts, Findings, Note, Section, Table
from .sections import sections
from .words import fact, paragraph, plain, share, table

if TYPE_CHECKING:
    from ..findings import Finding
    from ..results import Result

__all__ = ["BANNER", "render", "summarize"]

BANNER = ("=" * 50, "NEURAL NETWORK EIGENVALUE ANALYSIS", "=" * 50)

_INDENT = 3
_LABEL_ROOM = 19
_MATRICES_SHOWN = 300


def summarize(result: Result, *, width: int = 120) -> str:
    """The result in words.

    result: any result of this package. width: columns; tables drop columns that do not fit and name them.
    Raises TypeError for another class.
    """
    whole = type(result).__name__ in ("Diagnosis", "WeightSpectra")
    lines = list(BANNER) if whole else []
    if whole and result.status != "ok":
        lines += paragraph(f"{result.status}: {result.reason}", width)
    for section in sections(result, rows=_MATRICES_SHOWN):
        lines += ["", *render(section, width)] if lines else render(section, width)
    if whole:
        lines += ["", "=" * 50]
    return "\n".join(lines)


def render(section: Section, width: int) -> list[str]:
    """A section as lines: its title, then its blocks, indented."""
    lines = [section.title]
    before: Block | None = None
    for block in section.blocks:
        spaced = isinstance(block, (Table, Bars)) or isinstance(before, (Table, Bars))
        if before is not None and spaced:
            lines.append("")
        lines += _block(block, width)
        before = block
    return lines


def _block(block: Block, width: int) -> list[str]:
    if isinstance(block, Facts):
        return [line for label, value in block.pairs for line in fact(label, value, width, _INDENT, _LABEL_ROOM)]
    if isinstance(block, Note):
        return paragraph(block.text, width, _INDENT, lead=f"{block.lead}: " if block.lead else "", hang=_INDENT + 2)
    if isinstance(block, Table):
        return _captioned(block.caption, table(block.columns, width, _INDENT), block.legend, width)
    if isinstance(block, Bars):
        return _captioned(block.caption, _bars(block, width), block.legend, width)
    return _findings(block, width)


def _captioned(caption: str, body: list[str], legend: str, width: int) -> list[str]:
    head = paragraph(f"{caption}:", width, _INDENT) if caption else []
    return head + body + (paragraph(legend, width, _INDENT) if legend else [])


def _bars(block: Bars, width: int) -> list[str]:
    room = max(len(label) for label, _ in block.rows)
    longest = max(10, min(50, width - room - _INDENT - 12))
    most = max(value for _, value in block.rows) or 1.0
    lines = []
    for label, value in block.rows:
        # A bar of at least one mark for whatever is there: outliers of weight 1/n are what one looks for.
        marks = max(1, round(longest * value / most)) if value > 0 else 0
        lines.append(f"{'':{_INDENT}}{label:>{room}}  {share(value, 2):>8}  {'#' * marks}".rstrip())
    return lines


def _findings(block: Findings, width: int) -> list[str]:
    lines: list[str] = []
    for i, group in enumerate(block.groups, start=1):
        f = group[0]
        where = plain(f.where) if len(group) == 1 else f"{len(group)} places"
        lines += [""] if i > 1 else []
        lines += paragraph(f"{f.severity.upper()}  {where}: {plain(f.title)}", width, lead=f"{i:>3}. ")
        same_advice = len({g.advice for g in group}) == 1
        if len(group) == 1:
            facts = [("evidence", f.evidence), ("compared", f.comparison)]
        else:
            facts = [("at", _place(g, with_advice=not same_advice)) for g in group]
        if same_advice:
            facts.append(("advice", f.advice))
        for label, text in (*facts, ("source", f.source)):
            if text:
                lines += fact(label, text, width, indent=5, room=10)
    return lines


def _place(f: Finding, with_advice: bool) -> str:
    """One of several places of a finding in a line."""
    rest = [t for t in (f.comparison, f.advice if with_advice else "") if t]
    return f"{plain(f.where)}: {f.evidence}" + (f" ({'; '.join(rest)})" if rest else "")
