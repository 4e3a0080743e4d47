"""A survey as sections: who lost rank under which rule, where the smallest singular values lie, what every checkpoint has."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..metrics.rank import RULES
from ..weights.surveyed import ASPECTS
from .blocks import Bars, Block, Facts, Note, Section, Table
from .weight_sections import skipped_notes
from .words import NOTHING, Column, integer, number, plain, share

if TYPE_CHECKING:
    from ..weights.surveyed import CollapseShare, Survey, SurveyedMatrix

__all__ = ["drawn_at", "survey_sections"]

_SHORT_RULES = {"numerical_recipes": "num.\nrec."}
_COLLAPSE = (
    "Rank < min(m, n), counting singular values above s_1 max(m, n) eps (numpy), 0.5 sqrt(m + n + 1) s_1 eps (numerical_recipes), 1e-3 (loose), 1e-8 (log8), "
    "the rounding noise of the stored numbers (storage). Intervals: 95 %, Wilson, as of independent matrices; those of one model are not, so they are rather "
    f"too narrow. Q = max(m, n) / min(m, n): for {ASPECTS[0]} a random matrix has a smallest value near 0 too (Martin 2018)."
)
_GROUPS = (
    "<= noise: s_min cannot be told from rounding and is anything between 0 and that noise, which stands for it in the median. = 0: by rows or columns of "
    "zeros. Under the rules: matrices that lost rank."
)
_SMALL = 1e-300
_REASONS = 6
_DECADES = 16  # shown below the largest


def drawn_at(m: SurveyedMatrix) -> float:
    """Where s_min stands on a log axis: at the floor for what is not resolved (an upper limit), NaN for what is exactly 0."""
    return math.nan if m.exactly_singular else max(m.floor if m.unresolved else m.s_min, _SMALL)


def survey_sections(s: Survey, rows: int | None) -> list[Section]:
    """rows: at most so many checkpoints in the table (None: all)."""
    matrices = s.matrices
    everything = s.share()
    about = [("backend", plain(s.backend)), ("time", f"{number(s.seconds, 3)} s")]
    if s.store:
        about.append(("stores", plain(s.store)))
    if s.status != "ok":
        about.insert(0, ("status", f"{s.status}: {plain(s.reason.removeprefix('failed: '))}"))
    title = f"SURVEY OF {len(s.models)} CHECKPOINT{'' if len(s.models) == 1 else 'S'}:"
    blocks: list[Block] = [Facts(_facts(s, matrices, everything))]
    if matrices:
        blocks += [_rule_table(s), *_histograms(matrices), _group_table(s, "kind", None), _group_table(s, "model", rows)]
        if rows is not None and len(s.models) > rows:
            blocks.append(Note(f"and {len(s.models) - rows} more checkpoints: to_pandas(), to_json() and save_html() list every one.", "note"))
    blocks += [Note(plain(n), "note") for n in s.notes]
    blocks += [Note(f"{plain(m.name)}: {m.status}: {plain(m.reason)}", "note") for m in s.models if m.status != "ok"]
    blocks += skipped_notes([a for model in s.models for a in model.apart], "not counted")
    blocks += skipped_notes(s.skipped)
    return [Section(title, blocks, "survey"), Section("ABOUT THIS REPORT", [Facts(about)], "about")]


def _facts(s: Survey, matrices: Sequence[SurveyedMatrix], everything: CollapseShare) -> list[tuple[str, str]]:
    entries = sum(m.parameters for m in s.models)
    pairs = [("matrices", f"{integer(len(matrices))}, {integer(entries)} entries")]
    if s.layers is not None:
        pairs.append(("layers", ", ".join(plain(g) for g in s.layers)))
    if not matrices:
        return pairs
    pairs.append(("aspect ratios", ", ".join(f"{integer(s.share('aspect', a).matrices)} with {a}" for a in ASPECTS)))
    known = np.array([m.s_min for m in matrices if not m.unresolved and not m.exactly_singular])
    if known.size:
        quartiles = ", ".join(number(q, 3) for q in np.quantile(known, [0.25, 0.5, 0.75]))
        pairs.append(("s_min", f"{number(known.min(), 3)} .. {number(known.max(), 3)}, quartiles {quartiles}"))
    pairs.append(("at the noise", f"{integer(everything.unresolved)}: s_min at or below the rounding noise of the stored numbers: only that limit is known"))
    pairs.append(("exactly 0", f"{integer(everything.exactly_singular)}: by their rows or columns of zeros"))
    reasons: Counter[str] = Counter()
    for m in s.models:
        reasons.update(m.not_matrices)
    if reasons:
        named = [f"{integer(n)} x {plain(why)}" for why, n in reasons.most_common(_REASONS)] + (["..."] if len(reasons) > _REASONS else [])
        pairs.append(("no matrices", f"{integer(sum(reasons.values()))} tensors: {'; '.join(named)}"))
    return pairs


def _rule_table(s: Survey) -> Table:
    """A row per rule: what it calls collapsed, of all and of both classes of aspect ratio."""
    groups = [("all", s.share()), *((a, s.share("aspect", a)) for a in ASPECTS)]
    columns = [Column("rule", list(RULES), "left")]
    for name, g in groups:
        columns.append(Column(f"{name}\n({integer(g.matrices)})", [_count_text(g, rule) for rule in RULES]))
        columns.append(Column(f"{name}:\n95 % interval", [_interval_text(g, rule) for rule in RULES], drop=1 if name == "all" else 2))
    return Table(columns, "Matrices that lost rank", _COLLAPSE)


def _count_text(g: CollapseShare, rule: str) -> str:
    return f"{integer(g.collapsed[rule])} = {share(g.share[rule])}" if g.matrices else NOTHING


def _interval_text(g: CollapseShare, rule: str) -> str:
    return f"{100 * g.low[rule]:.1f} .. {100 * g.high[rule]:.1f} %" if g.matrices else NOTHING


def _group_table(s: Survey, by: str, rows: int | None) -> Table:
    groups = [g for g in s.shares if g.by == by][:rows]
    members: dict[str, list[SurveyedMatrix]] = {}
    for m in s.matrices:
        members.setdefault(m.kind if by == "kind" else m.model, []).append(m)
    values = [np.array([0.0 if m.exactly_singular else drawn_at(m) for m in members.get(g.name, [])]) for g in groups]
    limits = [any(m.unresolved and drawn_at(m) == v.min() for m in members.get(g.name, [])) for g, v in zip(groups, values, strict=True)]
    smallest = [("<=" if limit else "") + number(v.min(), 3) if v.size else NOTHING for v, limit in zip(values, limits, strict=True)]
    columns = [
        Column("kind" if by == "kind" else "checkpoint", [plain(g.name) for g in groups], "left", shrink=18, dotted=False),
        Column("matrices", [integer(g.matrices) for g in groups]),
        Column("least\ns_min", smallest),
        Column("median\ns_min", [number(np.median(v), 3) if v.size else NOTHING for v in values], drop=1),
        Column("<=\nnoise", [integer(g.unresolved) for g in groups]),
        Column("= 0", [integer(g.exactly_singular) for g in groups]),
        *(Column(_SHORT_RULES.get(rule, rule), [integer(g.collapsed[rule]) for g in groups]) for rule in RULES),
    ]
    return Table(columns, "By kind" if by == "kind" else "By checkpoint", _GROUPS if by == "model" else "")


def _histograms(matrices: Sequence[SurveyedMatrix]) -> list[Block]:
    """Decades of s_min, a histogram for each class of aspect ratio."""
    blocks: list[Block] = []
    for aspect in ASPECTS:
        found = [m for m in matrices if m.aspect == aspect]
        if not found:
            continue
        decades = [math.floor(math.log10(drawn_at(m))) for m in found if not m.exactly_singular]
        rows = [("exactly 0", sum(m.exactly_singular for m in found) / len(found))] if len(decades) < len(found) else []
        if decades:
            first = max(min(decades), max(decades) - _DECADES)
            below = sum(d < first for d in decades)
            rows += [(f"below 1e{first}", below / len(found))] if below else []
            rows += [(f"1e{d} .. 1e{d + 1}", decades.count(d) / len(found)) for d in range(first, max(decades) + 1)]
        unresolved = sum(m.unresolved for m in found)
        legend = f"{integer(unresolved)} of them by their rounding noise, an upper limit." if unresolved else ""
        blocks.append(Bars(rows, f"Smallest singular value, {aspect} ({integer(len(found))} matrices)", legend, what="s_min"))
    return blocks
