"""All singular values: ``sf.svdvals`` against numpy (float64) and torch (float32), on the same float32 matrices.

    pytest benchmarks/bench_singular_values.py                       the table on Gaussian and heavy-tailed input
    pytest benchmarks/bench_singular_values.py -k graded             one kind of input
    pytest benchmarks/bench_singular_values.py --rounds 3            fewer rounds

Up to 2 GFLOP every side is called twice in a row and the second call
counts. Each line shows the medians, the ratios, the share of the limit and where the time went (thread seconds by stage). The limit is
(m n^2 + 4/3 n^3) flops per matrix at the rate of numpy's float64 product of 2048 x 2048 matrices, measured in the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from spectral_fast.kernels import native_kernels
from spectral_fast.linalg.conv import conv_svdvals
from spectral_fast.linalg.svd import svd_bound, svdvals

SMALL = [(4096, 16, 16), (2304, 32, 32), (1152, 64, 64), (288, 128, 128), (64, 256, 256)]
LARGE = [(24, 768, 768), (1, 3072, 768), (1, 2048, 2048), (1, 5632, 2048), (1, 4096, 4096)]
HUGE = [(1, 11008, 4096)]

# (n or (m, n), accuracy) -> times (numpy, torch) asked for; where a shape is not named any ratio is reported
BARS: dict[tuple[Any, str], tuple[float, float]] = {
    (16, "standard"): (18, 15),
    (32, "standard"): (14, 12),
    (64, "standard"): (10, 9),
    (128, "standard"): (16, 9),
    (256, "standard"): (8, 5),
    (768, "standard"): (5, 2),
    ((3072, 768), "standard"): (7, 3),
    (2048, "standard"): (4.5, 2.1),
    ((5632, 2048), "standard"): (5, 2.2),
    (4096, "standard"): (5, 0.95),
    ((11008, 4096), "standard"): (0, 1.6),
    (128, "high"): (11, 6),
    (256, "high"): (5, 3),
    (768, "high"): (3, 1.3),
    (2048, "high"): (3.5, 1.6),
    (4096, "high"): (4, 0.75),
}


def matrices(kind: str, shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Matrices of one kind; graded: singular values from 1 to 1e-15, in float64; deficient: half of the rank, in float64; the others float32."""
    b, m, n = shape
    if kind == "gaussian":
        return rng.standard_normal(shape, dtype=np.float32)
    if kind == "heavy-tailed":
        return rng.standard_t(2.5, shape).astype(np.float32)
    left, right = (np.linalg.qr(rng.standard_normal((min(b, 8), k, n)))[0] for k in (m, n))
    if kind == "graded":
        few = (left * np.geomspace(1.0, 1e-15, n)) @ np.swapaxes(right, 1, 2)
    else:
        few = left[..., : n // 2] @ np.swapaxes(right[..., : n // 2], 1, 2)
    return np.resize(few, shape)


def compare(against: Callable[..., dict[str, float]], rate: float, a: np.ndarray, accuracy: str, *, rounds: int, with_numpy: bool = True) -> dict[str, float]:
    torch = pytest.importorskip("torch", reason="the peer is torch's svdvals")
    b, m, n = a.shape
    tensor = torch.from_numpy(a)
    wide = a.astype(np.float64)
    one, bound = svdvals(a[0], accuracy=accuracy, return_bound=True)
    if m * n * n < 1e9:
        exact = np.linalg.svd(wide[0], compute_uv=False)
        assert (np.abs(one - exact) <= bound + svd_bound(exact)).all()
    else:  # numpy would take as long as a round
        assert np.abs(one - torch.linalg.svdvals(tensor[0]).numpy()).max() <= 1e-4 * one[0]
    seconds: dict[str, float] = {}
    native_kernels.singular_values(a, accuracy=accuracy, seconds=seconds)
    limit = b * (m * n**2 + 4 / 3 * n**3) / rate
    spent = ", ".join(f"{name} {s * 1e3:.1f}" for name, s in seconds.items())
    peers: dict[str, Callable[[], Any]] = {"torch": lambda: torch.linalg.svdvals(tensor)}
    if with_numpy:
        peers["numpy"] = lambda: np.linalg.svd(wide, compute_uv=False)
    return against(
        lambda: svdvals(a, accuracy=accuracy),
        peers,
        rounds=rounds,
        pause=0.2,
        again=b * m * n * n < 2e9,
        note=lambda ours: f"limit {limit * 1e3:.2f} ms at {rate / 1e9:.0f} GFLOP/s = {limit / ours:.0%} of ours; thread ms: {spent}",
    )


def named(shapes: list[tuple[int, int, int]]) -> Any:
    return pytest.mark.parametrize("shape", shapes, ids=lambda s: "x".join(map(str, s)))


@pytest.mark.parametrize("kind", ["gaussian", "heavy-tailed"])
@pytest.mark.parametrize("accuracy", ["standard", "high"])
@named(SMALL + LARGE)
def test_table(
    against: Callable[..., dict[str, float]], rng: np.random.Generator, gemm_rate: float, shape: tuple[int, int, int], accuracy: str, kind: str, request: Any
) -> None:
    b, m, n = shape
    rounds = request.config.getoption("--rounds") or (7 if b * m * n * n < 2e9 else 3)
    ratios = compare(against, gemm_rate, matrices(kind, shape, rng), accuracy, rounds=rounds)
    bar = BARS.get((n if m == n else (m, n), accuracy))
    if bar is not None:
        assert ratios["numpy"] >= bar[0] and ratios["torch"] >= bar[1], f"asked for {bar[0]} x numpy, {bar[1]} x torch"


@named(HUGE)
def test_huge(against: Callable[..., dict[str, float]], rng: np.random.Generator, gemm_rate: float, shape: tuple[int, int, int]) -> None:
    ratios = compare(against, gemm_rate, matrices("gaussian", shape, rng), "standard", rounds=1, with_numpy=False)
    assert ratios["torch"] >= BARS[(shape[1:], "standard")][1]


@pytest.mark.parametrize("kind", ["graded", "deficient"])
@pytest.mark.parametrize("accuracy", ["standard", "high"])
@named(SMALL + LARGE[:3])
def test_difficult_input(against: Callable[..., dict[str, float]], rng: np.random.Generator, shape: tuple[int, int, int], accuracy: str, kind: str) -> None:
    """Ours on difficult input over ours on Gaussian input: at most 2 for n <= 64, 1.5 above."""
    easy, hard = matrices("gaussian", shape, rng).astype(np.float64), matrices(kind, shape, rng)
    ratios = against(lambda: svdvals(easy, accuracy=accuracy), {kind: lambda: svdvals(hard, accuracy=accuracy)}, rounds=7, pause=0.05, again=True)
    assert ratios[kind] <= (2.0 if shape[2] <= 64 else 1.5)


def test_convolution_as_an_operator(against: Callable[..., dict[str, float]], rng: np.random.Generator, request: Any) -> None:
    """256 channels, 3x3, on a 32x32 grid: against the usual way, numpy's fft of the kernel and svd of every frequency's matrix."""
    kernel = rng.standard_normal((256, 256, 3, 3), dtype=np.float32)

    def usual() -> np.ndarray:
        transfer = np.fft.fft2(kernel.astype(np.float64), (32, 32), axes=(2, 3))
        return np.linalg.svd(transfer.transpose(2, 3, 0, 1), compute_uv=False)

    ours, theirs = conv_svdvals(kernel, 32), np.sort(usual().ravel())[::-1]
    assert np.abs(ours - theirs).max() <= 1e-10 * theirs[0]
    ratios = against(lambda: conv_svdvals(kernel, 32), {"numpy fft + svd": usual}, rounds=request.config.getoption("--rounds") or 1, warmup=0, pause=0.2)
    assert ratios["numpy fft + svd"] >= 4
