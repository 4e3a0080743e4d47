"""Problems whose samples are split over ranks, and what each rank finds: tests/probing/test_distributed.py runs this in two processes and in one."""

from __future__ import annotations

import importlib
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
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

from spectral_fast.curvature import GGN, Hessian, curvature
from spectral_fast.curvature.preflight import preflight
from spectral_fast.curvature.sampling import sampling_errors
from spectral_fast.curvature.sharpness import preconditioned
from spectral_fast.linalg.density import ProbeRun, run_probes, spectral_density
from spectral_fast.linalg.eigsh import eigsh, extreme_pairs, pairs_so_far
from spectral_fast.linalg.restart import Ends
from spectral_fast.linalg.trace import trace

eigsh_module = importlib.import_module("spectral_fast.linalg.eigsh")  # the package has a function of that name

DEEP = ("classes", "tokens")
Shards = list[list[tuple[Any, Any]]]  # batches by rank


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7)

    def forward(self, ids: Any) -> Any:
        x = self.embed(ids)
        return self.head(torch.tanh(self.mix(x + x.cumsum(1) / 3)))


def batches(x: Any, y: Any, sizes: tuple[int, ...], start: int = 0) -> list[tuple[Any, Any]]:
    ends = np.cumsum((start, *sizes))
    return [(x[a:b], y[a:b]) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def samples(dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    x, y = digits_like(48, 6, 3)
    return torch.from_numpy(x).to(dtype), torch.from_numpy(y)


def classes(dtype: str = "float64", second: tuple[int, ...] = (7, 4)) -> tuple[nn.Module, Shards, dict[str, Any]]:
    x, y = samples(getattr(torch, dtype))
    return mlp((6, 8, 3), dtype=dtype), [batches(x, y, (9, 9, 9, 10)), batches(x, y, second, 37)], {}


def tokens(ignored: tuple[int, ...] = (3,)) -> tuple[nn.Module, Shards, dict[str, Any]]:
    """Ragged in samples and in valid tokens; of the batches ``ignored`` no token counts."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        ids, targets = torch.randint(0, 7, (24, 5)), torch.randint(0, 7, (24, 5))
        targets[torch.rand(24, 5) < 0.4] = -100
        model = Tokens().double()
    parts = batches(ids, targets, (9, 6, 5, 4))
    for i in ignored:
        parts[i] = (parts[i][0], torch.full_like(parts[i][1], -100))
    return model, [parts[:2], parts[2:]], {}


def regression() -> tuple[nn.Module, Shards, dict[str, Any]]:
    x, y = samples()
    targets = F.one_hot(y, 3).double()
    return mlp((6, 8, 3)), [batches(x, targets, (30,)), batches(x, targets, (11, 7), 30)], {"loss_fn": F.huber_loss}


def statistics(rank: int) -> tuple[nn.Module, Shards, dict[str, Any]]:
    """Running statistics of its own on every rank, as training leaves them."""
    model, shards, how = classes()
    model = mlp((6, 8, 3), batchnorm=True)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "mean" in name:
                buffer += 0.1 + rank
    return model, shards, how


def small(rank: int) -> tuple[nn.Module, Shards, dict[str, Any]]:
    """So few parameters that the whole matrix is made."""
    return mlp((6, 2, 3)), classes()[1], {"params": "2.*"}


def tiny(rank: int) -> tuple[nn.Module, Shards, dict[str, Any]]:
    model, shards, _ = classes()
    return model, shards, {"loss_fn": lambda z, t: 1e-130 * F.cross_entropy(z, t)}


CASES: dict[str, Callable[[int], tuple[nn.Module, Shards, dict[str, Any]]]] = {
    "classes": lambda rank: classes(),
    "float32": lambda rank: classes("float32"),
    "tokens": lambda rank: tokens(),
    "no valid tokens": lambda rank: tokens((2, 3)),
    "no samples": lambda rank: classes(second=()),
    "own loss": lambda rank: regression(),
    "statistics": statistics,
    "tiny": tiny,
    "small": small,
}


class Whole:
    """The operator without its spread basis: every rank holds all of it."""

    def __init__(self, op: Any) -> None:
        self.shape, self.blocks, self.dtype, self.row_products = op.shape, op.blocks, op.dtype, op.row_products

    def __matmul__(self, v: Any) -> Any:
        raise NotImplementedError


def found(case: str, rank: int = 0, group: Any = None) -> dict[str, Any]:
    """What the ranks of ``group`` find together, or one process with all samples."""
    model, shards, how = CASES[case](rank)
    loader = shards[rank] if group is not None else [batch for shard in shards for batch in shard]
    op = Hessian(model, loader, process_group=group, **how)
    n = op.shape[0]
    loss, gradient = op.loss_and_gradient()
    v = np.random.default_rng(0).standard_normal((n, 3))
    tol = 1e-4 if op.dtype == torch.float32 else 1e-9
    out = {"loss": loss, "gradient": gradient.numpy(), "products": op @ v, "one": (op @ torch.from_numpy(v[:, 0])).numpy()}
    pairs = eigsh(op, 4, which="BE", tol=tol)
    out |= {"values": pairs.values, "vectors": np.abs(pairs.vectors[:, :2].T @ v), "residuals": np.array(pairs.residuals.max() <= tol * pairs.scale)}
    return out | (more(op, loader, group, how) if case in DEEP else {})


def more(op: Hessian, loader: Any, group: Any, how: dict[str, Any]) -> dict[str, Any]:
    n, tol = op.shape[0], 1e-9
    out: dict[str, Any] = {"whole values": eigsh(Whole(op), 4, which="BE", tol=tol).values}
    # few rows: restarts, and a start from the probes' basis
    run = ProbeRun(n=n, steps=8)
    kry = run_probes(op, run, probes=2, capacity=20)
    out["by block"] = [x for samples in run.by_block.values() for x in samples]
    again, how_it_went = extreme_pairs(op, Ends(top=2), tol=tol, capacity=20, start=kry)
    assert how_it_went["status"] == "ok" and (kry.share.width < n) == (group is not None)
    out["restarted values"] = again.values
    for name, of in (("spread", op), ("whole", Whole(op))):
        density = spectral_density(of, probes=2, steps=12)
        out |= {f"{name} moments": [density.trace, density.trace_stderr, density.frobenius], f"{name} mean": density.nodes @ density.weights}
    errors = sampling_errors(op, eigsh(op, 2, tol=tol).vectors)
    found_trace = trace(op, max_matvecs=40)
    assert errors.groups <= 16 if errors.pieces else errors.groups == 6
    out |= {"sampling": np.array(errors.pieces) if errors.pieces else errors.stderr, "trace": [found_trace.estimate, found_trace.stderr]}
    if group is not None:
        counted: list[int] = []
        interrupted = run_probes(None, ProbeRun(n=n, steps=6), probes=2, share=op.sharded.share, apply=op.sharded.told(counted.append))
        so_far, how_it_was = pairs_so_far(interrupted, Ends(top=1), tol, 12)
        assert sum(counted) == 12 and so_far.rows.shape == (1, n) and how_it_was["columns"] is None
    checks = preflight(op)
    assert not checks.failed, checks.notes
    ggn = GGN(op.model, loader, process_group=group, **how)
    out["ggn"] = eigsh(ggn, 3, tol=tol).values
    assert eigsh(op, 2, tol=0.01, basis_dtype="bfloat16").status == "ok"
    return out


def analysed(rank: int = 0, group: Any = None) -> dict[str, Any]:
    """The analysis in one call, with eigenvectors put together and left in parts, and an optimizer whose threshold is about P^-1 H."""
    model, shards, _ = classes()
    loader = shards[rank] if group is not None else [batch for shard in shards for batch in shard]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for p in model.parameters():
        optimizer.state[p] = {"step": torch.tensor(3.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.linspace(0.1, 2, p.numel()).view(p.shape).to(p)}
    assert (preconditioned(Hessian(model, loader, process_group=group), np.ones(83)).sharded is None) == (group is None)
    out: dict[str, Any] = {}
    for name, gathered in (("whole", eigsh_module.GATHERED), ("parts", 0)):
        before, eigsh_module.GATHERED = eigsh_module.GATHERED, gathered
        try:
            c = curvature(model, loader, k=4, k_bottom=2, probes=2, steps=20, tol=1e-8, optimizer=optimizer, process_group=group, progress=False)
        finally:
            eigsh_module.GATHERED = before
        assert c.status == "ok" and c.sharpness is not None, (c.reason, c.notes)
        width = None if c.hessian_top.columns is None else c.hessian_top.columns[1] - c.hessian_top.columns[0]
        assert (width is not None) == (group is not None and name == "parts") and c.hessian_top.vectors.shape == (width or 83, 4)
        assert (c.sampling is None) == (width is not None) == any("spread over the ranks" in note for note in c.notes)
        out |= {f"{name} top": c.hessian_top.values, f"{name} bottom": c.hessian_bottom.values, f"{name} ggn": c.ggn_top.values}
        out |= {f"{name} share": c.gradient_in_top, f"{name} sharpness": c.sharpness.value}
    return out


def raised(work: Callable[[], Any]) -> str:
    try:
        work()
    except Exception as why:
        return f"{type(why).__name__}: {why}"
    return "nothing"


class Failing(Hessian):
    """Does something on one rank in the third product."""

    act: Callable[[], Any] | None = None

    def _products(self, rows: Any, out: Any) -> None:
        super()._products(rows, out)
        if self.products == 2 and self.act is not None:
            self.act()


def troubles(rank: int) -> dict[str, Any]:
    """What goes wrong on one rank, and what all of them say."""
    model, shards, _ = classes()
    loader = shards[rank]

    def stop(what: BaseException) -> Callable[[], None]:
        def act() -> None:
            raise what

        return act

    def failing(act: Callable[[], None]) -> Failing:
        op = Failing(model, loader, process_group="world")
        op.act = act if rank == 1 else None
        return op

    def elsewhere() -> Any:
        other = mlp((6, 8, 3), seed=rank)
        with torch.no_grad():
            other[0].weight.copy_(model[0].weight)
        return Hessian(other, loader, process_group="world")

    out = {
        "product": raised(lambda: eigsh(failing(stop(ZeroDivisionError("own message"))), 2)),
        "loader": raised(lambda: Hessian(model, loader if rank == 0 else 3, process_group="world")),
        "parameter": raised(elsewhere),
        "shape": raised(lambda: Hessian(mlp((6, 8 + rank, 3)), loader, process_group="world")),
        "params": raised(lambda: Hessian(model, loader, params="0.*" if rank else None, process_group="world")),
        "loss": raised(lambda: Hessian(model, [(x, F.one_hot(y, 3).double()) for x, y in loader], "mse" if rank else "bce", process_group="world")),
        "nothing valid": raised(lambda: Hessian(model, [(x, y * 0 - 100) for x, y in loader], process_group="world")),
        "vectors": raised(lambda: Hessian(model, loader, process_group="world") @ np.full(83, 1.0 + rank)),
        "checkpoint": raised(lambda: eigsh(Hessian(model, loader, process_group="world"), 2, checkpoint="run")),
        "group": raised(lambda: Hessian(model, loader, process_group="wrold")),
    }
    for name, act in (("interrupt", stop(KeyboardInterrupt())), ("Ctrl-C", lambda: os.kill(os.getpid(), signal.SIGINT))):
        result = eigsh(failing(act), 2)
        out[name] = f"{result.status}, {result.reason}, {np.isfinite(result.values).sum()} values"
    alone = Hessian(model, loader)
    out["alone"] = f"{alone.ranks.size}: {'; '.join(alone.notes)}"
    wrapped = Hessian(nn.parallel.DistributedDataParallel(model), loader)
    out["wrapped"] = f"{wrapped.ranks.size}: {'; '.join(wrapped.notes)}"
    data = TensorDataset(*samples())
    even = DataLoader(data, batch_size=7, sampler=DistributedSampler(Subset(data, range(47))))
    out["sampler"] = "; ".join(Hessian(model, even, process_group="world").notes)
    return out


def main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    with np.errstate(all="raise", under="ignore"):
        results = {f"{case}/{name}": value for case in CASES for name, value in found(case, rank, dist.group.WORLD).items()}
    results |= {f"analysis/{name}": value for name, value in analysed(rank, dist.group.WORLD).items()}
    results |= {f"troubles/{name}": value for name, value in troubles(rank).items()}
    spread = Hessian(classes()[0], classes()[1][rank], process_group="world").sharded
    assert spread is not None
    v = torch.randn(2, 83, generator=torch.Generator().manual_seed(1)).double().numpy()
    both = []
    for spread._scatters in (False, True):
        both.append(spread.gather(spread(np.ascontiguousarray(v[:, spread.share.columns]))))
    results |= {"width": spread.share.width, "scattered": np.abs(both[0] - both[1]).max() / np.abs(both[0]).max()}
    np.savez(Path(folder) / f"rank{rank}.npz", **{name: np.asarray(value) for name, value in results.items()})
    # the last: a rank that is gone
    op = Failing(classes()[0], classes()[1][rank], process_group="world")
    op.act = (lambda: os._exit(0)) if rank == 1 else None
    Path(folder, "gone").write_text(raised(lambda: eigsh(op, 2)))


if __name__ == "__main__":
    torch.multiprocessing.start_processes(main, args=(sys.argv[1],), nprocs=2, start_method="fork")
