from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import dense_hessian, digits_like, mlp
from tolerances import tolerance
from torch import nn
from torch.nn import functional as F

from spectral_fast.curvature import Hessian
from spectral_fast.probing import Batches, select_parameters
from spectral_fast.probing.operator import Precision, compute_dtype

X, Y = (torch.from_numpy(a) for a in digits_like(30, 5, 3))
MODEL = mlp((5, 4, 3))
DENSE = dense_hessian(MODEL, lambda z: F.cross_entropy(z, Y), X)
N = len(DENSE)
ATOL = tolerance(np.float64, N) * np.linalg.norm(DENSE, 2) * np.sqrt(N)


def test_products_of_every_kind_of_vector():
    op = Hessian(MODEL, (X, Y))
    v = np.random.default_rng(0).standard_normal((N, 3))
    assert op.shape == (N, N)
    assert np.abs(op @ v - DENSE @ v).max() <= ATOL
    assert np.abs(op @ v[:, 0] - DENSE @ v[:, 0]).max() <= ATOL
    assert np.abs(op @ v[::-1, 1] - DENSE @ v[::-1, 1]).max() <= ATOL
    assert op.products == 5
    t = op @ torch.from_numpy(v)
    assert isinstance(t, torch.Tensor) and not t.requires_grad and np.abs(t.numpy() - DENSE @ v).max() <= ATOL
    assert (op @ v.astype(np.float32)).dtype == np.float32 and (op @ v[:, :0]).shape == (N, 0)
    ones = op @ np.ones(N, dtype=np.int64)
    assert ones.dtype == np.float64 and np.abs(ones - DENSE.sum(1)).max() <= ATOL
    read_only = v[:, 0].copy()
    read_only.flags.writeable = False
    assert np.abs(op @ read_only - DENSE @ v[:, 0]).max() <= ATOL
    assert np.abs(op.to_scipy() @ v - DENSE @ v).max() <= ATOL


@pytest.mark.parametrize("shape", [(N + 1,), (1, N), (N, 2, 2), ()])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="v: wanted shape"):
        Hessian(MODEL, (X, Y)) @ np.ones(shape)


def test_names_blocks_and_unflatten():
    op = Hessian(MODEL, (X, Y))
    assert op.names == tuple(op.blocks) == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert [s.stop - s.start for s in op.blocks.values()] == [20, 4, 12, 3]
    v = np.arange(float(N))
    parts = op.unflatten(v)
    assert parts["2.weight"].shape == (3, 4) and np.shares_memory(parts["2.weight"], v)
    assert np.array_equal(np.concatenate([p.reshape(-1) for p in parts.values()]), v)
    assert isinstance(op.unflatten(torch.ones(N))["0.bias"], torch.Tensor)


@pytest.mark.parametrize(
    "params, names",
    [
        ("0.*", ["0.weight", "0.bias"]),
        (["*.bias"], ["0.bias", "2.bias"]),
        (["2.weight", "0.bias"], ["0.bias", "2.weight"]),
        (lambda name, p: p.ndim == 2, ["0.weight", "2.weight"]),
    ],
)
def test_a_selection_gives_the_submatrix(params, names):
    op = Hessian(MODEL, (X, Y), params=params)
    assert list(op.names) == names
    full = Hessian(MODEL, (X, Y))
    index = np.concatenate([np.arange(N)[full.blocks[name]] for name in names])
    assert np.abs(op @ np.eye(len(index)) - DENSE[np.ix_(index, index)]).max() <= ATOL


def test_empty_selections_and_wrong_types():
    with pytest.raises(ValueError, match="params.*nothing.*0.weight"):
        select_parameters(MODEL, "nothing*")
    with pytest.raises(TypeError, match="params"):
        select_parameters(MODEL, [3])
    with pytest.raises(TypeError, match="model"):
        Hessian(lambda x: x, (X, Y))
    with pytest.raises(TypeError, match="dtype"):
        Hessian(MODEL, (X, Y), dtype=torch.int64)


def test_frozen_parameters_are_left_out_unless_all_are():
    model = mlp((5, 4, 3))
    model[0].requires_grad_(False)
    op = Hessian(model, (X, Y))
    assert op.names == ("2.weight", "2.bias") and any("2 frozen" in note for note in op.notes)
    assert Hessian(model, (X, Y), params="*").shape[0] == N
    model.requires_grad_(False)
    assert Hessian(model, (X, Y)).shape[0] == N
    assert not any(p.requires_grad for p in model.parameters())


class Tied(nn.Module):
    """One matrix used twice: as the same parameter, or as another parameter over the same memory."""

    def __init__(self, same_object):
        super().__init__()
        self.a = nn.Linear(4, 4, bias=False).double()
        self.b = nn.Linear(4, 4, bias=False).double()
        self.b.weight = self.a.weight if same_object else nn.Parameter(self.a.weight.data)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


@pytest.mark.parametrize("same_object", [True, False])
def test_tied_parameters_are_one(same_object):
    model = Tied(same_object)
    x = X[:, :4]
    w = model.a.weight.detach()
    dense = torch.autograd.functional.hessian(lambda m: F.mse_loss(torch.tanh(x @ m.T) @ m.T, x), w).reshape(16, 16).numpy()
    op = Hessian(model, (x, x))
    assert op.names == ("a.weight",)
    assert np.abs(op @ np.eye(16) - dense).max() <= tolerance(np.float64, 16) * np.abs(dense).max() * 16


def test_lstm_weights_in_one_storage_are_not_tied():
    lstm = nn.LSTM(3, 4)
    assert len(select_parameters(lstm)) == 4


def test_a_parameter_without_influence_gives_zero_rows():
    model = mlp((5, 4, 3))
    model.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    op = Hessian(model, (X, Y))
    product = op @ np.ones(N + 2)
    assert np.all(product[op.blocks["unused"]] == 0) and np.abs(product[2:] - DENSE.sum(1)).max() <= ATOL
    op.loss_and_gradient()
    assert op.without_influence == ("unused",)


def test_half_precision_models_run_in_float32_and_float64_on_request():
    model = mlp((5, 4, 3), dtype="bfloat16")
    exact = mlp((5, 4, 3))
    exact.load_state_dict(model.state_dict())
    dense = dense_hessian(exact, lambda z: F.cross_entropy(z, Y), X)
    for dtype, eps in ((None, np.float32), (torch.float64, np.float64)):
        op = Hessian(model, (X, Y), dtype=dtype)
        assert np.abs(op @ np.ones(N) - dense.sum(1)).max() <= tolerance(eps, N) * np.linalg.norm(dense, 2) * np.sqrt(N)
        assert any("copy of the bfloat16" in note for note in op.notes)
    assert model[0].weight.dtype == torch.bfloat16


class Mixed(nn.Module):
    """A bf16 body with a float32 head, as large models are stored; casts where they meet."""

    def __init__(self):
        super().__init__()
        self.body, self.head = mlp((5, 4), dtype="bfloat16"), mlp((4, 3), seed=1, dtype="float32")

    def forward(self, x):
        h = torch.tanh(self.body(x.to(self.body[0].weight.dtype)))
        return self.head(h.to(self.head[0].weight.dtype))


@pytest.mark.parametrize("frozen", [False, True])
def test_mixed_models_run_in_float32_throughout(frozen):
    model = Mixed()
    model.body.requires_grad_(not frozen)
    exact = Mixed().double()
    exact.load_state_dict(model.state_dict())
    dense = dense_hessian(exact, lambda z: F.cross_entropy(z, Y), X)
    dense = dense[24:, 24:] if frozen else dense
    op = Hessian(model, (X, Y))
    n = len(dense)
    assert op.dtype == torch.float32 and op.batches.dtype == torch.float32
    # in bf16 the errors would be some 1e-2 of it
    assert np.abs(op @ np.eye(n) - dense).max() <= tolerance(np.float32, n) * np.linalg.norm(dense, 2)
    assert any("run in float32 on a copy of the bfloat16 parameters" in note for note in op.notes)
    assert model.body[0].weight.dtype == torch.bfloat16
    from spectral_fast.gradients import gradient_covariance

    got, want = gradient_covariance(model, (X, Y)), gradient_covariance(exact, (X, Y), params=list(op.names))
    assert np.abs(got.eigenvalues - want.eigenvalues).max() <= tolerance(np.float32, 30) * want.eigenvalues[0]
    assert got.notes[:1] == ("run in float32 on a copy of the bfloat16 parameters",)


def test_precision_never_loses_bits():
    two = nn.ModuleList([nn.Linear(2, 2).double(), nn.Linear(2, 2).half()])
    assert compute_dtype(two).dtype == torch.float64 and compute_dtype(two).note == "run in float64 on a copy of the float16 parameters"
    assert compute_dtype(nn.Linear(2, 2)) == Precision(torch.float32, False, "")
    assert compute_dtype(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2).double()])) == Precision(None, False, "")


def test_loss_and_gradient_over_ragged_batches():
    op = Hessian(MODEL, [(X[:20], Y[:20]), (X[20:], Y[20:])])
    value, gradient = op.loss_and_gradient()
    loss = F.cross_entropy(MODEL(X), Y)
    exact = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(MODEL.parameters()))])
    assert abs(value - loss.item()) <= tolerance(np.float64, 30) * loss.item()
    assert (gradient - exact).norm() <= tolerance(np.float64, N) * exact.norm() * 10


def test_a_changed_model_is_noticed():
    model = mlp((5, 4, 3))
    op = Hessian(model, (X, Y))
    op @ np.ones(N)
    with torch.no_grad():
        model[0].weight += 1
    with pytest.raises(RuntimeError, match="0.weight.*build a new one"):
        op @ np.ones(N)


def replaced(model):
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


@pytest.mark.parametrize(
    "change",
    [
        lambda model: nn.utils.vector_to_parameters(torch.zeros(sum(p.numel() for p in model.parameters())), model.parameters()),
        lambda model: setattr(model[0].weight, "data", model[0].weight.data + 1),
        replaced,
        lambda model: model.double(),
    ],
    ids=["vector_to_parameters", "data", "parameter", "double"],
)
def test_changes_that_leave_no_version_are_noticed(change):
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
    op = Hessian(model, (torch.randn(6, 4), torch.randint(0, 3, (6,))))
    op @ np.ones(op.shape[0])
    change(model)
    with pytest.raises(RuntimeError, match="0.weight.*build a new one"):
        op @ np.ones(op.shape[0])


def test_batches_can_be_shared():
    batches = Batches((X, Y), device="cpu", dtype=torch.float64)
    assert Hessian(MODEL, batches).batches is batches
    cut = Hessian(MODEL, batches, max_samples=7)
    assert cut.batches.n_samples == 7 and any("7" in note for note in cut.notes)
    single = Hessian(mlp((5, 4, 3), dtype="float32"), batches)
    assert single.batches[0].inputs.dtype == torch.float32 and np.isfinite(single @ np.ones(N)).all()
