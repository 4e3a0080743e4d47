"""Results on a terminal: colour, nested settings as lines, errors in one line. What is shown is data: rich is never given markup."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .words import plain

if TYPE_CHECKING:
    from ..results import Result

__all__ = ["complain", "listing", "show"]

_COLOURS = (("SEVERE", "bold red"), ("WARNING", "bold yellow"), ("INFO", "bold blue"))


def show(result: Result) -> None:
    """The report on standard output, in colour on a terminal."""
    from rich.console import Console
    from rich.text import Text

    from .text import summarize

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        print(summarize(result))
        return
    for line in summarize(result, width=max(60, min(120, console.width))).split("\n"):
        text = Text(line, style="bold" if line and not line.startswith(" ") else "")
        for word, style in _COLOURS:
            at = line.find(f". {word}  ")
            if 0 < at < 6:
                text.stylize(style, at + 2, at + 2 + len(word))
        console.print(text, soft_wrap=True)


def listing(values: Mapping[Any, Any], indent: int = 0) -> list[str]:
    """Nested settings as indented lines."""
    room = max((len(str(k)) for k in values), default=0) + 2
    lines: list[str] = []
    for key, value in values.items():
        label = " " * indent + plain(key)
        if isinstance(value, Mapping) and value:
            lines += [label, *listing(value, indent + 2)]
        else:
            text = ", ".join(plain(v) for v in value) if isinstance(value, (list, tuple, set)) else plain(value)
            lines.append(f"{label:<{room + indent}}{text or '-'}")
    return lines


def complain(message: str) -> None:
    """One line on standard error."""
    print("error: " + plain(" ".join(message.split())), file=sys.stderr)
