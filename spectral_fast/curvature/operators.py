"""Hessian and generalised Gauss-Newton matrix (GGN) of a mean loss, as products with vectors.

H = sum_b w_b H_b with w_b = terms_b / sum terms: the exact Hessian of the mean over all samples, ragged batches included
(Pearlmutter 1994 for the product by differentiating twice). GGN = sum_b w_b J_bᵀ H_L,b J_b (Schraudolph 2002), J_b the Jacobian
of the outputs, H_L,b the Hessian of the batch's mean loss with respect to the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import dual_level, unpack_dual

from ..probing.batches import Batch, call_model, logits_of
from ..probing.loss_checks import only_through_logits
from .graph_operator import GRAPH_SHARE, GraphOperator, Roots, batched_grad, live_roots

__all__ = ["GGN", "GRAPH_SHARE", "Hessian"]


@dataclass
class _GradientGraph:
    """The gradient of a batch's mean loss, differentiable; ``index``: the parameters whose gradients depend on parameters."""

    pairs: Roots
    index: tuple[int, ...]


@dataclass
class _OutputGraph:
    """A batch's outputs z and ``pulled`` = Jᵀ cotangent with its graph. Jᵀ c is linear in c, so its derivative along v with
    respect to c is J v: two backward passes in place of a forward-mode one, faster (no forward pass is repeated) and available
    for every layer that can be differentiated twice. The cotangent is one number seen in the shape of z. ``whole``: what the model returned, kept
    where the loss is not known in closed form."""

    outputs: Tensor
    cotangent: Tensor
    pulled: Roots
    index: tuple[int, ...]
    whole: Any = None


class Hessian(GraphOperator):
    """Hessian of L = sum_n p_n l_n at the model's parameters; see ModelOperator for the arguments.

    Piecewise linear activations: the almost-everywhere Hessian. Parameters without influence on the loss give zero rows.
    One product costs one backward pass through the gradient's graph where the graph is kept.
    """

    def _build(self, batch: Batch, weight: float) -> _GradientGraph:
        loss = self.batch_loss(batch)
        if not loss.requires_grad:
            return _GradientGraph((), ())
        scale = self._scale(weight)
        return _GradientGraph(*live_roots(torch.autograd.grad(loss if scale == 1.0 else scale * loss, self.leaves, create_graph=True, allow_unused=True)))

    def _sweep(self, graph: _GradientGraph, batch: Batch, along: tuple[Tensor, ...], row: Tensor, weight: float, retain: bool) -> None:
        if graph.pairs:
            self._pull(graph.pairs, tuple(along[i] for i in graph.index), row, weight / self._scale(weight), retain)

    def _batched_sweep(self, graph: _GradientGraph, batch: Batch, rows: Tensor, out: Tensor, weight: float) -> None:
        if graph.pairs:
            second = batched_grad(graph.pairs, self.leaves, self._batched_along(rows, graph.index))
            self._add_batched(out, second, weight / self._scale(weight))

    def _forward(self, batch: Batch, along: tuple[Tensor, ...], row: Tensor, weight: float) -> None:
        with dual_level():
            duals = self._duals(along)
            loss = self.batch_loss(batch, duals)
            if not loss.requires_grad:
                return
            grads = torch.autograd.grad(loss, tuple(duals.values()), allow_unused=True)
            self.add_flat(row, tuple(None if g is None else unpack_dual(g).tangent for g in grads), weight)  # type: ignore[no-untyped-call]


class GGN(GraphOperator):
    """Generalised Gauss-Newton matrix of L; see ModelOperator. Positive semidefinite for convex losses of the outputs.

    Beside the graph a product holds J v, of the outputs' shape (and one summand of it at a time); the loss's Hessian is applied in place.
    The outputs are the tensor that logits_of finds; loss_fn gets what the model returns, with the tensor in its place. Products raise NotImplementedError
    where the loss is no function of that tensor: only the model computes it, or it depends on the parameters through more than that.
    """

    _checked = False

    def _build(self, batch: Batch, weight: float) -> _OutputGraph:
        whole = call_model(self.functional, batch)
        outputs = logits_of(whole)
        if self.loss.form is not None:
            whole = None
        elif not self._checked:
            only_through_logits(self.loss, whole, batch.targets, self.leaves)
            self._checked = True
        if not outputs.requires_grad:
            return _OutputGraph(outputs, outputs, (), ())
        cotangent = outputs.new_zeros(()).expand(outputs.shape).requires_grad_()
        roots, index = live_roots(torch.autograd.grad(outputs, self.leaves, cotangent, create_graph=True, allow_unused=True))
        return _OutputGraph(outputs, cotangent, roots, index, whole)

    def _curved(self, outputs: Tensor, whole: Any, batch: Batch, jv: Tensor, along: tuple[Tensor, ...], weight: float) -> Tensor:
        """The loss's Hessian times J v, in the memory of J v unless that is the vector's own; the weight in it where sums are in place."""
        own = {a.untyped_storage().data_ptr() for a in along}
        fresh = jv.untyped_storage().data_ptr() not in own and all(stride > 0 for stride, size in zip(jv.stride(), jv.shape, strict=True) if size > 1)
        curved = (self.loss.output_hessian_ if fresh else self.loss.output_hessian)(outputs, batch.targets, jv.detach(), whole)
        scale = self._scale(weight)
        if scale == 1.0:
            return curved
        return curved.mul_(scale) if fresh and curved.data_ptr() == jv.data_ptr() else scale * curved

    def _sweep(self, graph: _OutputGraph, batch: Batch, along: tuple[Tensor, ...], row: Tensor, weight: float, retain: bool) -> None:
        if graph.pulled:
            chosen = tuple(along[i] for i in graph.index)
            (jv,) = torch.autograd.grad(graph.pulled, graph.cotangent, chosen, retain_graph=True)
            self._pull((graph.outputs,), (self._curved(graph.outputs, graph.whole, batch, jv, chosen, weight),), row, weight, retain)

    def _batched_sweep(self, graph: _OutputGraph, batch: Batch, rows: Tensor, out: Tensor, weight: float) -> None:
        if graph.pulled:
            (jv,) = batched_grad(graph.pulled, (graph.cotangent,), self._batched_along(rows, graph.index))
            assert jv is not None
            curved = torch.stack([self.loss.output_hessian(graph.outputs, batch.targets, one.detach(), graph.whole) for one in jv])
            self._add_batched(out, batched_grad((graph.outputs,), self.leaves, (curved,)), weight)

    def _forward(self, batch: Batch, along: tuple[Tensor, ...], row: Tensor, weight: float) -> None:
        with dual_level():
            duals = self._duals(along)
            whole = call_model(lambda *args, **kwargs: self.functional(*args, leaves=duals, **kwargs), batch)
            z, jv = unpack_dual(logits_of(whole))  # type: ignore[no-untyped-call]
        # outside the level the graph is that of the primal values alone
        if jv is not None and z.requires_grad:
            self._pull((z,), (self._curved(z, None if self.loss.form is not None else whole, batch, jv, along, weight),), row, weight, False)
