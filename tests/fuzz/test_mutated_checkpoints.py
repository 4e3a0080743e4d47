"""Mutated checkpoint files: a valid Checkpoint whose tensors all read, or CheckpointError; nothing else, in bounded memory.

The plain run takes a few hundred mutations of each format, `-m thorough` 10,000.
"""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spectral_fast.checkpoints import CheckpointError, open_checkpoint

PLAIN = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
THOROUGH = settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
MEMORY = 512 * 2**20  # bytes


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "mutated.safetensors"


def check(file: Path, content: bytes) -> bool:
    """True for a valid file."""
    file.write_bytes(content)
    tracemalloc.start()
    try:
        with open_checkpoint(file) as checkpoint:
            for info in checkpoint.tensors:
                assert 0 <= info.nbytes <= len(content)
                assert checkpoint.read(info.name).shape == info.shape
                str(info), hash(info.storage), info.name.encode("utf-8")
            for skipped in checkpoint.skipped:
                (skipped.name + skipped.reason).encode("utf-8")
        return True
    except CheckpointError as error:
        assert str(file) in str(error) and len(str(error)) < 3000
        return False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY


# ---- headers of safetensors, mutated as JSON -------------------------------------------------------------------------------

NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64, 10**30, True, 1.0, 1e300, float("nan"), None])
WORDS = st.sampled_from(
    ["F32", "F64", "BF16", "F8_E4M3", "F4", "BOOL", "", "f32", "dtype", "shape", "data_offsets", "__metadata__", "b", "\ud800", "\0", "x" * 1000]
)
ANYTHING = st.recursive(NUMBERS | WORDS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=6)
VALID = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c": {"dtype": "F8_E4M3", "shape": [], "data_offsets": [32, 33]},
    "d": {"dtype": "BOOL", "shape": [0, 7], "data_offsets": [33, 33]},
    "e": {"dtype": "I64", "shape": [1], "data_offsets": [33, 41]},
}
DATA = bytes(range(41))


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    header: Any = json.loads(json.dumps(VALID))
    for _ in range(draw(st.integers(0, 3))):
        node, parent, key = header, None, None
        for _ in range(draw(st.integers(1, 3))):  # walk down to a random place
            if not isinstance(node, dict | list) or not node:
                break
            parent, key = node, draw(st.sampled_from(sorted(node, key=str))) if isinstance(node, dict) else draw(st.integers(0, len(node) - 1))
            node = parent[key]
        if parent is None:
            break
        action = draw(st.sampled_from(["replace", "delete", "add"]))
        if action == "delete":
            del parent[key]
        elif action == "add" and isinstance(parent, dict):
            parent[draw(WORDS)] = draw(ANYTHING)
        elif action == "add":
            parent.append(draw(ANYTHING))
        else:
            parent[key] = draw(ANYTHING)
    raw = json.dumps(header).encode()
    if draw(st.integers(0, 3)) == 0:
        raw = draw(mutations(raw))
    length = len(raw) + draw(st.sampled_from([0] * 12 + [-1, 1, 2**32, 2**62]))
    data = DATA + draw(st.sampled_from([b""] * 12 + [b"x", bytes(64)]))
    return struct.pack("<Q", max(0, length)) + raw + data


@st.composite
def mutations(draw: st.DrawFn, whole: bytes) -> bytes:
    """A few bytes replaced, inserted, deleted or repeated, or the end cut off."""
    raw = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        action = draw(st.sampled_from(["replace", "flip", "insert", "delete", "repeat", "cut"]))
        some = draw(st.binary(min_size=1, max_size=4))
        if action == "replace":
            raw[at : at + len(some)] = some
        elif action == "flip" and at < len(raw):
            raw[at] ^= 1 << draw(st.integers(0, 7))
        elif action == "insert":
            raw[at:at] = some
        elif action == "delete":
            del raw[at : at + draw(st.integers(1, 16))]
        elif action == "repeat":
            raw[at:at] = raw[at : at + draw(st.integers(1, 64))]
        elif draw(st.integers(0, 3)) == 0:
            del raw[at:]
    return bytes(raw)


def check_header(file: Path, content: bytes) -> None:
    if check(file, content):  # what we call valid, the format's own package has to call valid, unless it is a dtype it may know less of
        with open_checkpoint(file) as checkpoint:
            if not checkpoint.skipped and checkpoint.format == "safetensors":
                with safetensors.safe_open(file, "pt") as theirs:
                    assert set(theirs.keys()) == {t.name for t in checkpoint.tensors}


def test_the_unmutated_header_is_valid(file: Path) -> None:
    raw = json.dumps(VALID).encode()
    assert check(file, struct.pack("<Q", len(raw)) + raw + DATA)


@PLAIN
@given(content=headers())
def test_safetensors_headers(file: Path, content: bytes) -> None:
    check_header(file, content)


@pytest.mark.thorough
@pytest.mark.timeout(1800)
@THOROUGH
@given(content=headers())
def test_safetensors_headers_thorough(file: Path, content: bytes) -> None:
    check_header(file, content)


# ---- torch files, mutated as bytes -----------------------------------------------------------------------------------------


def torch_file(new: bool) -> bytes:
    base = torch.arange(24.0).reshape(4, 6)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    value = {
        "model": {"t": base.T, "s": base[1:3, ::2], "p": model.weight, "f8": torch.ones(3).to(torch.float8_e5m2), "i": torch.arange(3)},
        "optimizer": optimizer.state_dict(),
        "sparse": torch.eye(2).to_sparse(),
        "epoch": 3,
        "names": ["a", ("b",)],
    }
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


TORCH = {"zip": torch_file(True), "legacy": torch_file(False)}
with zipfile.ZipFile(io.BytesIO(TORCH["zip"])) as _archive:
    RECORDS = {name: _archive.read(name) for name in _archive.namelist()}
PICKLE_NAME = next(name for name in RECORDS if name.endswith("/data.pkl"))
# the legacy file's pickles, without the storages and the magic number at their two ends
PICKLES = TORCH["legacy"].rindex(b"]q\x00(") if b"]q\x00(" in TORCH["legacy"] else len(TORCH["legacy"])


@st.composite
def rezipped(draw: st.DrawFn) -> bytes:
    """The archive with a mutated pickle, so that the mutation reaches the pickle reader whole."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in RECORDS.items():
            archive.writestr(name, draw(mutations(data)) if name == PICKLE_NAME else data)
    return buffer.getvalue()


@st.composite
def legacy_pickles(draw: st.DrawFn) -> bytes:
    begin = 32
    return TORCH["legacy"][:begin] + draw(mutations(TORCH["legacy"][begin:PICKLES])) + TORCH["legacy"][PICKLES:]


TORCH_MUTATIONS: dict[str, Callable[[], st.SearchStrategy[bytes]]] = {
    "zip pickle": rezipped,
    "zip bytes": lambda: mutations(TORCH["zip"]),
    "legacy pickle": legacy_pickles,
    "legacy bytes": lambda: mutations(TORCH["legacy"]),
}


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_the_unmutated_torch_files_are_valid(kind: str, file: Path) -> None:
    assert check(file, TORCH[kind])


@pytest.mark.filterwarnings("ignore:.*invalid escape sequence:DeprecationWarning")  # pickletools, on mutated text
@pytest.mark.parametrize("kind", TORCH_MUTATIONS)
@PLAIN
@given(data=st.data())
def test_torch_files(kind: str, file: Path, data: st.DataObject) -> None:
    check(file, data.draw(TORCH_MUTATIONS[kind]()))


@pytest.mark.thorough
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore:.*invalid escape sequence:DeprecationWarning")  # pickletools, on mutated text
@pytest.mark.parametrize("kind", TORCH_MUTATIONS)
@THOROUGH
@given(data=st.data())
def test_torch_files_thorough(kind: str, file: Path, data: st.DataObject) -> None:
    check(file, data.draw(TORCH_MUTATIONS[kind]()))
