"""Small models, one per way of using parameters, with data: what products of gradients are tested on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Maker = Callable[[], tuple[nn.Module, Any, Tensor]]
N = 14


class Wrap(nn.Module):
    """A module with a head on the mean of its output's positions; pick: what is taken of the module's output."""

    def __init__(self, body: nn.Module, width: int, pick: Callable[[Any], Tensor] = lambda out: out) -> None:
        super().__init__()
        self.body, self.head, self.pick = body, nn.Linear(width, 5), pick

    def forward(self, *args: Tensor) -> Tensor:
        return self.head(self.pick(self.body(*args)))  # type: ignore[no-any-return]


def classes(*shape: int) -> Tensor:
    return torch.randint(0, 5, shape)


def mlp() -> tuple[nn.Module, Any, Tensor]:
    return nn.Sequential(nn.Linear(7, 9), nn.ReLU(inplace=True), nn.Linear(9, 8, bias=False), nn.PReLU(8), nn.Linear(8, 5)), torch.randn(N, 7), classes(N)


def convs(d: int) -> Maker:
    def make() -> tuple[nn.Module, Any, Tensor]:
        conv, norm = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[d - 1], (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[d - 1]
        body = nn.Sequential(
            # the tanh: a bias that only moves what is normalised afterwards has no gradient but rounding
            conv(2, 6, 3, padding="same", dilation=2),
            norm(6),
            nn.ReLU(inplace=True),
            conv(6, 6, 3, groups=6, padding=1, bias=False),
            nn.GroupNorm(3, 6),
            nn.Tanh(),
            conv(6, 8, 2, stride=2, groups=2, padding_mode="circular", padding=1),
            nn.Flatten(2),
            nn.InstanceNorm1d(8, affine=True),
        )
        return Wrap(body, 8, lambda out: (out * torch.linspace(0, 1, out.shape[2]).to(out)).sum(2)), torch.randn(N, 2, *([6] * d)), classes(N)

    return make


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.one, self.two, self.norm_one, self.norm_two = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.down = nn.Conv2d(6, 6, 1, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.norm(self.stem(x)))
        y = F.relu_(self.norm_one(self.one(x)))
        y = self.norm_two(self.two(y))
        y += self.down(x)
        return F.relu_(y).mean((2, 3))


def resnet() -> tuple[nn.Module, Any, Tensor]:
    return Wrap(Residual(), 6), torch.randn(N, 2, 6, 6), classes(N)


class Conv1D(nn.Module):
    """A linear layer with its weight the other way round."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(n_in, n_out) / n_in**0.5), nn.Parameter(torch.randn(n_out) / 10)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)


class GPT(nn.Module):
    """Two blocks like GPT-2's, the output layer tied to the embedding."""

    def __init__(self, d: int = 8, vocabulary: int = 11, length: int = 9, tied: bool = True) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, d), nn.Embedding(length, d)
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(d), Conv1D(d, 3 * d), Conv1D(d, d), nn.LayerNorm(d), Conv1D(d, 16), Conv1D(16, d)]) for _ in range(2)
        )
        self.last, self.head = nn.LayerNorm(d), nn.Linear(d, vocabulary, bias=False)
        if tied:
            self.head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        n, t = ids.shape
        x = F.dropout(self.wte(ids) + self.wpe(torch.arange(t).unsqueeze(0)), 0.1, self.training)
        for a, qkv, out, b, up, down in self.blocks:  # type: ignore[misc]
            q, k, v = (h.view(n, t, 2, -1).transpose(1, 2) for h in qkv(a(x)).split(x.shape[-1], dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + out(y.transpose(1, 2).reshape(n, t, -1))
            x = x + down(F.gelu(up(b(x))))
        return self.head(self.last(x))  # type: ignore[no-any-return]


def gpt() -> tuple[nn.Module, Any, Tensor]:
    ids = torch.randint(0, 11, (N, 6))
    y = torch.randint(0, 11, (N, 6))
    for i in range(N):
        y[i, : i % 4] = -100
    return GPT(), ids, y


def gpt_untied() -> tuple[nn.Module, Any, Tensor]:
    model, ids, y = GPT(tied=False), *gpt()[1:]
    model.wpe = nn.Embedding(9, 8, padding_idx=2)
    return model, ids, y


def recurrent(kind: type[nn.RNNBase], **options: Any) -> Maker:
    def make() -> tuple[nn.Module, Any, Tensor]:
        body = kind(4, 6, **options)
        first = options.get("batch_first", False)
        width = (options.get("proj_size") or 6) * (2 if options.get("bidirectional") else 1)
        model = Wrap(Turned(body, not first), width, lambda out: out[0][:, -1] + out[0].mean(1))
        return model, torch.randn(N, 5, 4), classes(N)

    return make


class Turned(nn.Module):
    """A model that wants time first, given samples first."""

    def __init__(self, inner: nn.Module, turn: bool) -> None:
        super().__init__()
        self.inner, self.turn = inner, turn

    def forward(self, x: Tensor) -> Any:
        out = self.inner(x.transpose(0, 1) if self.turn else x)
        if not self.turn:
            return out
        return out.transpose(0, 1) if isinstance(out, Tensor) else (out[0].transpose(0, 1), *out[1:])


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(4, 6), nn.GRUCell(6, 6), nn.RNNCell(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h, g, r = (x.new_zeros(len(x), 6), x.new_zeros(len(x), 6)), x.new_zeros(len(x), 6), None
        for t in range(x.shape[1]):
            h = self.lstm(x[:, t], h)
            g = self.gru(h[0], g)
            r = self.rnn(g, r)
        return r  # type: ignore[return-value]


def cells() -> tuple[nn.Module, Any, Tensor]:
    return Wrap(Cells(), 6), torch.randn(N, 3, 4), classes(N)


def encoder(batch_first: bool) -> Maker:
    def make() -> tuple[nn.Module, Any, Tensor]:
        layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first), 2, enable_nested_tensor=False)
        # as many positions as the samples that are looked at
        return Wrap(Turned(layers, not batch_first), 8, lambda out: out.mean(1)), torch.randn(N, 4, 8), classes(N)

    return make


class Cross(nn.Module):
    """Attention with another source: slices of one weight."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **options)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        q, k = x[:, :3].transpose(0, 1), x[:, 3:].transpose(0, 1)
        if "kdim" in self.options:
            return self.attention(q, k[..., :6], k.flip(0), need_weights=False)[0].mean(0)  # type: ignore[no-any-return]
        out: Tensor = self.attention(q, k, k)[0] + self.attention(q, k, k.flip(0))[0]
        return out.mean(0)


def cross(**options: Any) -> Maker:
    return lambda: (Wrap(Cross(**options), 8), torch.randn(N, 7, 8), classes(N))


class Flat(nn.Module):
    """(n, T, d) as (n T, d) rows, sample by sample and position by position, and a weight used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm = nn.RMSNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        y = torch.tanh(self.one(x.reshape(n * t, d)))
        y = self.norm(y)
        z = self.two(y.view(n, t, d).transpose(0, 1).reshape(t * n, d))
        z = z.view(t, n, d).transpose(0, 1)
        return (self.one(z) @ self.two.weight + torch.relu(z) @ self.one.weight.t()).mean(1)


def flat() -> tuple[nn.Module, Any, Tensor]:
    return Wrap(Flat(), 6), torch.randn(N, 4, 6), classes(N)


class Patches(nn.Module):
    """What vision transformers do: a class token, learned positions, layer scale; and scales as functions of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 2, stride=2)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 12, 8))
        self.mix, self.scale, self.gain, self.temperature = (
            nn.Linear(8, 8),
            nn.Parameter(torch.rand(8)),
            nn.Parameter(torch.randn(8)),
            nn.Parameter(torch.rand(())),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.patch(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(len(y), -1, -1), y], dim=1) + self.positions[:, :10]
        y = y + self.scale * torch.tanh(self.mix(y))
        y = F.rms_norm(y, (8,)) * (1.0 + self.gain.float().to(y.dtype)) * self.temperature.exp()
        return (2.0 - y)[:, 0]


def patches() -> tuple[nn.Module, Any, Tensor]:
    return Wrap(Patches(), 8), torch.randn(N, 1, 6, 6), classes(N)


FAST: dict[str, Maker] = {
    "mlp": mlp,
    "conv1d": convs(1),
    "conv2d": convs(2),
    "conv3d": convs(3),
    "resnet": resnet,
    "gpt": gpt,
    "gpt_untied": gpt_untied,
    "lstm": recurrent(nn.LSTM, num_layers=2, bidirectional=True, batch_first=True),
    "lstm_projected": recurrent(nn.LSTM, proj_size=3),
    "gru": recurrent(nn.GRU, num_layers=2, bias=False),
    "rnn": recurrent(nn.RNN, nonlinearity="relu", bidirectional=True),
    "cells": cells,
    "encoder": encoder(True),
    "encoder_time_first": encoder(False),
    "cross": cross(),
    "cross_separate": cross(kdim=6),
    "flat": flat,
    "patches": patches,
}


class Unknown(nn.Module):
    """Parameters in functions that are not known: einsum, a product of three, one read where no gradient passes."""

    def __init__(self, mixes: bool = False) -> None:
        super().__init__()
        self.core, self.known = nn.Parameter(torch.randn(3, 6, 6)), nn.Linear(6, 6)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.cut = nn.Linear(6, 6)
        self.mixes = mixes

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("nd,kde->ne", x, self.core)
        y = torch.tanh(self.normed(self.known(y)))
        y = self.cut(y) + F.linear(y, self.cut.weight.detach())
        return y - y.mean(0, keepdim=True) if self.mixes else y
