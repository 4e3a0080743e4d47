"""How much memory an analysis may take."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["SHARE", "free_memory", "memory_limit"]

SHARE = 0.6  # of what is free, where the caller names no limit
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory.stat"), "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.stat"),
        "total_inactive_file",
    ),
)
_UNKNOWN = 4 << 30  # where the system says nothing


def memory_limit(max_memory: int | float | None, device: torch.device) -> int:
    """Bytes an analysis may take: max_memory, or 60 % of what is free on ``device``. Raises ValueError for a limit <= 0."""
    if max_memory is None:
        return int(SHARE * free_memory(device))
    if not max_memory > 0:
        raise ValueError(f"max_memory: wanted a number of bytes > 0, got {max_memory!r}")
    return int(max_memory)


def free_memory(device: torch.device) -> int:
    """Bytes free on ``device``; on the CPU the smaller of the system's available memory and what the cgroup leaves."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [n for n in (_system_available(), _cgroup_left()) if n is not None]
    return min(found, default=_UNKNOWN)


def _system_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _cgroup_left() -> int | None:
    for limit_file, used_file, stat_file, cache_key in _CGROUPS:
        try:
            limit, used, stat = limit_file.read_text().strip(), int(used_file.read_text()), stat_file.read_text()
        except (OSError, ValueError):
            continue
        if limit == "max":
            return None
        # page cache counts as used but is given back on demand
        cache = next((int(line.split()[1]) for line in stat.splitlines() if line.split()[0] == cache_key), 0)
        return max(int(limit) - used + cache, 0)
    return None
