"""Three small trained networks with fixed data, and an exact Hessian to judge eigenpairs with.

mlp:  digits, 64-256-256-10, 85 k parameters, 1,797 samples.
conv: digits as 8 x 8 images, two convolutions with ReLU, a pooling and two linear layers, 110 k parameters.
lm:   a two-layer causal transformer, 0.9 M parameters, on the characters of the standard library's sources, 2,048 tokens. Its attention is
      written out: the fused kernels have no second derivative, and not every tool replaces them.

float32, trained briefly with Adam, evaluation mode, one batch that holds all data: what every tool is fastest with.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

Batches = list[tuple[Tensor, Tensor]]
F64 = NDArray[np.float64]
SEQUENCE = 128


class CrossEntropy(nn.CrossEntropyLoss):
    """Mean over samples, or over the tokens of outputs (N, T, C) with targets (N, T)."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input.flatten(0, -2), target.flatten())


@dataclass(frozen=True, eq=False)
class Problem:
    name: str
    model: nn.Module
    batches: Batches

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @property
    def size(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def copy(self) -> Problem:
        """With a model of its own: some tools write to it."""
        return Problem(self.name, copy.deepcopy(self.model), self.batches)

    def gradient(self) -> tuple[Tensor, ...]:
        """Of the mean loss over the data, as training computes it."""
        total: tuple[Tensor, ...] = ()
        count = sum(y.numel() for _, y in self.batches)
        for x, y in self.batches:
            loss = CrossEntropy()(self.model(x), y) * (y.numel() / count)
            part = torch.autograd.grad(loss, self.parameters)
            total = tuple(a + b for a, b in zip(total, part, strict=True)) if total else part
        return total


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.register_buffer("later", torch.ones(SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(width // self.heads)
        weights = scores.masked_fill(self.later[:t, :t], -1e9).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, t, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, vocabulary: int, width: int = 192, layers: int = 2, heads: int = 6) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(SEQUENCE, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions[: tokens.shape[1]])))


def train(model: nn.Module, batch: Callable[[], tuple[Tensor, Tensor]], steps: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        x, y = batch()
        optimizer.zero_grad()
        CrossEntropy()(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def digits(name: str, seed: int) -> Problem:
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.from_numpy((data.data / 16).astype(np.float32))
    y = torch.from_numpy(data.target.astype(np.int64))
    torch.manual_seed(seed)
    if name == "mlp":
        model: nn.Module = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    else:
        x = x.view(-1, 1, 8, 8)
        convolutions = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(1024, 88), nn.ReLU(), nn.Linear(88, 10))

    def batch() -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(x), (128,))
        return x[rows], y[rows]

    return Problem(name, train(model, batch, 150), [(x, y)])


def language(seed: int, sequences: int = 16) -> Problem:
    text = "".join(Path(str(module.__file__)).read_text("utf-8") for module in (argparse, inspect, typing))
    known = sorted(set(text))
    codes = torch.tensor(np.searchsorted(known, list(text)))
    torch.manual_seed(seed)

    def batch(rows: int = 8) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(codes) - SEQUENCE, (rows,))
        window = codes[starts[:, None] + torch.arange(SEQUENCE + 1)]
        return window[:, :-1].contiguous(), window[:, 1:].contiguous()

    return Problem("lm", train(Transformer(len(known)), batch, 100), [batch(sequences)])


def make(name: str, seed: int) -> Problem:
    return language(seed) if name == "lm" else digits(name, seed)


class Exact:
    """The Hessian by double backward, written out once more beside the tools, and its k largest eigenvalues.

    float32, a thousand times finer than what is judged; one product is compared with float64, which would take minutes for convolutions.
    """

    def __init__(self, problem: Problem, k: int = 10) -> None:
        self.k, self.n = k, problem.size
        self.parameters, self.gradient = self._differentiable(problem, torch.float32)
        v = np.random.default_rng(0).standard_normal(self.n) / math.sqrt(self.n)
        fine, same = self.product(v, *self._differentiable(problem, torch.float64)), self.product(v)
        self.rounding = float(np.linalg.norm(same - fine) / np.linalg.norm(fine))
        assert self.rounding <= 1e-4
        self.values = self._largest(k)

    @staticmethod
    def _differentiable(problem: Problem, dtype: torch.dtype) -> tuple[list[nn.Parameter], Tensor]:
        model = copy.deepcopy(problem.model).to(dtype)
        parameters = list(model.parameters())
        count = sum(y.numel() for _, y in problem.batches)
        loss = torch.zeros((), dtype=dtype)
        for x, y in problem.batches:
            outputs = model(x.to(dtype) if x.is_floating_point() else x)
            loss = loss + F.cross_entropy(outputs.flatten(0, -2), y.flatten()) * (y.numel() / count)
        return parameters, torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters, create_graph=True)])

    def product(self, v: Any, parameters: list[nn.Parameter] | None = None, gradient: Tensor | None = None) -> F64:
        parameters, gradient = (self.parameters, self.gradient) if parameters is None or gradient is None else (parameters, gradient)
        along = torch.from_numpy(np.array(v)).to(gradient.dtype)
        return torch.cat([h.reshape(-1) for h in torch.autograd.grad(gradient, parameters, along, retain_graph=True)]).double().numpy()

    def _largest(self, k: int) -> F64:
        """scipy's eigsh; an eigenvalue's error is about the square of the residual."""
        from scipy.sparse.linalg import LinearOperator, eigsh

        a = LinearOperator((self.n, self.n), matvec=lambda v: self.product(v.reshape(-1)), dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(self.n)
        return np.sort(eigsh(a, k, which="LA", tol=5e-3, ncv=4 * k, v0=start, return_eigenvectors=False))[::-1]

    def objection(self, values: Any, vectors: Any, tol: float = 1e-3) -> str:
        """Why these k pairs are not the k largest ones to ``tol``, or "": orthonormal vectors (n, k), ||H v - theta v|| <= tol x theta_1 for
        each, values within tol x theta_1 of the k largest ones, so that none was left out or came twice."""
        values, vectors = np.asarray(values, dtype=np.float64), np.asarray(vectors, dtype=np.float64)
        limit = tol * self.values[0]
        if values.shape != (self.k,) or vectors.shape != (self.n, self.k) or not np.isfinite(vectors).all():
            return f"shapes {values.shape}, {vectors.shape}"
        skew = np.abs(vectors.T @ vectors - np.eye(self.k)).max()
        if skew > 1e-2:
            return f"vectors orthonormal to {skew:.1g}"
        off = np.abs(np.sort(values)[::-1] - self.values).max()
        if not off <= limit:
            return f"values off by {off / self.values[0]:.1g} theta_1"
        for i in np.argsort(values):  # the smallest are the last to converge
            residual = np.linalg.norm(self.product(vectors[:, i]) - values[i] * vectors[:, i])
            if not residual <= limit:
                return f"residual {residual / self.values[0]:.1g} theta_1"
        return ""
