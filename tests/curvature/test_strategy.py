"""Every way of computing products gives the same matrix; what cannot, or gives another one, is refused with its reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from children import PEAK, run_python
from problems import dense_ggn, dense_hessian, digits_like, mlp
from tolerances import tolerance
from torch import nn
from torch.nn import functional as F

from spectral_fast.curvature import GGN, Hessian, strategy
from spectral_fast.curvature.strategy import BATCHED, FORWARD, KEPT, REBUILT, Chooser

X, Y = (torch.from_numpy(a) for a in digits_like(33, 6, 3))
PARTS = [(X[:1], Y[:1]), (X[1:30], Y[1:30]), (X[30:], Y[30:])]
KINDS = [(Hessian, dense_hessian), (GGN, dense_ggn)]


@pytest.fixture
def at_once(monkeypatch):
    """Trials begin without waiting for products to take as long as torch takes to load its rules."""
    monkeypatch.setattr(strategy, "OUTLAY", {FORWARD: 0.0, BATCHED: 0.0})
    monkeypatch.setattr(strategy, "LEAST_FORWARD", 0.0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("way", [KEPT, REBUILT, FORWARD, BATCHED])
@pytest.mark.parametrize("kind, dense", KINDS)
def test_every_way_gives_the_dense_matrix(kind, dense, way, dtype):
    model = mlp((6, 5, 3), dtype="float32" if dtype == np.float32 else "float64")
    exact = mlp((6, 5, 3))
    exact.load_state_dict(model.state_dict())
    want = dense(exact, lambda z: F.cross_entropy(z, Y), X)
    op = kind(model, PARTS)
    op.keep = way in (KEPT, BATCHED)
    op.chooser.next = lambda b: way
    rows = np.eye(len(want), dtype=dtype)
    got = op.row_products(rows)
    assert got.dtype == np.float64 and not np.shares_memory(got, rows) and np.array_equal(rows, np.eye(len(want)))
    assert np.abs(got - want).max() <= tolerance(dtype, len(want)) * np.linalg.norm(want, 2)
    assert set(op.chooser.seconds) == {way} and op.products == len(want)


@pytest.mark.parametrize("kind", [Hessian, GGN])
def test_sums_of_large_models_stay_in_float32(kind, monkeypatch):
    from spectral_fast.probing import operator

    small = kind(mlp((6, 5, 3), dtype="float32"), PARTS)
    monkeypatch.setattr(operator, "LARGE", 50)
    large = kind(mlp((6, 5, 3), dtype="float32"), PARTS)
    rows = np.random.default_rng(0).standard_normal((3, 53)).astype(np.float32)
    a, b = small.row_products(rows), large.row_products(rows)
    assert (a.dtype, b.dtype) == (np.float64, np.float32)
    assert np.abs(a - b).max() <= tolerance(np.float32, 53) * np.abs(a).max()
    assert all(leaf.grad is None for leaf in large.leaves)
    assert kind(mlp((6, 5, 3)), PARTS).row_products(rows).dtype == np.float64


def test_choice_by_time():
    c = Chooser(KEPT, forward=True, batched=True)
    c.making = 1.0
    for seconds in (5.0, 3.0):  # slower than two gradients: forward mode may win
        assert c.next(1) == KEPT
        c.done(KEPT, 1, seconds)
    assert c.next(1) == FORWARD and c.strategy == KEPT
    c.done(FORWARD, 1, 2.0)
    assert c.next(1) == FORWARD == c.strategy
    assert c.next(4) == FORWARD
    c.done(FORWARD, 4, 8.0)
    assert c.next(4) == BATCHED
    c.done(BATCHED, 4, 6.0)
    assert c.next(4) == BATCHED and c.next(1) == FORWARD and c.strategy == f"{FORWARD}, {BATCHED}"
    c = Chooser(KEPT, forward=True, batched=False)
    c.making = 2.0
    for _ in range(3):  # 1.5 makings: forward mode cannot win and is never tried
        assert c.next(1) == KEPT and c.next(4) == KEPT
        c.done(KEPT, 1, 3.0)
    c = Chooser(REBUILT, forward=True, batched=True)
    for _ in range(2):
        c.done(REBUILT, 1, 3.0)
    assert c.next(1) == FORWARD
    c.refuse(FORWARD, "no rule")
    assert c.next(1) == REBUILT and c.refused == {FORWARD: "no rule"}


@pytest.mark.parametrize("kind", [Hessian, GGN])
def test_trials_are_products_asked_for(kind, at_once):
    op = kind(mlp((6, 5, 3)), PARTS)
    op.keep = False
    v = np.random.default_rng(0).standard_normal((3, 53))
    first = op.row_products(v[:1])
    for _ in range(4):
        assert np.abs(op.row_products(v[:1]) - first).max() <= tolerance(np.float64, 53) * np.abs(first).max()
        op.row_products(v)
    assert {REBUILT, FORWARD, BATCHED} == set(op.chooser.seconds) and op.products == 17 and not op.chooser.refused
    assert op.strategy.split(", ")[0] in (REBUILT, FORWARD)


class OneWay(torch.autograd.Function):
    """tanh without a rule for forward mode."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return torch.tanh(h)

    @staticmethod
    def backward(ctx, g):
        (h,) = ctx.saved_tensors
        return g / torch.cosh(h) ** 2


class WrongForward(torch.autograd.Function):
    """tanh with a wrong rule for forward mode."""

    @staticmethod
    def forward(h):
        return torch.tanh(h)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx, g):
        (h,) = ctx.saved_tensors
        return g / torch.cosh(h) ** 2

    @staticmethod
    def jvp(ctx, t):
        return 1.01 * t


class Through(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f, self.body = f, mlp((6, 5, 3))

    def forward(self, x):
        return self.body[2](self.f(self.body[0](x)))


@pytest.mark.parametrize("f, reason", [(OneWay.apply, "jvp|forward"), (WrongForward.apply, "differs from the double backward by")])
@pytest.mark.parametrize("kind, dense", KINDS)
def test_a_way_without_rules_or_with_wrong_ones_is_refused(kind, dense, f, reason, at_once):
    want = dense(mlp((6, 5, 3)), lambda z: F.cross_entropy(z, Y), X)
    op = kind(Through(f), PARTS)
    op.keep = False
    for _ in range(2):
        got = np.concatenate([op.row_products(row[None]) for row in np.eye(53)])
        assert np.abs(got - want).max() <= tolerance(np.float64, 53) * np.linalg.norm(want, 2)
    import re

    assert re.search(reason, op.chooser.refused[FORWARD]) and op.strategy == REBUILT
    assert any(note.startswith(f"products not by {FORWARD}: ") for note in op.notes)


def test_forward_mode_where_no_graph_fits():
    op = Hessian(mlp((6, 5, 3)), (X, Y))
    _, largest = op.graph_bytes()
    op.graph_memory = 0.6 * largest
    want = Hessian(mlp((6, 5, 3)), (X, Y)).row_products(np.eye(53))
    assert np.abs(op.row_products(np.eye(53)) - want).max() <= tolerance(np.float64, 53) * np.abs(want).max()
    assert op.strategy == FORWARD and not op._kept
    op = Hessian(Through(OneWay.apply), (X, Y))
    op.graph_memory = 0.6 * op.graph_bytes()[1]
    op.row_products(np.eye(53)[:1])
    assert op.strategy == REBUILT and FORWARD in op.chooser.refused


@pytest.mark.parametrize("v", [np.ones(53), np.ones((2, 52)), np.ones((1, 2, 53))])
def test_wrong_rows_are_refused(v):
    with pytest.raises(ValueError, match=r"v: wanted shape \(b, 53\)"):
        Hessian(mlp((6, 5, 3)), (X, Y)).row_products(v)
    with pytest.raises(TypeError, match="v: wanted a numpy array of float32 or float64"):
        Hessian(mlp((6, 5, 3)), (X, Y)).row_products(np.ones((1, 53), dtype=np.int64))


def test_rows_of_every_layout():
    op = Hessian(mlp((6, 5, 3)), (X, Y))
    v = np.random.default_rng(0).standard_normal((53, 4))
    want = op.row_products(np.ascontiguousarray(v.T))
    frozen = np.ascontiguousarray(v.T)
    frozen.flags.writeable = False
    for rows in (v.T, frozen, np.ascontiguousarray(v.T)[::-1][::-1], np.asfortranarray(v.T)):
        assert np.abs(op.row_products(rows) - want).max() <= tolerance(np.float64, 53) * np.abs(want).max()
    assert op.row_products(v.T[:0]).shape == (0, 53)


MEMORY = (
    PEAK
    + """
import gc
import numpy as np, torch
from torch import nn
from spectral_fast.curvature import GGN, Hessian
torch.set_num_threads(1)

def taken(work):
    most, before, _ = peak(work)
    return most - before
"""
)


def test_a_product_holds_few_arrays_of_the_parameters_size():
    code = """
model = nn.Sequential(nn.Linear(800, 4000), nn.Tanh(), nn.Linear(4000, 1500))
op = Hessian(model, (torch.randn(8, 800), torch.randint(0, 1500, (8,))))
n = op.shape[0]
v = np.ones((1, n), dtype=np.float32)
op.row_products(v)
gc.collect()
print(taken(lambda: op.row_products(v)) / (4 * n))
"""
    done = run_python(MEMORY + code, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    # the result; one part of each parameter's product while the other is on its way; what a layer's own product takes (the larger has 2/3 of all)
    assert float(done.stdout) < 3.5


def test_the_loss_hessian_takes_no_array_of_logits():
    code = """
torch.manual_seed(0)
rows = 400

def operator(vocabulary):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, vocabulary, bias=False))
    op = GGN(model, (torch.randn(rows, 4), torch.randint(0, vocabulary, (rows,))))
    op.keep = True
    return op

small = operator(50)
small.row_products(np.ones((1, small.shape[0]), dtype=np.float32))  # what torch itself takes at its first use
vocabulary = 60_000
op = operator(vocabulary)
v = np.ones((1, op.shape[0]), dtype=np.float32)
logits = 4 * rows * vocabulary
first = taken(lambda: op.row_products(v))
gc.collect()
print(first / logits, taken(lambda: op.row_products(v)) / logits)
"""
    done = run_python(MEMORY + code, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    first, second = map(float, done.stdout.split())
    # J v is a sum, of what the last layer's change and its input's change make of it; the loss's Hessian takes no more than pieces
    assert second < 2.2
    assert first < second + 1.2  # the logits themselves, which stay; the cotangent of the graph is one number
