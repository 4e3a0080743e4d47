"""What becomes of the features from layer to layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .panels import BLUE, GREEN, GREY, VERMILLION, dress, label, legend, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..collapse import LayerCollapse

__all__ = ["collapse_by_depth"]

_NAMES = 24  # layers whose names are written below the axis


def collapse_by_depth(ax: Axes, layers: Mapping[str, LayerCollapse]) -> None:
    """NC1, CDNV and distance from a simplex of every layer's inputs on a log axis, and the share of the dimensions that they fill."""
    title(ax, "collapse by depth")
    x = np.arange(len(layers))
    values = list(layers.values())
    lines = (
        ("NC1", BLUE, "-", [v.nc1 for v in values]),
        ("CDNV", VERMILLION, "-", [v.cdnv for v in values]),
        ("NC2 ETF", GREEN, "-", [v.nc2_etf for v in values]),
        ("effective rank / inputs", GREY, "--", [v.effective_rank / max(v.feature_dim, 1) for v in values]),
    )
    for name, color, style, numbers in lines:
        y = np.asarray(numbers, dtype=float)
        y[~((y > 0.0) & np.isfinite(y))] = np.nan  # no place on the axis
        ax.plot(x, y, style, color=color, marker="o", markersize=4, label=name)
    ax.set_yscale("log")
    step = -(-len(layers) // _NAMES)
    names = [label(name, 16) for name in list(layers)[::step]]
    slanted: dict[str, Any] = {"rotation": 60, "ha": "right"} if len(names) > 4 else {}
    ax.set_xticks(x[::step], names, **slanted)
    ax.set_xlabel("inputs of")
    legend(ax)
    dress(ax)
