"""``spectral-fast scan``: what it will cost, tables, memory, other processes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import spectral_fast as sf
from spectral_fast import cli


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    tensors = {f"layers.{i}.weight": rng.standard_normal((30, 20 + i % 2)).astype(np.float32) for i in range(4)}
    tensors |= {"=1+1.weight": rng.standard_normal((6, 5)).astype(np.float32), "layers.0.bias": np.zeros(30, np.float32)}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def run(*arguments: object) -> int:
    return cli.main([str(a) for a in arguments])


def test_plan_says_what_a_scan_will_cost_and_stops(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("scan", checkpoint, "--plan", "--layers", "layers.*") == 0
    shown = capsys.readouterr().out
    for words in ("WHAT THIS SCAN WILL COST", "4 of 2,460 entries", "30 x 21", "9.84 kB", "max_memory", "GFLOP", "expected time", "vector: no spectrum"):
        assert words in shown
    assert run("scan", checkpoint, "--plan", "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["matrices"] == 5 and found["nbytes"] == 4 * found["parameters"] and len(found["shapes"]) == 3


def test_tables(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spectra = sf.scan(checkpoint)
    for suffix in (".csv", ".parquet"):
        if suffix == ".parquet":
            pytest.importorskip("pyarrow", reason="pyarrow writes and reads .parquet files")
        assert run("scan", checkpoint, "--table", tmp_path / f"t{suffix}") == 0
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [r["name"] for r in rows] == ["'=1+1.weight", *(f"layers.{i}.weight" for i in range(4)), "layers.0.bias"]
    for row, m in zip(rows, spectra, strict=False):
        assert float(row["spectral_norm"]) == m.metrics["spectral_norm"] and int(row["rank_storage"]) == m.ranks["storage"]
        assert row["shape"] == "x".join(map(str, m.shape)) and row["condition_number_is_lower_bound"] in ("true", "false")
    assert rows[-1]["status"] == "skipped" and rows[-1]["spectral_norm"] == ""
    import pandas as pd

    frame = pd.read_parquet(tmp_path / "t.parquet")
    assert frame["name"].tolist() == spectra.to_pandas()["name"].tolist()
    assert frame["spectral_norm"].tolist()[:-1] == [m.metrics["spectral_norm"] for m in spectra]


def test_several_globs(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("scan", checkpoint, "--layers", "layers.1*", "--layers", "layers.3*", "--json", "-") == 0
    assert [m["name"] for m in json.loads(capsys.readouterr().out)["matrices"]] == ["layers.1.weight", "layers.3.weight"]


@pytest.mark.parametrize("start", list("=+-@\t\r"))
def test_no_cell_of_a_table_is_a_formula(start: str, tmp_path: Path) -> None:
    sf.scan({f"{start}HYPERLINK.weight": np.eye(3)}).save_table(tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["name"] == f"'{start}HYPERLINK.weight"


def test_tables_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="known: .csv, .parquet"):
        sf.scan({"w": np.eye(3)}).save_table(tmp_path / "t.xlsx")


def test_memory(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("scan", checkpoint, "--max-memory", "1GB", "--json", "-") == 0
    assert len(json.loads(capsys.readouterr().out)["matrices"]) == 5
    assert run("scan", checkpoint, "--max-memory", "1MB", "--json", "-") == 2
    shown = capsys.readouterr()
    assert "max_memory, 1 MB, is too little for 5 of the tensors; 17" in shown.err
    found = json.loads(shown.out)
    assert found["matrices"] == [] and sum("max_memory is 1 MB" in s["reason"] for s in found["skipped"]) == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-memory", "much"], "--max-memory: wanted bytes such as 8GB"),
        (["--table", "t.xlsx"], "--table: t.xlsx: wanted a name that ends in .csv or .parquet"),
        (["--dask", "10.0.0.1:8786"], "not protected by TLS"),
        (["--dask", "here"], "wanted local:N"),
        (["--plan", "--table", "t.csv"], "--table: --plan computes nothing"),
        (["--fresh"], "--fresh: says nothing without --store"),
        (["--dask-insecure"], "--dask-insecure: says nothing without --dask"),
    ],
)
def test_bad_options(arguments: list[str], words: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("scan", checkpoint, *arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and words in shown.err and shown.err.count("\n") == 1


def test_dask_on_this_machine(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("dask.distributed", reason="dask.distributed is not installed")
    assert run("scan", checkpoint, "--dask", "local:2", "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert [m["s"] for m in found["matrices"]] == [m.s.tolist() for m in sf.scan(checkpoint)]
