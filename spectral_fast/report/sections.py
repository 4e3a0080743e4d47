"""Every result class -> its sections, through one table; the order of a whole diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .advice_sections import ablation_section, advice_section
from .blocks import Block, Facts, Findings, Note, Section
from .curvature_sections import TITLE as CURVATURE_TITLE
from .curvature_sections import curvature_section, density_section, eigen_section, trace_section
from .learning_sections import COLLAPSE_TITLE, GRADIENT_TITLE, collapse_section, gradient_section, overlap_blocks
from .lowrank_sections import lowrank_section
from .plan_sections import plan_section
from .survey_sections import survey_sections
from .trajectory_sections import trajectory_section
from .weight_sections import TITLE as WEIGHT_TITLE
from .weight_sections import matrix_section, skipped_notes, weight_section
from .words import number, plain

if TYPE_CHECKING:
    from ..diagnosis import Diagnosis
    from ..findings import Finding
    from ..results import Result
    from ..weights.advise import Advice
    from ..weights.spectra import WeightSpectra

__all__ = ["by_severity", "findings_title", "sections"]

_ANALYSES: tuple[tuple[str, str, Callable[[Any, str], Section]], ...] = (
    ("weights", WEIGHT_TITLE, weight_section),
    ("gradients", GRADIENT_TITLE, gradient_section),
    ("curvature", CURVATURE_TITLE, curvature_section),
    ("collapse", COLLAPSE_TITLE, collapse_section),
)
_SEVERITIES = ("severe", "warning", "info")


def sections(result: Result, rows: int | None = None) -> list[Section]:
    """What a result has to say.

    rows: at most so many matrices in the table of weights (None: all). Raises TypeError for a class that is not a result of this package.
    """
    name = type(result).__name__
    make = _SECTIONS.get(name)
    if make is None:
        raise TypeError(f"result: got {name}; known: {', '.join(sorted(_SECTIONS))}")
    return make(result, rows)


def by_severity(findings: Sequence[Finding]) -> list[Finding]:
    """Severe first; findings of one severity stay in the order they were found."""
    return sorted(findings, key=lambda f: _SEVERITIES.index(f.severity) if f.severity in _SEVERITIES else len(_SEVERITIES))


def findings_title(findings: Sequence[Finding]) -> str:
    if not findings:
        return "FINDINGS"
    counts = [(sum(f.severity == s for f in findings), s) for s in _SEVERITIES]
    names = {"severe": ("severe", "severe"), "warning": ("warning", "warnings"), "info": ("remark", "remarks")}
    return f"FINDINGS ({', '.join(f'{n} {names[s][n > 1]}' for n, s in counts if n)})"


def _findings_section(findings: Sequence[Finding], looked_at: str) -> Section:
    ordered = by_severity(findings)
    nothing = f"none: no threshold was crossed in {looked_at}" if looked_at else "none: nothing was analysed"
    blocks: list[Block] = [Findings(ordered)] if ordered else [Note(nothing)]
    return Section(findings_title(ordered), blocks, "findings")


def _diagnosis(d: Diagnosis, rows: int | None) -> list[Section]:
    out = []
    reasons = {s.name: s.reason for s in d.skipped}
    for position, (key, title, make) in enumerate(_ANALYSES, start=1):
        heading = f"{position}. {title}:"
        result: Any = getattr(d, key)
        if result is None:
            out.append(Section(heading, [Note(plain(reasons.get(key, "not asked for")), "skipped")], key))
        elif result.status in ("skipped", "failed"):  # its numbers are all NaN
            out.append(Section(heading, [Note(plain(result.reason), result.status), *(Note(plain(n), "note") for n in getattr(result, "notes", ()))], key))
        else:
            section = weight_section(result, heading, rows) if key == "weights" else make(result, heading)
            if key == "gradients" and d.overlaps is not None:
                section = Section(section.title, [*section.blocks, *overlap_blocks(d.overlaps)], section.key)
            out.append(section)
    done = [key for key, _, _ in _ANALYSES if (r := getattr(d, key)) is not None and r.status not in ("skipped", "failed")]
    out.append(_findings_section(d.findings, ", ".join(done)))
    out.append(_diagnosis_end(d))
    return out


def _diagnosis_end(d: Diagnosis) -> Section:
    keys = {key for key, _, _ in _ANALYSES}
    facts = [("model", plain(d.model_name))] if d.model_name else []
    if d.status != "ok":
        facts.append(("status", f"{d.status}: {plain(d.reason)}"))
    facts += [("backend", plain(d.backend)), ("time", f"{number(d.seconds, 3)} s")]
    blocks: list[Block] = [Facts(facts), *(Note(plain(n), "note") for n in d.notes)]
    # The analyses' own reasons stand under their headings; here all of them again in one place, with whatever else was left out.
    blocks += skipped_notes([s for s in d.skipped if s.name in keys]) + skipped_notes([s for s in d.skipped if s.name not in keys])
    return Section("ABOUT THIS REPORT", blocks, "about")


def _weights(w: WeightSpectra, rows: int | None) -> list[Section]:
    from ..findings import weight_findings

    facts = [("backend", plain(w.backend)), ("time", f"{number(w.seconds, 3)} s")]
    if w.status != "ok":
        facts.insert(0, ("status", f"{w.status}: {plain(w.reason)}"))
    findings = _findings_section(weight_findings(w), "the weights" if any(m.status == "ok" for m in w.matrices) else "")
    partly = sum(m.status == "incomplete" for m in w.matrices)
    if partly:
        text = f"{partly} of {len(w.matrices)} matrices were not examined: only their leading singular values were computed"
        findings = Section(findings.title, [*findings.blocks, Note(text, "note")], findings.key)
    return [weight_section(w, f"{WEIGHT_TITLE}:", rows), findings, Section("ABOUT THIS REPORT", [Facts(facts)], "about")]


def _advice(a: Advice, rows: int | None) -> list[Section]:
    section = advice_section(a, rows)
    return [Section(section.title, [*section.blocks, Facts([("backend", plain(a.backend))])], section.key)]


def _one(make: Callable[[Any], Section]) -> Callable[[Any, int | None], list[Section]]:
    """Single results: their section, then the line about backend and status that every result ends with."""

    def both(result: Any, rows: int | None) -> list[Section]:
        section = make(result)
        return [Section(section.title, [*section.blocks, Facts([("backend", plain(result.backend))])], section.key)]

    return both


_SECTIONS: dict[str, Callable[[Any, int | None], list[Section]]] = {
    "Diagnosis": _diagnosis,
    "WeightSpectra": _weights,
    "MatrixSpectrum": _one(matrix_section),
    "GradientSpectrum": _one(gradient_section),
    "CurvatureSpectra": _one(curvature_section),
    "EigenResult": _one(eigen_section),
    "LowRankSVD": _one(lowrank_section),
    "SpectralDensity": _one(density_section),
    "TraceResult": _one(trace_section),
    "NeuralCollapse": _one(collapse_section),
    "Ablation": _one(ablation_section),
    "Trajectory": _one(trajectory_section),
    "Advice": _advice,
    "ScanPlan": _one(plan_section),
    "Survey": survey_sections,
}
