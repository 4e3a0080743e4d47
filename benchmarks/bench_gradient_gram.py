"""Gram matrices of per-sample gradients: the kernel by itself against torch's products of the same numbers and against this machine's rate for them.

    pytest -s benchmarks/bench_gradient_gram.py -k kernel

kernel: the layers of three networks; the limit is the operations of the algorithm over the rate of torch's float32 matrix product, measured before and after.
Bars: half of it for one position, 40 % for many. torch: the plain way of each algorithm with torch.einsum.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from spectral_fast.kernels.select import select

torch = pytest.importorskip("torch")

# samples, positions, width of the inputs, of the outputs, algorithm
LAYERS = {
    "MLP 1024 x 1024": (512, 1, 1024, 1024, "positions"),
    "sequences of 8, 512 x 512": (128, 8, 512, 512, "positions"),
    "sequences of 64, 128 x 384": (128, 64, 128, 384, "gradients"),
    "convolution 24 x 3 x 3 to 48, 8 x 8": (512, 64, 216, 48, "gradients"),
}


def product_rate(n: int = 2048, rounds: int = 5) -> float:
    """Operations per second of a float32 matrix product, the best of some."""
    x, best = torch.ones(n, n), np.inf
    for _ in range(rounds):
        start = time.perf_counter()
        x @ x
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def operations(n: int, t: int, p: int, q: int, algorithm: str) -> float:
    """Of the smaller half of a symmetric result."""
    return float((n * t) ** 2 * (p + q) if algorithm == "positions" else 2 * n * t * p * q + n * n * p * q)


def with_torch(a: Any, b: Any, algorithm: str) -> Any:
    if algorithm == "gradients":
        g = torch.einsum("ntp,ntq->npq", a, b).flatten(1)
        return g @ g.T
    if a.shape[1] == 1:
        return (a[:, 0] @ a[:, 0].T) * (b[:, 0] @ b[:, 0].T)
    return (torch.einsum("itp,jsp->ijts", a, a) * torch.einsum("itq,jsq->ijts", b, b)).sum((2, 3))


@pytest.mark.parametrize("layer", LAYERS)
def test_kernel(layer: str, against: Callable[..., dict[str, float]], rng: np.random.Generator, request: pytest.FixtureRequest) -> None:
    n, t, p, q, algorithm = LAYERS[layer]
    a, b = (rng.standard_normal((n, t, width), dtype=np.float32) for width in (p, q))
    gradient_gram, backend = select("gradient_gram")
    gram, x, y = np.zeros((n, n)), torch.from_numpy(a), torch.from_numpy(b)
    gradient_gram(gram, a, b, algorithm=algorithm)
    theirs = with_torch(x, y, algorithm).numpy()
    assert np.abs(gram - theirs).max() <= 1e-4 * np.abs(gram).max()
    before, share = product_rate(), 0.0

    def note(seconds: float) -> str:
        nonlocal share
        rate = max(before, product_rate())
        done = operations(n, t, p, q, algorithm)
        share = done / seconds / rate
        return f"{backend}, {algorithm}: {done / seconds / 1e9:.0f} GFLOP/s, {share:.0%} of {rate / 1e9:.0f}"

    against(
        lambda: gradient_gram(gram, a, b, algorithm=algorithm),
        {"torch": partial(with_torch, x, y, algorithm)},
        rounds=request.config.getoption("--rounds") or 9,
        pause=0.1,
        note=note,
    )
    assert share >= (0.5 if t == 1 else 0.4)
