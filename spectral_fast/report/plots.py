"""Results as matplotlib figures. Figures are made without pyplot, so nobody's current figure, backend or style is touched."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from . import advice_panels, depth_panel, panels, survey_panels
from .learning_sections import collapse_rows
from .sections import by_severity
from .trajectory_sections import chosen_series, draw_series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..collapse import NeuralCollapse
    from ..curvature.spectra import CurvatureSpectra
    from ..diagnosis import Diagnosis
    from ..gradients import GradientSpectrum
    from ..linalg.density import SpectralDensity
    from ..linalg.eigsh import EigenResult
    from ..linalg.lowrank import LowRankSVD
    from ..linalg.trace import TraceResult
    from ..results import Result
    from ..trajectory import Trajectory
    from ..weights.ablate import Ablation
    from ..weights.advise import Advice
    from ..weights.spectra import MatrixSpectrum, WeightSpectra
    from ..weights.surveyed import Survey

__all__ = ["notable", "plot", "png"]


def plot(result: Result, *, name: str | None = None, names: str | Sequence[str] | None = None) -> Figure:
    """A figure of a result.

    name: for weights (and a diagnosis): the matrix whose eigenvalue density is drawn; None: the one that stands out most.
    names: for a trajectory: glob or globs on its series; None: the dozen that moved most.
    Returns a matplotlib Figure on an Agg canvas (``figure.savefig(path)``). Raises KeyError for an unknown ``name``, TypeError for another class.
    """
    kind = type(result).__name__
    draw = _FIGURES.get(kind)
    if draw is None:
        raise TypeError(f"result: got {kind}; known: {', '.join(sorted(_FIGURES))}")
    if name is not None and kind not in ("WeightSpectra", "Diagnosis"):
        raise ValueError(f"name: only weights have matrices to choose from, not {kind}")
    if names is not None and kind != "Trajectory":
        raise ValueError(f"names: only a trajectory has series to choose from, not {kind}")
    if kind == "Trajectory":
        return _trajectory(result, names)  # type: ignore[arg-type]
    figure: Figure = draw(result, name) if kind in ("WeightSpectra", "Diagnosis") else draw(result)
    return figure


def png(figure: Figure, dpi: int = 144) -> bytes:
    """A figure as PNG, without a time stamp, so that equal results give equal files."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def notable(spectra: WeightSpectra) -> MatrixSpectrum | None:
    """The matrix to look at first: the largest share of lost rank, then the largest condition number."""
    ready = [m for m in spectra.matrices if m.status == "ok" and len(m.s) > 1]
    if not ready:
        return None
    return max(ready, key=lambda m: (1 - m.ranks.get("storage", 0) / len(m.s), m.metrics.get("condition_number", 0.0)))


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.05)  # type: ignore[union-attr, call-arg]
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat) if rows else []


def _weights(w: WeightSpectra, name: str | None) -> Figure:
    figure, (left, right) = _figure(1, 2, (12.0, 4.6))
    m = w.spectrum(name) if name is not None else notable(w)
    if m is None:
        panels.empty(left, "density of s²", w.reason or "no matrix with a spectrum")
    else:
        panels.esd(left, m)
    panels.singular_values(right, w.matrices, m.name if m is not None else None)
    return figure


def _matrix(m: MatrixSpectrum) -> Figure:
    figure, (left, right) = _figure(1, 2, (12.0, 4.6))
    panels.esd(left, m)
    panels.singular_values(right, [m])
    return figure


def _gradients(g: GradientSpectrum) -> Figure:
    figure, (left, right) = _figure(1, 2, (12.0, 4.6))
    panels.scree(left, g)
    panels.layer_bars(right, {n: (v.trace, float("nan")) for n, v in g.by_layer.items()}, "gradient covariance: trace by layer", "trace")
    return figure


def _curvature(c: CurvatureSpectra) -> Figure:
    figure, (left, right) = _figure(1, 2, (12.0, 4.6))
    panels.density(left, c.density, c)
    panels.layer_bars(right, c.trace.by_layer if c.trace is not None else {}, "Hessian: trace by layer", "trace of the diagonal block (bars: standard error)")
    return figure


def _eigen(e: EigenResult) -> Figure:
    figure, (ax,) = _figure(1, 1, (6.4, 4.6))
    panels.pairs(ax, e)
    return figure


def _low_rank(r: LowRankSVD) -> Figure:
    figure, (ax,) = _figure(1, 1, (6.4, 4.6))
    panels.leading_values(ax, r)
    return figure


def _density(d: SpectralDensity) -> Figure:
    figure, (ax,) = _figure(1, 1, (6.8, 4.6))
    panels.density(ax, d)
    return figure


def _trace(t: TraceResult) -> Figure:
    figure, (ax,) = _figure(1, 1, (6.8, 4.6))
    panels.layer_bars(ax, t.by_layer or {"whole": (t.estimate, t.stderr)}, "trace by layer" if t.by_layer else "trace", "trace (bars: standard error)")
    return figure


def _collapse(c: NeuralCollapse) -> Figure:
    if not c.by_layer:
        figure, (ax,) = _figure(1, 1, (6.8, 4.6))
        panels.collapse_bars(ax, collapse_rows(c), c)
        return figure
    figure, (left, right) = _figure(1, 2, (12.0, 4.6))
    panels.collapse_bars(left, collapse_rows(c), c)
    depth_panel.collapse_by_depth(right, c.by_layer)
    return figure


def _trajectory(t: Trajectory, names: str | Sequence[str] | None = None) -> Figure:
    shown = chosen_series(t, names)
    columns = min(3, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure, axes = _figure(rows, columns, (1.2 + 3.9 * columns, 0.6 + 2.6 * rows))
    for ax, name in zip(axes, shown, strict=False):
        draw_series(ax, t, name)
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    if not shown:
        panels.empty(axes[0], "trajectory", "two results of different steps are needed")
    return figure


def _ablation(a: Ablation) -> Figure:
    figure, (ax,) = _figure(1, 1, (7.4, 4.8))
    advice_panels.changes(ax, a)
    return figure


def _advice(a: Advice) -> Figure:
    rows = min(len(a.matrices), advice_panels.MATRICES_SHOWN)
    figure, (left, right) = _figure(1, 2, (12.0, max(3.6, 1.6 + 0.26 * rows)))
    advice_panels.ranks(left, a)
    advice_panels.sizes(right, a)
    return figure


def _survey(s: Survey) -> Figure:
    rows = survey_panels.rows_of_models(s)
    figure, _ = _figure(0, 0, (12.5, 7.2 + 1.75 * rows))
    survey_panels.draw(figure, s)
    return figure


def _diagnosis(d: Diagnosis, name: str | None) -> Figure:
    figure, (top_left, top_right, bottom_left, bottom_right) = _figure(2, 2, (12.5, 9.0))
    why = {s.name: f"skipped: {s.reason}" for s in d.skipped}
    missing = "not asked for"
    if d.weights is None:
        panels.empty(top_left, "weights", why.get("weights", missing))
    else:
        panels.singular_values(top_left, d.weights.matrices, name or _worst_layer(d))
    if d.gradients is None:
        panels.empty(top_right, "gradient covariance", why.get("gradients", missing))
    else:
        panels.scree(top_right, d.gradients)
    if d.curvature is None:
        panels.empty(bottom_left, "Hessian", why.get("curvature", missing))
    else:
        panels.density(bottom_left, d.curvature.density, d.curvature)
    if d.collapse is None:
        panels.empty(bottom_right, "neural collapse", why.get("collapse", missing))
    else:
        panels.collapse_bars(bottom_right, collapse_rows(d.collapse), d.collapse)
    return figure


def _worst_layer(d: Diagnosis) -> str | None:
    """The matrix of the gravest weight finding."""
    names: Sequence[str] = [m.name for m in d.weights.matrices] if d.weights is not None else []
    return next((f.where for f in by_severity(d.findings) if f.severity != "info" and f.where in names), None)


_FIGURES: dict[str, Callable[..., Any]] = {
    "Diagnosis": _diagnosis,
    "WeightSpectra": _weights,
    "MatrixSpectrum": _matrix,
    "GradientSpectrum": _gradients,
    "CurvatureSpectra": _curvature,
    "EigenResult": _eigen,
    "LowRankSVD": _low_rank,
    "SpectralDensity": _density,
    "TraceResult": _trace,
    "NeuralCollapse": _collapse,
    "Ablation": _ablation,
    "Trajectory": _trajectory,
    "Advice": _advice,
    "Survey": _survey,
}
