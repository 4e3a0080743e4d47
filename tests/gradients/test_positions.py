"""unit="position": against the gradients of a model in which every position has parameters of its own, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import spectral_fast as sf
from spectral_fast.gradients import GradientCovariance

F64 = NDArray[np.float64]
T, D, V, C = 5, 6, 11, 5  # as many positions as classes: sizes do not tell them apart


class Reader(nn.Module):
    """Tokens mixed over positions; a table of places, learned places, norms and biases, a layer used twice. own: parameters (T, ...) of each position."""

    def __init__(self, time_first: bool = False) -> None:
        super().__init__()
        self.table, self.places, self.place = nn.Embedding(V, D, padding_idx=0), nn.Embedding(T + 2, D), nn.Parameter(torch.randn(1, T, D))
        self.mix, self.norm, self.out = nn.Linear(D, D), nn.LayerNorm(D), nn.Linear(D, C)
        self.gain = nn.Parameter(torch.rand(D))
        self.time_first = time_first

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.table(tokens) + self.places(torch.arange(1, T + 1)) + self.place
        if self.time_first:
            h = h.transpose(0, 1)
        h = torch.tanh(self.mix(h)).cumsum(0 if self.time_first else 1) / 2
        h = self.norm(self.mix(h)) * (1.0 + self.gain)
        h = self.out(h)
        return (h.transpose(0, 1) if self.time_first else h).transpose(1, 2)

    def apart(self, own: dict[str, Tensor], tokens: Tensor) -> Tensor:
        def mix(h: Tensor) -> Tensor:
            return torch.einsum("ntd,ted->nte", h, own["mix.weight"]) + own["mix.bias"]

        at = torch.arange(T)
        known = (tokens != 0)[..., None]
        h = own["table.weight"][at, tokens] * known + own["places.weight"][at, at + 1] + own["place"][at, 0, at]
        h = mix(torch.tanh(mix(h)).cumsum(1) / 2)
        h = F.layer_norm(h, (D,)) * own["norm.weight"] + own["norm.bias"]
        h = h * (1.0 + own["gain"])
        return (torch.einsum("ntd,tcd->ntc", h, own["out.weight"]) + own["out.bias"]).transpose(1, 2)


def case(time_first: bool = False) -> tuple[Reader, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = Reader(time_first).double()
    tokens, labels = torch.randint(0, V, (13, T)), torch.randint(0, C, (13, T))
    labels[2, 1:] = -100  # one valid position: a small weight
    labels[7] = -100  # none
    return model, [(tokens[:6], labels[:6]), (tokens[6:], labels[6:])]


def materialized(model: Reader, batches: list[tuple[Tensor, Tensor]]) -> tuple[F64, F64]:
    """(T g_nt (N T, P), their weights (N T,))."""
    rows, weights = [], []
    parameters = dict(model.named_parameters())
    for tokens, labels in batches:
        for x, y in zip(tokens, labels, strict=True):
            valid = int((y != -100).sum())
            if valid == 0:
                continue
            own = {name: p.detach().expand(T, *p.shape).clone().requires_grad_() for name, p in parameters.items()}
            loss = F.cross_entropy(model.apart(own, x[None]), y[None])
            torch.testing.assert_close(loss, F.cross_entropy(model(x[None]), y[None]))
            grads = torch.autograd.grad(loss, list(own.values()))
            rows.append(T * torch.cat([g.reshape(T, -1) for g in grads], 1).numpy())
            weights.append(np.full(T, valid / T))
    w = np.concatenate(weights)
    return np.concatenate(rows), w / w.sum()


@pytest.mark.parametrize("graph_memory", [None, 0], ids=["kept", "computed again"])
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("time_first", [False, True])
def test_against_parameters_of_every_position(time_first: bool, centered: bool, graph_memory: float | None) -> None:
    model, batches = case(time_first)
    g, w = materialized(model, batches)
    op = GradientCovariance(model, batches, centered=centered, unit="position")
    op.graph_memory = graph_memory
    op.release()
    assert op.n_units == len(g) == 12 * T
    if centered:
        g = g - w @ g
    want = (g.T * w) @ g / (1.0 - float(w @ w) if centered else 1.0)
    v = np.random.default_rng(1).standard_normal((op.shape[0], 3))
    assert np.abs(op @ v - want @ v).max() <= 1e-12 * np.abs(want @ v).max()
    assert ("kept" in op.strategy) == (graph_memory is None)
    top = np.linalg.eigvalsh(want)[::-1][:3]
    np.testing.assert_allclose(sf.eigsh(op, 3, tol=1e-9).values, top, rtol=1e-8)
    # the parts add up to the gradient
    np.testing.assert_allclose(op.mean_gradient().numpy(), sf.GradientCovariance(model, batches).mean_gradient().numpy(), rtol=1e-12)


def test_one_position_is_the_sample() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    loader = (torch.randn(20, 7).double(), torch.randint(0, 3, (20,)))
    v = np.random.default_rng(0).standard_normal(69)
    np.testing.assert_allclose(GradientCovariance(model, loader, unit="position") @ v, GradientCovariance(model, loader) @ v, rtol=1e-11, atol=1e-14)


def test_float32_attention() -> None:
    """A transformer's layer: no oracle, but the sum of the parts is checked inside, and the products are symmetric."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.Embedding(9, 8), layer, nn.Linear(8, 9))
    x = torch.randint(0, 9, (12, 7))
    op = GradientCovariance(model, [(x, x)], unit="position", loss_fn=tagging)
    a, b = np.random.default_rng(0).standard_normal((2, op.shape[0])).astype(np.float32)
    assert abs(a @ (op @ b) - b @ (op @ a)) <= 1e-4 * abs(a @ (op @ a))
    assert op.n_units == 84


def mixed() -> nn.Module:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.body(x)).mean(1))  # type: ignore[no-any-return]

    return Pooled()


class Biased(nn.Module):
    """A bias after the positions are pooled, of as many numbers as would do for one at each."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.bias = nn.Linear(6, 4, bias=False), nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x)).mean(1) + self.bias


def test_layers_as_wide_as_there_are_positions_are_told_of() -> None:
    model, batches = case()
    assert any("as many as out.weight is wide" in note for note in GradientCovariance(model, batches, unit="position").notes)
    torch.manual_seed(0)
    plain = GradientCovariance(nn.Linear(4, 3), [(torch.randn(6, 2, 4), torch.randint(0, 3, (6, 2)))], unit="position", loss_fn=tagging)
    assert not any("is wide" in note for note in plain.notes)


def tagging(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z.transpose(1, 2), y)


@pytest.mark.parametrize(
    ("make", "x", "words"),
    [
        (Biased, torch.randn(8, 2, 6), "what of bias belongs to which of 2 positions"),
        (mixed, torch.randn(8, 4, 6), "positions, .* all layers need the same ones"),
        (lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(9, 3)), torch.randn(8, 2, 4), "is a convolution's"),
    ],
    ids=["bias", "pooled", "convolution"],
)
def test_positions_that_differ_are_refused(make: Any, x: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=f"^unit: 'position': .*{words}"):
        GradientCovariance(make(), [(x, torch.randint(0, 3, (8,)))], unit="position")


class Moved(nn.Module):
    """Linear layers at every place of an image, with something between them that puts places in another order and back."""

    def __init__(self, move: Any) -> None:
        super().__init__()
        self.first, self.second, self.out, self.move = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3), move

    def forward(self, x: Tensor) -> Tensor:
        h = self.move(self.second(self.move(torch.tanh(self.first(x)))))
        return self.out(torch.tanh(h)).flatten(1, -2)  # type: ignore[no-any-return]


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize(
    "move",
    [lambda h: h.transpose(1, 2), lambda h: torch.flip(h, (1,)), lambda h: h.roll(2, 1), lambda h: torch.permute(h, (0, 2, 1, 3)), lambda h: h],
    ids=["transpose", "flip", "roll", "permute", "as it is"],
)
def test_positions_that_are_put_in_another_order_are_refused(move: Any, flat: bool, request: pytest.FixtureRequest) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(7, 4, 4, 4), torch.randint(0, 3, (7, 16))
    model = Moved(move)
    kind = request.node.callspec.id
    if flat and ("flip" in kind or "roll" in kind):
        x = x.flatten(1, 2)
    if "as it is" in kind:
        assert GradientCovariance(model, [(x, y)], unit="position", loss_fn=tagging).n_units == 7 * 16
        return
    with pytest.raises(ValueError, match="^unit: 'position': "):
        GradientCovariance(model, [(x, y)], unit="position", loss_fn=tagging)


def test_windows_are_refused() -> None:
    def windows(h: Tensor) -> Tensor:
        n, height, width, d = h.shape
        return h.view(n, height // 2, 2, width // 2, 2, d).permute(0, 1, 3, 2, 4, 5).reshape(n, height, width, d)

    with pytest.raises(ValueError, match="^unit: 'position': the model permutes tensors of 6 dimensions"):
        GradientCovariance(Moved(windows), [(torch.randn(7, 4, 4, 4), torch.randint(0, 3, (7, 16)))], unit="position", loss_fn=tagging)


def test_a_layout_that_was_not_certain_is_refused_once_it_matters() -> None:
    class Gated(nn.Module):
        """As many samples as times, time first, and gradients of zero for the samples that are looked at."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, gated: Tensor) -> Tensor:
            x, gate = gated[..., :4], gated[..., 4:]
            h = torch.tanh(self.body(x.transpose(0, 1))).transpose(0, 1)
            return self.out(x + gate * h)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    probed = {round(k * 7 / 3) for k in range(4)}
    gate = torch.tensor([0.0 if i in probed else 1.0 for i in range(8)])
    batch = torch.cat([torch.randn(8, 8, 4), gate[:, None, None].expand(8, 8, 1)], -1), torch.randint(0, 3, (8, 8))
    with pytest.raises(ValueError, match="^unit: 'position': whose positions lie where is not certain in the layer of body.weight"):
        GradientCovariance(Gated(), [batch], unit="position", loss_fn=tagging)


def test_a_tied_weight_used_after_pooling_is_refused() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.tanh(self.layer(x)).mean(1))  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match="^unit: 'position': layer.weight has"):
        GradientCovariance(Tied(), [(torch.randn(9, 5, 6), torch.randint(0, 6, (9,)))], "cross_entropy", unit="position")


def test_what_a_user_should_know_is_noted() -> None:
    model, batches = case()
    padded = [(F.pad(x, (0, 0)), y) for x, y in batches]
    assert any("positions of a batch have no part" in note for note in GradientCovariance(model, padded, unit="position").notes)
    torch.manual_seed(0)
    one = GradientCovariance(nn.Linear(7, 3), [(torch.randn(9, 7), torch.randint(0, 3, (9,)))], "cross_entropy", unit="position")
    assert any("the same as unit='sample'" in note for note in one.notes)
