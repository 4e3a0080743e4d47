"""Gradient covariance and neural collapse as sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .blocks import Block, Facts, Note, Section, Table
from .weight_sections import skipped_notes
from .words import NOTHING, Column, integer, interval, number, pick, plain, share

if TYPE_CHECKING:
    from ..collapse import NeuralCollapse
    from ..diagnosis.overlaps import Overlaps
    from ..gradients import GradientSpectrum

__all__ = ["COLLAPSE_TITLE", "GRADIENT_TITLE", "collapse_rows", "collapse_section", "gradient_section", "overlap_blocks", "test_rows"]

GRADIENT_TITLE = "GRADIENT COVARIANCE"
COLLAPSE_TITLE = "NEURAL COLLAPSE"

_VALUES_SHOWN = 8


def gradient_section(g: GradientSpectrum, title: str = GRADIENT_TITLE) -> Section:
    kind = "centred covariance" if g.centered else "uncentred second moment (empirical Fisher)"
    low, high = g.noise_scale_interval
    samples = f"{integer(g.n_samples)} samples" + (f" in {integer(g.n_units)} units" if g.n_units != g.n_samples else "")
    scale = f"{number(g.noise_scale)} samples" if np.isfinite(g.noise_scale) else "not resolved"
    values = np.asarray(g.eigenvalues)
    first = ", ".join(number(v) for v in values[:_VALUES_SHOWN]) + (" .." if values.size > _VALUES_SHOWN else "")
    pairs = [
        ("what", f"{kind}, per {plain(g.unit)}; {samples} x {integer(g.n_params)} parameters"),
        ("loss", f"{number(g.loss)} ({plain(g.loss_name)})"),
        ("eigenvalues", first),
        ("resolved", f"{integer(g.n_resolved)} eigenvalues lie above the rounding noise, {number(g.noise_floor, 2)}"),
        ("trace", number(g.trace)),
        ("concentration", f"top 10 hold {share(g.top_share)}; effective rank {number(g.effective_rank)}; participation ratio {number(g.participation_ratio)}"),
        ("|mean gradient|²", f"{number(g.gradient_norm2)} (debiased)"),
        ("noise scale", f"{scale}; 95 % interval {interval(low, high)}"),
    ]
    if np.isfinite(g.signal_share):
        low, high = g.signal_share_interval
        pairs.append(("signal share", f"{share(g.signal_share)} of a {plain(g.unit)}'s squared gradient is common to all; 95 % interval {interval(low, high)}"))
    if np.isfinite(g.between_share):
        text = f"{share(g.between_share)} of the trace lies between the {integer(g.n_classes)} classes' mean gradients, {share(1 - g.between_share)} within"
        pairs.append(("classes", text))
    if g.status != "ok":
        pairs.insert(0, ("status", f"{g.status}: {plain(g.reason)}"))
    blocks: list[Block] = [Facts(pairs)]
    if g.by_layer:
        layers = sorted(g.by_layer.items(), key=lambda item: -np.nan_to_num(item[1].trace))
        blocks.append(
            Table(
                (
                    Column("layer", [plain(n) for n, _ in layers], "left", shrink=24),
                    Column("trace", [number(v.trace) for _, v in layers]),
                    Column("of the whole", [share(v.trace / g.trace) if g.trace else NOTHING for _, v in layers]),
                    Column("effective rank", [number(v.effective_rank) for _, v in layers]),
                    Column("noise scale", [number(pick(v, "noise_scale", None)) for _, v in layers]),
                ),
                caption="by layer",
            )
        )
    blocks += [Note(plain(n), "note") for n in g.notes]
    return Section(title, blocks, "gradients")


def overlap_blocks(o: Overlaps) -> list[Block]:
    """What the top directions of the gradients share with the Hessian's and with the weights'; what chance gives beside each number."""
    pairs = [("top directions", f"{integer(o.directions)} above the noise; overlaps are mean squared cosines of principal angles")]
    if o.k_hessian:
        pairs.append(("with the Hessian's", f"{share(o.hessian)} with its top {integer(o.k_hessian)} eigenvectors; by chance {share(o.by_chance)}"))
    blocks: list[Block] = [Facts(pairs)]
    if o.weights:
        found = list(o.weights.items())
        blocks.append(
            Table(
                (
                    Column("layer", [plain(n) for n, _ in found], "left", shrink=24),
                    Column("rank", [integer(v.rank) for _, v in found]),
                    Column("output side", [share(v.output) for _, v in found]),
                    Column("by chance", [share(v.by_chance[0]) for _, v in found]),
                    Column("input side", [share(v.input) for _, v in found]),
                    Column("by chance", [share(v.by_chance[1]) for _, v in found]),
                ),
                caption="top directions of the gradients against the weights' leading singular vectors",
            )
        )
    return blocks


def collapse_rows(c: NeuralCollapse) -> list[tuple[str, str, float, str]]:
    """(short name, what it measures, value, value at full collapse) of every measure."""
    etf = "0" if c.etf_exists else "no simplex ETF: C > d + 1"
    return [
        ("NC1", f"within-class over between-class scatter (rank {integer(c.nc1_rank)})", c.nc1, "0"),
        ("CDNV", "class-distance normalized variance", c.cdnv, "0"),
        ("NC2 norms", "spread of the lengths of the class means", c.nc2_norms, "0"),
        ("NC2 norms, W", "spread of the lengths of the classifier's rows", c.nc2_norms_classifier, "0"),
        ("NC2 angles", "mean |cos + 1/(C-1)| over pairs of class means", c.nc2_angles, etf),
        ("NC2 ETF", "distance of the class means from a simplex ETF", c.nc2_etf, etf),
        ("NC3", "distance between classifier and class means", c.nc3, "0"),
        ("NC4", "share where the nearest class mean decides otherwise", c.nc4, "0"),
    ]


def test_rows(test: NeuralCollapse) -> list[tuple[str, str, float, str]]:
    """Their NC4 with the class means of the samples trained on, where these are known."""
    return [(short, what, test.nc4_train if short == "NC4" and np.isfinite(test.nc4_train) else value, at) for short, what, value, at in collapse_rows(test)]


def collapse_section(c: NeuralCollapse, title: str = COLLAPSE_TITLE) -> Section:
    counts = np.asarray(list(c.class_counts.values()) if isinstance(c.class_counts, dict) else c.class_counts)
    least, most = (integer(counts.min()), integer(counts.max())) if counts.size else ("", "")
    sizes = f", {least if least == most else f'{least} to {most}'} samples each" if counts.size else ""
    pairs = [
        ("features", f"{integer(c.feature_dim)} inputs of {plain(c.layer)}"),
        ("data", f"{integer(c.n_samples)} samples, {integer(c.n_classes)} classes{sizes}"),
        ("accuracy", f"{share(c.accuracy)}; of the nearest class mean {share(c.ncc_accuracy)}"),
        ("spread", f"{number(c.spread, 3)} x the length of their mean; class means differ along {integer(c.nc1_rank)} directions above rounding"),
    ]
    if c.test is not None:
        about = f"{integer(c.test.n_samples)} samples, accuracy {share(c.test.accuracy)}; of the nearest mean of the training classes "
        pairs.append(("test", about + share(c.test.ncc_accuracy_train) if c.test.status == "ok" else f"{c.test.status}: {plain(c.test.reason)}"))
    if c.status != "ok":
        pairs.insert(0, ("status", f"{c.status}: {plain(c.reason)}"))
    if not c.n_samples:  # there is nothing else to show
        return Section(title, [Facts(pairs[:1]), *(Note(plain(n), "note") for n in c.notes)], "collapse")
    rows = collapse_rows(c)
    measures = Table(
        (
            Column("measure", [r[0] for r in rows], "left"),
            Column("value", [number(r[2]) for r in rows]),
            *([] if c.test is None else [Column("test", [number(r[2]) for r in test_rows(c.test)])]),
            Column("collapsed", [r[3] for r in rows], "left", drop=1),
            Column("what it is", [r[1] for r in rows], "left", drop=2),
        )
    )
    blocks: list[Block] = [Facts(pairs), measures]
    if c.by_layer:
        layers = c.by_layer.items()
        blocks.append(
            Table(
                (
                    Column("layer", [plain(n) for n, _ in layers], "left", shrink=24),
                    Column("inputs", [integer(v.feature_dim) for _, v in layers]),
                    Column("effective rank", [number(v.effective_rank, 3) for _, v in layers]),
                    Column("NC1", [number(v.nc1, 3) for _, v in layers]),
                    Column("CDNV", [number(v.cdnv, 3) for _, v in layers]),
                    Column("NC2 norms", [number(v.nc2_norms, 3) for _, v in layers], drop=2),
                    Column("NC2 angles", [number(v.nc2_angles, 3) for _, v in layers], drop=1),
                    Column("NC2 ETF", [number(v.nc2_etf, 3) for _, v in layers], drop=1),
                    Column("NC4", [share(v.nc4) for _, v in layers], drop=3),
                    Column("nearest right", [share(v.ncc_accuracy) for _, v in layers]),
                ),
                caption="by layer, from the input on",
                legend="effective rank: of the covariance of all features; far below the number of inputs they spread along few dimensions. nearest right: "
                "samples whose nearest class mean is their own class's; NC4: samples where it is not the model's decision",
            )
        )
    blocks += skipped_notes(c.skipped)
    return Section(title, [*blocks, *(Note(plain(n), "note") for n in c.notes)], "collapse")
