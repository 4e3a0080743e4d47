"""The result base class: strict JSON, no surprises in representation."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from spectral_fast.results import Result, Skipped


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Inner(Result):
    values: np.ndarray
    names: dict[str, float] = field(default_factory=dict)
    hidden: object = field(default=None, repr=False)


def test_json_is_strict_and_complete(tmp_path: Path) -> None:
    r = Inner(
        values=np.array([[1.0, math.nan], [math.inf, -math.inf]]),
        names={"a": np.float32(0.5), "n": np.int64(3), "b": np.bool_(True)},
        hidden=object(),
        reason='quote " and \u2028 and <b>',
    )
    text = r.to_json(tmp_path / "r.json")
    assert (tmp_path / "r.json").read_text(encoding="utf-8") == text
    data = json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert data == {
        "type": "Inner", "status": "ok", "reason": 'quote " and \u2028 and <b>', "backend": "numpy",
        "values": [[1.0, None], ["inf", "-inf"]], "names": {"a": 0.5, "n": 3, "b": True},
    }  # fmt: skip


def test_nested_results_and_dataclasses() -> None:
    r = Inner(values=np.arange(2), names={}, status="skipped")
    outer = Inner(values=np.array([]), hidden=r)
    assert outer.to_dict()["values"] == []
    assert Inner(values=[r, Skipped("x", "why", (1, 2))]).to_dict()["values"] == [r.to_dict(), {"name": "x", "reason": "why", "shape": [1, 2]}]


def test_unknown_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        Inner(values=object()).to_dict()


def test_repr_is_short_and_frozen() -> None:
    r = Inner(values=np.zeros(10**6), status="failed", reason="because")
    assert repr(r) == "<Inner status='failed', reason='because'>"
    with pytest.raises(AttributeError):
        r.status = "ok"  # type: ignore[misc]
