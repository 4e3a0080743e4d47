"""What the user gave: files to write, a function that makes the model."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["FIGURES", "BadInput", "check_outputs", "made_by"]

TABLES = (".csv", ".parquet")
FIGURES = (".png", ".pdf", ".svg")


class BadInput(Exception):
    """What the user gave cannot be used; the message is the whole error."""


def check_outputs(page: Path | None, as_json: str | None, table: Path | None = None, plot: Path | None = None) -> None:
    """Fail before the work rather than after it."""
    if table is not None and table.suffix.lower() not in TABLES:
        raise BadInput(f"--table: {table}: wanted a name that ends in {' or '.join(TABLES)}")
    if plot is not None and plot.suffix.lower() not in FIGURES:
        raise BadInput(f"--plot: {plot}: wanted a name that ends in {', '.join(FIGURES[:-1])} or {FIGURES[-1]}")
    given = (("page", page), ("--json", Path(as_json) if as_json not in (None, "-") else None), ("--table", table), ("--plot", plot))
    for option, path in given:
        if path is None:
            continue
        if path.is_dir():
            raise BadInput(f"{option}: {path} is a directory")
        if not path.absolute().parent.is_dir():
            raise BadInput(f"{option}: {path.parent} is not a directory")


def made_by(reference: str) -> tuple[Any, Any, Any]:
    """(model, loader, loss) of ``package.module:factory``; a loader or loss that is not returned is None."""
    module_name, colon, function_name = reference.partition(":")
    if not colon or not module_name or not function_name or module_name.endswith(".py"):
        raise BadInput(f"{reference}: wanted package.module:factory, such as training.setup:model_and_loader")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise BadInput(f"{module_name}: cannot be imported: {type(error).__name__}: {error}") from error
    factory = getattr(module, function_name, None)
    if not callable(factory):
        raise BadInput(f"{module_name}: has no function {function_name!r}")
    try:
        made = factory()
    except (Exception, SystemExit) as error:
        raise BadInput(f"{reference}: raised {type(error).__name__}: {error}") from error
    parts = made if isinstance(made, tuple) else (made,)
    if not 1 <= len(parts) <= 3:
        raise BadInput(f"{reference}: returned {len(parts)} values; wanted (model, loader) or (model, loader, loss)")
    model, loader, loss = (*parts, None, None)[:3]
    if loss is not None and not isinstance(loss, str) and not callable(loss):
        raise BadInput(f"{reference}: its loss is a {type(loss).__name__}; wanted a name or a function(outputs, targets)")
    return model, loader, loss
