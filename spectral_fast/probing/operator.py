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

from .batches import Batch, Batches, device_named
from .distributed import ranks_of
from .functional import Draws, FunctionalModel, ParameterFilter, frozen_note, select_parameters, twice_differentiable, unwrap
from .losses import Loss, resolve_loss
from .sharded import ShardedProducts, share_of
from .state import eval_notes, leave_no_trace

__all__ = ["LARGE", "ModelOperator", "Precision", "compute_dtype", "select_parameters"]

# From so many parameters on sums over batches stay in the model's own float32: a float64 total of 20 million is 160 MB, twice the
# vector itself. The sum of B batches in float32 costs sqrt(B) roundings of 6e-8, less than each batch's own products carry.
_NEAR = 2.0**-40  # vectors whose largest entry is smaller, or as much larger than 1, are scaled where the model is in single precision
LARGE = 1 << 22


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

    op @ v: v (n,) or (n, k), numpy -> numpy of v's floating dtype, torch -> torch on v's device. op.row_products(rows): (b, n) -> (b, n),
    without copies. ``sum_dtype``, of the sums over batches: float64; that of the model for a float32 one of
    4,194,304 parameters or more, or of a single batch, where nothing is added.
    A model that draws random numbers in its forward pass sees the same draws in every product.
    eigsh and spectral_density keep their bases on the operator's device (with checkpoint= and over several processes on the host) and give
    numpy arrays.

    process_group: a group of torch.distributed, or "world": ``loader`` is this rank's shard of the samples, of any size, and everything is over
    those of all ranks; every rank has to make the same calls (see distributed.Ranks, ``ranks``), max_batches and max_samples hold for each. None: this
    process alone, under torchrun too, but for a DistributedDataParallel model, which brings its group: give its ``.module`` to be alone.
    """

    _running = False
    takes_blocks = True  # op @ V is one call for all columns of V

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
        process_group: Any = None,
    ) -> None:
        self.ranks = ranks_of(model, process_group, loader)
        with self.ranks.agreed("reading model and loader"):
            self.model = unwrap(model)
            chosen = select_parameters(self.model, params)
            precision = self._lay_out(chosen, device, dtype)
            with leave_no_trace(self.model):
                self.batches = self._read(loader, precision.dtype, max_batches, max_samples, unpack)
                self.functional = FunctionalModel(self.model, chosen, self.device, precision.dtype if precision.casts else None)
                # a rank without samples has nothing to guess from
                own = resolve_loss(self.model, self.batches, loss, loss_fn, run=self.functional) if len(self.batches) else None
            self.dtype = next(iter(self.functional.parameters.values())).dtype
            alone = len(self.batches) == 1 and self.ranks.size == 1
            narrow = self.device.type == "mps" or ((self.shape[0] >= LARGE or alone) and all(leaf.dtype == torch.float32 for leaf in self.leaves))
            self.sum_dtype = torch.float32 if narrow else torch.float64
            self._draws = Draws(self.device)
        settings = f"{self.device.type}, {_dtype_name(self.dtype)}, {', '.join(self.names)}"
        self.functional.use_buffers(self.ranks.same_model(self.model, settings))
        self.loss = self.ranks.same_loss(loss if isinstance(loss, Loss) else own, self.batches, next((f for f in (loss_fn, loss) if callable(f)), None))
        self.weights = self.ranks.weights(self.loss, self.batches)
        self.n_samples = sum(row[0] for row in self.ranks.gather([self.batches.n_samples]))  # of all ranks
        self.notes = self._notes(chosen, precision.note)

    def _lay_out(self, chosen: Mapping[str, nn.Parameter], device: torch.device | str | None, dtype: torch.dtype | None) -> Precision:
        """Names, shapes and places of the chosen parameters; where and in which precision they are run."""
        first = next(iter(chosen.values()))
        self.device = device_named(device) if device is not None else first.device
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
        return precision

    def _read(self, loader: Any, dtype: torch.dtype | None, max_batches: int | None, max_samples: int | None, unpack: Any) -> Batches:
        limits = max_batches is None and max_samples is None
        if isinstance(loader, Batches) and limits and (loader.device, loader.dtype) == (self.device, dtype):
            return loader
        several = self.ranks.size > 1
        return Batches(loader, device=self.device, dtype=dtype, max_batches=max_batches, max_samples=max_samples, unpack=unpack, may_be_empty=several)

    def _notes(self, chosen: Mapping[str, nn.Parameter], precision: str) -> tuple[str, ...]:
        notes = [*self.ranks.notes, *eval_notes(self.model)]
        notes += [note for note in (self.batches.note, precision, self.loss.note(self.batches), frozen_note(self.model, chosen)) if note]
        return tuple(notes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}: {self.shape[0]:,} parameters, {self.n_samples:,} samples, loss {self.loss.name})"

    # -- the model as a function of the flat parameters ------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """What every product runs in: nothing of the model changes, second derivatives are exact, the random draws are always the same.
        Inside another one of this operator it only puts the draws back: many products in a row need not save and restore the model each."""
        self.functional.check_unchanged()
        if self._running:
            self._draws.restore()
            yield
            return
        with leave_no_trace(self.model), twice_differentiable(self.model):
            self._draws.restore()
            self._running = True
            try:
                yield
            finally:
                self._running = False

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return tuple(self.functional.parameters[name] for name in self.names)

    def split(self, v: Tensor) -> tuple[Tensor, ...]:
        """Flat (n,) -> the parameters' shapes and dtypes, on the operator's device; views where dtype and strides allow."""
        v = v.to(self.device)
        return tuple(v[self.blocks[name]].reshape(self.shapes[name]).to(leaf.dtype) for name, leaf in zip(self.names, self.leaves, strict=True))

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
        """L and its gradient (n,) in ``sum_dtype``. Sets ``without_influence``: parameters the loss does not depend on."""
        total, value = self.zeros(), 0.0
        idle = set(self.names)
        with self.ranks.agreed("the gradient"), self.running():
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
        counts = torch.tensor([value, *(float(name not in idle) for name in self.names)], dtype=torch.float64)
        self.ranks.add_up(counts)
        self.ranks.add_up(total)
        self.without_influence = tuple(name for name, count in zip(self.names, counts[1:].tolist(), strict=True) if not count)
        return float(counts[0]), total

    # -- products --------------------------------------------------------------------------------------------------------

    def _products(self, rows: Tensor, out: Tensor) -> None:
        """out[i] <- product with rows[i]; rows (b, n) of any dtype, only read; out (b, n) in ``sum_dtype``, zeros when it comes; both on
        the operator's device. Called inside running()."""
        raise NotImplementedError

    def _multiply(self, rows: Tensor, out: Tensor) -> None:
        if len(rows):
            self._own_part(rows, out, rows)
            self.ranks.add_up(out)

    def _own_part(self, rows: Tensor, out: Tensor, same: Tensor | None = None) -> None:
        """out <- the part of the products that comes from this rank's samples. same: what all ranks have to have alike."""
        with self.ranks.agreed("a product", same), self.running():
            if any(self.weights):
                self._products(rows.detach(), out)
        self.products += len(rows)

    @property
    def sharded(self) -> ShardedProducts | None:
        """Products for a Krylov basis of which every rank holds some columns; None where every rank holds all of it (one rank, or few parameters)."""
        share = share_of(self.ranks, self.shape[0])
        return None if share is None else ShardedProducts(self.ranks, share, self.device, self.sum_dtype, self._own_part)

    def matvec(self, v: Tensor) -> Tensor:
        """Product with one torch vector (n,), in ``sum_dtype`` on the operator's device; counts it."""
        out = self.zeros()
        self._multiply(v.to(self.device)[None], out[None])
        return out

    def row_products(self, v: NDArray[Any]) -> NDArray[Any]:
        """Products with the rows of v (b, n), float32 or float64 -> (b, n) in the dtype of the sums (see ``sum_dtype``), memory of the caller's own.

        v is read in place where it is writeable and has the model's dtype. Raises TypeError, ValueError naming v."""
        if not isinstance(v, np.ndarray) or v.dtype not in (np.float32, np.float64):
            raise TypeError(f"v: wanted a numpy array of float32 or float64, got {v.dtype if isinstance(v, np.ndarray) else type(v).__name__}")
        if v.ndim != 2 or v.shape[1] != self.shape[1]:
            raise ValueError(f"v: wanted shape (b, {self.shape[1]}), got {v.shape}")
        out: NDArray[Any] = np.zeros(v.shape, dtype=np.float32 if self.sum_dtype == torch.float32 else np.float64)
        rows = _viewed(v).to(self.device)
        if self.device.type == "cpu":
            self._multiply(rows, torch.from_numpy(out))
        else:
            total = torch.zeros(v.shape, dtype=self.sum_dtype, device=self.device)
            self._multiply(rows, total)
            torch.from_numpy(out).copy_(total)
        return out

    def device_products(self, rows: Tensor) -> Tensor:
        """Products with the rows of a tensor (b, n) on the operator's device -> (b, n) there, in ``sum_dtype``."""
        out = torch.zeros(rows.shape, dtype=self.sum_dtype, device=self.device)
        self._multiply(rows, out)
        return out

    def __matmul__(self, v: Any) -> Any:
        v = v if isinstance(v, Tensor) else np.asarray(v)
        if v.is_complex() if isinstance(v, Tensor) else v.dtype.kind in "cOSUMm":
            raise TypeError(f"v: wanted real numbers, got {v.dtype}")
        factor = _range_factor(v) if self.dtype != torch.float64 else None
        if factor is None:
            return self._product(v)
        return self._product(v * factor) / factor  # in single precision v would vanish, or overflow

    def _product(self, v: Any) -> Any:
        if isinstance(v, Tensor):
            self._check(tuple(v.shape))
            out = torch.zeros(v.shape[::-1] if v.ndim == 2 else (1, *v.shape), dtype=self.sum_dtype, device=self.device)
            self._multiply((v[None] if v.ndim == 1 else v.T).to(self.device), out)
            out = out.to(device=v.device, dtype=v.dtype if v.is_floating_point() else None)
            return out[0] if v.ndim == 1 else out.T.contiguous()
        array: NDArray[Any] = v
        self._check(array.shape)
        if array.dtype not in (np.float32, np.float64):
            array = array.astype(np.float64)
        if array.ndim == 1:
            return self.row_products(array[None])[0].astype(array.dtype, copy=False)
        return np.ascontiguousarray(self.row_products(array.T).T, dtype=array.dtype)

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


def _range_factor(v: Any) -> Any:
    """Powers of two, one for each column, that bring float64 vectors far from 1 to about 1; None where none is."""
    if v.dtype not in (torch.float64, np.float64) or v.ndim not in (1, 2) or 0 in v.shape:
        return None
    tops = v.abs().amax(0).cpu().numpy() if isinstance(v, Tensor) else np.abs(v).max(axis=0)
    away = np.isfinite(tops) & (tops > 0.0) & ((tops < _NEAR) | (tops > 1.0 / _NEAR))
    if not away.any():
        return None
    factor = np.ldexp(1.0, np.where(away, np.clip(-np.frexp(np.where(away, tops, 1.0))[1], -1000, 1000), 0))
    return torch.as_tensor(factor, dtype=torch.float64, device=v.device) if isinstance(v, Tensor) else factor


def _viewed(array: NDArray[Any]) -> Tensor:
    """A view, no copy, wherever torch can look at numpy's memory."""
    return torch.from_numpy(array if array.flags.writeable and all(s >= 0 for s in array.strides) else array.copy())
