"""Collapsed features are named at the classifier they reach; fresh networks with data are left in peace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import spectral_fast as sf

N, CLASSES = 120, 10


class Transformer(nn.Module):
    """Eight tokens of eight numbers, two encoder layers, the mean over tokens through a pooler."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True) for _ in range(2))
        self.neck, self.act, self.head = nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x.reshape(-1, 8, 8))
        for layer in self.layers:
            h = layer(h)
        return self.head(self.act(self.neck(h.mean(dim=1))))


def mlp() -> nn.Module:
    hidden = [m for a, b in ((64, 128), (128, 96), (96, 64)) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(64, CLASSES))


def conv_net() -> nn.Module:
    convs = [m for a, b in ((1, 16), (16, 32)) for m in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *convs, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, CLASSES))


# family -> network, the layer before the features, the classifier
NETS = {"mlp": (mlp, "4", "6"), "conv": (conv_net, "7", "9"), "transformer": (Transformer, "neck", "head")}
INITS = {
    "default": lambda w: None,
    "kaiming normal": nn.init.kaiming_normal_,
    "kaiming uniform": nn.init.kaiming_uniform_,
    "xavier": nn.init.xavier_uniform_,
    "small": lambda w: nn.init.normal_(w, std=0.02),
    "orthogonal": nn.init.orthogonal_,
}
DATA = ("digits", "noise")


def data(name: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    if name == "noise":
        return torch.randn(N, 64, generator=g), torch.arange(N) % CLASSES
    sklearn = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    digits = sklearn.load_digits()
    chosen = torch.randperm(len(digits.target), generator=g)[:N]
    return torch.tensor(digits.data / 16.0, dtype=torch.float32)[chosen], torch.tensor(digits.target)[chosen]


def fresh(net: str, init: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = NETS[net][0]()
    for p in model.parameters():
        if p.ndim >= 2:
            INITS[init](p.data)
    return model


def plant(defect: str, neck: nn.Linear) -> None:
    """The layer before the features changed in place, so that they collapse as the defect says, up to a little noise."""
    w, b = neck.weight.data, neck.bias.data
    if defect == "one point":  # the weights have decayed, the biases are left
        w *= 1e-6
        b.copy_(torch.linspace(0.5, 1.5, len(b)))
    else:  # every unit is a copy of one of the first few
        few = {"one direction": 1, "three directions": 3}[defect]
        copy_of = torch.arange(len(w)) % few
        noise = 1e-3 * w.std() * torch.randn(w.shape)
        w.copy_(w[copy_of] + noise)
        # all copied units see most of the samples
        b.copy_(b[copy_of].abs() + 0.5 * w.norm(dim=1).mean())


DEFECTS = {"one point": "one point", "one direction": "dimensional collapse", "three directions": "dimensional collapse"}


def collapses(model: nn.Module, seed: int, kind: str) -> list[tuple[str, str]]:
    """(where, title) of what the features are said to suffer from, remarks left out."""
    found = sf.diagnose(model, data(kind, seed), include=("collapse",), progress=False)
    assert found.status == "ok", found.reason
    return [(f.where, f.title) for f in found.findings if f.severity != "info"]


def named(net: str, init: str, defect: str, seed: int, kind: str) -> bool:
    model = fresh(net, init, seed)
    plant(defect, model.get_submodule(NETS[net][1]))  # type: ignore[arg-type]
    found = collapses(model, seed, kind)
    return [w for w, _ in found] == [NETS[net][2]] and DEFECTS[defect] in found[0][1]


@pytest.mark.parametrize("net", NETS)
def test_fresh_networks_have_no_collapsed_features(net: str) -> None:
    for init in INITS:
        for kind in DATA:
            assert not any(collapses(fresh(net, init, seed), seed, kind) for seed in range(2)), (init, kind)


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("net", NETS)
def test_collapsed_features_are_named_at_the_classifier(net: str, defect: str) -> None:
    for init in ("default", "xavier"):
        for kind in DATA:
            assert named(net, init, defect, 0, kind), (init, kind)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("net", NETS)
def test_at_most_five_percent_of_100_fresh_networks_have_collapsed_features(net: str, init: str, kind: str) -> None:
    assert sum(bool(collapses(fresh(net, init, seed), seed, kind)) for seed in range(100)) <= 5


@pytest.mark.thorough
@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("net", NETS)
def test_collapsed_features_are_named_in_95_of_100(net: str, init: str, defect: str, kind: str) -> None:
    assert sum(named(net, init, defect, seed, kind) for seed in range(100)) >= 95


def test_trained_features_have_collapsed_to_their_means_and_no_further() -> None:
    """Neural collapse as measured: a network trained far beyond zero error is told so as a remark, and has all directions it needs."""
    torch.manual_seed(0)
    y = torch.arange(N) % 4
    x = 3 * torch.eye(4).repeat(1, 16)[y] + 0.3 * torch.randn(N, 64)
    model = mlp()
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        adam.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        adam.step()
    found = sf.diagnose(model, (x, y), include=("collapse",), progress=False)
    assert [(f.severity, f.where, f.title) for f in found.findings] == [("info", "6", "features have collapsed to their class means")]
    assert found.collapse is not None and found.collapse.nc1 < 0.1 and found.collapse.spread > 0.1


def test_spread_and_mean_values_against_the_features_themselves() -> None:
    model, (x, y) = fresh("mlp", "default", 0), data("noise", 0)
    c = sf.neural_collapse(model, (x, y))
    with torch.no_grad():
        h = model[:-1](x).double()  # type: ignore[index]
    means = torch.stack([h[y == k].mean(0) for k in range(CLASSES)])
    assert c.spread == pytest.approx(float(((h - h.mean(0)) ** 2).sum(1).mean().sqrt() / h.mean(0).norm()), rel=1e-12)
    torch.testing.assert_close(torch.tensor(c.mean_values), torch.linalg.svdvals(means - means.mean(0)), rtol=1e-10, atol=1e-14)
