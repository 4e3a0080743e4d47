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

__all__ = ["FORMATS", "CodedArray", "FloatFormat", "RawArray", "as_float64", "as_numpy", "bfloat16_bits", "dtype_name", "is_torch", "like", "storage_format"]


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

# exponent bias and whether the format spends its top exponent on Inf/NaN ("ieee"), on one NaN pattern ("fn") or on -0 ("fnuz")
_FP8 = {"float8_e4m3fn": (4, 7, "fn"), "float8_e4m3fnuz": (4, 8, "fnuz"), "float8_e5m2": (5, 15, "ieee"), "float8_e5m2fnuz": (5, 16, "fnuz")}


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

    def entry_steps(self) -> NDArray[np.float32]:
        """The step of every entry, of the shape of ``values``."""
        run = self.values.size // max(self.steps.size, 1)
        return np.repeat(self.steps, run, axis=-1).reshape(self.values.shape)


def is_torch(x: object) -> bool:
    """True for a torch tensor; never imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


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


@cache
def _fp8_table(name: str) -> NDArray[np.float32]:
    """The 256 values of an 8-bit format, float32 (Micikevicius et al. 2022 for e4m3fn/e5m2; the fnuz variants have one NaN, 0x80)."""
    exponent_bits, bias, special = _FP8[name]
    mantissa_bits = 7 - exponent_bits
    code = np.arange(256)
    sign = np.where(code & 0x80, -1.0, 1.0)
    exponent = (code & 0x7F) >> mantissa_bits
    mantissa = code & ((1 << mantissa_bits) - 1)
    normal = (1.0 + mantissa / 2.0**mantissa_bits) * 2.0 ** (exponent - bias)
    subnormal = mantissa / 2.0**mantissa_bits * 2.0 ** (1 - bias)
    value = sign * np.where(exponent == 0, subnormal, normal)
    if special == "fn":
        value[(code & 0x7F) == 0x7F] = np.nan
    elif special == "fnuz":
        value[0x80] = np.nan
    else:
        top = exponent == (1 << exponent_bits) - 1
        value[top] = np.where(mantissa[top] == 0, sign[top] * np.inf, np.nan)
    return value.astype(np.float32)


def _decode(raw: RawArray) -> NDArray[np.float32]:
    if raw.dtype == "bfloat16":
        return np.asarray((raw.bits.astype(np.uint32) << np.uint32(16)).view(np.float32))
    if raw.dtype in _FP8:
        return np.asarray(_fp8_table(raw.dtype)[raw.bits])
    raise TypeError(f"RawArray: unknown format {raw.dtype!r}; known: bfloat16, {', '.join(_FP8)}")


def as_numpy(x: Any) -> NDArray[Any]:
    """``x`` as a numpy array without changing a value: numpy and CPU torch are viewed, bf16 and 8-bit floats widen to float32.

    x: array-like, torch tensor (any device; a device tensor is copied to the host), ml_dtypes array, RawArray or CodedArray.
    """
    if isinstance(x, RawArray):
        return _decode(x)
    if isinstance(x, CodedArray):
        return x.values
    if is_torch(x):
        t = x.detach()
        name = dtype_name(t)
        if t.device.type != "cpu":
            t = t.cpu()
        if name == "bfloat16" or name in _FP8:
            torch = sys.modules["torch"]
            width = torch.int16 if name == "bfloat16" else torch.uint8
            bits = t.contiguous().view(width).numpy()
            return _decode(RawArray(bits.view(np.uint16) if name == "bfloat16" else bits, name))
        return np.asarray(t.resolve_conj().resolve_neg().numpy())
    a = np.asarray(x)
    name = _name(a.dtype)
    if name == "bfloat16" or name in _FP8:  # ml_dtypes
        return np.asarray(a.astype(np.float32))
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
