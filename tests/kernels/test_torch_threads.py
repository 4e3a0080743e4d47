"""Beside torch the kernels use torch's threads, on the process's first thread, and have threads of their own everywhere else; numbers do not change."""

from __future__ import annotations

import sys

import pytest
from children import run_python

START = """if True:
    import os, threading
    import numpy as np, torch
    from spectral_fast.kernels import native_kernels as k

    def tasks():
        return len(os.listdir("/proc/self/task"))

    a = np.random.default_rng(0).standard_normal((300, 400)).astype(np.float32)

    def gram(threads=2):
        out = np.zeros((300, 300))
        k.gradient_gram(out, a, algorithm="positions", threads=threads)
        return out

    alone = gram(1)
"""

pytestmark = [
    pytest.mark.native_only,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torch's threads are looked for on Linux only"),
]


def ended_well(code: str) -> None:
    done = run_python(START + code, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr


def test_no_threads_beside_torchs() -> None:
    ended_well("""
    torch.ones(600, 600) @ torch.ones(600, 600)
    torch.ones(1000, 1000).exp()  # in parallel, whatever the products are made with
    before = tasks()
    assert all(np.array_equal(alone, gram()) for _ in range(20))
    assert tasks() == before, (tasks(), before)
    """)


def test_own_threads_before_torch_has_any() -> None:
    ended_well("""
    assert np.array_equal(alone, gram())
    torch.ones(1000, 1000).exp()
    assert np.array_equal(alone, gram())
    """)


def test_from_another_thread_and_from_several() -> None:
    ended_well("""
    torch.ones(1000, 1000).exp()
    found = []
    several = [threading.Thread(target=lambda: found.extend(gram() for _ in range(10))) for _ in range(3)]
    for t in several:
        t.start()
    here = [gram() for _ in range(10)]
    for t in several:
        t.join()
    assert len(found) == 30 and all(np.array_equal(alone, g) for g in found + here)
    """)


def test_in_a_forked_process() -> None:
    ended_well("""
    torch.ones(1000, 1000).exp()
    assert np.array_equal(alone, gram())
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(alone, gram()) else 1)
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)


def test_in_a_forked_process_that_is_the_first_to_load_the_kernels() -> None:
    done = run_python(
        """if True:
    import os
    import numpy as np, torch
    torch.ones(1000, 1000).exp()
    child = os.fork()
    if child == 0:
        from spectral_fast.kernels import native_kernels as k
        a = np.random.default_rng(0).standard_normal((300, 400)).astype(np.float32)
        found = []
        for threads in (1, 2, 2, 2):  # the first loop of two starts threads that are not torch's
            found.append(np.zeros((300, 300)))
            k.gradient_gram(found[-1], a, algorithm="positions", threads=threads)
        os._exit(0 if all(np.array_equal(found[0], g) for g in found) else 1)
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """,
        OMP_NUM_THREADS="2",
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_torch_keeps_its_threads() -> None:
    """Ops with fewer tasks than torch has threads."""
    ended_well("""
    torch.set_num_threads(4)
    torch.ones(1000, 1000).exp()
    assert np.array_equal(alone, gram())
    torch.ones(1000, 1000).exp()
    before = set(os.listdir("/proc/self/task"))
    for _ in range(10):
        assert np.array_equal(alone, gram())
        torch.ones(1000, 1000).exp()
    assert set(os.listdir("/proc/self/task")) == before
    """)


def test_an_interrupt_ends_a_long_call() -> None:
    ended_well("""
    import signal, time
    torch.ones(1000, 1000).exp()
    x, out = np.ones((4000, 20000), np.float32), np.zeros((4000, 4000))
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    start = time.perf_counter()
    try:
        while time.perf_counter() - start < 60:
            k.gradient_gram(out, x, algorithm="positions")
        raise SystemExit("not interrupted")
    except KeyboardInterrupt:
        pass
    assert np.array_equal(alone, gram())
    """)
