"""What a loader yields -> a fixed list of batches with inputs, targets and sizes.

The loader is iterated once and its batches are kept: every pass of an analysis sees the same samples, so shuffling loaders
and random augmentation cannot disturb it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .state import keep_rng

__all__ = ["Batch", "Batches", "LABEL_KEYS", "call_model", "chosen_samples", "device_named", "logits_of", "put_logits", "to_tensors"]

LABEL_KEYS = ("labels", "label", "targets", "target", "y")
# Batches of a whole data set (X, y): as many samples as make this many bytes of inputs, within these numbers. Small samples in large batches keep
# the fixed cost of a call small; large samples in small ones keep the activations in memory.
WHOLE_SET_BYTES = 4 << 20
WHOLE_SET_ROWS = (256, 2048)


@dataclass(frozen=True)
class Batch:
    """inputs: tensor, tuple of tensors (positional arguments) or dict (keyword arguments); targets: tensor (or nested) or None;
    size: number of samples (length of the first dimension); label_key: entry of a dict batch the targets came from."""

    inputs: Any
    targets: Any | None
    size: int
    label_key: str | None = None


def device_named(device: torch.device | str | int) -> torch.device:
    """Raises ValueError naming ``device`` for what is none."""
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:  # torch asserts that it was built for CUDA
        raise ValueError(f"device: got {device!r}; {str(error).splitlines()[0]}") from error
    if found.type == "meta":
        raise ValueError("device: got 'meta', which holds no numbers")
    return found


def _is_array(x: object) -> bool:
    return isinstance(x, (Tensor, np.ndarray))


def to_tensors(x: Any, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Any:
    """Every array in the nested ``x`` as a tensor on ``device``; floating tensors cast to ``dtype``, others keep theirs."""
    if isinstance(x, np.ndarray) or np.isscalar(x):
        a = np.asarray(x)
        if a.dtype == object or a.dtype.kind in "SU":
            return x
        x = torch.from_numpy(a if a.flags.writeable and all(s >= 0 for s in a.strides) else a.copy())
    if isinstance(x, Tensor):
        wanted = dtype if dtype is not None and x.is_floating_point() else None
        return x.detach().to(device=device, dtype=wanted)
    if isinstance(x, Mapping):
        return {key: to_tensors(value, device, dtype) for key, value in x.items()}
    if isinstance(x, (tuple, list)):
        return tuple(to_tensors(value, device, dtype) for value in x)
    return x


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, Mapping):
        for value in x.values():
            yield from _tensors(value)
    elif isinstance(x, (tuple, list)):
        for value in x:
            yield from _tensors(value)


def _picked(x: Any, size: int, which: slice | Tensor) -> Any:
    """Those of ``size`` samples of a nested structure; tensors of another length are shared by all samples."""
    if isinstance(x, Tensor):
        return x[which.to(x.device) if isinstance(which, Tensor) else which] if x.ndim and x.shape[0] == size else x
    if isinstance(x, Mapping):
        return {key: _picked(value, size, which) for key, value in x.items()}
    if isinstance(x, (tuple, list)):
        return tuple(_picked(value, size, which) for value in x)
    return x


def chosen_samples(batch: Batch, which: slice | Tensor) -> Batch:
    """Some samples of a batch: a slice, or their numbers (int64) in any order."""
    count = len(which) if isinstance(which, Tensor) else len(range(*which.indices(batch.size)))
    return Batch(_picked(batch.inputs, batch.size, which), _picked(batch.targets, batch.size, which), count, batch.label_key)


def _split(item: Any, unpack: Callable[[Any], tuple[Any, Any]] | None) -> tuple[Any, Any | None, str | None]:
    """One item of the loader -> (inputs, targets, label key)."""
    if unpack is not None:
        pair = unpack(item)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"unpack: has to return (inputs, targets), returned {type(pair).__name__}")
        return pair[0], pair[1], None
    if isinstance(item, Mapping):
        found = next((key for key in LABEL_KEYS if key in item and item[key] is not None), None)
        return {key: value for key, value in item.items() if key != found}, item[found] if found is not None else None, found
    if _is_array(item):
        return item, None, None
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1], None
    if isinstance(item, (tuple, list)) and len(item) == 1:
        return item[0], None, None
    what = f"{type(item).__name__} of length {len(item)}" if isinstance(item, (tuple, list)) else type(item).__name__
    raise TypeError(f"loader: a batch has to be (inputs, targets), a dict or a tensor, got {what}; give unpack=lambda batch: (inputs, targets)")


def _make_batch(item: Any, unpack: Callable[[Any], tuple[Any, Any]] | None, device: torch.device | None, dtype: torch.dtype | None) -> Batch:
    if isinstance(item, Batch):  # the loader is a Batches: already split
        inputs, targets, key = item.inputs, item.targets, item.label_key
    else:
        inputs, targets, key = _split(item, unpack)
    inputs = to_tensors(inputs, device, dtype)
    targets = None if targets is None else to_tensors(targets, device, dtype)
    first = next((t for t in _tensors(inputs) if t.ndim > 0), None)
    if first is None:
        raise TypeError("loader: a batch holds no tensor or array among its inputs")
    size = int(first.shape[0])
    if isinstance(targets, Tensor) and targets.ndim > 0 and targets.shape[0] != size:
        raise ValueError(f"loader: a batch has {size} samples but {targets.shape[0]} targets")
    return Batch(inputs, targets, size, key)


def _whole_set(arrays: tuple[Any, Any]) -> list[tuple[Any, Any]]:
    """(X, y) as a whole data set -> batches of 4 MB of inputs, 256 to 2,048 samples."""
    x, y = arrays
    if len(x.shape) == 0 or len(y.shape) == 0 or x.shape[0] != y.shape[0]:
        raise ValueError(f"loader: (X, y) need equal lengths, got shapes {tuple(x.shape)} and {tuple(y.shape)}")
    n = int(x.shape[0])
    least, most = WHOLE_SET_ROWS
    rows = min(max(WHOLE_SET_BYTES * n // max(1, int(x.nbytes)), least), most)
    return [(x[i : i + rows], y[i : i + rows]) for i in range(0, n, rows)]


def _check_loader(loader: Any) -> Iterable[Any]:
    if isinstance(loader, tuple) and len(loader) == 2 and all(_is_array(part) for part in loader):
        return _whole_set(loader)
    if _is_array(loader):
        raise TypeError("loader: got a single array; give (X, y), a DataLoader, or a list of batches such as [(X, y)]")
    if isinstance(loader, Mapping):
        return [loader]
    if isinstance(loader, torch.utils.data.Dataset) and not isinstance(loader, torch.utils.data.IterableDataset):
        raise TypeError("loader: got a Dataset, which yields single samples; wrap it in torch.utils.data.DataLoader(dataset, batch_size=256)")
    try:
        iterator = iter(loader)
    except TypeError:
        raise TypeError(f"loader: wanted a re-iterable of batches or a tuple (X, y) of arrays, got {type(loader).__name__}") from None
    if iterator is loader:
        raise TypeError(
            f"loader: got a one-shot iterator ({type(loader).__name__}), which is empty after one analysis; give the DataLoader itself or list(loader)"
        )
    result: Iterable[Any] = loader
    return result


def _generators(loader: Any) -> list[torch.Generator]:
    """Generators a DataLoader or its samplers own: iterating advances them, so they are put back."""
    owners = [loader, getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None)]
    found = [g for g in (getattr(owner, "generator", None) for owner in owners) if isinstance(g, torch.Generator)]
    return list({id(g): g for g in found}.values())


class Batches:
    """The batches of ``loader``, read once and kept on ``device``; floating inputs and targets cast to ``dtype``.

    loader: DataLoader or any re-iterable of (x, y), [x, y], dict or x alone. A *tuple* of exactly two arrays or tensors is a
            whole data set (X, y) of equal length and is split into batches of 256 to 2,048 samples by their size; a list is always a list of batches. In
            (x, y) a tuple x holds positional arguments, a dict x keyword arguments. A dict batch loses its first entry out of
            "labels", "label", "targets", "target", "y" to the targets.
    unpack: callable(batch) -> (inputs, targets) for anything else.
    max_batches, max_samples: upper limits; where one of them cut, ``truncated`` is True and ``note`` says how.
    may_be_empty: whether a loader without samples will do (other processes have theirs).

    Raises TypeError for one-shot iterators and unknown batch layouts, ValueError for an empty loader. The random generators
    (python, numpy, torch, the loader's own) are left as they were.
    """

    def __init__(
        self,
        loader: Any,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        max_batches: int | None = None,
        max_samples: int | None = None,
        unpack: Callable[[Any], tuple[Any, Any]] | None = None,
        may_be_empty: bool = False,
    ) -> None:
        for name, limit in (("max_batches", max_batches), ("max_samples", max_samples)):
            if limit is not None and limit < 1:
                raise ValueError(f"{name}: wanted at least 1, got {limit}")
        self.device = None if device is None else device_named(device)
        self.dtype = dtype
        self.truncated = False
        self.note = ""
        self._batches: list[Batch] = []
        with keep_rng(*_generators(loader)):
            self._read(_check_loader(loader), max_batches, max_samples, unpack)
        if not (self._batches or may_be_empty):
            raise ValueError("loader: yielded no samples")
        if self.truncated:
            limits = [f"{name} = {limit:,}" for name, limit in (("max_batches", max_batches), ("max_samples", max_samples)) if limit is not None]
            self.note = f"only the first {self.n_samples:,} samples were used ({', '.join(limits)})"
            if _class_by_class([batch.targets for batch in self._batches]):
                self.note += "; they come class by class, so that classes behind them are missing: let the loader shuffle"
        elif isinstance(loader, Batches):  # cut before it came here
            self.truncated, self.note = loader.truncated, loader.note

    def _read(self, loader: Iterable[Any], max_batches: int | None, max_samples: int | None, unpack: Callable[[Any], tuple[Any, Any]] | None) -> None:
        left = max_samples
        for item in loader:
            if left == 0 or (max_batches is not None and len(self._batches) >= max_batches):
                self.truncated = True
                return
            batch = _make_batch(item, unpack, self.device, self.dtype)
            if batch.size == 0:
                continue
            if left is not None:
                if batch.size > left:
                    self.truncated = True
                    batch = chosen_samples(batch, slice(left))
                left -= batch.size
            self._batches.append(batch)
            if self.truncated:
                return

    @property
    def n_samples(self) -> int:
        return sum(batch.size for batch in self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)

    def __getitem__(self, i: int) -> Batch:
        return self._batches[i]

    def head(self, max_samples: int) -> Batches:
        """The first ``max_samples`` samples as a sample set of their own; tensors are shared, not copied."""
        return Batches(self, device=self.device, dtype=self.dtype, max_samples=max_samples)


def _class_by_class(targets: list[Any]) -> bool:
    """Are these single classes, one for each sample, that come one after the other?"""
    if not targets or not all(isinstance(t, Tensor) and t.ndim == 1 and not t.is_floating_point() for t in targets):
        return False
    labels = torch.cat([t.to("cpu") for t in targets])
    classes = len(torch.unique(labels))
    return len(labels) > 4 * classes and int(torch.count_nonzero(labels.diff())) == classes - 1


def call_model(model: Callable[..., Any], batch: Batch) -> Any:
    """``model`` (module or any callable) on the inputs of ``batch``: tensor -> model(x), tuple -> model(*x), dict -> model(**x).

    Returns what the model returns; :func:`logits_of` finds the tensor in it.
    """
    if isinstance(batch.inputs, Mapping):
        return model(**batch.inputs)
    if isinstance(batch.inputs, (tuple, list)):
        return model(*batch.inputs)
    return model(batch.inputs)


def logits_of(outputs: Any) -> Tensor:
    """The output tensor: the tensor itself, ``.logits`` or ``["logits"]``, or the only tensor of a tuple. Raises TypeError otherwise."""
    if isinstance(outputs, Tensor):
        return outputs
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(outputs, (tuple, list)) and sum(isinstance(x, Tensor) for x in outputs) == 1:
        return next(x for x in outputs if isinstance(x, Tensor))
    raise TypeError(f"model: wanted a tensor or an output with .logits, got {type(outputs).__name__}; wrap the model so that it returns one tensor")


def put_logits(outputs: Any, z: Tensor) -> Any:
    """``outputs`` with ``z`` where :func:`logits_of` finds the tensor: a shallow copy of the same type, all else in it as it was, for a loss that
    takes the model's whole output. Raises TypeError for outputs that cannot be made anew."""
    if isinstance(outputs, Tensor):
        return z
    old = logits_of(outputs)
    made: Any = outputs
    try:
        if isinstance(outputs, (tuple, list)):
            swapped = [z if x is old else x for x in outputs]
            made = type(outputs)._make(swapped) if hasattr(outputs, "_make") else type(outputs)(swapped)
        elif isinstance(outputs, Mapping):
            made = copy.copy(outputs) if isinstance(outputs, MutableMapping) else dict(outputs)
            for key in [key for key, value in outputs.items() if value is old]:
                made[key] = z
        else:
            made = copy.copy(outputs)
            for key in [key for key, value in getattr(outputs, "__dict__", {"logits": old}).items() if value is old]:
                object.__setattr__(made, key, z)
    except (AttributeError, TypeError, ValueError):
        made = outputs
    if made is outputs or logits_of(made) is not z:
        raise TypeError(
            f"model: its output of type {type(outputs).__name__} cannot be made anew with other logits; wrap the model so that it returns one tensor"
        )
    return made
