"""Small valid files of every hand-read format, and how an input of a fuzzer becomes a file of it.

A ``Target`` is a folder of valid files, one of which is strange. Its content is made from the input by ``pack``: so a mutation of a pickle or of a
tar header gets past the checksums and lengths around it. The files are made by the formats' own packages; GGUF by hand.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import struct
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
import torch.distributed.checkpoint as dcp
from fuzz.fields import gguf_fields, npy_fields, pickle_fields, pickles_fields, safetensors_fields, tar_fields, text_fields, zip_fields
from fuzz.mutations import PICKLED, TEXTS

__all__ = ["TARGETS", "Target", "target"]


@dataclass(frozen=True)
class Target:
    """file: the strange file's name. seeds: valid inputs. fields: cuts one. values: what a field may be replaced by; none: numbers of its width.
    beside: the other files. opened: what of the folder is opened, "" for all of it. magnified: how many times as long as all files a tensor may be."""

    file: str
    seeds: tuple[bytes, ...]
    fields: Callable[[bytes], list[bytes]]
    values: tuple[bytes, ...] = ()
    pack: Callable[[bytes], bytes] = bytes
    beside: Mapping[str, bytes] = field(default_factory=dict)
    opened: str = ""
    magnified: int = 1

    def write(self, folder: Path, content: bytes) -> Path:
        """Write the strange file, and the others where they are not there yet; the path to open."""
        for name, data in self.beside.items():
            if not (folder / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
        (folder / self.file).write_bytes(self.pack(content))
        return folder / self.opened


ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=np.float16),
    "c": np.zeros((0, 7), np.int8),
    "d": np.array(3.5),
    "e": np.array([True, False]),
}


def _whole(name: str, *seeds: bytes, fields: Callable[[bytes], list[bytes]], values: tuple[bytes, ...] = (), **more: object) -> Target:
    return Target(name, seeds, fields, values, opened=name, **more)  # type: ignore[arg-type]


# ---- safetensors and the indexes -------------------------------------------------------------------------------------------

HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c": {"dtype": "F8_E4M3", "shape": [], "data_offsets": [32, 33]},
    "d": {"dtype": "BOOL", "shape": [0, 7], "data_offsets": [33, 33]},
    "e": {"dtype": "I64", "shape": [1], "data_offsets": [33, 41]},
}


def with_header(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(range(41))


def _safetensors() -> Target:
    seeds = (with_header(json.dumps(HEADER).encode()), safetensors.numpy.save(ARRAYS))
    return _whole("x.safetensors", *seeds, fields=safetensors_fields)


def _safetensors_header() -> Target:
    return _whole("x.safetensors", json.dumps(HEADER).encode(), fields=text_fields, values=TEXTS, pack=with_header)


SHARDS = {"a.safetensors": safetensors.numpy.save({"a": ARRAYS["a"], "x": ARRAYS["b"]}), "b.safetensors": safetensors.numpy.save({"b": ARRAYS["b"]})}


def _index() -> Target:
    index = {"metadata": {"total_size": 32}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    name = "model.safetensors.index.json"
    return _whole(name, json.dumps(index).encode(), fields=text_fields, values=TEXTS, beside=SHARDS)


def _pipeline() -> Target:
    index = {
        "_class_name": "Pipeline",
        "unet": ["diffusers", "U"],
        "vae": ["diffusers", "V"],
        "tokenizer": ["transformers", "T"],
        "safety_checker": [None, None],
    }
    weights = safetensors.numpy.save(ARRAYS)
    beside = {"unet/model.safetensors": weights, "vae/model.safetensors": weights, "tokenizer/vocab.json": b"{}", "unnamed/model.safetensors": weights}
    return Target("model_index.json", (json.dumps(index).encode(),), text_fields, (*TEXTS, b'"unnamed"', b'"unet"'), beside=beside)


# ---- numpy -----------------------------------------------------------------------------------------------------------------


def _npy_seeds() -> tuple[bytes, ...]:
    seeds = []
    for array, version in ((ARRAYS["a"], (1, 0)), (np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)), (2, 0)), (np.arange(3, dtype=">i2"), (3, 0))):
        handle = io.BytesIO()
        np.lib.format.write_array(handle, array, version)
        seeds.append(handle.getvalue())
    return tuple(seeds)


def _npy() -> Target:
    return _whole("x.npy", *_npy_seeds(), fields=npy_fields)


def with_literal(literal: bytes) -> bytes:
    """A literal in a .npy file of 24 bytes of elements."""
    return b"\x93NUMPY\3\0" + struct.pack("<I", len(literal)) + literal + bytes(24)


def _npy_header() -> Target:
    seeds = (b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", b"{'descr': '>i2', 'fortran_order': True, 'shape': (2, 3, 2), }")
    return _whole("x.npy", *seeds, fields=text_fields, values=TEXTS, pack=with_literal)


def zipped(records: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    handle = io.BytesIO()
    with zipfile.ZipFile(handle, "w", method) as archive:
        for name, data in records.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return handle.getvalue()


def _npz_seeds() -> tuple[bytes, ...]:
    handles = io.BytesIO(), io.BytesIO()
    np.savez(handles[0], **ARRAYS)
    np.savez_compressed(handles[1], **ARRAYS)
    big = io.BytesIO()
    with zipfile.ZipFile(big, "w") as archive, archive.open(zipfile.ZipInfo("a.npy"), "w", force_zip64=True) as record:
        record.write(_npy_seeds()[0])
    return (*(h.getvalue() for h in handles), big.getvalue())


def _npz() -> Target:
    return _whole("x.npz", *_npz_seeds(), fields=zip_fields, magnified=1100)


def _npz_record() -> Target:
    """A deflated record of any content."""
    return _whole("x.npz", *_npy_seeds(), fields=npy_fields, pack=lambda raw: zipped({"a.npy": raw}, zipfile.ZIP_DEFLATED), magnified=1100)


def _deflated() -> Target:
    """The deflated bytes themselves, behind lengths that fit."""
    (whole,) = (zipped({"a.npy": _npy_seeds()[0]}, zipfile.ZIP_DEFLATED),)
    begin = 30 + len("a.npy")
    end = whole.index(b"PK\x01\x02")

    def pack(raw: bytes) -> bytes:
        directory = bytearray(whole[end:])
        directory[20:24] = struct.pack("<I", len(raw))
        at = directory.index(b"PK\x05\x06")
        directory[at + 16 : at + 20] = struct.pack("<I", begin + len(raw))
        return whole[:begin] + raw + bytes(directory)

    return _whole("x.npz", whole[begin:end], fields=lambda raw: [raw[i : i + 4] for i in range(0, len(raw), 4)], pack=pack, magnified=1100)


# ---- torch -----------------------------------------------------------------------------------------------------------------


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
    handle = io.BytesIO()
    torch.save(value, handle, _use_new_zipfile_serialization=new)
    return handle.getvalue()


class _Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(3, 2)
        self.sizes = [3, 4]
        self.register_buffer("mean", torch.ones(2, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def script_file() -> bytes:
    handle = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(_Net()), handle)
    return handle.getvalue()


def records_of(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def _pickle_in(archive: bytes, file: str) -> Target:
    """The pickle in an archive of torch, whose other records stay as they are."""
    records = records_of(archive)
    name = next(n for n in records if n.endswith("/data.pkl"))
    return _whole(file, records[name], fields=pickle_fields, values=PICKLED, pack=lambda raw: zipped({**records, name: raw}))


def _torch_zip() -> Target:
    return _whole("x.pt", torch_file(True), script_file(), fields=zip_fields)


def _torch_pickle() -> Target:
    return _pickle_in(torch_file(True), "x.pt")


def _script_pickle() -> Target:
    return _pickle_in(script_file(), "x.ts")


def _torch_legacy() -> Target:
    return _whole("x.bin", torch_file(False), fields=pickles_fields, values=PICKLED)


@functools.cache
def _distributed_files() -> dict[str, bytes]:
    state = {"model": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2).to(torch.bfloat16), "c": torch.tensor(3)}, "step": 7}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder)
        return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def _distributed() -> Target:
    files = dict(_distributed_files())
    return Target(".metadata", (files.pop(".metadata"),), pickle_fields, PICKLED, beside=files)


def _piece() -> Target:
    files = dict(_distributed_files())
    return Target("__0_0.distcp", (files.pop("__0_0.distcp"),), zip_fields, beside=files)


# ---- GGUF ------------------------------------------------------------------------------------------------------------------


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _gguf_seeds() -> tuple[bytes, ...]:
    entries = (
        *(_string("general.architecture") + struct.pack("<I", 8) + _string("llama"), _string("general.alignment") + struct.pack("<II", 4, 64)),
        _string("tokens") + struct.pack("<IIQ", 9, 8, 3) + _string("a") + _string("") + _string("bcd"),
        _string("scores") + struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3),
        _string("nested") + struct.pack("<IIQ", 9, 9, 2) + struct.pack("<IQ2B", 0, 2, 1, 2) + struct.pack("<IQ", 8, 1) + _string("x"),
        _string("flag") + struct.pack("<IB", 7, 1),
    )
    kinds = {"w": ([2, 3], 0), "e": ([0, 5], 0), "h": ([3], 30), "u": ([7], 99)}
    coded = {"q8": ([32, 2], 8, 68), "q4": ([256], 12, 144), "q5": ([32], 6, 22), "q2": ([256, 1, 1], 10, 84), "q6": ([256], 14, 210)}
    tensors, data = [], b""
    for name, (dims, kind, size) in {**{n: (d, k, 24) for n, (d, k) in kinds.items()}, **coded}.items():
        tensors.append(_string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, len(data)))
        data += bytes(range(size)) + bytes(-size % 64)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join((*entries, *tensors))
    plain = b"GGUF" + struct.pack("<IQQ", 2, 1, 0) + _string("w") + struct.pack("<IQQIQ", 2, 2, 3, 0, 0)
    return head + bytes(-len(head) % 64) + data, plain + bytes(-len(plain) % 32) + bytes(24)


def _gguf() -> Target:
    return _whole("x.gguf", *_gguf_seeds(), fields=gguf_fields, magnified=8)


# ---- archives --------------------------------------------------------------------------------------------------------------


def tarred(members: Mapping[str, bytes], style: int) -> bytes:
    handle = io.BytesIO()
    with tarfile.open(fileobj=handle, mode="w", format=style) as archive:
        link = tarfile.TarInfo("link.th")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return handle.getvalue()


def _tar_seeds() -> tuple[bytes, ...]:
    weights = safetensors.numpy.save(ARRAYS)
    return tuple(
        tarred({"config.json": b"{}", name: weights}, style)
        for name, style in (("weights.safetensors", tarfile.USTAR_FORMAT), ("b" * 150 + ".th", tarfile.GNU_FORMAT), ("ü" * 90 + ".th", tarfile.PAX_FORMAT))
    )


def checked_and_packed(raw: bytes) -> bytes:
    """The checksums of a tar's headers set right, and the whole compressed."""
    fixed = bytearray(raw)
    at = 0
    while at + 512 <= len(fixed) and fixed[at : at + 512].strip(b"\0"):
        fixed[at + 148 : at + 156] = b"%06o\0 " % (sum(fixed[at : at + 148]) + 8 * 32 + sum(fixed[at + 156 : at + 512]))
        size = bytes(fixed[at + 124 : at + 136]).strip(b" \0")
        at += 512 + (-(-int(size, 8) // 512) * 512 if size and not size.strip(b"01234567") else 0)
    return gzip.compress(bytes(fixed), 1, mtime=0)


def _tar() -> Target:
    return _whole("x.tar.gz", *_tar_seeds(), fields=tar_fields, pack=checked_and_packed, magnified=1100)


def _tar_gz() -> Target:
    seeds = tuple(gzip.compress(raw, level, mtime=0) for level, raw in zip((0, 1, 9), _tar_seeds(), strict=True))
    return _whole("x.tar.gz", *seeds, fields=lambda raw: [raw[:2], *(raw[i : i + 1] for i in range(2, 10)), raw[10:-8], raw[-8:-4], raw[-4:]], magnified=1100)


TARGETS: dict[str, Callable[[], Target]] = {
    "safetensors": _safetensors,
    "safetensors-header": _safetensors_header,
    "index": _index,
    "pipeline": _pipeline,
    "npy": _npy,
    "npy-header": _npy_header,
    "npz": _npz,
    "npz-record": _npz_record,
    "deflated": _deflated,
    "torch-zip": _torch_zip,
    "torch-pickle": _torch_pickle,
    "torchscript-pickle": _script_pickle,
    "torch-legacy": _torch_legacy,
    "distributed": _distributed,
    "distributed-piece": _piece,
    "gguf": _gguf,
    "tar": _tar,
    "tar.gz": _tar_gz,
}


@functools.cache
def target(name: str) -> Target:
    """The target of this name, a key of TARGETS. Made when asked for: some formats' packages take seconds to load."""
    return TARGETS[name]()
