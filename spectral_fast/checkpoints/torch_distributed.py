"""Reader for directories of torch.distributed.checkpoint: a pickled ``.metadata`` says of which pieces every tensor consists and where they lie in
the ``*.distcp`` files, each piece a small torch.save archive. The pickle is read as data; the tests compare with torch's own loader."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeGuard

import numpy as np
from numpy.typing import NDArray

from spectral_fast.checkpoints.byte_source import ByteSource, MemorySource
from spectral_fast.checkpoints.reader import ITEM_SIZES, Checkpoint, CheckpointError, Skipped, StorageKey, TensorInfo, contiguous_strides, shape_fits
from spectral_fast.checkpoints.sharded import plain_name
from spectral_fast.checkpoints.torch_files import open_torch_zip
from spectral_fast.checkpoints.torch_pickle import MAX_BYTES, Call, Global, PickleError, PickleStream, read_pickle
from spectral_fast.checkpoints.torch_tree import is_count, text_of
from spectral_fast.checkpoints.zip_records import read_zip_directory
from spectral_fast.linalg.arrays import RawArray

__all__ = ["METADATA", "DistributedCheckpoint"]

METADATA = ".metadata"
MAX_PIECES = 512  # of one tensor, and files: each holds a file descriptor
_MODULE = "torch.distributed.checkpoint."


class _Piece(NamedTuple):
    """A block of a tensor, and the bytes of its archive."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    position: int
    length: int


class _Broken(ValueError):
    """What .metadata says contradicts itself or the files."""


class DistributedCheckpoint(Checkpoint):
    """A directory with a ``.metadata`` file. Objects other than tensors are listed; pieces that are missing, overlap or leave their file break it."""

    format = "torch-distributed"

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self._sources: dict[str, ByteSource] = {}
        self._pieces: dict[str, tuple[_Piece, ...]] = {}
        self._infos: dict[str, TensorInfo] = {}
        skipped: list[Skipped] = []
        try:
            state, most = self._metadata()
            places = _places(state)
            entries = _dict(state, "state_dict_metadata")
            if len(entries) > most:
                raise _Broken(f"{len(entries)} entries, too many for files of this size")
            for name, entry in entries.items():
                if not isinstance(name, str) or text_of(name) != name:
                    raise _Broken("a name that is no text")
                found = self._tensor(name, entry, places)
                if isinstance(found, str):
                    skipped.append(Skipped(name, found))
                else:
                    self._infos[name] = found
        except _Broken as error:
            self.close()
            _bad(directory, str(error))
        except BaseException:
            self.close()
            raise
        self.tensors = tuple(self._infos.values())
        self.skipped = tuple(skipped)

    def _metadata(self) -> tuple[dict[Any, Any], int]:
        """What is pickled, and how many entries it may list."""
        source = ByteSource(self.path / METADATA)
        try:
            if source.size > MAX_BYTES:
                raise _Broken(f"{METADATA} has {source.size} bytes, at most {MAX_BYTES} are read")
            raw = source.read(0, source.size).tobytes()
        finally:
            source.close()
        total = sum(p.stat().st_size for p in self.path.glob("*.distcp") if p.is_file())
        stream = PickleStream(io.BytesIO(raw), len(raw), len(raw) + total)
        try:
            root = read_pickle(stream, lambda found: None)
        except PickleError as error:
            raise _Broken(f"{METADATA}: {error}") from error
        if not _is(root, "metadata.Metadata") or not isinstance(root.state, dict):
            raise _Broken(f"{METADATA} holds no Metadata of {_MODULE[:-1]}")
        return root.state, stream.entries

    def _tensor(self, name: str, entry: Any, places: dict[tuple[str, tuple[int, ...]], Any]) -> TensorInfo | str:
        if not _is(entry, "metadata.TensorStorageMetadata"):
            return "a pickled object, no tensor: not read"
        state = entry.state if isinstance(entry.state, dict) else {}
        properties, shape, chunks = state.get("properties"), _counts(state.get("size")), state.get("chunks")
        fields = properties.state if isinstance(properties, Call) else None
        kind = fields[0] if isinstance(fields, tuple) and fields else fields.get("dtype") if isinstance(fields, dict) else None
        dtype = kind.name if isinstance(kind, Global) and kind.module == "torch" else ""
        if dtype not in ITEM_SIZES:
            return f"dtype {dtype or 'unknown'}: not decoded"
        if shape is None or not shape_fits(shape, ITEM_SIZES[dtype]) or not isinstance(chunks, list):
            raise _Broken(f"tensor {name!r}: no size and chunks, or a size of 2**63 bytes or more")
        if len(chunks) > MAX_PIECES:
            return f"in {len(chunks)} pieces, at most {MAX_PIECES} are read"
        pieces = [self._piece(name, c, places) for c in chunks]
        if any(isinstance(p, str) for p in pieces):
            return next(p for p in pieces if isinstance(p, str))
        kept = tuple(p for p in pieces if isinstance(p, _Piece))
        if sum(p.length for p in kept) > sum(self._sources[file].size for file in {p.file for p in kept}):
            raise _Broken(f"tensor {name!r}: its pieces have more bytes than their files")
        _check_cover(name, shape, kept, ITEM_SIZES[dtype])
        self._pieces[name] = kept
        count = math.prod(shape)
        return TensorInfo(name, shape, dtype, count * ITEM_SIZES[dtype], StorageKey(METADATA, name, 0, dtype, shape, contiguous_strides(shape)))

    def _piece(self, name: str, chunk: Any, places: dict[tuple[str, tuple[int, ...]], Any]) -> _Piece | str:
        state = chunk.state if isinstance(chunk, Call) and isinstance(chunk.state, dict) else {}
        offsets, sizes = _counts(state.get("offsets")), _counts(state.get("sizes"))
        if offsets is None or sizes is None:
            raise _Broken(f"tensor {name!r}: a piece without offsets and sizes")
        place = places.get((name, offsets))
        if not isinstance(place, dict):
            raise _Broken(f"tensor {name!r}: nothing is stored for the piece at {list(offsets)}")
        if place.get("transform_descriptors"):
            return "stored through a transformation: not read"
        file, position, length = place.get("relative_path"), place.get("offset"), place.get("length")
        if not plain_name(file):
            raise _Broken(f"tensor {name!r} is in {repr(file) if isinstance(file, str) else type(file).__name__}, wanted a plain file name")
        if file not in self._sources:
            if len(self._sources) >= MAX_PIECES:
                raise _Broken(f"more than {MAX_PIECES} files")
            self._sources[file] = ByteSource(self.path / file)
        size = self._sources[file].size
        if not is_count(position) or not is_count(length):
            raise _Broken(f"tensor {name!r}: a piece without position and length")
        if position + length > size:
            raise _Broken(f"tensor {name!r}: bytes {position} to {position} + {length} of {file}, which has {size}")
        return _Piece(offsets, sizes, file, position, length)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path / METADATA, *(source.path for source in self._sources.values()))

    def read(self, name: str) -> NDArray[Any] | RawArray:
        info = self._infos[name]
        raw = info.dtype == "bfloat16" or info.dtype.startswith("float8")
        out = np.empty(info.shape, f"u{ITEM_SIZES[info.dtype]}" if raw else info.dtype)
        for piece in self._pieces[name]:
            block = self._block(info, piece)
            out[tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.sizes, strict=True))] = block.bits if isinstance(block, RawArray) else block
        return RawArray(out, info.dtype) if raw else out

    def _block(self, info: TensorInfo, piece: _Piece) -> NDArray[Any] | RawArray:
        source = MemorySource(self.path / piece.file, self._sources[piece.file].read(piece.position, piece.length))
        archive = open_torch_zip(source, read_zip_directory(source))
        found = archive.tensors[0] if len(archive.tensors) == 1 else None
        if found is None or found.dtype != info.dtype or found.shape != piece.sizes:
            _bad(self.path, f"tensor {info.name!r}: the piece at {list(piece.offsets)} is no {info.dtype} of shape {list(piece.sizes)}")
        return archive.read(found.name)

    def close(self) -> None:
        for source in self._sources.values():
            source.close()


def _places(state: dict[Any, Any]) -> dict[tuple[str, tuple[int, ...]], Any]:
    """(name, offsets of the piece) -> what says where it lies."""
    out: dict[tuple[str, tuple[int, ...]], Any] = {}
    for key, value in _dict(state, "storage_data").items():
        index = key.state if _is(key, "metadata.MetadataIndex") and isinstance(key.state, dict) else None
        if index is None or not isinstance(value, Call) or not isinstance(index.get("fqn"), str):
            raise _Broken("storage_data maps something else than indices to places")
        offsets = _counts(index.get("offset"))
        if offsets is not None:
            out[index["fqn"], offsets] = value.state
    return out


def _check_cover(name: str, shape: tuple[int, ...], pieces: tuple[_Piece, ...], item_size: int) -> None:
    """The pieces have to be inside the tensor, apart from each other, as many elements as it has, and no more than their bytes."""
    for p in pieces:
        if len(p.offsets) != len(shape) or len(p.sizes) != len(shape) or any(o + n > d for o, n, d in zip(p.offsets, p.sizes, shape, strict=True)):
            raise _Broken(f"tensor {name!r} of shape {list(shape)}: the piece at {list(p.offsets)} of {list(p.sizes)} leaves it")
        if math.prod(p.sizes) * item_size > p.length:
            raise _Broken(f"tensor {name!r}: {p.length} bytes hold no piece of shape {list(p.sizes)}")
    if sum(math.prod(p.sizes) for p in pieces) != math.prod(shape):
        raise _Broken(f"tensor {name!r} of shape {list(shape)}: its pieces have more or fewer elements")
    filled = [p for p in pieces if math.prod(p.sizes)]
    if len(filled) < 2:
        return
    begins = np.array([p.offsets for p in filled], dtype=np.int64)  # (pieces, dimensions); all inside of shape, so that nothing overflows
    ends = begins + np.array([p.sizes for p in filled], dtype=np.int64)
    common = np.ones((len(filled), len(filled)), dtype=bool)
    for k in range(len(shape)):  # two blocks overlap where they do in every dimension
        common &= (begins[:, None, k] < ends[None, :, k]) & (begins[None, :, k] < ends[:, None, k])
    np.fill_diagonal(common, False)
    if common.any():
        i, j = (int(n) for n in np.argwhere(common)[0])
        raise _Broken(f"tensor {name!r}: the pieces at {list(filled[i].offsets)} and {list(filled[j].offsets)} overlap")


def _is(value: Any, what: str) -> TypeGuard[Call]:
    return isinstance(value, Call) and isinstance(value.what, Global) and str(value.what) == _MODULE + what


def _dict(state: dict[Any, Any], key: str) -> dict[Any, Any]:
    found = state.get(key)
    if not isinstance(found, dict):
        raise _Broken(f"{METADATA} has no {key}")
    return found


def _counts(values: Any) -> tuple[int, ...] | None:
    return tuple(values) if isinstance(values, list | tuple) and len(values) <= 32 and all(is_count(v) for v in values) else None


def _bad(path: Path, what: str) -> NoReturn:
    raise CheckpointError(f"{path}: not a readable distributed checkpoint: {what[:600]}")
