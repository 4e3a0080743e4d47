"""Gram matrices of per-sample gradients: the kernel by itself against torch's products of the same numbers and against this machine's rate for them.

    pytest -s benchmarks/bench_gradient_gram.py -k kernel
    pytest -s benchmarks/bench_gradient_gram.py -k network     the MLP's gradients take 3.8 GB
    pytest -s benchmarks/bench_gradient_gram.py -k "memory or algorithm"

network: the Gram matrix of a whole network's per-sample gradients against torch.func's gradients and their product. Ours includes everything from the batch
on. Printed beside: one plain forward and backward pass, and what is beyond it over the limit, the operations of the chosen algorithms at the machine's
rate; by layer the operations and times. Bars: 150, 12 and 1.4 times, and twice the limit. memory: the peak of a run beyond that of a plain backward pass, each
in a process of its own, against a tenth of the per-sample gradients. algorithm: by layer the time of the chosen algorithm and of the other one, which may not
be 1.3 times faster.

kernel: the layers of three networks; the limit is the operations of the algorithm over the rate of torch's float32 matrix product, measured before and after.
Bars: half of it for one position, 40 % for many. torch: the plain way of each algorithm with torch.einsum.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

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
        again=True,
        note=note,
    )
    assert share >= (0.5 if t == 1 else 0.4)


def mlp() -> tuple[Any, Any, Any]:
    model = torch.nn.Sequential(torch.nn.Linear(784, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 10))
    return model, torch.randn(512, 784), torch.randint(0, 10, (512,))


def conv() -> tuple[Any, Any, Any]:
    """110 k parameters on the digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    chosen = torch.randperm(len(data.target))[:512]
    first = [torch.nn.Conv2d(1, 24, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(24, 48, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
    model = torch.nn.Sequential(*first, torch.nn.Flatten(), torch.nn.Linear(768, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    return model, torch.tensor(data.images / 16, dtype=torch.float32)[:, None][chosen], torch.tensor(data.target)[chosen]


class Transformer(torch.nn.Module):  # type: ignore[misc]
    """Two layers of width 128 on 64 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = torch.nn.Embedding(96, 128), torch.nn.Parameter(0.02 * torch.randn(64, 128))
        self.layers = torch.nn.ModuleList(torch.nn.TransformerEncoderLayer(128, 4, 512, batch_first=True, norm_first=True, dropout=0.0) for _ in range(2))
        self.norm, self.head = torch.nn.LayerNorm(128), torch.nn.Linear(128, 96)

    def forward(self, x: Any) -> Any:
        h = self.embed(x) + self.place
        mask = torch.nn.Transformer.generate_square_subsequent_mask(64)
        for layer in self.layers:
            h = layer(h, src_mask=mask, is_causal=True)
        return self.head(self.norm(h)).transpose(1, 2)


def transformer() -> tuple[Any, Any, Any]:
    tokens = torch.randint(0, 96, (128, 65))
    return Transformer(), tokens[:, :-1], tokens[:, 1:]


NETWORKS = {"mlp": (mlp, 150.0), "conv": (conv, 12.0), "transformer": (transformer, 1.4)}


def ours(model: Any, x: Any, y: Any, algorithm: str = "auto") -> Any:
    """The finished engine: .gram, .routes, .seconds."""
    from spectral_fast.probing.batches import Batches
    from spectral_fast.probing.functional import FunctionalModel, select_parameters
    from spectral_fast.probing.ghost_gram import GhostGram
    from spectral_fast.probing.gram_kernel import gram_kernel
    from spectral_fast.probing.losses import resolve_loss
    from spectral_fast.probing.per_sample import samples_of
    from spectral_fast.probing.state import leave_no_trace

    with leave_no_trace(model):
        batches = Batches((x, y), device=torch.device("cpu"), dtype=torch.float32)
        functional = FunctionalModel(model, select_parameters(model), torch.device("cpu"), None)
        loss = resolve_loss(model, batches, run=functional)
        units, _ = samples_of(batches, loss)
        found = GhostGram(units, functional, batches, loss, gram_kernel()[0], limit=4 << 30, layer_spectra=False, algorithm=algorithm)
        found.run(lambda done, total, what: None)
    return found


def with_torch_func(model: Any, x: Any, y: Any) -> NDArray[np.float32]:
    """Per-sample gradients of all parameters by vmap(grad), and their products: torch's own documented way."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(p: Any, one: Any, target: Any) -> Any:
        return torch.nn.functional.cross_entropy(torch.func.functional_call(model, p, (one[None],)), target[None])

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    gram = torch.zeros(len(x), len(x))
    for g in gradients.values():
        rows = g.flatten(1)
        gram.addmm_(rows, rows.T)
    return np.asarray(gram)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("network", NETWORKS)
def test_network(network: str, against: Callable[..., dict[str, float]], request: pytest.FixtureRequest) -> None:
    make, bar = NETWORKS[network]
    torch.manual_seed(request.config.getoption("--seed"))
    model, x, y = make()
    model.eval()

    def plain() -> None:
        torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y), list(model.parameters()))

    found = ours(model, x, y)
    assert found.engine == "ghost" and not found.slow
    theirs = with_torch_func(model, x, y)
    assert np.abs(found.full(found.gram) - theirs).max() <= 1e-4 * np.abs(theirs).max()
    rounds = request.config.getoption("--rounds") or 9
    passes: list[float] = []
    limit = 0.0

    def one_pass() -> None:
        start = time.perf_counter()
        plain()
        passes.append(time.perf_counter() - start)

    def note(seconds: float) -> str:
        nonlocal limit
        limit = sum(flops for _, flops in found.routes.values()) / product_rate()
        beyond = seconds - float(np.median(passes))
        layers = ", ".join(f"{name} {way} {flops / 1e9:.2f} GFLOP {1e3 * found.seconds[name]:.1f} ms" for name, (way, flops) in found.routes.items())
        return f"beyond a plain pass {1e3 * beyond:.1f} ms = {beyond / limit:.1f} x the limit of {1e3 * limit:.1f} ms; {layers}"

    ratios = against(
        lambda: ours(model, x, y),
        {"a plain pass": one_pass, "torch.func": lambda: with_torch_func(model, x, y)},
        rounds=min(rounds, 3) if network == "mlp" else rounds,
        pause=0.1,
        note=note,
    )
    medians = {"ours": 1.0, **ratios}
    assert ratios["torch.func"] >= bar
    beyond = (medians["ours"] - ratios["a plain pass"]) * float(np.median(passes)) / ratios["a plain pass"]
    assert beyond <= 2 * limit


# Freed blocks are handed back at once: what the allocator would keep of one pass would be used again unseen by the next.
ALLOCATOR = "glibc.malloc.mmap_threshold=65536:glibc.malloc.trim_threshold=65536"


def peak_of_a_run(network: str, what: str, seed: int) -> int:
    """Bytes of anonymous memory, at most, that a second run takes beside what the first one left."""
    torch.manual_seed(seed)
    model, x, y = NETWORKS[network][0]()
    model.eval()

    def run() -> None:
        if what == "ours":
            ours(model, x, y)
        else:
            torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y), list(model.parameters()))

    def resident() -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

    run()
    peak, over = resident(), threading.Event()
    before = peak

    def watch() -> None:
        nonlocal peak
        while not over.is_set():
            peak = max(peak, resident())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(3):
        run()
    over.set()
    watcher.join()
    return peak - before


@pytest.mark.parametrize("network", NETWORKS)
def test_memory(network: str, request: pytest.FixtureRequest) -> None:
    seed = request.config.getoption("--seed")
    model, x, _ = NETWORKS[network][0]()
    gradients = 4 * len(x) * sum(p.numel() for p in model.parameters())

    def measured(what: str) -> int:
        command = [sys.executable, __file__, network, what, str(seed)]
        run = subprocess.run(command, env={**os.environ, "GLIBC_TUNABLES": ALLOCATOR}, capture_output=True, text=True, check=True)
        return int(run.stdout)

    found, plain = measured("ours"), measured("plain")
    print(f"{network}: {found / 1e6:.0f} MB, a plain pass {plain / 1e6:.0f} MB; per-sample gradients {gradients / 1e6:.0f} MB")
    assert found - plain <= gradients / 10


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("network", NETWORKS)
def test_algorithm(network: str, request: pytest.FixtureRequest) -> None:
    torch.manual_seed(request.config.getoption("--seed"))
    model, x, y = NETWORKS[network][0]()
    model.eval()
    seconds: dict[str, dict[str, float]] = {}
    for algorithm in ("auto", "positions", "gradients"):
        runs = [ours(model, x, y, algorithm) for _ in range(3)]
        seconds[algorithm] = {name: min(r.seconds[name] for r in runs) for name in runs[0].seconds}
        if algorithm == "auto":
            routes = {name: route for name, route in runs[0].routes.items() if route[0] in ("positions", "gradients")}
    for name, (way, flops) in routes.items():
        other = "gradients" if way == "positions" else "positions"
        print(f"{network} {name}: {way}, {flops / 1e9:.2f} GFLOP, {1e3 * seconds['auto'][name]:.1f} ms; {other} {1e3 * seconds[other][name]:.1f} ms")
    for name, (way, _) in routes.items():
        assert seconds["auto"][name] <= 1.3 * seconds["gradients" if way == "positions" else "positions"][name] + 1e-3, name


if __name__ == "__main__":
    print(peak_of_a_run(sys.argv[1], sys.argv[2], int(sys.argv[3])))
