"""All that the calls of one parameter add to its gradients, and products of the gradients of two sets of samples."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .conv_grams import ConvSum
from .layer_grams import Contribution, GramKernel, MatrixSum, Rows, Tokens
from .token_grams import rows_of_outputs
from .use_records import Region

__all__ = ["ALGORITHMS", "ParameterGradient", "Route"]

F64 = NDArray[np.float64]
ALGORITHMS = ("auto", "positions", "gradients")
Route = tuple[str, float]  # algorithm, predicted flops of the whole Gram


@lru_cache(maxsize=256)
def _meet(a: Region, b: Region, n_params: int) -> bool:
    """Have two different regions of a parameter a number in common?"""

    def reach(r: Region) -> int:
        return r.offset + sum((size - 1) * step for size, step in r.dims)

    if reach(a) < b.offset or reach(b) < a.offset:
        return False
    seen = torch.zeros(n_params, dtype=torch.bool)
    a.of(seen).fill_(True)
    return bool(b.of(seen).any())


def _refined(found: Sequence[Contribution]) -> list[Contribution]:
    """Outer products for overlapping ranges of a weight's rows (keys and values, keys alone) cut at each other's ends."""
    ranges: dict[tuple[int, tuple[int, int], int], list[MatrixSum]] = {}
    rest: list[Contribution] = []
    for c in found:
        step = c.region.dims[0][1] if isinstance(c, MatrixSum) else 0
        if isinstance(c, MatrixSum) and step > 1:
            ranges.setdefault((step, c.region.dims[1], c.region.offset % step), []).append(c)
        else:
            rest.append(c)
    for (step, columns, _), members in ranges.items():
        cuts = sorted({row for c in members for row in (c.region.offset // step, c.region.offset // step + c.region.dims[0][0])})
        for c in members:
            first, last = c.region.offset // step, c.region.offset // step + c.region.dims[0][0]
            inner = [row for row in cuts if first <= row <= last]
            for a, b in zip(inner[:-1], inner[1:], strict=True):
                region = Region(c.region.offset + (a - first) * step, ((b - a, step), columns))
                rest.append(c if (a, b) == (first, last) else MatrixSum(c.left[..., a - first : b - first], c.right, region))
    return rest


class ParameterGradient:
    """Gradients of n samples with respect to one parameter, as a sum of contributions to regions of it that do not meet.

    Raises ValueError where contributions of different kinds meet (except a table used as an embedding and as an output layer).
    """

    def __init__(self, found: Sequence[Contribution], n_params: int) -> None:
        self.n_params = n_params
        self.n = found[0].n
        groups: dict[tuple[type, Region], list[Contribution]] = {}
        for c in _refined(found):
            groups.setdefault((type(c), c.region), []).append(c)
        rows = [k for k in groups if k[0] is Rows]
        if any(_meet(a[1], b[1], n_params) for i, a in enumerate(rows) for b in rows[:i]):
            whole = Region(0, ((n_params, 1),))
            wide = [Rows(c.embedded(n_params), whole) for k in rows for c in groups.pop(k) if isinstance(c, Rows)]
            groups[(Rows, whole)] = list(wide)
        self.parts = [kind.merged(members) for (kind, _), members in groups.items()]  # type: ignore[attr-defined]
        for i, a in enumerate(self.parts):
            for b in self.parts[:i]:
                _related(a, b, n_params)
        self._made = self._versions()

    def _versions(self) -> list[int]:
        return [t._version for p in self.parts for t in p.tensors]

    @property
    def overwritten(self) -> bool:
        """Has somebody written to the tensors these gradients are made of (a model to a buffer that it hands to a layer)?"""
        return self._versions() != self._made

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in self.parts)

    @property
    def are_rows(self) -> bool:
        return len(self.parts) == 1 and isinstance(self.parts[0], Rows)

    def route(self, n: int, algorithm: str = "auto") -> Route:
        """The cheaper algorithm for n samples, or the one asked for, and its flops."""
        choices = [(sum(p.flops(a, n) for p in self.parts), a) for a in ALGORITHMS[1:] if algorithm in ("auto", a)]
        flops, best = min(choices)
        if not any(isinstance(p, (MatrixSum, ConvSum)) for p in self.parts):
            best = "tokens" if any(isinstance(p, Tokens) for p in self.parts) else "rows"
        return best, flops

    @property
    def can_be_written(self) -> bool:
        """A table's rows stay what they are: what else the parameter is used for is multiplied by them as outer products."""
        return not any(isinstance(p, Tokens) for p in self.parts)

    def written_out(self) -> None:
        """Outer products and convolutions as the gradients themselves."""
        self.parts = [p.written_out() if isinstance(p, (MatrixSum, ConvSum)) else p for p in self.parts]
        self._made = self._versions()

    def numbers(self) -> int:
        """How many numbers per sample written_out leaves."""
        return sum(p.region.numel for p in self.parts)

    def rows(self) -> Tensor:
        """(n, P) of a parameter whose gradients are written out."""
        rows = [p for p in self.parts if isinstance(p, Rows)]
        if len(rows) == 1 and rows[0].region.numel == self.n_params:
            return rows[0].values
        return torch.stack([p.embedded(self.n_params) for p in rows]).sum(0)

    def gram(self, gram: F64, other: ParameterGradient | None, kernel: GramKernel, algorithm: str) -> None:
        """gram (n, m) += <G_i, G_j>; other None: with itself."""
        for i, a in enumerate(self.parts):
            for j, b in enumerate(self.parts if other is None else other.parts):
                relation = "same" if other is None and i == j else _related(a, b, self.n_params)
                if relation == "same":
                    a.gram(gram, None if other is None else b, kernel, algorithm)
                elif relation == "rows":
                    wide = [c.embedded(self.n_params) for c in (a, b) if isinstance(c, Rows)]
                    whole = Region(0, ((self.n_params, 1),))
                    Rows(wide[0], whole).gram(gram, Rows(wide[1], whole), kernel, algorithm)
                elif relation == "table":
                    if isinstance(a, Tokens) and isinstance(b, MatrixSum):
                        rows_of_outputs(gram, a, b)
                    elif isinstance(b, Tokens) and isinstance(a, MatrixSum):
                        rows_of_outputs(gram.T, b, a)


def _related(a: Contribution, b: Contribution, n_params: int) -> str:
    if a.region == b.region and type(a) is type(b):
        return "same"
    if a.region == b.region and {type(a), type(b)} == {Tokens, MatrixSum}:
        return "table"
    if a.region != b.region and not _meet(a.region, b.region, n_params):
        return "apart"
    if isinstance(a, Rows) and isinstance(b, Rows):
        return "rows"
    raise ValueError("used in two ways whose products are not known")
