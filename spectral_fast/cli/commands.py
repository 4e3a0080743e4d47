"""The ``spectral-fast`` command: demo, diagnose, info; scan and survey stand in files of their own.

Exit codes: 0 fine, 1 findings at or above ``--fail-on``, 2 bad input, 130 interrupted (what was done is printed and written). Errors are one line
on standard error; with SPECTRAL_FAST_TRACEBACK=1 in the environment they come with where they arose.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .demo_network import DEMO_TRAIN, digits, train
from .finish import BAD_INPUT, INTERRUPTED, OK, BaselineOption, FailOn, FailOption, HtmlOption, JsonOption, NullOption, finish
from .inputs import BadInput, check_outputs, made_by
from .scan_command import scan
from .survey_command import survey

__all__ = ["app", "main"]

app = typer.Typer(
    name="spectral-fast",
    help="What the spectra of a neural network say: weights, gradients, curvature, features.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Budget(str, Enum):
    quick = "quick"
    standard = "standard"
    thorough = "thorough"


@app.callback(invoke_without_command=True)
def _start(context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from .. import __version__

        print(__version__)
        raise typer.Exit(OK)
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(OK)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the page goes.")] = Path("report.html"),
    epochs: Annotated[int, typer.Option("--epochs", min=0, help="Passes over the training images.")] = 60,
    seed: Annotated[int, typer.Option("--seed", help="Of initialisation, order and estimates.")] = 0,
    as_json: JsonOption = None,
) -> int:
    """Train a small network on scikit-learn's digits and diagnose it."""
    check_outputs(out, as_json)
    from ..report.words import share

    images, labels = digits()
    model, accuracies = train(images, labels, epochs, seed)
    if as_json != "-":
        print(f"trained a 64-32-10 network for {epochs} epochs on {DEMO_TRAIN:,} images of digits")
        print(f"accuracy: {share(accuracies[0])} on these, {share(accuracies[1])} on {len(labels) - DEMO_TRAIN} others\n")
    import torch

    from ..diagnosis import diagnose as run

    used = slice(0, DEMO_TRAIN)
    result = run(model, (torch.from_numpy(images[used]), torch.from_numpy(labels[used])), seed=seed)
    return finish(result, result.findings, as_json, out, "never")


@app.command()
def diagnose(
    factory: Annotated[str, typer.Argument(metavar="PACKAGE.MODULE:FACTORY", help="A function returning (model, loader) or (model, loader, loss).")],
    include: Annotated[str, typer.Option("--include", help="Which analyses, separated by commas.")] = "weights,gradients,curvature,collapse",
    k: Annotated[int, typer.Option("--k", min=1, help="Hessian eigenvalues wanted at the top.")] = 10,
    loss: Annotated[str | None, typer.Option("--loss", help="cross_entropy, mse or bce; guessed when left out.")] = None,
    max_batches: Annotated[int | None, typer.Option("--max-batches", min=1, help="Use only so many batches of the loader.")] = None,
    budget: Annotated[Budget, typer.Option("--budget", help="Caps on products and samples.")] = Budget.standard,
    seed: Annotated[int, typer.Option("--seed", help="Of the estimates.")] = 0,
    null: NullOption = None,
    baseline: BaselineOption = None,
    as_json: JsonOption = None,
    html: HtmlOption = None,
    fail_on: FailOption = FailOn.never,
) -> int:
    """Diagnose a model with its data. The current directory is on the import path."""
    check_outputs(html, as_json)
    model, loader, given = made_by(factory)
    from ..diagnosis import diagnose as run

    loss_fn = given if callable(given) else None
    named = loss if loss is not None else given if isinstance(given, str) else None
    if loss is not None and loss_fn is not None:
        raise BadInput(f"--loss: {factory} returns its own loss function; leave one of them out")
    wanted = [part.strip() for part in include.split(",") if part.strip()]
    given_null = None if null is None else null.value
    result = run(
        model,
        loader,
        named,
        loss_fn=loss_fn,
        include=wanted,
        k=k,
        max_batches=max_batches,
        budget=budget.value,
        seed=seed,
        null=given_null,
        baseline=baseline,
    )
    return finish(result, result.findings, as_json, html, fail_on.value)


app.command()(scan)
app.command()(survey)


@app.command()
def info(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> int:
    """Versions, backends in use, and why not a faster one."""
    from ..kernels.select import show_config
    from ..report.terminal import listing

    config = show_config()
    document = {"versions": _versions(), **config}
    print(json.dumps(document, indent=2, default=str) if as_json else "\n".join(listing(document)))
    return OK


def _versions() -> dict[str, str]:
    """Versions of Python and of what is installed; nothing is imported for it."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from .. import __version__

    found = {"spectral_fast": __version__, "python": platform.python_version()}
    for name in ("numpy", "scipy", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    from ..report.terminal import complain

    for stream in (sys.stdout, sys.stderr):
        reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")  # a console that lacks a character shows "?" instead of failing
    try:
        code = app(args=list(arguments) if arguments is not None else None, prog_name="spectral-fast", standalone_mode=False)
        sys.stdout.flush()
    except typer.Exit as leave:
        code = leave.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # The reader (head, less) has gone; the option parser turns that into SystemExit, which nothing else here raises. Python would
        # complain again while closing standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if os.environ.get("SPECTRAL_FAST_TRACEBACK") == "1":
            raise
        complain(_one_line(error))
        return BAD_INPUT
    if code == INTERRUPTED:
        complain("interrupted")
    return code if isinstance(code, int) else OK


def _one_line(error: Exception) -> str:
    told = getattr(error, "format_message", None)  # wrong options: what the option parser says
    if callable(told):
        return f"{told()} (spectral-fast --help)"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, (BadInput, ValueError, TypeError, OSError, ImportError)):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error} (not foreseen; SPECTRAL_FAST_TRACEBACK=1 shows where)"
