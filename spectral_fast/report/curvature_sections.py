"""Curvature as sections: loss, eigenvalues with their residuals, trace with its interval, density as a histogram."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .blocks import Bars, Block, Facts, Note, Section, Table
from .words import NOTHING, Column, integer, interval, number, plain, plus_minus, share

if TYPE_CHECKING:
    from ..curvature.spectra import CurvatureSpectra
    from ..linalg.density import SpectralDensity
    from ..linalg.eigsh import EigenResult
    from ..linalg.trace import TraceResult

__all__ = ["TITLE", "curvature_section", "density_bars", "density_section", "eigen_section", "eigen_table", "trace_section"]

TITLE = "LOSS LANDSCAPE (Hessian)"
MOST_LAYERS = 12  # rows of a table beside others; all of them are in the result


def curvature_section(c: CurvatureSpectra, title: str = TITLE) -> Section:
    pairs = [
        ("loss", f"{number(c.loss)} ({plain(c.loss_name)}, {integer(c.n_samples)} samples, {integer(c.n_params)} parameters)"),
        ("|gradient|", number(c.gradient_norm)),
        *trace_facts("trace of H", c.trace),
        *_largest_facts(c),
        ("work", f"{integer(c.products)} products in {number(c.seconds, 3)} s"),
    ]
    if c.status != "ok":
        pairs.insert(0, ("status", f"{c.status}: {plain(c.reason)}"))
    blocks: list[Block] = [Facts(pairs)]
    parts = {"H, largest": c.hessian_top, "GGN, largest": c.ggn_top, "H, smallest": c.hessian_bottom}
    found = {label: e for label, e in parts.items() if e is not None}
    if found:
        blocks.append(eigen_table(found, {label: c.unresolved(e) for label, e in found.items()}))
    blocks += [Note(f"eigenvalues of {label}: not computed", "skipped") for label, e in parts.items() if e is None]
    blocks += [Note(f"eigenvalues of {label}: {e.status}: {plain(e.reason)}", "note") for label, e in found.items() if e.status != "ok"]
    if c.density is not None:
        blocks.append(density_bars(c.density))
    if c.trace is not None:
        blocks += layer_traces(c.trace)
    blocks += layer_shares(c)
    blocks += [Note(plain(n), "note") for n in c.notes]
    return Section(title, blocks, "curvature")


def eigen_table(results: Mapping[str, EigenResult], unresolved: Mapping[str, NDArray[np.bool_]] | None = None) -> Table:
    """Eigenvalues from the outer end inwards, each with its true residual; pairs that did not converge are marked, never hidden, and so are values
    within the noise of the products (``unresolved``)."""
    rows = max(len(e.values) for e in results.values())
    columns = [Column("#", [str(i + 1) for i in range(rows)])]
    unconverged = noisy = False
    for label, e in results.items():
        values, residuals, converged = np.asarray(e.values), np.asarray(e.residuals), np.asarray(e.converged, dtype=bool)
        order = np.argsort(values, kind="stable") if "smallest" in label else np.arange(values.size)
        padding = [""] * (rows - values.size)
        noise = unresolved[label] if unresolved else np.zeros(len(values), dtype=bool)
        mark = "  " if noise.any() else ""
        columns.append(Column(label, [number(values[i], 6) + (" ~" if noise[i] else mark) for i in order] + padding))
        noisy = noisy or bool(mark)
        columns.append(Column("residual", [number(residuals[i], 2) + ("  " if converged[i] else " !") for i in order] + padding))
        unconverged = unconverged or not converged.all()
    tol = next(iter(results.values())).tol
    legend = f"!: not converged to {number(tol, 2)} x the largest |eigenvalue|. " if unconverged else ""
    legend += "~: within the noise of the products, not told from zero. " if noisy else ""
    return Table(columns, "eigenvalues", legend + "residual: ||A v - theta v||, the error bar of theta.")


def _largest_facts(c: CurvatureSpectra) -> list[tuple[str, str]]:
    """What is known of lambda_1 beside its value: how much of it is the sample's, what the optimizer makes of it, how much of the gradient it has."""
    facts = []
    found, sharp = c.sampling, c.sharpness
    if found is not None and len(found.stderr) and math.isfinite(found.stderr[0]):
        low, high = found.interval(0)
        how = f"{integer(found.groups)} {'random pieces' if found.pieces else 'batches'}"
        value = plus_minus(float(found.values[0]), float(found.stderr[0]))
        facts.append(("lambda_1, sampled", f"{value}; 95 % interval {interval(low, high)} ({how})"))
    if sharp is not None:
        told = f"{number(sharp.value)} of {number(sharp.threshold)}, {plain(sharp.rule)}"
        facts.append(("sharpness", f"{share(sharp.value / sharp.threshold)} of its threshold ({told})"))
    if math.isfinite(c.gradient_in_top) and c.hessian_top is not None:
        facts.append((f"|g|² in top {len(c.hessian_top)}", share(c.gradient_in_top)))
    return facts


def eigen_section(e: EigenResult) -> Section:
    size = [("operator", f"{integer(np.shape(e.vectors)[0])} dimensions")] if np.ndim(e.vectors) == 2 else []
    facts = [*size, ("work", f"{integer(e.matvecs)} products"), ("tolerance", f"{number(e.tol, 2)} x {number(e.scale)} (largest |Ritz value| seen)")]
    if e.status != "ok":
        facts.insert(0, ("status", f"{e.status}: {plain(e.reason)}"))
    return Section("EIGENVALUES", [Facts(facts), eigen_table({"eigenvalue": e})], "curvature")


def trace_facts(label: str, t: TraceResult | None) -> list[tuple[str, str]]:
    if t is None:
        return [(label, "not computed")]
    count = len(t.samples)
    low, high = t.interval(0.95)
    how = f"{plain(t.method)}, {count} {'sample' if count == 1 else 'samples'}"
    return [(label, f"{plus_minus(t.estimate, t.stderr)}; 95 % interval {interval(low, high)} ({how})")]


def layer_traces(t: TraceResult) -> list[Block]:
    """Traces of the diagonal blocks, largest first."""
    if not t.by_layer:
        return []
    layers = sorted(t.by_layer.items(), key=lambda item: -_or_zero(item[1][0]))
    total = t.estimate
    return [
        Table(
            (
                Column("parameter", [plain(n) for n, _ in layers], "left", shrink=24),
                Column("trace of its block", [plus_minus(v[0], v[1]) for _, v in layers]),
                Column("of the whole", [share(v[0] / total) if total else NOTHING for _, v in layers]),
            ),
            caption="trace by layer",
        )
    ]


def layer_shares(c: CurvatureSpectra) -> list[Block]:
    """Where the outermost eigenvectors live: the shares of their squared length by block, those of the largest eigenvalue first."""
    top, bottom = c.by_layer.get("hessian_top"), c.by_layer.get("hessian_bottom")
    if top is None or len(top.names) < 2:
        return []
    order = np.argsort(-np.nan_to_num(top.mass[:, 0]), kind="stable")
    listed, rest = order[:MOST_LAYERS], order[MOST_LAYERS:]
    others = [f"{integer(len(rest))} others"] if len(rest) else []
    vectors = [(f"of vector {i + 1}", top.mass[:, i]) for i in range(min(3, top.mass.shape[1]))]
    if bottom is not None:
        vectors.append(("of the smallest", bottom.mass[:, -1]))
    return [
        Table(
            (
                Column("parameter", [plain(top.names[i]) for i in listed] + others, "left", shrink=24),
                *(Column(label, [share(x[i]) for i in listed] + [share(x[rest].sum())] * len(others)) for label, x in vectors),
            ),
            caption="Hessian eigenvectors by layer",
        )
    ]


def _or_zero(x: float) -> float:
    return 0.0 if math.isnan(x) else x


def trace_section(t: TraceResult) -> Section:
    return Section("TRACE", [Facts([*trace_facts("trace", t), ("work", f"{integer(t.matvecs)} products")]), *layer_traces(t)], "curvature")


def density_bars(d: SpectralDensity, decades: int = 4) -> Bars:
    """Share of the eigenvalues per signed decade below the largest |node|; the staircase of the quadrature, not the smoothed view."""
    nodes, weights = np.asarray(d.nodes, dtype=np.float64), np.asarray(d.weights, dtype=np.float64)
    caption = f"density of the eigenvalues ({integer(d.probes)} probes x {integer(d.steps)} Lanczos steps)"
    top = float(np.max(np.abs(nodes))) if nodes.size else 0.0
    if top == 0 or not math.isfinite(top):
        return Bars([("0", 1.0)], caption)
    edges = [top * 10.0**-i for i in range(decades + 1)]
    labels = [f"{number(low, 2)} .. {number(high, 2)}" for high, low in zip(edges, edges[1:], strict=False)]
    mirrored = [f"{number(-high, 2)} .. {number(-low, 2)}" for high, low in zip(edges, edges[1:], strict=False)]
    rows = list(zip(labels, _decade_shares(nodes, weights, edges), strict=True))
    rows.append((f"|x| < {number(edges[-1], 2)}", float(weights[np.abs(nodes) < edges[-1]].sum())))
    rows += reversed(list(zip(mirrored, _decade_shares(-nodes, weights, edges), strict=True)))
    return Bars(_trim(rows), caption)


def _decade_shares(nodes: NDArray[np.float64], weights: NDArray[np.float64], edges: list[float]) -> list[float]:
    """Share of the nodes in each decade; edges descending, every bin closed below, the first one open above."""
    above = [float(weights[nodes >= edge].sum()) for edge in edges[1:]]
    return [a - b for a, b in zip(above, [0.0, *above], strict=False)]


def _trim(rows: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Without the empty rows at both ends."""
    kept = list(rows)
    while len(kept) > 1 and kept[-1][1] == 0:
        kept.pop()
    while len(kept) > 1 and kept[0][1] == 0:
        kept.pop(0)
    return kept


def density_section(d: SpectralDensity) -> Section:
    facts: list[tuple[str, str]] = [
        ("trace", plus_minus(d.trace, d.trace_stderr)),
        ("Frobenius norm", plus_minus(d.frobenius, d.frobenius_stderr)),
        ("smoothed with", f"Gaussians of width {number(d.width, 3)}"),
        ("work", f"{integer(d.matvecs)} products"),
    ]
    return Section("SPECTRAL DENSITY", [Facts(facts), density_bars(d)], "curvature")
