"""decode on every backend and instruction-set level: the same bits everywhere, and those of a decoder that looks at one element at a time."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_fast.kernels import native_kernels, numpy_kernels
from spectral_fast.kernels.numpy_decode import BLOCK_FORMATS, FLOAT_FORMATS

LEVELS = native_kernels.levels()
FORMATS = [*FLOAT_FORMATS, *BLOCK_FORMATS]
ORDERS = ["little", "big"]
# where the scales lie in a block: byte, numpy type
SCALES = {name: [(0, "f2")] for name in ("Q4_0", "Q5_0", "Q8_0")} | {name: [(0, "f2"), (2, "f2")] for name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K")}
SCALES |= {"Q2_K": [(80, "f2"), (82, "f2")], "Q3_K": [(108, "f2")], "Q6_K": [(208, "f2")], "Q8_K": [(0, "f4")]}
SPECIAL = [np.inf, -np.inf, np.nan, 0.0, -0.0, 6e-8, -65504.0, 1.0]


def sizes(name: str) -> tuple[int, int, int]:
    """Elements, bytes and runs of a block."""
    if name in FLOAT_FORMATS:
        return 1, FLOAT_FORMATS[name], 0
    return BLOCK_FORMATS[name].elements, BLOCK_FORMATS[name].nbytes, BLOCK_FORMATS[name].runs


def blocks(name: str, count: int, seed: int = 0, byteorder: str = "little", special: float = 0.0) -> np.ndarray:
    """Any bytes; special: share of the scales that are one of SPECIAL."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (count, sizes(name)[1]), dtype=np.uint8)
    for at, kind in SCALES.get(name, []):
        chosen = rng.choice(SPECIAL, count).astype(f"{'<' if byteorder == 'little' else '>'}{kind}").view(np.uint8).reshape(count, int(kind[1]))
        here = rng.random(count) < special
        raw[here, at : at + int(kind[1])] = chosen[here]
    return raw


def room(name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and steps, not yet written."""
    elements, _, runs = sizes(name)
    return np.full((count, elements), 7.0, np.float32), np.full((count, runs), 7.0, np.float32)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal to the bit, but that one NaN is as good as another."""
    return a.shape == b.shape and bool(((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))).all())


def every_backend(name: str, raw: np.ndarray, byteorder: str = "little") -> tuple[np.ndarray, np.ndarray]:
    """The numpy kernel's values and steps, which all levels share, at one thread, two and three."""
    out, steps = room(name, len(raw))
    numpy_kernels.decode(raw, out, format=name, steps=steps, byteorder=byteorder)
    first: dict[str, bytes] = {}
    for level in LEVELS:
        for threads in (1, 2, 3):
            got, got_steps = room(name, len(raw))
            native_kernels.decode(raw, got, format=name, steps=got_steps, byteorder=byteorder, level=level, threads=threads)
            assert same(got, out) and same(got_steps, steps)
            assert first.setdefault(level, got.tobytes()) == got.tobytes()
            alone, _ = room(name, len(raw))
            native_kernels.decode(raw, alone, format=name, byteorder=byteorder, level=level, threads=threads)
            assert alone.tobytes() == got.tobytes()
    return out, steps


def element(name: str, b: bytes, j: int, order: Any) -> tuple[float, float]:
    """Value and step of element j of one block, from the table in numpy_decode.py; float64 holds both but for the last rounding."""

    def number(at: int, kind: str = "f2") -> float:
        return float(np.frombuffer(b, f"{'<' if order == 'little' else '>'}{kind}", 1, at)[0])

    def nibble(at: int, run: int) -> int:
        return b[at + j // (2 * run) * run + j % run] >> 4 * (j // run % 2) & 15

    def pair(at: int) -> int:
        return b[at + j // 128 * 32 + j % 32] >> 2 * (j // 32 % 4) & 3

    def bit(at: int) -> int:
        return b[at + j % 32] >> j // 32 & 1

    def signed(at: int) -> int:
        return b[at] - 256 * (b[at] > 127)

    half = j // 32
    if name in ("Q4_0", "Q4_1"):
        q, s, m = nibble(2 if name == "Q4_0" else 4, 16), 1, 0.0
    elif name in ("Q5_0", "Q5_1"):
        at = 2 if name == "Q5_0" else 4
        q, s, m = nibble(at + 4, 16) + 16 * (int.from_bytes(b[at : at + 4], order) >> j & 1), 1, 0.0
    elif name == "Q8_0":
        q, s, m = signed(2 + j), 1, 0.0
    elif name == "Q8_K":
        q, s, m = signed(4 + j), 1, 0.0
    elif name == "Q2_K":
        q, s, m = pair(16), b[j // 16] & 15, number(82) * (b[j // 16] >> 4)
    elif name == "Q3_K":
        r = j // 16
        q, s, m = pair(32) + 4 * bit(0) - 4, (b[96 + r % 8] >> 4 * (r // 8) & 15) + 16 * (b[104 + r % 4] >> 2 * (r // 4) & 3) - 32, 0.0
    elif name in ("Q4_K", "Q5_K"):
        q = nibble(16, 32) if name == "Q4_K" else nibble(48, 32) + 16 * bit(16)
        x = b[4:16]
        s, t = (x[half] & 63, x[4 + half] & 63) if half < 4 else (x[4 + half] & 15 | x[half - 4] >> 6 << 4, x[4 + half] >> 4 | x[half] >> 6 << 4)
        m = number(2) * t
    else:
        q, s, m = nibble(0, 64) + 16 * pair(128) - 32, signed(192 + j // 16), 0.0
    d = number({"Q2_K": 80, "Q3_K": 108, "Q6_K": 208}.get(name, 0), "f4" if name == "Q8_K" else "f2")
    q -= {"Q4_0": 8, "Q5_0": 16}.get(name, 0)
    value = d * s * q - m
    return (value + number(2) if name in ("Q4_1", "Q5_1") else value), abs(d * s)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_against_the_definition(name: str, order: str) -> None:
    elements, _, runs = sizes(name)
    raw = blocks(name, 6000 // elements, 1, order)
    out, steps = every_backend(name, raw, order)
    found = [[element(name, block.tobytes(), j, order) for j in range(elements)] for block in raw]
    with np.errstate(all="ignore"):
        values, wanted_steps = np.moveaxis(np.array(found).astype(np.float32), 2, 0)
    finite = np.isfinite(wanted_steps) & np.isfinite(values)
    assert finite.mean() > 0.8
    assert (np.isfinite(out) == np.isfinite(values)).all() and (out[finite] == values[finite]).all()
    assert same(steps, np.ascontiguousarray(wanted_steps[:, :: elements // runs]))


@pytest.mark.parametrize("name", FLOAT_FORMATS)
def test_every_float(name: str) -> None:
    bits = np.arange(1 << 8 * FLOAT_FORMATS[name]).astype(f"<u{FLOAT_FORMATS[name]}")
    raw = bits.view(np.uint8).reshape(len(bits), -1)
    wanted = bits.view(np.float16 if name == "float16" else getattr(ml_dtypes, name)).astype(np.float32)
    out, _ = every_backend(name, raw)
    assert same(out[:, 0], wanted) and 2 <= np.isnan(out).sum() + name.endswith("fnuz")
    number = ~np.isnan(wanted) if name == "float16" else slice(None)
    assert (np.signbit(out[:, 0]) == np.signbit(wanted))[number].all() or name.endswith("fnuz")  # whose only NaN has no sign to keep
    assert same(every_backend(name, np.ascontiguousarray(raw[:, ::-1]), "big")[0], out)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(0, 40), st.integers(0, 2**32 - 1), st.sampled_from(ORDERS), st.sampled_from([0.0, 0.5, 1.0]))
def test_any_blocks(name: str, count: int, seed: int, order: str, special: float) -> None:
    every_backend(name, blocks(name, count, seed, order, special), order)


@pytest.mark.parametrize("name", FORMATS)
def test_many_tasks(name: str) -> None:
    """More than the threads take at a time, and a rest."""
    every_backend(name, blocks(name, 200_001 // sizes(name)[0], 2, special=0.1))


@pytest.mark.parametrize("special", SPECIAL)
def test_special_scales(special: float, recwarn: pytest.WarningsRecorder) -> None:
    """What float64 makes of them, and no warning."""
    for name in BLOCK_FORMATS:
        raw = blocks(name, 3, 5)
        for at, kind in SCALES[name]:
            raw[:, at : at + int(kind[1])] = np.array([special], f"<{kind}").view(np.uint8)
        out, _ = every_backend(name, raw)
        assert not recwarn.list
        with np.errstate(all="ignore"):
            wanted = np.array([[element(name, block.tobytes(), j, "little")[0] for j in range(sizes(name)[0])] for block in raw]).astype(np.float32)
        np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize("name", ["bfloat16", "float8_e5m2", "float16", "Q4_0", "Q3_K"])
def test_blocks_at_any_stride(name: str) -> None:
    nbytes = sizes(name)[1]
    wide = np.random.default_rng(0).integers(0, 256, (37, nbytes + 3), dtype=np.uint8)
    for view in (wide[:, 1 : 1 + nbytes], wide[::-2, :nbytes], np.broadcast_to(wide[:1, :nbytes], (19, nbytes))):
        out, _ = every_backend(name, view)
        assert same(out, every_backend(name, np.ascontiguousarray(view))[0])


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_beyond_the_blocks_is_written(kernels, name: str) -> None:  # type: ignore[no-untyped-def]
    out, steps = room(name, 23)
    raw = blocks(name, 15)
    kernels("decode")(raw, out[5:20], format=name, steps=steps[5:20] if steps.size else None)
    for written in (out, steps):
        assert (written[:5] == 7.0).all() and (written[20:] == 7.0).all()
    assert (out[5:20] != 7.0).any()


@pytest.mark.parametrize("name", FORMATS)
def test_empty(kernels, name: str) -> None:  # type: ignore[no-untyped-def]
    kernels("decode")(blocks(name, 0), *room(name, 0)[:1], format=name, steps=room(name, 0)[1])


BYTES, VALUES, STEPS = np.zeros((3, 18), np.uint8), np.zeros((3, 32), np.float32), np.zeros((3, 1), np.float32)
READ_ONLY = np.broadcast_to(np.float32(0), (3, 32))


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"format": "Q9_0"}, ValueError, "format: got Q9_0; known: float16, .*Q4_K"),
        ({"byteorder": "middle"}, ValueError, "byteorder: got middle; known: little, big"),
        ({"raw": BYTES[:, :17]}, ValueError, "raw: .*Q4_0"),
        ({"raw": BYTES[0]}, ValueError, "raw: .*Q4_0"),
        ({"raw": BYTES.view(np.int8)}, TypeError, "raw: .*uint8.*int8"),
        ({"raw": np.asfortranarray(BYTES)}, ValueError, "raw: .*adjacent"),
        ({"out": VALUES[:2]}, ValueError, "out: .*2"),
        ({"out": VALUES[:, :31]}, ValueError, "out: .*31"),
        ({"out": VALUES.astype(np.float64)}, TypeError, "out: .*float32.*float64"),
        ({"out": np.asfortranarray(VALUES)}, ValueError, "out: "),
        ({"out": READ_ONLY}, ValueError, "out: "),
        ({"out": np.zeros((6, 32), np.float32)[::2]}, ValueError, "out: .*contiguous"),
        ({"steps": np.zeros((3, 2), np.float32)}, ValueError, "steps: .*2"),
        ({"steps": np.zeros((2, 1), np.float32)}, ValueError, "steps: .*2"),
        ({"format": "bfloat16", "raw": BYTES[:, :2], "out": VALUES[:, :1].copy()}, ValueError, "steps: "),
    ],
)
def test_errors_name_the_argument(kernels, changed: dict[str, Any], error: type[Exception], words: str) -> None:  # type: ignore[no-untyped-def]
    arguments = {"raw": BYTES, "out": VALUES, "format": "Q4_0", "steps": STEPS} | changed
    with pytest.raises(error, match=f"^{words}"):
        kernels("decode")(arguments.pop("raw"), arguments.pop("out"), **arguments)


@pytest.mark.native_only
def test_errors_of_the_options() -> None:
    with pytest.raises(ValueError, match="^threads: "):
        native_kernels.decode(BYTES, VALUES.copy(), format="Q4_0", threads=-1)
    with pytest.raises(ValueError, match="^level=sse9 "):
        native_kernels.decode(BYTES, VALUES.copy(), format="Q4_0", level="sse9")
