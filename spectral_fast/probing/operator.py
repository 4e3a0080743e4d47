"""Base of the operators on a model's parameters: flat vectors, names and blocks, numpy and torch at the door."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .batches import Batch, Batches
from .functional import FunctionalModel, ParameterFilter, select_parameters, twice_differentiable, unwrap
from .losses import Loss, resolve_loss
from .state import eval_notes, leave_no_trace

__all__ = ["ModelOperator", "Precision", "compute_dtype", "select_parameters"]


@dataclass(frozen=True)
class Precision:
    """dtype: of the inputs and, where ``casts``, of a copy of all parameters and buffers; None: the model's own, which are mixed. note: what was cast."""

    dtype: torch.dtype | None
    casts: bool
    note: str


def compute_dtype(model: nn.Module, dtype: torch.dtype | None = None) -> Precision:
    """The precision a model is run in: ``dtype``; else, where any of its parameters has fewer than 32 bits (frozen ones too: a second
    derivative through bf16 is noise), everything in float32, or in float64 where there is one; else as it is stored.

    Raises TypeError for a dtype that is not floating."""
    stored = dict.fromkeys(p.dtype for p in model.parameters() if p.is_floating_point())
    wanted = dtype
    if wanted is not None and not wanted.is_floating_point:
        raise TypeError(f"dtype: wanted a floating dtype, got {dtype}")
    if wanted is None and any(torch.finfo(d).bits < 32 for d in stored):
        wanted = torch.float64 if torch.float64 in stored else torch.float32
    if wanted is None:
        return Precision(next(iter(stored)) if len(stored) == 1 else None, False, "")
    copied = [_dtype_name(d) for d in stored if d != wanted]
    return Precision(wanted, True, f"run in {_dtype_name(wanted)} on a copy of the {' and '.join(copied)} parameters" if copied else "")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class ModelOperator:
    """A symmetric matrix over the parameters of ``model``, known by its products with vectors.

    loader, loss, loss_fn, unpack, max_batches, max_samples: see Batches and resolve_loss. params: see select_parameters.
    device, dtype: where and in which precision the model is run, on a copy of its parameters; the model itself stays as it is.
    Evaluation mode throughout (dropout off, stored BatchNorm statistics); ``notes`` says what that changed.

    op @ v: v (n,) or (n, k), numpy -> numpy of v's floating dtype, torch -> torch on v's device. Sums over batches are float64.
    eigsh, spectral_density and trace of an operator keep their bases on the host and give numpy arrays, whatever its device.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Any,
        loss: str | Loss | None = None,
        *,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        params: ParameterFilter = None,
        max_batches: int | None = None,
        max_samples: int | None = None,
        unpack: Callable[[Any], tuple[Any, Any]] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model = unwrap(model)
        chosen = select_parameters(self.model, params)
        first = next(iter(chosen.values()))
        self.device = torch.device(device) if device is not None else first.device
        precision = compute_dtype(self.model, dtype)
        self.names = tuple(chosen)
        self.shapes = {name: tuple(p.shape) for name, p in chosen.items()}
        self.blocks: dict[str, slice] = {}
        start = 0
        for name, p in chosen.items():
            self.blocks[name] = slice(start, start + p.numel())
            start += p.numel()
        self.shape = (start, start)
        self.requested_dtype = dtype
        self.products = 0
        self.without_influence: tuple[str, ...] = ()
        with leave_no_trace(self.model):
            self.batches = self._read(loader, precision.dtype, max_batches, max_samples, unpack)
            self.functional = FunctionalModel(self.model, chosen, self.device, precision.dtype if precision.casts else None)
            self.loss = resolve_loss(self.model, self.batches, loss, loss_fn, run=self.functional)
        self.weights = self.loss.weights(self.batches)
        self.dtype = next(iter(self.functional.parameters.values())).dtype
        self.sum_dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self.notes = self._notes(chosen, precision.note)

    def _read(self, loader: Any, dtype: torch.dtype | None, max_batches: int | None, max_samples: int | None, unpack: Any) -> Batches:
        limits = max_batches is None and max_samples is None
        if isinstance(loader, Batches) and limits and (loader.device, loader.dtype) == (self.device, dtype):
            return loader
        return Batches(loader, device=self.device, dtype=dtype, max_batches=max_batches, max_samples=max_samples, unpack=unpack)

    def _notes(self, chosen: Mapping[str, nn.Parameter], precision: str) -> tuple[str, ...]:
        notes = list(eval_notes(self.model))
        notes += [note for note in (self.batches.note, precision, self.loss.note(self.batches)) if note]
        kept_out = sum(1 for p in self.model.parameters() if not p.requires_grad)
        if kept_out and all(p.requires_grad for p in chosen.values()):
            notes.append(f"{kept_out} frozen parameters (requires_grad=False) left out")
        return tuple(notes)

    # -- the model as a function of the flat parameters ------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """What every product runs in: nothing of the model changes, second derivatives are exact."""
        self.functional.check_unchanged()
        with leave_no_trace(self.model), twice_differentiable(self.model):
            yield

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return tuple(self.functional.parameters[name] for name in self.names)

    def split(self, v: Tensor) -> tuple[Tensor, ...]:
        """Flat (n,) -> views in the parameters' shapes and dtypes, on the operator's device."""
        v = v.to(self.device)
        return tuple(v[self.blocks[name]].view(self.shapes[name]).to(leaf.dtype) for name, leaf in zip(self.names, self.leaves, strict=True))

    def add_flat(self, total: Tensor, parts: tuple[Tensor | None, ...], weight: float = 1.0) -> None:
        """total += weight * concatenated parts; None (a parameter without influence) adds nothing."""
        for name, part in zip(self.names, parts, strict=True):
            if part is not None:
                total[self.blocks[name]].add_(part.detach().reshape(-1).to(total.dtype), alpha=weight)

    def zeros(self) -> Tensor:
        return torch.zeros(self.shape[0], dtype=self.sum_dtype, device=self.device)

    def batch_loss(self, batch: Batch, leaves: Mapping[str, Tensor] | None = None) -> Tensor:
        """Mean loss of one batch, with its graph to the leaves."""
        if leaves is None:
            return self.loss.batch(self.functional, batch)
        return self.loss.batch(lambda *args, **kwargs: self.functional(*args, leaves=leaves, **kwargs), batch)

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """L and its gradient (n,), float64 sums over batches. Sets ``without_influence``: parameters the loss does not depend on."""
        total, value = self.zeros(), 0.0
        idle = set(self.names)
        with self.running():
            for batch, weight in zip(self.batches, self.weights, strict=True):
                if weight == 0.0:
                    continue
                loss = self.batch_loss(batch)
                value += weight * float(loss.detach())
                if not loss.requires_grad:
                    continue
                grads = torch.autograd.grad(loss, self.leaves, allow_unused=True)
                idle -= {name for name, g in zip(self.names, grads, strict=True) if g is not None}
                self.add_flat(total, grads, weight)
        self.without_influence = tuple(name for name in self.names if name in idle)
        return value, total

    # -- products --------------------------------------------------------------------------------------------------------

    def _matvec(self, v: Tensor) -> Tensor:
        """Product with a flat vector (n,) on the operator's device, result in ``sum_dtype``."""
        raise NotImplementedError

    def matvec(self, v: Tensor) -> Tensor:
        """Product with one torch vector; counts it."""
        with self.running():
            result = self._matvec(v.detach())
        self.products += 1
        return result

    def __matmul__(self, v: Any) -> Any:
        if isinstance(v, Tensor):
            self._check(tuple(v.shape))
            columns = [v] if v.ndim == 1 else list(v.unbind(1))
            out = [self.matvec(c).to(device=v.device, dtype=v.dtype if v.is_floating_point() else None) for c in columns]
            if v.ndim == 1:
                return out[0]
            return torch.stack(out, dim=1) if out else v.new_zeros(v.shape)
        array = np.asarray(v)
        self._check(array.shape)
        if array.dtype not in (np.float32, np.float64):
            array = array.astype(np.float64)
        result: NDArray[Any] = np.empty(array.shape, dtype=array.dtype)
        for j in range(1 if array.ndim == 1 else array.shape[1]):
            column = array if array.ndim == 1 else array[:, j]
            # a view, no copy, wherever torch can look at numpy's memory
            viewable = column.flags.writeable and all(s >= 0 for s in column.strides)
            product = self.matvec(torch.from_numpy(column if viewable else column.copy())).cpu().numpy()
            if array.ndim == 1:
                result[:] = product
            else:
                result[:, j] = product
        return result

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(shape) not in (1, 2) or shape[0] != self.shape[1]:
            raise ValueError(f"v: wanted shape ({self.shape[1]},) or ({self.shape[1]}, k), got {shape}")

    def to_scipy(self) -> Any:
        """The operator as scipy.sparse.linalg.LinearOperator (float64)."""
        from scipy.sparse.linalg import LinearOperator

        return LinearOperator(self.shape, matvec=lambda v: self @ np.asarray(v).reshape(-1), matmat=lambda v: self @ v, dtype=np.dtype(np.float64))

    def unflatten(self, v: Any) -> dict[str, Any]:
        """Flat (n,) -> name -> array (torch: tensor) in the parameter's shape; views of v."""
        if tuple(v.shape) != (self.shape[0],):
            raise ValueError(f"v: wanted shape ({self.shape[0]},), got {tuple(v.shape)}")
        return {name: v[block].reshape(self.shapes[name]) for name, block in self.blocks.items()}
