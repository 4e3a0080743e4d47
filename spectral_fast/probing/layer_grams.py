"""Gram matrices of the gradients of one parameter, from the inputs and output gradients of the calls that used it.

<G_i, G_j> of a weight with G_i = sum_t b_it a_itᵀ is sum_{t,s} <a_it, a_js> <b_it, b_js>: either the products of all pairs of positions, or the
samples' own gradients of this one weight, a tile at a time. Every Gram is added to a float64 array in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..linalg.arrays import device_of
from .token_grams import shared_tokens
from .use_records import Region

__all__ = ["Contribution", "GramKernel", "MatrixSum", "Rows", "Tokens", "array", "flops_of"]

F64 = NDArray[np.float64]


class GramKernel(Protocol):
    """gram (n, m) float64 += sum_t sum_s <a_it, a2_js> <b_it, b2_js> for a (n, T, p), b (n, T, q), a2 (m, S, p), b2 (m, S, q); without a2 and b2 of a
    and b with themselves, the whole symmetric matrix. b None: a (n, P) are rows. algorithm: "positions", "gradients" or "auto"."""

    def __call__(self, gram: F64, a: Any, b: Any = None, a2: Any = None, b2: Any = None, *, algorithm: str = "auto") -> Any: ...


def array(t: Tensor) -> Any:
    """C-contiguous float32 or float64 numbers as kernels take them: an array, or where they are on a device a tensor there."""
    t = t.detach()
    if t.dtype not in (torch.float32, torch.float64):
        t = t.float()
    return np.ascontiguousarray(t.contiguous().numpy()) if device_of(t) == "cpu" else t.contiguous()


def flops_of(algorithm: str, n: int, t: int, m: int | None, s: int, p: int, q: int) -> float:
    """Multiplications and additions of the Gram of n gradients (t positions, weight q x p) with themselves (m None), or with m others (s positions)."""
    if algorithm == "positions":
        pairs = n * t * (n * t + 1) / 2 if m is None else float(n) * t * m * s
        return 2.0 * pairs * (p + q)
    pairs = n * (n + 1) / 2 if m is None else float(n) * m
    return 2.0 * (n * t + (0 if m is None else m * s)) * p * q + 2.0 * pairs * p * q


class Contribution:
    """What some calls add to the gradients of n samples with respect to one parameter, or a region of it."""

    n: int
    region: Region

    def gram(self, gram: F64, other: Any, kernel: GramKernel, algorithm: str) -> None:
        """Adds the Gram with ``other`` (of the same kind and region; None: with itself)."""
        raise NotImplementedError

    def flops(self, algorithm: str, n: int | None = None) -> float:
        """Of n samples with themselves."""
        raise NotImplementedError

    def rows(self) -> Tensor:
        """The gradients themselves, (n, P)."""
        raise NotImplementedError

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def written_out(self) -> Rows:
        return Rows(self.rows(), self.region)


@dataclass
class Rows(Contribution):
    """The gradients themselves: values (n, P)."""

    values: Tensor
    region: Region

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.values.shape[0]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)

    def flops(self, algorithm: str, n: int | None = None) -> float:
        n = n or self.n
        return float(n) * (n + 1) * self.values.shape[1]

    def gram(self, gram: F64, other: Any, kernel: GramKernel, algorithm: str) -> None:
        kernel(gram, array(self.values), None, None if other is None else array(other.values))

    def rows(self) -> Tensor:
        return self.values

    def embedded(self, n_params: int) -> Tensor:
        """(n, P) with zeros outside of the region."""
        full = self.values.new_zeros((self.n, n_params))
        self.region.of(full).copy_(self.values.view(self.n, *(s for s, _ in self.region.dims)))
        return full

    @staticmethod
    def merged(parts: Sequence[Rows]) -> Rows:
        return parts[0] if len(parts) == 1 else Rows(torch.stack([p.values for p in parts]).sum(0), parts[0].region)


@dataclass
class MatrixSum(Contribution):
    """sum_t left_t right_tᵀ: left (n, T, q) along the region's first dimension, right (n, T, p) along its second."""

    left: Tensor
    right: Tensor
    region: Region

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.left.shape[0]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.left, self.right)

    def flops(self, algorithm: str, n: int | None = None) -> float:
        return flops_of(algorithm, n or self.n, self.left.shape[1], None, 0, self.right.shape[2], self.left.shape[2])

    def gram(self, gram: F64, other: Any, kernel: GramKernel, algorithm: str) -> None:
        pair = (None, None) if other is None else (array(other.right), array(other.left))
        kernel(gram, array(self.right), array(self.left), *pair, algorithm=algorithm)

    def rows(self) -> Tensor:
        return torch.bmm(self.left.transpose(1, 2), self.right).flatten(1)

    @staticmethod
    def merged(parts: Sequence[MatrixSum]) -> MatrixSum:
        if len(parts) == 1:
            return parts[0]
        return MatrixSum(torch.cat([p.left for p in parts], 1), torch.cat([p.right for p in parts], 1), parts[0].region)


@dataclass
class Tokens(Contribution):
    """Rows added to those of a table (V, d): values (M, d) to row tokens (M) for sample owners (M); no (sample, token) twice."""

    tokens: Tensor
    owners: Tensor
    values: Tensor
    samples: int
    vocabulary: int
    region: Region

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.samples

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.tokens, self.owners, self.values)

    @staticmethod
    def of(tokens: Tensor, values: Tensor, vocabulary: int, region: Region, padding: int | None = None) -> Tokens:
        """tokens (n, T), values (n, T, d): the rows of a sample that belong to the same token are added up."""
        n, width = tokens.shape
        owners = torch.arange(n, device=tokens.device)[:, None].expand(n, width)
        keys = (owners * vocabulary + tokens).flatten()
        values = values.reshape(n * width, -1)
        if padding is not None:
            keep = tokens.flatten() != padding
            keys, values = keys[keep], values[keep]
        return Tokens._summed(keys, values, n, vocabulary, region)

    @staticmethod
    def _summed(keys: Tensor, values: Tensor, n: int, vocabulary: int, region: Region) -> Tokens:
        distinct, where = torch.unique(keys, return_inverse=True)
        total = values.new_zeros((len(distinct), values.shape[1])).index_add_(0, where, values)
        return Tokens(distinct % vocabulary, torch.div(distinct, vocabulary, rounding_mode="floor"), total, n, vocabulary, region)

    @staticmethod
    def merged(parts: Sequence[Tokens]) -> Tokens:
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        keys = torch.cat([p.owners * p.vocabulary + p.tokens for p in parts])
        return Tokens._summed(keys, torch.cat([p.values for p in parts]), first.samples, first.vocabulary, first.region)

    def flops(self, algorithm: str, n: int | None = None) -> float:
        _, counts = torch.unique(self.tokens, return_counts=True)
        grown = ((n or self.n) / self.n) ** 2
        return float((counts.double() ** 2).sum()) * self.values.shape[1] * grown

    def gram(self, gram: F64, other: Any, kernel: GramKernel, algorithm: str) -> None:
        shared_tokens(gram, self, self if other is None else other)

    def rows(self) -> Tensor:
        full = self.values.new_zeros((self.samples * self.vocabulary, self.values.shape[1]))
        full[self.owners * self.vocabulary + self.tokens] = self.values
        return full.view(self.samples, -1)
