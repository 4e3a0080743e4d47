"""Numbers and names as text: rounding, error bars, wrapping, aligned tables. Names are data and stay harmless."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

__all__ = [
    "Column",
    "cells",
    "duration",
    "fact",
    "integer",
    "interval",
    "number",
    "paragraph",
    "pick",
    "plain",
    "plus_minus",
    "shape_text",
    "share",
    "shorten",
    "shorten_all",
    "table",
]

T = TypeVar("T")

NOTHING = "-"


def plain(text: object) -> str:
    """``text`` on one line with every control, format, surrogate, separator and private character replaced by "?".

    Names come from files of strangers: an escape sequence must not reach the terminal, a line separator must not break a table.
    """
    return "".join("?" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") else c for c in str(text))


def cells(text: str) -> int:
    """Terminal cells that ``text`` takes: wide East Asian characters two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def shorten(text: str, width: int) -> str:
    """``text`` in at most ``width`` cells: see :func:`shorten_all`."""
    return shorten_all([text], width)[0]


def shorten_all(texts: Sequence[str], width: int, dotted: bool = True) -> list[str]:
    """Every text in at most ``width`` cells.

    Parts of dotted names become their initials from the left, equally deep in all, numbers stay ("encoder.layer.3.output.dense" ->
    "e.l.3.output.dense"); what is still too long loses its middle, because ends of tensor names tell more than middles. dotted=False: only that.
    """
    deepest = max((t.count(".") for t in texts), default=0) if dotted else 0
    shorter = list(texts)
    for depth in range(deepest + 1):
        initials = [_initials(t, depth) for t in texts]
        if len(set(initials)) < len(set(texts)):  # different names must not look the same
            break
        shorter = initials
        if all(cells(t) <= width for t in shorter):
            return shorter
    cut = [_without_middle(t, width) for t in shorter]
    if len(set(cut)) == len(set(texts)):
        return cut
    # Those that would look the same get their number in the list; tables tell their full names below.
    marks = [f"~{i + 1}" if cut.count(c) > 1 else "" for i, c in enumerate(cut)]
    return [_take(_without_middle(t, max(3, width - len(m))), width - len(m)) + m if m else c for t, m, c in zip(shorter, marks, cut, strict=True)]


def _initials(name: str, depth: int) -> str:
    parts = name.split(".")
    last = min(depth, len(parts) - 1)
    return ".".join([p if p.isdigit() else p[:1] for p in parts[:last]] + parts[last:])


def _without_middle(text: str, width: int) -> str:
    if cells(text) <= width:
        return text
    tail_room = max(1, (width - 2) * 2 // 3)
    head_room = max(0, width - 2 - tail_room)
    return _take(text, head_room) + ".." + _take(text[::-1], tail_room)[::-1]


def _take(text: str, room: int) -> str:
    out = ""
    for c in text:
        if cells(out + c) > room:
            break
        out += c
    return out


def number(x: object, digits: int = 4) -> str:
    """A number in ``digits`` significant digits; "-" for None and NaN (a number that could not be computed is not a number)."""
    if x is None or isinstance(x, str):
        return NOTHING if x is None else x
    value = float(x)  # type: ignore[arg-type]
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    exponent = math.floor(math.log10(abs(rounded)))
    if -3 <= exponent < max(digits, 5):
        return f"{rounded:.{max(0, digits - 1 - exponent)}f}"
    mantissa, power = f"{rounded:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(power):+d}"


def integer(x: object) -> str:
    """A count with thousands separated by commas."""
    if x is None or (isinstance(x, float) and math.isnan(x)):
        return NOTHING
    return f"{int(x):,}"  # type: ignore[call-overload]


def share(x: object, digits: int = 1) -> str:
    """A fraction as per cent; what is not zero never prints as zero."""
    if x is None or math.isnan(float(x)):  # type: ignore[arg-type]
        return NOTHING
    value = 100.0 * float(x)  # type: ignore[arg-type]
    smallest = 10.0**-digits
    if 0 < value < smallest / 2:
        return f"<{smallest:.{digits}f} %"
    return f"{value:.{digits}f} %"


def plus_minus(x: object, error: object) -> str:
    """``x ± error``, the value rounded where the error's second digit stands; without an error bar the value alone."""
    if x is None or math.isnan(float(x)):  # type: ignore[arg-type]
        return NOTHING
    value = float(x)  # type: ignore[arg-type]
    if error is None or not math.isfinite(float(error)) or not math.isfinite(value):  # type: ignore[arg-type]
        return number(value)
    bar = float(error)  # type: ignore[arg-type]
    if bar == 0:
        return f"{number(value)} ± 0"
    top = max(abs(value), bar)
    place = math.floor(math.log10(bar)) - 1
    if 1e-4 <= top < 1e6:
        decimals = max(0, -place)
        return f"{value:.{decimals}f} ± {bar:.{decimals}f}"
    scale = math.floor(math.log10(top))
    decimals = max(0, scale - place)
    return f"({value / 10.0**scale:.{decimals}f} ± {bar / 10.0**scale:.{decimals}f})e{scale:+d}"


def duration(seconds: float) -> str:
    """A time in words, at the precision it is known to: "0.3 s", "45 s", "12 min", "3.4 h", "5.1 days"."""
    if seconds < 1e-3:
        return "< 1 ms"
    for unit, width, until in (("ms", 1e-3, 1000.0), ("s", 1.0, 120.0), ("min", 60.0, 120.0), ("h", 3600.0, 48.0)):
        if seconds < until * width:
            value = seconds / width
            return f"{value:.2g} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{seconds / 86400.0:.3g} days"


def interval(low: object, high: object) -> str:
    return f"{number(low)} .. {number(high)}"


def shape_text(shape: Iterable[int]) -> str:
    return "x".join(str(int(n)) for n in shape) or "scalar"


def pick(value: Any, name: str, default: T) -> T | Any:
    """``value.name`` or ``value[name]``; ``default`` where there is none. Results of one field may be objects or mappings."""
    if isinstance(value, Mapping):
        return value.get(name, default)
    return getattr(value, name, default)


def paragraph(text: object, width: int, indent: int = 0, hang: int | None = None, lead: str = "") -> list[str]:
    """``lead`` and ``text`` wrapped to ``width``; the first line starts at ``indent``, the others at ``hang``."""
    first = " " * indent + lead
    rest = " " * (len(first) if hang is None else hang)
    return textwrap.wrap(plain(text), width=max(width, 30), initial_indent=first, subsequent_indent=rest, break_on_hyphens=False) or [first.rstrip()]


def fact(label: str, text: object, width: int, indent: int = 3, room: int = 20) -> list[str]:
    """One labelled line, the value starting in column ``indent + room``."""
    return paragraph(text, width, lead=f"{label:<{room}}", indent=indent)


@dataclass(frozen=True)
class Column:
    """A column of a text table. title: a line break makes a two-line heading. drop: 0 stays, higher goes first when space is short."""

    title: str
    texts: Sequence[str]
    align: Literal["left", "right"] = "right"
    drop: int = 0
    shrink: int = 0  # the column may be cut to this many cells (0: never)
    dotted: bool = True  # cut texts are names of modules: parts become initials first


def table(columns: Sequence[Column], width: int, indent: int = 3) -> list[str]:
    """Aligned lines of at most ``width`` cells, as far as columns that must stay allow; left-out columns are named below."""
    kept = [c for c in columns if any(t for t in c.texts)]
    room = width - indent
    gap = 2
    widths = {id(c): _natural(c) for c in kept}

    def excess() -> int:
        return sum(widths[id(c)] for c in kept) + gap * (len(kept) - 1) - room

    def shrink_to(limit: int) -> None:
        for c in kept:
            if c.shrink and excess() > 0:
                widths[id(c)] = max(min(max(limit, c.shrink), widths[id(c)]), widths[id(c)] - excess())

    # Names are cut to a fifth of the line, then the gaps go, then columns, and at last names are cut as far as they may.
    shrink_to(width // 5)
    if excess() > 0:
        gap = 1
    dropped: list[Column] = []
    while excess() > 0 and any(c.drop for c in kept):
        victim = max(kept, key=lambda c: c.drop)
        kept.remove(victim)
        dropped.append(victim)
    if dropped:
        for c in kept:  # give back what the last dropped column freed
            widths[id(c)] = min(_natural(c), widths[id(c)] + max(0, -excess())) if c.shrink else widths[id(c)]
    shrink_to(0)

    titles = [c.title.split("\n") for c in kept]
    height = max((len(t) for t in titles), default=0)
    rows = [[([""] * (height - len(t)) + t)[i] for t in titles] for i in range(height)]
    texts = [shorten_all(c.texts, widths[id(c)], c.dotted) if c.shrink else c.texts for c in kept]
    rows += [list(r) for r in zip(*texts, strict=True)]
    lines = [(" " * indent + (" " * gap).join(_pad(text, widths[id(c)], c.align) for text, c in zip(row, kept, strict=True))).rstrip() for row in rows]
    if dropped:
        names = ", ".join(c.title.replace("\n", " ") for c in columns if c in dropped)
        lines += paragraph(f"(left out at this width: {names})", width, indent=indent)
    numbered = {
        short.rpartition("~")[2]: full for c, shown in zip(kept, texts, strict=True) for full, short in zip(c.texts, shown, strict=True) if _marked(short, full)
    }
    if numbered:
        lines += paragraph(f"(in full: {', '.join(f'~{mark} {full}' for mark, full in numbered.items())})", width, indent=indent)
    return lines


def _marked(short: str, full: str) -> bool:
    return short != full and short.rpartition("~")[2].isdigit()


def _natural(c: Column) -> int:
    return max([cells(t) for t in c.title.split("\n")] + [cells(t) for t in c.texts])


def _pad(text: str, width: int, align: str) -> str:
    space = " " * (width - cells(text))
    return text + space if align == "left" else space + text
