"""Models whose samples cannot be told apart from one run, or whose parameters change: nothing is trusted that was not seen to hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ghost_checks import assert_same, ghost, materialized, plain_run, split
from ghost_models import N, Unknown, Wrap, classes
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_fast.probing.gram_kernel import gram_kernel


def test_samples_that_are_not_independent_fall_back() -> None:
    torch.manual_seed(0)
    model, x, y = Wrap(Unknown(mixes=True), 6).double(), torch.randn(N, 6).double(), classes(N)
    loader = [(x, y)]
    rows, losses = materialized(model, loader)
    sums = ghost(model, loader, falls_back=True)
    assert sums.engine == "per-sample" and any("formed one by one" in note for note in sums.notes)
    assert_same(sums, rows, losses, 1e-10)
    batchwise = Wrap(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, track_running_stats=False)), 6).double()
    with pytest.raises(ValueError, match="^model: per-sample products"):
        plain_run(batchwise, loader)


def test_detached_statistics_of_the_batch_fall_back() -> None:
    """Its samples' gradients do not mix, their losses do."""

    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.detach().mean(0)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), Centred(), nn.Linear(6, 5)).double()
    sums = ghost(model, [(torch.randn(N, 6).double(), classes(N))], falls_back=True)
    assert sums.engine == "per-sample" and any("depends on the other samples" in note for note in sums.notes)


@pytest.mark.parametrize("n", [2, 3, N])
def test_pairs_of_samples_that_depend_on_each_other_fall_back(n: int) -> None:
    """The first and the last, say: run together they look as they do in the batch."""

    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.5 * x.detach().flip(0)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), Mixed(), nn.Linear(6, 5)).double()
    sums = ghost(model, [(torch.randn(n, 6).double(), classes(n))], falls_back=True)
    assert sums.engine == "per-sample" and any("depends on the other samples" in note for note in sums.notes)


def test_gradients_that_depend_on_the_size_of_the_batch_are_computed_alone() -> None:
    """Neither their losses nor where they lie shows it."""

    class Shared(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return gradients[0] / len(gradients[0])

    class Divides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Shared.apply(x)  # type: ignore[no-any-return, no-untyped-call]

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), Divides(), nn.Linear(6, 5)).double()
    sums = ghost(model, [(torch.randn(N, 6).double(), classes(N))])
    assert set(sums.slow) == {"0.weight", "0.bias"}
    assert all("differ from those of plain gradients" in why for why in sums.slow.values())


class Moves(nn.Module):
    """Puts samples in an order that depends on them, or works on their tokens side by side."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.last, self.how = nn.Linear(6, 8), nn.Linear(8, 5), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "sorted":
            order = x[:, 0].argsort()
            return self.last(torch.tanh(self.first(x[order]))[order.argsort()])  # type: ignore[no-any-return]
        if self.how == "packed":
            mask = x[:, :, None] > 0
            h = torch.tanh(self.first(x[:, None].expand(-1, 6, -1)[mask[..., 0]]))
            out = h.new_zeros(*x.shape, 8)
            out[mask[..., 0]] = h
            return self.last(out.sum(1))  # type: ignore[no-any-return]
        h = torch.tanh(self.first(x))
        best = h.sum(1).topk(len(h) // 2).indices
        return self.last(h * torch.zeros(len(h), 1).to(h).index_fill(0, best, 1.0))  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["sorted", "packed", "chosen"])
def test_an_order_that_depends_on_the_samples_is_not_trusted(how: str) -> None:
    """A few samples show where the rows of a sample are, and others of them may be elsewhere."""
    torch.manual_seed(0)
    x, y = torch.randn(16, 6).double(), torch.randint(0, 5, (16,))
    x[[0, 5, 10, 15], 0] = torch.arange(-4.0, 0.0).double()  # those that are looked at are in order
    model = Moves(how).double()
    sums = ghost(model, [(x, y)], falls_back=True)
    assert sums.engine == "per-sample" and any("by an index" in note for note in sums.notes)
    if how != "chosen":  # which are chosen depends on who else is there
        rows, losses = materialized(model, [(x, y)])
        assert_same(sums, rows, losses, 1e-10)


def test_a_parameter_changed_in_place_is_not_known() -> None:
    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.g, self.out = nn.Parameter(torch.ones(6)), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            g = self.g.clone()
            g.mul_(3)
            return self.out(x * g)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, x, y = Changed().double(), torch.randn(N, 6).double(), classes(N)
    sums = ghost(model, [(x, y)])
    assert "g" in sums.slow and "out.weight" not in sums.slow
    assert_same(sums, *materialized(model, [(x, y)]), 1e-10)


class Reads(nn.Module):
    """A linear layer on what ``make`` makes of the inputs of the whole batch."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.first, self.out, self.make = nn.Linear(6, 8), nn.Linear(8, 5), make

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.make(self.first, x)))  # type: ignore[no-any-return]


DEPENDENT = {
    "on the first": lambda first, x: first(x + 0.5 * x[:1].detach()),
    "on the last": lambda first, x: first(x + 0.5 * x[-1:].detach()),
    "on the mean": lambda first, x: first(x - 0.3 * x.detach().mean(0)),
    "on the mean, in few digits": lambda first, x: F.linear(x.bfloat16(), first.weight.bfloat16()).float() - 0.01 * x.detach().mean(0).sum(),
    "on the number": lambda first, x: first(x) * (1 + 1 / len(x)),
}


@pytest.mark.parametrize("n", [2, 3, 16])
@pytest.mark.parametrize("how", DEPENDENT)
def test_samples_that_depend_on_each_other_without_a_gradient(how: str, n: int) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(n, 6), torch.randint(0, 5, (n,))
    sums = ghost(Reads(DEPENDENT[how]), [(x, y)], falls_back=True)
    assert sums.engine == "per-sample" and any("depends on the other samples" in note or "without the others" in note for note in sums.notes)


def test_few_digits_alone_are_not_taken_for_dependence() -> None:
    torch.manual_seed(0)
    model = Reads(lambda first, x: F.linear(x.bfloat16(), first.weight.bfloat16()).float())
    assert ghost(model, [(torch.randn(16, 6), torch.randint(0, 5, (16,)))]).engine == "ghost"


@pytest.mark.parametrize("kind", ["offset", "scale", "vector"])
def test_outputs_of_one_dimension(kind: str) -> None:
    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.one = nn.Linear(6, 4), nn.Parameter(torch.full((4,) if kind == "vector" else (), 0.5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.tanh(self.net(x))
            return h @ self.one if kind == "vector" else h.sum(1) * self.one if kind == "scale" else h.sum(1) + self.one

    torch.manual_seed(0)
    model = Scalar().double()
    x, y = torch.randn(N, 6).double(), torch.randn(N).double()
    sums = ghost(model, [(x, y)], loss="mse")
    assert sums.engine == "ghost"
    assert_same(sums, *materialized(model, [(x, y)], loss="mse"), 1e-10)


@pytest.mark.parametrize("size", [20, 10])
def test_inputs_in_memory_that_the_next_batch_is_written_to(size: int) -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 5)
            self.register_buffer("space", torch.zeros(size, 6, dtype=torch.float64), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            space = self.get_buffer("space")[: len(x)]
            space.copy_(x)
            return self.layer(space)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Buffered().double()
    loader = split(torch.randn(40, 6).double(), torch.randint(0, 5, (40,)), tuple(range(size, 40, size)))
    rows, losses = materialized(model, loader)
    assert_same(ghost(model, loader), rows, losses, 1e-10)
    assert_same(ghost(model, loader, kernel=gram_kernel()[0]), rows, losses, 1e-10)
