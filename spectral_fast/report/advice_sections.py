"""Ablation and advice as sections: what the loss does when a part of a spectrum goes, and what each matrix can do without."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .blocks import Block, Facts, Note, Section, Table
from .weight_sections import skipped_notes
from .words import NOTHING, Column, integer, number, plain, plus_minus, shape_text, share

if TYPE_CHECKING:
    from ..weights.ablate import Ablation
    from ..weights.advise import Advice

__all__ = ["ablation_section", "advice_section", "noise_scale_text", "treatment_text"]

_TREATMENTS = {"drop_noise": "singular values up to gamma become 0", "clip_spikes": "singular values above gamma become gamma"}

ADVICE_LEGEND = (
    "rank at 5 %: smallest rank with a relative Frobenius error of at most 5 %; saved: share of the parameters two factors of that rank do without. "
    "bits: significand bits until rounding drowns the median singular value / the smallest significant one; in: narrowest common format with the "
    "former (8-bit formats and f16 with a scale per matrix). above: singular values above the edge of a random matrix. LoRA: that number, or the "
    "stable rank where that is less."
)
_SHORT = {"float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16", "float8_e5m2": "e5m2", "float8_e4m3fn": "e4m3"}


def treatment_text(a: Ablation) -> str:
    return _TREATMENTS.get(a.treatment, plain(a.treatment))


def noise_scale_text(a: Ablation) -> str:
    """The measured noise scale of a sweep, in words."""
    d_min = min(a.shape)
    if math.isnan(a.noise_scale):
        return "not measured: " + (plain(a.reason) if a.reason else "single cuts, no sweep")
    if math.isinf(a.noise_scale):
        return "none: the loss does not rise even without the whole matrix"
    below = d_min - a.noise_rank
    return f"{number(a.noise_scale)}: the loss first rises there; {integer(below)} of {integer(d_min)} singular values lie below"


def ablation_section(a: Ablation) -> Section:
    pairs = [
        ("matrix", f"{plain(a.layer)}, {shape_text(a.shape)}"),
        ("treatment", f"{plain(a.treatment)}: {treatment_text(a)}"),
        ("baseline loss", f"{number(a.baseline_loss)} ({plain(a.loss_name)}, {integer(a.n_samples)} samples)"),
        ("noise scale", noise_scale_text(a)),
    ]
    if a.status != "ok":
        pairs.insert(0, ("status", f"{a.status}: {plain(a.reason)}"))
    blocks: list[Block] = [Facts(pairs)]
    if len(a.gammas):
        rows = range(len(a.gammas))
        relative = [float(c) / abs(a.baseline_loss) if a.baseline_loss else math.nan for c in a.changes]
        blocks.append(
            Table(
                (
                    Column("gamma", [number(g) for g in a.gammas]),
                    Column("values\nkept", [f"{int(k)}/{min(a.shape)}" for k in a.kept]),
                    Column("loss", [number(v) for v in a.losses], drop=1),
                    Column("change", [plus_minus(a.changes[i], a.stderr[i]) for i in rows]),
                    Column("of the\nbaseline", [share(r) if math.isfinite(r) else NOTHING for r in relative], drop=2),
                    Column("moved", [("up" if a.changes[i] > 0 else "down") if a.moved[i] else "no" for i in rows], "left"),
                ),
                caption="change of the loss, ± its standard error",
                legend=f"moved: by more than 2 standard errors and more than {share(a.floor)} of the baseline. Errors from paired differences, "
                f"each {plain(a.unit)} with itself.",
            )
        )
    blocks += [Note(plain(n), "note") for n in a.notes]
    return Section("ABLATION", blocks, "ablation")


def advice_section(a: Advice, rows: int | None = None) -> Section:
    shown = a.matrices if rows is None else a.matrices[:rows]
    parameters = sum(m.parameters for m in a.matrices)
    pairs = [("source", plain(a.source))] if a.source else []
    pairs.append(("matrices", f"{integer(len(a.matrices))}, {integer(parameters)} parameters, {number(a.megabytes)} MB as stored"))
    for wanted, size in zip(a.errors, a.megabytes_low_rank, strict=True):
        pairs.append((f"factors, {_percent(wanted)}", f"{number(size)} MB{_saved(size, a.megabytes)}"))
    pairs.append(("fewer bits", f"{number(a.megabytes_formats)} MB{_saved(a.megabytes_formats, a.megabytes)}, every matrix in its narrowest format"))
    if a.status != "ok":
        pairs.insert(0, ("status", f"{a.status}: {plain(a.reason)}"))
    blocks: list[Block] = [Facts(pairs)]
    if shown:
        status = [m.status for m in shown]
        columns = [
            Column("name", [plain(m.name) for m in shown], "left", shrink=18),
            Column("shape", [shape_text(m.shape) for m in shown], drop=3),
        ]
        for i, wanted in enumerate(a.errors):
            low = [m.low_rank[i] if m.low_rank else None for m in shown]
            drop = 8 + len(a.errors) - i  # the widest error saves most, so its columns stay longest
            columns.append(Column(f"rank\n{_percent(wanted)}", [NOTHING if w is None else integer(w.rank) for w in low], drop=drop))
            columns.append(Column(f"saved\n{_percent(wanted)}", [NOTHING if w is None else _share_saved(w.saved) for w in low], drop=drop))
        columns += [
            Column("bits", [f"{m.bits}/{m.bits_all}" if m.bits >= 0 else NOTHING for m in shown]),
            Column("stored", [_SHORT.get(m.dtype, plain(m.dtype)) for m in shown], "left", drop=5),
            Column("in", [_SHORT.get(m.format, plain(m.format)) for m in shown], "left", drop=2),
            Column("above", [integer(m.spikes) if m.spikes >= 0 else NOTHING for m in shown], drop=4),
            Column("LoRA", [integer(m.lora_rank) if m.lora_rank >= 0 else NOTHING for m in shown]),
            Column("status", status if any(s != "ok" for s in status) else [""] * len(status), "left"),
        ]
        blocks.append(Table(columns, legend=ADVICE_LEGEND))
        if len(shown) < len(a.matrices):
            blocks.append(Note(f"and {len(a.matrices) - len(shown)} more matrices: to_pandas(), to_json() and save_html() list every one.", "note"))
    blocks += [Note(f"{plain(m.name)}: {m.status}: {plain(m.reason)}", "note") for m in a.matrices if m.status != "ok"]
    blocks += skipped_notes(a.skipped)
    return Section("WHAT EACH MATRIX CAN DO WITHOUT", blocks, "advice")


def _percent(x: float) -> str:
    return f"{100 * x:g} %"


def _share_saved(x: float) -> str:
    return share(x) if x > 0 else "none"


def _saved(size: float, whole: float) -> str:
    return f" ({share(1 - size / whole)} saved)" if whole > 0 and size < whole else " (nothing saved)"
