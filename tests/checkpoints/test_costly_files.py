"""Small files made to cost much time or memory, or to reach errors that only show in what a message says: CheckpointError, soon, with little memory.

Each was found by mutating files (tests/fuzz) or by reading the readers as an attacker would. The bounds are the fuzz tests': 2 s, 512 MB.
"""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fuzz.checks import check_checkpoint, peak_growth, timed
from fuzz.corpus import checked_and_packed, target, torch_file, zipped

from spectral_fast.checkpoints import CheckpointError, open_checkpoint
from spectral_fast.checkpoints.torch_pickle import FREE_STEPS, STEPS_PER_ENTRY

TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0"
    + b"0X\x03\0\0\0cpuK\x04tQK\0K\x02K\x02\x86K\x02K\x01\x86\x89}tR"
)
TYPED = b"ctorch.jit._pickle\nrestore_type_tag\n"


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def torch_zip(pickled: bytes) -> bytes:
    return zipped({"a/data.pkl": b"\x80\x02" + pickled + b".", "a/version": b"3\n", "a/data/0": bytes(16)})


def opened(path: Path, content: bytes | None = None) -> list[str]:
    """Names of the tensors of what is there, or of a file with this content; within the bounds of time and memory."""
    if content is not None:
        path.write_bytes(content)
    with timed(), peak_growth(), open_checkpoint(path) as checkpoint:
        return [t.name for t in checkpoint.tensors]


def refused(path: Path, content: bytes | None, why: str) -> None:
    with pytest.raises(CheckpointError, match=why) as caught:
        opened(path, content)
    str(caught.value).encode("utf-8")
    assert len(str(caught.value)) < 3000


def typed(depth: int, inner: bytes) -> bytes:
    return TYPED * depth + inner + b"X\0\0\0\0\x86R" * depth


def test_typed_lists_around_each_other(tmp_path: Path) -> None:
    """In a TorchScript archive: one frame of the reader's own stack for each, and all of them again for each mention."""
    file = tmp_path / "x.pt"
    assert opened(file, torch_zip(typed(2, b"](" + TENSOR + b"e"))) == ["0"]
    assert opened(file, torch_zip(typed(5000, TENSOR))) == []
    assert opened(file, torch_zip(b"(" + typed(5000, b"]") + b"q\0" + b"h\0" * 20_000 + b"l")) == []


def test_long_keys_around_each_other(tmp_path: Path) -> None:
    """A key of a megabyte, 60 times in the name of each of 1000 containers: 60 GB of names."""
    inner = b"](" + b"](K\x01e" * 1000 + TENSOR + b"e"
    nested = text(b"k" * 2**20) + b"q\x010" + b"}h\x01" * 60 + inner + b"s" * 60
    assert opened(tmp_path / "x.pt", torch_zip(nested)) == ["1000"]  # what is common to all names is left out
    refused(tmp_path / "y.pt", torch_zip(b"}(" + text(b"other") + TENSOR + text(b"x" * 2**23) + nested + b"u"), "names of more than 67108864 characters")


def test_dicts_whose_keys_have_one_hash(tmp_path: Path) -> None:
    multiples = (k * (2**61 - 1) for k in range(16, 60_016))
    keys = b"".join(b"\x8a\x0a" + k.to_bytes(10, "little") + b"N" for k in multiples)
    assert opened(tmp_path / "x.pt", torch_zip(b"}(" + text(b"w") + TENSOR + keys + b"u")) == ["w"]
    places = b"".join(b"p%d\n" % (k * (2**61 - 1)) for k in range(16, 60_016))
    refused(tmp_path / "y.pt", torch_zip(b"]" + places), "memo index")


@pytest.mark.parametrize("deep", [1, 60])
def test_one_tensor_named_without_end(deep: int, tmp_path: Path) -> None:
    most = FREE_STEPS // STEPS_PER_ENTRY
    file = tmp_path / "x.pt"
    for count in (most // 4, 2 * most):
        content = torch_zip(b"}K\x01" * deep + b"(" + TENSOR + b"q\0" + b"h\0" * count + b"l" + b"s" * deep)
        if count < most:
            assert len(opened(file, content)) == count + 1
        else:
            refused(file, content, "more than 30.* tensors and other entries")


def test_integers_too_long_to_be_printed(tmp_path: Path) -> None:
    long = b"\x8b" + struct.pack("<I", 5000) + b"\x01" * 5000  # 12,000 digits; Python prints 4300
    legacy = torch_file(False)
    at = legacy.rindex(b"\x80\x02]q")  # the list of storages
    refused(tmp_path / "x.bin", legacy[:at] + b"\x80\x02](" + long + b"e." + bytes(100), "storage '<integer>' is listed without")


def test_names_that_cannot_be_written(tmp_path: Path) -> None:
    """Halves of surrogate pairs, which JSON and pickles can hold and no file or terminal takes."""
    which = target("index")
    refused(which.write(tmp_path, b""), b'{"weight_map": {"a": "\\ud800"}}', "wanted a plain file name")
    refused(which.write(tmp_path, b""), json.dumps({"weight_map": {"a": "x" * 5000}}).encode(), "tensor 'a' is in 'xxx")
    pickled = b"\xed\xa0\x80"
    refused(tmp_path / "x.pt", torch_zip(b"(" + text(b"os" + pickled) + text(b"system") + b"\x93)Rl"), "name of a class")
    assert opened(tmp_path / "y.pt", torch_zip(b"}" + text(b"a" + pickled) + TENSOR + b"s")) == ["a\\ud800"]
    which = target("distributed")
    (tmp_path / "saved").mkdir()
    refused(which.write(tmp_path / "saved", which.seeds[0].replace(b"\x07model.a", b"\x07mode" + pickled)), None, "a name that is no text")


def test_names_too_long_for_a_folder(tmp_path: Path) -> None:
    which = target("pipeline")
    index = json.dumps({"x" * 5000: ["a", "b"], "unet": ["a", "b"]})
    assert check_checkpoint(which.write(tmp_path, index.encode()), 10_000)


def test_one_wide_character(tmp_path: Path) -> None:
    """A header of 95 MB that would take 380 MB as text, and as much again for the string in it."""
    header = b'{"__metadata__":{"a":"' + b"x" * 95_000_000 + "𝒳".encode() + b'"}}'
    refused(tmp_path / "x.safetensors", struct.pack("<Q", len(header)) + header, "beyond ASCII")


def test_an_index_of_empty_lists(tmp_path: Path) -> None:
    """49 MB that would become 1.5 GB of lists."""
    refused(tmp_path / "model.safetensors.index.json", b"[" + b"[]," * (49_000_000 // 3) + b"1]", "JSON elements")


def test_a_zip_directory_without_end(tmp_path: Path) -> None:
    """A record of 47 bytes becomes an object of 600."""
    file = tmp_path / "x.npz"
    entry = b"PK\x01\x02" + struct.pack("<6H3L5H2L", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    count = 400_000
    end = (
        b"PK\x06\x06"
        + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, count * len(entry), 30)
        + b"PK\x06\x07"
        + struct.pack("<IQI", 0, 30 + count * 47, 1)
    )
    refused(
        file,
        b"PK\x03\x04" + bytes(26) + entry * count + end + b"PK\x05\x06" + struct.pack("<4H2IH", *[0xFFFF] * 4, *[2**32 - 1] * 2, 0),
        "directory of more than",
    )


def test_thousands_of_long_headers(tmp_path: Path) -> None:
    """Deflated, a .npy header of 10 kB takes 200 bytes, and 10 ms to be read."""
    literal = b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"(1)," * 2000 + b")}"
    record = b"\x93NUMPY\x01\0" + struct.pack("<H", len(literal)) + literal
    refused(tmp_path / "x.npz", zipped({f"{i}.npy": record for i in range(200)}, zipfile.ZIP_DEFLATED), "32 dimensions")
    listed = b"{'descr': [" + b"('', '<f4')," * 700 + b"], 'fortran_order': False, 'shape': ()}"
    record = b"\x93NUMPY\x01\0" + struct.pack("<H", len(listed)) + listed
    refused(tmp_path / "y.npz", zipped({f"{i}.npy": record for i in range(200)}, zipfile.ZIP_DEFLATED), "longer than the file")


def tar_member(name: bytes, kind: bytes, content: bytes) -> bytes:
    header = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % len(content) + b"0" * 11 + b"\0" + b" " * 8 + kind
    return header.ljust(512, b"\0") + content + bytes(-len(content) % 512)


COSTLY_TARS: dict[str, tuple[Callable[[], bytes], str]] = {
    "thousands of records in a header": (lambda: tar_member(b"x", b"x", b"2 " * 32_000) * 200, "0 checkpoints among 0"),
    "thousands of empty members": (lambda: tar_member(b"x", b"0", b"") * 9_000, "0 checkpoints among 9000"),
    "thousands of long names": (lambda: (tar_member(b"x", b"L", b"n" * 60_000 + b".pt") + tar_member(b"x", b"0", b"")) * 1_000, "1000 checkpoints among 1000"),
}


@pytest.mark.parametrize("case", COSTLY_TARS)
def test_costly_archives(case: str, tmp_path: Path) -> None:
    make, message = COSTLY_TARS[case]
    refused(tmp_path / "x.tar.gz", checked_and_packed(make() + bytes(1024)), message)


def test_pieces_that_are_read_again_and_again(tmp_path: Path) -> None:
    """512 pieces of one element each, all of them the whole file. And tensors of so many pieces that looking at all pairs takes long."""
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

    folder = tmp_path / "saved"
    with pytest.warns(UserWarning):
        dcp.save({"w": torch.zeros(512, 1)}, checkpoint_id=folder)
    metadata = dcp.FileSystemReader(folder).read_metadata()
    (place,) = metadata.storage_data.values()
    entry = metadata.state_dict_metadata["w"]
    entry.chunks = [ChunkStorageMetadata(torch.Size([i, 0]), torch.Size([1, 1])) for i in range(512)]
    metadata.storage_data = {MetadataIndex("w", torch.Size([i, 0])): place for i in range(512)}
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    refused(folder, None, "more bytes than their files")
    place.length = 4
    names = [f"w{i}" for i in range(12)]
    metadata.storage_data = {MetadataIndex(name, c.offsets): place for name in names for c in entry.chunks}
    metadata.state_dict_metadata = dict.fromkeys(names, entry)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert len(opened(folder)) == 12


def test_a_small_gzip_file_is_no_reason_to_wait(tmp_path: Path) -> None:
    refused(tmp_path / "x.tar.gz", gzip.compress(bytes(2**20), 9) * 3, "0 checkpoints among 0")
    np.testing.assert_equal(len(list(tmp_path.iterdir())), 1)
