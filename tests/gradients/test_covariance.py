"""Gradient covariance against materialized per-sample gradients in float64, and the noise scale against known covariances."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_fast.gradients import GradientCovariance, GradientSpectrum, gradient_covariance
from spectral_fast.metrics.gradient_noise import class_parts, concentration, gram_spectrum, moment_spectrum, noise_scale
from spectral_fast.metrics.gram_plan import COLUMN_TILE, plan_gram

F64 = NDArray[np.float64]
N = 60


def net(dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Dropout(dropout), nn.Linear(32, 10)).to(dtype)


def data(n: int = N, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 64, generator=g, dtype=torch.float64).to(dtype), torch.randint(0, 10, (n,), generator=g)


def materialized(model: nn.Module, samples: list[tuple[Tensor, Tensor]], loss: Any = F.cross_entropy) -> dict[str, F64]:
    """name -> (n, P_l) gradients, one sample at a time, in evaluation mode and float64."""
    model = copy.deepcopy(model).double().eval()
    rows: dict[str, list[F64]] = {name: [] for name, _ in model.named_parameters()}
    for x, y in samples:
        model.zero_grad()
        loss(model(x), y).backward()
        for name, p in model.named_parameters():
            rows[name].append(np.zeros(p.numel()) if p.grad is None else p.grad.numpy().ravel().copy())
    return {name: np.stack(r) for name, r in rows.items()}


def expected(g: F64, centered: bool, weights: F64 | None = None) -> F64:
    """Eigenvalues by the SVD of the scaled rows: no Gram matrix anywhere."""
    n, p = g.shape
    w = np.full(n, 1.0 / n) if weights is None else weights / weights.sum()
    rows = g - w @ g if centered else g
    scale = 1.0 - w @ w if centered else 1.0
    s = np.linalg.svd(np.sqrt(w / scale)[:, None] * rows, compute_uv=False)
    return np.asarray(s**2, dtype=np.float64)[: min(n - 1 if centered else n, p)]


def assert_same(result: GradientSpectrum, layers: dict[str, F64], weights: F64 | None = None, tol: float = 1e-10) -> None:
    whole = np.concatenate(list(layers.values()), axis=1)
    for centered, got in ((True, result.eigenvalues_centered), (False, result.eigenvalues_uncentered)):
        want = expected(whole, centered, weights)
        assert got.shape == want.shape and np.abs(got - want).max() <= tol * want[0]
    for name, g in layers.items():
        want, layer = expected(g, result.centered, weights), result.by_layer[name]
        assert layer.eigenvalues.shape == want.shape and np.abs(layer.eigenvalues - want).max() <= tol * want[0], name
        assert layer.trace == pytest.approx(want.sum(), rel=tol)
    assert result.trace == pytest.approx(expected(whole, result.centered, weights).sum(), rel=tol)


def loaders() -> dict[str, Any]:
    x, y = data()
    ragged = [(x[a:b], y[a:b]) for a, b in ((0, 7), (7, 8), (8, 31), (31, 60))]
    return {
        "arrays": (x.numpy(), y.numpy()),
        "tensors": (x, y),
        "ragged": ragged,
        "shuffled": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16, shuffle=True),
        "dict": [{"input": a, "labels": b} for a, b in ragged],
    }


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("name", ["arrays", "tensors", "ragged", "shuffled", "dict"])
def test_against_materialized(name: str, centered: bool) -> None:
    model = net(dropout=0.5).train()
    x, y = data()
    result = gradient_covariance(model, loaders()[name], centered=centered)
    assert result.status == "ok" and result.centered is centered and result.n_samples == N and result.n_params == 2410
    assert any("dropout off" in note for note in result.notes)
    assert_same(result, materialized(model, list(zip(x[:, None], y[:, None], strict=True))))
    assert result.loss == pytest.approx(F.cross_entropy(copy.deepcopy(model).eval()(x), y).item(), rel=1e-12)


def test_blocks_and_loop_agree_with_one_piece() -> None:
    _, (x, y) = net(), data()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 300), nn.Tanh(), nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 10)).double()
    whole = gradient_covariance(model, (x, y))
    # room for the N x N arrays and what some of the batches leave
    batches = list(zip(x.split(5), y.split(5), strict=True))
    blocks = gradient_covariance(model, batches, max_memory=2 * 40 * N * N)
    assert any("kept in blocks of" in n for n in blocks.notes)
    # in-place writes into a buffer that is not batched cannot go through vmap, but through one backward pass
    loop = gradient_covariance(Counting(model), (x, y))
    assert not any("one by one" in n for n in loop.notes)
    for other in (blocks, loop):
        assert other.n_samples == N
        assert np.abs(other.eigenvalues - whole.eigenvalues).max() <= 1e-13 * whole.eigenvalues[0]
        assert np.abs(other.gram - whole.gram).max() <= 1e-13 * np.abs(whole.gram).max()


class Counting(nn.Module):
    """Adds to a buffer in its forward pass and decides by the value of its input."""

    seen: Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("seen", torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.mean()
        return self.inner(x) if float(x[0, 0]) != 123.0 else self.inner(-x)  # type: ignore[no-any-return]


def test_token_weights_and_samples_without_targets() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(11, 6), nn.Linear(6, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(torch.tanh(self.embed(ids)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Tagger().double()
    ids, y = torch.randint(0, 11, (20, 5)), torch.randint(0, 4, (20, 5))
    for i in range(20):
        y[i, : i % 4] = -100
    y[7] = -100
    result = gradient_covariance(model, [(ids[:9], y[:9]), (ids[9:], y[9:])])
    keep = [i for i in range(20) if i != 7]
    weights = np.array([float((y[i] != -100).sum()) for i in keep])

    def loss(logits: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), t.flatten())

    layers = materialized(model, [(ids[i : i + 1], y[i : i + 1]) for i in keep], loss)
    assert_same(result, layers, weights)
    assert result.n_samples == 19 and any("1 samples without a valid target" in n for n in result.notes)
    # sum p_n g_n is the gradient of the loss over all valid tokens
    torch.autograd.backward(loss(model(ids), y))
    whole = np.concatenate([p.grad.numpy().ravel() for p in model.parameters() if p.grad is not None])
    g = np.concatenate(list(layers.values()), axis=1)
    assert np.allclose(result.weights @ g, whole, atol=1e-14)


def test_fewer_parameters_than_samples() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x, y = torch.randn(50, 4).double(), torch.randn(50, 2).double()
    result = gradient_covariance(model, (x, y), k=5)
    layers = materialized(model, list(zip(x[:, None], y[:, None], strict=True)), F.mse_loss)
    assert result.loss_name == "mse" and len(result.eigenvalues) == 5
    assert_same(gradient_covariance(model, (x, y)), layers)
    assert result.effective_rank == gradient_covariance(model, (x, y)).effective_rank
    part = gradient_covariance(model, (x, y), params="2.*")
    assert set(part.by_layer) == {"2.weight", "2.bias"} and part.n_params == 8
    assert part.eigenvalues[0] == pytest.approx(expected(np.concatenate([layers["2.weight"], layers["2.bias"]], axis=1), True)[0], rel=1e-12)


def test_tied_recurrent_and_attention_models() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 8)
            self.rnn = nn.LSTM(8, 8, batch_first=True)
            self.mix = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.mix(self.rnn(self.embed(ids))[0]))[:, -1]  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Tied().double()
    ids, y = torch.randint(0, 9, (16, 6)), torch.randint(0, 9, (16,))
    result = gradient_covariance(model, [(ids, y)])
    assert "head.weight" not in result.by_layer
    assert_same(result, materialized(model, list(zip(ids[:, None], y[:, None], strict=True))))


def test_float32_and_bfloat16_models() -> None:
    x, y = data()
    layers = materialized(net(dtype=torch.float32), list(zip(x.float().double()[:, None], y[:, None], strict=True)))
    result = gradient_covariance(net(dtype=torch.float32), (x.numpy(), y.numpy()))
    # errors of a float32 backward pass, a few eps per entry
    assert_same(result, layers, tol=1e-5)
    assert 0 < result.noise_floor < 1e-10 * result.eigenvalues[0] and result.n_resolved == N - 1
    half = gradient_covariance(net(dtype=torch.bfloat16), (x, y))
    assert any("float32 on a copy" in n for n in half.notes)
    assert half.eigenvalues[0] == pytest.approx(result.eigenvalues[0], rel=0.05)


def test_batches_as_units() -> None:
    model, (x, y) = net(), data()
    parts = [(x[i : i + 10], y[i : i + 10]) for i in range(0, N, 10)]
    result = gradient_covariance(model, parts, unit="batch")
    assert_same(result, materialized(model, parts))
    assert result.n_units == 6 and result.n_samples == N
    with pytest.raises(ValueError, match="for products with GradientCovariance alone; known: sample, batch"):
        gradient_covariance(model, parts, unit="position")


def test_signal_share_and_classes() -> None:
    model, (x, y) = net(), data()
    result = gradient_covariance(model, (x, y))
    g = np.concatenate(list(materialized(model, list(zip(x[:, None], y[:, None], strict=True))).values()), axis=1)
    mean, trace = g.mean(axis=0), float(np.var(g, axis=0, ddof=1).sum())
    assert result.signal_share == pytest.approx((mean @ mean - trace / N) / (g * g).sum(axis=1).mean(), rel=1e-9)
    assert result.signal_share_interval[0] < result.signal_share < result.signal_share_interval[1]
    parts = class_parts(g @ g.T, np.ones(N), y.numpy())
    assert parts is not None and result.n_classes == parts.n_classes == len(np.unique(y))
    assert (result.between_classes, result.within_classes) == pytest.approx((parts.between, parts.within), rel=1e-9)
    assert 0.0 < result.between_share < 1.0 and result.to_dict()["n_classes"] == parts.n_classes
    # no classes: numbers as targets, batches as units
    for other in (gradient_covariance(model, (x, torch.randn(N, 10).double())), gradient_covariance(model, [(x[:30], y[:30]), (x[30:], y[30:])], unit="batch")):
        assert math.isnan(other.between_share) and other.n_classes == 0 and math.isfinite(other.signal_share)


def test_limits_are_kept_and_said() -> None:
    model, (x, y) = net(), data()
    some = gradient_covariance(model, (x, y), max_samples=20)
    assert some.n_samples == 20 and any("only the first 20 samples" in n for n in some.notes)
    tight = gradient_covariance(model, (x, y), max_memory=200)
    assert tight.status == "skipped" and "max_memory" in tight.reason
    with pytest.raises(ValueError, match="max_samples"):
        gradient_covariance(model, (x, y), max_samples=0)


@pytest.mark.parametrize("rows", [3, 5, 17, 100, 2000])
@pytest.mark.parametrize("n", [2, 50, 1500])
def test_plan_stays_below_the_limit(rows: int, n: int) -> None:
    layers = {"w": (10_000, 4), "b": (100, 4)}
    limit = COLUMN_TILE + 8 * 10_100 + 160 + rows * 4 * 10_100
    plan = plan_gram(n, layers, limit)
    assert 2 <= plan.n_samples <= n and 1 <= plan.hold <= plan.n_samples and plan.bytes <= limit
    blocks = -(-plan.n_samples // plan.hold)
    assert plan.n_samples <= plan.evaluations <= plan.n_samples * (blocks + 1) / 2 + plan.n_samples
    with pytest.raises(MemoryError, match="GB"):
        plan_gram(n, layers, 1 << 20)


def test_degenerate_gradients() -> None:
    model, (x, y) = net(), data()
    equal = gradient_covariance(model, (x[:1].repeat(5, 1), y[:1].repeat(5)))
    assert equal.n_resolved == 0 and equal.eigenvalues.max() <= equal.noise_floor and equal.noise_scale == 0.0
    single = gradient_covariance(model, (x[:1], y[:1]))
    assert single.status == "unresolved" and "at least 2" in single.reason
    zero = gradient_covariance(model, (x, y), loss_fn=lambda out, t: 0.0 * out.sum())
    assert zero.status == "unresolved" and zero.reason == "all gradients are zero" and math.isnan(zero.noise_scale)
    x = x.clone()
    x[13, 5] = math.nan
    bad = gradient_covariance(model, (x, y))
    assert bad.status == "failed" and "0:13 (0.weight)" in bad.reason
    with pytest.raises(ValueError, match="^loss_fn: wanted the mean over the batch"):
        gradient_covariance(model, data(), loss_fn=lambda out, t: F.cross_entropy(out, t, reduction="sum"))
    coupled = gradient_covariance(model, data(), loss_fn=lambda out, t: F.cross_entropy(out - out.mean(dim=0), t))
    assert any("not a mean over independent samples" in n for n in coupled.notes)


def test_interrupt_returns_what_is_done() -> None:
    model, (x, y) = net(), data(600)

    def stop(done: int, total: int, what: str) -> None:
        if done >= 256:
            raise KeyboardInterrupt

    result = gradient_covariance(model, [(x[i : i + 64], y[i : i + 64]) for i in range(0, 600, 64)], progress=stop)
    assert result.status == "incomplete" and "256 of 600" in result.reason and result.n_samples == 256
    same = gradient_covariance(model, (x[:256], y[:256]))
    assert np.abs(result.eigenvalues - same.eigenvalues).max() <= 1e-13 * same.eigenvalues[0]
    assert result.noise_scale == pytest.approx(same.noise_scale, rel=1e-9)


@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_leaves_no_trace(wrapped: bool, breaks: bool) -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 10)).double().train()
    model: nn.Module = Counting(inner) if wrapped else inner
    inner[0].bias.requires_grad_(False)
    x, y = data(30)
    inner[3](torch.randn(4, 8).double()).sum().backward()
    state = copy.deepcopy(model.state_dict())
    kept = [(p, p.grad, None if p.grad is None else p.grad.clone(), p.requires_grad) for p in model.parameters()]
    flags, rng = [m.training for m in model.modules()], torch.get_rng_state()

    def fail(done: int, total: int, what: str) -> None:
        raise RuntimeError("stop")

    if breaks:
        with pytest.raises(RuntimeError, match="stop"):
            gradient_covariance(model, (x, y), progress=fail)
    else:
        assert gradient_covariance(model, (x, y)).status == "ok"
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    for p, grad, copied, wanted in kept:
        assert p.grad is grad and p.requires_grad is wanted
        assert copied is None or (grad is not None and torch.equal(copied, grad))
    assert [m.training for m in model.modules()] == flags and torch.equal(torch.get_rng_state(), rng)


# -- numbers from arrays ---------------------------------------------------------------------------------------------------


def known_noise(seed: int, n: int, mean: float = 0.5) -> tuple[F64, float]:
    """(n, 6) independent gradients with mean norm² 6 mean² and covariance diag(1..6): the noise scale is 21/(6 mean²)."""
    rng = np.random.default_rng(seed)
    return mean + rng.standard_normal((n, 6)) * np.sqrt(np.arange(1.0, 7.0)), 21.0 / (6.0 * mean**2)


def noise_of(g: F64) -> Any:
    gram = g @ g.T
    w = np.ones(len(g))
    return noise_scale(np.diagonal(gram).copy(), gram.mean(axis=1), w)


def test_noise_scale_of_a_linear_model() -> None:
    """Loss c·x of a linear model: the gradient of a sample is its input, so the covariance of the inputs is that of the gradients."""
    g, scale = known_noise(3, 800)
    model = nn.Linear(6, 1, bias=False).double()
    result = gradient_covariance(model, [(torch.from_numpy(g), torch.zeros(800))], loss_fn=lambda out, t: out.mean())
    assert np.allclose(result.eigenvalues, np.linalg.eigvalsh(np.cov(g.T))[::-1], rtol=1e-11)
    assert result.noise_scale == pytest.approx(scale, rel=0.15)
    low, high = result.noise_scale_interval
    assert low < scale < high and high - low < scale
    assert result.by_layer["weight"].noise_scale == pytest.approx(result.noise_scale, rel=1e-9)


def test_noise_scale_by_hand() -> None:
    g = known_noise(0, 25)[0]
    noise = noise_of(g)
    trace = np.trace(np.cov(g.T))
    norm2 = g.mean(axis=0) @ g.mean(axis=0) - trace / 25
    assert noise.trace == pytest.approx(trace) and noise.gradient_norm2 == pytest.approx(norm2) and noise.value == pytest.approx(trace / norm2)
    left_out = [noise_of(np.delete(g, i, axis=0)) for i in range(25)]
    ratios = np.array([x.gradient_norm2 / x.trace for x in left_out])
    half = 2.0638985616280205 * math.sqrt(24 / 25 * np.sum((ratios - ratios.mean()) ** 2))  # Student t, 24 degrees, 97.5 %
    ratio = norm2 / trace
    assert ratio > half and noise.interval == pytest.approx((math.exp(-half / ratio) / ratio, math.exp(half / ratio) / ratio))
    pure = noise_of(np.random.default_rng(5).standard_normal((20, 400)) - 0.0)
    assert pure.interval[1] == math.inf and (pure.value == math.inf) == (pure.gradient_norm2 <= 0) and bool(pure.reason) == (pure.value == math.inf)


def test_noise_interval_covers() -> None:
    """Seeds 0..199: a nominal 95 % interval covers in 180 to 200 of 200, and is not merely infinite."""
    intervals = [noise_of(known_noise(seed, 200)[0]).interval for seed in range(200)]
    scale = known_noise(0, 2)[1]
    assert 180 <= sum(low <= scale <= high for low, high in intervals) <= 200
    assert np.median([high - low for low, high in intervals]) < 1.5 * scale


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_gram_and_moments_give_one_spectrum(mean: float, centered: bool) -> None:
    rng = np.random.default_rng(2)
    g, w = rng.standard_normal((40, 7)) + mean, rng.uniform(0.5, 2.0, 40)
    p = w / w.sum()
    a = gram_spectrum(g @ g.T, w, 7, centered=centered)
    b = moment_spectrum((g.T * p) @ g, p @ g, w, centered=centered)
    want = expected(g, centered, w)
    for spectrum in (a, b):
        assert np.abs(spectrum.evals - want).max() <= spectrum.floor and spectrum.trace == pytest.approx(want.sum(), rel=1e-6)
        assert spectrum.n_resolved == 7


def test_concentration() -> None:
    even = concentration(np.ones(20))
    assert even.effective_rank == pytest.approx(20) and even.participation_ratio == pytest.approx(20) and even.top_share == pytest.approx(0.5)
    one = concentration(np.array([3.0, 0.0]))
    assert one.effective_rank == 1.0 and one.participation_ratio == 1.0
    assert math.isnan(concentration(np.zeros(3)).effective_rank)


@pytest.mark.parametrize("how", [{"k": 2.5}, {"k": "3"}, {"k": 0}, {"k": True}, {"max_samples": 7.5}, {"max_samples": 0}], ids=str)
def test_numbers_that_are_no_numbers_are_named(how: dict[str, Any]) -> None:
    x, y = torch.randn(9, 4), torch.randint(0, 3, (9,))
    with pytest.raises(ValueError, match=f"^{next(iter(how))}: wanted a positive integer"):
        gradient_covariance(torch.nn.Linear(4, 3), [(x, y)], **how)


def test_targets_outside_of_the_classes_are_named() -> None:
    x, y = torch.randn(9, 4), torch.arange(9)
    with pytest.raises(ValueError, match="^loader: a class target is outside of the model's 3 classes"):
        gradient_covariance(torch.nn.Linear(4, 3), [(x, y)], "cross_entropy")


@pytest.mark.parametrize("make", [gradient_covariance, GradientCovariance])
def test_centered_is_true_or_false(make: Any) -> None:
    with pytest.raises(ValueError, match="^centered: wanted True or False, got 'yes'"):
        make(torch.nn.Linear(4, 3), [(torch.randn(9, 4), torch.randint(0, 3, (9,)))], centered="yes")


@pytest.mark.parametrize("shuffled", [True, False])
def test_samples_that_come_class_by_class_are_told_of(shuffled: bool) -> None:
    x, y = torch.randn(60, 4), torch.arange(60) // 20
    if shuffled:
        y = y[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    notes = gradient_covariance(torch.nn.Linear(4, 3), [(x[:30], y[:30]), (x[30:], y[30:])], max_samples=40).notes
    assert any("only the first 40 samples" in note for note in notes)
    assert any("class by class" in note for note in notes) == (not shuffled)
