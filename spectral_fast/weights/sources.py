"""What weights can come from: a module, a state dict or a checkpoint file, all seen as one list of tensors that are read when asked."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..linalg.arrays import RawArray, dtype_name, is_torch
from ..results import Skipped
from .adapter_config import AdapterConfig, adapter_config_path, read_adapter_config

if TYPE_CHECKING:
    from ..checkpoints import Checkpoint, TensorInfo

__all__ = ["TensorEntry", "TensorList", "TensorRecord", "open_source", "tensors_of"]

_DIRECT = ("safetensors", "torch-zip")  # formats whose bytes are read to where they stay

# Class name of a torch module -> kind of its weight; looked up along the class's bases, so that subclasses count.
_MODULE_KINDS = {
    "Linear": "linear",
    "Bilinear": "stack",
    "Embedding": "embedding",
    "EmbeddingBag": "embedding",
    "_ConvNd": "conv",
    "RNNBase": "rnn",
    "RNNCellBase": "rnn",
    "MultiheadAttention": "attention",
}


@dataclass(frozen=True)
class TensorEntry:
    """One named tensor.

    dtype:   name of the stored format ("float32", "bfloat16", ...).
    storage: equal for two entries exactly when they are one tensor under two names (same storage, offset, shape and strides).
    read:    gives the values when called: a numpy array, torch tensor or RawArray.
    kind:    what the owning module is, None where only names are known (files).
    fixed:   a buffer of the model: saved with it, not trained.
    owner:   full name of the owning module's class; module: its place among the model's modules. None where only names are known.
    nbytes:  of its elements in the file; None where they are in memory already. extra: bytes that reading takes for a moment beside them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    storage: Hashable
    read: Callable[[], Any]
    kind: str | None = None
    fixed: bool = False
    owner: str | None = None
    module: int | None = None
    nbytes: int | None = None
    extra: int = 0


@dataclass(frozen=True)
class TensorRecord:
    """What remains to be known of a tensor when its source is closed; fields as of TensorEntry."""

    name: str
    shape: tuple[int, ...]
    owner: str | None = None
    module: int | None = None


@dataclass(frozen=True)
class TensorList:
    """All tensors of a source and what of it was not taken.

    adapter: the adapter_config.json beside a file, None without one. path: where they are read from, empty where they are in memory. files: all that
    the tensors and the adapter come from.
    """

    label: str
    entries: tuple[TensorEntry, ...]
    skipped: tuple[Skipped, ...] = ()
    adapter: AdapterConfig | None = None
    path: str = ""
    files: tuple[str, ...] = ()


def _is_module(source: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.nn.Module)


@contextmanager
def open_source(source: Any) -> Iterator[TensorList]:
    """The tensors of ``source``: a path, a mapping of names to arrays (state dict), or a ``torch.nn.Module``.

    Raises TypeError for anything else, checkpoints.CheckpointError (a ValueError) for a missing or unreadable file.
    """
    if isinstance(source, (str, os.PathLike)):
        from ..checkpoints import open_checkpoint

        path = os.fspath(source)
        with open_checkpoint(path) as checkpoint:
            yield tensors_of(checkpoint, path)
    elif isinstance(source, Mapping):
        yield _from_mapping(source)
    elif _is_module(source):
        yield _from_module(source)
    else:
        raise TypeError(f"source: got {type(source).__name__}; wanted a path, a state dict (mapping of names to arrays) or a torch.nn.Module")


def tensors_of(checkpoint: Checkpoint, path: str) -> TensorList:
    """The tensors of an open checkpoint; they can be read as long as it is open."""
    from ..checkpoints.reader import ITEM_SIZES, contiguous_strides

    formats = checkpoint.format.removeprefix("sharded ").removeprefix("folders of ").split(", ")
    direct = all(f in _DIRECT for f in formats)

    def entry(t: TensorInfo) -> TensorEntry:
        extra = 0 if direct else 2 * t.nbytes
        if t.storage.strides != contiguous_strides(t.shape) and 0 not in t.shape:  # read from its first element to its last
            extra += (sum((n - 1) * abs(s) for n, s in zip(t.shape, t.storage.strides, strict=True)) + 1) * ITEM_SIZES[t.dtype]
        return TensorEntry(t.name, t.shape, t.dtype, t.storage, lambda: checkpoint.read(t.name), nbytes=t.nbytes, extra=extra)

    skipped = tuple(Skipped(s.name, s.reason) for s in checkpoint.skipped)
    files = [*checkpoint.files, *(p for p in [adapter_config_path(path)] if p.is_file())]
    return TensorList(path, tuple(map(entry, checkpoint.tensors)), skipped, read_adapter_config(path), path, tuple(map(os.fspath, files)))


def _storage_key(x: Any) -> Hashable:
    if is_torch(x):
        return (x.untyped_storage().data_ptr(), x.storage_offset(), tuple(x.shape), tuple(x.stride()), str(x.dtype))
    bits = x.bits if isinstance(x, RawArray) else x
    return (bits.__array_interface__["data"][0], bits.shape, bits.strides, dtype_name(x))


def _entry(name: str, x: Any, kind: str | None, fixed: bool, owner: str | None = None, module: int | None = None) -> TensorEntry | Skipped:
    if is_torch(x):
        shape = tuple(int(n) for n in x.shape)
        if x.device.type == "meta":
            return Skipped(name, "meta tensor: it has no values", shape)
        if getattr(x, "is_quantized", False) or str(x.layout) != "torch.strided":
            return Skipped(name, f"layout {x.layout} (quantized: {x.is_quantized}) is not a plain array", shape)
    elif isinstance(x, (np.ndarray, RawArray)):
        shape = tuple(int(n) for n in x.shape)
    else:
        return Skipped(name, f"not a tensor: {type(x).__name__}")
    # A zero-sized tensor has no address worth comparing.
    key: Hashable = _storage_key(x) if 0 not in shape else ("empty", name)
    if is_torch(x):
        copied = 0 if x.is_contiguous() and x.device.type == "cpu" else x.numel() * x.element_size()
    else:
        bits = x.bits if isinstance(x, RawArray) else x
        copied = 0 if bits.flags.c_contiguous else bits.nbytes
    return TensorEntry(name, shape, dtype_name(x), key, lambda: x, kind, fixed, owner, module, extra=copied)


def _sort(label: str, items: list[TensorEntry | Skipped]) -> TensorList:
    return TensorList(label, tuple(i for i in items if isinstance(i, TensorEntry)), tuple(i for i in items if isinstance(i, Skipped)))


def _from_mapping(mapping: Mapping[Any, Any]) -> TensorList:
    items: list[TensorEntry | Skipped] = []

    def walk(prefix: str, m: Mapping[Any, Any]) -> None:
        for key, value in m.items():
            name = f"{prefix}{key}"
            if isinstance(value, Mapping):
                if {"state", "param_groups"} <= set(value):
                    items.append(Skipped(name, "optimizer state, not weights"))
                else:
                    walk(f"{name}.", value)
            else:
                items.append(_entry(name, value, None, False))

    walk("", mapping)
    return _sort("state dict", items)


def _module_kind(module: Any) -> str:
    for base in type(module).__mro__:
        if base.__name__ in _MODULE_KINDS and base.__module__.startswith("torch.nn"):
            return _MODULE_KINDS[base.__name__]
    return "unknown role"


def _from_module(model: Any) -> TensorList:
    items: list[TensorEntry | Skipped] = []
    for index, (prefix, module) in enumerate(model.named_modules(remove_duplicate=True)):
        kind = _module_kind(module)
        owner = f"{type(module).__module__}.{type(module).__qualname__}"
        dot = f"{prefix}." if prefix else ""
        for name, p in module._parameters.items():
            if p is not None:
                if "Uninitialized" in type(p).__name__:
                    items.append(Skipped(dot + name, "lazy parameter: run the model once first"))
                else:
                    items.append(_entry(dot + name, p.detach(), kind, False, owner, index))
        for name, b in module._buffers.items():
            if b is not None:
                items.append(_entry(dot + name, b.detach(), kind, True, owner, index))
    return _sort(type(model).__name__, items)
