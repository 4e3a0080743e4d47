"""The only door between numpy and torch, and the table of floating-point formats.

Arrays whose format numpy does not know (bfloat16, the 8-bit floats) travel as :class:`RawArray`: the bits in an unsigned
integer array plus the name of the format. torch is never imported here: a torch tensor can only arrive when torch is
already in ``sys.modules``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.select import select

__all__ = [
    "FORMATS",
    "CodedArray",
    "FloatFormat",
    "RawArray",
    "as_float64",
    "as_numpy",
    "bfloat16_bits",
    "decode",
    "device_of",
    "device_of_name",
    "dtype_name",
    "is_torch",
    "as_tensor",
    "like",
    "multipliable",
    "storage_format",
    "times",
]


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format.

    precision: bits of the significand, the implicit one included.
    emin:      exponent of the smallest normal number (1.0 * 2**emin).
    bits:      width in storage.
    """

    name: str
    precision: int
    emin: int
    bits: int

    @property
    def eps(self) -> float:
        """Distance from 1.0 to the next larger number."""
        return float(2.0 ** (1 - self.precision))

    @property
    def smallest_step(self) -> float:
        """Spacing of the subnormal numbers."""
        return float(2.0 ** (self.emin + 1 - self.precision))


FORMATS: dict[str, FloatFormat] = {
    f.name: f
    for f in (
        FloatFormat("float64", 53, -1022, 64),
        FloatFormat("float32", 24, -126, 32),
        FloatFormat("float16", 11, -14, 16),
        FloatFormat("bfloat16", 8, -126, 16),
        FloatFormat("float8_e4m3fn", 4, -6, 8),
        FloatFormat("float8_e4m3fnuz", 4, -7, 8),
        FloatFormat("float8_e5m2", 3, -14, 8),
        FloatFormat("float8_e5m2fnuz", 3, -15, 8),
    )
}

# formats that numpy does not have, widened to float32 by the op "decode"
_WIDENED = ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")


@dataclass(frozen=True)
class RawArray:
    """Bits of an array in a format numpy does not have: ``bits`` is uint16 or uint8, ``dtype`` a key of :data:`FORMATS`."""

    bits: NDArray[Any]
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.bits.shape)


@dataclass(frozen=True)
class CodedArray:
    """Numbers decoded from integer codes that share a scale in runs along the last axis (the block formats of GGUF).

    values: float32. steps: (..., n / run) float32, what neighbouring codes of a run differ by. format: its name, e.g. "Q4_K"; bits: of a code.
    """

    values: NDArray[np.float32]
    steps: NDArray[np.float32]
    format: str
    bits: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def steps_of(self, view: tuple[int, int, int], part: int | tuple[int | slice, ...]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The steps of the matrix ``values.reshape(view)[part]`` without one for every entry, and how many columns share each.

        view: (matrices, rows, columns), the rows made of whole runs. part: an index into it that gives (m, n): a matrix, or that and slices of rows
        and columns. Returns steps (m, runs) and columns (runs,), which add up to n; runs of which the matrix has no column are left out.
        """
        matrices, rows, columns = view
        run = self.values.size // max(self.steps.size, 1)
        index, row_slice, column_slice = part if isinstance(part, tuple) else (part, slice(None), slice(None))
        steps = self.steps.reshape(matrices, rows, columns // max(run, 1))[index, row_slice]
        width = np.bincount(np.arange(columns)[column_slice] // max(run, 1), minlength=steps.shape[1])
        inside = width > 0
        return (steps if inside.all() else steps[:, inside]), width[inside]


def is_torch(x: object) -> bool:
    """True for a torch tensor; never imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def device_of(x: object) -> str:
    """Where kernels have to compute with ``x``: "cpu", or the name of its torch device; one without float64 (MPS) counts as "cpu"."""
    return device_of_name(x.device) if is_torch(x) else "cpu"  # type: ignore[attr-defined]


def device_of_name(device: object) -> str:
    """The same for a torch device or its name."""
    name = str(device)
    return "cpu" if name.partition(":")[0] in ("cpu", "mps") else name


def as_tensor(x: Any) -> Any:
    """``x`` as a tensor, where torch has been loaded: detached where it is one, else on the host, a view where torch can look at the array's memory."""
    if is_torch(x):
        return x.detach()
    if dtype_name(x) == "bfloat16":
        return as_tensor(bfloat16_bits(x).view(np.int16)).view(sys.modules["torch"].bfloat16)
    a = as_numpy(x)
    return sys.modules["torch"].from_numpy(a if a.flags.writeable and all(s >= 0 for s in a.strides) else a.copy())


def dtype_name(x: Any) -> str:
    """Name of the element type of an array, a torch tensor or a RawArray, e.g. ``"bfloat16"``."""
    if isinstance(x, RawArray):
        return x.dtype
    if isinstance(x, CodedArray):
        return "float32"
    if is_torch(x):
        return str(x.dtype).removeprefix("torch.")
    return _name(np.asarray(x).dtype)


@cache
def _name(dtype: np.dtype[Any]) -> str:
    """numpy makes up a dtype's name anew each time it is asked, in about as long as a small matrix takes to be looked at."""
    return str(dtype.name)


def storage_format(x: Any) -> FloatFormat | None:
    """The floating-point format ``x`` is stored in, or None for integers, booleans and complex numbers."""
    return FORMATS.get(dtype_name(x))


def decode(raw: NDArray[np.uint8], out: NDArray[np.float32], *, format: str, steps: NDArray[np.float32] | None = None, byteorder: str = "little") -> None:
    """The op of this name (kernels.numpy_kernels.decode) on one thread: that keeps pace with memory, and the others are left to who computes meanwhile."""
    kernel, backend = select("decode")
    if backend == "native":
        kernel(raw, out, format=format, steps=steps, byteorder=byteorder, threads=1)
    else:
        kernel(raw, out, format=format, steps=steps, byteorder=byteorder)


def _widened(raw: RawArray) -> NDArray[np.float32]:
    """The values, in the memory order of the bits where those lie without gaps. Bits with gaps are copied first."""
    if raw.dtype not in _WIDENED:
        raise TypeError(f"RawArray: unknown format {raw.dtype!r}; known: {', '.join(_WIDENED)}")
    bits = raw.bits
    if bits.flags.f_contiguous and not bits.flags.c_contiguous:
        turned: NDArray[np.float32] = _widened(RawArray(bits.T, raw.dtype)).T
        return turned
    out = np.empty(bits.shape, dtype=np.float32)
    adjacent = np.ascontiguousarray(bits, dtype=bits.dtype.newbyteorder("=")).reshape(-1)
    decode(adjacent.view(np.uint8).reshape(-1, bits.itemsize), out.reshape(-1, 1), format=raw.dtype, byteorder=sys.byteorder)
    return out


def as_numpy(x: Any) -> NDArray[Any]:
    """``x`` as a numpy array without changing a value: numpy and CPU torch are viewed, bf16 and 8-bit floats widen to float32.

    x: array-like, torch tensor (any device; a device tensor is copied to the host), ml_dtypes array, RawArray or CodedArray.
    """
    if isinstance(x, RawArray):
        return _widened(x)
    if isinstance(x, CodedArray):
        return x.values
    if is_torch(x):
        t = x.detach()
        name = dtype_name(t)
        if t.device.type != "cpu":
            t = t.cpu()
        if name in _WIDENED:
            torch = sys.modules["torch"]
            width = torch.int16 if name == "bfloat16" else torch.uint8
            bits = t.contiguous().view(width).numpy()
            return _widened(RawArray(bits.view(np.uint16) if name == "bfloat16" else bits, name))
        return np.asarray(t.resolve_conj().resolve_neg().numpy())
    a = np.asarray(x)
    name = _name(a.dtype)
    if name in _WIDENED:  # ml_dtypes
        return _widened(RawArray(a.view(f"u{a.itemsize}"), name))
    return a


def bfloat16_bits(x: Any) -> NDArray[np.uint16]:
    """The bits of bfloat16 numbers, a view where they are on the CPU. x: as for :func:`as_numpy`, of format bfloat16."""
    if isinstance(x, RawArray):
        return x.bits
    if is_torch(x):
        return np.asarray(x.detach().cpu().view(sys.modules["torch"].int16).numpy()).view(np.uint16)
    return np.asarray(x).view(np.uint16)


def as_float64(x: Any) -> NDArray[np.float64]:
    """``x`` as float64; exact for every real format in :data:`FORMATS`."""
    return np.asarray(as_numpy(x), dtype=np.float64)


def like(template: Any, value: NDArray[Any]) -> Any:
    """``value`` as what the caller gave: a torch tensor on the template's device where that is one, else numpy.

    A device without float64 (MPS) gets float64 values on the CPU instead of rounded ones.
    """
    if not is_torch(template):
        return value
    torch = sys.modules["torch"]
    tensor = torch.from_numpy(np.asarray(value, order="C"))
    device = template.device
    if device.type in ("cpu", "mps"):
        return tensor
    return tensor.to(device)


def multipliable(matrix: Any) -> Any:
    """A torch matrix as products want it: vectors are rounded to its format, so integers and formats narrower than float32 are widened; detached."""
    plain = matrix.detach()
    if plain.is_floating_point():
        return plain if plain.element_size() >= 4 else plain.float()
    return plain.float() if plain.device.type == "mps" else plain.double()


def times(matrix: Any, v: NDArray[Any]) -> NDArray[np.float64]:
    """matrix @ v on the device of the torch ``matrix`` (n, n), in its format; v (n, b) and the product are numpy's, the product float64 in fresh memory."""
    x = sys.modules["torch"].from_numpy(v).to(device=matrix.device, dtype=matrix.dtype)
    from ..kernels.torch_precision import ieee_products

    with ieee_products():
        return np.asarray((matrix @ x).cpu().double().numpy())
