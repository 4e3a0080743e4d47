"""A Krylov basis spread over the ranks: every rank holds its columns of every vector, and the products come and go in these parts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from ..linalg.share import Share
from .distributed import Ranks

__all__ = ["ShardedProducts", "on_tensor", "share_of"]

LEAST = 64  # entries; a basis of shorter vectors is kept whole by every rank


def share_of(ranks: Ranks, n: int) -> Share | None:
    """This rank's columns: ceil(n / size) side by side, fewer for the last rank; None where the last would have none, or n is small.

    So the ranks' parts, each padded to the same length and laid side by side, are the vector itself with some room behind it."""
    width = -(-n // ranks.size)
    if ranks.size == 1 or n < LEAST or width * (ranks.size - 1) >= n:
        return None
    first = width * ranks.rank
    return Share(
        n,
        slice(first, min(n, first + width)),
        lambda x: on_tensor(x, ranks.add_up),
        lambda x: on_tensor(x, ranks.first),
    )


def on_tensor(x: NDArray[Any], work: Callable[[Tensor], None]) -> None:
    """``work`` on the memory of x, which may be strided."""
    whole = np.ascontiguousarray(x)
    work(torch.from_numpy(whole))
    if whole is not x:
        x[...] = whole


class ShardedProducts:
    """Products of a ModelOperator for the columns that ``share`` says this rank holds: rows (b, width) -> (b, width).

    local: (rows (b, n), out (b, n) of zeros) -> out, this rank's part of the products, agreed on but not added up yet.
    """

    def __init__(self, ranks: Ranks, share: Share, device: torch.device, sum_dtype: torch.dtype, local: Callable[[Tensor, Tensor], None]) -> None:
        self.ranks, self.share, self._device, self._sum_dtype, self._local = ranks, share, device, sum_dtype, local
        self._width = -(-share.n // ranks.size)  # that of all ranks but the last
        self._home = ranks.home(device)
        # gloo has had no reduce_scatter for long: there every rank gets all sums and keeps its own
        self._tick: Callable[[int], None] | None = None
        self._scatters = "nccl" in str(dist.get_backend_config(ranks.group))

    def __call__(self, v: NDArray[Any]) -> NDArray[Any]:
        n, padded = self.share.n, self._width * self.ranks.size
        rows = self._whole(v)[:, :n].to(self._device)
        out = torch.zeros((len(v), padded), dtype=self._sum_dtype, device=self._device)
        self._local(rows, out[:, :n])
        out = out.to(self._home)
        if self._scatters:
            parts = torch.empty((len(v), self._width), dtype=self._sum_dtype, device=self._home)
            for row, part in zip(out, parts, strict=True):
                dist.reduce_scatter(part, list(row.view(-1, self._width)), group=self.ranks.group)
            mine = parts[:, : self.share.width]
        else:
            self.ranks.add_up(out)
            mine = out[:, self.share.columns]
        if self._tick is not None:
            self._tick(len(v))
        return np.ascontiguousarray(mine.cpu().numpy())

    def told(self, tick: Callable[[int], None]) -> ShardedProducts:
        """The same, which tells ``tick`` how many products were made."""
        other = copy.copy(self)
        other._tick = tick
        return other

    def _whole(self, v: NDArray[Any]) -> Tensor:
        """The ranks' parts (b, width) of vectors -> (b, n and some room), on a device of the group's."""
        out = torch.zeros((len(v), self._width * self.ranks.size), dtype=torch.from_numpy(v[:0]).dtype, device=self._home)
        for row, part in zip(out, v, strict=True):
            mine = torch.zeros(self._width, dtype=out.dtype, device=self._home)
            mine[: self.share.width] = torch.from_numpy(np.ascontiguousarray(part))
            dist.all_gather(list(row.view(-1, self._width)), mine, group=self.ranks.group)
        return out

    def gather(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows (k, width), a part on every rank -> whole rows (k, n) on all of them."""
        out = np.empty((len(rows), self.share.n), dtype=rows.dtype)
        for to, row in zip(out, rows, strict=True):
            to[:] = self._whole(row[None])[0, : self.share.n].cpu().numpy()
        return out

    def least(self, x: int) -> int:
        return self.ranks.least(x)

    def one_interrupt(self) -> AbstractContextManager[None]:
        return self.ranks.one_interrupt()
