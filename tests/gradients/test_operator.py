"""Products with the gradient covariance against materialized gradients and against the exact Gram route, in float64."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import spectral_fast as sf
from spectral_fast.gradients import GradientCovariance, gradient_covariance, top_directions
from spectral_fast.gradients.operator import EDGES, FORWARD, KEPT, REBUILT
from spectral_fast.probing.sample_losses import ONE_FORWARD, SINGLY, VECTORISED

F64 = NDArray[np.float64]
# Sums of float64 products over a few hundred parameters, relative to the largest entry.
EXACT = 1e-12


class Tagger(nn.Module):
    """A label for every token: (N, T) -> (N, T, 4), or with ``turned`` (T, N) -> (T, N, 4) inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.out = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.tanh(self.mix(self.embed(ids).cumsum(1) / 3)))  # type: ignore[no-any-return]


class TimeFirst(nn.Module):
    """Outputs (T, N, C): their first dimension is not that of the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Tagger()

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids).transpose(0, 1)  # type: ignore[no-any-return]


def dense_case() -> tuple[nn.Module, list[tuple[Tensor, Tensor]], dict[str, Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    x, y = torch.randn(23, 7).double(), torch.randint(0, 3, (23,))
    return model, [(x[:9], y[:9]), (x[9:10], y[9:10]), (x[10:], y[10:])], {}


def regression_case() -> tuple[nn.Module, list[tuple[Tensor, Tensor]], dict[str, Any]]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x, y = torch.randn(19, 5).double(), torch.randn(19, 2).double()
    return model, [(x[:12], y[:12]), (x[12:], y[12:])], {}


def tokens_case() -> tuple[nn.Module, list[tuple[Tensor, Tensor]], dict[str, Any]]:
    torch.manual_seed(2)
    model = Tagger().double()
    ids, y = torch.randint(0, 11, (20, 5)), torch.randint(0, 4, (20, 5))
    for i in range(20):
        y[i, : i % 5] = -100
    y[7] = -100
    return model, [(ids[:9], y[:9]), (ids[9:], y[9:])], {}


def conv_case() -> tuple[nn.Module, list[tuple[Tensor, Tensor]], dict[str, Any]]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)).double()
    x, y = torch.randn(14, 1, 6, 6).double(), torch.randint(0, 4, (14,))
    return model, [(x[:8], y[:8]), (x[8:], y[8:])], {"loss_fn": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5, 1.0]).double())}


CASES = {"dense": dense_case, "regression": regression_case, "tokens": tokens_case, "conv": conv_case}


def gradients_of(model: nn.Module, batches: list[tuple[Tensor, Tensor]], loss: Any, terms: Any, whole: bool = False) -> tuple[F64, F64]:
    """(n, P) gradients of one sample (or whole batch) at a time by plain autograd, and the weights (n,), sum 1."""
    model = copy.deepcopy(model).eval()
    rows, weights = [], []
    for x, y in batches:
        for part in [slice(None)] if whole else [slice(i, i + 1) for i in range(len(x))]:
            if terms(y[part]) > 0:
                model.zero_grad()
                loss(model(x[part]), y[part]).backward()
                rows.append(np.concatenate([p.grad.numpy().ravel() for p in model.parameters() if p.grad is not None]))
                weights.append(terms(y[part]))
    return np.stack(rows), np.array(weights) / sum(weights)


def oracle(name: str, whole: bool = False) -> tuple[F64, F64]:
    model, batches, options = CASES[name]()
    if name == "regression":
        return gradients_of(model, batches, F.mse_loss, lambda y: float(y.numel()), whole)
    if name == "conv":
        fn = options["loss_fn"]
        return gradients_of(model, batches, fn, lambda y: float(fn.weight[y].sum()), whole)
    return gradients_of(model, batches, lambda z, y: F.cross_entropy(z.reshape(-1, z.shape[-1]), y.reshape(-1)), lambda y: float((y != -100).sum()), whole)


def matrix(g: F64, p: F64, centered: bool) -> F64:
    rows = g - p @ g if centered else g
    return (rows.T * p) @ rows / (1.0 - p @ p if centered else 1.0)


def assert_close(got: F64, want: F64, tol: float = EXACT) -> None:
    assert got.shape == want.shape and np.abs(got - want).max() <= tol * np.abs(want).max()


@pytest.mark.parametrize("unit", ["sample", "batch"])
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_is_the_covariance_of_the_gradients(name: str, centered: bool, unit: str) -> None:
    model, batches, options = CASES[name]()
    op = sf.GradientCovariance(model, batches, centered=centered, unit=unit, **options)
    want = matrix(*oracle(name, unit == "batch"), centered)
    assert_close(op @ np.eye(op.shape[0]), want)
    assert op.strategy.startswith(KEPT) and (unit == "batch" or op.losses.way == ONE_FORWARD) and not any("not by" in note for note in op.notes)
    v = np.random.default_rng(0).standard_normal(op.shape[0])
    assert_close(op @ v, want @ v)
    assert_close(op.to_scipy().matvec(v), want @ v)
    assert_close((op @ torch.from_numpy(v)).numpy(), want @ v)
    assert_close(op.row_products(v[None])[0], want @ v)
    assert set(op.unflatten(v)) == set(op.blocks) == {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_both_routes_agree(name: str, centered: bool) -> None:
    model, batches, options = CASES[name]()
    exact = gradient_covariance(model, batches, centered=centered, **options)
    op = GradientCovariance(model, batches, centered=centered, **options)
    assert op.n_units == exact.n_units
    top = sf.eigsh(op, k=5, tol=1e-8)
    assert top.status == "ok"
    np.testing.assert_allclose(top.values, exact.eigenvalues[:5], rtol=1e-6)
    # the same vectors from the Gram matrix, one backward pass each
    values, vectors = top_directions(op, exact, 5)
    np.testing.assert_allclose(values, exact.eigenvalues[:5], rtol=1e-9)
    assert_close(op @ vectors, vectors * values, 1e-9)
    assert_close(vectors.T @ vectors, np.eye(5), 1e-8)
    assert sf.subspace_overlap(top.vectors, vectors).min() > 1 - 1e-6


def test_density_and_trace() -> None:
    model, batches, options = dense_case()
    exact = gradient_covariance(model, batches)
    op = GradientCovariance(model, batches)
    found = sf.trace(op, max_matvecs=op.shape[0])  # as many products as parameters: exact
    assert found.estimate == pytest.approx(exact.trace, rel=1e-9)
    for name, layer in exact.by_layer.items():
        assert found.by_layer[name][0] == pytest.approx(layer.trace, rel=1e-9)
    density = sf.spectral_density(op, probes=8, steps=30)
    assert abs(density.trace - exact.trace) <= 4 * density.trace_stderr


@pytest.mark.parametrize("name", CASES)
def test_rebuilt_graphs_and_forward_mode_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches, options = CASES[name]()
    want = matrix(*oracle(name), True)
    v = np.random.default_rng(1).standard_normal((len(want), 2))
    op = GradientCovariance(model, batches, **options)
    op.keep = False
    assert_close(op @ v, want @ v)
    assert set(op._seconds) == {REBUILT, FORWARD} and not op._kept and np.isfinite(op._seconds[FORWARD]), op.notes
    op._seconds = {REBUILT: 1.0, FORWARD: 0.5}
    assert op.strategy.startswith(FORWARD)
    assert_close(op @ v, want @ v)
    small = GradientCovariance(model, batches, **options)
    small.graph_memory = 10.0
    assert_close(small @ v[:, 0], want @ v[:, 0])
    assert small.keep is False


def test_other_ways_to_single_losses() -> None:
    """Outputs with time first go through vmap of the model; a model that writes into a buffer, one sample at a time."""
    model, batches, _ = tokens_case()
    turned = TimeFirst().double()
    turned.inner.load_state_dict(model.state_dict())

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z.transpose(0, 1).flatten(0, 1), y.flatten(), ignore_index=3)

    op = GradientCovariance(turned, [(x, y.clamp(min=0)) for x, y in batches[:1]], loss_fn=loss)
    g, p = gradients_of(turned, [(x, y.clamp(min=0)) for x, y in batches[:1]], loss, lambda y: 1.0)
    assert op.losses.way == VECTORISED and any("not by one forward pass" in n for n in op.notes)
    assert_close(op @ np.eye(op.shape[0]), matrix(g, p, True))

    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = self.inner(x) if float(x[0, 0]) != 123.0 else self.inner(-x)
            return z - 0.5 * z.mean(dim=0)  # samples of a batch depend on each other

    torch.manual_seed(0)
    coupled = Decides().double()
    x, y = torch.randn(12, 4).double(), torch.randint(0, 3, (12,))
    g, p = gradients_of(coupled, [(x, y)], F.cross_entropy, lambda y: 1.0)
    op = GradientCovariance(coupled, [(x, y)])
    assert op.losses.way == SINGLY and any("differs by" in n and "vmap" in n for n in op.notes)
    assert_close(op @ np.eye(15), matrix(g, p, True))


def test_gradients_that_hardly_differ() -> None:
    """|g|² is 1e12 times the covariance: what the products lose is what the gradients themselves have lost."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(1e6 + rng.standard_normal((30, 6)))
    model = nn.Linear(6, 1, bias=False).double()
    op = GradientCovariance(model, [(x[:11], x[:11, 0]), (x[11:], x[11:, 0])], loss_fn=lambda z, t: z.mean())
    want = np.cov(x.numpy().T)
    v = rng.standard_normal((6, 4))
    assert_close(op @ v, want @ v, 1e-8)  # u_n = <g_n, v> ~ 1e6 is known to 1e-10 absolutely


def test_float32_model() -> None:
    model, batches, _ = dense_case()
    g, p = oracle("dense")
    op = GradientCovariance(copy.deepcopy(model).float(), batches)
    assert_close(op @ np.eye(op.shape[0]), matrix(g, p, True), 1e-5)
    forced = GradientCovariance(copy.deepcopy(model).float(), batches, dtype=torch.float64)
    # the parameters were rounded to float32 on the way
    assert_close(forced @ np.eye(op.shape[0]), matrix(g, p, True), 1e-5)


def test_some_parameters_and_a_frozen_model() -> None:
    model, batches, _ = dense_case()
    g, p = oracle("dense")
    op = GradientCovariance(model, batches, params="3.*")
    keep = slice(48, 48 + 21)
    assert_close(op @ np.eye(21), matrix(g, p, True)[keep, keep])
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    model.train()
    before = [m.training for m in model.modules()]
    _ = op @ np.ones(21)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and all(p.grad is None for p in model.parameters())
    assert [m.training for m in model.modules()] == before and torch.equal(torch.get_rng_state(), rng)


def test_graphs_hold_no_gradients() -> None:
    """What a kept graph holds is edges: tensors of P entries do not stay with it."""
    model, batches, _ = dense_case()
    op = GradientCovariance(model, batches)
    _ = op @ np.ones(op.shape[0])
    assert len(op._kept) == 3
    assert all(isinstance(root, Tensor) is not EDGES for graph in op._kept.values() for root in graph.pulled)
    op.release()
    assert not op._kept


def test_bad_arguments() -> None:
    model, batches, _ = dense_case()
    with pytest.raises(ValueError, match="unit: 'token' is unknown; known: sample, position, batch"):
        GradientCovariance(model, batches, unit="token")
    with pytest.raises(ValueError, match="at least 2 sample gradients, got 1"):
        GradientCovariance(model, batches[1:2])
    with pytest.raises(ValueError, match="at least 2 batch gradients, got 1"):
        GradientCovariance(model, batches[:1], unit="batch")
    assert GradientCovariance(model, batches[1:2], centered=False).n_units == 1
    op = GradientCovariance(model, batches)
    with pytest.raises(ValueError, match="^coefficients: wanted shape"):
        op.combinations(np.ones((2, 5)))
    with pytest.raises(ValueError, match="^result: has 23 sample gradients"):
        top_directions(GradientCovariance(model, batches, centered=False), gradient_covariance(model, batches), 3)
    with pytest.raises(ValueError, match="v: wanted shape"):
        op @ np.ones(3)


def test_top_directions_of_a_part_of_the_samples() -> None:
    """A Gram matrix of samples taken at random belongs to the covariance of those samples, and says which they are."""
    model, batches, _ = tokens_case()
    exact = gradient_covariance(model, batches, max_memory=15_500)
    assert 3 <= exact.n_units < 19 and len(exact.units) == exact.n_units
    g, p = oracle("tokens")
    part = p[exact.units] / p[exact.units].sum()
    values, vectors = top_directions(GradientCovariance(model, batches), exact, 2)
    assert_close(matrix(g[exact.units], part, True) @ vectors, vectors * values, 1e-9)
