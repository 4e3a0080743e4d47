"""ClassMoments: batches of any size, two sets of moments merged, and shards of several processes are the whole."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_fast.kernels import native_kernels
from spectral_fast.metrics.collapse_moments import ClassMoments, feature_covariance

BACKENDS = ["numpy"] if native_kernels.why_not else ["numpy", "native"]


def moments_of(x: np.ndarray, y: np.ndarray, n_classes: int, size: int = 0, backend: str = "auto") -> ClassMoments:
    found = ClassMoments(n_classes, x.shape[1], backend=backend)
    for i in range(0, len(y), size or max(len(y), 1)):
        found.add(x[i : i + (size or len(y))], y[i : i + (size or len(y))])
    return found


def same(a: ClassMoments, b: ClassMoments, largest: float, rel: float = 1e-12) -> None:
    assert np.array_equal(a.counts, b.counts)
    assert np.abs(a.means - b.means).max(initial=0.0) <= 1e-15 * 16 * largest
    scale = max(float(np.abs(b.scatter).max(initial=0.0)), 1e-300)
    assert np.abs(a.scatter - b.scatter).max(initial=0.0) <= rel * scale
    assert np.abs(a.spread - b.spread).max(initial=0.0) <= rel * max(float(b.spread.max(initial=0.0)), 1e-300)


def problem(n: int, dim: int, n_classes: int, shift: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([n, dim, seed])
    y = rng.integers(0, n_classes, n)
    return rng.standard_normal((n, dim)) + rng.standard_normal((n_classes, dim))[y] + shift, y


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1, 3, 7, 50, 500])
def test_small_batches_are_gathered(size: int, backend: str) -> None:
    x, y = problem(500, 9, 5)
    found = moments_of(x.astype(np.float32), y, 5, size, backend)
    same(found, moments_of(x.astype(np.float32), y, 5, 0, backend), float(np.abs(x).max()))
    assert found.backend == backend


def test_what_is_gathered_is_a_copy_and_formats_may_change() -> None:
    x, y = problem(40, 30, 3)
    found, row = ClassMoments(3, 30), np.empty((1, 30))
    for i in range(20):
        row[...] = x[i]  # the caller's memory is used again
        found.add(row, y[i : i + 1])
    found.add(x[20:30].astype(np.float32), y[20:30])
    found.add(x[30:], y[30:])
    rounded = np.vstack([x[:20], x[20:30].astype(np.float32), x[30:]])
    same(found, moments_of(rounded, y, 3), float(np.abs(x).max()))
    assert found.counts.sum() == 40 and found.counts is found.counts
    with pytest.raises(ValueError, match="targets: wanted classes below 3, got 3"):
        found.add(x[:1], np.array([3]))
    with pytest.raises(ValueError, match="features: wanted \\(2, 30\\)"):
        found.add(x[:2, :5], y[:2])
    assert found.counts.sum() == 40


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=5), st.integers(1, 12), st.integers(1, 9), st.floats(-1e4, 1e4), st.integers(0, 1000))
def test_merged_shards_are_the_whole(sizes: list[int], dim: int, n_classes: int, shift: float, seed: int) -> None:
    x, y = problem(sum(sizes), dim, n_classes, np.round(shift), seed)
    x = np.round(x * 2**20) / 2**20  # the shift costs the features no digits
    ends = np.cumsum([0, *sizes])
    merged = ClassMoments(n_classes, dim)
    for a, b in zip(ends[:-1], ends[1:], strict=True):
        merged.merge(moments_of(x[a:b], y[a:b], n_classes))
    largest = float(np.abs(x).max(initial=0.0))
    # means known to eps largest, times as many deviations as there are samples; of a shift of 1e4 that is 1e-12 of the deviations themselves
    same(merged, moments_of(x, y, n_classes), largest, 1e-12 + 1e-14 * largest)
    with pytest.raises(ValueError, match="other"):
        merged.merge(ClassMoments(n_classes, dim + 1))


def over_threads(parts: list[ClassMoments]) -> None:
    """add_over in a thread for each part; every one waits for the others, as processes do."""
    barrier, given = threading.Barrier(len(parts)), [np.zeros(0)] * len(parts)

    def one(rank: int) -> None:
        def reduce(sums: np.ndarray) -> None:
            given[rank] = sums.copy()
            barrier.wait(30)
            total = sum(given[1:], given[0])
            barrier.wait(30)
            sums[...] = total

        parts[rank].add_over(reduce)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


@pytest.mark.parametrize("shift", [0.0, 1e4])
@pytest.mark.parametrize("sizes", [(70, 0, 11), (1, 1, 1), (0, 0, 5), (40,), (300, 2, 99)])
def test_shards_of_any_size_over_processes(sizes: tuple[int, ...], shift: float) -> None:
    x, y = problem(sum(sizes), 13, 6, shift)
    ends = np.cumsum([0, *sizes])
    parts = [moments_of(x[a:b], y[a:b], 6) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    over_threads(parts)
    for part in parts:
        same(part, moments_of(x, y, 6), float(np.abs(x).max()))
        assert all(a.tobytes() == b.tobytes() for a, b in ((part.means, parts[0].means), (part.scatter, parts[0].scatter)))


RANK = """if True:
    import os, sys
    import numpy as np, torch, torch.distributed as dist
    from spectral_fast.metrics.collapse_moments import ClassMoments
    from spectral_fast.probing.distributed import ranks_of
    rank, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    ranks = ranks_of(None, "world")
    data = np.load(f"{folder}/data.npz")
    part = slice(0, 61) if rank == 0 else slice(61, None)
    moments = ClassMoments(6, 13)
    moments.add(data["x"][part], data["y"][part])
    moments.add_over(lambda sums: ranks.add_up(torch.from_numpy(sums)))
    np.savez(f"{folder}/rank{rank}.npz", counts=moments.counts, means=moments.means, scatter=moments.scatter, spread=moments.spread)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads do not always survive the interpreter's end
"""


@pytest.mark.timeout(120)
def test_two_processes_of_torch_distributed(tmp_path: Path) -> None:
    x, y = problem(90, 13, 6)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path)]) for rank in (0, 1)]
    assert [rank.wait(100) for rank in ranks] == [0, 0]
    whole = moments_of(x, y, 6)
    found: list[Any] = [np.load(tmp_path / f"rank{rank}.npz") for rank in (0, 1)]
    for name in ("counts", "means", "scatter", "spread"):
        assert found[0][name].tobytes() == found[1][name].tobytes()
        assert np.abs(found[0][name] - getattr(whole, name)).max() <= 1e-12 * np.abs(getattr(whole, name)).max()


def test_covariance_of_all_features() -> None:
    x, y = problem(200, 7, 4, 1e3)
    moments = moments_of(x, y, 4)
    assert np.abs(feature_covariance(moments.scatter, moments.means, moments.counts) - np.cov(x.T, bias=True)).max() <= 1e-11
