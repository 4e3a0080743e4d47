"""The ``spectral-fast`` command: demo, diagnose, scan, info.

Exit codes: 0 fine, 1 findings at or above ``--fail-on``, 2 bad input, 130 interrupted (what was done is printed and written). Errors are one line
on standard error; with SPECTRAL_FAST_TRACEBACK=1 in the environment they come with where they arose.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .findings import Finding
    from .results import Result


__all__ = ["app", "main"]

OK, FOUND, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
DEMO_TRAIN = 1437  # images the demo trains on; the other 360 are held out

app = typer.Typer(
    name="spectral-fast",
    help="What the spectra of a neural network say: weights, gradients, curvature, features.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class BadInput(Exception):
    """What the user gave cannot be used; the message is the whole error."""


class FailOn(str, Enum):
    warning = "warning"
    severe = "severe"
    never = "never"


class Budget(str, Enum):
    quick = "quick"
    standard = "standard"
    thorough = "thorough"


JsonOption = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the numbers as JSON; '-' prints them instead of the report.")]
HtmlOption = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write one self-contained page.")]
FailOption = Annotated[FailOn, typer.Option("--fail-on", help="Exit with 1 when a finding is at least so grave.")]


@app.callback(invoke_without_command=True)
def _start(context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from . import __version__

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
    _check_outputs(out, as_json)
    from .report.words import share

    images, labels = _digits()
    model, accuracies = _train(images, labels, epochs, seed)
    if as_json != "-":
        print(f"trained a 64-32-10 network for {epochs} epochs on {DEMO_TRAIN:,} images of digits")
        print(f"accuracy: {share(accuracies[0])} on these, {share(accuracies[1])} on {len(labels) - DEMO_TRAIN} others\n")
    import torch

    from .diagnosis import diagnose as run

    used = slice(0, DEMO_TRAIN)
    result = run(model, (torch.from_numpy(images[used]), torch.from_numpy(labels[used])), seed=seed)
    return _finish(result, result.findings, as_json, out, "never")


@app.command()
def diagnose(
    factory: Annotated[str, typer.Argument(metavar="PACKAGE.MODULE:FACTORY", help="A function returning (model, loader) or (model, loader, loss).")],
    include: Annotated[str, typer.Option("--include", help="Which analyses, separated by commas.")] = "weights,gradients,curvature,collapse",
    k: Annotated[int, typer.Option("--k", min=1, help="Hessian eigenvalues wanted at the top.")] = 10,
    loss: Annotated[str | None, typer.Option("--loss", help="cross_entropy, mse or bce; guessed when left out.")] = None,
    max_batches: Annotated[int | None, typer.Option("--max-batches", min=1, help="Use only so many batches of the loader.")] = None,
    budget: Annotated[Budget, typer.Option("--budget", help="Caps on products and samples.")] = Budget.standard,
    seed: Annotated[int, typer.Option("--seed", help="Of the estimates.")] = 0,
    as_json: JsonOption = None,
    html: HtmlOption = None,
    fail_on: FailOption = FailOn.never,
) -> int:
    """Diagnose a model with its data. The current directory is on the import path."""
    _check_outputs(html, as_json)
    model, loader, given = _made_by(factory)
    from .diagnosis import diagnose as run

    loss_fn = given if callable(given) else None
    named = loss if loss is not None else given if isinstance(given, str) else None
    if loss is not None and loss_fn is not None:
        raise BadInput(f"--loss: {factory} returns its own loss function; leave one of them out")
    wanted = [part.strip() for part in include.split(",") if part.strip()]
    result = run(model, loader, named, loss_fn=loss_fn, include=wanted, k=k, max_batches=max_batches, budget=budget.value, seed=seed)
    return _finish(result, result.findings, as_json, html, fail_on.value)


@app.command()
def scan(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A checkpoint: .safetensors, .pt, .pth, .bin, or a directory holding one.")],
    layers: Annotated[str | None, typer.Option("--layers", metavar="GLOB", help="Only tensors whose name matches.")] = None,
    as_json: JsonOption = None,
    html: HtmlOption = None,
    fail_on: FailOption = FailOn.never,
) -> int:
    """Spectra of every matrix in a checkpoint. Needs no model code and no data."""
    _check_outputs(html, as_json)
    from .findings import weight_findings
    from .weights.scan import scan as run

    spectra = run(str(path), layers=layers)
    return _finish(spectra, weight_findings(spectra), as_json, html, fail_on.value)


@app.command()
def info(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> int:
    """Versions, backends in use, and why not a faster one."""
    from .kernels.select import show_config
    from .report.terminal import listing

    config = show_config()
    print(json.dumps(config, indent=2, default=str) if as_json else "\n".join(listing(config)))
    return OK


def _check_outputs(page: Path | None, as_json: str | None) -> None:
    """Fail before the work rather than after it."""
    for option, path in (("page", page), ("--json", Path(as_json) if as_json not in (None, "-") else None)):
        if path is None:
            continue
        if path.is_dir():
            raise BadInput(f"{option}: {path} is a directory")
        if not path.absolute().parent.is_dir():
            raise BadInput(f"{option}: {path.parent} is not a directory")


def _made_by(reference: str) -> tuple[Any, Any, Any]:
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


def _digits() -> tuple[Any, Any]:
    """(1797, 64) float32 images in [0, 1] and (1797,) int64 labels in a fixed random order."""
    import numpy as np

    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sklearn":  # there, but broken
            raise
        raise BadInput('the demo needs scikit-learn: pip install "spectral_fast[demo]"') from error
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return np.ascontiguousarray(data.data[order] / 16.0, dtype=np.float32), np.ascontiguousarray(data.target[order], dtype=np.int64)


def _train(images: Any, labels: Any, epochs: int, seed: int) -> tuple[Any, tuple[float, float]]:
    """A 64-32-10 network after ``epochs`` of Adam in batches of 64; its accuracy on the training images and on the others."""
    import torch

    torch.manual_seed(seed)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(DEMO_TRAIN), 64):
            adam.zero_grad()
            torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()  # type: ignore[no-untyped-call]
            adam.step()
    with torch.no_grad():
        right = (model(x).argmax(1) == y).double()
    return model, (float(right[:DEMO_TRAIN].mean()), float(right[DEMO_TRAIN:].mean()))


def _finish(result: Result, findings: Sequence[Finding], as_json: str | None, page: Path | None, fail_on: str) -> int:
    """Print the report and write the files; the exit code. fail_on: "warning", "severe" or "never"."""
    from .report.terminal import complain, show

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    from .report.terminal import complain

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


if __name__ == "__main__":
    sys.exit(main())
