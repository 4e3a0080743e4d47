"""Single panels: each function draws one result on one matplotlib Axes.

Colours are those of Okabe & Ito (2008), which remain distinct for colour-blind readers. Names are data: never read as mathematics or markup.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .words import number, plain, plus_minus, shape_text, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..collapse import NeuralCollapse
    from ..curvature.spectra import CurvatureSpectra
    from ..gradients import GradientSpectrum
    from ..linalg.density import SpectralDensity
    from ..linalg.eigsh import EigenResult
    from ..linalg.lowrank import LowRankSVD
    from ..weights.spectra import MatrixSpectrum

__all__ = ["BLUE", "collapse_bars", "density", "empty", "esd", "layer_bars", "leading_values", "pairs", "scree", "singular_values", "title"]

BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#8a8a8a"

_LINES_WITH_LEGEND = 7
_LAYERS_SHOWN = 14
_MATRICES_DRAWN = 50
_FAR = 1e3  # a noise floor so many times below the data is named in the legend, not drawn
_ALIKE = 3.0  # times: tolerances so close to each other are drawn as one band


def title(ax: Axes, text: str, width: int = 62) -> None:
    """Heading of a panel; dollar signs in names are dollar signs."""
    ax.set_title(shorten(plain(text), width), parse_math=False, loc="left", fontsize=10.5, fontweight="bold")


def dress(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.grid(True, which="major", color="#d9d9d9", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8.5, color=GREY)


def legend(ax: Axes, **options: Any) -> None:
    found = ax.legend(fontsize=8, facecolor="white", framealpha=0.85, edgecolor="none", **options)
    for text in found.get_texts():
        text.set_parse_math(False)


def _limits(ax: Axes, bottom: float, top: float, legend_lines: int) -> None:
    """Limits of a log axis that leave the legend's room above the data: a line of it takes about 7 % of the panel."""
    ax.set_ylim(bottom, top * (top / bottom) ** (1 / (1 - min(0.5, 0.05 + 0.07 * legend_lines)) - 1))


def label(name: str, width: int = 34) -> str:
    """A name for a legend; matplotlib hides labels that start with an underscore."""
    text = shorten(plain(name), width)
    return f" {text}" if text.startswith("_") else text


def empty(ax: Axes, heading: str, why: str) -> None:
    title(ax, heading)
    ax.set_axis_off()
    ax.text(0.0, 0.92, shorten(plain(why), 80), transform=ax.transAxes, ha="left", va="top", fontsize=9, color="#555555", parse_math=False, wrap=True)


def esd(ax: Axes, m: MatrixSpectrum) -> None:
    """Empirical spectral density of s² on log axes, its power-law tail, and a random matrix of the same shape and mean square."""
    with np.errstate(over="ignore"):
        evals, floor = np.square(np.asarray(m.s, dtype=np.float64)), np.square(m.rank_tolerances.get("storage", 0.0))
    if not np.isfinite(evals).all():
        empty(ax, f"{m.name}: density of s²", m.reason or "the squares of its singular values are beyond the range of float64")
        return
    shown = evals[(evals > floor) & np.isfinite(evals) & (evals > 0)]
    title(ax, f"{m.name}  {shape_text(m.shape)}: density of s²")
    if shown.size < 2 or shown.min() == shown.max():
        empty(ax, f"{m.name}: density of s²", m.reason or "fewer than two different values above the rounding noise")
        return
    low, high = math.log10(shown.min()), math.log10(shown.max())
    edges = np.logspace(low, high + 1e-9, int(np.clip(2 * math.sqrt(shown.size), 12, 70)) + 1)
    counts, _ = np.histogram(shown, edges)
    heights = counts / (np.diff(edges) * shown.size)
    bottom = heights[heights > 0].min() / 3
    ax.stairs(np.maximum(heights, bottom), edges, baseline=bottom, fill=True, color=SKY, alpha=0.45, label=f"{shown.size} eigenvalues")
    ax.stairs(np.maximum(heights, bottom), edges, baseline=bottom, color=BLUE, linewidth=1.0)
    curve = _marchenko_pastur(m.shape, float(np.mean(evals)) / max(m.shape)) if len(m.s) == min(m.shape) else None  # not for products of factors
    if curve is not None:
        inside = curve[1] > bottom
        ax.plot(curve[0][inside], curve[1][inside], color=GREY, linewidth=1.4, label="random matrix (Marchenko-Pastur)")
    fit, top = m.power_law, heights.max()
    if fit.status == "ok" and math.isfinite(fit.alpha):
        x = np.geomspace(fit.xmin, shown.max(), 50)
        tail_share = np.count_nonzero(shown >= fit.xmin) / shown.size
        y = tail_share * (fit.alpha - 1) / fit.xmin * (x / fit.xmin) ** -fit.alpha
        top = max(top, y[0])
        ax.plot(x, y, color=VERMILLION, linewidth=2, label=f"tail: alpha = {plus_minus(fit.alpha, fit.stderr)}")
        ax.vlines(fit.xmin, bottom, heights.max(), color=VERMILLION, linestyle=":", linewidth=1.2, label=f"xmin = {number(fit.xmin, 3)}")
    ax.set_xscale("log")
    ax.set_yscale("log")
    _limits(ax, bottom, top, legend_lines=2)
    stretch = (shown.max() / shown.min()) ** 0.06
    ax.set_xlim(shown.min() / stretch, shown.max() * stretch)
    ax.set_xlabel("eigenvalue of WᵀW")
    ax.set_ylabel("density")
    dress(ax)
    legend(ax, loc="upper right", ncols=2, columnspacing=1.2)


def _marchenko_pastur(shape: tuple[int, int], var: float) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Density of the eigenvalues of WᵀW for entries of variance ``var`` (Marchenko & Pastur 1967), on a log grid."""
    d_max, d_min = max(shape), min(shape)
    if not var > 0 or d_min < 2:
        return None
    upper = (math.sqrt(d_max) + math.sqrt(d_min)) ** 2 * var
    lower = (math.sqrt(d_max) - math.sqrt(d_min)) ** 2 * var
    x = np.geomspace(max(lower, upper * 1e-8), upper, 400)
    inside = np.sqrt(np.maximum((upper - x) * (x - lower), 0.0))
    return x, inside / (2 * math.pi * var * d_min * x)


def singular_values(ax: Axes, matrices: Sequence[MatrixSpectrum], selected: str | None = None) -> None:
    """Singular values of every matrix over their rank (0..1), log axis, with the storage tolerances."""
    drawn = [m for m in matrices if m.status != "failed" and len(m.s) and m.s[0] > 0]
    if not drawn:
        empty(ax, "singular values", "no matrix with a spectrum")
        return
    few = len(drawn) <= _LINES_WITH_LEGEND
    colours = _sequence(len(drawn))
    tolerances = [t for m in drawn if (t := m.rank_tolerances.get("storage", 0.0)) > 0]
    smallest = min(float(m.s[m.s > 0].min()) for m in drawn)
    # Values at and below the tolerance are drawn just below it; a tolerance far below all values is named instead of drawn.
    near = bool(tolerances) and smallest < _FAR * max(tolerances)
    bottom = min(tolerances) / 3 if near else smallest / 2
    for m, colour in zip(drawn, colours, strict=True):
        x = np.arange(1, len(m.s) + 1) / (min(m.shape) if m.status == "incomplete" else len(m.s))
        chosen = m.name == selected and len(drawn) > 1
        style = {"color": VERMILLION, "linewidth": 2.4, "zorder": 3} if chosen else {"color": colour, "linewidth": 1.4 if few else 0.9}
        ax.plot(x, np.maximum(m.s, bottom), label=label(m.name) if few or chosen else None, marker="." if len(m.s) < 40 else None, **style)
    if near and max(tolerances) > _ALIKE * min(tolerances):  # each has its own: those of other matrices say nothing of it
        named = "at or below its own storage tolerance (rounding noise)"
        for m in drawn:
            below = m.s <= m.rank_tolerances.get("storage", 0.0)
            if below.any():
                x = np.arange(1, len(m.s) + 1) / (min(m.shape) if m.status == "incomplete" else len(m.s))
                ax.plot(x[below], np.maximum(m.s[below], bottom), color=ORANGE, alpha=0.5, linewidth=5, solid_capstyle="butt", zorder=0, label=named)
                named = "_"
    elif near:
        ax.axhspan(min(tolerances), max(tolerances), color=ORANGE, alpha=0.35, linewidth=1.5, label="storage tolerance (rounding noise)", zorder=0)
    elif tolerances:
        ax.plot([], [], " ", label=f"storage tolerance: {number(max(tolerances), 2)} (below)")
    ax.set_yscale("log")
    _limits(ax, bottom, max(float(m.s[0]) for m in drawn), legend_lines=math.ceil(((len(drawn) if few else 1) + 1) / 2))
    ax.set_xlim(0, 1.0)
    ax.set_xlabel("index / number of singular values")
    ax.set_ylabel("singular value")
    title(ax, f"singular values of {len(drawn)} {'matrix' if len(drawn) == 1 else 'matrices'}" + ("" if few else " (dark: first, light: last)"))
    dress(ax)
    legend(ax, loc="upper right", ncols=2, columnspacing=1.2)


def _sequence(count: int) -> list[Any]:
    if count <= _LINES_WITH_LEGEND:
        return [BLUE, GREEN, PURPLE, SKY, ORANGE, "#000000", GREY][:count]
    from matplotlib import colormaps

    return [colormaps["viridis"](0.92 * i / (count - 1)) for i in range(count)]


def density(ax: Axes, d: SpectralDensity | None, c: CurvatureSpectra | None = None) -> None:
    """Smoothed density on a log axis; single eigenvalues as ticks, because an outlier's weight of 1/n is easily missed."""
    title(ax, "Hessian: density of eigenvalues" if c is not None else "density of eigenvalues")
    heights = np.zeros(0)
    if d is not None:
        grid, heights = np.asarray(d.grid), np.asarray(d.density)
        # An eigenvalue of weight 1/n smoothed with width w peaks at 1/(n w sqrt(2 pi)).
        single = 1.0 / (c.n_params * d.width * math.sqrt(2 * math.pi)) if c is not None and d.width > 0 else heights.max() * 1e-6
        bottom = max(min(single * 0.2, heights.max() * 1e-2), heights.max() * 1e-12)
        drawn = np.where(heights > bottom, heights, np.nan)
        ax.fill_between(grid, drawn, bottom, color=SKY, alpha=0.45)
        ax.plot(grid, drawn, color=BLUE, linewidth=1.3, label=f"SLQ, Gaussians of width {number(d.width, 2)}")
        ax.set_yscale("log")
        _limits(ax, bottom, heights.max(), legend_lines=2)
    if c is not None:
        for found, colour, name, height in (
            (c.hessian_top, VERMILLION, "H, largest", 0.035),
            (c.hessian_bottom, PURPLE, "H, smallest", 0.035),
            (c.ggn_top, GREEN, "GGN, largest", 0.10),
        ):
            if found is not None and len(found.values):
                heights_shown = [height] * len(found.values)
                ax.plot(found.values, heights_shown, "|", ms=9, mew=1.6, color=colour, label=name, transform=ax.get_xaxis_transform())
    ax.set_xlabel("eigenvalue")
    ax.set_ylabel("density")
    dress(ax)
    legend(ax, loc="upper right", ncols=2, columnspacing=1.2)


def pairs(ax: Axes, e: EigenResult) -> None:
    """Eigenvalues in order with their true residuals as error bars; open marks did not converge."""
    index = np.arange(1, len(e.values) + 1)
    values, residuals, good = np.asarray(e.values), np.asarray(e.residuals), np.asarray(e.converged, dtype=bool)
    ax.errorbar(index, values, yerr=residuals, fmt="none", ecolor=GREY, capsize=3)
    ax.plot(index[good], values[good], "o", color=BLUE, label="converged")
    if not good.all():
        ax.plot(index[~good], values[~good], "o", color=VERMILLION, markerfacecolor="white", label="not converged")
    ax.margins(y=0.2)
    title(ax, "eigenvalues (bars: residuals)")
    ax.set_xlabel("index")
    ax.set_ylabel("eigenvalue")
    dress(ax)
    legend(ax, loc="best")


def leading_values(ax: Axes, r: LowRankSVD) -> None:
    """Leading singular values, a line per matrix."""
    s = np.asarray(r.s, dtype=np.float64)
    ranks = np.asarray(r.ranks).reshape(-1)
    title(ax, "leading singular values")
    if not s.size or not ranks.any():
        empty(ax, "leading singular values", "none")
        return
    many = s.reshape(len(ranks), -1)
    for i in range(min(len(ranks), _MATRICES_DRAWN)):
        ax.plot(np.arange(1, ranks[i] + 1), many[i, : ranks[i]], color=BLUE, marker=".", linewidth=1.2, alpha=1.0 if len(ranks) == 1 else 0.5)
    if (many[:, 0] > 0).all() and many[many > 0].max() > 10 * many[many > 0].min():
        ax.set_yscale("log")
    ax.set_xlabel("index")
    ax.set_ylabel("singular value")
    dress(ax)


def scree(ax: Axes, g: GradientSpectrum) -> None:
    """Eigenvalues of the gradient covariance on log axes, and the level that rounding of the Gram matrix reaches."""
    values = np.asarray(g.eigenvalues, dtype=np.float64)
    title(ax, f"gradient {'covariance' if g.centered else 'second moment'}: eigenvalues")
    if not values.size or not values[0] > 0:
        empty(ax, "gradient covariance", "no positive eigenvalue")
        return
    floor = g.noise_floor
    shown = values[values > floor] if (values > floor).any() else values[:1]
    ax.plot(np.arange(1, shown.size + 1), shown, color=BLUE, marker="." if shown.size < 300 else None, markersize=4, linewidth=1.2)
    ax.axvspan(0.9, min(10, shown.size) + 0.5, color=ORANGE, alpha=0.18, linewidth=0, label=f"top 10: {100 * g.top_share:.0f} % of the trace")
    hidden = values.size - shown.size
    near = 0 < floor < shown[-1] < _FAR * floor
    bottom = floor / 3 if near else shown[-1] / 3
    noise = f"rounding noise: {number(floor, 2)}" + (f", {hidden} eigenvalues below" if hidden else "")
    ax.plot([0.9, shown.size * 1.1], [floor, floor] if near else [math.nan] * 2, color=GREY, linestyle="--" if near else " ", linewidth=1, label=noise)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(0.9, shown.size * 1.1)
    _limits(ax, bottom, values[0], legend_lines=1)
    ax.set_xlabel("index")
    ax.set_ylabel("eigenvalue")
    dress(ax)
    legend(ax, loc="upper right", ncols=2, columnspacing=1.2)


def layer_bars(ax: Axes, values: Mapping[str, tuple[float, float]], heading: str, unit: str) -> None:
    """Horizontal bars, the largest on top, with standard errors where they are known."""
    ordered = sorted(((n, v) for n, v in values.items() if math.isfinite(v[0])), key=lambda item: -abs(item[1][0]))
    shown = ordered[:_LAYERS_SHOWN]
    if not shown:
        empty(ax, heading, "not estimated by layer")
        return
    y = np.arange(len(shown))[::-1]
    sizes = [v[0] for _, v in shown]
    errors = [v[1] if math.isfinite(v[1]) else 0.0 for _, v in shown]
    ax.barh(y, sizes, color=[BLUE if s >= 0 else VERMILLION for s in sizes], height=0.65, alpha=0.85)
    if any(errors):
        ax.errorbar(sizes, y, xerr=errors, fmt="none", ecolor="#333333", capsize=3, linewidth=1)
    ax.set_yticks(y, [label(n, 30) for n, _ in shown])
    for text in ax.get_yticklabels():
        text.set_parse_math(False)
    ax.axvline(0, color=GREY, linewidth=0.8)
    title(ax, heading + (f" ({len(shown)} largest of {len(ordered)})" if len(shown) < len(ordered) else ""))
    ax.set_xlabel(unit)
    dress(ax)
    ax.grid(False, axis="y")


def collapse_bars(ax: Axes, rows: Sequence[tuple[str, str, float, str]], c: NeuralCollapse) -> None:
    """Every measure on one log axis; collapse lies to the left."""
    known = [(short, value) for short, _, value, _ in rows if value is not None and math.isfinite(value)]
    title(ax, f"neural collapse, inputs of {c.layer}")
    if not known:
        empty(ax, "neural collapse", "no measure could be computed")
        return
    positive = [v for _, v in known if v > 1e-12]
    low = min([*positive, 0.1]) / 3
    high = max([*positive, 1.0]) * 8
    y = np.arange(len(known))[::-1]
    ax.hlines(y, low, [max(v, low) for _, v in known], color=BLUE, linewidth=3, alpha=0.55)
    ax.plot([max(v, low) for _, v in known], y, "o", color=BLUE, markersize=6)
    for yi, (_, value) in zip(y, known, strict=True):
        ax.annotate(number(value, 3), (max(value, low), float(yi)), xytext=(8, 0), textcoords="offset points", va="center", fontsize=8.5)
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ax.set_ylim(-0.7, len(known) - 0.3)
    ax.set_yticks(y, [short for short, _ in known])
    ax.set_xlabel("value (0 at full collapse: to the left)")
    dress(ax)
    ax.grid(False, axis="y")
