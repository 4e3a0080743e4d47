"""How much memory an analysis may take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

__all__ = ["SHARE", "free_memory", "memory_limit"]

SHARE = 0.6  # of what is free, where the caller names no limit
_UNKNOWN = 4 << 30  # where the system says nothing
_ROOT = Path("/")
# files of a control group: its limit, what it uses, and the name of the page cache in memory.stat (groups below it included)
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def memory_limit(max_memory: int | float | None, device: torch.device) -> int:
    """Bytes an analysis may take: max_memory, or 60 % of what is free on ``device``. Raises ValueError for a limit <= 0."""
    if max_memory is None:
        return int(SHARE * free_memory(device))
    if not max_memory > 0:
        raise ValueError(f"max_memory: wanted a number of bytes > 0, got {max_memory!r}")
    return int(min(max_memory, 2**62))


def free_memory(device: torch.device, root: Path = _ROOT) -> int:
    """Bytes free on ``device``; on the CPU the smallest of the system's available memory and what the process's control groups leave.

    root: the directory that holds proc and sys.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
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
