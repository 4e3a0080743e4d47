"""Which tolerance? The rank rules side by side: on matrices of known rank rounded to several formats, and on checkpoints.

    python examples/rank_rules.py                      # the known matrices
    python examples/rank_rules.py model.safetensors... # and these checkpoints

Prints the tables of docs/rank.md.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import spectral_fast as sf

RULES = ("numpy", "numerical_recipes", "loose", "log8", "storage")
SHAPE, RANK, SEEDS = (256, 192), 144, 20


def rows(cells: list[list[str]]) -> None:
    for i, row in enumerate(cells):
        print("| " + " | ".join(row) + " |")
        if i == 0:
            print("|" + "---|" * len(row))


def known(seed: int, scale: float, smallest: float) -> torch.Tensor:
    """A (256, 192) matrix of rank 144: singular values from ``scale`` down to ``smallest * scale``, random orthogonal factors."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((n, RANK)))[0] for n in SHAPE)
    return torch.from_numpy((u * np.geomspace(1.0, smallest, RANK) * scale) @ v.T)


def cast(*dtypes: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    def through(w: torch.Tensor) -> torch.Tensor:
        for dtype in dtypes:
            w = w.to(dtype)
        return w

    return through


CASES: tuple[tuple[str, Callable[[torch.Tensor], torch.Tensor], float, float], ...] = (
    ("float64", cast(), 16.0, 0.1),
    ("float32", cast(torch.float32), 16.0, 0.1),
    ("float16", cast(torch.float16), 16.0, 0.1),
    ("bfloat16", cast(torch.bfloat16), 16.0, 0.1),
    ("float8_e4m3fn", cast(torch.float8_e4m3fn), 16.0, 0.5),
    ("bfloat16, saved as float32", cast(torch.bfloat16, torch.float32), 16.0, 0.1),
    ("float32, weights x 2^-17", cast(torch.float32), 2.0**-13, 0.1),
    ("float32, weights x 2^20", cast(torch.float32), 2.0**24, 0.1),
    ("float32, weights x 2^-60", cast(torch.float32), 2.0**-56, 0.1),
)


def known_matrices() -> None:
    print(f"Ranks found in {SEEDS} matrices of shape {SHAPE[0]} x {SHAPE[1]} and rank {RANK} (smallest .. largest):\n")
    table = [["stored as", "s_1 .. s_144", *RULES]]
    for name, store, scale, smallest in CASES:
        found = [sf.scan({"w": store(known(seed, scale, smallest))}, progress=False).matrices[0].ranks for seed in range(SEEDS)]
        spans = [(min(r[rule] for r in found), max(r[rule] for r in found)) for rule in RULES]
        table.append([name, f"{scale:.3g} .. {scale * smallest:.2g}", *(f"{a}" if a == b else f"{a} .. {b}" for a, b in spans)])
    rows(table)


def checkpoint(path: str) -> tuple[list[str], list[str]]:
    spectra = [m for m in sf.scan(path, progress=False) if m.status == "ok"]
    wide = [m for m in spectra if max(m.shape) > 1.1 * min(m.shape)]
    out = []
    for kept in (spectra, wide):
        lost = [[len(m.s) - m.ranks[rule] for m in kept] for rule in RULES]
        smallest = min((float(m.s[-1]) for m in kept), default=math.nan)
        out.append([Path(path).name, str(len(kept)), f"{smallest:.1e}", *(f"{sum(n > 0 for n in counts)} ({sum(counts)})" for counts in lost)])
    return out[0], out[1]


def checkpoints(paths: list[str]) -> None:
    head = ["checkpoint", "matrices", "smallest s_min", *RULES]
    both = [checkpoint(p) for p in paths]
    print("\nMatrices that lose rank under each rule, and in brackets the singular values they lose:\n")
    rows([head, *(b[0] for b in both)])
    print("\nThe same for aspect ratios Q > 1.1, where a random matrix has s_min > 0:\n")
    rows([head, *(b[1] for b in both)])


if __name__ == "__main__":
    known_matrices()
    if sys.argv[1:]:
        checkpoints(sys.argv[1:])
