"""Progress of long work: a bar on a terminal after one second, a caller's own function, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Bar", "Progress", "ProgressOption", "progress_reporter"]

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
        bar = Bar()
        try:
            yield bar
        finally:
            bar.stop()
    else:
        raise TypeError(f"progress: got {type(progress).__name__}; wanted None, False or a callable(done, total, what)")


class Bar:
    """A rich progress bar that appears late, so that short work leaves the terminal alone."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        self._share: float | None = None
        self._rate = ""

    def work(self, share: float, rate: str) -> None:
        """Where steps differ in cost: the share of the work that is done, by which time left is reckoned, and its rate in words."""
        self._share, self._rate = share, rate

    def __call__(self, done: int, total: int, what: str) -> None:
        if self._bar is None:
            if time.monotonic() - self._start < _PATIENCE_S:
                return
            self._begin()
        if self._share is None:
            place, end = float(done), float(total)
        else:
            place, end = self._share, 1.0
        self._bar.update(
            self._task, description=what, completed=place, total=end, count=f"{done}/{total}", rate=self._rate, left=self._left(place / max(end, 1e-9))
        )

    def _begin(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.text import Text

        class Name(TextColumn):
            def render(self, task: Any) -> Text:  # layer names are data, never markup
                return Text("".join(c if c.isprintable() else "?" for c in str(task.description))[:40].ljust(40))

        class Field(TextColumn):
            def render(self, task: Any) -> Text:
                return Text(str(task.fields.get(self.text_format, "")))

        columns = (Name(""), BarColumn(), Field("count"), Field("rate"), Field("left"))
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._bar.start()
        self._task = self._bar.add_task("", total=1.0)

    def _left(self, share: float) -> str:
        """Time left in words, from the time since the beginning."""
        if not 0.0 < share < 1.0:
            return ""
        seconds = (time.monotonic() - self._start) * (1.0 - share) / share
        hours, rest = divmod(int(seconds + 0.5), 3600)
        return f"{hours}:{rest // 60:02d}:{rest % 60:02d} left" if hours else f"{rest // 60}:{rest % 60:02d} left"

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
