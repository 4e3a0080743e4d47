"""``spectral-fast survey``: what it prints, writes and returns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from children import run_python
from safetensors.numpy import save_file

from spectral_fast import cli


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints and a file that is none; one matrix of rank 2 of 6."""
    rng = np.random.default_rng(0)
    low = rng.standard_normal((6, 2)) @ rng.standard_normal((2, 12))
    (tmp_path / "models/net").mkdir(parents=True)
    save_file({"a.weight": rng.standard_normal((8, 8)), "low.weight": low}, tmp_path / "models/net/model.safetensors")
    save_file({"b.weight": rng.standard_normal((9, 5))}, tmp_path / "models/other.safetensors")
    (tmp_path / "models/broken.pt").write_bytes(b"hello")
    return tmp_path / "models"


def run(*arguments: str) -> int:
    return cli.main(["survey", *arguments])


def test_prints_and_writes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / f"s.{name}" for name in ("json", "html", "png", "pdf")}
    assert run(str(folder), "--json", str(files["json"]), "--html", str(files["html"]), "--plot", str(files["png"])) == 0
    shown = capsys.readouterr()
    text = " ".join(shown.out.split())
    assert "SURVEY OF 2 CHECKPOINTS" in text and "matrices 3, 181 entries" in text and "skipped: unknown format" in text and shown.err == ""
    assert text.endswith(f"page: {files['html']} figure: {files['png']}")
    data = json.loads(files["json"].read_text(encoding="utf-8"))
    assert data["type"] == "Survey" and data["shares"][0]["collapsed"]["storage"] == 1 and data["shares"][0]["matrices"] == 3
    assert files["png"].read_bytes().startswith(b"\x89PNG") and "<img" in files["html"].read_text(encoding="utf-8")
    assert run(str(folder / "net"), str(folder / "other.safetensors"), "--layers", "a.*", "--json", "-", "--plot", str(files["pdf"])) == 0
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)["models"]) == 1 and shown.err == f"figure: {files['pdf']}\n"


def test_goes_on_and_begins_anew(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    for more in ([], [], ["--fresh"]):
        assert run(str(folder / "net"), str(folder / "other.safetensors"), "--store", str(store), "--json", "-", *more) == 0
        assert json.loads(capsys.readouterr().out)["shares"][0]["matrices"] == 3
        assert len(list(store.iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: no such file"),
        ([], "PATH"),
        (["{empty}"], "paths: no checkpoint in or below"),
        (["{folder}", "--plot", "x.jpg"], "--plot: x.jpg: wanted a name that ends in .png, .pdf or .svg"),
        (["{folder}", "--plot", "no/such/x.png"], "--plot: no/such is not a directory"),
        (["{folder}", "--json", "no/such/x.json"], "--json: no/such is not a directory"),
        (["{folder}", "--store", "{folder}/other.safetensors"], "is a file"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert run(*(a.format(folder=folder, empty=tmp_path / "empty") for a in arguments)) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1 and words in shown.err


def test_nothing_readable_is_no_success(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(folder / "broken.pt")) == 2
    assert "none of 1 checkpoints could be surveyed" in capsys.readouterr().err


def test_interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from spectral_fast.weights import survey as module

    whole = module.scan

    def stopped(source: Path, **options: object) -> object:
        if source.name == "other.safetensors":
            raise KeyboardInterrupt
        return whole(source, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "scan", stopped)
    assert run(str(folder / "net"), str(folder / "other.safetensors")) == 130
    shown = capsys.readouterr()
    assert "incomplete: interrupted after 1 of 2 checkpoints" in shown.out and shown.err == "error: interrupted\n"


def test_no_torch(folder: Path) -> None:
    code = f"import sys; from spectral_fast.cli import main; code = main(['survey', {str(folder / 'net')!r}]); print(code, 'torch' in sys.modules)"
    assert run_python(code).stdout.strip().endswith("0 False")
