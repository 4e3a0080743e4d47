"""``baseline=``: which matrices are compared, what is listed, and every form a baseline may have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import spectral_fast as sf


def state(seed: int = 0, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {f"l{i}.weight": (rng.standard_normal((24, 16)) / 4).astype(np.float32) for i in range(3)}
    return {**made, "l0.bias": np.ones(24, dtype=np.float32), **changes}


def numbers_of(m: sf.MatrixSpectrum) -> dict[str, float]:
    fit = m.power_law
    return {
        **m.metrics,
        "alpha": fit.alpha,
        "alpha_stderr": fit.stderr,
        "n_tail": fit.n_tail,
        "rank": m.ranks["storage"],
        "effective_precision": m.effective_precision,
        "zero_rows": m.zero_rows,
        "zero_columns": m.zero_columns,
    }


def test_every_form_of_a_baseline_gives_the_same_numbers(tmp_path: Path) -> None:
    base = state(1)
    save_file(base, tmp_path / "base.safetensors")
    linear = torch.nn.ModuleDict({f"l{i}": torch.nn.Linear(16, 24) for i in range(3)})
    for i in range(3):
        linear[f"l{i}"].weight.data = torch.tensor(base[f"l{i}.weight"])
    before = sf.scan(base, progress=False)
    diagnosed = sf.diagnose(linear, include=("weights",), progress=False)
    for form in (base, before, tmp_path / "base.safetensors", str(tmp_path), linear, diagnosed):
        spectra = sf.scan(state(), baseline=form, progress=False)
        for m in spectra:
            np.testing.assert_equal(m.baseline, numbers_of(before.spectrum(m.name)))
        assert spectra.baseline and spectra.not_compared == ()


def test_without_a_baseline_there_is_none() -> None:
    spectra = sf.scan(state(), progress=False)
    assert spectra.baseline == "" and spectra.not_compared == () and all(m.baseline == {} for m in spectra)


def test_what_has_no_partner_is_listed_never_silent() -> None:
    bad = np.full((24, 16), np.nan, dtype=np.float32)
    here = state(new=np.eye(5), l3=np.ones((4, 6)), l4=np.eye(7), l5=np.eye(8))
    base = state(1, old=np.eye(9), l3=np.ones((6, 4)), l4=np.zeros((7, 7)), l5=np.ones(8), **{"l1.weight": bad})
    spectra = sf.scan(here, baseline=base, progress=False)
    assert {s.name: (s.reason, s.shape) for s in spectra.not_compared} == {
        "new": ("not in the baseline", (5, 5)),
        "l3": ("4 x 6 here, 6 x 4 in the baseline", (4, 6)),
        "l4": ("unresolved in the baseline: zero matrix", (7, 7)),
        "l5": ("skipped in the baseline: vector: no spectrum", (8, 8)),
        "l1.weight": ("failed in the baseline: 384 of 384 entries are not finite, the first at [0, 0]", (24, 16)),
        "old": ("only in the baseline", (9, 9)),
    }
    assert [m.name for m in spectra if m.baseline] == ["l0.weight", "l2.weight"]
    text = str(spectra)
    assert "2 of 7 matrices compared with theirs" in text and "not compared: only in the baseline: old (9x9)" in text


def test_tied_names_and_parts_of_fused_tensors_find_their_partners() -> None:
    w = np.random.default_rng(0).standard_normal((48, 16)).astype(np.float32)
    base = {"embed.weight": w, "head.weight": w, "a.in_proj_weight": 2 * w, "a.out_proj.weight": w[:16].copy()}
    spectra = sf.scan({"head.weight": w, "a.in_proj_weight": w.copy(), "a.out_proj.weight": w[:16].copy()}, baseline=base, progress=False)
    assert spectra.not_compared == () and len(spectra) == 5  # q, k and v each
    for m in spectra:
        factor = 2 if "in_proj" in m.name else 1
        assert m.baseline["spectral_norm"] == pytest.approx(factor * m.metrics["spectral_norm"], rel=1e-12)


def test_layers_select_in_the_baseline_too() -> None:
    spectra = sf.scan(state(), layers="l1.*", baseline=state(1, old=np.eye(9)), progress=False)
    assert [bool(m.baseline) for m in spectra] == [True] and spectra.not_compared == ()
    spectra = sf.scan(state(), layers="l1.*", baseline={"other": np.eye(3)}, progress=False)
    assert [(s.name, s.reason) for s in spectra.not_compared] == [("l1.weight", "not in the baseline")]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"baseline": 3}, TypeError, "^baseline: got int; wanted a path, a state dict"),
        ({"baseline": "nowhere.safetensors"}, ValueError, "^baseline: .*nowhere"),
        ({"null": "shuffle"}, ValueError, "^null: got 'shuffle'; known: None, 'permutation'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sf.scan(state(), progress=False, **arguments)
    with pytest.raises(error, match=message):
        sf.diagnose(torch.nn.Linear(3, 2), progress=False, **arguments)


def test_an_unusable_baseline_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from spectral_fast.weights import scan as module

    monkeypatch.setattr(module, "weight_spectra", lambda *a, **k: pytest.fail("worked first"))
    with pytest.raises(ValueError, match="^baseline"):
        sf.scan(state(), baseline="nowhere.pt", progress=False)


def test_diagnose_takes_null_and_baseline() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 10), torch.nn.Linear(10, 8))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        model[0].weight *= 4
    d = sf.diagnose(model, baseline=before, null="permutation", seed=3, progress=False)
    assert d.weights is not None and d.weights.baseline == "state dict"
    found = next(f for f in d.findings if f.where == "0.weight" and "amplifies" in f.title)
    assert "4 x in the baseline" in found.evidence and found.comparison.startswith("in the baseline: s_1") and "shuffled 20 times" in found.comparison
    assert d.weights.spectrum("0.weight").permutation is not None
    for name in ("null", "baseline"):
        with pytest.raises(ValueError, match=f"^{name}: is about the weights"):
            sf.diagnose(model, include=("collapse",), **{name: {"null": "permutation", "baseline": before}[name]})


@pytest.mark.parametrize("half", ["here", "baseline"])
def test_ctrl_c_in_either_half(half: str) -> None:
    def progress(done: int, total: int, what: str) -> None:
        if what.startswith("baseline") == (half == "baseline"):
            raise KeyboardInterrupt

    spectra = sf.scan(state(), baseline=state(1, other=np.eye(4)), progress=progress)
    assert spectra.status == "incomplete" and spectra.reason.startswith("interrupted in the baseline" if half == "baseline" else "interrupted after")
    assert len(spectra.matrices) == 3 and bool(spectra.baseline) == (half == "baseline")


def test_the_baseline_is_in_the_table_and_in_json() -> None:
    spectra = sf.scan(state(), baseline=state(1), progress=False)
    frame = spectra.to_pandas()
    assert list(frame["baseline_spectral_norm"])[:3] == [m.baseline["spectral_norm"] for m in spectra]
    data = json.loads(spectra.to_json())
    assert data["matrices"][0]["baseline"]["spectral_norm"] == spectra.matrices[0].baseline["spectral_norm"] and data["not_compared"] == []
    assert "baseline" in str(spectra.matrices[0])


def test_a_result_keeps_no_source_open(tmp_path: Path) -> None:
    save_file(state(1), tmp_path / "base.safetensors")
    spectra = sf.scan(state(), baseline=tmp_path / "base.safetensors", progress=False)
    (tmp_path / "base.safetensors").unlink()
    assert spectra.matrices[0].baseline["rank"] == 16
