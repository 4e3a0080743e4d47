"""Samples of classes split over ranks, and their neural collapse: tests/test_collapse_distributed.py runs this in two processes and in one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from problems import digits_like, mlp
from torch import nn

from spectral_fast import neural_collapse

Shards = list[list[tuple[Any, Any]]]


def data() -> tuple[Any, Any]:
    x, y = digits_like(90, 6, 4)
    return torch.from_numpy(x), torch.from_numpy(y)


def parts(sizes: tuple[tuple[int, ...], tuple[int, ...]]) -> Shards:
    x, y = data()
    shards: Shards = []
    start = 0
    for rank in sizes:
        shards.append([])
        for size in rank:
            shards[-1].append((x[start : start + size], y[start : start + size]))
            start += size
    return shards


def ragged() -> tuple[nn.Module, Shards, dict[str, Any]]:
    return mlp((6, 8, 5, 4)), parts(((9, 30, 10), (41,))), {"layers": "*"}


def by_class() -> tuple[nn.Module, Shards, dict[str, Any]]:
    """No rank has all classes, and one class is far away."""
    x, y = data()
    x[y == 3] += 1e4
    return mlp((6, 8, 4)), [[(x[y < 2], y[y < 2])], [(x[y >= 2], y[y >= 2])]], {"global_mean": "samples"}


def empty() -> tuple[nn.Module, Shards, dict[str, Any]]:
    return mlp((6, 8, 5, 4)), parts(((50, 40), ())), {"layers": "*"}


def statistics(rank: int) -> tuple[nn.Module, Shards, dict[str, Any]]:
    model = mlp((6, 8, 4), batchnorm=True)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "mean" in name:
                buffer += 0.1 + rank
    return model, parts(((30, 15), (45,))), {}


def test_too() -> tuple[nn.Module, Shards, dict[str, Any]]:
    """One rank has no test samples."""
    x, y = data()
    return mlp((6, 8, 5, 4)), [[(x[:20], y[:20])], [(x[20:60], y[20:60]), (x[60:], y[60:])]], {"layers": "*", "test": True}


def no_room() -> tuple[nn.Module, Shards, dict[str, Any]]:
    """Features are not kept: NC4 by a second pass; and no layer fits."""
    return mlp((6, 8, 4)), parts(((30, 15), (45,))), {"layers": "*", "max_memory": 8 * (3 * 64 + 2 * 4 * 8) + 2000}


CASES: dict[str, Callable[[int], tuple[nn.Module, Shards, dict[str, Any]]]] = {
    "ragged": lambda rank: ragged(),
    "by class": lambda rank: by_class(),
    "empty": lambda rank: empty(),
    "statistics": statistics,
    "test too": lambda rank: test_too(),
    "no room": lambda rank: no_room(),
}


def found(case: str, rank: int = 0, group: Any = None) -> dict[str, Any]:
    model, shards, how = CASES[case](rank)
    loader = shards[rank] if group is not None else [batch for shard in shards for batch in shard]
    if how.pop("test", False):
        how["test_loader"] = loader[-1:] if group is None or rank == 1 else []
    r = neural_collapse(model, loader, process_group=group, **how)
    assert r.status == "ok", r.reason
    out: dict[str, Any] = {"skipped": [s.name for s in r.skipped], "samples": r.n_samples, "counts": r.class_counts, "means": r.means, "accuracy": r.accuracy}
    out |= {name: getattr(r, name) for name in ("nc1", "nc2_norms", "nc2_angles", "nc3", "nc4", "cdnv", "spread", "n_classes")}
    for name, layer in r.by_layer.items():
        out |= {f"{name} nc1": layer.nc1, f"{name} cdnv": layer.cdnv, f"{name} eigenvalues": layer.eigenvalues, f"{name} nearest": layer.ncc_accuracy}
    if r.test is not None:
        out |= {"test nc1": r.test.nc1, "test nc4": r.test.nc4, "test nc4 train": r.test.nc4_train, "test samples": r.test.n_samples}
    return out


INTERRUPTS = (1, 2, 3, 4, 5, 6)  # of three batches, and three of test_loader


def raised(work: Callable[[], Any]) -> str:
    try:
        r = work()
    except Exception as why:
        return f"{type(why).__name__}: {why}"
    return f"{r.status}: {r.reason}"


def troubles(rank: int) -> dict[str, str]:
    model, shards, _ = ragged()
    x, y = shards[rank][0]
    bad = torch.full_like(x, torch.nan) if rank else x
    return {
        "test target": raised(lambda: neural_collapse(model, [(x, y)], test_loader=[(x, y + 9 * rank)], process_group="world")),
        "target": raised(lambda: neural_collapse(model, [(x, y + 9 * rank)], process_group="world")),
        "numbers": raised(lambda: neural_collapse(model, [(bad, y)], process_group="world")),
        "floats": raised(lambda: neural_collapse(model, [(x, y.double() if rank else y)], process_group="world")),
        "parameters": raised(lambda: neural_collapse(mlp((6, 8, 5, 4), seed=rank), [(x, y)], process_group="world")),
        "arguments": raised(lambda: neural_collapse(model, [(x, y)], per_class=bool(rank), process_group="world")),
        "nothing": raised(lambda: neural_collapse(model, [], process_group="world")),
        "layers": raised(lambda: neural_collapse(model, [(x, y)], layers="nothing*" if rank else "*", process_group="world")),
        "tests": raised(lambda: neural_collapse(model, [(x, y)], test_loader=None if rank else [(x, y)], process_group="world")),
        "floats and tests": raised(lambda: neural_collapse(model, [(x, y.double() if rank else y)], test_loader=[(x, y)], process_group="world")),
        "ignored": raised(lambda: neural_collapse(model, [(x, y * 0 - 100)], process_group="world")),
    }


def interrupted(rank: int, at: int, tests: bool) -> str:
    """Ctrl-C on the first rank in forward pass ``at``, counted from the first one over the batches."""
    model, shards, _ = ragged()
    calls = 0

    def press(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if rank == 0 and calls == at + 1:  # one is made to find the classifier
            signal.raise_signal(signal.SIGINT)

    model.register_forward_pre_hook(press)
    loader = [shards[0][0]] * 3
    try:
        r = neural_collapse(model, loader, test_loader=loader if tests else None, process_group="world")
    except KeyboardInterrupt:
        return "KeyboardInterrupt"
    return f"{r.status}, {None if r.test is None else r.test.status}"


def main(rank: int, folder: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = {f"{case}/{name}": value for case in CASES for name, value in found(case, rank, dist.group.WORLD).items()}
    results |= {f"troubles/{name}": value for name, value in troubles(rank).items()}
    results |= {f"interrupted/{at} {tests}": interrupted(rank, at, tests) for at in INTERRUPTS for tests in (False, True)}
    np.savez(Path(folder) / f"rank{rank}.npz", **{name: np.asarray(value) for name, value in results.items()})
    dist.barrier()
    os._exit(0)  # gloo's threads need no farewell


if __name__ == "__main__":
    torch.multiprocessing.start_processes(main, args=(sys.argv[1],), nprocs=2, start_method="fork")
