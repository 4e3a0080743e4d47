"""How much memory an analysis may take."""

from __future__ import annotations

from pathlib import Path

import torch

from ..memory import ROOT, SHARE, free_host_memory, host_memory_limit

__all__ = ["SHARE", "free_memory", "memory_limit"]


def memory_limit(max_memory: int | float | None, device: torch.device) -> int:
    """Bytes an analysis may take: max_memory, or 60 % of what is free on ``device``. Raises ValueError for a limit <= 0."""
    return int(SHARE * free_memory(device)) if max_memory is None else host_memory_limit(max_memory)


def free_memory(device: torch.device, root: Path = ROOT) -> int:
    """Bytes free on ``device``; on the CPU the smallest of the system's available memory and what the process's control groups leave.

    root: the directory that holds proc and sys.
    """
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for whoever asks next
        return int(torch.cuda.mem_get_info(device)[0] + held)
    return free_host_memory(root)
