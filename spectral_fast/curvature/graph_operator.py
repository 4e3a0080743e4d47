"""Base of Hessian and GGN: products by one of several ways, chosen by time and memory."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import make_dual
from torch.autograd.graph import get_gradient_edge

from ..probing.batches import Batch
from ..probing.calls import Calls, watched_calls
from ..probing.memory import free_memory
from ..probing.operator import ModelOperator
from .strategy import BATCHED, FAILURES, FORWARD, KEPT, REBUILT, Chooser, timed

__all__ = ["GRAPH_SHARE", "GraphOperator", "Roots", "batched_grad", "live_roots"]

# A kept graph holds the forward pass's saved tensors, those of the backward pass through it, and what a product makes on its way. Measured on the CPU in
# units of the first (perceptrons with tanh and relu, conv nets, a transformer): 1.7 to 2.6 stay, the peak of the first product is 2.8 to 5.2.
GRAPH_FACTOR = 4.0
# Forward mode holds the forward pass's saved tensors and their derivatives.
FORWARD_FACTOR = 2.0
# Of the memory that is free when the first product is asked for: what asks for it, an eigensolver say, has most of its basis still to fill, some ten times
# the model at least, and nobody tells the operator how large it will be.
GRAPH_SHARE = 0.25
SAMPLES = 4  # of the first batch: a way of computing products is compared with the double backward on them before it is used
# Their relative difference, in units of the dtype's epsilon: far above rounding in a deep net, far below a wrong derivative.
AGREEMENT = 2e4
# backward() takes edges, which do not hold the gradients' values in memory, from torch 2.7 on
EDGES = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 7)

Roots = tuple[Any, ...]  # tensors or edges


class GraphOperator(ModelOperator):
    """Products by one of several ways, see strategy.Chooser. A differentiable graph per batch is kept between products where all of them fit,
    else built anew for every product.

    keep: whether graphs are kept; None: decided by ``graph_memory`` at the first product. graph_memory: bytes that graphs (or the
    derivatives of forward mode) may take; None: a quarter of what is free on the device.
    strategy: how products are computed, in words; ``chooser`` has the times, and the reasons against a way.
    """

    keep: bool | None = None
    graph_memory: float | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._kept: dict[int, Any] = {}
        self._chooser: Chooser | None = None
        # the sums are the leaves' own .grad where dtypes agree: no list of gradients beside the total
        self._in_place = all(leaf.dtype == self.sum_dtype for leaf in self.leaves)
        calls = Calls((), (), (), 0, self.device.type == "cuda")  # of a rank without samples
        with self.ranks.agreed("watching the forward pass"), self.running():
            if len(self.batches):
                calls = watched_calls(self.model, lambda: self.batch_loss(self.batches[0]), self.leaves)
        found = self.ranks.united({"attention": calls.attention, "recurrent": calls.recurrent, "kinks": calls.kinks})
        self.calls: Calls = replace(calls, attention=found["attention"], recurrent=found["recurrent"], kinks=found["kinks"])
        self.notes += self.calls.notes

    def release(self) -> None:
        """Drop the kept graphs (they come back with the next product)."""
        self._kept.clear()

    @property
    def strategy(self) -> str:
        return "not chosen yet" if self._chooser is None else self._chooser.strategy

    @property
    def chooser(self) -> Chooser:
        """Made at the first product, when ``keep`` and ``graph_memory`` are settled."""
        if self._chooser is None:
            allowed = GRAPH_SHARE * free_memory(self.device) if self.graph_memory is None else self.graph_memory
            total, largest = self.graph_bytes()
            if self.keep is None:
                self.keep = total <= allowed
            light = largest * FORWARD_FACTOR / GRAPH_FACTOR
            self._block = int((allowed - (total if self.keep else largest)) / max(largest, 1.0))
            base = KEPT if self.keep else REBUILT
            self._chooser = Chooser(base, forward=light <= allowed, batched=self._block >= 2)
            if not self.keep and largest > allowed and light <= allowed and self._agrees(FORWARD):
                self._chooser = Chooser(FORWARD, forward=True, batched=False)
        return self._chooser

    def graph_bytes(self) -> tuple[float, float]:
        """(all graphs, the largest of them) in bytes, predicted from what the forward pass of the first batch saves."""
        if not len(self.batches):
            return 0.0, 0.0
        per_sample = GRAPH_FACTOR * self.calls.saved_bytes / self.batches[0].size
        gradient = 0 if EDGES else sum(leaf.numel() * leaf.element_size() for leaf in self.leaves)  # a graph holds one
        sizes = [batch.size for batch in self.batches]
        return per_sample * sum(sizes) + gradient * len(sizes), per_sample * max(sizes) + gradient

    # -- products --------------------------------------------------------------------------------------------------------

    def _products(self, rows: Tensor, out: Tensor) -> None:
        chooser = self.chooser
        way = chooser.next(len(rows))
        if way not in chooser.seconds and way != chooser.base and not self._agrees(way):
            way = chooser.next(len(rows))
        try:
            seconds = timed(self.device, lambda: self._go(way, rows, out))
        except FAILURES as why:
            if way == chooser.base:
                raise
            self._refuse(way, str(why))
            out.zero_()
            return self._products(rows, out)
        chooser.done(way, len(rows), seconds)

    def _refuse(self, way: str, why: str) -> None:
        reason = why.strip().split("\n")[0][:200]
        self.chooser.refuse(way, reason)
        self.notes += (f"products not by {way}: {reason}",)

    def _agrees(self, way: str) -> bool:
        """Does this way give the double backward's products on the first samples? Else it is refused, with the reason."""
        n = self.shape[0]
        few = self.batches.head(SAMPLES)[0]
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(2 if way == BATCHED else 1, n, generator=generator, dtype=self.dtype).to(self.device)
        want, got = (torch.zeros(rows.shape, dtype=self.sum_dtype, device=self.device) for _ in range(2))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the rules that torch loads
                self._draws.restore()
                graph = self._build(few, 1.0)
                for v, row in zip(rows, want, strict=True):
                    self._sweep(graph, few, self.split(v), row, 1.0, True)
                self._draws.restore()
                if way == BATCHED:
                    self._batched_sweep(graph, few, rows, got, 1.0)
                else:
                    self._forward(few, self.split(rows[0]), got[0], 1.0)
        except FAILURES as why:
            self._refuse(way, str(why))
            return False
        finally:
            self._draws.restore()
        allowed = AGREEMENT * torch.finfo(self.dtype).eps * float(want.norm())
        difference = float((got - want).norm())
        if difference <= allowed:  # NaN is not
            return True
        self._refuse(way, f"it differs from the double backward by {difference / max(float(want.norm()), 1e-300):.1g} on the first samples")
        return False

    def _go(self, way: str, rows: Tensor, out: Tensor) -> None:
        if way == FORWARD:
            for batch, weight in self._counting():
                for v, row in zip(rows, out, strict=True):
                    self._forward(batch, self.split(v), row, weight)
            return
        for batch, weight, graph in self._graphs():
            if way == BATCHED:
                for i in range(0, len(rows), self._block):
                    self._batched_sweep(graph, batch, rows[i : i + self._block], out[i : i + self._block], weight)
            else:
                for i, (v, row) in enumerate(zip(rows, out, strict=True)):
                    self._sweep(graph, batch, self.split(v), row, weight, bool(self.keep) or i + 1 < len(rows))

    def _counting(self) -> Iterator[tuple[Batch, float]]:
        return ((batch, weight) for batch, weight in zip(self.batches, self.weights, strict=True) if weight != 0.0)

    def _graphs(self) -> Iterator[tuple[Batch, float, Any]]:
        """(batch, weight, graph) of every batch that counts."""
        for i, (batch, weight) in enumerate(self._counting()):
            graph = self._kept.get(i)
            if graph is None:
                start = time.perf_counter()
                graph = self._build(batch, weight)
                self._kept[i] = graph
                if self.keep:
                    self.chooser.making += time.perf_counter() - start
                else:
                    del self._kept[i]
            yield batch, weight, graph

    def _scale(self, weight: float) -> float:
        """The part of a batch's weight that stands in its graph or cotangent: all of it where sums are in place, else none."""
        return weight if self._in_place else 1.0

    def _build(self, batch: Batch, weight: float) -> Any:
        """The graph that sweeps go through."""
        raise NotImplementedError

    def _sweep(self, graph: Any, batch: Batch, along: tuple[Tensor, ...], row: Tensor, weight: float, retain: bool) -> None:
        """row += weight * product with the vector whose parts are ``along``."""
        raise NotImplementedError

    def _batched_sweep(self, graph: Any, batch: Batch, rows: Tensor, out: Tensor, weight: float) -> None:
        """out += weight * products with all rows, in one backward pass with a batch dimension."""
        raise NotImplementedError

    def _forward(self, batch: Batch, along: tuple[Tensor, ...], row: Tensor, weight: float) -> None:
        """What _sweep does, in forward mode and without its graph."""
        raise NotImplementedError

    def _pull(self, roots: Roots, cotangents: tuple[Tensor, ...], row: Tensor, weight: float, retain: bool) -> None:
        """row += weight * gradient of <roots, cotangents> with respect to the leaves; where sums are in place the roots or the
        cotangents have the weight in them already (see _scale)."""
        if not self._in_place:
            self.add_flat(row, torch.autograd.grad(roots, self.leaves, cotangents, retain_graph=retain, allow_unused=True), weight)
            return
        try:
            for name, leaf in zip(self.names, self.leaves, strict=True):
                leaf.grad = row[self.blocks[name]].view(self.shapes[name])
            torch.autograd.backward(roots, cotangents, retain_graph=retain, inputs=self.leaves)
        finally:
            for leaf in self.leaves:
                leaf.grad = None

    def _duals(self, along: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The leaves with ``along`` as their derivatives, for forward mode. Inside dual_level()."""
        return {name: make_dual(leaf, a) for name, leaf, a in zip(self.names, self.leaves, along, strict=True)}  # type: ignore[no-untyped-call]

    def _add_batched(self, out: Tensor, parts: tuple[Tensor | None, ...], weight: float) -> None:
        for name, part in zip(self.names, parts, strict=True):
            if part is not None:
                out[:, self.blocks[name]].add_(part.detach().reshape(len(out), -1).to(out.dtype), alpha=weight)

    def _batched_along(self, rows: Tensor, index: tuple[int, ...]) -> tuple[Tensor, ...]:
        names = [self.names[i] for i in index]
        return tuple(rows[:, self.blocks[name]].reshape(len(rows), *self.shapes[name]).to(self.leaves[i].dtype) for i, name in zip(index, names, strict=True))


def batched_grad(roots: Roots, inputs: tuple[Tensor, ...], cotangents: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "performance drop": the time is measured
        return torch.autograd.grad(roots, inputs, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=True)


def live_roots(grads: tuple[Tensor | None, ...]) -> tuple[Roots, tuple[int, ...]]:
    """The differentiable ones, as edges of the graph: their values are not needed, only where they come from."""
    live = [(i, g) for i, g in enumerate(grads) if g is not None and g.requires_grad]
    return tuple(get_gradient_edge(g) if EDGES else g for _, g in live), tuple(i for i, _ in live)


GraphOperator.__init__.__wrapped__ = ModelOperator.__init__  # type: ignore[attr-defined]  # the arguments that help() shows
