"""Hessian and generalised Gauss-Newton matrix (GGN) of a mean loss, as products with vectors.

H = sum_b w_b H_b with w_b = terms_b / sum terms: the exact Hessian of the mean over all samples, ragged batches included
(Pearlmutter 1994 for the product by differentiating twice). GGN = sum_b w_b J_bᵀ H_L,b J_b (Schraudolph 2002), J_b the Jacobian
of the outputs, H_L,b the Hessian of the batch's mean loss with respect to the outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..probing.batches import Batch, call_model, logits_of
from ..probing.memory import free_memory
from ..probing.operator import ModelOperator
from ..probing.state import keep_rng

__all__ = ["GGN", "Hessian"]

# A kept graph holds the forward pass's saved tensors, those of the backward pass through it, and the gradients in between.
GRAPH_FACTOR = 4.0
GRAPH_SHARE = 0.25


class _GraphOperator(ModelOperator):
    """Keeps one differentiable graph per batch between products where all of them fit, else builds each anew for every product.

    keep: whether they are kept; None: decided by ``graph_memory`` at the first product. graph_memory: bytes all of them may take;
    None: a quarter of what is free on the device.
    """

    keep: bool | None = None
    graph_memory: float | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._kept: dict[int, Any] = {}
        self._predicted: tuple[float, float] | None = None

    def release(self) -> None:
        """Drop the kept graphs (they come back with the next product)."""
        self._kept.clear()

    def _build(self, batch: Batch) -> Any:
        raise NotImplementedError

    def _graphs(self) -> Iterator[tuple[Batch, float, Any]]:
        """(batch, weight, graph) of every batch that counts."""
        if self.keep is None:
            allowed = GRAPH_SHARE * free_memory(self.device) if self.graph_memory is None else self.graph_memory
            self.keep = self.graph_bytes()[0] <= allowed
        for i, (batch, weight) in enumerate(zip(self.batches, self.weights, strict=True)):
            if weight == 0.0:
                continue
            graph = self._kept.get(i)
            if graph is None:
                graph = self._build(batch)
                if self.keep:
                    self._kept[i] = graph
            yield batch, weight, graph

    def graph_bytes(self) -> tuple[float, float]:
        """(all graphs, the largest of them) in bytes, predicted from what the forward pass of the first batch saves. Inside running()."""
        if self._predicted is None:
            own = {leaf.untyped_storage().data_ptr() for leaf in self.leaves}
            seen: dict[int, int] = {}

            def count(t: Tensor) -> Tensor:
                storage = t.untyped_storage()
                if storage.data_ptr() not in own:
                    seen[storage.data_ptr()] = storage.nbytes()
                return t.detach()

            first = self.batches[0]
            # a model with randomness of its own has to see the same draws in the pass that counts
            with keep_rng(), torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
                self.batch_loss(first)
            per_sample = GRAPH_FACTOR * sum(seen.values()) / first.size
            gradient = sum(leaf.numel() * leaf.element_size() for leaf in self.leaves)  # each graph ends in one
            sizes = [batch.size for batch in self.batches]
            self._predicted = per_sample * sum(sizes) + gradient * len(sizes), per_sample * max(sizes) + gradient
        return self._predicted


@dataclass
class _GradientGraph:
    """The gradient of a batch's mean loss, differentiable; ``live``: which parameters it depends on twice."""

    pairs: tuple[Tensor, ...]
    index: tuple[int, ...]


@dataclass
class _OutputGraph:
    """A batch's outputs z and ``pulled`` = Jᵀ cotangent with its graph. Jᵀ c is linear in c, so its derivative along v with
    respect to c is J v: two backward passes in place of a forward-mode one, faster (no forward pass is repeated) and available
    for every layer that can be differentiated twice."""

    outputs: Tensor
    cotangent: Tensor
    pulled: tuple[Tensor, ...]
    index: tuple[int, ...]


class Hessian(_GraphOperator):
    """Hessian of L = sum_n p_n l_n at the model's parameters; see ModelOperator for the arguments.

    Piecewise linear activations: the almost-everywhere Hessian. Parameters without influence on the loss give zero rows.
    One product costs one backward pass through the gradient's graph where the graph is kept.
    """

    def _build(self, batch: Batch) -> _GradientGraph:
        loss = self.batch_loss(batch)
        if not loss.requires_grad:
            return _GradientGraph((), ())
        grads = torch.autograd.grad(loss, self.leaves, create_graph=True, allow_unused=True)
        live = [(i, g) for i, g in enumerate(grads) if g is not None and g.requires_grad]
        return _GradientGraph(tuple(g for _, g in live), tuple(i for i, _ in live))

    def _matvec(self, v: Tensor) -> Tensor:
        parts = self.split(v)
        total = self.zeros()
        for _, weight, graph in self._graphs():
            if graph.pairs:
                along = tuple(parts[i] for i in graph.index)
                second = torch.autograd.grad(graph.pairs, self.leaves, grad_outputs=along, retain_graph=bool(self.keep), allow_unused=True)
                self.add_flat(total, second, weight)
        return total


class GGN(_GraphOperator):
    """Generalised Gauss-Newton matrix of L; see ModelOperator. Positive semidefinite for convex losses of the outputs.

    loss_fn gets the output tensor here. Raises NotImplementedError where the loss is not known as a function of the outputs.
    """

    def _build(self, batch: Batch) -> _OutputGraph:
        outputs = logits_of(call_model(self.functional, batch))
        if not outputs.requires_grad:
            return _OutputGraph(outputs, outputs, (), ())
        cotangent = torch.zeros_like(outputs, requires_grad=True)
        grads = torch.autograd.grad(outputs, self.leaves, cotangent, create_graph=True, allow_unused=True)
        live = [(i, g) for i, g in enumerate(grads) if g is not None and g.requires_grad]
        return _OutputGraph(outputs, cotangent, tuple(g for _, g in live), tuple(i for i, _ in live))

    def _matvec(self, v: Tensor) -> Tensor:
        parts = self.split(v)
        total = self.zeros()
        for batch, weight, graph in self._graphs():
            if not graph.pulled:
                continue
            along = tuple(parts[i] for i in graph.index)
            (jv,) = torch.autograd.grad(graph.pulled, graph.cotangent, along, retain_graph=True)
            hjv = self.loss.output_hessian(graph.outputs, batch.targets, jv)
            back = torch.autograd.grad(graph.outputs, self.leaves, hjv, retain_graph=bool(self.keep), allow_unused=True)
            self.add_flat(total, back, weight)
        return total
