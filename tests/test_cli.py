"""The command: what it prints, writes and returns; one-line errors; what it must not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import run_python
from safetensors.numpy import save_file

from spectral_fast import cli
from spectral_fast.results import Skipped


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """One healthy matrix, one of rank 5 of 24: a severe finding."""
    rng = np.random.default_rng(0)
    low = rng.standard_normal((24, 5)) @ rng.standard_normal((5, 32))
    path = tmp_path / "model.safetensors"
    save_file(
        {"good.weight": (rng.standard_normal((20, 60)) / 8).astype(np.float32), "low.weight": low.astype(np.float32), "good.bias": np.zeros(20, np.float32)},
        path,
    )
    return path


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What stands on standard error: exactly one line, beginning with "error: "; nothing on standard output."""
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1 and shown.err.endswith("\n")
    return shown.err.removeprefix("error: ").strip()


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))


def test_scan_prints_and_writes(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("scan", str(checkpoint), "--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")) == 0
    shown = capsys.readouterr()
    assert "NEURAL NETWORK EIGENVALUE ANALYSIS" in shown.out and "5/24" in shown.out and "20/20" in shown.out
    assert "skipped: vector: no spectrum: good.bias (20)" in shown.out
    assert "SEVERE  low.weight: rank collapse" in shown.out
    assert shown.err == "" and "\x1b" not in shown.out, "no colour and no bar when it is not a terminal"
    data = strict((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert data["type"] == "WeightSpectra" and [m["name"] for m in data["matrices"]] == ["good.weight", "low.weight"]
    assert len(data["matrices"][0]["s"]) == 20 and data["skipped"][0]["name"] == "good.bias"
    assert any(f["severity"] == "severe" and f["where"] == "low.weight" for f in data["findings"])
    assert "low.weight" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_json_to_standard_output_is_all_there_is(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("scan", str(checkpoint), "--json", "-") == 0
    assert strict(capsys.readouterr().out)["type"] == "WeightSpectra"


@pytest.mark.parametrize(("level", "layers", "code"), [("never", "*", 0), ("severe", "*", 1), ("warning", "*", 1), ("severe", "good.*", 0)])
def test_fail_on(checkpoint: Path, level: str, layers: str, code: int) -> None:
    assert run("scan", str(checkpoint), "--layers", layers, "--fail-on", level) == code


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scan", "nowhere.safetensors"], "nowhere.safetensors"),
        (["scan", "{checkpoint}", "--layers", "nothing*"], "layers: 'nothing*' matches none"),
        (["scan", "{checkpoint}", "--json", "no/such/place.json"], "--json: no/such is not a directory"),
        (["scan", "{checkpoint}", "--html", "{here}"], "is a directory"),
        (["scan", "{text}"], "notes.safetensors"),
        (["scan"], "PATH"),
        (["scan", "{checkpoint}", "--fail-on", "mild"], "--fail-on"),
        (["scan", "{checkpoint}", "--baseline", "lost.pt"], "baseline: "),
        (["scan", "{checkpoint}", "--null", "shuffle"], "--null"),
        (["diagnose", "factories:net", "--include", "collapse", "--baseline", "{checkpoint}"], "baseline: is about the weights"),
        (["frobnicate"], "frobnicate"),
        (["diagnose", "nocolon"], "wanted package.module:factory"),
        (["diagnose", "training.py:make"], "wanted package.module:factory"),
        (["diagnose", "no_such_module_here:make"], "no_such_module_here: cannot be imported"),
        (["diagnose", "factories:missing"], "has no function 'missing'"),
        (["diagnose", "factories:broken"], "raised RuntimeError: no data <today>"),
        (["diagnose", "factories:leaves"], "raised SystemExit: 0"),
        (["diagnose", "factories:four"], "returned 4 values"),
        (["diagnose", "factories:number"], "model: got int"),
        (["diagnose", "factories:odd_loss"], "its loss is a float"),
        (["diagnose", "factories:own_loss", "--loss", "mse"], "--loss: factories:own_loss returns its own"),
        (["diagnose", "factories:net", "--include", "weights,dreams"], "include: got"),
        (["diagnose", "factories:net", "--k", "0"], "--k"),
        (["diagnose", "factories:net", "--budget", "endless"], "--budget"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    arguments: list[str], words: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.safetensors").write_text("not a checkpoint\n")
    (tmp_path / "factories.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "factories", raising=False)
    places = {"checkpoint": str(checkpoint), "here": str(tmp_path), "text": "notes.safetensors"}
    assert run(*(a.format(**places) for a in arguments)) == 2
    assert words in one_line(capsys)


FACTORIES = """
import torch
from children import run_python

def net():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    x = torch.randn(24, 6)
    return model, [(x[:16], torch.arange(16) % 3), (x[16:], torch.arange(8) % 3)]

def named_loss():
    model, batches = net()
    return model, [(x, torch.nn.functional.one_hot(y, 3).float()) for x, y in batches], "bce"

def own_loss():
    model, batches = net()
    return model, batches, lambda outputs, targets: (outputs ** 2).mean()

def alone():
    return net()[0]

def broken():
    raise RuntimeError("no data <today>")

def leaves():
    raise SystemExit(0)

def four():
    return 1, 2, 3, 4

def number():
    return 3

def odd_loss():
    return *net(), 0.5
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "factories.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "factories", raising=False)
    return tmp_path


def test_diagnose_a_factory(factories: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("diagnose", "factories:net", "--budget", "quick", "--k", "2", "--json", "r.json", "--html", "r.html", "--max-batches", "1") == 0
    shown = capsys.readouterr()
    for heading in ("1. WEIGHT MATRICES:", "2. GRADIENT COVARIANCE:", "3. LOSS LANDSCAPE (Hessian):", "4. NEURAL COLLAPSE:", "FINDINGS"):
        assert heading in shown.out
    assert "cross_entropy, 16 samples" in shown.out, "--max-batches 1"
    data = strict((factories / "r.json").read_text(encoding="utf-8"))
    assert data["type"] == "Diagnosis" and len(data["curvature"]["hessian_top"]["values"]) == 2 and "findings" in data
    assert (factories / "r.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(("factory", "include", "words"), [("named_loss", "gradients", "(bce)"), ("own_loss", "gradients", "2. GRADIENT COVARIANCE:\n   what")])
def test_losses_of_a_factory(factories: Path, capsys: pytest.CaptureFixture[str], factory: str, include: str, words: str) -> None:
    assert run("diagnose", f"factories:{factory}", "--include", include, "--budget", "quick") == 0
    shown = capsys.readouterr().out
    assert words in shown and "1. WEIGHT MATRICES:\n   skipped: not asked for" in shown


def test_model_alone(factories: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("diagnose", "factories:alone") == 0
    assert capsys.readouterr().out.count("skipped: no loader") >= 3


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from spectral_fast import diagnosis

    whole = diagnosis.diagnose
    monkeypatch.setattr(diagnosis, "diagnose", lambda model, data, **options: whole(model, data, include=("weights", "collapse"), **options))
    assert run("demo", "--out", str(tmp_path / "page.html"), "--epochs", "8", "--json", str(tmp_path / "r.json")) == 0
    shown = capsys.readouterr().out
    first = float(shown.split("accuracy: ")[1].split(" %")[0])
    assert 85 < first <= 100, "really trained"
    assert "accuracy" in shown and "32x64" in shown and f"page: {tmp_path / 'page.html'}" in shown
    assert (tmp_path / "page.html").stat().st_size > 50_000
    assert strict((tmp_path / "r.json").read_text(encoding="utf-8"))["model_name"] == "Sequential"


def test_demo_without_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    assert run("demo", "--out", str(tmp_path / "page.html")) == 2
    assert one_line(capsys) == 'the demo needs scikit-learn: pip install "spectral_fast[demo]"'


def test_scan_beside_a_baseline_and_shuffles(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("scan", str(checkpoint), "--baseline", str(checkpoint), "--null", "permutation", "--json", str(tmp_path / "r.json"), "--fail-on", "severe")
    assert run(*arguments) == 0, "nothing has collapsed since the baseline"
    assert "2 of 2 matrices compared with theirs" in " ".join(capsys.readouterr().out.split())
    data = strict((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert data["baseline"] == str(checkpoint) and data["matrices"][0]["permutation"]["n_permutations"] == 20


def test_diagnose_beside_a_baseline(factories: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    torch.save({"0.weight": torch.eye(5, 6), "other": torch.eye(4)}, factories / "before.pt")
    assert run("diagnose", "factories:alone", "--include", "weights", "--baseline", "before.pt") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "baseline before.pt: 1 of 2 matrices compared with theirs" in shown and "not compared: not in the baseline: 2.weight (3x5)" in shown


def test_interrupted_scan_keeps_what_is_done(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import dataclasses

    from spectral_fast.weights import scan as module

    whole = module.scan

    def stopped(source: str, **options: Any) -> Any:
        w = whole(source, **options)
        lost = Skipped("low.weight", "interrupted before it was done", (24, 32))
        return dataclasses.replace(w, status="incomplete", reason="interrupted after 1 of 2 matrices", matrices=w.matrices[:1], skipped=(*w.skipped, lost))

    monkeypatch.setattr(module, "scan", stopped)
    assert run("scan", str(checkpoint), "--json", str(tmp_path / "r.json"), "--fail-on", "warning") == 130
    shown = capsys.readouterr()
    assert "incomplete: interrupted after 1 of 2 matrices" in shown.out and "20/20" in shown.out
    assert shown.err == "error: interrupted\n"
    data = strict((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert data["status"] == "incomplete" and len(data["matrices"]) == 1


def test_interrupted_before_anything_is_done(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from spectral_fast.weights import scan as module

    def stopped(source: str, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "scan", stopped)
    assert run("scan", str(checkpoint)) == 130
    assert one_line(capsys) == "interrupted"


def test_errors_nobody_foresaw(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from spectral_fast.weights import scan as module

    def broken(source: str, **options: Any) -> Any:
        raise ZeroDivisionError("line one\nline two \x1b[31m")

    monkeypatch.setattr(module, "scan", broken)
    assert run("scan", str(checkpoint)) == 2
    assert one_line(capsys) == "ZeroDivisionError: line one line two ?[31m (not foreseen; SPECTRAL_FAST_TRACEBACK=1 shows where)"
    monkeypatch.setenv("SPECTRAL_FAST_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        run("scan", str(checkpoint))


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info") == 0
    assert "native" in capsys.readouterr().out
    assert run("info", "--json") == 0
    versions = strict(capsys.readouterr().out)["versions"]
    assert list(versions) == ["spectral_fast", "python", "numpy", "scipy", "torch"] and all(v[0].isdigit() for v in versions.values())


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    from spectral_fast import __version__

    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == __version__
    for arguments in ([], ["--help"], ["-h"]):
        assert run(*arguments) == 0
        shown = capsys.readouterr().out
        assert all(command in shown for command in ("demo", "diagnose", "scan", "info"))
    assert run("scan", "--help") == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--json", "--html", "--layers", "--fail-on"))


def in_a_process(*arguments: str, after: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys; from spectral_fast.cli import main; code = main({list(arguments)!r}); {after}; sys.exit(code)"
    return run_python(code, PYTHONIOENCODING="ascii")


def test_scan_of_safetensors_loads_no_torch_and_survives_a_poor_console(checkpoint: Path, tmp_path: Path) -> None:
    loaded = "print([m for m in ('torch', 'pandas', 'matplotlib.pyplot') if m in sys.modules], file=sys.stderr)"
    done = in_a_process("scan", str(checkpoint), "--html", str(tmp_path / "p.html"), after=loaded)
    assert done.returncode == 0 and done.stderr.strip() == "[]"
    assert "NEURAL NETWORK EIGENVALUE ANALYSIS" in done.stdout and done.stdout.isascii()


def test_help_loads_nothing_heavy() -> None:
    done = in_a_process("--help", after="print([m for m in ('torch', 'numpy', 'scipy', 'matplotlib') if m in sys.modules], file=sys.stderr)")
    assert done.returncode == 0 and done.stderr.strip() == "[]"


def test_reader_that_goes_away(checkpoint: Path) -> None:
    code = f"import sys; from spectral_fast.cli import main; sys.exit(main(['scan', {str(checkpoint)!r}]))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 0 and errors == b""
