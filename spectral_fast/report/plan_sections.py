"""What a scan will cost, as a section."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..memory import byte_size
from .blocks import Block, Facts, Note, Section, Table
from .weight_sections import skipped_notes
from .words import Column, duration, integer, number, plain

if TYPE_CHECKING:
    from ..weights.plan import ScanPlan

__all__ = ["plan_section"]

_SHAPES_SHOWN = 20


def plan_section(p: ScanPlan) -> Section:
    facts = [
        ("source", plain(p.source)),
        ("matrices", f"{integer(p.matrices)} of {integer(p.parameters)} entries"),
        ("operations", f"{number(p.flops / 1e9)} GFLOP"),
        ("to be read", byte_size(p.nbytes)),
        ("memory", f"at least {byte_size(p.memory)}, at most {byte_size(p.limit)} (max_memory)"),
        ("expected time", f"about {duration(p.seconds)} here, reading not counted"),
    ]
    if p.status != "ok":
        facts.insert(1, ("status", f"{p.status}: {plain(p.reason)}"))
    blocks: list[Block] = [Facts(facts)]
    shown = p.shapes[:_SHAPES_SHOWN]
    if shown:
        columns = (
            Column("shape", [f"{c.shape[0]} x {c.shape[1]}" for c in shown]),
            Column("matrices", [integer(c.matrices) for c in shown]),
            Column("GFLOP", [number(c.flops / 1e9) for c in shown]),
            Column("time", [duration(c.seconds) for c in shown]),
        )  # fmt: skip
        blocks.append(Table(columns, "by shape, the most expensive first"))
    if len(p.shapes) > len(shown):
        blocks.append(Note(f"and {integer(len(p.shapes) - len(shown))} more shapes", "note"))
    return Section("WHAT THIS SCAN WILL COST", [*blocks, *skipped_notes(p.skipped)], "plan")
