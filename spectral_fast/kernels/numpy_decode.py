"""Floats and block formats of fewer than 32 bits to float32, in numpy; part of ``numpy_kernels``.

A block is a fixed number of consecutive elements of one row, stored together: integer codes of a few bits, and one or two scales.
Below, "d" and "m" are float16 numbers; nibbles are four bits, the low one first; codes are unsigned unless said otherwise.

    format  elements  bytes  layout (offset: content)                                              value of an element
    Q4_0     32        18    0: d  2: 16 bytes, low nibbles = elements 0-15, high = 16-31          d (q - 8)
    Q4_1     32        20    0: d  2: m  4: nibbles as in Q4_0                                     d q + m
    Q5_0     32        22    0: d  2: fifth bits, bit j for element j  6: nibbles                  d (q - 16)
    Q5_1     32        24    0: d  2: m  4: fifth bits  8: nibbles                                 d q + m
    Q8_0     32        34    0: d  2: 32 signed codes                                              d q
    Q2_K    256        84    0: 16 bytes (s low, t high nibble)  16: 64 bytes of codes  80: d  82: m    d s q - m t
    Q3_K    256       110    0: third bits  32: 64 bytes of codes  96: 12 bytes of s  108: d       d (s - 32) (q - 4)
    Q4_K    256       144    0: d  2: m  4: 12 bytes of s and t  16: 128 bytes of nibbles          d s q - m t
    Q5_K    256       176    0: d  2: m  4: 12 bytes of s and t  16: fifth bits  48: nibbles       d s q - m t
    Q6_K    256       210    0: nibbles  128: upper two bits  192: 16 signed s  208: d             d s (q - 32)
    Q8_K    256       292    0: d (float32)  4: 256 signed codes  260: sums, not needed            d q

s and t belong to 16 elements each in Q2_K, Q3_K and Q6_K, to 32 in Q4_K and Q5_K. How the bits of the K formats are spread is told
at the functions that gather them.

Accuracy: d has 11 bits, s at most 8 and q at most 6 (no more than 23 together), so every product is exact in float32, and what
is left is one rounding at most: the sum in Q4_1, Q5_1, Q2_K, Q4_K and Q5_K, the product in Q8_K. The result is therefore the float32
nearest to the exact value, whatever the order of the products.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK_FORMATS", "FLOAT_FORMATS", "BlockFormat", "decode"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

# bytes of a number; each is a block of its own, without steps
FLOAT_FORMATS = {"float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1}

# exponent bits, exponent bias and whether the format spends its top exponent on Inf/NaN ("ieee"), on one NaN pattern ("fn") or on -0 ("fnuz")
_FP8 = {"float8_e4m3fn": (4, 7, "fn"), "float8_e4m3fnuz": (4, 8, "fnuz"), "float8_e5m2": (5, 15, "ieee"), "float8_e5m2fnuz": (5, 16, "fnuz")}

_SLICE = 1 << 18  # elements decoded at a time, so that no temporary is as large as the tensor


class BlockFormat(NamedTuple):
    """elements: per block. nbytes: per block. bits: of a code. runs: per block, of elements that share a scale. decode(raw, order, out): blocks
    (n, nbytes) to out (n, elements), order "<" or ">". scales(raw, order): (n, runs), what a code of one more adds; of either sign."""

    elements: int
    nbytes: int
    bits: int
    runs: int
    decode: Callable[[Bytes, str, Floats], None]
    scales: Callable[[Bytes, str], Floats]


def decode(raw: Bytes, out: Floats, *, format: str, steps: Floats | None = None, byteorder: str = "little") -> None:
    """Decode whole blocks to float32.

    raw: (n, nbytes) uint8, the bytes of n blocks; those of one block adjacent, the blocks at any stride. format: a key of :data:`BLOCK_FORMATS`, or of
    :data:`FLOAT_FORMATS`, whose blocks are single numbers. out: (n, elements) float32, C-contiguous, is overwritten.
    steps: (n, runs) float32, C-contiguous, receives what neighbouring codes of a run differ by, |d s|; only of block formats.
    byteorder: "little" or "big", of the 16-bit floats, the scales and the fifth bits of Q5_0 and Q5_1 (a 32-bit number); all else is bytes.

    Every value is the float32 nearest to the exact one (see above), and all backends give the same bits. An infinite or NaN scale gives what IEEE
    arithmetic makes of it, without a warning; which of the NaNs it is may differ, but those of bfloat16 and of 8-bit floats keep their sign.
    8-bit floats: Micikevicius et al. (2022) for e4m3fn and e5m2; the fnuz variants have one NaN, 0x80, no infinity and no -0.
    Errors: ValueError naming the argument: an unknown format or byte order, sizes that do not fit; TypeError: another dtype.
    """
    elements, nbytes, runs = _layout(format)
    order = _order(byteorder)
    _check("raw", raw, np.uint8, (len(raw) if raw.ndim else 0, nbytes), format, contiguous=False)
    _check("out", out, np.float32, (len(raw), elements), format)
    if steps is not None:
        _check("steps", steps, np.float32, (len(raw), runs), format)
    with np.errstate(all="ignore"):
        count = _SLICE // elements
        for i in range(0, len(raw), count):
            part = np.ascontiguousarray(raw[i : i + count])
            if format in FLOAT_FORMATS:
                _floats(part, format, order, out[i : i + count])
                continue
            BLOCK_FORMATS[format].decode(part, order, out[i : i + count])
            if steps is not None:
                steps[i : i + count] = np.abs(BLOCK_FORMATS[format].scales(part, order))


def _layout(format: str) -> tuple[int, int, int]:
    """Elements, bytes and runs of a block."""
    if format in FLOAT_FORMATS:
        return 1, FLOAT_FORMATS[format], 0
    if format not in BLOCK_FORMATS:
        raise ValueError(f"format: got {format}; known: {', '.join((*FLOAT_FORMATS, *BLOCK_FORMATS))}")
    return BLOCK_FORMATS[format].elements, BLOCK_FORMATS[format].nbytes, BLOCK_FORMATS[format].runs


def _order(byteorder: str) -> str:
    if byteorder not in ("little", "big"):
        raise ValueError(f"byteorder: got {byteorder}; known: little, big")
    return "<" if byteorder == "little" else ">"


def _check(name: str, a: NDArray[Any], dtype: Any, shape: tuple[int, int], format: str, contiguous: bool = True) -> None:
    wanted = f"{name}: wanted a {shape} {np.dtype(dtype).name} array of {format}, got "
    if a.dtype != dtype:
        raise TypeError(f"{wanted}dtype {a.dtype}")
    if a.shape != shape:
        raise ValueError(f"{wanted}{a.shape}")
    if contiguous and not (a.flags.c_contiguous and a.flags.writeable and a.flags.aligned):
        raise ValueError(f"{wanted}one that is not C-contiguous and writable")
    if not contiguous and shape[1] > 1 and a.size and a.strides[1] != 1:
        raise ValueError(f"{wanted}one whose blocks are not of adjacent bytes")


def _floats(raw: Bytes, format: str, order: str, out: Floats) -> None:
    if format in _FP8:
        np.take(_fp8_table(format), raw, out=out)
    elif format == "float16":
        out[...] = raw.view(f"{order}f2")
    else:
        bits = out.view(np.uint32)
        bits[...] = raw.view(f"{order}u2")
        bits <<= np.uint32(16)


@cache
def _fp8_table(name: str) -> Floats:
    """The 256 values of an 8-bit format."""
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
        value = np.where((code & 0x7F) == 0x7F, np.copysign(np.nan, sign), value)
    elif special == "fnuz":
        value[0x80] = np.nan
    else:
        top = exponent == (1 << exponent_bits) - 1
        value = np.where(top, np.copysign(np.where(mantissa == 0, np.inf, np.nan), sign), value)
    return value.astype(np.float32)


def _scale(raw: Bytes, at: int, order: str, kind: str = "f2") -> Floats:
    """The number at byte ``at`` of every block: (n, 1)."""
    size = int(kind[1])
    return np.ascontiguousarray(raw[:, at : at + size]).view(f"{order}{kind}").astype(np.float32)


def _nibbles(raw: Bytes, run: int) -> Bytes:
    """(n, b) bytes to (n, 2 b) codes: of every ``run`` bytes first the low nibbles, then the high ones."""
    grouped = raw.reshape(len(raw), -1, 1, run)
    codes: Bytes = grouped >> np.array([[0], [4]], dtype=np.uint8) & np.uint8(15)
    return codes.reshape(len(raw), -1)


def _bit_pairs(raw: Bytes, run: int = 32) -> Bytes:
    """(n, b) bytes to (n, 4 b) codes: of every ``run`` bytes first the lowest two bits of each, then the next two, and so on."""
    grouped = raw.reshape(len(raw), -1, 1, run)
    codes: Bytes = grouped >> np.array([[0], [2], [4], [6]], dtype=np.uint8) & np.uint8(3)
    return codes.reshape(len(raw), -1)


def _single_bits(raw: Bytes) -> Bytes:
    """(n, 32) bytes to (n, 256) codes: bit 0 of each byte, then bit 1, and so on."""
    codes: Bytes = raw[:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & np.uint8(1)
    return codes.reshape(len(raw), 256)


def _q4_0(raw: Bytes, order: str, out: Floats) -> None:
    out[...] = _nibbles(raw[:, 2:], 16)
    out -= np.float32(8)
    out *= _scale(raw, 0, order)


def _q4_1(raw: Bytes, order: str, out: Floats) -> None:
    out[...] = _nibbles(raw[:, 4:], 16)
    out *= _scale(raw, 0, order)
    out += _scale(raw, 2, order)


def _five_bits(raw: Bytes, at: int, order: str) -> Bytes:
    """Q5_0 and Q5_1: a 32-bit number with the fifth bits at ``at``, the nibbles behind it; (n, 32)."""
    top = raw[:, at : at + 4] if order == "<" else raw[:, at : at + 4][:, ::-1]
    codes: Bytes = _nibbles(raw[:, at + 4 :], 16) | np.unpackbits(top, axis=1, bitorder="little") << np.uint8(4)
    return codes


def _q5_0(raw: Bytes, order: str, out: Floats) -> None:
    out[...] = _five_bits(raw, 2, order)
    out -= np.float32(16)
    out *= _scale(raw, 0, order)


def _q5_1(raw: Bytes, order: str, out: Floats) -> None:
    out[...] = _five_bits(raw, 4, order)
    out *= _scale(raw, 0, order)
    out += _scale(raw, 2, order)


def _q8_0(raw: Bytes, order: str, out: Floats) -> None:
    out[...] = raw[:, 2:].view(np.int8)
    out *= _scale(raw, 0, order)


def _q8_k(raw: Bytes, order: str, out: Floats) -> None:
    out[...] = raw[:, 4:260].view(np.int8)
    out *= _scale(raw, 0, order, "f4")


def _scaled(codes: NDArray[Any], scales: Floats, offsets: Floats | None, out: Floats) -> None:
    """out = codes * scales - offsets, where codes and out are (n, 256) and every scale holds for 256 / k elements; scales (n, k)."""
    parts = out.reshape(*scales.shape, -1)
    parts[...] = codes.reshape(parts.shape)
    parts *= scales[..., None]
    if offsets is not None:
        parts -= offsets[..., None]


def _first_scale(raw: Bytes, order: str) -> Floats:
    return _scale(raw, 0, order)


def _first_float32(raw: Bytes, order: str) -> Floats:
    return _scale(raw, 0, order, "f4")


def _scales_q2_k(raw: Bytes, order: str) -> Floats:
    scales: Floats = _scale(raw, 80, order) * (raw[:, :16] & np.uint8(15))
    return scales


def _q2_k(raw: Bytes, order: str, out: Floats) -> None:
    offsets = _scale(raw, 82, order) * (raw[:, :16] >> np.uint8(4))
    _scaled(_bit_pairs(raw[:, 16:80]), _scales_q2_k(raw, order), offsets, out)


def _scales_q3_k(raw: Bytes, order: str) -> Floats:
    """The 6-bit scales: four low bits of scales 0-7 and 8-15 are the nibbles of 8 bytes; two high bits of scales 0-3, 4-7, 8-11 and
    12-15 are the bit pairs of the last 4 bytes."""
    low = _nibbles(raw[:, 96:104], 8)
    high = _bit_pairs(raw[:, 104:108], 4)
    scales: Floats = _scale(raw, 108, order) * ((low | high << np.uint8(4)).astype(np.int8) - np.int8(32))
    return scales


def _q3_k(raw: Bytes, order: str, out: Floats) -> None:
    codes = _bit_pairs(raw[:, 32:96]) | _single_bits(raw[:, :32]) << np.uint8(2)
    _scaled(codes.view(np.int8) - np.int8(4), _scales_q3_k(raw, order), None, out)


def _six_bit_pairs(raw: Bytes) -> tuple[Bytes, Bytes]:
    """Q4_K and Q5_K: 12 bytes to 8 scales s and 8 offsets t of 6 bits.

    Bytes 0-3 hold s 0-3 and bytes 4-7 hold t 0-3 in their low six bits. Bytes 8-11 hold the low four bits of s 4-7 (low nibble) and of
    t 4-7 (high nibble), whose two high bits are the top bits of bytes 0-3 and 4-7.
    """
    first, second, third = raw[:, 0:4], raw[:, 4:8], raw[:, 8:12]
    six, four = np.uint8(63), np.uint8(15)
    s = np.concatenate([first & six, third & four | first >> np.uint8(6) << np.uint8(4)], axis=1)
    t = np.concatenate([second & six, third >> np.uint8(4) | second >> np.uint8(6) << np.uint8(4)], axis=1)
    return s, t


def _scales_q4_k(raw: Bytes, order: str) -> Floats:
    scales: Floats = _scale(raw, 0, order) * _six_bit_pairs(raw[:, 4:16])[0]
    return scales


def _q4_k(raw: Bytes, order: str, out: Floats) -> None:
    s, t = _six_bit_pairs(raw[:, 4:16])
    _scaled(_nibbles(raw[:, 16:144], 32), _scale(raw, 0, order) * s, _scale(raw, 2, order) * t, out)


def _q5_k(raw: Bytes, order: str, out: Floats) -> None:
    s, t = _six_bit_pairs(raw[:, 4:16])
    codes = _nibbles(raw[:, 48:176], 32) | _single_bits(raw[:, 16:48]) << np.uint8(4)
    _scaled(codes, _scale(raw, 0, order) * s, _scale(raw, 2, order) * t, out)


def _scales_q6_k(raw: Bytes, order: str) -> Floats:
    scales: Floats = _scale(raw, 208, order) * raw[:, 192:208].view(np.int8)
    return scales


def _q6_k(raw: Bytes, order: str, out: Floats) -> None:
    codes = _nibbles(raw[:, 0:128], 64) | _bit_pairs(raw[:, 128:192]) << np.uint8(4)
    _scaled(codes.view(np.int8) - np.int8(32), _scales_q6_k(raw, order), None, out)


BLOCK_FORMATS: dict[str, BlockFormat] = {
    "Q4_0": BlockFormat(32, 18, 4, 1, _q4_0, _first_scale),
    "Q4_1": BlockFormat(32, 20, 4, 1, _q4_1, _first_scale),
    "Q5_0": BlockFormat(32, 22, 5, 1, _q5_0, _first_scale),
    "Q5_1": BlockFormat(32, 24, 5, 1, _q5_1, _first_scale),
    "Q8_0": BlockFormat(32, 34, 8, 1, _q8_0, _first_scale),
    "Q2_K": BlockFormat(256, 84, 2, 16, _q2_k, _scales_q2_k),
    "Q3_K": BlockFormat(256, 110, 3, 16, _q3_k, _scales_q3_k),
    "Q4_K": BlockFormat(256, 144, 4, 8, _q4_k, _scales_q4_k),
    "Q5_K": BlockFormat(256, 176, 5, 8, _q5_k, _scales_q4_k),
    "Q6_K": BlockFormat(256, 210, 6, 16, _q6_k, _scales_q6_k),
    "Q8_K": BlockFormat(256, 292, 8, 1, _q8_k, _first_float32),
}
