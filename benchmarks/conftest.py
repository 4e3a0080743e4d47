"""One way to compare: both sides alternate in one process on the same data, and the median of the rounds' ratios is what is kept."""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from spectral_fast.kernels.select import show_config

Side = Callable[[], Any]
WAKING = 0.03  # seconds; threads that have slept can share one core for as long before the system moves one of them
LINES = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LINES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[LINES]:
        terminalreporter.section("medians, both sides in one process")
        for line in config.stash[LINES]:
            terminalreporter.write_line(line)


def pytest_addoption(parser: pytest.Parser) -> None:
    today = int(datetime.date.today().strftime("%Y%m%d"))
    parser.addoption("--rounds", type=int, default=0, help="rounds of each comparison; 0: what the benchmark thinks right")
    parser.addoption("--columns", type=int, default=20_000_000, help="of the Krylov basis")
    parser.addoption("--layers", type=int, default=22, help="of the made decoder")
    parser.addoption("--seed", type=int, default=today, help="seed of all benchmark data; default: today's date as a number")


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed {config.getoption('--seed')}; spectral_fast: {show_config()}"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """The data's generator, of ``--seed``."""
    return np.random.default_rng(request.config.getoption("--seed"))


@pytest.fixture
def against(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., dict[str, float]]:
    """``against(ours, {"peer": theirs, ...}, rounds=7, warmup=1, pause=0, again=False, note="")`` -> {"peer": median over the rounds of theirs / ours, ...}.

    Every round runs ours and then each peer once, so that a slow moment of the machine falls on all of them. pause: seconds before each call,
    in which thread pools that wait by spinning (OpenBLAS, OpenMP) go to sleep; without it a call of a few milliseconds shares its cores
    with the other side's idle threads. again: each side runs for a while before the call that counts. Medians in seconds and ratios go to
    ``extra_info`` and, with ``note``, to the end of the terminal's output; ``ours`` is also what pytest-benchmark itself times.
    """

    def compare(
        ours: Side,
        peers: dict[str, Side],
        *,
        rounds: int = 7,
        warmup: int = 1,
        pause: float = 0.0,
        again: bool = False,
        note: str | Callable[[float], str] = "",
    ) -> dict[str, float]:
        sides = {"ours": ours, **peers}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for r in range(-warmup, rounds):
            for name, side in sides.items():
                time.sleep(pause)
                woken = time.perf_counter()
                while again and time.perf_counter() - woken < WAKING:
                    side()
                start = time.perf_counter()
                side()
                if r >= 0:
                    seconds[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(s) for name, s in seconds.items()}
        ratios = {name: statistics.median(t / o for t, o in zip(seconds[name], seconds["ours"], strict=True)) for name in peers}
        benchmark.extra_info.update(
            seed=request.config.getoption("--seed"), config=show_config(), medians=medians, all_seconds=seconds, ratios=ratios, rounds=rounds
        )
        benchmark.pedantic(ours, rounds=rounds, warmup_rounds=1)
        told = [f"{name} {median * 1e3:.3f} ms" + (f" = {ratios[name]:.1f} x ours" if name in ratios else "") for name, median in medians.items()]
        more = note(medians["ours"]) if callable(note) else note
        request.config.stash[LINES].append(f"{request.node.name}: {', '.join(told)}{'; ' + more if more else ''}")
        return ratios

    return compare


@pytest.fixture(scope="session")
def gemm_rate() -> float:
    """Flops per second of numpy's float64 matrix product, the best of five."""
    a = np.random.default_rng(0).standard_normal((2048, 2048))
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best
