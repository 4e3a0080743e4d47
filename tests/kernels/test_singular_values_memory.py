"""Memory that singular values need beyond their input: measured in a child process, against what the design allows."""

from __future__ import annotations

from pathlib import Path

import pytest
from children import run_python

pytestmark = [
    pytest.mark.native_only,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is read from /proc, which this system does not have"),
]

THREADS = 2
MB = 1e6

# Peak of the anonymous resident memory (file pages of libraries are left out) during one call, minus what it was just before. Beforehand small
# calls load the code, start the pool and let the allocator settle. A child for each case: freed memory that an earlier call left in the heap
# would be used again unseen. Its allocator hands large freed blocks back at once: what it keeps otherwise differs from run to run.
ALLOCATOR = "glibc.malloc.mmap_threshold=65536:glibc.malloc.trim_threshold=65536"
CHILD = """
import threading, time
import numpy as np
import spectral_fast as sf

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

for accuracy in ("standard", "high"):
    sf.svdvals(np.ones((20, 8, 8), np.float32), accuracy=accuracy, threads={threads})
a = np.random.default_rng(0).standard_normal({stored}, dtype=np.float32)
a = {view}
peak, over, samples = 0, threading.Event(), 0

def watch():
    global peak, samples
    while not over.is_set():
        peak = max(peak, resident())
        samples += 1
        time.sleep(0.0005)

watcher = threading.Thread(target=watch)
watcher.start()
time.sleep(0.01)
before, peak, samples = resident(), 0, 0
s = sf.svdvals(a, accuracy={accuracy!r}, threads={threads})
over.set()
watcher.join()
assert s.shape == (*a.shape[:-2], min(a.shape[-2:]))
print(peak - before, samples)
"""


def allowed(shape: tuple[int, int, int], accuracy: str) -> int:
    """Bytes for a batch of matrices (batch, m, n) in float32.

    Every thread that works on a matrix by itself has one float64 working matrix (n x ld, ld at most n + 16), a panel of 256 of the matrix's rows
    as float64, and block reflectors for it (128 x 256), which also covers the vectors of the reduction. A matrix of more than 8192 rows is
    summed up in parts: a single one keeps the square of each part (at most n / 4096 of the float32 input) beside the threads' memory, in which
    a further square is set aside.
    Above 320 columns (one matrix per thread up to 1024, above it all threads on one) the O(n b) part is 896 n: 384 rows of the matrix between
    two visits to its Gram matrix, and for b = 32 at most 16 n b in the band and some ten thin matrices of n x b; both are counted.
    Once for the whole batch: the condensed matrices (2 n each), the values (n each), and half a megabyte for the interpreter, allocator
    and stacks.
    """
    batch, m, n = shape[0], max(shape[1:]), min(shape[1:])
    square, ld = n * (n + 16), n + 16
    if n > 320:
        tall = accuracy == "high" and m > n
        at_once = min(THREADS, batch) if n <= 1024 else 1
        doubles = at_once * (square + 896 * n + (256 * ld + 128 * 256 if tall else 0))
    else:
        parts = -(-m // 8192)
        doubles = min(THREADS, max(batch, parts)) * ((2 if parts > 1 else 1) * square + 256 * ld + 128 * 256)
        if parts > 1 and batch < 2 * THREADS:
            doubles += parts * square
    return 8 * (doubles + 3 * batch * n) + 500_000


CASES = {
    "a batch of small ones": ((64, 256, 256), "a"),
    "transposed": ((64, 256, 256), "a.swapaxes(1, 2)"),
    "every second row, backwards": ((40, 512, 256), "a[:, ::-2]"),
    "middle ones": ((12, 768, 768), "a"),
    "tall": ((1, 20000, 256), "a"),
    "wide": ((1, 256, 20000), "a"),
    "tall, two stages": ((1, 8000, 400), "a"),
    "large": ((1, 2048, 2048), "a"),
    "large, transposed": ((1, 2048, 2048), "a.swapaxes(1, 2)"),
}


@pytest.mark.parametrize("accuracy", ["standard", "high"])
@pytest.mark.parametrize("case", CASES)
def test_peak_beyond_the_input(case: str, accuracy: str) -> None:
    stored, view = CASES[case]
    run = run_python(CHILD.format(threads=THREADS, stored=stored, view=view, accuracy=accuracy), GLIBC_TUNABLES=ALLOCATOR)
    assert run.returncode == 0, run.stderr
    peak, samples = map(int, run.stdout.split())
    shape = (stored[0], stored[1] // 2, stored[2]) if "::-2" in view else stored
    bound = allowed(shape, accuracy)
    size = 4 * shape[0] * shape[1] * shape[2]
    print(f"{case}, {shape}, {accuracy}: {peak / MB:.2f} MB beyond the input of {size / MB:.2f} MB; allowed {bound / MB:.2f} MB; {samples} samples")
    assert samples >= 5
    assert 0 < peak <= bound
