"""Covariance of the gradients of single samples as products with vectors: no gradient of a sample is ever stored.

C v = 1/(1 - s2) sum_n p_n (g_n - g)(g_n - g)ᵀ v. With u_n = <g_n, v>, the derivative of sample n's own loss along v, and <g, v> = sum_n p_n u_n this
is 1/(1 - s2) sum_n p_n (u_n - <g, v>) g_n: the derivatives of all losses along one vector, then one backward pass with p_n (u_n - <g, v>) as the
cotangents of the losses. G (N x P) is not formed.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.autograd.graph import get_gradient_edge

from ..metrics.gradient_noise import gram_vectors
from ..probing.batches import Batch
from ..probing.calls import Calls, watched_calls
from ..probing.memory import free_memory
from ..probing.operator import ModelOperator
from ..probing.per_sample import samples_of, take
from ..probing.sample_losses import SampleLosses
from .positions import AGREEMENT, PositionProducts
from .result import GradientSpectrum

__all__ = ["GradientCovariance", "top_directions"]

F64 = NDArray[np.float64]
UNITS = ("sample", "position", "batch")
KEPT, REBUILT, FORWARD = "kept graph", "graph rebuilt", "forward mode"
# A kept graph holds the forward pass's saved tensors, those of the backward pass through it, and what a product makes on its way.
GRAPH_FACTOR = 4.0
GRAPH_SHARE = 0.25
# backward() takes edges, which do not hold the gradients' values in memory, from torch 2.7 on
EDGES = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 7)


@dataclass(frozen=True)
class _Part:
    """The units of one batch: samples with a valid target, or the batch. p: (m,) their weights, float64; first: index of the first one."""

    batch: Batch
    p: Tensor
    first: int


@dataclass(frozen=True)
class _Graph:
    """The units' losses (m,), and ``pulled`` = Jᵀ cotangent with its graph, J = d losses / d parameters. Jᵀ c is linear in c, so that its
    derivative along v with respect to c is J v: one backward pass through the backward pass."""

    losses: Tensor
    cotangent: Tensor
    pulled: tuple[Any, ...]
    index: tuple[int, ...]  # of the leaves that the losses depend on


class GradientCovariance(ModelOperator):
    """C = 1/(1 - s2) sum_n p_n (g_n - g)(g_n - g)ᵀ over the model's P parameters, s2 = sum p_n²; see ModelOperator for the other arguments.

    g_n: gradient of the own mean loss of sample n, p_n: its share of all terms (1/N, or its valid tokens over all), g = sum p_n g_n: C is
    that of ``gradient_covariance``, whose nonzero eigenvalues it has. centered=False: sum p_n g_n g_nᵀ, the empirical Fisher.
    unit: "sample"; "batch" for the mean gradients of the loader's batches; "position" for what single positions t of T (tokens, say) add to the
    gradients of their samples, T g_nt with weight p_n / T, so that their mean is g: of a weight's sum_t b_nt a_ntᵀ one t alone. That is not the gradient
    of a loss at this position. Products need the inputs and output gradients of one forward and backward pass, which are kept where they fit in
    ``graph_memory``. All layers of ``params`` need the same positions in the same order: convolutions and what follows pooling have others (name the
    rest, as ``params="blocks.*"``), and models that put positions in another order (windows, flips) are refused where that is seen.

    A product costs two to three gradients, and holds the mean gradient and the graph of a batch, not N x P numbers. keep: whether the graphs
    of all batches are kept between products; None: where they fit in ``graph_memory`` bytes (None: a quarter of what is free). strategy: how
    products are computed. ``losses.way``: how the losses of single samples are, in one forward pass where that agrees with samples alone.

    Raises ValueError for an unknown unit, for fewer than two units with centered=True, and with unit="position" for models whose positions cannot be
    told apart.
    """

    keep: bool | None = None
    graph_memory: float | None = None

    def __init__(self, model: Any, loader: Any, loss: Any = None, *, centered: bool = True, unit: str = "sample", **arguments: Any) -> None:
        if unit not in UNITS:
            raise ValueError(f"unit: {unit!r} is unknown; known: {', '.join(UNITS)}")
        if not isinstance(centered, (bool, np.bool_)):
            raise ValueError(f"centered: wanted True or False, got {centered!r}")
        super().__init__(model, loader, loss, **arguments)
        self.centered, self.unit = centered, unit
        self.losses = SampleLosses(self.functional, self.loss)
        self._kept: dict[int, _Graph] = {}
        self._mean: Tensor | None = None
        self._seconds: dict[str, float] = {}
        self._by_position: PositionProducts | None = None
        calls = Calls((), (), (), 0, self.device.type == "cuda")  # of a rank without samples
        with self.ranks.agreed("the losses of single samples"):
            self._parts, empty = self._divided()
            if self._parts:
                with self.running():
                    if unit != "batch":
                        self.losses(self._parts[0].batch)  # the way is chosen here, outside of what is watched
                    self._draws.restore()
                    calls = watched_calls(self.model, lambda: self.unit_losses(self._parts[0].batch), self.leaves)
                if unit == "position" and self._parts:
                    self._by_position = PositionProducts(self, [(part.batch, part.p) for part in self._parts])
        self._saved = calls.saved_bytes
        each = self._by_position.counts if self._by_position is not None else [1] * len(self._parts)
        self.n_units = sum(row[0] for row in self.ranks.gather([sum(t * len(part.p) for t, part in zip(each, self._parts, strict=True))]))
        s2 = self.ranks.total(sum(float(part.p @ part.p) / t for t, part in zip(each, self._parts, strict=True)))
        if centered and self.n_units < 2:
            raise ValueError(f"loader: a covariance needs at least 2 {unit} gradients, got {self.n_units}")
        self.scale = 1.0 / (1.0 - s2) if centered else 1.0
        self.notes += (*calls.notes, *self.losses.notes, *((f"{empty} samples without a valid target left out",) if empty else ()))
        if self._by_position is not None:
            self.notes += self._by_position.notes

    def _divided(self) -> tuple[list[_Part], int]:
        """The units by batch, without those of weight 0, and how many were left out."""

        def weights(p: list[float]) -> Tensor:
            return torch.tensor(p, dtype=torch.float64, device="cpu" if self.device.type == "mps" else self.device)

        if self.unit == "batch":
            counting = [(b, w) for b, w in zip(self.batches, self.weights, strict=True) if w > 0]
            return [_Part(b, weights([w]), i) for i, (b, w) in enumerate(counting)], 0
        units, empty = samples_of(self.batches, self.loss)
        parts = []
        for b, (batch, weight) in enumerate(zip(self.batches, self.weights, strict=True)):
            own = [(i, u) for i, u in enumerate(units) if u.batch == b]
            if own:
                terms = sum(u.weight for _, u in own)
                rows = [u.row for _, u in own if u.row is not None]
                parts.append(_Part(batch if len(rows) == batch.size else take(batch, rows), weights([weight * u.weight / terms for _, u in own]), own[0][0]))
        return parts, empty

    def release(self) -> None:
        """Drop the kept graphs (they come back with the next product)."""
        self._kept.clear()
        if self._by_position is not None:
            self._by_position.kept.clear()

    @property
    def strategy(self) -> str:
        if self._by_position is not None:
            return self._by_position.strategy
        return f"{self._way()}; losses of samples by {self.losses.way}" if self.unit == "sample" else self._way()

    def kept_limit(self) -> float:
        """Bytes that may be kept between products."""
        return GRAPH_SHARE * free_memory(self.device) if self.graph_memory is None else self.graph_memory

    def graph_bytes(self) -> float:
        """Of all batches together, predicted from what the forward pass of the first saves."""
        sizes = [part.batch.size for part in self._parts]
        return GRAPH_FACTOR * self._saved * sum(sizes) / max(sizes[0], 1) if sizes else 0.0

    # -- products --------------------------------------------------------------------------------------------------------

    def mean_gradient(self) -> Tensor:
        """g = sum_n p_n g_n (P,) over the units of all ranks, in the dtype of the sums; computed once."""
        if self._mean is None:
            mean = self.zeros()
            with self.ranks.agreed("the mean gradient"), self.running():
                for part in self._parts:
                    self.pull(self.unit_losses(part.batch), part.p, mean, 1.0, False)
            self.ranks.add_up(mean)
            self._mean = mean
        return self._mean

    def _own_part(self, rows: Tensor, out: Tensor, same: Tensor | None = None) -> None:
        if self.centered:
            self.mean_gradient()  # of all ranks, before each goes through its own samples
        super()._own_part(rows, out, same)

    def _products(self, rows: Tensor, out: Tensor) -> None:
        if self._by_position is not None:
            shifts, left = self._shifts(rows), [0.0] * len(rows)
            self._by_position.add(rows, shifts, left, out)
            self._centre(left, out)
            return
        way = self._way()
        self._timed(way, rows, out)
        if way == REBUILT and FORWARD not in self._seconds:
            self._try_forward(rows[:1], out[:1])

    def _way(self) -> str:
        if self.keep is None:
            self.keep = self.graph_bytes() <= self.kept_limit()
        if self.keep:
            return KEPT
        return FORWARD if self._seconds.get(FORWARD, np.inf) < self._seconds.get(REBUILT, np.inf) else REBUILT

    def _try_forward(self, row: Tensor, want: Tensor) -> None:
        """Once, where graphs are not kept: is forward mode faster, and does it give the same product? It repeats one that was asked for."""
        got = torch.zeros_like(want)
        try:
            self._draws.restore()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the rules that torch loads at their first use, which is not timed
                first = self._parts[0].batch
                self._along(take(first, [0]), None, self.split(row[0]))
                self._draws.restore()
                self._timed(FORWARD, row, got)
            difference = float((got - want).norm()) / max(float(want.norm()), 1e-300)
            # centring takes away what is common to the gradients, rounding is relative to all of it
            if not difference <= AGREEMENT * torch.finfo(self.dtype).eps and float(want.norm()) > 0.0:
                raise ValueError(f"it differs from the double backward by {difference:.1g}")
        except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError, IndexError) as why:
            self._seconds[FORWARD] = np.inf
            self.notes += (f"products not by {FORWARD}: {str(why).strip().splitlines()[0][:200] if str(why).strip() else type(why).__name__}",)

    def _timed(self, way: str, rows: Tensor, out: Tensor) -> None:
        start = time.perf_counter()
        self._go(way, rows, out)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._seconds[way] = min(self._seconds.get(way, np.inf), (time.perf_counter() - start) / len(rows))

    def _go(self, way: str, rows: Tensor, out: Tensor) -> None:
        along = [self.split(v) for v in rows]
        shifts = self._shifts(rows)
        left = [0.0] * len(rows)
        for part, graph in self._graphs(way):
            for i, row in enumerate(out):
                losses, u = self._along(part.batch, graph, along[i])
                if u is None:
                    continue
                c = part.p * (u.to(part.p) - shifts[i])
                left[i] += float(c.sum())
                self.pull(losses, c, row, self.scale, graph is not None and (bool(self.keep) or i + 1 < len(rows)))
        self._centre(left, out)

    def _shifts(self, rows: Tensor) -> list[float]:
        """<g, v>, 0 where nothing is centred."""
        return [float(self._mean @ v.to(self.sum_dtype)) if self._mean is not None and self.centered else 0.0 for v in rows]

    def _centre(self, left: list[float], out: Tensor) -> None:
        """left: sum_n p_n (u_n - <g, v>) by row."""
        if self.centered and self._mean is not None:
            # u and <g, v> come by different sums: what is left of sum_n p_n (u_n - <g, v>) would come back as a multiple of g
            for row, rest in zip(out, left, strict=True):
                row.sub_(self._mean, alpha=self.scale * rest)

    def _graphs(self, way: str) -> Iterator[tuple[_Part, _Graph | None]]:
        for i, part in enumerate(self._parts):
            if way == FORWARD:
                yield part, None
                continue
            graph = self._kept.get(i) or self._build(part.batch)
            if self.keep:
                self._kept[i] = graph
            yield part, graph

    def _build(self, batch: Batch) -> _Graph:
        losses = self.unit_losses(batch)
        cotangent = torch.zeros_like(losses).requires_grad_()
        if not losses.requires_grad:
            return _Graph(losses, cotangent, (), ())
        grads = torch.autograd.grad(losses, self.leaves, cotangent, create_graph=True, allow_unused=True)
        live = [(i, g) for i, g in enumerate(grads) if g is not None and g.requires_grad]
        # edges: where the gradients come from is needed, their values (P of them for every batch) are not
        return _Graph(losses, cotangent, tuple(get_gradient_edge(g) if EDGES else g for _, g in live), tuple(i for i, _ in live))

    def _along(self, batch: Batch, graph: _Graph | None, along: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        """(losses with their graph, their derivatives along a vector; None: 0)."""
        if graph is None:
            with dual_level():
                duals = {name: make_dual(leaf, a) for name, leaf, a in zip(self.names, self.leaves, along, strict=True)}  # type: ignore[no-untyped-call]
                losses, u = unpack_dual(self.unit_losses(batch, duals))  # type: ignore[no-untyped-call]
            # outside the level the graph is that of the primal values alone
            return losses, None if u is None or not losses.requires_grad else u.detach()
        if not graph.pulled:
            return graph.losses, None
        (u,) = torch.autograd.grad(graph.pulled, graph.cotangent, tuple(along[i] for i in graph.index), retain_graph=True)
        return graph.losses, u

    def unit_losses(self, batch: Batch, leaves: Any = None) -> Tensor:
        """(m,) of the units of a batch, with their graph."""
        return self.batch_loss(batch, leaves).reshape(1) if self.unit == "batch" else self.losses(batch, leaves)

    def pull(self, losses: Tensor, c: Tensor, row: Tensor, weight: float, retain: bool) -> None:
        """row += weight * sum_n c_n g_n."""
        if losses.requires_grad:
            cotangent = c.to(device=losses.device, dtype=losses.dtype)
            self.add_flat(row, torch.autograd.grad(losses, self.leaves, cotangent, retain_graph=retain, allow_unused=True), weight)

    def combinations(self, coefficients: F64) -> F64:
        """sum_n c_kn g_n: (k, n) coefficients of this process's n units, in the loader's order without those of weight 0 -> (k, P), in float64.
        One forward pass, and one backward pass for each of the k. Raises ValueError for another shape."""
        own = sum(len(part.p) for part in self._parts)
        if self.unit == "position":
            raise ValueError("op: combinations are of the gradients of samples or batches, not of positions")
        if coefficients.ndim != 2 or coefficients.shape[1] != own:
            raise ValueError(f"coefficients: wanted shape (k, {own}), got {coefficients.shape}")
        out = torch.zeros((len(coefficients), self.shape[0]), dtype=self.sum_dtype, device=self.device)
        with self.ranks.agreed("combinations of gradients"), self.running():
            for part in self._parts:
                losses = self.unit_losses(part.batch)
                for i, row in enumerate(out):
                    c = torch.from_numpy(np.ascontiguousarray(coefficients[i, part.first : part.first + len(part.p)]))
                    self.pull(losses, c, row, 1.0, i + 1 < len(out))
        self.ranks.add_up(out)
        return np.asarray(out.cpu().numpy(), dtype=np.float64)


def top_directions(op: GradientCovariance, result: GradientSpectrum, k: int) -> tuple[F64, F64]:
    """(eigenvalues (m,), eigenvectors (P, m)), m <= k, of the covariance in the space of the parameters, from the Gram matrix of ``result``.

    An eigenvector a of the Gram matrix belongs to Gᵀ a: one backward pass for each vector, where eigsh would take two gradients for every product
    of dozens. Only pairs above the noise floor of ``result``, which may be of some of op's units (its own sample limit). Raises ValueError where the
    two are not of the same model, sample set and convention.
    """
    if op.ranks.size > 1:
        raise ValueError("op: is spread over ranks; the eigenvectors of a Gram matrix are found where one process has all samples")
    same = (op.shape[0], op.unit, op.centered) == (result.n_params, result.unit, result.centered)
    if not same or not 1 <= len(result.units) <= op.n_units or result.units[-1] >= op.n_units:
        raise ValueError(f"result: has {result.n_units} {result.unit} gradients of {result.n_params} parameters, op {op.n_units} of {op.shape[0]}")
    values, coefficients = gram_vectors(result.gram, result.weights, k, centered=op.centered)
    above = values > result.noise_floor
    of_all = np.zeros((int(above.sum()), op.n_units))
    of_all[:, result.units] = coefficients[above]
    vectors = op.combinations(of_all)
    return values[above], vectors.T / np.maximum(np.linalg.norm(vectors, axis=1), 1e-300)
