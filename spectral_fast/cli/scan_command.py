"""``spectral-fast scan``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from .finish import BaselineOption, FailOn, FailOption, HtmlOption, JsonOption, NullOption, finish
from .inputs import BadInput, check_outputs

__all__ = ["scan"]


def scan(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A checkpoint: .safetensors, .pt, .bin, TorchScript, .gguf, .npz, or a directory with one.")],
    layers: Annotated[list[str] | None, typer.Option("--layers", metavar="GLOB", help="Only tensors whose name matches; may be given again.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what the scan will cost (matrices, operations, bytes, memory, time) and stop.")] = False,
    null: NullOption = None,
    baseline: BaselineOption = None,
    top: Annotated[
        int | None, typer.Option("--top", min=1, metavar="K", help="Only the K leading singular values of large matrices; these are not examined for findings.")
    ] = None,
    top_above: Annotated[int, typer.Option("--top-above", min=0, metavar="N", help="Large: more than N entries.")] = 1 << 24,
    store: Annotated[
        Path | None, typer.Option("--store", metavar="FILE", help="Write every matrix to this SQLite file when it is done; a scan that was killed goes on.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew, whatever the store holds.")] = False,
    max_memory: Annotated[
        str | None, typer.Option("--max-memory", metavar="SIZE", help="What tensors and computation may take together, e.g. 8GB; 60 % of what is free.")
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option("--dask", metavar="ADDRESS|local:N", help="Compute on a Dask cluster, or on N processes here; its workers read PATH."),
    ] = None,
    dask_insecure: Annotated[bool, typer.Option("--dask-insecure", help="Allow a scheduler elsewhere without TLS: whoever reaches it runs code.")] = False,
    device: Annotated[str | None, typer.Option("--device", metavar="DEVICE", help="Where singular values are computed, e.g. cuda; else the CPU.")] = None,
    as_json: JsonOption = None,
    html: HtmlOption = None,
    table: Annotated[Path | None, typer.Option("--table", metavar="FILE", help="Write a row per matrix: .csv or .parquet.")] = None,
    fail_on: FailOption = FailOn.never,
) -> int:
    """Spectra of every matrix in a checkpoint. Needs no model code and no data."""
    check_outputs(html, as_json, table)
    memory = _size(max_memory, dask)
    if fresh and store is None:
        raise BadInput("--fresh: says nothing without --store")
    if dask_insecure and dask is None:
        raise BadInput("--dask-insecure: says nothing without --dask")
    if plan:
        for option, given in (
            ("--html", html),
            ("--table", table),
            ("--store", store),
            ("--null", null),
            ("--baseline", baseline),
            ("--dask", dask),
            ("--device", device),
        ):
            if given is not None:
                raise BadInput(f"{option}: --plan computes nothing; leave one of them out")
        from ..weights.plan import scan_plan

        costs = scan_plan(str(path), layers=layers or None, top=top, top_above=top_above, max_memory=memory)
        return finish(costs, (), as_json, None, "never")
    from ..findings import weight_findings
    from ..weights.scan import scan as run

    given_null = None if null is None else null.value
    with _executor(dask, dask_insecure) as executor:
        spectra = run(
            str(path),
            layers=layers or None,
            null=given_null,
            baseline=baseline,
            top=top,
            top_above=top_above,
            store=store,
            resume=not fresh,
            executor=executor,
            max_memory=memory,
            device=device,
        )
    if table is not None:
        spectra.save_table(table)
    return finish(spectra, weight_findings(spectra), as_json, html, fail_on.value)


def _size(text: str | None, dask: str | None) -> float | None:
    """Bytes for every process; N processes of this machine share what one would take."""
    from ..memory import host_memory_limit, parsed_size

    try:
        workers = int(dask.removeprefix("local:")) if dask is not None and dask.startswith("local:") and dask[6:].isdecimal() else 0
        return (host_memory_limit(None) / workers if workers else None) if text is None else parsed_size(text)
    except ValueError as error:
        raise BadInput(f"--max-memory: {error}") from error


def _executor(address: str | None, insecure: bool) -> Any:
    if address is None:
        return nullcontext()
    from ..integrations.dask import dask_executor

    return dask_executor(address, insecure=insecure)
