"""Runs of eigsh kept in files: killed and gone on, nothing lost, nothing repeated, and nothing believed of strange files."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import PACKAGE_FOLDER
from problems import Counting, Reflected, symmetric

from spectral_fast.kernels import native_kernels
from spectral_fast.linalg import saved as saving
from spectral_fast.linalg.eigsh import eigsh, extreme_pairs
from spectral_fast.linalg.restart import SEARCH_ROWS, Ends

N = 600
EVALS = np.r_[1.8 * np.sin(np.arange(N - 9.0)), 2.0, 2.5, 3.0, 5.0, 5.0, 5.0, 7.0, 7.0, -3.0]
ENDS = Ends(top=5, bottom=1)
WANTED = np.array([-3, 5, 5, 5, 7, 7])


class Killed(BaseException):
    """What no handler expects: the run ends here, as by a kill, but in this process."""


def run(op: Any, path: Any, ends: Ends = ENDS, **more: Any) -> tuple[Any, dict[str, Any]]:
    return extreme_pairs(op, ends, **{"tol": 1e-9, "max_matvecs": 2000, "capacity": 20, "checkpoint": path, **more})


def dies_at(product: int) -> Counting:
    def spoil(i: int, v: Any, w: Any) -> Any:
        if i == product:
            raise Killed
        return w

    op = Counting(np.zeros((N, N)), spoil)
    op.a = Reflected(EVALS)  # type: ignore[assignment]
    return op


@pytest.fixture
def every_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving takes no time, so it is done after every product."""
    monkeypatch.setattr(saving.time, "perf_counter", lambda: 0.0)


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.thorough), pytest.param("bfloat16", marks=pytest.mark.thorough)])
def test_killed_at_any_product_it_goes_on_as_if_nothing_had_been(dtype: str, tmp_path: Path, every_product: None) -> None:
    # with so few rows a search for missed ones at 1e-5 is given up; how far two runs may differ: by the roundings of their bases
    tol, apart, least = {"float64": (1e-9, 1e-10, 70), "float32": (1e-4, 1e-6, 40), "bfloat16": (5e-3, 5e-3, 40)}[dtype]
    last = 9 if dtype == "bfloat16" else 2  # products that only measure: of bfloat16's rows every pair's own, and some that make them better
    whole = dies_at(0)
    pairs, how = run(whole, None, tol=tol, basis_dtype=dtype)
    assert how["status"] == "ok" and np.abs(pairs.values - WANTED).max() <= 2 * tol * 7
    kept = dies_at(0)
    same, _ = run(kept, tmp_path / "kept", tol=tol, basis_dtype=dtype)
    assert np.array_equal(same.values, pairs.values) and np.array_equal(same.rows, pairs.rows) and kept.products == whole.products
    assert whole.products > least  # restarts and more than one search: see capacity
    bitwise, extra = [], []
    for product in range(1, whole.products + 1, 1 if tol != 1e-9 else 4):
        path = tmp_path / f"run{product}"
        first = dies_at(product)
        with pytest.raises(Killed):
            run(first, path, tol=tol, basis_dtype=dtype)
        again = dies_at(0)
        other, how = run(again, path, tol=tol, basis_dtype=dtype)
        assert how["status"] == "ok"
        assert np.abs(other.values - pairs.values).max() <= apart * 7, product
        bitwise.append(np.array_equal(other.values, pairs.values) and np.array_equal(other.rows, pairs.rows))
        extra.append(product + again.products - whole.products)
        assert how["matvecs"] == product - 1 + again.products or product > whole.products - last
        assert len(list(tmp_path.glob(f"run{product}*"))) == 2, "the numbers and one basis"
        for file in tmp_path.glob(f"run{product}*"):
            file.unlink()
    # the product it died in, the one that shows whether the file is this operator's, and a product or two of the residuals; a search may have to begin again
    assert sum(bitwise) >= 0.8 * len(bitwise) and np.median(extra) <= 2 and max(extra) <= SEARCH_ROWS


def test_a_finished_run_is_not_run_again(tmp_path: Path, every_product: None) -> None:
    first, again = dies_at(0), dies_at(0)
    pairs, how = run(first, tmp_path / "run")
    files = {f.name: f.stat().st_size for f in tmp_path.iterdir()}
    other, once_more = run(again, tmp_path / "run")
    assert again.products <= 2 and np.array_equal(other.values, pairs.values) and np.array_equal(other.rows, pairs.rows)
    assert once_more["status"] == "ok" and how["matvecs"] <= once_more["matvecs"] <= how["matvecs"] + 2
    assert {f.name: f.stat().st_size for f in tmp_path.iterdir()} == files


@pytest.mark.parametrize("backend", ["numpy", pytest.param("native", marks=pytest.mark.native_only)])
def test_either_backend_goes_on_with_what_the_other_began(backend: str, tmp_path: Path, every_product: None) -> None:
    other = "native" if backend == "numpy" and not native_kernels.why_not else "numpy"
    for product in (7, 30, 70):
        with pytest.raises(Killed):
            run(dies_at(product), tmp_path / f"run{product}", backend=backend)
        pairs, how = run(dies_at(0), tmp_path / f"run{product}", backend=other)
        assert how["status"] == "ok" and np.abs(pairs.values - WANTED).max() <= 1e-8


def test_a_budget_that_ended_may_be_raised(tmp_path: Path, every_product: None) -> None:
    whole, first, second = dies_at(0), dies_at(0), dies_at(0)
    pairs, _ = run(whole, None)
    _, how = run(first, tmp_path / "run", max_matvecs=25)
    assert how["status"] == "incomplete" and first.products <= 25
    more, how = run(second, tmp_path / "run")
    assert how["status"] == "ok" and np.abs(more.values - pairs.values).max() <= 1e-10
    assert first.products + second.products <= whole.products + 3


def test_saving_takes_a_twentieth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: a product takes 1, a save 0.25, so one may come every five products."""
    now, saves, products = [0.0], [], [0]
    monkeypatch.setattr(saving.time, "perf_counter", lambda: now[0])
    replace = os.replace

    def slow(new: Any, old: Any) -> None:
        now[0] += 0.25
        saves.append(products[0])
        replace(new, old)

    def tick(i: int, v: Any, w: Any) -> Any:
        now[0] += 1.0
        products[0] = i
        return w

    monkeypatch.setattr(saving.os, "replace", slow)
    op = Counting(symmetric(np.r_[1.8 * np.sin(np.arange(592.0)), np.arange(8)]), tick)
    r = eigsh(op, 4, tol=1e-10, checkpoint=tmp_path / "run")
    gaps = np.diff(saves[:-1])
    assert r.status == "ok" and len(gaps) > 3 and gaps.max() <= 6 and gaps.min() >= 5


@pytest.mark.parametrize("scale", [1e-150, 1e-40, 1.0, 1e140])
def test_numbers_far_from_one_are_kept_with_their_factor(scale: float, tmp_path: Path, every_product: None) -> None:
    """The first product sets the factor; a vector that comes later may have products a thousand times as large."""
    evals = scale * np.r_[0.1 * np.sin(np.arange(N - 8.0)), np.arange(1.0, 9.0)]
    a = symmetric(evals)
    whole = eigsh(Counting(a), 3, tol=1e-10)
    for product in (2, 3, 6, 10):
        calls = [0]

        def spoil(i: int, v: Any, w: Any, product: int = product, calls: list[int] = calls) -> Any:
            calls[0] += 1
            if calls[0] == product:
                raise Killed
            return w

        with pytest.raises(Killed):
            eigsh(Counting(a, spoil), 3, tol=1e-10, checkpoint=tmp_path / f"run{product}")
        for _ in range(2):
            r = eigsh(Counting(a), 3, tol=1e-10, checkpoint=tmp_path / f"run{product}")
            assert r.status == "ok" and np.array_equal(r.values, whole.values), product
            assert r.residuals.max() <= 1e-10 * r.scale


# -- killed from outside ----------------------------------------------------------------------------------------------------------

CHILD = """
import os, sys, time
sys.path.insert(0, sys.argv[3])
import numpy as np
import test_saved as t
from spectral_fast.linalg import saved
log = open(sys.argv[2], "ab", buffering=0)
replace = os.replace
def told(new, old):
    replace(new, old)
    log.write(b"s")
saved.os.replace = told
class Slow(t.Reflected):
    def row_products(self, v):
        w = np.ascontiguousarray((self @ v.astype(np.float64).T).T)
        time.sleep(0.002)
        log.write(b"p" * len(v))
        return w
log.write(b"|")
pairs, how = t.run(Slow(t.EVALS), sys.argv[1])
print(how["status"], *(float(x).hex() for x in pairs.values))
"""


def lives(path: Path, log: Path, kills: int, seed: int) -> tuple[list[float], list[bytes]]:
    """Run it to the end through ``kills`` kills. -> (values, events of each life: p a product, s a save)."""
    rng, hit = random.Random(seed), 0
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE_FOLDER), str(Path(__file__).parents[1])]), "OMP_NUM_THREADS": "1"}
    while True:
        known = log.read_bytes().count(b"p") if log.exists() else 0
        command = [sys.executable, "-c", CHILD, str(path), str(log), str(Path(__file__).parent)]
        child = subprocess.Popen(command, env=env, cwd=path.parent, stdout=subprocess.PIPE)
        if hit < kills:
            target = known + rng.randint(0, 14)
            while child.poll() is None and (not log.exists() or log.read_bytes().count(b"p") < target):
                time.sleep(0.002)
            time.sleep(rng.uniform(0.0, 0.01))
            child.send_signal(signal.SIGKILL)
        out = child.communicate()[0].split()
        if out:
            assert out[0] == b"ok"
            return [float.fromhex(x.decode()) for x in out[1:]], log.read_bytes().split(b"|")[1:]
        assert child.returncode == -signal.SIGKILL
        hit += 1


def compare_killed(tmp_path: Path, kills: int, seed: int) -> None:
    whole = dies_at(0)
    pairs, _ = run(whole, None)
    values, events = lives(tmp_path / "run", tmp_path / "log", kills, seed)
    assert np.abs(np.array(values) - pairs.values).max() <= 1e-10
    lost = sum(len(life.rsplit(b"s", 1)[-1]) for life in events[:-1])
    # besides what had been multiplied since a life's last save, a product or two of the residuals at the end, and in every life the one that shows whether
    # the file is this operator's, and one or two rows that a search asks for once more
    assert sum(life.count(b"p") for life in events) <= whole.products + lost + 2 + 3 * len(events)
    assert len(list(tmp_path.glob("run.basis*"))) == 1


def test_killed_from_outside(tmp_path: Path) -> None:
    compare_killed(tmp_path, kills=5, seed=0)


@pytest.mark.thorough
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(1, 9))
def test_killed_from_outside_often(tmp_path: Path, seed: int) -> None:
    compare_killed(tmp_path, kills=15, seed=seed)


# -- strange files ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def left_over(tmp_path: Path, every_product: None) -> Path:
    with pytest.raises(Killed):
        run(dies_at(30), tmp_path / "run")
    return tmp_path / "run"


def basis_of(path: Path) -> Path:
    (basis,) = path.parent.glob("run.basis*")
    return basis


@pytest.mark.parametrize(
    "other", [{"tol": 1e-8}, {"seed": 1}, {"block": 2}, {"basis_dtype": "float32", "tol": 1e-5}, {"ends": Ends(top=4)}, {"op": np.eye(N + 1)}], ids=str
)
def test_another_run_is_refused(left_over: Path, other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="checkpoint:.*another run"):
        run(other.pop("op", dies_at(0)), left_over, **other)


class Plus:
    """``op`` + size x xᵀ, x a random unit vector."""

    def __init__(self, op: Any, size: float) -> None:
        self.op, self.shape = op, op.shape
        x = np.random.default_rng(7).standard_normal(self.shape[0])
        self.x, self.size = x / np.linalg.norm(x), size

    def __matmul__(self, v: Any) -> Any:
        return self.op @ v + self.x * (self.size * (self.x @ v))


@pytest.mark.parametrize("other", ["another matrix", "another value beyond the wanted ones", "a hundred-thousandth of itself", "itself turned round", "NaN"])
@pytest.mark.parametrize("product", [0, 2, 5, 60])
def test_another_operator_of_that_size_is_refused(product: int, other: str, tmp_path: Path, every_product: None) -> None:
    """A finished run (product 0) as well as one killed at that product."""
    path = tmp_path / "run"
    if product:
        with pytest.raises(Killed):
            run(dies_at(product), path)
    else:
        run(dies_at(0), path)
    same = Reflected(EVALS)
    strange: Any = {
        "another matrix": Reflected(np.sort(EVALS), seed=1),
        "another value beyond the wanted ones": Plus(same, 20.0),
        "a hundred-thousandth of itself": Plus(Reflected(EVALS), 1e-5),
        "itself turned round": Reflected(-EVALS),
        "NaN": Reflected(np.full(N, np.nan)),
    }[other]
    files = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    if other == "NaN":
        with pytest.raises(ArithmeticError, match="op"):
            run(strange, path)
    elif product == 2 and other == "a hundred-thousandth of itself":  # of one product nothing is known but its size: it goes on, and says that it is not sure
        assert run(strange, path)[1]["status"] == "unresolved"
        return
    else:
        with pytest.raises(ValueError, match="checkpoint: .*another operator.*delete"):
            run(strange, path)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == files, "the run that is there stays"
    assert run(dies_at(0), path)[1]["status"] == "ok"


def test_other_start_vectors_are_another_run(tmp_path: Path) -> None:
    a, v = symmetric(np.arange(100.0)), np.random.default_rng(0).standard_normal((100, 2))
    first = eigsh(a, 3, v0=v, checkpoint=tmp_path / "run")
    assert np.array_equal(eigsh(a, 3, v0=v, checkpoint=tmp_path / "run").values, first.values)
    for other in (None, v[:, 0], v[:, ::-1]):
        with pytest.raises(ValueError, match="checkpoint:.*another run"):
            eigsh(a, 3, v0=other, checkpoint=tmp_path / "run")


def test_files_that_are_no_run_are_refused(left_over: Path) -> None:
    whole = left_over.read_bytes()
    rng = random.Random(0)
    strange = [b"", b"hello", whole[:-1], whole[: len(whole) // 2], whole[:30], whole + b"x" * 70000, b"\x93NUMPY" + whole[6:]]
    strange += [whole[:i] + bytes([whole[i] ^ rng.randint(1, 255)]) + whole[i + 1 :] for i in rng.sample(range(len(whole)), 150)]
    refused = 0
    for data in strange:
        left_over.write_bytes(data)
        try:
            pairs, how = run(dies_at(1), left_over)
        except ValueError as why:
            assert str(why).startswith("checkpoint: ")
            refused += 1
        except Killed:  # a byte that means nothing
            pass
    assert refused > 0.8 * len(strange)
    np.save(left_over.with_suffix(".npy"), np.zeros(3))
    left_over.with_suffix(".npy").replace(left_over)
    with pytest.raises(ValueError, match="checkpoint: .*not a run"):
        run(dies_at(0), left_over)


@pytest.mark.parametrize(
    "change",
    [
        {"t": np.array(7)},
        {"t": np.array(-1)},
        {"t": np.array([1, 2])},
        {"T": np.zeros((3, 3))},
        {"T": np.full((2, 2), np.nan)},
        {"order": np.array([0, 0, 1])},
        {"pending": np.array([[1]])},
        {"chain": np.array([10**6])},
        {"scale": np.array(np.nan)},
        {"factor": np.array("x")},
        {"used": None},
        {"generation": np.array(99)},
    ],
    ids=str,
)
def test_numbers_that_contradict_one_another_are_refused(left_over: Path, change: dict[str, Any]) -> None:
    with np.load(left_over, allow_pickle=False) as file:
        known = {**{name: file[name] for name in file.files}, **change}
    with open(left_over, "wb") as out:
        np.savez(out, **{name: value for name, value in known.items() if value is not None})
    with pytest.raises(ValueError, match="^checkpoint: "):
        run(dies_at(1), left_over)


def test_a_basis_that_is_cut_or_gone_is_refused(left_over: Path) -> None:
    basis = basis_of(left_over)
    whole = basis.read_bytes()
    for size in (0, 100, N * 8, len(whole) - 8):
        basis.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="^checkpoint: .*(cut|contradicts)"):
            run(dies_at(1), left_over)
    basis.unlink()
    with pytest.raises(ValueError, match="^checkpoint: .*missing"):
        run(dies_at(1), left_over)


def test_files_of_others_stay(tmp_path: Path, every_product: None) -> None:
    others = [tmp_path / name for name in ("run.basisx", "run.basis1.txt", "xrun.basis1", "run2.basis1", "run", "run[1].basis1")]
    for other in others[:4] + others[5:]:
        other.write_text("mine")
    (tmp_path / "run.basis77").write_text("an old one of a run whose numbers are gone")
    pairs, _ = run(dies_at(0), tmp_path / "run")
    run(dies_at(0), tmp_path / "ru?")
    assert all(other.exists() for other in others) and not (tmp_path / "run.basis77").exists()
    assert len(list(tmp_path.glob("run.basis[0-9]"))) == 1
