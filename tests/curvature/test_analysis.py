from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from problems import DictLoader, dense_ggn, dense_hessian, digits_like, mlp, train
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from spectral_fast.curvature import curvature
from spectral_fast.curvature.basis_plan import plan_basis

N_SAMPLES = 150
X, Y = (torch.from_numpy(a) for a in digits_like(N_SAMPLES, 64, 10, seed=3))


@pytest.fixture(scope="module")
def demo():
    """The demo's network (64-32-10, float64) after some training, its dense Hessian and GGN."""
    torch.manual_seed(0)
    model = train(mlp((64, 32, 10), dropout=0.2, activation="ReLU"), X, Y, steps=40).eval()
    loss = lambda z: F.cross_entropy(z, Y)  # noqa: E731
    h, g = dense_hessian(model, loss, X), dense_ggn(model, loss, X)
    return model.train(), np.linalg.eigvalsh((h + h.T) / 2)[::-1], np.linalg.eigvalsh((g + g.T) / 2)[::-1], h


def loaders():
    return {
        "shuffled": DataLoader(TensorDataset(X, Y), batch_size=64, shuffle=True),
        "ragged": [(X[:7], Y[:7]), (X[7:100], Y[7:100]), (X[100:], Y[100:])],
        "dict": DictLoader(X, Y, (64, 64, 22)),
        "arrays": (X.numpy(), Y.numpy()),
    }


@pytest.mark.parametrize("name", ["shuffled", "ragged", "dict", "arrays"])
def test_pairs_of_the_demo_net_against_the_dense_matrices(demo, name):
    """Acceptance row d."""
    model, hessian, ggn, _ = demo
    r = curvature(model, loaders()[name], k=10, k_bottom=3, tol=1e-7, probes=1, steps=32, progress=False)
    assert r.status == "ok" and r.reason == "" and r.n_params == 2410 and r.n_samples == N_SAMPLES
    largest = np.abs(hessian).max()
    assert np.abs(r.hessian_top.values - hessian[:10]).max() <= 1e-6 * largest
    assert np.abs(r.hessian_bottom.values - hessian[-3:]).max() <= 1e-6 * largest
    assert np.abs(r.ggn_top.values - ggn[:10]).max() <= 1e-6 * ggn[0]
    for part in (r.hessian_top, r.hessian_bottom, r.ggn_top):
        assert part.converged.all() and part.residuals.max() <= 1e-7 * part.scale


def test_default_accuracy_and_estimates(demo):
    model, hessian, ggn, dense = demo
    done = []
    r = curvature(model, (X, Y), progress=lambda *args: done.append(args))
    for part, want in ((r.hessian_top, hessian[:10]), (r.hessian_bottom, hessian[-3:]), (r.ggn_top, ggn[:10])):
        assert np.abs(part.values - want).max() <= 1e-3 * part.scale and part.converged.all()
    assert abs(r.trace.estimate - np.trace(dense)) < 5 * r.trace.stderr
    assert abs(r.density.frobenius - np.linalg.norm(dense)) < 5 * r.density.frobenius_stderr
    assert set(r.trace.by_layer) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    loss = F.cross_entropy(model.eval()(X), Y)
    model.train()
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    assert r.loss == pytest.approx(loss.item(), rel=1e-12)
    assert r.gradient_norm == pytest.approx(float(torch.cat([g.reshape(-1) for g in gradient]).norm()), rel=1e-10)
    assert r.loss_name == "cross_entropy" and "dropout" in " ".join(r.notes)
    # every product is reported, none is made twice: the eigensolver goes on where the probes end
    assert [d for d, _, _ in done] == list(range(1, r.products + 1)) and all(t >= d for d, t, _ in done)
    assert r.products == r.preflight.products + r.density.matvecs + r.hessian_top.matvecs + r.sampling.products + r.ggn_top.matvecs
    assert r.density.matvecs == 256 and r.hessian_top.matvecs <= 12
    json.dumps(r.to_dict(), allow_nan=False)


def test_float32_agrees_with_float64(demo):
    model, hessian, _, _ = demo
    single = mlp((64, 32, 10), dropout=0.2, activation="ReLU", dtype="float32")
    single.load_state_dict(model.state_dict())
    r = curvature(single, (X.float(), Y), probes=1, steps=32, progress=False)
    assert np.abs(r.hessian_top.values - hessian[:10]).max() <= 1e-3 * hessian[0] and r.status == "ok"
    assert "float32" in r.backend


@pytest.mark.parametrize("when", [1, 40, 68])
def test_an_interrupt_returns_what_is_done(demo, when):
    def interrupt(done, total, what):
        if done >= when:
            raise KeyboardInterrupt

    r = curvature(demo[0], (X, Y), k=3, k_bottom=1, probes=2, steps=30, progress=interrupt)
    assert r.status == "incomplete" and r.reason == "interrupted"
    assert np.isfinite(r.loss)
    # four products are the checks'; those of the probes tell of density and trace as soon as the first of them is there
    assert (r.density is not None) == (when > 4)
    assert r.density is None or r.density.probes == len(r.trace.samples) == 2
    assert (r.hessian_top is not None) == (when > 4)
    json.dumps(r.to_dict(), allow_nan=False)


@pytest.mark.parametrize("inside", ["Hessian", "GGN"])
def test_an_interrupt_keeps_the_eigenvalues_so_far(demo, inside):
    model, hessian, ggn, _ = demo
    seen = []

    def interrupt(done, total, what):
        seen.append(what)
        if what == inside and seen.count(inside) == (22 if inside == "Hessian" else 12):  # the Hessian's first 20 are those of the density
            raise KeyboardInterrupt

    r = curvature(model, (X, Y), k=8, k_bottom=1, tol=1e-9, probes=2, steps=10, progress=interrupt)
    part, exact = (r.hessian_top, hessian) if inside == "Hessian" else (r.ggn_top, ggn)
    assert (r.status, r.reason, part.status) == ("incomplete", "interrupted", "incomplete") and "interrupted after" in part.reason
    assert not part.converged.all() and np.array_equal(part.converged, part.residuals <= part.tol * part.scale)
    # an eigenvalue lies within the residual (Weinstein)
    assert max(np.abs(exact - value).min() - residual for value, residual in zip(part.values, part.residuals, strict=True)) <= 1e-9 * part.scale
    assert abs(part.values[0] - exact[0]) <= 1e-3 * exact[0]
    assert (r.ggn_top is None) == (inside == "Hessian") and r.hessian_bottom is not None
    if inside == "GGN":
        assert r.hessian_top.status == "ok" and r.hessian_top.converged.all()


def test_memory_is_kept_within_the_limit_and_said(demo):
    model, hessian, ggn, _ = demo
    whole = curvature(model, (X, Y), k=4, k_bottom=2, probes=1, steps=40, progress=False)
    full = plan_basis(2410, 4, 2, 1, 40, 2**40)
    assert not any("max_memory" in note for note in whole.notes)
    for share, words in ((0.8, ["float32"]), (0.2, ["float32", "rows instead of", "more products"])):
        r = curvature(model, (X, Y), k=4, k_bottom=2, probes=1, steps=40, max_memory=share * full.bytes + 1e6, progress=False)
        assert r.status == "ok" and all(any(word in note for note in r.notes) for word in words), r.notes
        for part, want in ((r.hessian_top, hessian[:4]), (r.hessian_bottom, hessian[-2:]), (r.ggn_top, ggn[:4])):
            assert np.abs(part.values - want).max() <= 1e-3 * part.scale and part.converged.all()
    none = curvature(model, (X, Y), max_memory=1e5, progress=False)
    assert none.status == "skipped" and "needs" in none.reason and "GB" in none.reason and none.hessian_top is None and none.products == 0
    json.dumps(none.to_dict(), allow_nan=False)
    with pytest.raises(ValueError, match="max_memory"):
        curvature(model, (X, Y), max_memory=0, progress=False)


def test_tiny_models_have_fewer_pairs_than_asked_for():
    model = mlp((2, 1), seed=1)
    x = X[:, :2]
    y = X[:, :1] * 0.5
    r = curvature(model, (x, y), progress=False)
    ones = torch.cat([x, torch.ones(N_SAMPLES, 1)], dim=1).numpy()
    exact = np.linalg.eigvalsh(2 * ones.T @ ones / N_SAMPLES)[::-1]
    assert r.loss_name == "mse"
    assert np.allclose(r.hessian_top.values, exact, rtol=1e-12) and np.allclose(r.hessian_bottom.values, exact, rtol=1e-12)
    assert np.allclose(r.ggn_top.values, exact, rtol=1e-12)


def test_nan_in_the_model_fails_with_the_reason():
    model = mlp((64, 4, 10))
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    r = curvature(model, (X, Y), progress=False)
    assert r.status == "failed" and "nan" in r.reason and r.hessian_top is None


def test_a_random_forward_pass_is_noted(demo):
    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = torch.nn.Linear(64, 10).double()

        def forward(self, x):
            return self.lin(F.dropout(x, 0.5, training=True))

    r = curvature(Noisy(), (X, Y), k=2, k_bottom=1, probes=1, steps=10, progress=False)
    assert r.status == "ok" and any("random in evaluation mode" in note for note in r.notes)
    # the generators are reset before every pass: Hessian and GGN of this linear model belong to the same draw
    assert np.allclose(r.hessian_top.values, r.ggn_top.values, rtol=2e-3)
    quiet = curvature(demo[0], (X, Y), k=2, k_bottom=1, probes=1, steps=10, progress=False)
    assert not any("random" in note for note in quiet.notes)


def test_budget_is_kept_and_reported(demo):
    r = curvature(demo[0], (X, Y), tol=1e-9, probes=1, steps=4, max_matvecs=30, progress=False)
    assert r.status == "incomplete" and "30 products" in r.reason
    assert r.hessian_top.matvecs <= 30 and r.ggn_top.matvecs <= 30 and r.hessian_top.status == "incomplete"


def test_a_loss_without_known_form_leaves_the_ggn_out():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = torch.nn.Linear(64, 3).double()

        def forward(self, x, labels=None):
            z = self.lin(x)
            return {"logits": z, "loss": z.square().mean() + 0.1 * z.exp().mean()}

    r = curvature(Own(), [{"x": X, "labels": Y}], k=2, k_bottom=0, probes=1, steps=10, progress=False)
    assert r.status == "ok" and r.ggn_top is None and any("GGN skipped" in note for note in r.notes)
    assert len(r.hessian_bottom) == 0


@pytest.mark.parametrize("bad", [{"k": 0}, {"k_bottom": -1}, {"probes": 0}, {"steps": 0}])
def test_bad_arguments(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        curvature(mlp((64, 10)), (X, Y), **bad)


def test_wrong_arguments_are_named_before_anything_is_computed(demo):
    for more, kind, match in (
        ({"tol": -1}, ValueError, "^tol: "),
        ({"tol": float("nan")}, ValueError, "^tol: "),
        ({"k": True}, ValueError, "^k: "),
        ({"steps": "3"}, ValueError, "^steps: "),
        ({"optimizer": "sgd"}, TypeError, "^optimizer: wanted a torch.optim optimizer, got str"),
    ):
        with pytest.raises(kind, match=match):
            curvature(demo[0], (X, Y), progress=False, **more)
    with pytest.raises(ValueError, match=r"class indices have to be integers"):
        curvature(demo[0], (X, Y.float()), progress=False)


def test_a_part_of_the_parameters_beside_the_optimizer_is_noted(demo):
    r = curvature(demo[0], (X, Y), params="*bias", k=2, k_bottom=0, probes=1, steps=4, progress=False, optimizer=torch.optim.SGD(demo[0].parameters(), lr=0.1))
    assert r.sharpness is not None and any("trainable parameters is compared" in note for note in r.notes)
