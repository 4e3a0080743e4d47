"""Collapse by depth: the numbers of every layer are those of the layer by itself; what has none says why."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from spectral_fast.collapse import neural_collapse

SHARED = ("nc1", "nc1_rank", "cdnv", "nc2_norms", "nc2_angles", "nc2_etf", "nc3", "spread", "feature_dim", "etf_exists")


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(inplace=True), nn.Linear(20, 9), nn.Tanh(), nn.Linear(9, 4))


def data(n: int = 240, dim: int = 6, n_classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    y = torch.arange(n) % n_classes
    return torch.randn(n, dim) + 2.0 * torch.eye(n_classes, dim)[y], y


def split(x: torch.Tensor, y: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def close(a: object, b: object, rel: float = 1e-9) -> None:
    for name in SHARED:
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=rel, abs=1e-12, nan_ok=True), name


def test_every_layer_is_what_it_is_alone() -> None:
    net, (x, y) = mlp(), data()
    whole = neural_collapse(net, split(x, y, 50), layers="*")
    assert list(whole.by_layer) == ["0", "1", "2", "3", "4"] and whole.skipped == ()
    plain = neural_collapse(net, split(x, y, 50))
    assert (whole.nc1, whole.nc3, whole.nc4, whole.accuracy) == (plain.nc1, plain.nc3, plain.nc4, plain.accuracy) and plain.by_layer == {}
    close(whole.by_layer["4"], whole)
    assert math.isfinite(whole.by_layer["4"].nc3) and math.isnan(whole.by_layer["2"].nc3)
    for name in ("0", "2", "3"):
        close(whole.by_layer[name], neural_collapse(net, split(x, y, 50), layer=name))


def test_inputs_are_taken_before_they_are_changed_in_place() -> None:
    net, (x, y) = mlp(), data()
    made = neural_collapse(net, [(x, y)], layers=["1", "2"])
    with torch.no_grad():
        before = net[0](x).double().numpy()
    for name, h in (("1", before), ("2", np.maximum(before, 0.0))):
        evals = np.linalg.eigvalsh(np.cov(h.T, bias=True))[::-1]
        layer = made.by_layer[name]
        # products of float32 features in float64: covariance to a few eps of its largest value
        assert np.abs(layer.eigenvalues - np.maximum(evals, 0.0)).max() <= 1e-13 * evals[0]
        q = evals[evals > 0] / evals.sum()
        assert layer.effective_rank == pytest.approx(math.exp(-(q * np.log(q)).sum()), rel=1e-9)
    assert made.by_layer["1"].spread != made.by_layer["2"].spread


class _Net(nn.Module):
    """A conv net with a block that adds in place, a container around its classifier, a layer that is called twice and one that is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.twice = nn.Tanh()
        self.flat = nn.Flatten()
        self.never = nn.Linear(2, 2)
        self.head = nn.Sequential(nn.Linear(8 * 16, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv(x)
        h += 1.0
        h = self.twice(self.twice(self.norm(h)))
        return self.head(self.flat(h))  # type: ignore[no-any-return]


def test_images_are_averaged_and_what_has_no_numbers_says_why() -> None:
    torch.manual_seed(0)
    net, y = _Net(), torch.arange(60) % 3
    x = torch.randn(60, 3, 4, 4) + y[:, None, None, None]
    made = neural_collapse(net, [(x, y)], layers=["*"])
    assert list(made.by_layer) == ["conv", "norm", "flat", "head.0"]
    assert {s.name: s.reason for s in made.skipped} == {"twice": "it is called several times in one forward pass", "never": "it was not called"}
    assert any("head = head.0" in note for note in made.notes)
    assert [made.by_layer[n].feature_dim for n in made.by_layer] == [3, 8, 8, 128]
    channels = neural_collapse(nn.Sequential(nn.Linear(3, 3)), [(x.mean((2, 3)), y)])
    for name in ("nc1", "cdnv", "nc2_etf", "spread"):
        assert getattr(made.by_layer["conv"], name) == pytest.approx(getattr(channels, name), rel=1e-5), name
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_memory_is_shared_out_and_what_does_not_fit_is_listed() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 300), nn.ReLU(), nn.Linear(300, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(90, 4), torch.arange(90) % 3
    made = neural_collapse(net, [(x, y)], layers="*", max_memory=40_000)
    assert list(made.by_layer) == ["0", "3", "4"]
    assert [s.name for s in made.skipped] == ["1", "2"] and all("needs 0.00" in s.reason and "max_memory" in s.reason for s in made.skipped)
    close(made.by_layer["3"], neural_collapse(net, [(x, y)], layers="3").by_layer["3"])


def test_language_models_by_position_and_ids_without_numbers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(7, 12), nn.Linear(12, 10), nn.LayerNorm(10), nn.Linear(10, 7))
    ids = torch.randint(0, 7, (30, 11))
    y = (ids + 1) % 7
    y[:, :4] = -100
    made = neural_collapse(net, [(ids[:17], y[:17]), (ids[17:], y[17:])], layers="*")
    assert list(made.by_layer) == ["1", "2", "3"] and made.n_samples == 30 * 7
    assert made.skipped[0].name == "0" and "not floating point (int64)" in made.skipped[0].reason
    close(made.by_layer["2"], neural_collapse(net, [(ids[:17], y[:17]), (ids[17:], y[17:])], layer="2"))
    # sequences with one target each are averaged over their positions
    pooled = nn.Sequential(nn.LayerNorm(6), nn.Flatten(), nn.Linear(30, 3))
    x, labels = torch.randn(60, 5, 6), torch.arange(60) % 3
    assert neural_collapse(pooled, [(x, labels)], layers="*").by_layer["0"].feature_dim == 6


def test_not_finite_and_bad_globs() -> None:
    class Spoils(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / x.abs().amin(dim=0, keepdim=True).mul(0.0)

    class Mends(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sign(x)

    torch.manual_seed(0)
    net, (x, y) = nn.Sequential(nn.Linear(6, 5), Spoils(), Mends(), nn.Linear(5, 4)), data()
    made = neural_collapse(net, [(x, y)], layers=["1", "2"])
    assert made.status == "ok" and list(made.by_layer) == ["1", "3"]
    assert made.skipped[0].reason == "failed: its input holds NaN or Inf in batch 0"
    with pytest.raises(ValueError, match="layers: 'block.\\*' matches no module; there are: 0, 1, 2, 3"):
        neural_collapse(net, [(x, y)], layers=["0", "block.*"])
    for wrong in (3, [], [nn.Linear]):
        with pytest.raises(TypeError, match="layers"):
            neural_collapse(net, [(x, y)], layers=wrong)  # type: ignore[arg-type]


def test_collapsed_dimensions_show_and_everything_is_kept() -> None:
    torch.manual_seed(0)
    narrow = nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 32), nn.Linear(32, 4))
    x, y = data()
    made = neural_collapse(narrow, split(x, y, 64), layers="*")
    assert made.by_layer["2"].effective_rank <= 2.0 + 1e-6 < made.by_layer["0"].effective_rank
    kept = json.loads(made.to_json())
    assert set(kept["by_layer"]) == {"0", "1", "2"} and len(kept["by_layer"]["2"]["eigenvalues"]) == 32
    text = made.summary()
    assert "by layer" in text and "effective rank" in text and all(len(line) <= 120 for line in text.splitlines())
    assert "by layer" in made._repr_html_() and made.plot() is not None
    frame = made.to_pandas()
    assert set(frame["layer"]) == {"", "0", "1", "2"}


def nearest_by_hand(h: np.ndarray, y: np.ndarray, about: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
    """The class whose mean, of ``about`` (features, labels) or of these, is nearest to each row."""
    features, labels = about or (h, y)
    means = np.stack([features[labels == c].mean(axis=0) for c in range(labels.max() + 1)])
    return np.asarray(np.square(h[:, None] - means[None]).sum(axis=2).argmin(axis=1))


@pytest.mark.parametrize("max_memory", [None, 120_000], ids=["kept", "second pass"])
def test_nearest_means_of_every_layer(max_memory: float | None) -> None:
    net, (x, y) = mlp(), data()
    y[::17] = -100
    found = neural_collapse(net, split(x, y, 50), layers="*", max_memory=max_memory)
    assert any("second forward pass" in note for note in found.notes) == (max_memory is not None)
    with torch.no_grad():
        decided = net(x).argmax(dim=1).numpy()
        inputs = {name: net[: int(name)](x).double().numpy() for name in ("0", "2", "3", "4")}
    valid = y.numpy() >= 0
    for name, h in inputs.items():
        nearest = nearest_by_hand(h[valid], y.numpy()[valid])
        layer = found.by_layer[name]
        assert layer.nc4 == np.mean(nearest != decided[valid]) and layer.ncc_accuracy == np.mean(nearest == y.numpy()[valid])
    assert (found.nc4, found.ncc_accuracy) == (found.by_layer["4"].nc4, found.by_layer["4"].ncc_accuracy)
    assert 0.0 < found.by_layer["0"].ncc_accuracy < 1.0


def test_train_against_test() -> None:
    net, (x, y) = mlp(), data()
    torch.manual_seed(5)
    other, labels = x[:90] + 1.5 * torch.randn(90, 6), y[:90]
    found = neural_collapse(net, split(x, y, 50), test_loader=split(other, labels, 40), layers="*")
    alone, test = neural_collapse(net, split(x, y, 50), layers="*"), neural_collapse(net, split(other, labels, 40), layers="*")
    assert found.test is not None and found.test.test is None and math.isnan(found.nc4_train)
    close(found, alone)
    close(found.test, test)
    assert (found.nc4, found.test.nc4, found.test.n_samples) == (alone.nc4, test.nc4, 90)
    with torch.no_grad():
        before, after = (net[:4](t).double().numpy() for t in (x, other))
        decided = net(other).argmax(dim=1).numpy()
    nearest = nearest_by_hand(after, labels.numpy(), (before, y.numpy()))
    assert found.test.nc4_train == np.mean(nearest != decided) and found.test.ncc_accuracy_train == np.mean(nearest == labels.numpy())
    assert found.test.nc4_train != found.test.nc4
    text = found.summary()
    assert "90 samples, accuracy" in text and "nearest right" in text
    assert json.loads(found.to_json())["test"]["n_samples"] == 90


def test_test_samples_without_numbers_say_why() -> None:
    net, (x, y) = mlp(), data()
    found = neural_collapse(net, [(x, y)], test_loader=[(x, y.double())])
    assert found.status == "ok" and found.test is not None and found.test.status == "skipped" and "integer class targets" in found.test.reason
    assert "skipped" in found.summary()


def test_a_model_that_is_one_layer_with_test_samples() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(30, 6), torch.arange(30) % 4
    r = neural_collapse(nn.Linear(6, 4), [(x[:20], y[:20])], test_loader=[(x[20:], y[20:])])
    assert r.status == "ok" and r.test is not None and r.test.status == "ok"


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_an_interrupt_is_told_and_ends_everything(at: int) -> None:
    """at: of two batches to look at, then two of test_loader."""
    torch.manual_seed(0)
    x, y = torch.randn(30, 6), torch.arange(30) % 4
    model, calls = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)), 0

    def press(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == at + 1:  # one is made to find the classifier
            raise KeyboardInterrupt

    model.register_forward_pre_hook(press)
    batches = [(x[:15], y[:15]), (x[15:], y[15:])]
    r = neural_collapse(model, batches, test_loader=batches)
    assert r.status == "incomplete" and "interrupted" in r.reason
    assert calls == at + 1 and (r.test is None) == (at <= 2)
    assert (at > 1) == bool(np.isfinite(r.nc1))


def test_classes_that_are_not_trained_on_are_told_of() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 6), torch.arange(40) % 4
    train = [(x[y < 3], y[y < 3])]
    r = neural_collapse(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)), train, test_loader=[(x, y)])
    assert r.test is not None and any("10 samples are of classes without samples in loader" in note for note in r.test.notes)


def test_outputs_without_numbers_decide_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    with torch.no_grad():
        model[2].weight[1, 0] = math.nan
    r = neural_collapse(model, [(torch.randn(30, 6), torch.arange(30) % 4)])
    assert r.status == "failed" and "the model's output holds NaN in batch 0" in r.reason


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["a", "b"] * 15, "of str (number the classes from 0)"),
        (np.array(["a", "b"] * 15), "ndarray of str (number the classes from 0)"),
        (torch.eye(30, 4), "float32 (class indices as integers"),
        (None, "none: the loader yields no targets"),
    ],
    ids=["list", "array", "one-hot", "none"],
)
def test_targets_that_are_no_classes_say_what_to_do(targets: object, words: str) -> None:
    r = neural_collapse(nn.Linear(6, 4), [(torch.randn(30, 6), targets)])
    assert r.status == "skipped" and words in r.reason


def test_the_table_has_the_nc4_of_the_trained_means_for_test_samples() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(80, 6), torch.arange(80) % 4
    x[40:] += torch.randn(6)
    r = neural_collapse(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)), [(x[:40], y[:40])], test_loader=[(x[40:], y[40:])])
    assert r.test is not None and r.test.nc4_train != r.test.nc4
    line = next(line for line in r.summary().splitlines() if line.strip().startswith("NC4"))
    assert float(line.split()[2]) == pytest.approx(r.test.nc4_train, rel=1e-3)
