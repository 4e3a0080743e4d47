"""Running one analysis after the other: a failure or an interruption costs that analysis only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ..results import Result, Skipped, Status

__all__ = ["Steps"]

T = TypeVar("T", bound=Result)
A = TypeVar("A")


class Steps:
    """Runs one analysis after the other; a failure or an interruption costs that analysis only."""

    def __init__(self) -> None:
        self.skipped: list[Skipped] = []
        self.interrupted = False
        self.done = 0
        self.failed: list[str] = []
        self.short_of_memory: list[str] = []
        self.notes: list[str] = []

    def outcome(self) -> tuple[Status, str]:
        """Status and reason of the whole: what failed is in both, so that no caller takes a failure for a clean bill."""
        if self.interrupted:
            return "incomplete", "interrupted"
        if self.failed:
            return ("incomplete" if self.done else "failed"), f"failed: {', '.join(self.failed)}"
        if self.short_of_memory:
            return ("incomplete" if self.done else "skipped"), f"max_memory is too little for: {', '.join(self.short_of_memory)}"
        return ("ok", "") if self.done else ("skipped", "nothing to analyse")

    def __call__(self, name: str, include: Sequence[str], analysis: Callable[[], T]) -> T | None:
        if name not in include:
            self.skipped.append(Skipped(name, "not asked for (include)"))
            return None
        if self.interrupted:
            self.skipped.append(Skipped(name, "interrupted before it began"))
            return None
        try:
            result = analysis()
        except KeyboardInterrupt:
            self.interrupted = True
            self.skipped.append(Skipped(name, "interrupted"))
            return None
        except Exception as e:  # one analysis may fail on a model that the others can read: listed, never lost
            self.skipped.append(Skipped(name, f"failed: {type(e).__name__}: {_one_line(e)}"))
            self.failed.append(name)
            return None
        if result.status == "incomplete" and "interrupt" in result.reason:
            self.interrupted = True
        if result.status in ("skipped", "failed"):
            self.skipped.append(Skipped(name, result.reason if result.status == "skipped" else f"failed: {result.reason}"))
        if result.status == "failed":
            self.failed.append(name)
        elif result.status != "skipped":
            self.done += 1
        elif "max_memory" in result.reason:
            self.short_of_memory.append(name)
        return result

    def aside(self, name: str, work: Callable[[], A | None]) -> A | None:
        """What is computed from several analyses; without it the diagnosis is whole too, and a note says why it is missing."""
        if self.interrupted:
            return None
        try:
            return work()
        except KeyboardInterrupt:
            self.interrupted = True
            self.notes.append(f"{name}: interrupted")
        except Exception as e:
            self.notes.append(f"{name}: not computed: {_one_line(e)}")
        return None


def _one_line(e: BaseException) -> str:
    return " ".join(str(e).split())[:300]
