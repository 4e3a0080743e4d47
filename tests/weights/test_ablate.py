"""Ablation: the loss against a model treated by hand, the measured noise scale against planted noise, and nothing left behind."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from problems import mlp, orthogonal, train

import spectral_fast as sf
from spectral_fast.cli.demo_network import DEMO_TRAIN, digits
from spectral_fast.cli.demo_network import train as train_demo

Data = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def demo() -> tuple[torch.nn.Module, Data]:
    """The demo's 64-32-10 network and the images it did not train on."""
    images, labels = digits()
    model, accuracies = train_demo(images, labels, 40, 0)
    assert min(accuracies) > 0.97
    return model, (torch.from_numpy(images[DEMO_TRAIN:]), torch.from_numpy(labels[DEMO_TRAIN:]))


def bits(model: torch.nn.Module) -> dict[str, bytes]:
    return {n: t.detach().contiguous().view(torch.uint8).numpy().tobytes() for n, t in model.state_dict().items()}


def by_hand(model: torch.nn.Module, name: str, data: Data, change: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float, float]:
    """(mean loss, change, its standard error) with the parameter treated on a copy, sample by sample."""
    treated = copy.deepcopy(model).eval()
    p = treated.get_parameter(name)
    losses = []
    with torch.no_grad():
        for m in (copy.deepcopy(model).eval(), treated):
            losses.append(torch.nn.functional.cross_entropy(m(data[0]), data[1], reduction="none").double().numpy())
            w = p.double().numpy()
            p.copy_(torch.from_numpy(change(w.reshape(w.shape[0], -1)).reshape(w.shape)))
    d = losses[1] - losses[0]
    return float(losses[1].mean()), float(d.mean()), float(d.std(ddof=1) / np.sqrt(len(d)))


def dropped(gamma: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(w: np.ndarray) -> np.ndarray:
        u, s, vt = np.linalg.svd(w, full_matrices=False)
        return (u * np.where(s > gamma, s, 0)) @ vt

    return change


def clipped(gamma: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(w: np.ndarray) -> np.ndarray:
        u, s, vt = np.linalg.svd(w, full_matrices=False)
        return (u * np.minimum(s, gamma)) @ vt

    return change


def test_losses_changes_and_errors_are_those_of_a_model_treated_by_hand(demo: tuple[torch.nn.Module, Data]) -> None:
    model, data = demo
    before = bits(model)
    s = np.linalg.svd(model[0].weight.detach().double().numpy(), compute_uv=False)  # type: ignore[index, union-attr]
    gammas = [0.0, float(s[11] * 0.99), float(s[5] * 0.99), float(s[0] * 1.01)]
    a = sf.ablate(model, data, "0.weight", gammas, progress=False)
    assert bits(model) == before
    assert list(a.gammas) == gammas and list(a.kept) == [32, 12, 6, 0]
    assert a.n_samples == 360 and a.unit == "sample" and a.status == "ok" and np.isnan(a.noise_scale)
    for i, g in enumerate(gammas):
        loss, change, stderr = by_hand(model, "0.weight", data, dropped(g))
        assert a.losses[i] == pytest.approx(loss, rel=1e-5) and a.losses[i] == a.baseline_loss + a.changes[i]
        # float32 losses of about 0.05: their differences are known to 1e-7
        assert a.changes[i] == pytest.approx(change, rel=1e-4, abs=1e-6) and a.stderr[i] == pytest.approx(stderr, rel=1e-3, abs=1e-6)
    assert a.changes[0] == 0.0 and a.stderr[0] == 0.0 and not a.moved[0], "nothing is dropped at gamma 0"
    c = sf.ablate(model, data, "0.weight", [float(s[3]), float(s[0])], treatment="clip_spikes", progress=False)
    loss, change, stderr = by_hand(model, "0.weight", data, clipped(float(s[3])))
    assert c.changes[0] == pytest.approx(change, rel=1e-4) and c.stderr[0] == pytest.approx(stderr, rel=1e-3) and c.changes[1] == 0.0
    assert list(c.kept) == [29, 32] and bits(model) == before


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("largest", [0.02, 0.1])
def test_noise_scale_separates_planted_noise_from_signal(demo: tuple[torch.nn.Module, Data], seed: int, largest: float) -> None:
    # The first nine directions carry the trained layer (the tenth is 1.4, the ninth 2.7); the other 23 become random ones, small and uneven.
    model, data = copy.deepcopy(demo[0]), demo[1]
    weight = model[0].weight  # type: ignore[index, union-attr]
    u, s, vt = np.linalg.svd(weight.detach().double().numpy(), full_matrices=False)
    rest_u = np.linalg.svd(u[:, :9])[0][:, 9:] @ orthogonal(23, seed)
    rest_v = np.linalg.svd(vt[:9].T)[0][:, 9:] @ orthogonal(55, seed + 100)[:, :23]
    noise = largest * np.random.default_rng(seed).uniform(0.05, 1.0, 23)
    with torch.no_grad():
        weight.copy_(torch.from_numpy((u[:, :9] * s[:9]) @ vt[:9] + (rest_u * noise) @ rest_v.T))
    before = bits(model)
    a = sf.ablate(model, data, "0", progress=False)
    assert bits(model) == before
    assert noise.max() < a.noise_scale <= s[8] * (1 + 1e-5)
    assert a.noise_rank == 9 and (a.s >= a.noise_scale).sum() == 9
    assert not a.moved[a.gammas < a.noise_scale].any() and a.moved[a.gammas == a.noise_scale].all()
    assert len(a.gammas) <= 24


class Branched(torch.nn.Module):
    """Embedding tied to the output, convolution, LSTM and linear layer on sequences of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(12, 8)
        self.conv = torch.nn.Conv1d(8, 8, 3, padding=1)
        self.lstm = torch.nn.LSTM(8, 8, batch_first=True, bidirectional=True)
        self.mix = torch.nn.Linear(16, 8)
        self.out = torch.nn.Linear(8, 12)
        self.out.weight = self.embed.weight
        self.drop = torch.nn.Dropout(0.5)
        self.register_buffer("count", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv(self.embed(x).transpose(1, 2)).transpose(1, 2)
        return self.out(self.drop(self.mix(self.lstm(h)[0])))


@pytest.fixture
def branched() -> tuple[Branched, Data]:
    torch.manual_seed(0)
    x = torch.randint(0, 12, (40, 6))
    return Branched(), (x, (x + 1) % 12)


@pytest.mark.parametrize("layer", ["embed.weight", "out.weight", "conv.weight", "lstm.weight_hh_l0[f]", "lstm.weight_ih_l0_reverse[o]", "mix"])
@pytest.mark.parametrize("treatment", ["drop_noise", "clip_spikes"])
def test_every_kind_of_matrix(branched: tuple[Branched, Data], layer: str, treatment: str) -> None:
    model, (x, y) = branched
    before, versions = bits(model), {n: p._version for n, p in model.named_parameters()}
    seen: list[dict[str, torch.Tensor]] = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        float(outputs.sum())  # refused under vmap, so that batches are the units and every call sees the model as it stands
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
        return torch.nn.functional.cross_entropy(outputs.transpose(1, 2), targets)

    spectrum = sf.scan(model, progress=False)
    name = "mix.weight" if layer == "mix" else "embed.weight" if layer == "out.weight" else layer
    s = spectrum.spectrum(name).s
    gamma = float(s[3])
    batches = [(x[i : i + 16], y[i : i + 16]) for i in (0, 16, 32)]
    a = sf.ablate(model, batches, layer, gamma, loss_fn=loss, treatment=treatment, progress=False)
    assert a.layer == name and a.unit == "batch" and np.allclose(a.s, s, rtol=1e-12)
    assert bits(model) == before and {n: p._version for n, p in model.named_parameters()} == versions
    assert model.training and model.out.weight is model.embed.weight
    treated = sf.scan(seen[-1], progress=False)
    wanted = np.where(s > gamma * (1 + 1e-9), s, 0) if treatment == "drop_noise" else np.minimum(s, gamma)
    assert np.allclose(treated.spectrum(name).s, wanted, atol=1e-6 * s[0])
    assert {n for n in seen[-1] if not torch.equal(seen[-1][n], model.get_parameter(n))} == {name.split("[")[0]}


def test_only_the_named_gate_changes(branched: tuple[Branched, Data]) -> None:
    model, (x, y) = branched
    states: list[torch.Tensor] = []
    hook = model.lstm.register_forward_pre_hook(lambda module, inputs: states.append(module.weight_hh_l0.detach().clone()))
    sf.ablate(model, (x, y), "lstm.weight_hh_l0[f]", 1e9, progress=False)
    hook.remove()
    assert torch.equal(states[0], model.lstm.weight_hh_l0)
    changed = (states[-1] != model.lstm.weight_hh_l0).any(dim=1)
    assert changed[8:16].all() and not changed[:8].any() and not changed[16:].any()
    assert (states[-1][8:16] == 0).all(), "everything dropped is exactly zero"


@pytest.mark.parametrize("error", [RuntimeError("planted"), KeyboardInterrupt()])
def test_restored_after_exceptions_and_interruptions(demo: tuple[torch.nn.Module, Data], error: BaseException) -> None:
    model, data = demo
    before = bits(model)
    original = model[0].weight.detach().clone()  # type: ignore[index, union-attr]
    calls = 0

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += not torch.equal(model[0].weight, original)  # type: ignore[index, arg-type]
        if calls > 2:
            raise error
        return torch.nn.functional.cross_entropy(outputs, targets)

    if isinstance(error, KeyboardInterrupt):
        a = sf.ablate(model, data, "0.weight", loss_fn=loss, progress=False)
        assert a.status == "incomplete" and a.reason == "interrupted" and np.isnan(a.noise_scale) and len(a.gammas) >= 1
    else:
        with pytest.raises(RuntimeError, match="planted"):
            sf.ablate(model, data, "0.weight", loss_fn=loss, progress=False)
    assert bits(model) == before


def test_half_precision_and_frozen_and_strided_weights() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).bfloat16()
    model[0].weight = torch.nn.Parameter(torch.randn(16, 16, dtype=torch.bfloat16).t(), requires_grad=False)
    assert not model[0].weight.is_contiguous()
    data = (torch.randn(50, 16), torch.randint(0, 4, (50,)))
    before, stride = bits(model), model[0].weight.stride()
    a = sf.ablate(model, data, "0.weight", 1e9, progress=False)
    assert bits(model) == before and model[0].weight.stride() == stride and not model[0].weight.requires_grad
    zero = copy.deepcopy(model)
    with torch.no_grad():
        zero[0].weight.zero_()
        expected = torch.nn.functional.cross_entropy(zero(data[0].bfloat16()).float(), data[1])
    assert a.losses[0] == pytest.approx(float(expected), rel=1e-6)


def test_uneven_weights_of_samples_are_exact() -> None:
    # half of the second sequence's tokens do not count
    x, y = torch.randn(7, 5, 6, dtype=torch.float64), torch.randint(0, 3, (7, 5))
    y[1, 2:] = -100
    y[4] = -100
    model = torch.nn.Linear(6, 3).double()
    a = sf.ablate(model, [(x[:4], y[:4]), (x[4:], y[4:])], "weight", 1e9, progress=False)
    with torch.no_grad():
        flat = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        zeroed = torch.nn.functional.cross_entropy(model.bias.expand(35, 3), y.flatten())
    assert a.unit == "sample" and a.n_samples == 7
    assert a.baseline_loss == pytest.approx(float(flat), rel=1e-12) and a.losses[0] == pytest.approx(float(zeroed), rel=1e-12)


def test_a_loss_that_is_no_mean_over_samples_takes_batches() -> None:
    model = torch.nn.Linear(6, 3)
    x, y = torch.randn(40, 6), torch.randn(40, 3)
    batches = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 40, 10)]

    def contrast(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - outputs.mean(0) - targets).square().mean()

    a = sf.ablate(model, batches, "weight", 1e9, loss_fn=contrast, progress=False)
    assert a.unit == "batch" and any("error bars from batches" in n for n in a.notes)
    with torch.no_grad():
        per = [float(contrast(model.bias.expand(10, 3), t) - contrast(model(b), t)) for b, t in batches]
    assert a.changes[0] == pytest.approx(np.mean(per), rel=1e-4)
    assert a.stderr[0] == pytest.approx(np.std(per, ddof=1) / 2, rel=1e-4)
    one = sf.ablate(model, [batches[0]], "weight", loss_fn=contrast, progress=False)
    assert one.status == "unresolved" and "a single batch" in one.reason and not one.moved.any() and np.isnan(one.noise_scale)
    assert "nan" not in str(one)


def test_a_layer_the_loss_does_not_see() -> None:
    class Unused(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = torch.nn.Linear(6, 3), torch.nn.Linear(40, 30)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    a = sf.ablate(Unused(), (torch.randn(30, 6), torch.randint(0, 3, (30,))), "unused", progress=False)
    assert a.noise_scale == np.inf and a.noise_rank == 0 and not a.moved.any()
    assert a.kept[-1] == 0 and (a.changes == 0).all()
    assert "does not rise even without" in str(a)
    assert json.loads(a.to_json())["noise_scale"] == "inf"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "0.bias"}, "^layer: '0.bias' has no spectrum to treat: vector"),
        ({"layer": "nothing"}, "^layer: no matrix is called 'nothing'; there are 2: 0.weight"),
        ({"gamma": -1.0}, "^gamma: got -1.0"),
        ({"gamma": []}, "^gamma"),
        ({"gamma": float("nan")}, "^gamma"),
        ({"treatment": "shave"}, "^treatment: got 'shave'; known: drop_noise"),
        ({"floor": -1.0}, "^floor"),
        ({"model": {"w": 1}}, "^model: got dict"),
        ({"loader": []}, "^loader"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    model = mlp((6, 5, 3))
    arguments = {"model": model, "loader": (torch.randn(10, 6), torch.randint(0, 3, (10,))), "layer": "0.weight", **change}
    with pytest.raises((TypeError, ValueError), match=message):
        sf.ablate(**arguments)


def test_gates_have_to_be_named_and_weights_finite(branched: tuple[Branched, Data]) -> None:
    model, data = branched
    with pytest.raises(ValueError, match=r"^layer: 'lstm.weight_hh_l0' holds 4 matrices; name one of lstm.weight_hh_l0\[i\]"):
        sf.ablate(model, data, "lstm.weight_hh_l0")
    with torch.no_grad():
        model.mix.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="^layer: mix.weight has entries that are not finite"):
        sf.ablate(model, data, "mix")
    with pytest.raises(ValueError, match="^model: its loss on these samples is nan"):
        sf.ablate(model, data, "conv")


def test_findings_are_tested_with_the_right_treatment() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((200, 40)))
    y = torch.from_numpy((x[:, :3].numpy() > 0) @ [1, 2, 4])
    model = train(mlp((40, 32, 8), dtype="float64"), x, y)
    with torch.no_grad():  # rank lost: a third of the directions at rounding level
        u, s, vt = torch.linalg.svd(model[0].weight, full_matrices=False)
        s[20:] = 0
        model[0].weight.copy_((u * s) @ vt)
    d = sf.diagnose(model, (x, y), include=("weights",), progress=False)
    lost = next(f for f in d.findings if f.title == "rank collapse")
    before = bits(model)
    a = d.test(lost, progress=False)
    assert (a.layer, a.treatment, a.n_samples) == ("0.weight", "drop_noise", 200) and bits(model) == before
    assert a.noise_scale > 0 and a.noise_rank <= 20, "what is lost cannot matter"
    clip = sf.Finding("warning", "0.weight", "amplifies; exploding gradients possible", "", "", "", "", "weights")
    assert d.test(clip, float(a.s[0]), progress=False).treatment == "clip_spikes"
    other = sf.Finding("info", "0.weight", "well normalised, stable", "", "", "", "", "weights")
    with pytest.raises(ValueError, match="finding: 0.weight: well normalised.*Can be tested here: 0.weight: rank collapse"):
        d.test(other)
    assert "model" not in d.to_dict() and "data" not in d.to_dict()
    again = copy.deepcopy(d)
    with pytest.raises(ValueError, match="^loader: this diagnosis has no model and data"):
        again.test(lost)
    with torch.no_grad():
        model[0].weight.mul_(2.0)
    with pytest.raises(ValueError, match="0.weight has changed since this diagnosis"):
        d.test(lost, progress=False)
