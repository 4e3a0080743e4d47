"""Results as one static page: nothing is loaded from anywhere, no scripts, everything that came from outside is escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .blocks import Bars, Facts, Findings, Note, Section, Table
from .page_style import STYLE
from .plots import plot, png
from .sections import sections
from .words import Column, plain, share

if TYPE_CHECKING:
    from ..results import Result

__all__ = ["fragment", "page"]

# No script, font, frame, form or request of any kind, even if escaping failed somewhere.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_PAGE_STYLE = "html, body { margin: 0; padding: 0; } main.spectral-fast { max-width: 1320px; margin: 0 auto; padding: 1.6rem 1.2rem 3rem; }"
_BACKGROUND = "@media (prefers-color-scheme: dark) { html { background: #14181e; } }"


def page(result: Result) -> str:
    """A whole HTML document: findings first, then every section with its figure. Raises TypeError for a class that is not a result."""
    found = sections(result)
    heading = _heading(result)
    ordered = [s for s in found if s.key == "findings"] + [s for s in found if s.key != "findings"]
    figures = _figures(result)
    body = "\n".join(_section(s, figures.get(s.key, "")) for s in ordered)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{safe(heading)}</title>\n<style>{STYLE}{_PAGE_STYLE}{_BACKGROUND}</style>\n</head>\n"
        f'<body>\n<main class="spectral-fast">\n<h1>{safe(heading)}</h1>\n{_status(result)}{body}\n</main>\n</body>\n</html>\n'
    )


def fragment(result: Result) -> str:
    """The same without figures and page frame, for notebooks."""
    found = sections(result, rows=100)
    ordered = [s for s in found if s.key == "findings"] + [s for s in found if s.key != "findings"]
    return f'<div class="spectral-fast"><style>{STYLE}</style>{_status(result)}' + "".join(_section(s) for s in ordered) + "</div>"


def safe(text: object) -> str:
    """Text without control characters (U+2028 and the like too), escaped for element content and quoted attributes."""
    return html.escape(plain(text), quote=True)


def _heading(result: Any) -> str:
    subject = getattr(result, "model_name", "") or getattr(result, "source", "") or getattr(result, "name", "")
    name = type(result).__name__
    kind = _HEADINGS.get(name, name)
    return f"{kind}: {plain(subject)}" if subject else kind


_HEADINGS = {"Diagnosis": "Neural network eigenvalue analysis", "WeightSpectra": "Weight spectra", "Survey": "Survey of weight matrices"}


def _status(result: Result) -> str:
    return "" if result.status == "ok" else f'<p><span class="lead">{safe(result.status)}:</span> {safe(result.reason)}</p>\n'


def _figures(result: Any) -> dict[str, str]:
    """Image elements by section key."""
    if type(result).__name__ != "Diagnosis":
        return {_KEYS[type(result).__name__]: _image(result)}
    parts = {key: getattr(result, key) for key in ("weights", "gradients", "curvature", "collapse")}
    return {key: _image(part) for key, part in parts.items() if part is not None and part.status not in ("skipped", "failed")}


_KEYS = {
    "WeightSpectra": "weights",
    "MatrixSpectrum": "weights",
    "GradientSpectrum": "gradients",
    "CurvatureSpectra": "curvature",
    "EigenResult": "curvature",
    "LowRankSVD": "lowrank",
    "SpectralDensity": "curvature",
    "TraceResult": "curvature",
    "NeuralCollapse": "collapse",
    "Ablation": "ablation",
    "Advice": "advice",
    "Survey": "survey",
    "Trajectory": "trajectory",
}


def _image(result: Result) -> str:
    figure = plot(result)
    words = "; ".join(ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left"))
    data = base64.b64encode(png(figure)).decode("ascii")
    width = round(figure.get_figwidth() * 96)
    return f'<img src="data:image/png;base64,{data}" width="{width}" alt="{safe(words)}">\n'


def _section(section: Section, figure: str = "") -> str:
    blocks = "".join(_BLOCKS[type(b).__name__](b) for b in section.blocks)
    return f"<section>\n<h2>{safe(section.title.rstrip(':'))}</h2>\n{blocks}{figure}</section>\n"


def _facts(block: Facts) -> str:
    return "<dl>" + "".join(f"<dt>{safe(label)}</dt><dd>{safe(value)}</dd>" for label, value in block.pairs) + "</dl>\n"


def _note(block: Note) -> str:
    lead = f'<span class="lead">{safe(block.lead)}:</span> ' if block.lead else ""
    return f"<p>{lead}{safe(block.text)}</p>\n"


def _table(block: Table) -> str:
    columns = [c for c in block.columns if any(c.texts)]
    classes = ["left" if c.align == "left" else "" for c in columns]
    if classes and columns[0].align == "left":
        classes[0] = "left name"
    head = "".join(f'<th scope="col" class="{k}">{safe(c.title.replace(chr(10), " "))}</th>' for c, k in zip(columns, classes, strict=True))
    rows = zip(*(c.texts for c in columns), strict=True)
    body = "".join("<tr>" + "".join(f'<td class="{k}">{safe(t)}</td>' for t, k in zip(row, classes, strict=True)) + "</tr>\n" for row in rows)
    return _captioned(block, f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>")


def _bars(block: Bars) -> str:
    most = max(value for _, value in block.rows) or 1.0
    body = "".join(
        f'<tr><td>{safe(label)}</td><td>{share(value, 2)}</td><td class="bars"><span class="bar" style="width:{100 * value / most:.2f}%"></span></td></tr>\n'
        for label, value in block.rows
    )
    return _captioned(block, f'<thead><tr><th scope="col">{safe(block.what)}</th><th scope="col">share</th><th></th></tr></thead><tbody>{body}</tbody>')


def _captioned(block: Table | Bars, inside: str) -> str:
    caption = f"<caption>{safe(block.caption)}</caption>" if block.caption else ""
    legend = f'<p class="dim">{safe(block.legend)}</p>\n' if block.legend else ""
    return f'<div class="scroll"><table>{caption}{inside}</table></div>\n{legend}'


def _findings(block: Findings) -> str:
    out = []
    for group in block.groups:
        f = group[0]
        severity = f.severity if f.severity in ("severe", "warning", "info") else "info"
        where = f"<code>{safe(f.where)}</code>" if len(group) == 1 else f"{len(group)} places"
        out.append(f'<article class="finding {severity}"><h3><span class="badge">{safe(f.severity)}</span>{where}: {safe(f.title)}</h3>')
        same_advice = len({g.advice for g in group}) == 1
        pairs = [("evidence", f.evidence), ("compared", f.comparison)] if len(group) == 1 else []
        if len(group) > 1:
            columns = [
                Column("where", [g.where for g in group], "left"),
                Column("evidence", [g.evidence for g in group], "left"),
                Column("compared", [g.comparison for g in group], "left"),
            ]
            if not same_advice:
                columns.append(Column("advice", [g.advice for g in group], "left"))
            out.append(_table(Table(columns)))
        pairs += [("advice", f.advice)] if same_advice else []
        out.append(_facts(Facts([(label, text) for label, text in (*pairs, ("source", f.source)) if text])) + "</article>\n")
    return "".join(out)


_BLOCKS: dict[str, Callable[[Any], str]] = {"Facts": _facts, "Note": _note, "Table": _table, "Bars": _bars, "Findings": _findings}
