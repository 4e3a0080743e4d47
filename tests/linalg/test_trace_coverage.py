"""Do the intervals cover? Nominal 95 % at 100 products, in all and by block, and are they no wider than they have to be?"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from problems import dense_hessian, digits_like, mlp, symmetric, train
from scipy import stats
from threadpoolctl import threadpool_limits

from spectral_fast.linalg.trace import trace

N = 300
PRODUCTS = 100
METHODS = ("hutchinson", "hutch++", "xtrace")
ROWS = {"small": slice(0, 12), "middle": slice(12, 120), "large": slice(120, N)}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of small products: threads of BLAS would only wait for each other."""
    with threadpool_limits(1):
        yield


@dataclass
class Problem:
    a: Any
    blocks: dict[str, slice]

    @property
    def shape(self) -> Any:
        return self.a.shape

    takes_blocks = True

    def __matmul__(self, v: Any) -> Any:
        return self.a @ v


def hessian() -> Problem:
    """Of a small trained classifier, dense, by parameter tensor."""
    import torch

    x, y = (torch.from_numpy(part) for part in digits_like(60, 8, 4, seed=2))
    model = train(mlp((8, 12, 10, 4)), x, y, steps=40)
    blocks, start = {}, 0
    for name, p in model.named_parameters():
        blocks[name] = slice(start, start + p.numel())
        start += p.numel()
    return Problem(dense_hessian(model, lambda z: torch.nn.functional.cross_entropy(z, y), x), blocks)


@functools.cache
def problem(name: str) -> Problem:
    rng = np.random.default_rng(0)
    evals = {
        "outliers and bulk": lambda: np.r_[np.linspace(20, 100, 10), rng.uniform(0, 1, N - 10)],
        "power law": lambda: np.arange(1.0, N + 1) ** -1.2,
        "indefinite": lambda: np.r_[np.linspace(10, 50, 5), -np.linspace(5, 20, 5), rng.normal(0, 1, N - 10)],
        "flat": lambda: rng.uniform(1, 2, N),
        "more outliers than probes": lambda: np.r_[np.linspace(1, 3, 60), np.full(N - 60, 0.01)],
    }
    return hessian() if name == "hessian" else Problem(symmetric(evals[name](), 3), ROWS)


NAMES = ("outliers and bulk", "power law", "indefinite", "flat", "more outliers than probes", "hessian")


def hutchinson_error(a: Any, rows: slice) -> float:
    """Standard deviation of the mean of z_lᵀ(Az)_l: Var zᵀXz = 2 (||X||² - sum X_ii²) for symmetric X, here (E A + A E)/2."""
    x = np.zeros_like(a)
    x[rows] = a[rows] / 2
    x = x + x.T
    return float(np.sqrt(2 * (np.sum(x**2) - np.sum(np.diag(x) ** 2)) / PRODUCTS))


def hutchpp_error(a: Any, rows: slice, sketches: int = 5) -> float:
    """The same of the residual (I - P) A (I - P) with (I - P) X (I - P), mean over random sketches of a third of the products."""
    k = PRODUCTS // 3
    variances = []
    for seed in range(sketches):
        q = np.linalg.qr(a @ np.random.default_rng(seed).choice([-1.0, 1.0], (len(a), k)))[0]
        rest = np.eye(len(a)) - q @ q.T
        e = np.zeros_like(a)
        e[rows] = rest[rows]
        x = rest @ e @ a @ rest
        x = (x + x.T) / 2
        variances.append(2 * (np.sum(x**2) - np.sum(np.diag(x) ** 2)) / (PRODUCTS - 2 * k))
    return float(np.sqrt(np.mean(variances)))


@dataclass
class Outcome:
    covered: int
    width: float  # median
    rms: float  # error of the estimates


def outcomes(p: Problem, method: str, seeds: int) -> dict[str, Outcome]:
    parts = {"all": slice(0, len(p.a)), **p.blocks}
    truth = {name: float(np.trace(p.a[s, s])) for name, s in parts.items()}
    seen: dict[str, list[tuple[bool, float, float]]] = {name: [] for name in parts}
    for seed in range(seeds):
        r = trace(p, max_matvecs=PRODUCTS, method=method, seed=seed)
        for name in parts:
            lo, hi = r.interval() if name == "all" else r.layer_interval(name)
            estimate = r.estimate if name == "all" else r.by_layer[name][0]
            seen[name].append((lo <= truth[name] <= hi, hi - lo, estimate - truth[name]))
    table = {name: np.array(rows) for name, rows in seen.items()}
    return {name: Outcome(int(t[:, 0].sum()), float(np.median(t[:, 1])), float(np.sqrt(np.mean(t[:, 2] ** 2)))) for name, t in table.items()}


def check(name: str, method: str, seeds: int, least: int, slack: float) -> None:
    p = problem(name)
    for part, o in outcomes(p, method, seeds).items():
        rows = p.blocks.get(part, slice(0, len(p.a)))
        count = PRODUCTS // 2 if method == "xtrace" else PRODUCTS if method == "hutchinson" else PRODUCTS - 2 * (PRODUCTS // 3)
        # XTrace's standard deviation has no closed form: the error the estimates really have stands for it
        sd = {"hutchinson": hutchinson_error, "hutch++": hutchpp_error}[method](p.a, rows) if method != "xtrace" else o.rms
        ratio = o.width / (2 * float(stats.t.ppf(0.975, count - 1)) * sd)
        print(f"{name:26s} {method:10s} {part:9s} covered {o.covered}/{seeds}, median width / theory {ratio:.2f}, rms error {o.rms:.3g}")
        assert least <= o.covered <= seeds, (name, method, part, o)
        assert ratio < slack, (name, method, part, ratio)
        assert o.rms < 1.5 * sd  # the theory is that of the estimates made


@pytest.mark.thorough
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_intervals_cover_in_180_to_200_of_200(name: str, method: str) -> None:
    check(name, method, 200, 180, 1.2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["outliers and bulk", "flat", "more outliers than probes", "hessian"])
def test_intervals_cover_on_some_seeds(name: str, method: str) -> None:
    # of 30 seeds fewer than 24 are covered once in 500 times at 95 %; the leave-one-out error of XTrace alone (70 %) is found out
    check(name, method, 30, 24, 1.4)


def test_the_leave_one_out_error_alone_would_not_do() -> None:
    """Why XTrace's interval has a covariance in it: from the scatter of its samples it would cover far too rarely."""
    p, covered = problem("more outliers than probes"), 0
    for seed in range(40):
        r = trace(p, max_matvecs=PRODUCTS, method="xtrace", seed=seed)
        half = float(stats.t.ppf(0.975, len(r.samples) - 1)) * float(np.std(r.samples, ddof=1)) / np.sqrt(len(r.samples))
        covered += abs(r.estimate - float(np.trace(p.a))) <= half
    assert covered <= 32  # 80 %; nominal 95
