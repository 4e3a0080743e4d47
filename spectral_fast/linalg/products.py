"""Products with an operator given as a matrix of any kind or as anything with .shape and @."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.select import BACKENDS
from .arrays import as_tensor, device_of, device_of_name, is_torch, multipliable, times

__all__ = ["Apply", "DeviceProducts", "blocks_of", "check_operator", "finite", "product_of", "real", "vector_product"]

F64 = NDArray[np.float64]
# Rows (b, n) in -> products by row (b, n) out, float32 or float64, which the caller may overwrite: arrays, or with an attribute ``device`` that is not
# "cpu" tensors of that device as well.
Apply = Callable[[Any], Any]


class DeviceProducts:
    """Products made on ``device``: tensors of it in and out, in the wider format of rows and products; arrays of the host go there and come back."""

    def __init__(self, multiply: Callable[[Any], Any], device: str) -> None:
        self._multiply, self.device = multiply, device

    def __call__(self, v: Any) -> Any:
        if not is_torch(v):
            return np.asarray(self(as_tensor(v).to(self.device)).cpu().numpy())
        w = self._multiply(v)
        if w.shape != v.shape:
            raise ValueError(f"op: its product with {len(v)} vectors of {v.shape[1]} entries has shape {tuple(w.shape)}")
        return w.double() if "float64" in str(v.dtype) else w


def check_operator(op: Any) -> int:
    """n of a square operator. Raises TypeError or ValueError naming ``op``."""
    shape = getattr(op, "shape", None)
    if shape is None or not hasattr(op, "__matmul__"):
        raise TypeError(f"op: wanted something with .shape and @ (array, tensor, LinearOperator, ModelOperator), got {type(op).__name__}")
    if "complex" in str(getattr(op, "dtype", "")):
        raise TypeError(f"op: wanted a real symmetric operator, got dtype {op.dtype}")
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        raise ValueError(f"op: wanted a square matrix, got shape {tuple(shape)}")
    return int(shape[0])


def product_of(op: Any) -> Apply:
    """Rows V (b, n) -> the rows of (op @ Vᵀ)ᵀ, in fresh memory; ``op.row_products`` where the operator has it, else one ``op @ v`` for each.

    A torch matrix on a device, and an operator with ``device_products`` there (rows and products are tensors), give :class:`DeviceProducts`."""
    own = getattr(op, "row_products", None)
    device = device_of(op) if is_torch(op) else device_of_name(getattr(op, "device", "cpu")) if hasattr(op, "device_products") else "cpu"
    if device.partition(":")[0] in BACKENDS and device != "cpu":
        if not is_torch(op):
            return DeviceProducts(op.device_products, device)
        there = multipliable(op)

        def product_there(v: Any) -> Any:
            from ..kernels.torch_precision import ieee_products

            with ieee_products():
                return (there @ v.to(there.dtype).mT).mT.contiguous()

        return DeviceProducts(product_there, device)
    if is_torch(op):
        matrix = multipliable(op)

        def torch_product(v: NDArray[Any]) -> NDArray[Any]:
            return np.ascontiguousarray(times(matrix, v.T).T)

        multiply: Apply = torch_product
    elif callable(own):
        multiply = own
    else:

        def numpy_product(v: NDArray[Any]) -> NDArray[Any]:
            out = np.empty(v.shape, dtype=np.float64)
            for row, to in zip(v, out, strict=True):
                w = real(op @ row.astype(np.float64, copy=False))
                if w.size != to.size:
                    raise ValueError(f"op: its product with a vector of shape {row.shape} has shape {w.shape}")
                to[:] = w.reshape(-1)
            return out

        multiply = numpy_product

    def apply(v: Any) -> Any:
        w = multiply(v)
        if w.shape != v.shape:
            raise ValueError(f"op: its product with {len(v)} vectors of {v.shape[1]} entries has shape {w.shape}")
        return w

    return apply


def real(w: Any) -> NDArray[Any]:
    """A product as an array. Raises TypeError where it is complex."""
    out = np.asarray(w)
    if np.iscomplexobj(out):
        raise TypeError(f"op: wanted a real symmetric operator, its product with a real vector is {out.dtype}")
    return out


def finite(w: F64) -> F64:
    """A product as it is. Raises ArithmeticError where it holds NaN or Inf."""
    if not np.isfinite(w).all():
        raise ArithmeticError(f"op: its product with a vector holds {int((~np.isfinite(w)).sum())} NaN or Inf of {w.size} entries")
    return w


def blocks_of(op: Any, n: int) -> dict[str, slice]:
    """``op.blocks`` (name -> slice) with plain bounds, {} where there are none. Raises ValueError for a block with a step."""
    blocks = getattr(op, "blocks", None)
    if not isinstance(blocks, Mapping):
        return {}
    plain = {}
    for name, s in blocks.items():
        start, stop, step = s.indices(n)
        if step != 1:
            raise ValueError(f"op: block {name!r} has step {step}; wanted contiguous rows")
        plain[str(name)] = slice(start, max(start, stop))
    return plain


def vector_product(op: Any) -> Callable[[F64], F64]:
    """v (n,) -> op @ v (n,), float64 both. ArithmeticError where the product holds NaN or Inf."""
    apply = product_of(op)

    def one(v: F64) -> F64:
        return finite(np.asarray(apply(np.ascontiguousarray(v, dtype=np.float64)[None])[0], dtype=np.float64))

    return one
