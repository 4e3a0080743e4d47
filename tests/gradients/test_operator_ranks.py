"""GradientCovariance over two ranks (gloo), one of them with few samples, against one process with all of them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from children import run_python
from torch import nn

from spectral_fast.gradients import GradientCovariance

pytestmark = [
    pytest.mark.skipif(not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch was built without gloo"),
    pytest.mark.timeout(100),
]


def problem() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(29, 6).double(), torch.randint(0, 3, (29,))
    return model, [(x[:12], y[:12]), (x[12:26], y[12:26]), (x[26:], y[26:])]


def vectors() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((53, 3))


def main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model, batches = problem()
    own = batches[:2] if rank == 0 else batches[2:]
    found = [GradientCovariance(model, own, centered=centered, process_group="world") for centered in (True, False)]
    np.savez(Path(folder) / f"rank{rank}.npz", *(op @ vectors() for op in found), units=[op.n_units for op in found])


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    setup = f"import runpy, sys\nsys.path[:0] = [{str(Path(__file__).parents[1])!r}]\nsys.argv = ['x', {str(tmp_path)!r}]\n"
    run = run_python(f"{setup}runpy.run_path({__file__!r}, run_name='__main__')", OMP_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr[-3000:]
    model, batches = problem()
    for i, centered in enumerate((True, False)):
        want = GradientCovariance(model, batches, centered=centered) @ vectors()
        got = []
        for rank in range(2):
            with np.load(tmp_path / f"rank{rank}.npz") as file:
                got.append(file[f"arr_{i}"])
                assert file["units"].tolist() == [29, 29]
        np.testing.assert_array_equal(got[0], got[1])
        assert np.abs(got[0] - want).max() <= 1e-12 * np.abs(want).max()


if __name__ == "__main__":
    torch.multiprocessing.start_processes(main, args=(sys.argv[1],), nprocs=2, start_method="fork")
