"""The figure of a survey: histograms of the smallest singular values on a log axis, in all, by kind and by model; the share that lost rank by each rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..metrics.rank import RULES
from ..weights.surveyed import ASPECTS
from .panels import BLUE, GREY, ORANGE, dress, empty, legend, title
from .survey_sections import drawn_at
from .words import integer, plain, shorten_all

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from ..weights.surveyed import Survey, SurveyedMatrix

__all__ = ["COLUMNS", "draw", "rows_of_models"]

COLUMNS = 5
_MODELS_SHOWN = 60
_COLOURS = dict(zip(ASPECTS, (ORANGE, BLUE), strict=True))
_BIN_WIDTHS = (0.1, 0.2, 0.25, 0.5, 1.0)  # in decades
_BINS = 36
_DECADES = 16  # below the largest; what is smaller is drawn at the left end
_AXIS = "smallest singular value"
_LINES = {"loose": -3.0, "log8": -8.0}  # the absolute tolerances


@dataclass(frozen=True)
class _Scale:
    """The bins that all panels share, in log10. zero: the middle of the bar for what is exactly 0, left of the axis' break; None where nothing is."""

    edges: NDArray[np.float64]
    zero: float | None
    clipped: int

    @property
    def width(self) -> float:
        return float(self.edges[1] - self.edges[0])

    @property
    def left(self) -> float:
        return float(self.edges[0]) - self.width / 2 if self.zero is None else self.zero - self.width


def rows_of_models(s: Survey) -> int:
    """Rows of small panels, one for each model; none where there is but one."""
    return math.ceil(min(len(s.models), _MODELS_SHOWN) / COLUMNS) if len(s.models) > 1 else 0


def draw(figure: Figure, s: Survey) -> None:
    """Everything, on an empty figure: all matrices above, their kinds in the middle, models below."""
    if not s.matrices:
        empty(figure.subplots(), "survey", s.reason or "no matrix")
        return
    scale = _scale(s.matrices)
    kinds = [g.name for g in s.shares if g.by == "kind"]
    rows = rows_of_models(s)
    heights = [4.6, 2.2, *([1.75 * rows + 0.3] if rows else [])]
    parts: list[SubFigure] = list(np.asarray(figure.subfigures(len(heights), 1, height_ratios=heights, hspace=0.02), dtype=object).flat)
    left, right = np.asarray(parts[0].subfigures(1, 2, width_ratios=[1.9, 1.0]), dtype=object)
    upper, lower = left.subplots(2, 1, sharex=True)
    for ax, aspect in zip((upper, lower), reversed(ASPECTS), strict=True):
        _overall(ax, [m for m in s.matrices if m.aspect == aspect], aspect, scale)
    upper.xaxis.label.set_visible(False)
    _shares(right.subplots(), s)
    _multiples(parts[1], [(kind, [m for m in s.matrices if m.kind == kind]) for kind in kinds], scale, max(COLUMNS, len(kinds)))
    if rows:
        _multiples(parts[2], [(model.name, model.matrices) for model in s.models[:_MODELS_SHOWN]], scale, COLUMNS)
        if len(s.models) > _MODELS_SHOWN:
            parts[2].suptitle(f"first {_MODELS_SHOWN} of {len(s.models)} checkpoints", x=0.01, ha="left", fontsize=9)


def _multiples(part: SubFigure, groups: Sequence[tuple[str, Sequence[SurveyedMatrix]]], scale: _Scale, columns: int) -> None:
    """A small panel for each group; the axis is named below the last of every column."""
    axes = list(part.subplots(math.ceil(len(groups) / columns), columns, squeeze=False).flat)
    names = shorten_all([plain(name) for name, _ in groups], 130 // columns, dotted=False)
    for i, (ax, name, (_, matrices)) in enumerate(zip(axes, names, groups, strict=False)):
        _small(ax, f"{name} ({integer(len(matrices))})", matrices, scale)
        ax.xaxis.label.set_visible(i + columns >= len(groups))
    for ax in axes[len(groups) :]:
        ax.remove()


def _scale(matrices: Sequence[SurveyedMatrix]) -> _Scale:
    values = np.log10([drawn_at(m) for m in matrices if not m.exactly_singular])
    if not values.size:
        values = np.array([0.0])
    high = float(values.max())
    low = max(float(values.min()), high - _DECADES)
    width = next((w for w in _BIN_WIDTHS if (high - low) / w <= _BINS), _BIN_WIDTHS[-1])
    first, last = math.floor(low / width), math.floor(high / width) + 1
    edges = np.arange(first, last + 1, dtype=np.float64) * width
    zero = edges[0] - 2.5 * width if any(m.exactly_singular for m in matrices) else None
    return _Scale(edges, zero, int(np.count_nonzero(values < edges[0])))


def _bars(ax: Axes, matrices: Sequence[SurveyedMatrix], scale: _Scale) -> None:
    """Stacked: what is known, then what only has an upper limit (hatched), for each class of aspect ratios; what is exactly 0 at the left."""
    middles = (scale.edges[:-1] + scale.edges[1:]) / 2
    base, at_zero = np.zeros(len(middles)), 0
    for aspect in reversed(ASPECTS):
        colour = _COLOURS[aspect]
        of_aspect = [m for m in matrices if m.aspect == aspect]
        for unresolved in (False, True):
            found = [m for m in of_aspect if m.unresolved == unresolved and not m.exactly_singular]
            counts = np.histogram(np.maximum(np.log10([drawn_at(m) for m in found]), middles[0]), scale.edges)[0] if found else np.zeros(len(middles), int)
            face, edge, hatch = ("white", colour, "//////") if unresolved else (colour, "white", None)
            there = counts > 0
            ax.bar(middles[there], counts[there], scale.width, bottom=base[there], linewidth=0.6, facecolor=face, edgecolor=edge, hatch=hatch)
            base = base + counts
        singular = sum(m.exactly_singular for m in of_aspect)
        if singular and scale.zero is not None:
            ax.bar([scale.zero], [singular], scale.width, bottom=[at_zero], facecolor=colour, edgecolor="black", linewidth=0.8)
            at_zero += singular
    ax.set_ylim(0, 1.15 * max(base.max(initial=0), at_zero, 1))


def _dress_histogram(ax: Axes, scale: _Scale, ticks: int) -> None:
    from matplotlib.ticker import MaxNLocator

    dress(ax)
    ax.grid(False, axis="x")
    ax.set_xlim(scale.left, scale.edges[-1] + scale.width / 2)
    first, last = math.ceil(scale.edges[0] - 1e-9), math.floor(scale.edges[-1] + 1e-9)
    step = max(1, math.ceil((last - first) / ticks))
    decades = list(range(last, first - 1, -step))[::-1]
    places: list[float] = [*([] if scale.zero is None else [scale.zero]), *decades]
    ax.set_xticks(places, [*([] if scale.zero is None else ["0"]), *(f"$10^{{{d}}}$" for d in decades)])
    ax.yaxis.set_major_locator(MaxNLocator(4 if ticks > 5 else 3, integer=True, min_n_ticks=1))


def _overall(ax: Axes, matrices: Sequence[SurveyedMatrix], aspect: str, scale: _Scale) -> None:
    from matplotlib.patches import Patch

    _bars(ax, matrices, scale)
    _dress_histogram(ax, scale, 12)
    title(ax, f"{integer(len(matrices))} {'matrix' if len(matrices) == 1 else 'matrices'} with {aspect.replace('>=', '≥')}")
    for name, at in _LINES.items():
        if scale.edges[0] < at < scale.edges[-1]:
            ax.axvline(at, color=GREY, linestyle="--", linewidth=1.0)
            ax.annotate(name, (at, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -2), textcoords="offset points", va="top", fontsize=8, color="#555555")
    colour = _COLOURS[aspect]
    limits, singular = sum(m.unresolved for m in matrices), sum(m.exactly_singular for m in matrices)
    handles = [Patch(facecolor=colour, label=f"{integer(len(matrices) - limits - singular)} above the noise")]
    if limits:
        handles.append(Patch(facecolor="white", edgecolor=colour, hatch="//////", label=f"{integer(limits)} within it: upper limit"))
    if singular:
        handles.append(Patch(facecolor=colour, edgecolor="black", label=f"{integer(singular)} exactly 0"))
    legend(ax, handles=handles, loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=3, borderaxespad=0.0, columnspacing=1.0, handlelength=1.6)
    ax.set_ylabel("matrices", fontsize=9)
    clipped = f" ({integer(scale.clipped)} below the axis stand at its left end)" if scale.clipped else ""
    ax.set_xlabel(_AXIS + clipped, fontsize=9)


def _small(ax: Axes, heading: str, matrices: Sequence[SurveyedMatrix], scale: _Scale) -> None:
    _bars(ax, matrices, scale)
    _dress_histogram(ax, scale, 3)
    ax.set_title(heading, parse_math=False, loc="left", fontsize=8.5, fontweight="bold")
    ax.set_xlabel(_AXIS, fontsize=7.5)
    ax.tick_params(labelsize=7.5)


def _shares(ax: Axes, s: Survey) -> None:
    """Share of collapsed matrices under every rule with its interval, for both classes of aspect ratios."""
    y = np.arange(len(RULES))[::-1].astype(float)
    highest = 0.0
    for aspect, offset in zip(reversed(ASPECTS), (0.16, -0.16), strict=True):
        g = s.share("aspect", aspect)
        if not g.matrices:
            continue
        share, low, high = (100 * np.array([d[rule] for rule in RULES]) for d in (g.share, g.low, g.high))
        highest = max(highest, float(high.max()))
        colour, name = _COLOURS[aspect], aspect.replace(">=", "≥")
        ax.errorbar(share, y + offset, xerr=[share - low, high - share], fmt="o", color=colour, markersize=5, capsize=2.5, linewidth=1.2, label=name)
        for rule, at, end in zip(RULES, y + offset, high, strict=True):
            text = f"{integer(g.collapsed[rule])} of {integer(g.matrices)}"
            ax.annotate(text, (float(end), float(at)), xytext=(5, 0), textcoords="offset points", va="center", fontsize=7.5, color="#444444")
    ax.set_yticks(y, [rule.replace("_", " ") for rule in RULES])
    ax.set_ylim(-0.6, len(RULES) - 0.1)
    ax.set_xlim(-0.03 * highest, 1.3 * highest)
    title(ax, "matrices that lost rank, by rule")
    ax.set_xlabel("share of matrices in %, with 95 % intervals", fontsize=9)
    dress(ax)
    ax.grid(False, axis="y")
    legend(ax, loc="upper right", ncols=2)
