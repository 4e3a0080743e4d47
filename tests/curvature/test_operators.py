from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import DictLoader, dense_ggn, dense_hessian, digits_like, mlp
from tolerances import tolerance
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from spectral_fast.curvature import GGN, Hessian, graph_operator

X, Y = (torch.from_numpy(a) for a in digits_like(33, 6, 3))
TARGETS = torch.from_numpy(np.random.default_rng(1).standard_normal((33, 3)))
LOSSES = {
    "cross_entropy": (Y, lambda z, t: F.cross_entropy(z, t)),
    "mse": (TARGETS, lambda z, t: F.mse_loss(z, t)),
    "bce": ((TARGETS > 0).double(), lambda z, t: F.binary_cross_entropy_with_logits(z, t)),
    "huber": (TARGETS, lambda z, t: F.huber_loss(z, t)),
}


def check(op, dense, dtype=np.float64):
    n = op.shape[0]
    got = op @ np.eye(n)
    # each column is a chain of sums of at most n terms; the norm bounds what each adds
    assert np.abs(got - dense).max() <= tolerance(dtype, n) * np.linalg.norm(dense, 2)
    assert np.abs(got - got.T).max() <= tolerance(dtype, n) * np.linalg.norm(dense, 2)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_hessian_and_ggn_are_the_dense_ones(name, keep):
    model = mlp((6, 5, 3))
    targets, fn = LOSSES[name]
    how = {"loss_fn": fn} if name == "huber" else {"loss": name}
    for kind, dense in ((Hessian, dense_hessian), (GGN, dense_ggn)):
        op = kind(model, (X, targets), **how)
        op.keep = keep
        check(op, dense(model, lambda z: fn(z, targets), X))
        assert bool(op._kept) == keep
        op.release()
        assert not op._kept


def test_graphs_are_kept_as_long_as_memory_lasts(monkeypatch):
    asked = []
    monkeypatch.setattr(graph_operator, "free_memory", lambda device: asked.append(device.type) or 4e3)
    model, parts = mlp((6, 5, 3)), list(zip(X.split(11), Y.split(11), strict=True))
    op = Hessian(model, parts)
    op @ np.ones(53)
    assert asked == ["cpu"] and op.keep is False and not op._kept  # a quarter of 4 kB is too little
    total, largest = op.graph_bytes()
    assert total == pytest.approx(3 * largest) and largest > 0
    for allowed, kept in ((total, 3), (0.99 * total, 0)):
        op = GGN(model, parts)
        op.graph_memory = allowed * op.graph_bytes()[0] / total
        op @ np.ones(53)
        assert len(op._kept) == kept and len(asked) == 1


def loaders():
    data = TensorDataset(X, Y)
    yield "shuffled", DataLoader(data, batch_size=8, shuffle=True)
    yield "ragged", [(X[:1], Y[:1]), (X[1:30], Y[1:30]), (X[30:], Y[30:])]
    yield "dict", DictLoader(X, Y, (20, 13))
    yield "arrays", (X.numpy(), Y.numpy())


@pytest.mark.parametrize("kind, dense", [(Hessian, dense_hessian), (GGN, dense_ggn)])
@pytest.mark.parametrize("name", ["shuffled", "ragged", "dict", "arrays"])
def test_every_loader_gives_the_same_matrix(name, kind, dense):
    model = mlp((6, 5, 3), dropout=0.5, batchnorm=True)
    model(X)  # running statistics that are not the initial ones
    want = dense(model.eval(), lambda z: F.cross_entropy(z, Y), X)
    model.train()
    op = kind(model, dict(loaders())[name])
    check(op, want)
    assert any("dropout" in note for note in op.notes) and any("statistics" in note for note in op.notes)


def test_ignored_targets_weigh_nothing():
    model = mlp((6, 5, 3))
    y = Y.clone()
    y[::3] = -100
    y[:8] = -100  # a whole batch without a valid target
    for kind, dense in ((Hessian, dense_hessian), (GGN, dense_ggn)):
        check(kind(model, list(zip(X.split(8), y.split(8), strict=True))), dense(model, lambda z: F.cross_entropy(z, y), X))


def test_float32_products_are_summed_in_float64():
    model = mlp((6, 5, 3), dtype="float32")
    exact = mlp((6, 5, 3))
    exact.load_state_dict(model.state_dict())
    dense = dense_hessian(exact, lambda z: F.cross_entropy(z, Y), X)
    ones = list(zip(X.split(1), Y.split(1), strict=True))
    check(Hessian(model, ones), dense, np.float32)
    check(GGN(model, ones), dense_ggn(exact, lambda z: F.cross_entropy(z, Y), X), np.float32)
    check(Hessian(model, ones, dtype=torch.float64), dense)


class Sequence(nn.Module):
    def __init__(self, kind):
        super().__init__()
        if kind in ("LSTM", "GRU", "RNN"):
            self.body = getattr(nn, kind)(6, 4, batch_first=True, bidirectional=kind == "GRU")
        elif kind == "encoder":
            self.body = nn.TransformerEncoderLayer(6, 2, dim_feedforward=5, batch_first=True, dropout=0.1)
        else:
            self.body = nn.Identity()
            self.qkv = nn.Linear(6, 18)
        self.kind = kind
        self.head = nn.Linear(8 if kind == "GRU" else 4 if kind in ("LSTM", "RNN") else 6, 3)
        self.double()

    def forward(self, x):
        if self.kind == "sdpa":
            q, k, v = self.qkv(x).unflatten(-1, (2, 9)).transpose(1, 2).chunk(3, dim=-1)
            h = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        else:
            h = self.body(x)
        return self.head((h[0] if isinstance(h, tuple) else h).mean(1))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "encoder", "sdpa"])
def test_recurrent_and_attention_layers(kind):
    torch.manual_seed(0)
    model = Sequence(kind).eval()
    x = torch.randn(6, 5, 6, dtype=torch.float64)
    y = Y[:6]
    h, g = Hessian(model, (x, y)), GGN(model, (x, y))
    n = h.shape[0]
    rng = np.random.default_rng(0)
    params = list(model.parameters())

    # oracles that share nothing with the operators: central differences of the gradient and of the outputs along v
    def shifted(v, f):
        with torch.no_grad():
            for p, d in zip(params, h.unflatten(torch.from_numpy(v)).values(), strict=True):
                p += d
        out = f()
        with torch.no_grad():
            for p, d in zip(params, h.unflatten(torch.from_numpy(v)).values(), strict=True):
                p -= d
        return out

    def gradient():
        grads = torch.autograd.grad(F.cross_entropy(model(x), y), params)
        return torch.cat([p.reshape(-1) for p in grads]).numpy()

    v = rng.standard_normal(n)
    w = rng.standard_normal(n)
    step = 1e-5
    hv, gv = h @ v, g @ v
    difference = (shifted(step * v, gradient) - shifted(-step * v, gradient)) / (2 * step)
    z = model(x).detach()
    jv, jw = ((shifted(step * u, lambda: model(x).detach()) - shifted(-step * u, lambda: model(x).detach())) / (2 * step) for u in (v, w))
    outer = torch.autograd.functional.hessian(lambda t: F.cross_entropy(t, y), z).reshape(z.numel(), z.numel())
    # central differences: truncation ~ step², rounding ~ eps / step, both below 1e-8 of the size here
    assert np.abs(hv - difference).max() <= 1e-7 * np.abs(hv).max()
    bilinear = float(jw.reshape(-1) @ outer @ jv.reshape(-1))
    assert abs(w @ gv - bilinear) <= 1e-7 * np.linalg.norm(w) * np.linalg.norm(gv)


def test_ggn_is_semidefinite_and_equals_the_hessian_of_a_linear_model():
    model = nn.Linear(6, 3).double()
    h, g = Hessian(model, (X, Y)), GGN(model, (X, Y))
    eye = np.eye(21)
    assert np.abs(h @ eye - g @ eye).max() <= tolerance(np.float64, 21)
    assert np.linalg.eigvalsh(g @ eye).min() >= -tolerance(np.float64, 21)


def test_ggn_without_a_known_loss_says_so():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(6, 3).double()

        def forward(self, x, labels=None):
            z = self.lin(x)
            return {"logits": z, "loss": z.square().mean() + z.exp().mean()}

    loader = [{"x": X, "labels": Y}]
    assert np.isfinite(Hessian(Own(), loader) @ np.ones(21)).all()
    with pytest.raises(NotImplementedError, match="loss_fn="):
        GGN(Own(), loader) @ np.ones(21)


def test_a_linear_loss_has_zero_curvature():
    model = nn.Linear(6, 3).double()
    op = Hessian(model, (X, Y), loss_fn=lambda z, t: z.mean())
    assert np.all(op @ np.ones(21) == 0)
