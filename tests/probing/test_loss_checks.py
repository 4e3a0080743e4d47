"""When a loss from outside counts as one of those known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import dense_ggn, dense_hessian, mlp
from torch import nn
from torch.nn import functional as F

from spectral_fast.curvature import GGN, Hessian, curvature
from spectral_fast.probing import Batches, resolve_loss

G = torch.Generator().manual_seed(0)
X = torch.randn(20, 5, generator=G, dtype=torch.float64)
Y = torch.randint(0, 3, (20,), generator=G)


class OwnLoss(nn.Module):
    """A model that takes labels and gives its loss: cross-entropy in torch's words or others, plus what ``extra`` makes of the logits."""

    def __init__(self, extra=None, dtype=torch.float64, zero=False, own=False, smoothing=0.0):
        super().__init__()
        self.inner = mlp((5, 4, 3)).to(dtype)
        if zero:
            nn.init.zeros_(self.inner[-1].weight)
            nn.init.zeros_(self.inner[-1].bias)
        self.extra, self.own, self.smoothing = extra, own, smoothing

    def forward(self, x, labels=None):
        z = self.inner(x)
        out = {"logits": z}
        if labels is not None:
            valid = labels != -100
            written = (z.logsumexp(-1) - z.gather(-1, labels.clamp(min=0)[:, None])[:, 0])[valid].mean()
            out["loss"] = written if self.own else F.cross_entropy(z, labels, label_smoothing=self.smoothing)
            if self.extra is not None:
                out["loss"] = out["loss"] + self.extra(z)
        return out


def labelled(dtype=torch.float64, ignored=0):
    y = Y.clone()
    y[:ignored] = -100
    return Batches([{"x": X.to(dtype), "labels": y}])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("ignored", [0, 17])
def test_a_cross_entropy_is_known_however_it_is_written(dtype, own, zero, ignored):
    loss = resolve_loss(OwnLoss(dtype=dtype, own=own, zero=zero), labelled(dtype, ignored))
    assert (loss.name, loss.form) == ("model", "cross_entropy")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("what", ["square", "logsumexp", "smoothing"])
def test_a_small_term_beside_it_is_noticed(dtype, zero, what):
    """Of an untrained head of zeros the value is the same with and without a smoothing or a penalty; derivatives are not."""
    extra = {"square": lambda z: 2e-4 * z.square().mean(), "logsumexp": lambda z: 1e-4 * z.logsumexp(-1).square().mean(), "smoothing": None}[what]
    model = OwnLoss(extra, dtype=dtype, zero=zero, smoothing=1e-3 if what == "smoothing" else 0.0)
    assert resolve_loss(model, labelled(dtype)).form is None


def test_no_gauss_newton_matrix_of_a_loss_with_a_penalty():
    r = curvature(OwnLoss(lambda z: 2e-4 * z.square().mean()), labelled(), k=2, probes=1, steps=20, progress=False)
    assert r.ggn_top is None and any("GGN skipped: loss 'model': only the model computes it" in note for note in r.notes)
    assert curvature(OwnLoss(), labelled(), k=2, probes=1, steps=20, progress=False).ggn_top is not None


FORMS = [
    (nn.CrossEntropyLoss(), Y, "cross_entropy"),
    (F.cross_entropy, Y, "cross_entropy"),
    (nn.MSELoss(), torch.randn(20, 3, generator=G, dtype=torch.float64), "mse"),
    (nn.BCEWithLogitsLoss(), (X[:, :3] > 0).double(), "bce"),
    (nn.CrossEntropyLoss(label_smoothing=0.1), Y, None),
    (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)), Y, None),
    (nn.CrossEntropyLoss(ignore_index=1), Y, None),
    (nn.CrossEntropyLoss(), torch.softmax(X[:, :3], dim=1), None),
    (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)), (X[:, :3] > 0).double(), None),
    (nn.HuberLoss(), X[:, :3], None),
]


@pytest.mark.parametrize("fn, targets, form", FORMS)
def test_torchs_losses_in_closed_form(fn, targets, form):
    model = mlp((5, 4, 3))
    parts = [(X[:13], targets[:13]), (X[13:], targets[13:])]
    for how in ({"loss": fn}, {"loss_fn": fn}):
        loss = resolve_loss(model, Batches(parts), **how)
        assert loss.form == form and loss.name == getattr(fn, "__name__", type(fn).__name__)
    if getattr(fn, "weight", None) is None:  # the dense matrices are those of the mean over all samples
        want = dense_ggn(model, lambda z: fn(z, targets), X)
        assert np.abs(GGN(model, parts, fn) @ np.eye(len(want)) - want).max() <= 1e-12 * np.abs(want).max()
        want = dense_hessian(model, lambda z: fn(z, targets), X)
        assert np.abs(Hessian(model, parts, fn) @ np.eye(len(want)) - want).max() <= 1e-12 * np.abs(want).max()


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_loss_that_broadcasts_keeps_its_own_hessian():
    """(N, 1) against (N,) makes an (N, N) array of MSELoss: what the caller computes is what is analysed."""
    model, t = mlp((5, 1)), torch.randn(20, generator=G, dtype=torch.float64)
    loss = resolve_loss(model, Batches([(X, t)]), loss_fn=nn.MSELoss())
    assert loss.form is None
    want = dense_ggn(model, lambda z: F.mse_loss(z, t), X)
    assert np.abs(GGN(model, [(X, t)], nn.MSELoss()) @ np.eye(6) - want).max() <= 1e-12 * np.abs(want).max()


def test_elements_weigh_where_a_mean_is_over_elements():
    """Batches of sequences of different lengths: MSELoss is a mean over numbers, not over samples."""
    model = nn.Linear(5, 1).double()
    x = torch.randn(6, 4, 5, generator=G, dtype=torch.float64)
    t = torch.randn(6, 4, 1, generator=G, dtype=torch.float64)
    batches = Batches([(x[:2], t[:2]), (x[2:, :1], t[2:, :1])])
    assert resolve_loss(model, batches, nn.MSELoss()).weights(batches) == [8 / 12, 4 / 12]
