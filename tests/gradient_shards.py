"""Samples split over ranks, and the covariance of their gradients: tests/gradients/test_covariance_ranks.py runs this in two processes and in one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from problems import digits_like, mlp
from torch import Tensor, nn

from spectral_fast import gradient_covariance

Case = tuple[nn.Module, list[list[Any]], dict[str, Any]]


def data(n: int = 60) -> tuple[Tensor, Tensor]:
    x, y = digits_like(n, 6, 4)
    return torch.from_numpy(x), torch.from_numpy(y)


def parts(sizes: tuple[tuple[int, ...], tuple[int, ...]]) -> list[list[Any]]:
    x, y = data()
    ends = np.cumsum([0, *sizes[0], *sizes[1]])
    batches = [(x[a:b], y[a:b]) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    return [batches[: len(sizes[0])], batches[len(sizes[0]) :]]


class Words(nn.Module):
    """Tokens, as keyword arguments beside a setting that is no tensor; 12 table rows of 5, a linear layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(12, 5), nn.Linear(5, 5), nn.Linear(5, 12)

    def forward(self, tokens: Tensor, mask: Tensor, scale: float) -> Tensor:
        h = torch.tanh(self.body(self.table(tokens))) * mask[..., None]
        return self.head(torch.tanh(self.body(h)) * scale).transpose(1, 2)


def words() -> Case:
    torch.manual_seed(3)
    model, shards = Words().double(), []
    for sizes in ((5, 3), (9,)):
        shards.append([])
        for n in sizes:
            tokens = torch.randint(0, 12, (n, 7), dtype=torch.int32)
            labels = torch.randint(0, 12, (n, 7))
            labels[0, 3:] = -100
            shards[-1].append(({"tokens": tokens, "mask": tokens > 1, "scale": 1.5}, labels))
    return model, shards, {}


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.detach().mean(0)


def formed() -> Case:
    """Samples whose losses depend on the others: gradients one by one."""
    return nn.Sequential(mlp((6, 5)), Centred(), mlp((5, 4), seed=1)), parts(((30, 10), (20,))), {}


class Sometimes(nn.Module):
    """Another function of its weight where a sample of the batch is far out: only one rank meets it in what is looked at first or ever."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        if bool((x.abs() > 100.0).any()):
            return torch.einsum("nd,ed->ne", x, self.body.weight) + self.body.bias
        return self.body(x)  # type: ignore[no-any-return]


def sometimes() -> Case:
    torch.manual_seed(1)
    shards = parts(((20, 20), (20,)))
    shards[0][1][0][7] = 300.0
    return nn.Sequential(Sometimes(), nn.Tanh(), nn.Linear(6, 4)).double(), shards, {}


CASES: dict[str, Callable[[], Case]] = {
    "ragged": lambda: (mlp((6, 8, 5, 4)), parts(((9, 20, 10), (21,))), {}),
    "empty": lambda: (mlp((6, 8, 5, 4)), parts(((40, 20), ())), {"centered": False}),
    "one each": lambda: (mlp((6, 5, 4)), [[(x[None], y[None])] for x, y in zip(*(t[:2] for t in data()), strict=True)], {}),
    "batches": lambda: (mlp((6, 5, 4)), parts(((9, 20, 10), (21,))), {"unit": "batch"}),
    "words": words,
    "formed": formed,
    "sometimes": sometimes,
}


def found(case: str, rank: int = 0, group: Any = None) -> dict[str, Any]:
    model, shards, how = CASES[case]()
    loader = shards[rank] if group is not None else [batch for shard in shards for batch in shard]
    r = gradient_covariance(model, loader, process_group=group, **how)
    assert r.status == "ok", r.reason
    out: dict[str, Any] = {
        name: getattr(r, name) for name in ("eigenvalues", "other", "trace", "noise_scale", "gram", "weights", "loss", "n_samples", "n_units")
    }
    for name, layer in r.by_layer.items():
        out |= {f"{name} trace": layer.trace, f"{name} eigenvalues": layer.eigenvalues, f"{name} noise": layer.noise_scale}
    return out


def raised(work: Callable[[], Any]) -> str:
    try:
        r = work()
    except Exception as why:
        return f"{type(why).__name__}: {why}"
    return f"{r.status}: {r.reason}"


def troubles(rank: int) -> dict[str, str]:
    model, shards, _ = CASES["ragged"]()
    x, y = shards[rank][0]
    bad = torch.full_like(x, torch.nan) if rank else x

    def both(*batch: Any, **how: Any) -> str:
        return raised(lambda: gradient_covariance(how.pop("model", model), [batch] if batch else [], process_group="world", **how))

    return {
        "numbers": both(bad, y),
        "things": both((x, object() if rank else 1), y),
        "targets": both(x, y + 9 * rank),
        "arguments": both(x, y, centered=bool(rank)),
        "parameters": both(x, y, model=mlp((6, 8, 5, 4), seed=rank)),
        "nothing": both(),
        "ignored": both(x, y * 0 - 100),
        "k": both(x, y, k=0 if rank else 1),
        "parameter names": both(x, y, params="nothing*" if rank else None),
        "room": both(x, y, max_memory=300),
    }


def main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = {f"{case}/{name}": value for case in CASES for name, value in found(case, rank, dist.group.WORLD).items()}
    results |= {f"troubles/{name}": value for name, value in troubles(rank).items()}
    model, shards, _ = CASES["ragged"]()
    few = gradient_covariance(model, shards[rank], max_samples=16, process_group="world")
    results |= {"few/n": few.n_units, "few/notes": "\n".join(few.notes)}
    np.savez(Path(folder) / f"rank{rank}.npz", **{name: np.asarray(value) for name, value in results.items()})
    dist.barrier()
    os._exit(0)  # gloo's threads need no farewell


if __name__ == "__main__":
    torch.multiprocessing.start_processes(main, args=(sys.argv[1],), nprocs=2, start_method="fork")
