"""What is seen of a model's calls: kinds, regions, layouts of samples, and the single terms against autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ghost_models import FAST, GPT, N, Residual, Wrap
from gram_reference import gradient_gram
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_fast.probing.conv_grams import ConvSum, windows
from spectral_fast.probing.layer_grams import MatrixSum, Rows, Tokens
from spectral_fast.probing.parameter_gradient import ParameterGradient
from spectral_fast.probing.parameter_uses import ParameterUses
from spectral_fast.probing.recurrent_cells import LAYERS, unrolled
from spectral_fast.probing.sample_layout import Layout, find_layout, sample_factors
from spectral_fast.probing.use_records import Region, whole_region


def seen(model: nn.Module, *args: Tensor) -> ParameterUses:
    leaves = {name: p.detach() for name, p in model.named_parameters()}
    uses = ParameterUses(leaves)
    with uses:
        out = torch.func.functional_call(model.eval(), leaves, args)
    torch.autograd.grad(out.sum(), uses.token, allow_unused=True)
    return uses


@pytest.mark.parametrize("body", [GPT(tied=False), Wrap(Residual(), 6), Wrap(nn.LSTM(4, 6, batch_first=True), 6, lambda out: out[0])])
def test_nothing_is_unknown(body: nn.Module) -> None:
    x = torch.randint(0, 9, (3, 5)) if isinstance(body, GPT) else torch.randn(3, 2, 6, 6) if isinstance(body.body, Residual) else torch.randn(3, 5, 4)
    uses = seen(body, x)
    assert uses.unknown == {} and {p.name for c in uses.calls for p in c.parts} == {name for name, _ in body.named_parameters()}
    assert all(len(c.gradients) == 1 and c.gradients[0].shape == c.shape for c in uses.calls)
    assert all(p.grad is None for p in body.parameters())


def test_time_steps_are_uses_of_one_weight() -> None:
    uses = seen(Wrap(nn.LSTM(4, 6, batch_first=True), 6, lambda out: out[0]), torch.randn(3, 5, 4))
    steps = [c for c in uses.calls if c.parts[0].name == "body.weight_hh_l0"]
    assert len(steps) == 5 and len({c.key for c in uses.calls}) == len(uses.calls)


def test_views_are_regions() -> None:
    class Slices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            top, rest = self.w.split([2, 4])
            return F.linear(x, top, self.b[:2]).sum() + (x @ rest.t()).sum() + (x @ self.w[1:3].mT + self.b.view(2, 3)[1, 1:]).sum()

    uses = seen(Slices(), torch.randn(3, 4))
    found = [(p.name, p.region, p.transposed) for c in uses.calls for p in c.parts]
    assert found == [
        ("w", Region(0, ((2, 4), (4, 1))), False),
        ("b", Region(0, ((2, 1),)), False),
        ("w", Region(8, ((4, 4), (4, 1))), False),
        ("w", Region(4, ((2, 4), (4, 1))), False),
        ("b", Region(4, ((2, 1),)), False),
    ]


def test_unknown_functions_are_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d, self.e = (nn.Parameter(torch.randn(4, 4)) for _ in range(5))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                fixed = x @ self.c
            y = torch.einsum("nd,de->ne", x, self.a) + F.linear(x, self.a) + torch.bilinear(x, x, self.b[None], None) + fixed
            return F.linear(x, self.e * self.d) + y

    uses = seen(Odd(), torch.randn(3, 4))
    assert (
        set(uses.unknown) == {"a", "b", "c", "d", "e"} and uses.unknown["a"] == "einsum" and uses.unknown["b"] == "bilinear" and uses.unknown["c"] == "matmul"
    )


def test_in_place_functions_after_the_first_layer() -> None:
    x = torch.randn(3, 4)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2))
    uses = seen(model, x)
    out = model[0](x)
    (expected,) = torch.autograd.grad(model[2](F.relu(out)).sum(), out)
    assert torch.equal(uses.calls[0].gradients[0], expected)


@pytest.mark.parametrize("shape, axes, layout", [
    ((4, 5, 3), (0, 1), Layout(0)),
    ((5, 4, 3), (0, 1), Layout(1)),
    ((4, 4, 3), (0, 1), Layout(1)),
    ((20, 3), (0,), Layout(0, True)),
    ((20, 3), (0,), Layout(0, False)),
    ((16, 3), (0,), Layout(0, False)),
])  # fmt: skip
def test_layouts_are_told_apart(shape: tuple[int, ...], axes: tuple[int, ...], layout: Layout) -> None:
    n = 4
    factors = sample_factors(n, torch.zeros((), dtype=torch.float32))
    plain = torch.randn(shape)
    index = layout.split(torch.arange(plain.numel()).view(shape), n)
    weighted = plain.clone()
    for i in range(n):
        weighted.view(-1)[index[i].flatten()] *= factors[i]
    assert find_layout(plain, weighted, factors, axes) == (layout, True)
    # samples that mix are no layout, and zeros tell nothing
    mixed = weighted + 1e-3 * weighted.flip(layout.axis)
    assert find_layout(plain, mixed, factors, axes)[0] is None
    assert find_layout(plain * 0, weighted * 0, factors, (0, 1) if len(shape) > 2 and n == shape[1] == shape[0] else axes)[1] is (
        sum(1 + (shape[a] != n) for a in axes if shape[a] % n == 0) == 1
    )
    with pytest.raises(ValueError, match="does not hold 7 samples"):
        layout.split(plain, 7)


def test_factors_are_powers_of_two() -> None:
    for n in (1, 2, 4, 9):
        f = sample_factors(n, torch.zeros((), dtype=torch.float64)).numpy()
        assert np.all(np.frexp(np.abs(f))[0] == 0.5) and np.all(np.abs(f[1:]) != np.abs(f[:-1]))


@pytest.mark.parametrize("d", [1, 2, 3])
def test_windows_of_a_convolution(d: int) -> None:
    torch.manual_seed(d)
    conv = (F.conv1d, F.conv2d, F.conv3d)[d - 1]
    x, w = torch.randn(2, 3, *(7, 6, 8)[:d]).double(), torch.randn(4, 3, *(3, 2, 2)[:d]).double()
    options = {"stride": (2, 1, 3)[:d], "pads": ((1, 2), (0, 1), (2, 0))[:d], "dilation": (2, 3, 1)[:d], "kernel": w.shape[2:], "groups": 1}
    out = conv(F.pad(x, [p for pair in reversed(options["pads"]) for p in pair]), w, stride=options["stride"], dilation=options["dilation"])  # type: ignore[attr-defined]
    flat = w.movedim(1, -1).flatten(1)
    assert torch.allclose(windows(x, options, out.shape[2:]) @ flat.T, out.flatten(2).transpose(1, 2), atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_tiles_of_a_convolution_do_not_matter(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    options = {"stride": (1, 1), "pads": ((1, 1), (1, 1)), "dilation": (1, 1), "kernel": (3, 3), "groups": groups}
    region = whole_region((12, 6 // groups, 3, 3))
    # two images per sample, two calls
    parts = [ConvSum([(torch.randn(2 * n, 6, 4, 4).double(), torch.randn(2 * n, 12, 4, 4).double(), options)], n, region) for n in (5, 5, 3, 3)]
    a, b = ConvSum.merged(parts[:2]), ConvSum.merged(parts[2:])
    g, h = a.rows().numpy(), b.rows().numpy()
    for tile in (1, 3000, 1 << 24):
        monkeypatch.setattr("spectral_fast.probing.conv_grams.TILE_BYTES", tile)
        assert np.allclose(a.rows().numpy(), g)
        for algorithm in ("positions", "gradients"):
            own, cross = np.zeros((5, 5)), np.zeros((5, 3))
            a.gram(own, None, gradient_gram, algorithm)
            a.gram(cross, b, gradient_gram, algorithm)
            assert np.allclose(own, g @ g.T) and np.allclose(cross, g @ h.T) and a.flops(algorithm) > 0


@pytest.mark.parametrize("vocabulary", [3, 50, 5000])
def test_tables(vocabulary: int) -> None:
    """Against dense gradients; a table that is an output layer too."""
    torch.manual_seed(vocabulary)
    d, region = 4, whole_region((vocabulary, 4))

    def make(n: int, t: int) -> tuple[Any, Any, Any]:
        tokens, values = torch.randint(0, vocabulary, (n, t)), torch.randn(n, t, d).double()
        left, right = torch.randn(n, 3, vocabulary).double(), torch.randn(n, 3, d).double()
        table = Tokens.merged([Tokens.of(tokens[:, :2], values[:, :2], vocabulary, region, 1), Tokens.of(tokens[:, 2:], values[:, 2:], vocabulary, region, 1)])
        dense = torch.zeros(n, vocabulary, d).double()
        for i in range(n):
            for k in range(t):
                if tokens[i, k] != 1:
                    dense[i, tokens[i, k]] += values[i, k]
        outputs = torch.einsum("ntv,ntd->nvd", left, right)
        assert np.allclose(table.rows().numpy(), dense.flatten(1).numpy())
        return ParameterGradient([table, MatrixSum(left, right, region)], vocabulary * d), (dense + outputs).flatten(1).numpy(), table

    (a, g, table), (b, h, other) = make(7, 9), make(4, 5)
    own, cross = np.zeros((7, 7)), np.zeros((7, 4))
    a.gram(own, None, gradient_gram, "positions")
    a.gram(cross, b, gradient_gram, "positions")
    assert np.allclose(own, g @ g.T) and np.allclose(cross, g @ h.T)
    single = np.zeros((7, 4))
    table.gram(single, other, gradient_gram, "auto")
    assert np.allclose(single, table.rows().numpy() @ other.rows().numpy().T)


def test_regions_that_meet() -> None:
    torch.manual_seed(0)
    one, two = Rows(torch.randn(3, 4), Region(0, ((4, 1),))), Rows(torch.randn(3, 4), Region(2, ((4, 1),)))
    apart = Rows(torch.randn(3, 2), Region(6, ((2, 1),)))
    gradient = ParameterGradient([one, two, apart], 8)
    dense = sum(p.embedded(8) for p in (one, two, apart)).double().numpy()
    gram = np.zeros((3, 3))
    gradient.gram(gram, None, gradient_gram, "auto")
    assert np.allclose(gram, dense @ dense.T, rtol=1e-5) and np.allclose(gradient.rows().numpy(), dense)
    # in different sets of samples
    cross = np.zeros((3, 3))
    ParameterGradient([one], 8).gram(cross, ParameterGradient([two], 8), gradient_gram, "auto")
    assert np.allclose(cross, one.embedded(8).double().numpy() @ two.embedded(8).double().numpy().T, rtol=1e-5)
    with pytest.raises(ValueError, match="used in two ways"):
        ParameterGradient(
            [Rows(torch.randn(3, 8), Region(0, ((8, 1),))), MatrixSum(torch.randn(3, 1, 2), torch.randn(3, 1, 4), Region(0, ((2, 4), (4, 1))))], 8
        )


@pytest.mark.parametrize("name", ["lstm", "lstm_projected", "gru", "rnn"])
def test_unrolled_layers_are_torchs_own(name: str) -> None:
    torch.manual_seed(0)
    model, x, _ = FAST[name]()
    rnn = model.body.inner
    assert isinstance(rnn, nn.RNNBase) and len(x) == N
    calls: list[Any] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func in LAYERS:
                calls.append((LAYERS[func], args, out))
            return out

    with torch.no_grad(), Watch():
        model.eval()(x)
    ((kind, args, out),) = calls
    for a, b in zip(unrolled(kind, args, {}), out, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
