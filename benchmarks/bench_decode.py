"""Floats and block formats to float32: the compiled kernel against the numpy one, beside what memory takes.

    pytest benchmarks/bench_decode.py -k Q4_K

64 million entries into memory that was used before (fresh pages cost more than all else: the operating system clears them). Each line shows
entries per second and the bytes that move: those read, and twice those written, because a cache line is fetched before it is written.
"memory": filling the same array with one number, by numpy on one thread, which moves 8 bytes per entry.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from spectral_fast.kernels import native_kernels, numpy_kernels
from spectral_fast.kernels.numpy_decode import BLOCK_FORMATS, FLOAT_FORMATS

ENTRIES = 1 << 26


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", [*FLOAT_FORMATS, *BLOCK_FORMATS])
def test_decode(name: str, threads: int, against: Callable[..., dict[str, float]], rng: np.random.Generator, request: pytest.FixtureRequest) -> None:
    block = BLOCK_FORMATS.get(name)
    elements, nbytes, runs = (block.elements, block.nbytes, block.runs) if block else (1, FLOAT_FORMATS[name], 0)
    raw = rng.integers(0, 256, (ENTRIES // elements, nbytes), dtype=np.uint8)
    out, steps = np.zeros((len(raw), elements), np.float32), np.zeros((len(raw), runs), np.float32)
    moved = raw.nbytes + 2 * (out.nbytes + steps.nbytes)

    def ours() -> None:
        native_kernels.decode(raw, out, format=name, steps=steps, threads=threads)

    numpy_kernels.decode(raw, out, format=name, steps=steps)
    wanted = out.copy()
    ours()
    np.testing.assert_array_equal(out, wanted)
    ratios = against(
        ours,
        {"numpy": lambda: numpy_kernels.decode(raw, out, format=name, steps=steps), "memory": lambda: out.fill(1.0)},
        rounds=request.config.getoption("--rounds") or 3,
        note=lambda t: f"{ENTRIES / t / 1e9:.2f} billion entries/s, {moved / t / 1e9:.0f} GB/s moved",
    )
    assert ratios["numpy"] > 1.0
