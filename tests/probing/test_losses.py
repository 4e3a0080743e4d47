from __future__ import annotations

import numpy as np
import pytest
import torch
from tolerances import tolerance
from torch import nn
from torch.nn import functional as F

from spectral_fast.probing import Batch, Batches, Loss, resolve_loss

G = torch.Generator().manual_seed(0)
Z = torch.randn(6, 4, generator=G, dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 3, 1, 0])


def batch(targets, outputs=Z):
    return Batch(outputs, targets, len(outputs))


@pytest.mark.parametrize(
    "targets, name", [(Y, "cross_entropy"), (Y.int(), "cross_entropy"), (Y.to(torch.uint8), "cross_entropy"), (Z, "mse"), (Z.float(), "mse")]
)
def test_guess_by_dtype(targets, name):
    assert resolve_loss(nn.Identity(), Batches([(Z, targets)])).name == name


def test_what_cannot_be_guessed_lists_the_choices():
    with pytest.raises(ValueError, match="cross_entropy.*mse.*bce.*loss_fn"):
        resolve_loss(nn.Identity(), Batches([(Z, Y > 0)]))


def test_no_targets_at_all_are_the_loaders_fault():
    with pytest.raises(ValueError, match="^loader: yields no targets.*unpack= or loss_fn="):
        resolve_loss(nn.Identity(), Batches([Z]))


def test_wrong_choices():
    batches = Batches([(Z, Y)])
    with pytest.raises(ValueError, match="loss.*hinge"):
        resolve_loss(nn.Identity(), batches, "hinge")
    with pytest.raises(ValueError, match="not both"):
        resolve_loss(nn.Identity(), batches, "mse", F.mse_loss)
    with pytest.raises(ValueError, match="reduction"):
        resolve_loss(nn.Identity(), batches, loss_fn=nn.CrossEntropyLoss(reduction="sum"))
    with pytest.raises(ValueError, match="scalar"):
        resolve_loss(nn.Identity(), batches, loss_fn=lambda z, y: z).of_outputs(Z, Y)


@pytest.mark.parametrize("sizes", [(6,), (4, 2), (1, 5)])
def test_ragged_batches_weigh_valid_terms(sizes):
    targets = Y.clone()
    targets[4] = -100
    batches = Batches([(z, t) for z, t in zip(Z.split(sizes), targets.split(sizes), strict=True)])
    loss = resolve_loss(nn.Identity(), batches)
    total = sum(w * loss.batch(nn.Identity(), b) for w, b in zip(loss.weights(batches), batches, strict=True) if w)
    assert abs(total - F.cross_entropy(Z, targets)) <= tolerance(np.float64, 24)


def test_class_weights_weigh_terms():
    fn = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=torch.float64), label_smoothing=0.1)
    batches = Batches([(Z[:5], Y[:5]), (Z[5:], Y[5:])])
    loss = resolve_loss(nn.Identity(), batches, loss_fn=fn)
    total = sum(w * loss.batch(nn.Identity(), b) for w, b in zip(loss.weights(batches), batches, strict=True))
    assert abs(total - fn(Z, Y)) <= tolerance(np.float64, 24)


@pytest.mark.parametrize(
    "fn",
    [
        nn.NLLLoss(),
        nn.NLLLoss(ignore_index=2),
        nn.NLLLoss(weight=torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=torch.float64)),
        nn.CrossEntropyLoss(ignore_index=1, weight=torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=torch.float64)),
        F.nll_loss,
        F.cross_entropy,
    ],
)
def test_torchs_own_losses_weigh_valid_targets(fn):
    z = torch.log_softmax(torch.randn(20, 4, generator=G, dtype=torch.float64), dim=1)
    t = torch.arange(20) % 4
    if getattr(fn, "ignore_index", -100) == -100:
        t[1:10] = -100  # 1 valid target in the first batch, 10 in the second
    batches = Batches([(z[:10], t[:10]), (z[10:], t[10:])])
    loss = resolve_loss(nn.Identity(), batches, loss_fn=fn)
    weights = loss.weights(batches)
    if isinstance(fn, nn.NLLLoss) and fn.weight is None and fn.ignore_index == -100:
        assert weights == [1 / 11, 10 / 11]
    total = sum(w * loss.batch(nn.Identity(), b) for w, b in zip(weights, batches, strict=True))
    assert abs(total - fn(z, t)) <= tolerance(np.float64, 80) and loss.note(batches) == ""


def test_class_probabilities_weigh_samples_and_positions():
    z, t = (torch.softmax(torch.randn(6, 3, 5, generator=G, dtype=torch.float64), dim=1) for _ in range(2))
    fn = nn.CrossEntropyLoss()
    batches = Batches([(z[:4], t[:4]), (z[4:, :, :2], t[4:, :, :2])])
    loss = resolve_loss(nn.Identity(), batches, loss_fn=fn)
    assert loss.weights(batches) == [20 / 24, 4 / 24]


def test_a_guess_about_ignored_targets_is_noted():
    t = Y.clone()
    t[0] = -100
    own = resolve_loss(nn.Identity(), Batches([(Z, t)]), loss_fn=lambda z, y: F.cross_entropy(z, y))
    assert "1 targets are -100" in own.note(Batches([(Z, t)])) and "guess" in own.note(Batches([(Z, t)]))
    assert own.note(Batches([(Z, Y)])) == "" and own.note(Batches([(Z, Z)])) == "" and Loss("cross_entropy").note(Batches([(Z, t)])) == ""
    model = nn.Linear(4, 4).double()
    from spectral_fast.curvature import Hessian
    from spectral_fast.gradients import gradient_covariance

    for notes in (Hessian(model, (Z, t), own).notes, gradient_covariance(model, (Z, t), own).notes):
        assert any("guess" in note for note in notes)


@pytest.mark.parametrize("targets", [torch.rand(6) * 2.9, torch.rand(6, 4)])
def test_floating_targets_are_no_classes(targets):
    with pytest.raises(ValueError, match=r"integer class targets, got float32.*long\(\).*CrossEntropyLoss.*mse"):
        resolve_loss(nn.Identity(), Batches([(Z, targets)]), "cross_entropy")
    for use in (Loss("cross_entropy").of_outputs, lambda z, t: Loss("cross_entropy").output_hessian(z, t, z)):
        with pytest.raises(ValueError, match="integer class targets"):
            use(Z, targets)


@pytest.mark.parametrize(
    "z, t", [(Z[:, :1], Y), (Z[:, 0], Y), (Z[:, :1], Y[:, None]), (Z[:, None, :], Y[:, None].expand(6, 4)), (Z[:, :, None], Y[:, None].expand(6, 4))]
)
def test_one_output_per_target_is_no_cross_entropy(z, t):
    with pytest.raises(ValueError, match="loss='bce'"):
        Loss("cross_entropy").of_outputs(z, t)


def test_one_position_is_not_one_class():
    assert torch.allclose(Loss("cross_entropy").of_outputs(Z[:, :, None], Y[:, None]), F.cross_entropy(Z, Y))


def test_layouts_of_sequence_outputs():
    z = torch.randn(2, 5, 7, generator=G, dtype=torch.float64)  # (batch, position, class)
    t = torch.randint(0, 7, (2, 5), generator=G)
    loss = Loss("cross_entropy")
    want = F.cross_entropy(z.reshape(10, 7), t.reshape(10))
    assert torch.allclose(loss.of_outputs(z, t), want) and torch.allclose(loss.of_outputs(z.movedim(-1, 1), t), want)
    with pytest.raises(ValueError, match="do not fit"):
        loss.of_outputs(z, t[:, :3])


def test_a_trailing_one_never_broadcasts():
    z, t = torch.arange(3.0)[:, None], torch.arange(3.0)
    assert Loss("mse").of_outputs(z, t) == 0
    with pytest.raises(ValueError, match="do not fit"):
        Loss("mse").of_outputs(z, torch.ones(4))


def autodiff_product(loss, z, targets, u):
    h = torch.autograd.functional.hessian(lambda x: loss.of_outputs(x, targets), z)
    return torch.einsum("ijkl,kl->ij", h, u)


TARGETS = {"cross_entropy": torch.tensor([0, -100, 2, 3, 1, 0]), "mse": Z.flip(0), "bce": (Z > 0).double()}


@pytest.mark.parametrize("name", TARGETS)
def test_closed_form_output_hessians(name):
    u = torch.randn(6, 4, generator=G, dtype=torch.float64)
    loss = Loss(name)
    want = autodiff_product(loss, Z, TARGETS[name], u)
    assert (loss.output_hessian(Z, TARGETS[name], u) - want).abs().max() <= tolerance(np.float64, 24)
    generic = Loss("callable", lambda z, t: loss.of_outputs(z, t))
    assert (generic.output_hessian(Z, TARGETS[name], u) - want).abs().max() <= tolerance(np.float64, 24)


def test_saturated_softmax_gives_no_noise():
    z = torch.tensor([[80.0, -80.0, -80.0]])
    u = torch.tensor([[1.0, 1.0, 1.0]])
    assert Loss("cross_entropy").output_hessian(z, torch.tensor([0]), u).abs().max() == 0


def test_linear_loss_has_zero_output_hessian():
    assert Loss("sum", lambda z, t: z.sum()).output_hessian(Z, Y, torch.ones_like(Z)).abs().max() == 0


@pytest.mark.parametrize("name", TARGETS)
def test_sample_is_the_loss_of_one(name):
    targets = Y if name == "cross_entropy" else TARGETS[name]
    loss = Loss(name)
    each = torch.func.vmap(loss.sample)(Z, targets)
    assert torch.allclose(each.mean(), loss.of_outputs(Z, targets))


class OwnLoss(nn.Module):
    """Behaves like a sequence model that takes labels and returns .loss and .logits."""

    def __init__(self, scale=1.0, shifted=False):
        super().__init__()
        self.lin = nn.Linear(3, 4).double()
        self.scale, self.shifted = scale, shifted

    def forward(self, x, labels=None):
        logits = self.lin(x)
        out = {"logits": logits}
        if labels is not None:
            z, t = (logits[:, :-1], labels[:, 1:]) if self.shifted else (logits, labels)
            out["loss"] = self.scale * F.cross_entropy(z.reshape(-1, 4), t.reshape(-1))
        return out


class TinyForCausalLM(OwnLoss):
    def __init__(self):
        super().__init__(shifted=True)


SEQ = {"x": torch.randn(2, 5, 3, generator=G, dtype=torch.float64), "labels": torch.tensor([[0, 1, 2, -100, 3], [1, 1, -100, -100, 0]])}


@pytest.mark.parametrize("model, terms, form", [(OwnLoss(), 7, "cross_entropy"), (TinyForCausalLM(), 5, "cross_entropy"), (OwnLoss(scale=2.0), 7, None)])
def test_the_models_own_loss(model, terms, form):
    batches = Batches([SEQ])
    loss = resolve_loss(model, batches)
    assert (loss.name, loss.form, loss.terms(batches[0])) == ("model", form, terms)
    outputs = model(**SEQ)
    assert torch.equal(loss.batch(model, batches[0]), outputs["loss"])
    if form is None:
        with pytest.raises(NotImplementedError, match="loss="):
            loss.of_outputs(outputs, SEQ["labels"])
    else:
        assert torch.allclose(loss.of_outputs(outputs, SEQ["labels"]), outputs["loss"])


def test_no_valid_target_is_an_error():
    batches = Batches([(Z, torch.full((6,), -100))])
    with pytest.raises(ValueError, match="no valid targets"):
        resolve_loss(nn.Identity(), batches).weights(batches)


def test_losses_that_add_up_are_refused():
    model = torch.nn.Linear(3, 2)
    batches = Batches((torch.randn(9, 3), torch.randn(9, 2)))
    with pytest.raises(ValueError, match="^loss_fn: wanted the mean over the batch; total adds up"):

        def total(o, t):
            return ((o - t) ** 2).sum()

        resolve_loss(model, batches, loss_fn=total)
    resolve_loss(model, batches, loss_fn=lambda o, t: ((o - t) ** 2).mean())
    resolve_loss(model, batches, loss_fn=lambda o, t: o.sum() * 0)


@pytest.mark.parametrize(
    "targets, loss",
    [
        (torch.tensor([0, 2, 1, -100]), "cross_entropy"),
        (torch.tensor([[0, -100, 2], [1, 1, 1], [-100, -100, -100], [2, -100, 0]]), "cross_entropy"),
        (torch.tensor([[0, -100, 2], [1, 1, 1], [-100, -100, -100], [2, -100, 0]]), nn.CrossEntropyLoss(ignore_index=1)),
        (torch.tensor([0, 2, 1, 1]), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.0]))),
        (torch.rand(4, 3), nn.CrossEntropyLoss()),
        (torch.rand(4, 3, 5), nn.CrossEntropyLoss()),
        (torch.rand(4, 3), "mse"),
        (torch.rand(4), "bce"),
        (torch.tensor([0, 2, 1, 1]), lambda o, t: o.mean()),
    ],
)
def test_terms_of_each_sample_are_those_of_it_alone(targets, loss):
    made = Loss(loss) if isinstance(loss, str) else Loss("own", loss)
    batch = Batch(None, targets, 4)
    alone = [made.terms(Batch(None, targets[i : i + 1], 1)) for i in range(4)]
    found = made.terms_of_each(batch)
    if found is None:
        assert getattr(loss, "weight", None) is not None
    else:
        assert found.tolist() == alone
