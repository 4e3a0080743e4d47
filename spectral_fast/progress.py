"""Progress of long work: a bar on a terminal after one second, a caller's own function, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Progress", "ProgressOption", "progress_reporter"]

Progress = Callable[[int, int, str], None]
ProgressOption = Progress | bool | None

_PATIENCE_S = 1.0


def _nothing(done: int, total: int, what: str) -> None:
    pass


@contextmanager
def progress_reporter(progress: ProgressOption) -> Iterator[Progress]:
    """The function to call as f(done, total, what) while working.

    progress: None: a bar on standard error where that is a terminal, shown once the work has lasted a second; False: nothing; a callable:
              called as it is.
    Raises TypeError for anything else.
    """
    if callable(progress):
        yield progress
    elif progress is False or (progress is None and not sys.stderr.isatty()):
        yield _nothing
    elif progress is None or progress is True:
        bar = _Bar()
        try:
            yield bar
        finally:
            bar.stop()
    else:
        raise TypeError(f"progress: got {type(progress).__name__}; wanted None, False or a callable(done, total, what)")


class _Bar:
    """A rich progress bar that appears late, so that short work leaves the terminal alone."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, done: int, total: int, what: str) -> None:
        if self._bar is None:
            if time.monotonic() - self._start < _PATIENCE_S:
                return
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.text import Text

            class Name(TextColumn):
                def render(self, task: Any) -> Text:  # layer names are data, never markup
                    return Text("".join(c if c.isprintable() else "?" for c in str(task.description))[:40].ljust(40))

            self._bar = Progress(Name(""), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(what, total=total)
        self._bar.update(self._task, description=what, completed=done, total=total)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
