"""torch files that lie about sizes, are cut, or are no weights: CheckpointError before anything is allocated."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from spectral_fast.checkpoints import CheckpointError, open_checkpoint, torch_pickle
from spectral_fast.checkpoints.torch_pickle import Call, Global, PickleError, PickleStream, read_pickle


def storage(kind: str = "FloatStorage", key: str = "0", count: Any = 4, view: Any = "none") -> bytes:
    tail = b"" if view == "none" else _put(view)
    return b"(" + _put("storage") + b"ctorch\n" + kind.encode() + b"\n" + _put(key) + _put("cpu") + _put(count) + tail + b"tQ"


def _put(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


def tensor(store: bytes, offset: Any = 0, shape: Any = (2, 2), strides: Any = (2, 1)) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + store + _put(offset) + _put(shape) + _put(strides) + b"\x89}tR"


def state(*tensors: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(_put(f"t{i}") + t for i, t in enumerate(tensors)) + b"u."


def write_zip(path: Path, data_pkl: bytes, records: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        archive.writestr("archive/version", b"3\n")
        for name, data in ({"data/0": bytes(16)} if records is None else records).items():
            archive.writestr(f"archive/{name}", data)
    return path


def write_legacy(path: Path, data_pkl: bytes, keys: Any = ("0",), counts: tuple[int, ...] = (4,), data: bytes = bytes(16)) -> Path:
    parts = [_dump(0x1950A86A20F9469CFC6C), _dump(1001), _dump({"little_endian": True}), data_pkl, _dump(list(keys))]
    parts += [struct.pack("<q", c) + data for c in counts]
    path.write_bytes(b"".join(parts))
    return path


def _dump(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)


def test_the_hand_made_files_are_right(tmp_path: Path) -> None:
    for file in (write_zip(tmp_path / "a.pt", state(tensor(storage()))), write_legacy(tmp_path / "b.pt", state(tensor(storage(view=None))))):
        with open_checkpoint(file) as checkpoint:
            assert checkpoint.read("t0").shape == (2, 2)
        assert torch.load(file, weights_only=True)["t0"].shape == (2, 2)
    viewed = tensor(storage(count=6, view=("v", 2, 4)))
    file = write_legacy(tmp_path / "c.pt", state(viewed), counts=(6,), data=struct.pack("<6f", *range(6)))
    with open_checkpoint(file) as checkpoint:
        assert checkpoint.read("t0").tolist() == torch.load(file, weights_only=True)["t0"].tolist() == [[2, 3], [4, 5]]  # type: ignore[union-attr]


LIES = {
    "storage larger than its record": tensor(storage(count=5)),
    "storage of 2**60": tensor(storage(count=2**60)),
    "storage of 2**62 doubles": tensor(storage("DoubleStorage", count=2**62)),
    "negative storage": tensor(storage(count=-4)),
    "storage size true": tensor(storage(count=True)),
    "storage size text": tensor(storage(count="4")),
    "missing record": tensor(storage(key="7")),
    "key that climbs": tensor(storage(key="../../etc/passwd")),
    "tensor leaves the storage": tensor(storage(), 1),
    "strides leave the storage": tensor(storage(), 0, (2, 2), (3, 1)),
    "negative stride": tensor(storage(), 2, (2, 2), (-2, 1)),
    "negative offset": tensor(storage(), -1),
    "negative shape": tensor(storage(), 0, (-2, -2)),
    "shape and strides differ": tensor(storage(), 0, (2, 2), (1,)),
    "shape overflow": tensor(storage(), 0, (2**40, 2**40), (0, 0)),
    "empty, yet too large for numpy": tensor(storage(), 0, (2**62, 2**62, 0), (0, 0, 0)),
    "33 dimensions": tensor(storage(), 0, (1,) * 33, (1,) * 33),
    "shape is text": tensor(storage(), 0, "22", (2, 1)),
    "tensor without storage": tensor(_put("storage")),
    "persistent id is text": _put("storage") + b"Q",
    "view of the storage too large": tensor(storage(view=("v", 2, 4))),
}


@pytest.mark.parametrize("case", LIES)
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_declared_sizes_are_checked(case: str, kind: str, tmp_path: Path) -> None:
    file = (write_zip if kind == "zip" else write_legacy)(tmp_path / "x.pt", state(LIES[case]))
    with pytest.raises(CheckpointError, match="x.pt"):
        open_checkpoint(file)


def test_expanded_views_are_skipped_not_materialized(tmp_path: Path) -> None:
    with open_checkpoint(write_zip(tmp_path / "x.pt", state(tensor(storage(), 0, (2**20, 2**20), (0, 0))))) as checkpoint:
        assert checkpoint.tensors == () and len(checkpoint.skipped) == 1


@pytest.mark.parametrize(
    ("keys", "counts", "data"),
    [
        (("1",), (4,), bytes(16)),
        ((), (), b""),
        (("0", "0"), (4, 4), bytes(16)),
        (("0",), (5,), bytes(16)),
        (("0",), (4,), bytes(15)),
        (("0",), (-4,), bytes(16)),
        ((), (4,), b""),
        ((None,), (4,), b""),
    ],
)
def test_legacy_storage_lists(keys: Any, counts: tuple[int, ...], data: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="x.pt"):
        open_checkpoint(write_legacy(tmp_path / "x.pt", state(tensor(storage(view=None))), keys, counts, data))


def test_zip_archives_that_are_refused(tmp_path: Path) -> None:
    good = state(tensor(storage()))
    refused = {
        "compressed": (write_zip(tmp_path / "1.pt", good, compression=zipfile.ZIP_DEFLATED), "compressed"),
        "byte order": (write_zip(tmp_path / "4.pt", good, {"data/0": bytes(16), "byteorder": b"middle"}), "byte order"),
    }
    with pytest.warns(UserWarning, match="Duplicate"):
        with zipfile.ZipFile(tmp_path / "6.pt", "w") as archive:
            archive.writestr("archive/data.pkl", good)
            archive.writestr("archive/data.pkl", good)
    refused["duplicate"] = (tmp_path / "6.pt", "two records")
    for file, match in refused.values():
        with pytest.raises(CheckpointError, match=match):
            open_checkpoint(file)


def test_overlapping_zip_records_are_refused(tmp_path: Path) -> None:
    """Two directory entries that point at the same bytes: how zip bombs multiply."""
    file = write_zip(tmp_path / "x.pt", state(tensor(storage())), {"data/0": bytes(16), "data/1": bytes(16)})
    raw = bytearray(file.read_bytes())
    entries = [i for i in range(len(raw)) if raw[i : i + 4] == b"PK\x01\x02"]
    assert len(entries) == 4
    raw[entries[3] + 42 : entries[3] + 46] = raw[entries[2] + 42 : entries[2] + 46]
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match="overlaps"):
        open_checkpoint(file)


def test_big_endian_archives(tmp_path: Path) -> None:
    values = struct.pack(">4f", 1.0, -2.5, 3.0, 4.0)
    with open_checkpoint(write_zip(tmp_path / "x.pt", state(tensor(storage())), {"data/0": values, "byteorder": b"big"})) as checkpoint:
        assert checkpoint.read("t0").tolist() == [[1.0, -2.5], [3.0, 4.0]]  # type: ignore[union-attr]
    bfloat = struct.pack(">4H", 0x3F80, 0, 0, 0xC000)
    with open_checkpoint(write_zip(tmp_path / "y.pt", state(tensor(storage("BFloat16Storage"))), {"data/0": bfloat, "byteorder": b"big"})) as checkpoint:
        assert checkpoint.read("t0").bits.tolist() == [[0x3F80, 0], [0, 0xC000]]  # type: ignore[union-attr]


@pytest.mark.parametrize("new", [True, False])
def test_every_truncation(new: bool, tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    torch.save({"a": torch.ones(3), "b": torch.zeros(2, 2)}, file, _use_new_zipfile_serialization=new)
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            open_checkpoint(file)


def test_a_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    torch.save({"a": torch.ones(10_000)}, file)
    with open_checkpoint(file) as checkpoint:
        with open(file, "r+b") as handle:
            handle.truncate(5000)
        with pytest.raises(CheckpointError, match="when it was opened"):
            checkpoint.read("a")


def read(raw: bytes) -> Any:
    return read_pickle(PickleStream(io.BytesIO(raw), len(raw), len(raw)), lambda found: ("persistent", found))


def test_pickles_as_data() -> None:
    class Thing(dict[str, int]):
        pass

    value = {"a": [1, 2.5, None, True, b"x", "ü"], "b": (1, (2,), {3}), "c": 2**100, "d": {"e": ()}, "f": frozenset([1]), "g": bytearray(b"y")}
    for protocol in range(6):
        got = read(pickle.dumps(value, protocol=protocol))
        assert got["a"][0:4] == [1, 2.5, None, True] and got["a"][5] == "ü" and got["c"] == 2**100 and got["d"] == {"e": ()}
        assert got["b"][1] == (2,) and got["b"][2] == [3] and got["f"] == [1]
    call = read(b"cos\nsystem\n(S'echo'\ntR.")
    assert isinstance(call, Call) and call.what == Global("os", "system") and call.args == ("echo",)
    assert isinstance(read(b"(S'echo'\nios\nsystem\n."), Call)
    assert isinstance(read(b"(cos\nsystem\nS'echo'\no."), Call)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b".",
        b"0.",
        b"R.",
        b"}R.",
        b"h\x00.",
        b"t.",
        b"u.",
        b"s.",
        b"Ns.",
        b"NNNs.",
        b"](NNu.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.",
        b"X\xff\xff\xff\x7fabc.",
        b"T\xff\xff\xff\xff.",
        b"\x82\x01.",
        b"cos\nsystem",
        b"F1.5",
        b"L" + b"9" * 5000 + b"L\n.",
        b"\xff.",
        b"(o.",
        b"NN\x93.",
        b"I\xff\n.",
    ],
)
def test_broken_pickles(raw: bytes) -> None:
    with pytest.raises(PickleError):
        read(raw)


def test_pickles_that_would_eat_time_or_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    nested = b"N" + b"\x85" * 290_000 + b"."  # a tuple in a tuple in a tuple ...
    read(nested)
    assert read(b"}" + nested[:-1] + b"Ns.")  # ... as a key: hashing it would overflow the C stack
    with pytest.raises(PickleError, match="more than 303100 steps"):  # a small file is not given many
        read(b"]" * 310_000 + b".")
    monkeypatch.setattr(torch_pickle, "MAX_STEPS", 10_000)
    with pytest.raises(PickleError, match="steps"):
        read(b"]" * 20_000 + b".")
    copies = b"](" + b"(NNt" * 1000 + b"eq\x00" + b"ccollections\nOrderedDict\nh\x00\x85R" * 1000 + b"."  # 1000 dicts of one list of 1000 pairs
    with pytest.raises(PickleError, match="steps"):
        read(copies)
    monkeypatch.setattr(torch_pickle, "MAX_BYTES", 1000)
    with pytest.raises(PickleError, match="outside of tensors"):
        read(_dump("x" * 2000))
