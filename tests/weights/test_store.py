"""Stores of scans: the same result again, through kills and restarts, and nothing believed of strange files."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import PACKAGE_FOLDER
from safetensors.numpy import save_file

import spectral_fast as sf
from spectral_fast.weights import store as stores
from spectral_fast.weights.store import StoreError

RNG = np.random.default_rng(0)


def tensors(matrices: int = 12, n: int = 40) -> dict[str, np.ndarray]:
    out = {f"layer.{i}.weight": RNG.standard_normal((n + 5 * (i % 3), n)).astype(np.float32) for i in range(matrices)}
    out["layer.0.bias"] = np.zeros(5, np.float32)
    out["bad.weight"] = np.full((6, 4), np.nan, np.float32)
    out["zero.weight"] = np.zeros((6, 4), np.float32)
    return out


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(tensors(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def contents(spectra: sf.WeightSpectra) -> dict[str, Any]:
    """All but times."""
    found = spectra.to_dict()
    del found["seconds"], found["timings"]
    return found


def test_a_store_is_the_result_again(file: Path, tmp_path: Path) -> None:
    store = tmp_path / "scan.sqlite"
    plain, kept, again = sf.scan(file), sf.scan(file, store=store), sf.scan(file, store=store)
    opened = sf.WeightSpectra.open(store)
    for other in (kept, again, opened):
        assert contents(other) == contents(plain)
        assert all(np.array_equal(a.s, b.s, equal_nan=True) for a, b in zip(other, plain, strict=True))
        assert other.tensors == plain.tensors
    assert not list(tmp_path.glob("scan.sqlite-*"))


def test_columns_for_other_tools(file: Path, tmp_path: Path) -> None:
    spectra = sf.scan(file, store=tmp_path / "scan.sqlite")
    with sqlite3.connect(tmp_path / "scan.sqlite") as db:
        db.row_factory = sqlite3.Row
        rows = {row["name"]: row for row in db.execute("SELECT * FROM matrices")}
        skipped = list(db.execute("SELECT name, reason, shape FROM skipped"))
        run = dict(db.execute("SELECT key, value FROM run").fetchall())
    assert [(s["name"], s["reason"], s["shape"]) for s in skipped] == [("layer.0.bias", "vector: no spectrum", "[5]")]
    assert rows.keys() == {m.name for m in spectra}
    for m in spectra:
        row = rows[m.name]
        assert (row["rows"], row["columns"], row["status"], row["reason"], row["role"], row["dtype"]) == (*m.shape, m.status, m.reason, m.role, m.dtype)
        if m.status == "ok":
            for name, value in m.metrics.items():
                assert row[name] == value or (row[name] is None and np.isnan(value))
            assert [row[f"rank_{rule}"] for rule in m.ranks] == list(m.ranks.values())
            assert row["alpha"] == m.power_law.alpha or np.isnan(m.power_law.alpha)
    assert json.loads(run["version"]) == sf.__version__ and json.loads(run["options"])["backend"] in ("native", "numpy")
    assert json.loads(run["files"])["model.safetensors"][0] == file.stat().st_size


def test_only_what_is_missing_is_computed(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "scan.sqlite"
    want = contents(sf.scan(file, store=store))
    with sqlite3.connect(store) as db:
        db.execute("DELETE FROM spectra WHERE name IN ('layer.3.weight', 'layer.7.weight')")
    from spectral_fast.weights import batches

    computed: list[str] = []
    original = batches.ShapeBatches.compute

    def compute(self: Any, key: Any) -> Any:
        pending, arrays = original(self, key)
        computed.extend(p.plan.name for p in pending)
        return pending, arrays

    monkeypatch.setattr(batches.ShapeBatches, "compute", compute)
    assert contents(sf.scan(file, store=store)) == want
    assert sorted(computed) == ["layer.3.weight", "layer.7.weight"]
    sf.scan(file, store=store, resume=False)
    assert len(computed) > 12


def test_interrupted_and_resumed(file: Path, tmp_path: Path) -> None:
    store = tmp_path / "scan.sqlite"

    def stop(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    first = sf.scan(file, store=store, progress=stop)
    assert first.status == "incomplete"
    opened = sf.WeightSpectra.open(store)
    assert opened.status == "incomplete" and {m.name for m in opened} == {m.name for m in first}
    assert contents(sf.scan(file, store=store)) == contents(sf.scan(file))


def test_leading_values_and_products_of_factors(tmp_path: Path) -> None:
    a, b = RNG.standard_normal((4, 50)).astype(np.float32), RNG.standard_normal((60, 4)).astype(np.float32)
    save_file({"q_proj.lora_A.weight": a, "q_proj.lora_B.weight": b, "up.weight": RNG.standard_normal((80, 70)).astype(np.float32)}, tmp_path / "x.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    options: dict[str, Any] = {"top": 3, "top_above": 1000}
    plain = sf.scan(tmp_path / "x.safetensors", **options)
    kept = sf.scan(tmp_path / "x.safetensors", store=tmp_path / "s", **options)
    assert contents(kept) == contents(plain) == contents(sf.scan(tmp_path / "x.safetensors", store=tmp_path / "s", **options))
    assert contents(sf.WeightSpectra.open(tmp_path / "s")) == contents(plain)
    assert any(m.status == "incomplete" for m in plain) and any(m.kind == "lora" for m in plain)


def test_other_files_and_options_are_refused(file: Path, tmp_path: Path) -> None:
    store = tmp_path / "scan.sqlite"
    sf.scan(file, store=store)
    for other in ({"seed": 1}, {"layers": "layer.1*"}):
        with pytest.raises(StoreError, match=r"store: .* holds a scan with (seed=0 instead of 1|layers=None instead of \['layer\.1\*'\]);"):
            sf.scan(file, store=store, **other)
    save_file(tensors(3), file)
    with pytest.raises(StoreError, match=r"holds a scan of files that have changed since \(model\.safetensors\)"):
        sf.scan(file, store=store)
    assert len(sf.scan(file, store=store, resume=False)) == 5
    with pytest.raises(StoreError, match="wanted a path as source"):
        sf.scan({"w": np.ones((3, 3))}, store=store)
    with pytest.raises(ValueError, match="store: keeps no permutations"):
        sf.scan(file, store=store, null="permutation")
    with pytest.raises(StoreError, match="no such directory"):
        sf.scan(file, store=tmp_path / "missing" / "scan.sqlite")


def test_a_change_in_the_middle_of_a_file_is_seen(tmp_path: Path) -> None:
    weights = {f"layer.{i}.weight": RNG.standard_normal((700, 700)).astype(np.float32) for i in range(4)}
    save_file(weights, tmp_path / "model.safetensors")
    sf.scan(tmp_path, store=tmp_path / "scan.sqlite")
    (tmp_path / "report.html").write_text("what lies beside it says nothing")
    assert sf.scan(tmp_path, store=tmp_path / "scan.sqlite").status == "ok"
    weights["layer.1.weight"] *= 3
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(StoreError, match="files that have changed"):
        sf.scan(tmp_path, store=tmp_path / "scan.sqlite")


def test_a_change_in_a_folder_of_a_pipeline_is_seen(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "U"]}))
    for k in (1.0, 5.0):
        save_file({"a.weight": k * np.eye(4, dtype=np.float32)}, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
        if k == 1.0:
            sf.scan(tmp_path, store=tmp_path / "scan.sqlite")
    with pytest.raises(StoreError, match="unet.diffusion_pytorch_model.safetensors"):
        sf.scan(tmp_path, store=tmp_path / "scan.sqlite")


def test_interrupted_while_writing(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, calls = stores._row, []

    def interrupted(p: Any) -> Any:
        calls.append(p)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return row(p)

    monkeypatch.setattr(stores, "_row", interrupted)
    begun = sf.scan(file, store=tmp_path / "scan.sqlite")
    assert begun.status == "incomplete" and "interrupted" in begun.reason
    monkeypatch.undo()
    assert contents(sf.scan(file, store=tmp_path / "scan.sqlite")) == contents(sf.scan(file))


def test_what_memory_did_not_suffice_for_is_tried_again(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: Any, **__: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("spectral_fast.weights.batches.SingularValues.__call__", short)
        without = sf.scan(file, store=tmp_path / "scan.sqlite")
    assert sum("not enough memory" in m.reason for m in without) == 13
    assert contents(sf.scan(file, store=tmp_path / "scan.sqlite")) == contents(sf.scan(file))


def test_an_earlier_end_is_forgotten_when_a_scan_goes_on(file: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    store = tmp_path / "scan.sqlite"
    begun = sf.scan(file, store=store, progress=stop)
    assert "the same scan goes on from there" in begun.reason and str(store) in begun.reason
    assert sf.WeightSpectra.open(store).reason == begun.reason
    with sqlite3.connect(store) as db, sqlite3.connect(tmp_path / "killed.sqlite") as other:
        db.backup(other)
    with stores.ScanStore(tmp_path / "killed.sqlite", _about(store)) as kept:
        kept.keep(stores.read_store(store)[0][:1])
    killed = sf.WeightSpectra.open(tmp_path / "killed.sqlite")
    assert killed.reason == "the scan has not ended" and not killed.skipped
    assert any(s.reason == "interrupted before it was done" for s in begun.skipped)


def _about(store: Path) -> dict[str, Any]:
    with sqlite3.connect(store) as db:
        return {key: json.loads(value) for key, value in db.execute("SELECT key, value FROM run") if key != "format" and "." not in key}


def test_a_store_beside_the_shards(tmp_path: Path) -> None:
    save_file({"a.weight": np.ones((4, 3), np.float32)}, tmp_path / "model-1.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": "model-1.safetensors"}}))
    first = sf.scan(tmp_path, store=tmp_path / "scan.sqlite")
    assert contents(sf.scan(tmp_path, store=tmp_path / "scan.sqlite")) == contents(first)
    save_file({"a.weight": np.zeros((4, 3), np.float32)}, tmp_path / "model-1.safetensors")
    with pytest.raises(StoreError, match="files"):
        sf.scan(tmp_path / "model.safetensors.index.json", store=tmp_path / "scan.sqlite")


STRANGE: dict[str, str] = {
    "other tables": "CREATE TABLE more (x)",
    "a view": "CREATE VIEW v AS SELECT load_extension('x')",
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON run BEGIN DELETE FROM spectra; END",
    "fewer tables": "DROP TABLE skipped",
    "short values": "UPDATE spectra SET s = x'00' WHERE s IS NOT NULL",
    "long values": "UPDATE spectra SET s = zeroblob(100000) WHERE s IS NOT NULL",
    "text for values": "UPDATE spectra SET s = 'abc' WHERE s IS NOT NULL",
    "no plan": "UPDATE spectra SET plan = '[]'",
    "a plan that is no JSON": "UPDATE spectra SET plan = '[['",
    "a deep plan": "UPDATE spectra SET plan = '" + "[" * 5000 + "'",
    "a negative shape": """UPDATE spectra SET plan = replace(plan, '[40, 40]', '[-40, 40]')""",
    "another format": "UPDATE run SET value = '\"2\"' WHERE key = 'format'",
    "run that is no JSON": "UPDATE run SET value = '{'",
    "another status": "UPDATE run SET value = '5' WHERE key = 'result.status'",
    "an order that is none": "UPDATE run SET value = '3' WHERE key = 'result.order'",
    "tensors that are none": "UPDATE run SET value = '[1]' WHERE key = 'result.tensors'",
    "text for a number": "UPDATE spectra SET noise_precision = 'many'",
    "infinite precision": "UPDATE spectra SET noise_precision = 9e999",
    "an infinite bound": "UPDATE spectra SET bound = 9e999",
    "a noise of 1e300": "UPDATE spectra SET noise = 1e300",
    "no noise and no bound": "UPDATE spectra SET noise = 0.0, bound = 0.0",
    "another dtype": """UPDATE spectra SET plan = replace(plan, '"float32"', '"float31"')""",
    "a norm of 1e300": "UPDATE spectra SET frobenius = 1e300",
    "a negative noise": "UPDATE spectra SET noise = -1.0",
    "values of another scan": "UPDATE spectra SET s = (SELECT s FROM spectra WHERE name = 'layer.0.weight'), frobenius = 0.0",
    "values out of order": "UPDATE spectra SET s = substr(s, 9) || substr(s, 1, 8) WHERE name = 'layer.0.weight'",
    "negative values": "UPDATE spectra SET s = substr(s, 1, 312) || x'000000000000f0bf' WHERE name = 'layer.0.weight'",
    "values that are NaN": "UPDATE spectra SET s = x'000000000000f87f' || substr(s, 9) WHERE name = 'layer.0.weight'",
    "no values": "UPDATE spectra SET s = x'', frobenius = 1.0",
    "a failed matrix of 16 GB": "UPDATE spectra SET s = NULL, plan = replace(plan, '[40, 40]', '[2147483647, 2147483647]')",
    "half of a character": """UPDATE spectra SET plan = replace(plan, '"unknown role"', '"\\ud800"')""",
    "bytes for a reason": "UPDATE skipped SET reason = x'00'",
    "a shape of texts": """UPDATE skipped SET shape = '["a"]'""",
    "tensors of no shape": "UPDATE run SET value = replace(value, '[5]', '[5.5]') WHERE key = 'result.tensors'",
    "seconds of 400 digits": "UPDATE run SET value = '1' || replace(printf('%400d', 0), ' ', '0') WHERE key = 'result.seconds'",
}


@pytest.mark.parametrize("case", STRANGE)
def test_strange_stores(case: str, file: Path, tmp_path: Path) -> None:
    store = tmp_path / "scan.sqlite"
    sf.scan(file, store=store)
    with sqlite3.connect(store) as db:
        db.execute(STRANGE[case])
    with pytest.raises(StoreError, match="^store: "):
        sf.WeightSpectra.open(store)
    if case in ("short values", "long values", "text for values", "text for a number"):
        with pytest.raises(StoreError, match="^store: .*damaged"):
            sf.scan(file, store=store)


def test_files_that_are_no_store(file: Path, tmp_path: Path) -> None:
    sf.scan(file, store=tmp_path / "good")
    raw = (tmp_path / "good").read_bytes()
    for content in (b"hello", raw[:1000], raw[: len(raw) // 2], bytes(5000), raw[:100] + bytes(len(raw) - 100)):
        bad = tmp_path / "bad"
        bad.write_bytes(content)
        with pytest.raises(StoreError, match="^store: "):
            sf.WeightSpectra.open(bad)
        with pytest.raises(StoreError, match="^store: "):
            sf.scan(file, store=bad)
    with pytest.raises(StoreError, match="no such file"):
        sf.WeightSpectra.open(tmp_path / "missing")


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, store = tmp_path / "model.safetensors", tmp_path / "scan.sqlite"
    save_file({f"{i}.weight": RNG.standard_normal((700 + i, 700)).astype(np.float32) for i in range(12)}, file)
    whole = stores.ScanStore.__init__

    def small(self: stores.ScanStore, *arguments: Any) -> None:
        whole(self, *arguments)
        self._db.execute("PRAGMA max_page_count = 20")

    monkeypatch.setattr(stores.ScanStore, "__init__", small)
    with pytest.raises(StoreError, match="cannot be written .*full.*what was done before is in it"):
        sf.scan(file, store=store)
    monkeypatch.undo()
    assert 0 < len(sf.WeightSpectra.open(store)) < 12
    assert contents(sf.scan(file, store=store)) == contents(sf.scan(file))


CHILD = "import sys, spectral_fast as sf; sf.scan(sys.argv[1], store=sys.argv[2], progress=False); print('done')"


def rows_in(store: Path) -> int:
    """Matrices that are done; 0 where there is no store yet."""
    if not store.exists():
        return 0
    with sqlite3.connect(store, timeout=30) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'spectra'").fetchone():
            return 0
        return int(db.execute("SELECT count(*) FROM spectra").fetchone()[0])


def killed_until_done(file: Path, store: Path, kills: int, matrices: int) -> int:
    """Run the scan again and again; kill it as soon as a random number of further matrices is done, and a random moment more. Returns the kills."""
    rng, hit = random.Random(kills), 0
    env = {**os.environ, "PYTHONPATH": str(PACKAGE_FOLDER)}
    while True:
        known = rows_in(store)
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(file), str(store)], env=env, cwd=file.parent, stdout=subprocess.PIPE)
        if hit < kills:
            target = known + rng.randint(0, matrices // kills)
            while child.poll() is None and rows_in(store) < target:
                time.sleep(0.002)
            time.sleep(rng.uniform(0.0, 0.03))
            child.send_signal(signal.SIGKILL)
        out = child.communicate()[0]
        assert rows_in(store) >= known, "work was lost"
        if b"done" in out:
            return hit
        assert child.returncode == -signal.SIGKILL
        hit += 1


def compare_killed(tmp_path: Path, kills: int, matrices: int) -> None:
    file = tmp_path / "model.safetensors"
    rng = np.random.default_rng(1)
    save_file({f"layer.{i}.weight": rng.standard_normal((700 + i, 640)).astype(np.float32) for i in range(matrices)}, file)
    whole = sf.scan(file, store=tmp_path / "whole")
    assert killed_until_done(file, tmp_path / "killed", kills, matrices) >= kills // 2
    assert contents(sf.WeightSpectra.open(tmp_path / "killed")) == contents(whole)
    tables = []
    for name in ("whole", "killed"):
        with sqlite3.connect(tmp_path / name) as db:
            tables.append([db.execute(f"SELECT * FROM {table} ORDER BY name").fetchall() for table in ("spectra", "matrices", "skipped")])
    assert tables[0] == tables[1]


@pytest.mark.native_only
def test_killed_and_started_again(tmp_path: Path) -> None:
    compare_killed(tmp_path, kills=4, matrices=20)


@pytest.mark.native_only
@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_killed_twenty_times(tmp_path: Path) -> None:
    compare_killed(tmp_path, kills=20, matrices=60)
