"""``spectral-fast survey``: many checkpoints at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .finish import HtmlOption, JsonOption, finish
from .inputs import check_outputs

__all__ = ["survey"]


def survey(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Checkpoints, and directories to search for checkpoints.")],
    layers: Annotated[list[str] | None, typer.Option("--layers", metavar="GLOB", help="Only tensors whose name matches; may be given again.")] = None,
    store: Annotated[
        Path | None, typer.Option("--store", metavar="DIR", help="Keep every scan in this directory while it runs; a survey that was killed goes on.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew, whatever the store holds.")] = False,
    as_json: JsonOption = None,
    html: HtmlOption = None,
    table: Annotated[Path | None, typer.Option("--table", metavar="FILE", help="Write a row per matrix: .csv or .parquet.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Write the figure: .png, .pdf or .svg.")] = None,
) -> int:
    """Smallest singular values of every matrix in many checkpoints, and the share that lost rank by each rule."""
    check_outputs(html, as_json, table, plot)
    from ..weights.survey import survey as run

    result = run(paths, layers=layers or None, store=store, resume=not fresh)
    if table is not None:
        result.save_table(table)
    if plot is not None:
        result.plot().savefig(plot, dpi=144)
    code = finish(result, (), as_json, html, "never")
    if plot is not None:
        print(f"figure: {plot}", file=sys.stderr if as_json == "-" else sys.stdout)
    return code
