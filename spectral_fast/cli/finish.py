"""What every command that makes a report has in common: its options for output, how it ends, its exit code."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..findings import Finding
    from ..results import Result

__all__ = [
    "BAD_INPUT",
    "FOUND",
    "INTERRUPTED",
    "OK",
    "BaselineOption",
    "FailOn",
    "FailOption",
    "HtmlOption",
    "JsonOption",
    "Null",
    "NullOption",
    "finish",
]

OK, FOUND, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class FailOn(str, Enum):
    warning = "warning"
    severe = "severe"
    never = "never"


class Null(str, Enum):
    permutation = "permutation"


JsonOption = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the numbers as JSON; '-' prints them instead of the report.")]
HtmlOption = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write one self-contained page.")]
BaselineOption = Annotated[str | None, typer.Option("--baseline", metavar="PATH", help="A checkpoint to compare the weights with, instead of random matrices.")]
NullOption = Annotated[Null | None, typer.Option("--null", help="Also compare with shuffles of every matrix's entries; 20 times the cost.")]
FailOption = Annotated[FailOn, typer.Option("--fail-on", help="Exit with 1 when a finding is at least so grave.")]


def finish(result: Result, findings: Sequence[Finding], as_json: str | None, page: Path | None, fail_on: str) -> int:
    """Print the report and write the files; the exit code. fail_on: "warning", "severe" or "never"."""
    from ..report.terminal import complain, show

    if as_json is not None:
        document = result.to_dict()
        document.setdefault("findings", [dataclasses.asdict(f) for f in findings])
        text = json.dumps(document, allow_nan=False)
        if as_json == "-":
            print(text)
        else:
            Path(as_json).write_text(text + "\n", encoding="utf-8")
    if as_json != "-":
        show(result)
    if page is not None:
        result.save_html(page)
        print(f"page: {page}", file=sys.stderr if as_json == "-" else sys.stdout)
    if result.status == "incomplete" and "interrupt" in result.reason:
        return INTERRUPTED
    if result.reason.startswith("failed: "):  # the report says why; an analysis that failed is no clean bill
        complain(result.reason)
        return BAD_INPUT
    grave = {"warning": ("warning", "severe"), "severe": ("severe",), "never": ()}[fail_on]
    return FOUND if any(f.severity in grave for f in findings) else OK
