"""The scale of LoRA products from an adapter_config.json beside the weights."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["AdapterConfig", "adapter_config_path", "read_adapter_config"]

_FILE = "adapter_config.json"
_MAX_BYTES = 1_000_000
_PLAIN_KEY = re.compile(r"[\w.]+")


@dataclass(frozen=True)
class AdapterConfig:
    """What the scale alpha/r of an adapter is.

    alpha: lora_alpha. rank_stabilized: alpha/sqrt(r) instead (Kalajdzievski 2023). alphas: alpha of single modules, by the end of their names.
    reason: why nothing is known, "" when alpha is. r is not taken from here: the shapes say it.
    """

    alpha: float = math.nan
    rank_stabilized: bool = False
    alphas: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    def scale(self, module: str, rank: int) -> float:
        """The factor before B A of ``module``; NaN when it is not known."""
        alpha = next((a for end, a in self.alphas.items() if module == end or module.endswith(f".{end}")), self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def adapter_config_path(path: str | os.PathLike[str]) -> Path:
    """Where it would be."""
    given = Path(path)
    return (given if given.is_dir() else given.parent) / _FILE


def read_adapter_config(path: str | os.PathLike[str]) -> AdapterConfig | None:
    """The adapter_config.json in the directory ``path`` or beside the file ``path``; None when there is none."""
    file = adapter_config_path(path)
    try:
        with open(file, "rb") as f:
            raw = f.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return AdapterConfig(reason=f"{_FILE} cannot be read: {error.strerror or error}")
    if len(raw) > _MAX_BYTES:
        return AdapterConfig(reason=f"{_FILE} is larger than {_MAX_BYTES} bytes")
    try:
        config = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return AdapterConfig(reason=f"{_FILE} is not valid JSON: {str(error)[:200]}")
    return _checked(config) if isinstance(config, dict) else AdapterConfig(reason=f"{_FILE} holds no object")


def _checked(config: dict[str, Any]) -> AdapterConfig:
    alpha = config.get("lora_alpha")
    stabilized = config.get("use_rslora", False)
    pattern = config.get("alpha_pattern") or {}
    if alpha is None or not _is_number(alpha) or not isinstance(stabilized, bool):
        return AdapterConfig(reason=f"{_FILE} has no lora_alpha that is a number, or a use_rslora that is no boolean")
    if not isinstance(pattern, dict) or not all(_is_number(a) for a in pattern.values()):
        return AdapterConfig(reason=f"alpha_pattern of {_FILE} is no map of numbers")
    # The keys may be regular expressions; one from a stranger is not run. A name with dots alone means the same read as an ending.
    if not all(_PLAIN_KEY.fullmatch(key) for key in pattern):
        return AdapterConfig(reason=f"alpha_pattern of {_FILE} holds regular expressions")
    return AdapterConfig(float(alpha), stabilized, {key: float(a) for key, a in pattern.items()})


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False
