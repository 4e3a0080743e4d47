"""Readers for what torch.save writes, zip archives (torch >= 1.6) and the older plain pickle stream, and for the modules in TorchScript archives.

Neither torch nor the pickle module is used: the pickle is read as data (torch_pickle.py), storages are read from the file by
position, one tensor at a time. So no class of the file is ever imported, a file larger than memory can be opened, and every
declared size is compared with the file before anything is allocated. The tests compare with torch.load(weights_only=True).
"""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path
from typing import Any, NoReturn

from numpy.typing import NDArray

from spectral_fast.checkpoints.byte_source import ByteSource
from spectral_fast.checkpoints.reader import ITEM_SIZES, Checkpoint, CheckpointError, Skipped, StorageKey, TensorInfo, array_from_bytes
from spectral_fast.checkpoints.torch_pickle import MAX_BYTES, Call, PickleError, PickleStream, read_pickle
from spectral_fast.checkpoints.torch_tree import Storage, StoredTensor, TreeError, find_tensors, text_of
from spectral_fast.checkpoints.zip_records import ZipRecord
from spectral_fast.linalg.arrays import RawArray

__all__ = ["LEGACY_MAGIC", "TorchCheckpoint", "open_torch_legacy", "open_torch_zip"]

_LEGACY_NUMBER = 0x1950A86A20F9469CFC6C
LEGACY_MAGIC = _LEGACY_NUMBER.to_bytes(10, "little")  # stands in the first bytes of a legacy file, behind the pickle opcodes
_LEGACY_VERSION = 1001


class TorchCheckpoint(Checkpoint):
    """A file written by torch.save, of either kind.

    tree: the pickled value. most: tensors and other entries that it may have. spans: where each storage lies in the file: key -> (position, bytes).
    """

    def __init__(self, source: ByteSource, kind: str, tree: Any, most: int, spans: dict[str, tuple[int, int]], byteorder: str) -> None:
        self.path = source.path
        self.format = kind
        self._source = source
        self._spans = spans
        self._byteorder = byteorder
        try:
            found, skipped = find_tensors(tree, most)
        except TreeError as error:
            _bad(self.path, str(error))
        if isinstance(tree, Call) and not found and skipped:
            _bad(self.path, f"{skipped[0].reason}; wanted tensors: save model.state_dict() instead")
        self._tensors = dict(found)
        self.tensors = tuple(self._info(name, t) for name, t in found)
        self.skipped: tuple[Skipped, ...] = tuple(skipped)

    def _info(self, name: str, t: StoredTensor) -> TensorInfo:
        size = ITEM_SIZES[t.dtype]
        count = math.prod(t.shape)
        identity = t.storage.key if count else f"{t.storage.key} (empty: {name})"
        key = StorageKey(self.path.name, identity, t.storage.offset + t.offset * size, t.dtype, t.shape, t.strides)
        return TensorInfo(name, t.shape, t.dtype, count * size, key)

    def read(self, name: str) -> NDArray[Any] | RawArray:
        t = self._tensors[name]
        size = ITEM_SIZES[t.dtype]
        position = self._spans[t.storage.key][0] + t.storage.offset + t.offset * size if t.extent else 0
        data = self._source.read(position, t.extent * size)
        return array_from_bytes(data, t.dtype, t.shape, t.strides, self._byteorder)

    def close(self) -> None:
        self._source.close()


def open_torch_zip(source: ByteSource, records: dict[str, ZipRecord]) -> TorchCheckpoint:
    """A zip archive <root>/data.pkl, <root>/data/<key>, one stored record per storage. In a TorchScript archive the pickle holds the modules; its
    code and the constants in it are left alone. records: the archive's directory."""
    path = source.path
    pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        _bad(path, "zip archive without one <name>/data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    script = f"{root}constants.pkl" in records or any(name.startswith(f"{root}code/") for name in records)
    name = f"{root}byteorder"
    order = _record(source, records, name, 16).decode("latin-1") if name in records else "little"
    if order not in ("little", "big"):
        _bad(path, f"byte order {order!r}, wanted little or big")
    spans: dict[str, tuple[int, int]] = {}

    def storage(found: Any) -> Storage:
        s = Storage.from_persistent_id(found)
        if s.key not in spans:
            record = records.get(f"{root}data/{s.key}")
            if record is None or not record.stored:
                raise TreeError(f"storage {s.key!r} has no {'uncompressed ' if record else ''}record in the archive")
            spans[s.key] = (record.position, record.size)
        if s.offset + s.nbytes > spans[s.key][1]:
            raise TreeError(f"storage {s.key!r} is declared with {s.nbytes} bytes, its record has {spans[s.key][1]}")
        return s

    data = _record(source, records, pickles[0], MAX_BYTES)
    stream = PickleStream(io.BytesIO(data), len(data), source.size)
    tree = _read(path, stream, storage)
    checkpoint = TorchCheckpoint(source, "torchscript" if script else "torch-zip", tree, stream.entries, spans, order)
    constants = sum(name.startswith(f"{root}constants/") for name in records)
    if constants:
        checkpoint.skipped += (Skipped("constants", f"{constants} constants of the code, no weights"),)
    return checkpoint


def _record(source: ByteSource, records: dict[str, ZipRecord], name: str, limit: int) -> bytes:
    record = records[name]
    if not record.stored or record.size > limit:
        _bad(source.path, f"record {name!r} is compressed or longer than {limit} bytes")
    return source.read(record.position, record.size).tobytes()


def open_torch_legacy(source: ByteSource) -> TorchCheckpoint:
    """The stream of torch < 1.6 (or _use_new_zipfile_serialization=False): pickles of a magic number, a version, the system, the
    object and the storages' keys, then every storage as its number of elements (int64) and its little-endian bytes."""
    path = source.path
    declared: dict[str, Storage] = {}

    def storage(found: Any) -> Any:
        if isinstance(found, tuple) and len(found) > 1 and found[0] == "module":
            return found[1]  # the class of a pickled module, with its source code
        s = Storage.from_persistent_id(found)
        count = found[4] * (s.item_size or 1)  # of the whole storage, where s is a view
        known = declared.setdefault(s.key, Storage(s.key, s.dtype, s.item_size, count))
        if (known.nbytes, known.item_size) != (count, s.item_size):
            raise TreeError(f"storage {s.key!r} is declared twice, with different sizes")
        return s

    with source.stream() as handle:
        stream = PickleStream(handle, source.size, source.size)
        if _read(path, stream, storage) != _LEGACY_NUMBER or _read(path, stream, storage) != _LEGACY_VERSION:
            _bad(path, "wrong magic number or version of the legacy format")
        _read(path, stream, storage)  # the writing system; the bytes are little-endian whatever it says
        tree = _read(path, stream, storage)
        keys = _read(path, stream, storage)
        position = stream.tell()
    if not isinstance(keys, list) or not all(isinstance(k, str | int) for k in keys):
        _bad(path, "the list of storages is missing")
    spans: dict[str, tuple[int, int]] = {}
    for key in keys:
        s = declared.get(text_of(key))
        if s is None or s.item_size is None or s.key in spans:
            _bad(path, f"storage {text_of(key)!r} is listed without or with an unknown type, or twice")
        if position + 8 + s.nbytes > source.size:
            _bad(path, f"storage {s.key!r} of {s.nbytes} bytes begins at {position}, the file has {source.size} (truncated?)")
        (count,) = struct.unpack("<q", source.read(position, 8).tobytes())
        if count * s.item_size != s.nbytes:
            _bad(path, f"storage {s.key!r} has {count} elements, declared were {s.nbytes // s.item_size}")
        spans[s.key] = (position + 8, s.nbytes)
        position += 8 + s.nbytes
    missing = declared.keys() - spans.keys()
    if missing:
        _bad(path, f"{len(missing)} storages without data, e.g. {min(missing)!r}")
    return TorchCheckpoint(source, "torch-legacy", tree, stream.entries, spans, "little")


def _read(path: Path, stream: PickleStream, storage: Any) -> Any:
    try:
        return read_pickle(stream, storage)
    except PickleError as error:
        raise CheckpointError(f"{path}: not a readable torch file: {str(error)[:600]}") from error


def _bad(path: Path, what: str) -> NoReturn:
    raise CheckpointError(f"{path}: not a readable torch file: {what[:600]}")
