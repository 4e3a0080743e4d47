"""The readers of numpy's .npz and .npy against numpy itself."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_fast.checkpoints import CheckpointError, open_checkpoint

RNG = np.random.default_rng(0)
DTYPES = ["<f2", "<f4", "<f8", ">f4", ">f8", "<c8", "<c16", "|i1", "<i2", ">i4", "<i8", "|u1", "<u2", "<u4", "<u8", "|b1"]
ARRAYS: dict[str, np.ndarray] = {
    **{f"of {d}": (100 * RNG.standard_normal((3, 4))).astype(np.dtype(d)) for d in DTYPES if d[1] in "fcib"},
    **{f"of {d}": RNG.integers(0, 200, (3, 4)).astype(np.dtype(d)) for d in DTYPES if d[1] == "u"},
    "column by column": np.asfortranarray(RNG.standard_normal((3, 4, 5))),
    "scalar": np.array(3.5),
    "vector": np.asfortranarray(np.arange(5.0)),
    "empty": np.zeros((0, 7), np.float32),
    "repeated": np.zeros((500, 400)),
}


def literal(text: str, data: bytes = b"", version: int = 1, magic: bytes = b"\x93NUMPY") -> bytes:
    header = text.encode()
    return magic + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(header)) + header + data


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_an_archive(save: Any, tmp_path: Path) -> None:
    file = tmp_path / "weights.npz"
    save(file, **ARRAYS)
    with open_checkpoint(file) as checkpoint:
        assert checkpoint.format == "npz" and checkpoint.skipped == ()
        assert [t.name for t in checkpoint.tensors] == list(ARRAYS)
        assert len({t.storage for t in checkpoint.tensors}) == len(ARRAYS)
        for t in checkpoint.tensors:
            want, got = ARRAYS[t.name], checkpoint.read(t.name)
            assert isinstance(got, np.ndarray)
            assert t.shape == got.shape == want.shape and t.nbytes == want.nbytes and t.dtype == want.dtype.name
            assert got.dtype == want.dtype.newbyteorder("=") and got.flags.c_contiguous
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_single_array(version: tuple[int, int], tmp_path: Path) -> None:
    file = tmp_path / "layer.npy"
    with open(file, "wb") as handle:
        np.lib.format.write_array(handle, ARRAYS["column by column"], version)
    with open_checkpoint(file) as checkpoint:
        assert checkpoint.format == "npy" and [t.name for t in checkpoint.tensors] == ["layer"]
        np.testing.assert_array_equal(checkpoint.read("layer"), ARRAYS["column by column"])


def test_what_is_listed(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    fields = np.zeros(2, [("a", "<f4"), ("b", "<i4")])
    np.savez(file, objects=np.array([{}], dtype=object), words=np.array(["a"]), fields=fields, times=np.zeros(2, "<M8[s]"), long=np.zeros(2, np.longdouble))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("notes.txt", "weights of a model")
        archive.writestr("packed.npy", literal("{}"), zipfile.ZIP_BZIP2)
    with open_checkpoint(file) as checkpoint:
        reasons = {s.name: s.reason for s in checkpoint.skipped}
        assert checkpoint.tensors == ()
    assert reasons["objects"] == "pickled Python objects: refused, they could run code"
    assert reasons["words"] == "dtype '<U1': not decoded"
    assert reasons["fields"] == "structured array: not read"
    assert reasons["times"] == "dtype '<M8[s]': not decoded"
    assert "not decoded" in reasons["long"]
    assert reasons["notes.txt"] == "no numpy array"
    assert reasons["packed"] == "compressed by another method than deflate, or encrypted: not read"


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (literal(GOOD, bytes(23)), "takes .* bytes with its header"),
        (literal(GOOD, bytes(25)), "takes .* bytes with its header"),
        (literal(GOOD, bytes(24), version=4), "version 4.0"),
        (literal(GOOD)[:20], "truncated"),
        (literal(GOOD)[:8], "ends after 8 bytes"),
        (literal(GOOD + " " * 10_000, bytes(24)), "at most 10000"),
        (literal("{'descr': '<f4', 'fortran_order': False, 'shape': (2, -3)}", bytes(24)), "integers >= 0"),
        (literal("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3.0)}", bytes(24)), "integers >= 0"),
        (literal("{'descr': '<f4', 'fortran_order': False, 'shape': (2, True)}", bytes(24)), "integers >= 0"),
        (literal("{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 3)}", bytes(24)), "a bool"),
        (literal("{'descr': '<f4', 'fortran_order': False, 'shape': [2, 3]}", bytes(24)), "a tuple"),
        (literal("{'descr': '<f4', 'shape': (2, 3)}", bytes(24)), "no dict of"),
        (literal("{'descr': '<f4', 'fortran_order': False, 'shape': (1 << 70,)}", bytes(24)), "no literal"),
        (literal(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**62}, {2**62})}}", bytes(24)), "2\\*\\*63"),
        (literal(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {(1,) * 40}}}", bytes(4)), "32 dimensions"),
        (literal("__import__('os').system('false')", bytes(24)), "no literal"),
        (literal("(" * 5000, bytes(24)), "no literal"),
        (literal(GOOD + "\x0b", bytes(24)), "no literal"),  # a space to Unicode, none to Python
        (literal("-" * 9000 + "1", bytes(24)), "no literal"),
    ],
)
@pytest.mark.parametrize("packed", [None, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_broken_arrays(content: bytes, message: str, packed: int | None, tmp_path: Path) -> None:
    file = tmp_path / ("x.npy" if packed is None else "x.npz")
    if packed is None:
        file.write_bytes(content)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a.npy", content, packed)
    with pytest.raises(CheckpointError, match=f"{file.name}.*{message}"):
        open_checkpoint(file)


def test_an_archive_that_declares_more_than_it_holds(tmp_path: Path) -> None:
    """More than deflate can pack, and a little more than was packed."""
    file = tmp_path / "x.npz"
    content = literal(GOOD, bytes(24))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", content)
    raw = file.read_bytes()
    at = raw.index(b"PK\x01\x02") + 24
    assert struct.unpack_from("<I", raw, at) == (len(content),)
    file.write_bytes(raw[:at] + struct.pack("<I", 2**31) + raw[at + 4 :])
    with pytest.raises(CheckpointError, match="declares 2147483648 unpacked"):
        open_checkpoint(file)
    file.write_bytes(raw[:at] + struct.pack("<I", len(content) + 24) + raw[at + 4 :])
    with pytest.raises(CheckpointError, match="ends 24 bytes early"):
        open_checkpoint(file)


def test_read_after_the_file_was_cut(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    np.savez(file, a=RNG.standard_normal((100, 100)))
    with open_checkpoint(file) as checkpoint:
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(CheckpointError, match="has it been overwritten"):
            checkpoint.read("a")
        with pytest.raises(KeyError):
            checkpoint.read("b")
    with pytest.raises(CheckpointError, match="after close"):
        checkpoint.read("a")


def archive_bytes(packed: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packed) as archive:
        archive.writestr("a.npy", literal(GOOD, bytes(range(24))))
        archive.writestr("b.npy", literal("{'descr': '>i2', 'fortran_order': True, 'shape': (2, 2), }", bytes(8)))
    return buffer.getvalue()


WHOLE = {"npz": archive_bytes(zipfile.ZIP_STORED), "packed npz": archive_bytes(zipfile.ZIP_DEFLATED), "npy": literal(GOOD, bytes(24))}


@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutations(kind: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Arrays or a CheckpointError, nothing else."""
    raw = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        if data.draw(st.booleans()):
            raw[at] = data.draw(st.integers(0, 255))
        else:
            del raw[at : at + data.draw(st.integers(1, 20))]
        if not raw:
            break
    file = tmp_path_factory.getbasetemp() / f"mutated.{kind.split()[-1]}"
    file.write_bytes(raw)
    try:
        with open_checkpoint(file) as checkpoint:
            for t in checkpoint.tensors:
                assert checkpoint.read(t.name).shape == t.shape
    except CheckpointError as error:
        assert str(file) in str(error)
