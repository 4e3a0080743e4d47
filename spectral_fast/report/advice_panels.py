"""Panels of ablation and advice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .panels import BLUE, GREEN, GREY, ORANGE, VERMILLION, dress, empty, label, legend, title
from .words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..weights.ablate import Ablation
    from ..weights.advise import Advice

__all__ = ["MATRICES_SHOWN", "changes", "ranks", "sizes"]

MATRICES_SHOWN = 30


def changes(ax: Axes, a: Ablation) -> None:
    """Change of the loss over gamma with error bars; ticks are the singular values, the shaded part is the measured noise."""
    title(ax, f"{a.layer}: {a.treatment}")
    good = np.isfinite(a.changes)
    gammas, found, moved = a.gammas[good], a.changes[good], a.moved[good]
    if not gammas.size or not gammas[-1] > 0:
        empty(ax, f"{a.layer}: {a.treatment}", a.reason or "no cut was evaluated")
        return
    errors = 2 * np.nan_to_num(a.stderr[good])
    least = a.floor * abs(a.baseline_loss)
    ax.axhspan(-least, least, color=GREY, alpha=0.15, linewidth=0, label=f"floor: {100 * a.floor:g} % of the baseline")
    for chosen, colour, name in ((~moved, BLUE, "not told from 0"), (moved, VERMILLION, "the loss moved")):
        if chosen.any():
            ax.errorbar(gammas[chosen], found[chosen], yerr=errors[chosen], fmt="o", color=colour, markersize=5, capsize=3, linewidth=1.2, label=name)
    s = a.s[a.s > 0]
    ax.plot(s, np.full(s.size, 0.025), "|", color=GREEN, ms=9, mew=1.2, transform=ax.get_xaxis_transform(), label="singular values")
    positive = np.concatenate([s, gammas[gammas > 0]])
    low, high = float(positive.min()) / 1.5, float(positive.max()) * 1.5
    if np.isfinite(a.noise_scale):
        ax.axvspan(low, a.noise_scale, color=ORANGE, alpha=0.15, linewidth=0, label=f"noise: below {number(a.noise_scale, 3)}")
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    # a loss may change by orders of magnitude; what is near zero is linear
    ax.set_yscale("symlog", linthresh=max(float(errors.max(initial=0.0)) / 4, least, 1e-300))
    ax.margins(y=0.25)
    ax.set_xlabel("gamma")
    ax.set_ylabel("change of the loss (bars: 2 standard errors)")
    dress(ax)
    legend(ax, loc="upper left")


def ranks(ax: Axes, a: Advice) -> None:
    """Share of the rank that every error needs, a line per matrix; where two factors are smaller than the matrix, the mark is filled."""
    ready = [m for m in a.matrices if m.low_rank]
    shown = ready[:MATRICES_SHOWN]
    title(ax, "rank for a relative error, as a share of full rank" + (f" (first {len(shown)} of {len(ready)})" if len(shown) < len(ready) else ""))
    if not shown:
        empty(ax, "rank for a relative error", a.reason or "no matrix with a spectrum")
        return
    y = np.arange(len(shown))[::-1]
    colours = (VERMILLION, ORANGE, GREEN, BLUE, GREY)
    for i, wanted in enumerate(a.errors):
        x = [m.low_rank[i].rank / min(m.shape) for m in shown]
        colour = colours[i % len(colours)]
        pays = np.array([m.low_rank[i].saved > 0 for m in shown])
        ax.scatter(x, y, s=30, zorder=3, edgecolors=colour, facecolors=[colour if p else "white" for p in pays], label=f"{100 * wanted:g} %")
    ax.hlines(y, 0, 1, color="#d9d9d9", linewidth=0.6)
    ax.set_yticks(y, [label(m.name, 30) for m in shown])
    for text in ax.get_yticklabels():
        text.set_parse_math(False)
    ax.set_xlim(0, 1.04)
    ax.set_ylim(-0.7, len(shown) - 0.3)
    ax.set_xlabel("rank / full rank (filled: two factors are smaller than the matrix)")
    dress(ax)
    ax.grid(False, axis="y")
    legend(ax, loc="lower left", ncols=len(a.errors), columnspacing=1.0, handletextpad=0.2)


def sizes(ax: Axes, a: Advice) -> None:
    """Megabytes of all matrices as stored, and with each kind of advice."""
    title(ax, "size of all matrices")
    bars = {"as stored": a.megabytes}
    bars |= {f"factors, error {100 * e:g} %": size for e, size in zip(a.errors, a.megabytes_low_rank, strict=True)}
    bars["narrowest formats"] = a.megabytes_formats
    y = np.arange(len(bars))[::-1]
    values = list(bars.values())
    ax.barh(y, values, color=[GREY, *[BLUE] * len(a.errors), GREEN], height=0.6, alpha=0.85)
    for yi, value in zip(y, values, strict=True):
        ax.annotate(f"{number(value, 3)} MB", (value, float(yi)), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5)
    ax.set_yticks(y, list(bars))
    ax.set_xlim(0, max(values) * 1.25 or 1.0)
    ax.set_xlabel("megabytes")
    dress(ax)
    ax.grid(False, axis="y")
