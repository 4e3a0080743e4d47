"""A trajectory as a section and as panels: what moved, and how."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .blocks import Block, Facts, Note, Section, Table
from .panels import BLUE, dress, empty, title
from .words import Column, integer, number, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..trajectory import Trajectory

__all__ = ["TITLE", "chosen_series", "draw_series", "trajectory_section"]

TITLE = "Trajectory"
MOST_DRAWN = 12
_TABLE_ROWS = 40
_SHARES = ("accuracy", "nc4", "top_share", "gradient_in_top")


def trajectory_section(t: Trajectory) -> Section:
    steps = [p.step for p in t.points]
    span = f", steps {steps[0]:g} to {steps[-1]:g}" if steps else ""
    blocks: list[Block] = [Facts([("points", f"{integer(len(steps))}{span}"), ("series", integer(len(t.names)))])]
    moves = t.moves()
    if moves:
        shown = moves[:_TABLE_ROWS]
        blocks.append(
            Table(
                (
                    Column("series", [plain(m.name) for m in shown], "left"),
                    Column("first", [number(m.first, 4) for m in shown]),
                    Column("last", [number(m.last, 4) for m in shown]),
                    Column("factor", [number(m.factor, 3) if math.isfinite(m.factor) else "" for m in shown], drop=2),
                    Column("trend", [f"{m.trend:+.2f}" if math.isfinite(m.trend) else "" for m in shown], drop=1),
                ),
                caption="what moved most" + (f" ({len(shown)} of {len(moves)})" if len(shown) < len(moves) else ""),
                legend="trend: rank correlation with the step, -1 where a series only falls",
            )
        )
    else:
        blocks.append(Note("two results of different steps are needed before anything can have moved"))
    return Section(TITLE, blocks, "trajectory")


def chosen_series(t: Trajectory, names: str | Sequence[str] | None) -> list[str]:
    """Series to draw: those that match a glob or a list of globs, in the order of the patterns; None: those that moved most."""
    if names is None:
        moved = {m.name for m in t.moves()[:MOST_DRAWN]}
        return [name for name in t.names if name in moved]
    patterns = [names] if isinstance(names, str) else list(names)
    found = list(dict.fromkeys(name for pattern in patterns for name in t.names if fnmatch.fnmatchcase(name, pattern)))
    if not found:
        raise ValueError(f"names: nothing matches {', '.join(patterns)}; there are {', '.join(t.names[:20])}{', ...' if len(t.names) > 20 else ''}")
    return found


def draw_series(ax: Axes, t: Trajectory, name: str) -> None:
    steps, values = t.series(name)
    known = np.isfinite(values)
    title(ax, name)
    if not known.any():
        empty(ax, name, "no finite value")
        return
    ax.plot(steps[known], values[known], "-o", color=BLUE, markersize=4)
    positive = values[known][values[known] > 0]
    # a logarithmic axis where the series spans more than a decade, has no sign to show and is no share of something
    if len(positive) == known.sum() and positive.max() > 10 * positive.min() and name.rpartition(".")[2] not in _SHARES:
        ax.set_yscale("log")
    ax.set_xlabel("step")
    dress(ax)
