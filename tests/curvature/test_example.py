"""examples/curvature.py says what it says it says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "curvature.py"


def test_the_example_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    said = capsys.readouterr().out
    found = re.search(r"second difference of the loss along it: ([\d.]+), lambda_1 ([\d.]+)", said)
    assert found is not None and float(found[1]) == pytest.approx(float(found[2]), rel=0.02)  # t² times a fourth derivative
    hessian, ggn = (re.search(rf"{words}[^:]*: (.*)", said) for words in ("The last layer alone", "its Gauss-Newton matrix"))
    assert hessian is not None and ggn is not None and hessian[1] == ggn[1]
    shares = [float(x) for x in re.findall(r"([\d.]+)% of its length", said)]
    assert len(shares) == 6 and sum(shares) == pytest.approx(100.0, abs=0.4)
