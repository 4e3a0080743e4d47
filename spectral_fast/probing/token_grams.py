"""Grams of gradients of embedding tables: only samples that hold the same token have a product, and no table of zeros is ever written out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from .layer_grams import MatrixSum, Tokens

__all__ = ["rows_of_outputs", "shared_tokens"]

F64 = NDArray[np.float64]
PAIRS_AT_ONCE = 1 << 20


def shared_tokens(gram: F64, left: Tokens, right: Tokens) -> None:
    """gram (n, m) += sum over tokens v of <row v of sample i's gradient, row v of sample j's>."""
    same = left is right
    a, b = _sorted(left), _sorted(right)
    b = a if same else b
    common = np.intersect1d(a.tokens, b.tokens, assume_unique=True)
    i, j = np.searchsorted(a.tokens, common), np.searchsorted(b.tokens, common)
    sizes_a, sizes_b = a.counts[i], b.counts[j]
    # groups of about the same sizes together: padded products waste less than half of each side
    classes = np.stack([np.ceil(np.log2(sizes_a)), np.ceil(np.log2(sizes_b))]).astype(np.int64)
    for kind in np.unique(classes, axis=1).T:
        members = np.flatnonzero((classes == kind[:, None]).all(axis=0))
        wide, tall = 1 << int(kind[0]), 1 << int(kind[1])
        step = max(1, PAIRS_AT_ONCE // max(wide * tall, (wide + tall) * left.values.shape[1]))
        for k in range(0, len(members), step):
            some = members[k : k + step]
            x, rows = a.padded(i[some], wide)
            y, columns = (x, rows) if same else b.padded(j[some], tall)
            products = torch.bmm(x, y.transpose(1, 2)).double().cpu().numpy()
            _scatter(gram, products, rows, columns)


def _scatter(gram: F64, products: F64, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> None:
    """gram[rows_gi, columns_gj] += products_gij; padded entries have row -1."""
    n, m = gram.shape
    if len(products) == 1:
        keep_i, keep_j = rows[0] >= 0, columns[0] >= 0
        # a token belongs to a sample once: no index twice
        gram[np.ix_(rows[0][keep_i], columns[0][keep_j])] += products[0][np.ix_(keep_i, keep_j)]
        return
    where = rows[:, :, None] * m + columns[:, None, :]
    keep = (rows[:, :, None] >= 0) & (columns[:, None, :] >= 0)
    gram += np.bincount(where[keep], weights=products[keep], minlength=n * m).reshape(n, m)


class _sorted:
    """Rows ordered by token. tokens, counts, starts: of the groups."""

    def __init__(self, terms: Tokens) -> None:
        order = torch.argsort(terms.tokens, stable=True)
        self.values = terms.values[order]
        self.owners = terms.owners[order].cpu().numpy()
        self.tokens, self.starts, self.counts = np.unique(terms.tokens[order].cpu().numpy(), return_index=True, return_counts=True)

    def padded(self, groups: NDArray[Any], width: int) -> tuple[Tensor, NDArray[np.int64]]:
        """(g, width, d) rows of these groups with zeros behind, and their samples (g, width), -1 there."""
        where = self.starts[groups][:, None] + np.arange(width)[None]
        real = np.arange(width)[None] < self.counts[groups][:, None]
        where = np.where(real, where, 0)
        index = torch.from_numpy(where).to(self.values.device)
        found = self.values[index] * torch.from_numpy(real).to(self.values)[:, :, None]
        return found, np.where(real, self.owners[where], -1)


def rows_of_outputs(gram: F64, tokens: Tokens, outputs: MatrixSum) -> None:
    """gram (n, m) += <sample i's gradient of the table as an embedding, sample j's as an output layer>: a table used as both.

    outputs: left (m, S, V), right (m, S, d). Of an output layer's gradient only the rows of tokens that occur are formed.
    """
    distinct, where = torch.unique(tokens.tokens, return_inverse=True)
    m, owners = outputs.n, tokens.owners.cpu().numpy()
    step = max(1, PAIRS_AT_ONCE // max(1, len(tokens.tokens) + len(distinct) * outputs.right.shape[2]))
    for j in range(0, m, step):
        left = outputs.left[j : j + step].index_select(2, distinct)
        rows = torch.bmm(left.transpose(1, 2), outputs.right[j : j + step])  # (some, distinct, d)
        for k in range(rows.shape[0]):
            products = (rows[k].index_select(0, where) * tokens.values).sum(1).double().cpu().numpy()
            gram[:, j + k] += np.bincount(owners, weights=products, minlength=gram.shape[0])
