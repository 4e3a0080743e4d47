"""The GGUF reader against the gguf package, and against headers that break the format.

The block formats are compared bit for bit: each value is one rounding at most away from integers times float16 (see kernels/numpy_decode.py), so
any correct decoder gives the same float32. Q8_K, which the package does not decode, is compared with its definition.
"""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import spectral_fast as sf
from spectral_fast.checkpoints.block_formats import BLOCK_FORMATS, PLAIN, TYPES
from spectral_fast.checkpoints.byte_source import ByteSource
from spectral_fast.checkpoints.gguf import MAX_STEPS, SLICE, WINDOW, GgufCheckpoint
from spectral_fast.checkpoints.reader import CheckpointError
from spectral_fast.kernels.numpy_kernels import decode
from spectral_fast.linalg.arrays import CodedArray, RawArray

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10
NUMBER = {name: number for number, name in TYPES.items()}
# where the scales lie in a block: byte, numpy type
SCALES = {name: [(0, "f2")] for name in ("Q4_0", "Q5_0", "Q8_0")} | {name: [(0, "f2"), (2, "f2")] for name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K")}
SCALES |= {"Q2_K": [(80, "f2"), (82, "f2")], "Q3_K": [(108, "f2")], "Q6_K": [(208, "f2")], "Q8_K": [(0, "f4")]}
FIFTH_BITS = {"Q5_0": 2, "Q5_1": 4}


def open_gguf(file: Path) -> GgufCheckpoint:
    return GgufCheckpoint(ByteSource(file))


def array_of(checkpoint: GgufCheckpoint, name: str) -> Any:
    got = checkpoint.read(name)
    if isinstance(got, CodedArray):
        assert got.format == checkpoint.formats[name] and got.shape[:-1] == got.steps.shape[:-1]
        got = got.values
    assert isinstance(got, np.ndarray) and got.flags.c_contiguous and got.flags.writeable
    return got


def random_blocks(name: str, count: int, seed: int = 0) -> Any:
    """Any bytes, with finite scales of any size, subnormal ones too."""
    block = BLOCK_FORMATS[name]
    raw = np.random.default_rng(seed).integers(0, 256, (count, block.nbytes), dtype=np.uint8)
    for at, kind in SCALES[name]:
        high = raw[:, at + int(kind[1]) - 1]  # sign and exponent
        high[high & 0x7C >= (0x7C if kind == "f2" else 0x40)] &= 0xBF  # no Inf or NaN, no overflow of Q8_K's products
    return raw


def text(content: str | bytes, order: str = "<") -> bytes:
    raw = content if isinstance(content, bytes) else content.encode()
    return struct.pack(f"{order}Q", len(raw)) + raw


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str | bytes, dims: list[int], offset: int = 0, kind: int = 0, order: str = "<") -> bytes:
    return text(name, order) + struct.pack(f"{order}I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def whole(
    entries: list[bytes], tensors: list[bytes], data: bytes = b"", *, counts: tuple[int, int] | None = None, version: bytes = b"\3\0\0\0", align: int = 32
) -> bytes:
    order = ">" if version == b"\0\0\0\3" else "<"
    head = b"GGUF" + version + struct.pack(f"{order}QQ", *(counts or (len(tensors), len(entries)))) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % align) + data


NAME = entry("general.name", STRING, text("small"))
SMALL_HEADER = whole(
    [
        entry("general.architecture", STRING, text("llama")),
        entry("general.file_type", U32, struct.pack("<I", 7)),
        entry("tokens", ARRAY, struct.pack("<IQ", STRING, 3) + text("a") + text("") + text("bcd")),
        entry("scores", ARRAY, struct.pack("<IQ3f", F32, 3, 1, 2, 3)),
        entry("nested", ARRAY, struct.pack("<IQ", ARRAY, 2) + struct.pack("<IQ2B", U8, 2, 1, 2) + struct.pack("<IQ", STRING, 1) + text("x")),
        entry("flag", BOOL, b"\1"),
    ],
    [tensor("w", [2, 3]), tensor("q", [32, 2], 32, 8), tensor("e", [0, 5], 0), tensor("i", [256], 128, 19), tensor("u", [7], 160, 99)],
)
SMALL = SMALL_HEADER + struct.pack("<6f", *range(6)) + bytes(8) + random_blocks("Q8_0", 2).tobytes() + bytes(28) + bytes(50)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.gguf"


@pytest.mark.parametrize("version", [2, 3])
def test_the_small_file(version: int, file: Path) -> None:
    file.write_bytes(SMALL[:4] + bytes([version]) + SMALL[5:])
    with open_gguf(file) as checkpoint:
        assert checkpoint.format == "gguf" and (checkpoint.version, checkpoint.byteorder) == (version, "little")
        assert checkpoint.metadata == {"general.architecture": "llama", "general.file_type": 7, "flag": True}
        found = [(t.name, t.shape, t.nbytes) for t in checkpoint.tensors]
        assert found == [("w", (3, 2), 24), ("q", (2, 32), 68), ("e", (5, 0), 0)] and {t.dtype for t in checkpoint.tensors} == {"float32"}
        assert checkpoint.formats == {"w": "F32", "q": "Q8_0", "e": "F32", "i": "IQ1_S", "u": "99"}
        assert [(s.name, s.reason) for s in checkpoint.skipped] == [("i", "type IQ1_S: not decoded"), ("u", "type 99: not decoded")]
        np.testing.assert_array_equal(array_of(checkpoint, "w"), np.arange(6.0).reshape(3, 2))
        assert array_of(checkpoint, "e").shape == (5, 0)
        assert len({t.storage for t in checkpoint.tensors}) == 3
        for unknown in ("i", "missing"):
            with pytest.raises(KeyError):
                checkpoint.read(unknown)


@pytest.fixture(scope="module")
def gguf() -> Any:
    return pytest.importorskip("gguf", reason="the gguf package is the oracle of these tests")


def written(gguf: Any, file: Path, add: Callable[[Any], None], **options: Any) -> None:
    writer = gguf.GGUFWriter(file, "llama", **options)
    add(writer)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()


def test_names_and_sizes_of_types(gguf: Any) -> None:
    theirs = {int(kind): kind.name for kind in gguf.GGMLQuantizationType}
    assert {number: TYPES[number] for number in theirs if number in TYPES} == {n: name for n, name in theirs.items() if n < 42}
    for name, block in BLOCK_FORMATS.items():
        assert (block.elements, block.nbytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]


@pytest.mark.parametrize("name", sorted(BLOCK_FORMATS))
def test_blocks_of_random_bytes_bit_for_bit(gguf: Any, name: str, file: Path) -> None:
    raw = random_blocks(name, 60)
    if name == "Q8_K":
        want = raw[:, :4].copy().view("<f4") * raw[:, 4:260].view(np.int8).astype(np.float32)
    else:
        want = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    assert np.isfinite(want).all() and len(np.unique(want)) > 50
    kind = gguf.GGMLQuantizationType[name]
    written(gguf, file, lambda w: w.add_tensor("t", raw.reshape(4, 3, -1), raw_dtype=kind))
    with open_gguf(file) as checkpoint:
        (info,) = checkpoint.tensors
        assert info.shape == (4, 3, 5 * BLOCK_FORMATS[name].elements) and info.dtype == "float32" and info.nbytes == raw.nbytes
        assert checkpoint.formats == {"t": name}
        got = array_of(checkpoint, "t")
    assert got.dtype == np.float32 and got.shape == info.shape and got.tobytes() == want.tobytes()


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_what_the_package_quantized(gguf: Any, name: str, file: Path) -> None:
    weight = np.random.default_rng(1).standard_normal((48, 96)).astype(np.float32)
    kind = gguf.GGMLQuantizationType[name]
    raw = gguf.quants.quantize(weight, kind)
    written(gguf, file, lambda w: w.add_tensor("t", raw, raw_dtype=kind))
    with open_gguf(file) as checkpoint:
        got = array_of(checkpoint, "t")
    assert got.tobytes() == gguf.quants.dequantize(raw, kind).tobytes()
    assert np.abs(got - weight).max() < np.abs(weight).max() / {"4": 7, "5": 15, "8": 127}[name[1]]  # a step of the coarsest block


@pytest.mark.parametrize("big", [False, True])
def test_plain_types_bit_for_bit(gguf: Any, big: bool, file: Path) -> None:
    generator = np.random.default_rng(2)
    arrays: Any = {
        name: generator.integers(0, 256, (3, 5, np.dtype(d).itemsize), dtype=np.uint8).view(d)[..., 0] for name, d in PLAIN.items() if name != "BF16"
    }
    bits = generator.integers(0, 2**16, (3, 5), dtype=np.uint16)

    def add(writer: Any) -> None:
        for name, array in arrays.items():
            writer.add_tensor(name, array.copy())
        writer.add_tensor("BF16", bits.copy(), raw_shape=bits.shape, raw_dtype=gguf.GGMLQuantizationType.BF16)

    written(gguf, file, add, endianess=gguf.GGUFEndian.BIG if big else gguf.GGUFEndian.LITTLE)
    with open_gguf(file) as checkpoint:
        assert checkpoint.byteorder == ("big" if big else "little") and checkpoint.formats == {n: n for n in [*arrays, "BF16"]}
        assert checkpoint.metadata["general.architecture"] == "llama"
        for name, array in arrays.items():
            got = array_of(checkpoint, name)
            assert got.dtype == array.dtype and got.shape == array.shape and got.tobytes() == array.tobytes()
        raw = checkpoint.read("BF16")
        assert isinstance(raw, RawArray) and raw.dtype == "bfloat16" and raw.bits.tobytes() == bits.tobytes()


@pytest.mark.parametrize("name", sorted(BLOCK_FORMATS))
def test_big_endian_blocks(name: str, file: Path) -> None:
    raw, swapped = random_blocks(name, 6), random_blocks(name, 6)
    for at, kind in [*SCALES[name], *([(FIFTH_BITS[name], "u4")] if name in FIFTH_BITS else [])]:
        swapped[:, at : at + int(kind[1])] = raw[:, at : at + int(kind[1])][:, ::-1]
    out = np.empty((6, BLOCK_FORMATS[name].elements), dtype=np.float32)
    decode(raw, out, format=name)
    tensors = [tensor("t", [2 * out.shape[1], 3], 0, NUMBER[name], ">")]
    file.write_bytes(whole([], tensors, swapped.tobytes(), version=b"\0\0\0\3"))
    with open_gguf(file) as checkpoint:
        assert array_of(checkpoint, "t").tobytes() == out.tobytes()


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment(gguf: Any, alignment: int, file: Path) -> None:
    arrays = {f"t{i}": np.full((i + 1, 3), i, dtype=np.float32) for i in range(5)}

    def add(writer: Any) -> None:
        writer.add_custom_alignment(alignment)
        for name, array in arrays.items():
            writer.add_tensor(name, array)

    written(gguf, file, add)
    with open_gguf(file) as checkpoint:
        assert checkpoint.metadata["general.alignment"] == alignment
        for info in checkpoint.tensors:
            np.testing.assert_array_equal(array_of(checkpoint, info.name), arrays[info.name])


def test_long_arrays_are_passed_over(gguf: Any, file: Path) -> None:
    count = 100_000

    def add(writer: Any) -> None:
        writer.add_token_list([f"token {i}" for i in range(count)])
        writer.add_token_scores([0.5] * count)
        writer.add_chat_template("x" * 5000)
        writer.add_name("small")
        writer.add_tensor("t", np.arange(4, dtype=np.float32))

    written(gguf, file, add)
    tracemalloc.start()
    begin = time.perf_counter()
    with open_gguf(file) as checkpoint:
        elapsed = time.perf_counter() - begin
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert elapsed < 5 and peak < 1e6  # some 0.05 s without tracemalloc
        assert checkpoint.metadata == {"general.architecture": "llama", "general.name": "small"}
        assert array_of(checkpoint, "t").tolist() == [0, 1, 2, 3]


def test_only_the_tensor_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = random_blocks("Q4_K", 3000)
    tensors = [tensor("zero", [2**20]), tensor("q", [256 * 3, 1000], 2**22, NUMBER["Q4_K"]), tensor("w", [3], 2**22 + raw.nbytes)]
    file.write_bytes(whole([NAME], tensors, bytes(2**22) + raw.tobytes() + bytes(12)))
    asked: list[tuple[int, int]] = []
    read = ByteSource.read
    monkeypatch.setattr(ByteSource, "read", lambda self, offset, count: (asked.append((offset, count)), read(self, offset, count))[1])
    end = file.stat().st_size - 12
    with open_gguf(file) as checkpoint:
        array_of(checkpoint, "w")
        assert asked == [(0, WINDOW), (end, 12)]
        got = array_of(checkpoint, "q")
    slices = asked[2:]
    assert len(slices) == -(-3000 * 256 // SLICE) > 1
    assert [at for at, _ in slices] == [end - raw.nbytes + sum(n for _, n in slices[:i]) for i in range(len(slices))]
    assert sum(n for _, n in slices) == raw.nbytes
    want = np.empty((3000, 256), dtype=np.float32)
    decode(raw, want, format="Q4_K")  # in one piece
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("name", sorted(BLOCK_FORMATS))
def test_memory_beyond_the_result(name: str, file: Path) -> None:
    elements = 2**22
    count = elements // BLOCK_FORMATS[name].elements
    file.write_bytes(whole([], [tensor("t", [elements // 4, 4], 0, NUMBER[name])], random_blocks(name, count).tobytes()))
    with open_gguf(file) as checkpoint:
        tracemalloc.start()
        got = checkpoint.read("t")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert isinstance(got, CodedArray) and peak - got.values.nbytes - got.steps.nbytes < 8 * 2**20


@pytest.mark.parametrize("name", sorted(BLOCK_FORMATS))
def test_steps_are_what_codes_differ_by(name: str, file: Path) -> None:
    """All differences inside a run of one scale are whole numbers of steps, less than 2^bits of them, and not all of them even."""
    block = BLOCK_FORMATS[name]
    raw = random_blocks(name, 40)
    file.write_bytes(whole([], [tensor("t", [5 * block.elements, 8], 0, NUMBER[name])], raw.tobytes()))
    with open_gguf(file) as checkpoint:
        got = checkpoint.read("t")
    assert isinstance(got, CodedArray) and got.bits == block.bits and got.steps.shape == (8, 5 * block.runs)
    runs = got.values.astype(np.float64).reshape(got.steps.size, -1)
    steps = got.steps.astype(np.float64).reshape(-1, 1)
    kept = (steps > 2e-6 * np.abs(runs).max(axis=1, keepdims=True))[:, 0]  # others are lost in the rounding to float32
    assert kept.mean() > 0.5
    codes = ((runs - runs.min(axis=1, keepdims=True)) / np.where(steps == 0.0, 1.0, steps))[kept]
    assert np.abs(codes - np.rint(codes)).max() < 0.2
    assert np.rint(codes).max() < 2**block.bits and (np.rint(codes) % 2 == 1).any()


@pytest.mark.parametrize("bits", [4, 8])
def test_scan_knows_what_quantization_put_in(bits: int, file: Path) -> None:
    """The bound on the norm of the rounding error holds and is near it; values below it are not counted in the rank."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((96, 3)) @ rng.standard_normal((3, 128))
    runs = weight.reshape(-1, 32)
    half = 2 ** (bits - 1)
    scales = (np.abs(runs).max(axis=1, keepdims=True) / (half - 1)).astype("<f2")
    codes = np.clip(np.rint(runs / scales.astype(np.float64)), 1 - half, half - 1).astype(np.int64)
    if bits == 8:
        blocks = np.concatenate([scales.view(np.uint8), codes.astype(np.int8).view(np.uint8)], axis=1)
    else:
        shifted = (codes + 8).astype(np.uint8)
        blocks = np.concatenate([scales.view(np.uint8), shifted[:, :16] | shifted[:, 16:] << np.uint8(4)], axis=1)
    file.write_bytes(whole([], [tensor("blk.0.attn_q.weight", [128, 96], 0, NUMBER[f"Q{bits}_0"])], blocks.tobytes()))
    (m,) = sf.scan(file, progress=False)
    error = np.linalg.norm((codes * scales.astype(np.float64)).reshape(96, 128) - weight, 2)
    assert 0.3 * m.storage_noise <= error <= m.storage_noise
    assert m.effective_precision == bits and m.role == "attention.q" and m.ranks["storage"] == 3 < m.ranks["numpy"]
    np.testing.assert_allclose(m.s, np.linalg.svd((codes * scales.astype(np.float64)).reshape(96, 128), compute_uv=False), rtol=1e-5, atol=1e-5)


def test_infinite_scales_give_no_warning(file: Path, recwarn: pytest.WarningsRecorder) -> None:
    file.write_bytes(whole([], [tensor("t", [32], 0, NUMBER["Q4_0"])], b"\x00\x7c" + b"\x98" * 16))
    with open_gguf(file) as checkpoint:
        got = array_of(checkpoint, "t")
    assert np.isnan(got[:16]).all() and np.isposinf(got[16:]).all() and not recwarn.list


def test_read_after_close_and_a_shrunken_file(file: Path) -> None:
    file.write_bytes(SMALL)
    checkpoint = open_gguf(file)
    with open(file, "r+b") as handle:
        handle.truncate(len(SMALL_HEADER) + 40)
    with pytest.raises(CheckpointError, match="when it was opened"):
        checkpoint.read("q")
    checkpoint.close()
    checkpoint.close()
    for name in ("w", "q", "e"):
        with pytest.raises(CheckpointError, match="after close"):
            checkpoint.read(name)


def array_entry(kind: int, count: int, content: bytes = b"") -> bytes:
    return entry("k", ARRAY, struct.pack("<IQ", kind, count) + content)


ALIGN = "general.alignment"
T = tensor("w", [8])
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated"),
    "wrong magic": (b"GGML" + SMALL[4:], "begin with"),
    "version 1": (whole([], [], version=b"\1\0\0\0"), "version 1"),
    "version 4": (whole([], [], version=b"\4\0\0\0"), "version 4"),
    "2**63 entries": (whole([NAME], [], counts=(0, 2**63)), "metadata entries"),
    "2**63 tensors": (whole([], [T], bytes(32), counts=(2**63, 0)), "tensors"),
    "one tensor too many": (whole([], [T], bytes(320), counts=(2, 0)), "."),
    "key of 2**63 bytes": (whole([struct.pack("<QI", 2**63, U32)], [], bytes(64)), "truncated"),
    "key longer than allowed": (whole([entry(b"k" * 65537, U8, b"\0")], []), "key of more than 65536"),
    "key is not UTF-8": (whole([entry(b"\xff", U8, b"\0")], []), "UTF-8"),
    "key twice": (whole([NAME, NAME], []), "twice"),
    "unknown metadata type": (whole([entry("k", 13, bytes(8))], []), "unknown type 13"),
    "boolean 2": (whole([entry("k", BOOL, b"\2")], []), "boolean"),
    "value is not UTF-8": (whole([entry("k", STRING, text(b"\xc3\x28"))], []), "UTF-8"),
    "array of 2**61 numbers": (whole([array_entry(U64, 2**61, bytes(64))], []), "truncated"),
    "array of 2**63 strings": (whole([array_entry(STRING, 2**63, bytes(64))], []), "strings or arrays"),
    "array of too many strings": (whole([array_entry(STRING, MAX_STEPS + 1)], []), "strings or arrays"),
    "array with a string of 2**63 bytes": (whole([array_entry(STRING, 2, struct.pack("<Q", 2**63) + bytes(64))], []), "ends at byte"),
    "array of 2**63 arrays": (whole([array_entry(ARRAY, 2**63, bytes(64))], []), "strings or arrays"),
    "array of unknown type": (whole([array_entry(77, 1, bytes(8))], []), "type 77"),
    "arrays nested too deeply": (whole([array_entry(ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 100 + struct.pack("<IQ", U8, 0))], []), "deep"),
    "alignment 0": (whole([entry(ALIGN, U32, struct.pack("<I", 0))], []), "alignment"),
    "alignment is a long string": (whole([entry(ALIGN, STRING, text("3" * 2000))], []), "alignment"),
    "name twice": (whole([], [T, tensor("w", [8], 32)], bytes(64)), "twice"),
    "name is not UTF-8": (whole([], [tensor(b"\xed\xa0\x80", [8])], bytes(32)), "UTF-8"),
    "name longer than allowed": (whole([], [tensor("n" * 65537, [8])], bytes(32)), "name of more"),
    "long name, unknown shape": (whole([], [tensor("n" * 65536, [2**63])], bytes(32)), "2\\*\\*63"),
    "5 dimensions": (whole([], [tensor("w", [2, 1, 1, 1, 1])], bytes(32)), "5 dimensions"),
    "2**32-1 dimensions": (whole([], [text("w") + b"\xff" * 4 + bytes(64)], bytes(32)), "dimensions"),
    "shape beyond 2**63": (whole([], [tensor("w", [2**40, 2**40])], bytes(32)), "2\\*\\*63"),
    "shape whose product wraps to its size": (whole([], [tensor("w", [2**62, 4, 2, 1])], bytes(32)), "2\\*\\*63"),
    "negative dimension": (whole([], [tensor("w", [2**64 - 8])], bytes(32)), "2\\*\\*63"),
    "empty shape too large for numpy": (whole([], [tensor("w", [2**62, 2**62, 0])], bytes(32)), "2\\*\\*63"),
    "shape of an undecoded type beyond 2**63": (whole([], [tensor("w", [2**63, 2], 0, 16)], bytes(32)), "2\\*\\*63"),
    "row of half a block": (whole([], [tensor("w", [16, 2], 0, 2)], bytes(64)), "blocks of 32"),
    "scalar of a block type": (whole([], [tensor("w", [], 0, 2)], bytes(64)), "blocks of 32"),
    "misaligned offset": (whole([], [tensor("w", [2], 8)], bytes(64)), "multiple of the alignment"),
    "offset 2**64-32": (whole([], [tensor("w", [8], 2**64 - 32)], bytes(64)), "truncated"),
    "undecoded tensor outside": (whole([], [tensor("w", [256], 64, 16)], bytes(64)), "truncated"),
    "overlap": (whole([], [tensor("a", [16]), tensor("b", [8], 32)], bytes(64)), "overlaps"),
    "undecoded inside another": (whole([], [tensor("a", [16]), tensor("b", [256], 32, 99)], bytes(64)), "overlaps"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(case: str, file: Path) -> None:
    content, why = BROKEN[case]
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"x.gguf: not a valid GGUF file: .*{why}") as caught:
        open_gguf(file)
    assert len(str(caught.value)) < 2000


def test_every_truncation(file: Path) -> None:
    for size in range(len(SMALL) - 17):  # the last tensor is not decoded: of it one byte is asked for
        file.write_bytes(SMALL[:size])
        with pytest.raises(CheckpointError, match="x.gguf"):
            open_gguf(file)


@pytest.mark.parametrize(("kind", "content"), [(ARRAY, struct.pack("<IQ", STRING, MAX_STEPS)), (STRING, struct.pack("<Q", 2**30))])
def test_a_sparse_file_of_a_terabyte(kind: int, content: bytes, file: Path) -> None:
    """Neither strings without end nor a jump of a gigabyte costs more than the limits of the header."""
    file.write_bytes(whole([entry("k", kind, content)], [], counts=(2, 1)))  # of two tensors named "" at last
    with open(file, "r+b") as handle:
        handle.truncate(2**40)
    begin = time.perf_counter()
    with pytest.raises(CheckpointError):
        open_gguf(file)
    assert time.perf_counter() - begin < 30


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """A few bytes or numbers of the header replaced, inserted or deleted, or the end cut off."""
    raw = bytearray(SMALL)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(4, len(SMALL_HEADER)))
        action = draw(st.sampled_from(["number", "flip", "insert", "delete", "cut"]))
        if action == "number":
            number = draw(st.sampled_from([0, 1, 2, 3, 8, 9, 31, 33, 2**16, 2**31, 2**32, 2**62, 2**63, 2**64 - 1]))
            raw[at : at + 8] = struct.pack("<Q", number)
        elif action == "flip" and at < len(raw):
            raw[at] ^= 1 << draw(st.integers(0, 7))
        elif action == "insert":
            raw[at:at] = draw(st.binary(min_size=1, max_size=32))
        elif action == "delete":
            del raw[at : at + draw(st.integers(1, 16))]
        elif action == "cut" and draw(st.integers(0, 3)) == 0:
            del raw[at:]
    return bytes(raw)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=mutations())
def test_mutated_headers(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    tracemalloc.start()
    try:
        with open_gguf(file) as checkpoint:
            for info in checkpoint.tensors:
                assert 0 <= info.nbytes <= len(content)
                assert checkpoint.read(info.name).shape == info.shape
                hash(info.storage)
    except CheckpointError as error:
        assert str(file) in str(error) and len(str(error)) < 2000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**24
