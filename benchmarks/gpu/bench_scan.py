"""``scan`` on a device beside the same scan on the machine's CPU cores: checkpoints with the shapes of a 1.1 B and of a 7 B decoder.

    python benchmarks/gpu/bench_scan.py [--seed 20261123] [--folder FOLDER] [--layers 22] [--layers-7b 32] [--devices cpu cuda] [--json FILE]

The files are written first (2.2 GB and 13.5 GB of bfloat16) and read from the page cache. The small one is scanned on both, in turn, three times; the large
one on the last device alone: seconds by stage, and the floating-point operations of the spectra over the rate of float64 products in the same run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import made_checkpoint

import spectral_fast as sf

ROUNDS = 3


def one(path: Path, device: str) -> tuple[float, Any]:
    start = time.perf_counter()
    found = sf.scan(path, device=device, progress=False)
    if found.status != "ok":
        raise SystemExit(f"bench_scan.py: {device}: {found.status}: {found.reason}")
    return time.perf_counter() - start, found


def products(device: str) -> float:
    """float64 operations a second."""
    n = 8192 if device != "cpu" else 2048
    x = torch.randn(n, n, dtype=torch.float64, device=device)
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        (x @ x)[0, 0].item()
        taken.append(time.perf_counter() - start)
    return 2 * n**3 / min(taken)


def stages(found: Any) -> str:
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found.timings.items() if seconds >= 0.005)


def main() -> int:
    today = int(datetime.date.today().strftime("%Y%m%d"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=today)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--layers-7b", type=int, default=32, help="0: without that one")
    parser.add_argument("--devices", nargs=2, default=("cpu", "cuda"))
    parser.add_argument("--json")
    given = parser.parse_args()
    if "cuda" in given.devices and not torch.cuda.is_available():
        print("bench_scan.py: torch sees no CUDA device", file=sys.stderr)
        return 2
    result: dict[str, Any] = {"machine": platform.node(), "seed": given.seed, "devices": given.devices, "torch": torch.__version__}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        small, large = Path(folder) / "small", Path(folder) / "large"
        made_checkpoint.write(small, given.seed, given.layers, 3)
        taken: dict[int, list[float]] = {0: [], 1: []}
        compared: list[Any] = [None, None]
        for _ in range(ROUNDS):
            for k, device in enumerate(given.devices):
                seconds, compared[k] = one(small, device)
                taken[k].append(seconds)
        for m, other in zip(*(found.matrices for found in compared), strict=True):
            if abs(m.s - other.s).max() > m.bound + other.bound:
                raise SystemExit(f"bench_scan.py: the values of {m.name} differ by more than their bounds")
        medians = [statistics.median(taken[k]) for k in (0, 1)]
        result["small"] = {"seconds": medians, "ratio": medians[0] / medians[1], "stages": compared[1].timings}
        print(f"{given.layers} layers of 1.1 B: {given.devices[0]} {medians[0]:.1f} s, {given.devices[1]} {medians[1]:.1f} s, {medians[0] / medians[1]:.2f} x")
        for device, found in zip(given.devices, compared, strict=True):
            print(f"  {device}: {stages(found)}")
        if given.layers_7b:
            made_checkpoint.write(large, given.seed, given.layers_7b, 6, "7B")
            seconds, found = one(large, given.devices[1])
            flops, rate = sf.scan_plan(large).flops, products(given.devices[1])
            result["large"] = {"seconds": seconds, "flops": flops, "float64_flops_per_s": rate, "share": flops / rate / seconds, "stages": found.timings}
            print(
                f"{given.layers_7b} layers of 7 B on {given.devices[1]}: {seconds:.1f} s, {flops / rate / seconds:.0%} of the rate of products; {stages(found)}"
            )
    if given.json:
        Path(given.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
