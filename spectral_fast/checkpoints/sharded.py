"""Checkpoints split over several files with an index: *.safetensors.index.json, *.bin.index.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from numpy.typing import NDArray

from spectral_fast.checkpoints.byte_source import ByteSource
from spectral_fast.checkpoints.reader import Checkpoint, CheckpointError, Skipped, TensorInfo
from spectral_fast.checkpoints.safetensors import MAX_STRUCTURE
from spectral_fast.linalg.arrays import CodedArray, RawArray

__all__ = ["MAX_INDEX", "ShardedCheckpoint", "plain_name", "shard_names"]

MAX_INDEX = 50_000_000  # bytes; a tensor takes about 100
MAX_SHARDS = 512  # each holds a file descriptor


class ShardedCheckpoint(Checkpoint):
    """The shards named by an index, in the index's order of first mention, as one checkpoint.

    The index maps tensor names to plain file names in its own directory; the shards' own headers decide shapes and dtypes.
    A tensor in the index but in no shard is an error; one in a shard but not in the index is listed in ``skipped``.
    """

    def __init__(self, index: Path, open_file: Callable[[Path], Checkpoint]) -> None:
        self.path = index
        weight_map = _read_index(index)
        self._shards: dict[str, Checkpoint] = {}
        try:
            for file in dict.fromkeys(weight_map.values()):
                self._shards[file] = open_file(index.parent / file)
            self._collect(weight_map)
        except BaseException:
            self.close()
            raise

    def _collect(self, weight_map: dict[str, str]) -> None:
        tensors: list[TensorInfo] = []
        skipped: list[Skipped] = []
        found: set[str] = set()
        for file, shard in self._shards.items():
            for info in shard.tensors:
                if weight_map.get(info.name) == file:
                    tensors.append(info)
                    found.add(info.name)
                else:
                    skipped.append(Skipped(info.name, f"in {file}, where the index does not list it"))
            skipped += shard.skipped
            found |= {s.name for s in shard.skipped}
        missing = [name for name in weight_map if name not in found]
        if missing:
            _bad(self.path, f"{len(missing)} tensors are not in their shard, e.g. {missing[0]!r} in {weight_map[missing[0]]!r}")
        self.format = "sharded " + ", ".join(sorted({s.format for s in self._shards.values()}))
        self.tensors = tuple(tensors)
        self.skipped = tuple(skipped)
        self._shard_of = {t.name: weight_map[t.name] for t in tensors}

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path, *(file for shard in self._shards.values() for file in shard.files))

    def read(self, name: str) -> NDArray[Any] | RawArray | CodedArray:
        return self._shards[self._shard_of[name]].read(name)

    def close(self) -> None:
        for shard in self._shards.values():
            shard.close()


def plain_name(file: Any) -> TypeGuard[str]:
    """Whether ``file`` names something in the directory at hand, and cannot reach out of it."""
    return isinstance(file, str) and len(file) < 256 and file not in ("", ".", "..") and not any(c in "/\\\0:" or "\ud800" <= c <= "\udfff" for c in file)


def shard_names(path: Path) -> set[str]:
    """The plain file names an index names. Raises CheckpointError."""
    return set(_read_index(path).values())


def _read_index(path: Path) -> dict[str, str]:
    source = ByteSource(path)
    try:
        if source.size > MAX_INDEX:
            _bad(path, f"{source.size} bytes, at most {MAX_INDEX} are read")
        raw = source.read(0, source.size).tobytes()
    finally:
        source.close()
    # as in safetensors' header: what makes objects is counted before they are made. A tensor needs one of these signs.
    structure = sum(raw.count(c) for c in b"{[,")
    if structure > MAX_STRUCTURE:
        _bad(path, f"{structure} JSON elements, at most {MAX_STRUCTURE} are read")
    try:
        index = json.loads(raw.decode("utf-8"))
    except (RecursionError, ValueError) as error:
        _bad(path, f"not valid JSON: {error}")
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        _bad(path, "has no weight_map object")
    for name, file in weight_map.items():
        # A plain name only: an index must not reach out of its directory. What the name resolves to may be a symlink (hub caches).
        if not plain_name(file):
            _bad(path, f"tensor {name!r} is in {file!r}, wanted a plain file name")
    if len(set(weight_map.values())) > MAX_SHARDS:
        _bad(path, f"more than {MAX_SHARDS} shards")
    return weight_map


def _bad(path: Path, what: str) -> NoReturn:
    raise CheckpointError(f"{path}: not a valid checkpoint index: {what[:600]}")
