"""A device that does not exist: tensors on it are tensors of the CPU in a wrapper that says otherwise.

What is written in torch's functions runs on it as it would on a GPU, so far as devices are concerned: an operation that mixes it with the CPU fails, as
does reading its memory as an array, and everything that travels is counted. Numbers are those of the CPU.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from spectral_fast.kernels import select
from spectral_fast.weights import compute

__all__ = ["NAME", "Traffic", "on_device", "pretend_device"]

NAME = "pretend"


class Traffic:
    """Bytes that went to the device and came back from it."""

    def __init__(self) -> None:
        self.there = self.back = 0


_traffic = Traffic()


class _OnDevice(torch.Tensor):
    """``real``: where the numbers are."""

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> _OnDevice:
        out = torch.Tensor._make_wrapper_subclass(
            cls, real.size(), strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype, device=torch.device(NAME, 0)
        )
        out.real_numbers = real
        return out

    def __repr__(self) -> str:
        return f"{self.real_numbers!r} on {NAME}"

    def tolist(self) -> Any:
        _traffic.back += self.nbytes
        return self.real_numbers.tolist()

    def untyped_storage(self) -> Any:
        return self.real_numbers.untyped_storage()

    def data_ptr(self) -> int:
        return self.real_numbers.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, _OnDevice)]
    moves = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
    if there and not moves and any(x.dim() > 0 for x in tensors if not isinstance(x, _OnDevice)):
        raise RuntimeError(f"{func}: tensors of the CPU and of the device")
    wanted = kwargs.get("device")
    goes = torch.device(wanted).type == NAME if wanted is not None else bool(there)
    plain, named = tree_map_only(_OnDevice, lambda x: x.real_numbers, (args, dict(kwargs)))
    if wanted is not None:
        named["device"] = torch.device("cpu")
    out = func(*plain, **named)
    if func.overloadpacket is torch.ops.aten.copy_:
        _count(args[1], isinstance(args[0], _OnDevice))
    elif func.overloadpacket is torch.ops.aten._to_copy:
        _count(args[0], goes)
    elif func.overloadpacket is torch.ops.aten._local_scalar_dense and there:
        _traffic.back += there[0].element_size()
    return tree_map_only(torch.Tensor, functools.partial(_wrapped, there), out) if goes else out


def _wrapped(known: list[_OnDevice], out: torch.Tensor) -> _OnDevice:
    same = [x for x in known if x.real_numbers is out]  # changed in place
    return same[0] if same else _OnDevice(out)


def _count(x: torch.Tensor, goes: bool) -> None:
    here = isinstance(x, _OnDevice)
    if goes and not here:
        _traffic.there += x.nbytes
    elif here and not goes:
        _traffic.back += x.nbytes


_tensor_on_the_host = torch.tensor


def _tensor_of(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
    out = _tensor_on_the_host(data, **options)
    return out if device is None else out.to(device)


class _Everywhere(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Backend:
    """What torch asks of the module of a device, by other tests of this process too: there is one, and it draws no random numbers."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        pass


@functools.cache
def _register() -> None:
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    select.BACKENDS[NAME] = ("torch",)


@contextmanager
def pretend_device() -> Iterator[Traffic]:
    """Inside, ``tensor.to(pretend_device.NAME)`` works, and kernels are found for it. -> what travels."""
    _register()
    _traffic.there = _traffic.back = 0
    before, stream = torch.tensor, compute.own_stream
    torch.tensor = _tensor_of  # its memory is made below where a Python backend is asked
    compute.own_stream = _in_this_thread
    try:
        with _Everywhere():
            yield _traffic
    finally:
        torch.tensor, compute.own_stream = before, stream


def _in_this_thread(device: str) -> Any:
    """Where a thread would have a stream of its own, it is told of the device."""
    return _Everywhere() if device.startswith(NAME) else nullcontext()


# what stays on the host: small, and there already
_OF_THE_HOST = {"floor", "s", "omega", "m"}


def on_device(function: Any) -> Any:
    """A kernel of tensors as one of arrays: arrays are put on the device, and what was changed in place is brought back."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        with pretend_device():
            moved: dict[int, tuple[np.ndarray, torch.Tensor]] = {}
            for name, array in bound.arguments.items():
                if isinstance(array, np.ndarray) and name not in _OF_THE_HOST:
                    if id(array) not in moved:
                        moved[id(array)] = (array, _tensor(array).to(NAME))
                    bound.arguments[name] = moved[id(array)][1]
            out = function(*bound.args, **bound.kwargs)
            for array, tensor in moved.values():
                if array.flags.writeable:
                    array[...] = _array(tensor, array.dtype)
            return _fields(out)

    return call


def _tensor(array: np.ndarray) -> torch.Tensor:
    """A copy; uint16 holds the bits of bfloat16."""
    fresh = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(fresh.view(np.int16)).view(torch.bfloat16) if array.dtype == np.uint16 else torch.from_numpy(fresh)


def _array(tensor: torch.Tensor, dtype: Any = None) -> np.ndarray:
    host = tensor.cpu()
    return host.view(torch.int16).numpy().view(np.uint16) if dtype == np.uint16 else host.numpy()


def _fields(out: Any) -> Any:
    if isinstance(out, torch.Tensor):
        return _array(out)
    if isinstance(out, tuple):
        parts = [_fields(x) for x in out]
        return type(out)(*parts) if hasattr(out, "_fields") else tuple(parts)
    return out
