"""Gram matrices from inputs and output gradients against gradients of single samples, formed one by one in float64."""

from __future__ import annotations

import copy
from typing import Any

import ghost_models
import numpy as np
import pytest
import torch
from ghost_checks import TOLERANCE, assert_same, cast, ghost, materialized, plain_run, split, three_batches
from ghost_models import FAST, N, Unknown, Wrap, classes
from gram_reference import gradient_gram
from torch import Tensor, nn

from spectral_fast.probing.batches import Batches
from spectral_fast.probing.functional import FunctionalModel, select_parameters
from spectral_fast.probing.ghost_gram import GhostGram
from spectral_fast.probing.ghost_plan import plan_ghost
from spectral_fast.probing.gram_kernel import gram_kernel
from spectral_fast.probing.layer_sums import LayerSums
from spectral_fast.probing.losses import resolve_loss
from spectral_fast.probing.per_sample import samples_of
from spectral_fast.probing.state import leave_no_trace


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", list(FAST))
def test_every_kind_of_layer(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    model, x, y = FAST[name]()
    model = model.to(dtype)
    x = cast(x, dtype)
    rows, losses = materialized(model, [(cast(x, torch.float64), y)])
    sums = ghost(model, split(x, y, (9,)), kernel=gram_kernel()[0])
    assert sums.slow == {} and sums.engine == "ghost" and sums.notes == []
    assert_same(sums, rows, losses, TOLERANCE[dtype])


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", list(FAST))
def test_every_kind_of_layer_with_64_samples(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ghost_models, "N", 64)
    test_every_kind_of_layer(name, dtype)


@pytest.mark.parametrize("name", ["conv1d", "conv2d"])
def test_gradients_that_are_written_out_have_the_parameters_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more samples than numbers the moments of a layer are kept, entry by entry."""
    monkeypatch.setattr(ghost_models, "N", 120)
    torch.manual_seed(1)
    model, x, y = FAST[name]()
    model, x = model.double(), cast(x, torch.float64)
    rows, losses = materialized(model, [(x, y)])
    sums = ghost(model, split(x, y, (33,)))
    assert any(name.startswith("body.") and len(rows[name].shape) == 2 and rows[name].shape[1] > 20 for name in sums.moments)
    assert_same(sums, rows, losses, 1e-10)


@pytest.mark.parametrize("algorithm", ["positions", "gradients"])
@pytest.mark.parametrize("name", ["mlp", "conv2d", "gpt", "lstm", "cross", "flat", "patches"])
def test_both_algorithms_and_blocks_of_samples(name: str, algorithm: str) -> None:
    model, loader, rows, losses = three_batches(name)
    whole = ghost(model, loader, algorithm=algorithm)
    assert all(route in (algorithm, "rows", "tokens") and flops > 0 for route, flops in whole.routes.values()) and set(whole.routes) == set(rows)
    assert algorithm in {route for route, _ in whole.routes.values()}
    assert_same(whole, rows, losses, 1e-10)
    n = len(losses)
    # room for the arrays of the eigenvalues and for some of the samples
    assert whole.plan is not None and whole.plan.hold == n
    tight = 8 * 5 * n * n + 8 * 3 * n + int(whole.plan.run_bytes + 5.5 * whole.plan.held_bytes)
    blocks = ghost(model, loader, limit=tight, algorithm=algorithm)
    assert (
        blocks.plan is not None
        and blocks.plan.hold < n
        and blocks.plan.evaluations > n
        and blocks.plan.bytes <= tight
        and any("in blocks of" in note for note in blocks.notes)
    )
    assert_same(blocks, rows, losses, 1e-10)


def test_sequences_of_different_lengths() -> None:
    torch.manual_seed(0)
    model, ids, y = FAST["gpt"]()
    model = model.double()
    loader = [(ids[:5], y[:5]), (ids[5:9, :4], y[5:9, :4]), (ids[9:, :5], y[9:, :5])]
    rows, losses = materialized(model, loader)
    sums = ghost(model, loader)
    assert sums.slow == {}
    assert_same(sums, rows, losses, 1e-10)

    # learned positions, added as slices of different lengths
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mix = nn.Parameter(torch.randn(1, 6, 4)), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.mix(x + self.table[:, : x.shape[1]])).mean(1)

    model = Wrap(Positions(), 4).double()
    x, y = torch.randn(N, 6, 4).double(), classes(N)
    loader = [(x[:5], y[:5]), (x[5:9, :4], y[5:9]), (x[9:, :5], y[9:])]
    rows, losses = materialized(model, loader)
    sums = ghost(model, loader)
    assert sums.slow == {}
    assert_same(sums, rows, losses, 1e-10)


def test_what_is_not_known_is_computed_sample_by_sample() -> None:
    torch.manual_seed(0)
    model, x, y = Wrap(Unknown(), 6).double(), torch.randn(N, 6).double(), classes(N)
    loader = split(x, y, (6,))
    rows, losses = materialized(model, loader)
    sums = ghost(model, loader)
    assert set(sums.slow) == {"body.core", "body.cut.weight", *(n for n in rows if "original" in n)}
    assert "einsum" in sums.slow["body.core"] and all(any(name in note for note in sums.notes) for name in sums.slow)
    assert sums.engine == "ghost" and sums.routes["body.core"][0] == "per-sample"
    assert_same(sums, rows, losses, 1e-10)


def test_packed_sequences_are_computed_sample_by_sample() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), 2), batch_first=True)
            return self.rnn(packed)[1][0]

    torch.manual_seed(0)
    model, x, y = Wrap(Packed(), 4).double(), torch.randn(N, 3, 4).double(), classes(N)
    rows, losses = materialized(model, [(x, y)])
    sums = ghost(model, [(x, y)])
    assert set(sums.slow) == {name for name in rows if "rnn" in name} and len(sums.slow) == 4
    assert_same(sums, rows, losses, 1e-10)


def test_a_layer_without_gradients_on_the_samples_looked_at() -> None:
    """Its samples cannot be told apart there: where it has gradients on others it is computed sample by sample."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            flat = self.one(x.reshape(-1, 4)).view(x.shape)
            return (self.two(x) + flat * x[:, :1, :1].gt(0)).mean(1)

    torch.manual_seed(0)
    model, x, y = Wrap(Gated(), 4).double(), torch.randn(N, 3, 4).double(), classes(N)
    x[:, 0, 0] = -1.0
    x[[3, 5], 0, 0] = 1.0
    rows, losses = materialized(model, [(x, y)])
    sums = ghost(model, [(x, y)])
    assert set(sums.slow) == {"body.one.weight", "body.one.bias"} and "told apart" in sums.slow["body.one.bias"]
    assert_same(sums, rows, losses, 1e-10)


def test_losses_samples_without_targets_and_single_samples() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5)).double(), torch.randn(N, 6).double(), classes(N)
    y[4] = -100
    smooth = nn.CrossEntropyLoss(label_smoothing=0.2, weight=torch.rand(5).double())
    cases: list[tuple[Tensor, dict[str, Any]]] = [
        (y, {}),
        (torch.randn(N, 5).double(), {"loss": "mse"}),
        (torch.randint(0, 2, (N, 5)).double(), {"loss": "bce"}),
        (y, {"loss_fn": smooth}),
        (y.clamp(min=0), {"loss_fn": lambda out, t: -(out.log_softmax(1)[range(len(t)), t.tolist()]).mean()}),  # cannot be vectorised
    ]
    for targets, options in cases:
        for edges in ((4,), tuple(range(1, N))):
            loader = split(x, targets, edges)
            rows, losses = materialized(model, loader, **options)
            sums = ghost(model, loader, **options)
            assert sums.engine == "ghost" and sums.slow == {}
            assert_same(sums, rows, losses, 1e-10)


def test_gradients_that_are_not_finite_are_named() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5)), torch.randn(N, 6), classes(N)
    x[[0, 7], 2] = torch.nan
    sums = ghost(model, [(x, y)], falls_back=True)
    assert set(sums.bad) == {0, 7}
    good = [i for i in range(N) if i not in (0, 7)]
    assert np.isfinite(sums.full(sums.gram)[np.ix_(good, good)]).all()


def test_an_interrupt_keeps_what_is_done() -> None:
    model, loader, rows, _ = three_batches("mlp")
    batches = Batches(loader)
    functional = FunctionalModel(model, select_parameters(model), torch.device("cpu"), None)

    def stop(done: int, total: int, what: str) -> None:
        if done >= 6:
            raise KeyboardInterrupt

    with leave_no_trace(model):
        loss = resolve_loss(model, batches)
        sums = GhostGram(samples_of(batches, loss)[0], functional, batches, loss, gradient_gram, limit=1 << 28)
        with pytest.raises(KeyboardInterrupt):
            sums.run(stop)
    whole = np.concatenate(list(rows.values()), axis=1)[: sums.done]
    assert 5 <= sums.done < N and np.allclose(sums.full(sums.gram), whole @ whole.T, rtol=1e-10)
    g = rows["0.weight"][: sums.done]
    assert sums.layer_moments("0.weight") == pytest.approx(((g**2).sum(1).mean(), (g.mean(0) ** 2).sum()), rel=1e-10)


def test_leaves_no_trace() -> None:
    torch.manual_seed(0)
    model, x, y = FAST["resnet"]()
    model.train()
    model(x).sum().backward()
    state, grads = copy.deepcopy(model.state_dict()), [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    fast, rng = torch.backends.mha.get_fastpath_enabled(), torch.get_rng_state()
    assert ghost(model, [(x, y)]).engine == "ghost"
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and all(m.training for m in model.modules())
    assert all(p.requires_grad and (g is None or torch.equal(p.grad, g)) for p, g in zip(model.parameters(), grads, strict=True))
    assert torch.backends.mha.get_fastpath_enabled() == fast and torch.equal(torch.get_rng_state(), rng)


def test_an_interrupt_within_a_batch_leaves_the_layers_consistent(monkeypatch: pytest.MonkeyPatch) -> None:
    model, loader, rows, _ = three_batches("mlp")
    add, calls = LayerSums.add_own, []

    def stop(self: LayerSums, name: str, tile: Any, lo: int) -> None:
        calls.append(name)
        if lo > 0 and len(calls) % len(rows) == 3:
            raise KeyboardInterrupt
        add(self, name, tile, lo)

    monkeypatch.setattr(LayerSums, "add_own", stop)
    batches = Batches(loader)
    functional = FunctionalModel(model, select_parameters(model), torch.device("cpu"), None)
    with leave_no_trace(model):
        loss = resolve_loss(model, batches)
        sums = GhostGram(samples_of(batches, loss)[0], functional, batches, loss, gradient_gram, limit=1 << 28)
        with pytest.raises(KeyboardInterrupt):
            sums.run(lambda done, total, what: None)
    assert 0 < sums.done < N
    for name, g in rows.items():
        g = g[: sums.done]
        assert sums.layer_moments(name) == pytest.approx(((g**2).sum(1).mean(), (g.mean(0) ** 2).sum()), rel=1e-9), name
        if name in sums.moments:
            assert np.allclose(sums.layer_moment(name)[0], g.T @ g / sums.done, rtol=1e-9)


def test_bad_arguments() -> None:
    model, loader, _, _ = three_batches("mlp")
    with pytest.raises(ValueError, match="^algorithm: unknown 'fast'; known: auto, positions, gradients"):
        plain_run(model, loader, algorithm="fast")


@pytest.mark.parametrize("n", [1, 10, 1000])
@pytest.mark.parametrize("room", [0, 3, 60, 3000])
def test_plan(n: int, room: int) -> None:
    limit = 8 * 5 * n * n + room * 10_000
    for largest in {1, n // 2 + 1, n}:
        if limit < 8 * 5 * n * n + 10_000 + 8 * 3 * n + (2_000 if largest < n else 0):
            with pytest.raises(MemoryError, match=r"one sample and the products of .*max_memory"):
                plan_ghost(n, largest, [n, 7], limit, 10_000.0, 2_000.0, True)
            continue
        plan = plan_ghost(n, largest, [n, 7], limit, 10_000.0, 2_000.0, True)
        assert 1 <= plan.chunk <= min(largest, plan.hold) and plan.hold <= n <= plan.evaluations
        least = 8 * 5 * n * n + 10_000 + 2_000 + 8 * 3 * n
        assert plan.bytes <= max(limit, least)
        assert plan.evaluations == n or plan.hold < n
