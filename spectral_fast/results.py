"""The base class of every result: a status, a backend, and the ways to show and keep it.

Results are plain frozen dataclasses of numbers. How they look is the business of ``spectral_fast.report``, imported only when
something is to be shown.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Result", "Skipped", "Status"]

Status = Literal["ok", "skipped", "failed", "incomplete", "unresolved"]


@dataclass(frozen=True)
class Skipped:
    """Something that was not analysed, and why.

    name: tensor or analysis. shape: of the tensor, where there is one.
    """

    name: str
    reason: str
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Result:
    """Base of all results.

    status:  "ok", "skipped", "failed", "incomplete" or "unresolved".
    reason:  why the status is not "ok"; empty otherwise.
    backend: what computed it.
    """

    status: Status = "ok"
    reason: str = ""
    backend: str = "numpy"

    def summary(self) -> str:
        """The result in words: plain text, at most 120 columns."""
        from .report import text

        return text.summarize(_on_host(self))

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-safe builtins: arrays become lists; NaN becomes None, infinities "inf" and "-inf"."""
        host = _on_host(self)
        plain = _plain({f.name: getattr(host, f.name) for f in dataclasses.fields(self) if f.repr})
        return {"type": type(self).__name__, **plain}

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The result as strict JSON (RFC 8259: no NaN literals); written to ``path`` as UTF-8 when given."""
        text = json.dumps(self.to_dict(), allow_nan=False, ensure_ascii=True)
        if path is not None:
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
        return text

    def to_pandas(self) -> pd.DataFrame:
        """The result as a table: a row per matrix, layer, eigenvalue or finding. Needs pandas."""
        from .report import tables

        return tables.to_frame(_on_host(self))

    def save_table(self, path: str | os.PathLike[str]) -> None:
        """The table of ``to_pandas`` as a file: .csv (no pandas needed) or .parquet (pandas and pyarrow)."""
        from .report import tables

        tables.save_table(_on_host(self), path)

    def plot(self, **options: Any) -> Figure:
        """The result as a matplotlib figure, made without touching pyplot's state."""
        from .report import plots

        return plots.plot(_on_host(self), **options)

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write one self-contained page that loads nothing from anywhere."""
        from .report import html

        page = html.page(_on_host(self))
        with open(path, "w", encoding="utf-8") as f:
            f.write(page)

    def _repr_html_(self) -> str:
        from .report import html

        return html.fragment(_on_host(self))

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        why = f", reason={self.reason!r}" if self.reason else ""
        return f"<{type(self).__name__} status={self.status!r}{why}>"


def _on_host(result: Result) -> Result:
    """``result`` with numpy arrays where it holds torch tensors (results of torch matrices do): what is shown and kept is numpy."""
    torch = sys.modules.get("torch")
    if torch is None:
        return result
    values = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    moved = {name: value.detach().cpu().numpy() for name, value in values.items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(result, **moved) if moved else result


def _plain(value: Any) -> Any:
    """``value`` in builtins that json accepts; the one place that decides how a number is written."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Result):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.repr}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "f" and np.isfinite(value).all():
            return value.tolist()
        return [_plain(v) for v in value.tolist()] if value.ndim else _plain(value.item())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return value if math.isfinite(value) else ("inf" if value > 0 else "-inf")
    raise TypeError(f"{type(value).__name__} has no JSON form")
