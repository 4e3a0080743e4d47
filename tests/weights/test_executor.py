"""Scans on other processes: the same table, whatever computes it and whatever dies."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import spectral_fast as sf
from spectral_fast.integrations.dask import dask_executor
from spectral_fast.weights import remote

RNG = np.random.default_rng(11)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors: dict[str, np.ndarray] = {f"layers.{i}.weight": RNG.standard_normal((260 + 4 * i, 250)).astype(np.float32) for i in range(14)}
    tensors["lstm.weight_ih_l0"] = RNG.standard_normal((4 * 24, 16)).astype(np.float32)
    tensors["conv.weight"] = RNG.standard_normal((8, 4, 3, 3)).astype(np.float32)
    tensors["bad.weight"] = np.full((6, 4), np.inf, np.float32)
    tensors["bias"] = np.zeros(7, np.float32)
    tensors["proj.lora_A.weight"] = RNG.standard_normal((4, 30)).astype(np.float32)
    tensors["proj.lora_B.weight"] = RNG.standard_normal((20, 4)).astype(np.float32)
    path = tmp_path_factory.mktemp("executors") / "model.safetensors"
    save_file(tensors, path)
    return path


def check_same(found: sf.WeightSpectra, wanted: sf.WeightSpectra) -> None:
    """Bit for bit: every process here has the same instruction set."""
    a, b = found.to_dict(), wanted.to_dict()
    for other in (a, b):
        del other["seconds"], other["timings"]
    assert a == b
    assert all(np.array_equal(x.s, y.s, equal_nan=True) for x, y in zip(found, wanted, strict=True))


def processes(count: int = 2) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))


@pytest.mark.native_only  # BLAS gives other last bits with other numbers of threads
def test_the_same_table_from_processes_and_threads(file: Path, tmp_path: Path) -> None:
    here = sf.scan(file, slices=True, null="permutation")
    plain = sf.scan(file)
    with processes() as pool:
        check_same(sf.scan(file, executor=pool, slices=True, null="permutation"), here)
        store = tmp_path / "scan.sqlite"
        check_same(sf.scan(file, executor=pool, store=store), plain)
        check_same(sf.WeightSpectra.open(store), plain)
        check_same(sf.scan(os.path.relpath(file), executor=pool, baseline=file), sf.scan(os.path.relpath(file), baseline=file))
    with ThreadPoolExecutor(3) as threads:
        check_same(sf.scan(file, executor=threads, layers="layers.*"), sf.scan(file, layers="layers.*"))


def test_a_store_is_gone_on_with_by_other_means(file: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    store = tmp_path / "scan.sqlite"
    begun = sf.scan(file, store=store, progress=stop)
    assert begun.status == "incomplete" and len(begun) > 0
    with ThreadPoolExecutor(2) as threads:
        check_same(sf.scan(file, executor=threads, store=store), sf.scan(file))


@pytest.mark.parametrize("given", [4, "processes", ThreadPoolExecutor])
def test_what_is_no_executor_is_refused(file: Path, given: Any) -> None:
    with pytest.raises(TypeError, match="executor"):
        sf.scan(file, executor=given() if given is not ThreadPoolExecutor and callable(given) else given)


def test_weights_in_memory_cannot_be_sent() -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(TypeError, match="executor: source is a dict; wanted a path"):
        sf.scan({"w": np.eye(3)}, executor=pool)


class Failing(Executor):
    """Runs every call at once; those of one number fail in some way."""

    def __init__(self, at: int, error: BaseException, when_submitted: bool = False) -> None:
        self.calls, self.at, self.error, self.when_submitted = 0, at, error, when_submitted

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.calls += 1
        future: Future[Any] = Future()
        if self.calls != self.at:
            future.set_result(fn(*args, **kwargs))
        elif self.when_submitted:
            raise self.error
        else:
            future.set_exception(self.error)
        return future


@pytest.mark.parametrize("when_submitted", [False, True])
def test_a_unit_that_fails_is_listed_and_the_rest_goes_on(file: Path, when_submitted: bool) -> None:
    whole = sf.scan(file)
    found = sf.scan(file, executor=Failing(3, BrokenExecutor("a worker died"), when_submitted))
    lost = [s for s in found.skipped if "a worker died" in s.reason]
    assert found.status == "incomplete" and found.reason.startswith("failed: ") and len(lost) >= 1
    missing = {m.name for m in whole} - {m.name for m in found}
    assert {n.partition("[")[0] for n in missing} == {s.name for s in lost}
    assert all(np.array_equal(m.s, whole.spectrum(m.name).s, equal_nan=True) for m in found)


def test_a_worker_with_another_version_or_another_file_says_so(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the worker has spectral_fast"):
        remote.measure_elsewhere(str(file), ("layers.0.weight",), remote.Options(), "0.0.0")
    with pytest.raises(ValueError, match=r"this worker sees no matrix 'x\.weight'"):
        remote.measure_elsewhere(str(file), ("x.weight",), remote.Options(), sf.__version__)


def test_a_file_that_was_replaced_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with ThreadPoolExecutor(1) as pool:
        for k in (1.0, 2.0):
            save_file({"a.weight": k * np.eye(int(3 + k), dtype=np.float32)}, path)
            assert sf.scan(path, executor=pool).spectrum("a.weight").s.tolist() == [k] * int(3 + k)


def test_a_shard_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    index = {"weight_map": {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"b.weight": np.eye(3, dtype=np.float32)}, tmp_path / "model-2.safetensors")
    with ThreadPoolExecutor(1) as pool:
        for k in (1.0, 2.0):
            save_file({"a.weight": k * np.eye(4, dtype=np.float32)}, tmp_path / "new")
            os.replace(tmp_path / "new", tmp_path / "model-1.safetensors")
            for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
                assert sf.scan(path, executor=pool).spectrum("a.weight").s.tolist() == [k] * 4


def test_tied_names_under_layers(tmp_path: Path) -> None:
    w = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    torch.save({"emb.weight": w, "lm_head.weight": w, "other.weight": torch.eye(3)}, tmp_path / "model.pt")
    with ThreadPoolExecutor(1) as pool:
        for layers in ("lm_head*", ["emb*", "other*"], None):
            check_same(sf.scan(tmp_path / "model.pt", layers=layers, executor=pool), sf.scan(tmp_path / "model.pt", layers=layers))


def test_an_adapter_that_was_changed_is_read_again(tmp_path: Path) -> None:
    save_file({f"p.lora_{c}.weight": np.ones(s, np.float32) for c, s in (("A", (2, 9)), ("B", (7, 2)))}, tmp_path / "adapter_model.safetensors")
    with ThreadPoolExecutor(1) as pool:
        for alpha in (8, 80):
            (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha, "r": 2}))
            check_same(sf.scan(tmp_path, executor=pool), sf.scan(tmp_path))


def test_what_lies_beside_a_checkpoint_does_not_matter(tmp_path: Path) -> None:
    save_file({f"l.{i}.weight": RNG.standard_normal((9 + i, 8)).astype(np.float32) for i in range(20)}, tmp_path / "model.safetensors")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    before = remote._opened.copy()
    with ThreadPoolExecutor(2) as pool:
        found = sf.scan(tmp_path, store=tmp_path / "scan.sqlite", executor=pool)
    check_same(found, sf.scan(tmp_path))
    assert len(remote._opened.keys() - before.keys()) == 1


def test_the_backend_is_the_workers(file: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert "singular values: numpy" in sf.scan(file, layers="conv.*", executor=pool, backend="numpy").backend


# ---- Dask ------------------------------------------------------------------------------------------------------------------


@pytest.mark.native_only  # BLAS gives other last bits with other numbers of threads
def test_dask_gives_the_same_table(file: Path) -> None:
    pytest.importorskip("dask.distributed", reason="dask.distributed is not installed")
    with dask_executor("local:2") as executor:
        check_same(sf.scan(file, executor=executor), sf.scan(file))


@pytest.mark.native_only  # BLAS gives other last bits with other numbers of threads
def test_a_killed_dask_worker_changes_nothing(tmp_path: Path) -> None:
    distributed = pytest.importorskip("dask.distributed", reason="dask.distributed is not installed")
    # units of about a tenth of a second, of which the victim has at least one in hand when it is killed
    save_file({f"layers.{i}.weight": RNG.standard_normal((900 + i, 900)).astype(np.float32) for i in range(24)}, tmp_path / "model.safetensors")
    whole = sf.scan(tmp_path)
    killed: list[int] = []
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        victims = [int(pid) for pid in client.run(os.getpid).values()]

        def kill(done: int, total: int, what: str) -> None:
            if done >= 3 and not killed:
                assert done < total - 4
                os.kill(victims[0], signal.SIGKILL)
                killed.append(victims[0])
                time.sleep(0.2)

        found = sf.scan(tmp_path, executor=client.get_executor(pure=False, retries=2), progress=kill)
    assert killed
    check_same(found, whole)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("tcp://10.1.2.3:8786", "not protected by TLS"),
        ("scheduler.example:8786", "not protected by TLS"),
        ("local:0", "wanted local:N"),
        ("local:two", "wanted local:N"),
        ("http://127.0.0.1:8787", "wanted local:N"),
        ("tls://host", "wanted local:N"),
        ("", "wanted local:N"),
    ],
)
def test_addresses_that_are_refused(address: str, why: str) -> None:
    with pytest.raises(ValueError, match=why), dask_executor(address):
        pass
