"""What becomes of the features from layer to layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from .panels import BLUE, GREEN, GREY, ORANGE, VERMILLION, dress, label, legend, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..collapse import LayerCollapse

__all__ = ["collapse_by_depth"]

_NAMES = 24  # layers whose names are written below the axis


def collapse_by_depth(ax: Axes, layers: Mapping[str, LayerCollapse]) -> None:
    """NC1, CDNV and distance from a simplex of every layer's inputs on a log axis, the share of the dimensions that they fill, and that of the
    samples whose nearest class mean is another class's."""
    title(ax, "collapse by depth")
    x = np.arange(len(layers))
    values = list(layers.values())
    lines = (
        ("NC1", BLUE, "-", [v.nc1 for v in values]),
        ("CDNV", VERMILLION, "-", [v.cdnv for v in values]),
        ("NC2 ETF", GREEN, "-", [v.nc2_etf for v in values]),
        ("effective rank / inputs", GREY, "--", [v.effective_rank / max(v.feature_dim, 1) for v in values]),
        ("nearest mean wrong", ORANGE, "-", [1.0 - v.ncc_accuracy for v in values]),
    )
    for name, color, style, numbers in lines:
        y = np.asarray(numbers, dtype=float)
        y[~((y > 0.0) & np.isfinite(y))] = np.nan  # no place on the axis
        ax.plot(x, y, style, color=color, marker="o", markersize=4, label=name)
    ax.set_yscale("log")
    step = -(-len(layers) // _NAMES)
    names = [label(name, 16) for name in list(layers)[::step]]
    crowded = len(names) > 6
    ax.set_xticks(x[::step], names, rotation=60 if crowded else 0, ha="right" if crowded else "center")
    ax.set_xlabel("inputs of")
    legend(ax)
    dress(ax)
