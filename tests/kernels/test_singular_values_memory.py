"""Memory that singular values need beyond their input: measured in a child process, against what is predicted."""

from __future__ import annotations

from pathlib import Path

import pytest
from children import run_python

from spectral_fast.linalg.svd import svd_workspace

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
    bound = svd_workspace(shape, accuracy, threads=THREADS)
    size = 4 * shape[0] * shape[1] * shape[2]
    print(f"{case}, {shape}, {accuracy}: {peak / MB:.2f} MB beyond the input of {size / MB:.2f} MB; allowed {bound / MB:.2f} MB; {samples} samples")
    assert samples >= 5
    assert 0 < peak <= bound
