"""Our functions beside torch's own on one GPU, in one process: medians of alternating rounds, with the rates the machine reaches beside them.

    python benchmarks/gpu/bench.py [--seed 20261123] [--json FILE]

The seed is today's date by default. Rates: copies of 1 GiB on the device (read and written), products of 8192 x 8192 matrices.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import spectral_fast as sf
from spectral_fast.kernels import cuda_kernels, torch_kernels

ROUNDS = 7


def seconds(work: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def alternating(ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each, one after the other in every round, after one that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for r in range(ROUNDS + 1):
        for name, work in ways.items():
            t = seconds(work)
            if r:
                taken[name].append(t)
    return {name: statistics.median(t) for name, t in taken.items()}


def rates() -> dict[str, float]:
    a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    out = {"copy_GB_per_s": 2 * a.numel() / alternating({"copy": lambda: b.copy_(a)})["copy"] / 1e9}
    for name, dtype in (("float64", torch.float64), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        x = torch.randn(8192, 8192, device="cuda").to(dtype)
        out[f"{name}_GFLOP_per_s"] = 2 * 8192**3 / alternating({"product": lambda x=x: x @ x})["product"] / 1e9
    return out


def rows(seed: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    g = torch.Generator(device="cuda").manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, device="cuda")

    for batch, n in ((20_000, 8), (20_000, 16), (10_000, 32), (2_000, 64), (1_000, 128), (200, 256), (100, 512), (16, 1024), (4, 2048), (1, 4096)):
        a = randn(batch, n, n)
        t = alternating({"ours": lambda a=a: sf.svdvals(a), "torch": lambda a=a: torch.linalg.svdvals(a)})
        found.append({"row": "b", "what": f"svdvals {batch} x ({n} x {n})", **t, "flops": batch * (7 / 3) * n**3, "rate": "float64_GFLOP_per_s"})
    for batch, n, k in ((512, 128, 8), (64, 1024, 32)):
        a = randn(batch, n, n)
        t = alternating({"ours": lambda a=a, k=k: sf.randomized_svd(a, k), "torch": lambda a=a, k=k: torch.svd_lowrank(a, k + 8, niter=2)})
        found.append({"row": "c", "what": f"randomized_svd {batch} x ({n} x {n}), k {k}", **t})
    basis = torch.linalg.qr(randn(2_000_000, 20))[0].mT.contiguous()
    rows_ = torch.cat([basis, torch.zeros(1, basis.shape[1], device="cuda")])
    w = randn(1, basis.shape[1])
    import numpy as np

    def by_torch() -> None:
        x = w.double()
        for _ in range(2):
            x = x - (x @ basis.double().mT) @ basis.double()

    t = alternating({"ours": lambda: cuda_kernels.orthogonalize(rows_, 20, w.clone(), np.zeros(1)), "torch": by_torch})
    found.append({"row": "d", "what": "Gram-Schmidt against 20 x 2,000,000 float32", **t, "bytes": 3 * 20 * 2_000_000 * 4, "rate": "copy_GB_per_s"})
    x, d = randn(512, 64, 768), randn(512, 64, 768)
    out = torch.zeros(512, 512, dtype=torch.float64, device="cuda")

    def formed() -> None:
        rows = torch.bmm(d.mT, x).flatten(1)
        out.copy_(rows @ rows.mT)

    t = alternating({"ours": lambda: torch_kernels.gradient_gram(out, x, d, algorithm="gradients"), "torch": formed})
    flops = 2 * 512 * 64 * 768**2 + 2 * 512**2 * 768**2
    found.append({"row": "d", "what": "Gram of 512 gradients, 64 positions, 768 x 768", **t, "flops": flops, "rate": "float32_GFLOP_per_s"})
    return found


def main() -> int:
    today = int(datetime.date.today().strftime("%Y%m%d"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=today)
    parser.add_argument("--json")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench.py: torch sees no CUDA device", file=sys.stderr)
        return 2
    reached = rates()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, seed {given.seed}")
    print(", ".join(f"{name} {value:,.0f}" for name, value in reached.items()))
    table = rows(given.seed)
    print(f"{'row':<4}{'what':<52}{'ours ms':>10}{'torch ms':>10}{'x':>8}{'share of the limit':>20}")
    for r in table:
        work = r.get("flops", r.get("bytes", 0)) / 1e9
        share = f"{work / reached[r['rate']] / r['ours']:.0%}" if work else ""
        print(f"{r['row']:<4}{r['what']:<52}{1e3 * r['ours']:>10.3f}{1e3 * r['torch']:>10.3f}{r['torch'] / r['ours']:>8.2f}{share:>20}")
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            result = {"machine": platform.node(), "gpu": torch.cuda.get_device_name(), "seed": given.seed, "rates": reached, "rows": table}
            json.dump(result, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
