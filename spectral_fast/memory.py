"""Memory of this machine: what may be taken without asking. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from numbers import Real
from pathlib import Path

__all__ = ["ROOT", "SHARE", "byte_size", "free_host_memory", "host_memory_limit", "parsed_size"]

SHARE = 0.6  # of what is free, where the caller names no limit
_UNKNOWN = 4 << 30  # where the system says nothing
ROOT = Path("/")
_UNITS = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}
# files of a control group: its limit, what it uses, and the name of the page cache in memory.stat (groups below it included)
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def host_memory_limit(max_memory: int | float | None) -> int:
    """Bytes that may be taken: max_memory, or 60 % of what is free. Raises ValueError for a limit <= 0 or no number."""
    if max_memory is None:
        return int(SHARE * free_host_memory())
    if isinstance(max_memory, bool) or not isinstance(max_memory, Real) or not max_memory > 0:
        raise ValueError(f"max_memory: wanted a number of bytes > 0, got {max_memory!r}")
    return int(min(max_memory, 2**62))


def byte_size(nbytes: float) -> str:
    """Bytes in words: "2.2 GB" (powers of ten)."""
    for unit, width in _UNITS.items():
        if nbytes >= width:
            return f"{nbytes / width:.3g} {unit}"
    return f"{nbytes:.0f} bytes"


def parsed_size(text: str) -> float:
    """Bytes from words: "8 GB", "512MB", "1.5GiB" or a plain number. Raises ValueError."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)(I?)B?\s*", text.upper())
    try:
        if found is None:
            raise ValueError
        amount, letter, binary = found.groups()
        return float(amount) * (1024.0 if binary else 1000.0) ** (" KMGT".index(letter.upper() or " "))
    except ValueError:
        raise ValueError(f"wanted bytes such as 8GB, 512MB or 1.5GiB, got {text!r}") from None


def free_host_memory(root: Path = ROOT) -> int:
    """Bytes free: the smallest of the system's available memory and what the process's control groups leave.

    root: the directory that holds proc and sys.
    """
    found = [n for n in (_system_available(root), *_groups_left(root)) if n is not None]
    return min(found, default=_UNKNOWN)


def _system_available(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _groups_left(root: Path) -> Iterator[int]:
    """What the limits of the process's control groups and of all groups above them leave, versions 2 and 1."""
    for home, files in _groups(root):
        left = _left(home, *files)
        if left is not None:
            yield left


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    own = {tuple(controllers.split(",")): path for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2)}
    by_version = ((mount, _V2, own.get(("",), "")), (mount / "memory", _V1, next((path for names, path in own.items() if "memory" in names), "")))
    for base, files, path in by_version:
        # inside a container the path may be the host's and missing here, or lead out of the mount; the mount itself is then the group
        parts = [part for part in path.split("/") if part]
        if ".." in parts:
            parts = []
        for depth in range(len(parts), -1, -1):
            yield base.joinpath(*parts[:depth]), files


def _left(home: Path, limit_file: str, used_file: str, cache_key: str) -> int | None:
    """Bytes one group leaves, None where it has no limit or no such files."""
    try:
        limit, used = (home / limit_file).read_text().strip(), int((home / used_file).read_text())
        if limit == "max":
            return None
        stat = [line.split() for line in (home / "memory.stat").read_text().splitlines()]
        # page cache counts as used but is given back on demand
        cache = next((int(words[1]) for words in stat if words[:1] == [cache_key]), 0)
        return max(int(limit) - used + cache, 0)
    except (OSError, ValueError):
        return None
