"""scan(top=k): only the leading values of large matrices, and everything that needs all of them says that it has not got them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from typer.testing import CliRunner

import spectral_fast as sf
from spectral_fast.cli.commands import app


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    bad = rng.standard_normal((90, 60)).astype(np.float32)
    bad[5, 6] = np.inf
    return {
        "wide.weight": (rng.standard_normal((120, 300)) / np.arange(1, 301)).astype(np.float32),
        "half.weight": rng.standard_t(2.5, (200, 90)).astype(np.float16),
        "brain.weight": rng.standard_normal((150, 80)).astype(ml_dtypes.bfloat16),
        "zero.weight": np.zeros((80, 70), np.float32),
        "bad.weight": bad,
        "small.weight": rng.standard_normal((30, 20)).astype(np.float32),
        "thin.weight": rng.standard_normal((2000, 4)).astype(np.float32),
    }


def test_leading_values_of_large_matrices() -> None:
    source = weights()
    found, full = sf.scan(source, top=4, top_above=2000, progress=False), sf.scan(source, progress=False)
    assert {m.name: m.status for m in found} == {
        "wide.weight": "incomplete",
        "half.weight": "incomplete",
        "brain.weight": "incomplete",
        "zero.weight": "unresolved",
        "bad.weight": "failed",
        "small.weight": "ok",
        "thin.weight": "ok",  # there are no more than four
    }
    for name in ("wide.weight", "half.weight", "brain.weight"):
        m, whole = found.spectrum(name), full.spectrum(name)
        assert m.s.shape == (4,)
        assert (m.s <= whole.s[:4] * (1 + 1e-6)).all()
        assert (m.s >= whole.s[:4] * 0.97).all()
        assert (whole.s[:4] - m.s <= m.bound).all()
        assert m.reason == f"only the 4 leading of {min(m.shape)} singular values were computed"
        assert m.metrics["frobenius"] == pytest.approx(whole.metrics["frobenius"], rel=2e-6)
        assert m.metrics["stable_rank"] == pytest.approx(whole.metrics["stable_rank"], rel=0.06)
        assert m.null["spectral_norm"] == pytest.approx(whole.null["spectral_norm"], rel=1e-5)
        assert all(math.isnan(m.metrics[k]) for k in ("s_min", "condition_number", "effective_rank", "near_zero_fraction"))
        assert m.ranks == {} and m.power_law.status != "ok" and m.mp.reason == m.reason
    assert np.array_equal(found.spectrum("small.weight").s, full.spectrum("small.weight").s)


def test_what_is_made_of_them() -> None:
    found = sf.scan(weights(), top=3, top_above=2000, progress=False)
    assert "wide.weight: incomplete: only the 3 leading of 120" in found.summary()
    assert "4 of 7 matrices were not examined: only their leading singular values were computed" in " ".join(found.summary().split())
    rows = {row["name"]: row for row in found.to_pandas().to_dict("records")}
    assert rows["half.weight"]["status"] == "incomplete"
    assert json.loads(found.to_json())
    table = found.to_pandas(view="weightwatcher").set_index("name")
    assert math.isnan(table.loc["wide", "alpha"]) or table.loc["wide", "alpha"] == -1
    assert "only the 3 leading" in table.loc["wide", "warning"]
    assert {m.name: m.status for m in sf.advise(found).matrices}["wide.weight"] == "incomplete"
    beside = sf.scan(weights(), top=3, top_above=2000, baseline=weights(), progress=False)
    assert any(s.name == "wide.weight" and "incomplete in the baseline" in s.reason for s in beside.not_compared)


def test_tensors_and_seeds() -> None:
    model = torch.nn.Linear(120, 90)
    a, b, c = (sf.scan(model, top=3, top_above=1000, seed=seed, progress=False).matrices[0] for seed in (1, 1, 2))
    assert np.array_equal(a.s, b.s) and not np.array_equal(a.s, c.s)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "^top: got 0"),
        ({"top": 2.5}, "^top: got 2.5"),
        ({"top": 2, "top_above": -1}, "^top_above: got -1"),
        ({"top_above": 5}, "^top_above: got 5, which says nothing"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sf.scan(weights(), **options)


def test_on_the_command_line(tmp_path: Path) -> None:
    save_file({"a.weight": weights()["wide.weight"]}, tmp_path / "a.safetensors")
    result = CliRunner().invoke(app, ["scan", str(tmp_path / "a.safetensors"), "--top", "2", "--top-above", "1000"])
    assert result.exit_code == 0
    assert "only the 2 leading of 120" in result.output
    assert CliRunner().invoke(app, ["scan", str(tmp_path / "a.safetensors"), "--top", "0"]).exit_code == 2
