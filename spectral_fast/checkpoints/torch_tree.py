"""From the value of a torch pickle to named tensors: which entries are weights, under which name, and what is skipped why.

Rules:
- nested dicts and lists give dotted names ("block.0.weight"); a container met twice is listed the first time only;
- a dict with "state" and "param_groups" is an optimizer's state: one skipped entry, its tensors are not weights;
- where all matrices lie under one entry of the outermost dict ({"model_state": {...}, "epoch": 3}), that entry's name is left
  out of the tensors' names, and so on inwards. With two such entries (a model and its moving average) names stay whole;
- plain numbers, strings and lists of them (epochs, arguments) are passed over silently; every other object is listed.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any, TypeGuard

from spectral_fast.checkpoints.reader import ITEM_SIZES, Skipped, shape_fits
from spectral_fast.checkpoints.torch_pickle import Call, Global, PickleError

__all__ = ["Storage", "StoredTensor", "TreeError", "find_tensors", "is_count", "text_of"]

Path = tuple[str, ...]  # keys from outside in
MAX_DEPTH = 64
MAX_WRAPPED = 8  # typed lists around one value
MAX_TEXT = 2**26  # characters, of all names together: in a dict of dicts a long key stands in the name of everything inside

# storage classes that carry a dtype, without the suffix "Storage"
_STORAGE_DTYPES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
    "Untyped": "uint8",
}
_QUANTIZED_SIZES = {"QUInt8": 1, "QInt8": 1, "QInt32": 4, "QUInt4x2": 1, "QUInt2x4": 1}

# Values of these are settings, like plain numbers
_SETTINGS = {
    "torch.device",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "_codecs.encode",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib.Path",
    "datetime.datetime",
    "datetime.timedelta",
}

_PLAIN_TENSORS = {"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter"}
_PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state", "torch.nn.parameter.Parameter"}

_REFUSED = {
    "_rebuild_sparse_tensor": "sparse tensor: not read",
    "_rebuild_sparse_csr_tensor": "sparse tensor: not read",
    "_rebuild_nested_tensor": "nested tensor: not read",
    "_rebuild_qtensor": "quantized tensor: its codes are not weights",
    "_rebuild_meta_tensor_no_storage": "meta tensor: has no data",
    "_rebuild_wrapper_subclass": "tensor subclass without plain storage: not read",
    "_rebuild_device_tensor_from_numpy": "device tensor stored as a numpy array: not read",
    "_rebuild_device_tensor_from_cpu_tensor": "device tensor stored without plain storage: not read",
}


class TreeError(PickleError):
    """A tensor that contradicts its storage: the file is damaged or forged."""


@dataclass(frozen=True)
class Storage:
    """A storage as a persistent id describes it: ``nbytes`` bytes from ``offset`` on of the record ``key``."""

    key: str
    dtype: str | None
    item_size: int | None
    nbytes: int
    offset: int = 0

    @staticmethod
    def from_persistent_id(found: Any) -> Storage:
        """("storage", class, key, location, elements[, None or (view key, offset, elements)]). Raises TreeError."""
        if not isinstance(found, tuple) or len(found) not in (5, 6) or found[0] != "storage":
            raise TreeError("persistent id is not a storage")
        kind, key, count = found[1], found[2], found[4]
        if not isinstance(kind, Global) or not isinstance(key, str | int) or not is_count(count):
            raise TreeError("storage without class, key or size")
        short = kind.name.removesuffix("Storage")
        dtype = _STORAGE_DTYPES.get(short) if kind.module.split(".")[0] == "torch" else None
        item_size = ITEM_SIZES[dtype] if dtype else _QUANTIZED_SIZES.get(short)
        whole = count * (item_size or 1)
        view = found[5] if len(found) == 6 else None
        if view is None:
            return Storage(text_of(key), dtype, item_size, whole)
        if not isinstance(view, tuple) or len(view) != 3 or not is_count(view[1]) or not is_count(view[2]):
            raise TreeError("storage view without offset and size")
        begin, size = view[1] * (item_size or 1), view[2] * (item_size or 1)
        if begin + size > whole:
            raise TreeError(f"view of storage {text_of(key)} leaves it")
        return Storage(text_of(key), dtype, item_size, size, begin)


@dataclass(frozen=True)
class StoredTensor:
    """A dense tensor: a strided view of a storage. offset and strides in elements, checked to stay inside the storage."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    extent: int  # elements from the first to the last, both included


def find_tensors(root: Any, most: int) -> tuple[list[tuple[str, StoredTensor]], list[Skipped]]:
    """Named tensors in the stream's order, and the skipped entries, together not more than ``most``: a pickle can name one object without end.

    Raises TreeError for more, and for tensors that leave their storage.
    """
    walk = _Walk(most)
    walk.visit((), root)
    prefix = walk.common_prefix()
    named: dict[str, StoredTensor] = {}
    skipped = walk.all_skipped()
    for path, tensor in walk.tensors:
        short = path[len(prefix) :] if path[: len(prefix)] == prefix else path
        name = walk.joined(short) if short else "tensor"
        if name in named:
            skipped.append(Skipped(name, "a second tensor of this name"))
        else:
            named[name] = tensor
    return list(named.items()), skipped


class _Walk:
    """Collects tensors with their paths, visiting each container once: shared and circular ones cost nothing more."""

    def __init__(self, most: int) -> None:
        self.tensors: list[tuple[Path, StoredTensor]] = []
        self._most = most
        self._text = 0
        self._skipped: list[Skipped] = []
        self._seen: dict[int, tuple[Path, int | None]] = {}  # id of a container -> its path and, once left, its number of tensors
        self._objects: Counter[tuple[Path, str]] = Counter()  # (path of the parent, class) in lists
        self._matrices: set[Path] = set()  # containers with a matrix among their own entries
        self._heads: defaultdict[Path, set[str]] = defaultdict(set)  # container -> its entries that are containers with tensors

    def all_skipped(self) -> list[Skipped]:
        in_lists = [Skipped(self._name(path), f"{n} pickled objects of class {kind}: not read") for (path, kind), n in self._objects.items()]
        return self._skipped + in_lists

    def common_prefix(self) -> Path:
        """The entries, from outside in, that alone hold matrices; loose vectors and scalars beside them (a random state) do not count."""
        prefix: Path = ()
        while len(self._heads[prefix]) == 1 and prefix not in self._matrices:
            prefix = (*prefix, *self._heads[prefix])
        return prefix

    def joined(self, path: Path) -> str:
        self._text += sum(map(len, path)) + len(path)
        if self._text > MAX_TEXT:
            raise TreeError(f"names of more than {MAX_TEXT} characters")
        return ".".join(path)

    def _name(self, path: Path) -> str:
        return self.joined(path) or "(whole file)"

    def _count(self) -> None:
        if len(self.tensors) + len(self._skipped) >= self._most:
            raise TreeError(f"more than {self._most} tensors and other entries, too many for a file of this size")

    def visit(self, path: Path, node: Any, in_list: bool = False) -> None:
        if isinstance(node, dict | list | tuple):
            self._container(path, node)
        elif isinstance(node, Storage):
            self._skip(path, "bare storage without a shape")
        elif isinstance(node, Call):
            self._call(path, node, in_list)
        # else: a number, string, None or class name

    def _container(self, path: Path, node: Any) -> None:
        if not node:
            return
        if isinstance(node, dict) and "state" in node and "param_groups" in node:
            self._skip(path, "optimizer state, not weights")
            return
        if id(node) in self._seen:
            first, count = self._seen[id(node)]
            if count:
                self._skip(path, f"the same object as {self._name(first)}")
            return
        if len(path) >= MAX_DEPTH:
            self._skip(path, f"nested deeper than {MAX_DEPTH} levels")
            return
        self._seen[id(node)] = (path, None)
        before = len(self.tensors)
        is_dict = isinstance(node, dict)
        for key, value in node.items() if is_dict else enumerate(node):
            if isinstance(value, dict | list | tuple | Call | Storage):
                self.visit((*path, text_of(key)), value, in_list=not is_dict)
        self._seen[id(node)] = (path, len(self.tensors) - before)
        if path and len(self.tensors) > before:
            self._heads[path[:-1]].add(path[-1])

    def _call(self, path: Path, call: Call, in_list: bool) -> None:
        call = _unwrap(call)
        what = text_of(str(call.what))[:200] if isinstance(call.what, Global) else "(computed)"
        module, _, function = what.rpartition(".")
        if module == "torch._utils" and function in _REFUSED:
            self._skip(path, _REFUSED[function])
        elif module == "torch._utils" and function in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            self._count()
            tensor = _dense(path, function, call.args)
            if isinstance(tensor, str):
                self._skip(path, tensor)
            else:
                self.tensors.append((path, tensor))
                if len(tensor.shape) >= 2 and path:
                    self._matrices.add(path[:-1])
        elif what in _SETTINGS:
            return
        elif module.startswith("__torch__") and isinstance(call.state, dict):  # a module of a TorchScript archive
            self._container(path, call.state)
        elif module == "torch.jit._pickle" and call.args:  # a typed list or dict
            self.visit(path, _untyped(call))
        elif call.entries or call.elements:  # a subclass of dict or list
            self._container(path, call.entries or call.elements)
        elif in_list:
            self._objects[(path[:-1], what)] += 1
        else:
            self._skip(path, f"pickled object of class {what}: not read")

    def _skip(self, path: Path, reason: str) -> None:
        self._count()
        self._skipped.append(Skipped(self._name(path), reason))


def _untyped(call: Call) -> Any:
    """What typed lists and dicts hold; None for too many around each other."""
    node: Any = call
    for _ in range(MAX_WRAPPED):
        if not (isinstance(node, Call) and isinstance(node.what, Global) and node.what.module == "torch.jit._pickle" and node.args):
            return node
        node = node.args[0]
    return None


def _unwrap(call: Call) -> Call:
    """The tensor inside of Parameter and of plain tensors that carry attributes; other calls as they are."""
    for _ in range(4):
        what = str(call.what) if isinstance(call.what, Global) else ""
        inner: Any = None
        if what in _PARAMETERS and call.args:
            inner = call.args[0]
        elif what == "torch._tensor._rebuild_from_type_v2" and len(call.args) >= 3:
            function, kind, arguments = call.args[:3]
            if isinstance(kind, Global) and str(kind) in _PLAIN_TENSORS and isinstance(arguments, tuple):
                inner = Call(function, arguments)
        if not isinstance(inner, Call):
            return call
        call = inner
    return call


def _dense(path: Path, function: str, arguments: tuple[Any, ...]) -> StoredTensor | str:
    """A tensor from the arguments of torch's rebuild functions: storage, offset, shape, strides, ...; or why it is skipped."""
    if len(arguments) < 4 or not isinstance(arguments[0], Storage):
        raise TreeError(f"tensor {'.'.join(path)!r} has no storage")
    storage, offset, shape, strides = arguments[:4]
    if not (is_count(offset) and _are_counts(shape) and _are_counts(strides) and len(shape) == len(strides)):
        raise TreeError(f"tensor {'.'.join(path)!r}: offset, shape and strides have to be integers >= 0, as many strides as dimensions")
    dtype = storage.dtype
    if function == "_rebuild_tensor_v3":
        kind = arguments[6] if len(arguments) > 6 else None
        dtype = kind.name if isinstance(kind, Global) and kind.module == "torch" else None
        if dtype not in ITEM_SIZES:
            return f"dtype {dtype}: not decoded"
    if dtype is None:
        return "storage of unknown class: not decoded"
    if any(isinstance(a, dict) and (a.get("conj") or a.get("neg")) for a in arguments[6:]):
        return "conjugated or negated view: not read"
    size = ITEM_SIZES[dtype]
    if not shape_fits(tuple(shape), size):
        raise TreeError(f"tensor {'.'.join(path)!r}: shape {list(shape[:40])} is too large for any file")
    count = math.prod(shape)
    # a dimension of length one has no meaningful stride; left as it is, it would hide ties
    strides = tuple(s if n != 1 else 0 for n, s in zip(shape, strides, strict=True))
    extent = 0 if count == 0 else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if (offset + extent) * size > storage.nbytes and count:
        raise TreeError(f"tensor {'.'.join(path)!r}: shape {list(shape)}, strides {list(strides)}, offset {offset} leave its storage of {storage.nbytes} bytes")
    if count > extent:
        return "expanded view: elements share memory"
    return StoredTensor(storage, dtype, offset, tuple(shape), strides, extent)


def text_of(key: Any) -> str:
    if isinstance(key, bytes):
        key = key.decode("latin-1")
    if isinstance(key, Call):
        return "<object>"
    if isinstance(key, int) and key.bit_length() > 64:  # str() of a huge integer is slow, or refused
        return "<integer>"
    return str(key).encode("utf-8", "backslashreplace").decode("utf-8")  # lone surrogates cannot be printed


def is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**63


def _are_counts(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(is_count(v) for v in values)
