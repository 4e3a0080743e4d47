"""Pipelines of several networks: a directory whose model_index.json names a folder for each (diffusers)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from numpy.typing import NDArray

from spectral_fast.checkpoints.byte_source import ByteSource
from spectral_fast.checkpoints.reader import Checkpoint, CheckpointError, Skipped, TensorInfo
from spectral_fast.checkpoints.sharded import plain_name
from spectral_fast.linalg.arrays import CodedArray, RawArray

__all__ = ["PIPELINE", "FoldersCheckpoint"]

PIPELINE = "model_index.json"
MAX_INDEX = 1_000_000  # bytes
MAX_FOLDERS = 64


class FoldersCheckpoint(Checkpoint):
    """The checkpoints in the folders that model_index.json names, with the folder's name before each tensor's.

    Folders without a checkpoint (tokenizers, schedulers) are passed over; one whose checkpoint cannot be read is listed.
    """

    def __init__(self, directory: Path, open_directory: Callable[[Path], Checkpoint], suffixes: tuple[str, ...]) -> None:
        self.path = directory
        self._parts: dict[str, Checkpoint] = {}
        tensors: list[TensorInfo] = []
        skipped: list[Skipped] = []
        for folder in _folders(directory):
            try:
                if not any(p.name.endswith((*suffixes, ".index.json")) for p in (directory / folder).iterdir()):
                    continue
                part = open_directory(directory / folder)
            except (CheckpointError, OSError) as error:
                skipped.append(Skipped(folder, f"cannot be read: {error}"))
                continue
            self._parts[folder] = part
            tensors += [replace(t, name=f"{folder}.{t.name}", storage=t.storage._replace(file=f"{folder}/{t.storage.file}")) for t in part.tensors]
            skipped += [Skipped(f"{folder}.{s.name}", s.reason) for s in part.skipped]
        if not self._parts:
            _bad(directory, f"none of its folders holds a checkpoint{': ' + skipped[0].reason if skipped else ''}")
        self.format = "folders of " + ", ".join(sorted({p.format for p in self._parts.values()}))
        self.tensors, self.skipped = tuple(tensors), tuple(skipped)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path / PIPELINE, *(file for part in self._parts.values() for file in part.files))

    def read(self, name: str) -> NDArray[Any] | RawArray | CodedArray:
        folder, _, rest = name.partition(".")
        return self._parts[folder].read(rest)

    def close(self) -> None:
        for part in self._parts.values():
            part.close()


def _folders(directory: Path) -> list[str]:
    """The folders named by the index that are there, in its order."""
    source = ByteSource(directory / PIPELINE)
    try:
        if source.size > MAX_INDEX:
            _bad(directory, f"{PIPELINE} has {source.size} bytes, at most {MAX_INDEX} are read")
        found = json.loads(source.read(0, source.size).tobytes().decode("utf-8"))
    except (RecursionError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        _bad(directory, f"{PIPELINE} is not valid JSON: {error}")
    finally:
        source.close()
    if not isinstance(found, dict):
        _bad(directory, f"{PIPELINE} is no object")
    names = [name for name, value in found.items() if isinstance(value, list) and plain_name(name) and "." not in name and os.path.isdir(directory / name)]
    if len(names) > MAX_FOLDERS:
        _bad(directory, f"{PIPELINE} names {len(names)} folders, at most {MAX_FOLDERS} are read")
    return names


def _bad(path: Path, what: str) -> NoReturn:
    raise CheckpointError(f"{path}: not a readable pipeline: {what[:600]}")
