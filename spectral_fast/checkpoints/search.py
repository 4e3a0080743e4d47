"""All checkpoints below a directory, each once, whatever else lies there; nothing but directories and indexes is read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from spectral_fast.checkpoints import _MAIN, _SUFFIXES
from spectral_fast.checkpoints.folders import PIPELINE
from spectral_fast.checkpoints.reader import CheckpointError, Skipped
from spectral_fast.checkpoints.sharded import shard_names
from spectral_fast.checkpoints.torch_distributed import METADATA

__all__ = ["FoundCheckpoint", "checkpoint_names", "find_checkpoints"]

# What counts as a checkpoint by its name alone. A .npy is one array, and more often data than weights: it has to be named.
_SEARCHED = (*(s for s in _SUFFIXES if s != ".npy"), ".jit", ".th", ".tar.gz")
# Weights in formats that are not read: listed, so that nobody believes they were looked at.
_UNREAD = {
    ".h5": "HDF5 (Keras): not read yet",
    ".hdf5": "HDF5: not read yet",
    ".keras": "Keras: not read yet",
    ".onnx": "ONNX: not read yet",
    ".msgpack": "msgpack (Flax): not read yet",
    ".tflite": "TensorFlow Lite: not read yet",
    ".pdparams": "a pickle (Paddle): refused, it could run code",
}
_INDEX = ".index.json"
_SNAPSHOTS = "snapshots"

Key = tuple[int, int]


@dataclass(frozen=True)
class FoundCheckpoint:
    """A file or directory to open, and the files it is made of, as (device, number): the same under every name and link."""

    path: Path
    files: frozenset[Key]


def find_checkpoints(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[FoundCheckpoint], list[Skipped]]:
    """The checkpoints named by ``paths``, or below them, in their order, and what looks like one and is not taken.

    paths: files, each a checkpoint whatever its name, and directories. A directory with an index, a main file (model.safetensors and the like), a
    model_index.json or a torch.distributed.checkpoint is one checkpoint; further ones below it are listed (trainers keep earlier steps there). In any
    other directory every file with the suffix of a checkpoint is one, and the search goes on below, but not into hidden folders. Links are followed
    (hub caches are links); what is reached twice is taken once, a shard not beside its index.

    Raises CheckpointError for a path that does not exist.
    """
    found: list[FoundCheckpoint] = []
    skipped: list[Skipped] = []
    for given in paths:
        path = Path(given)
        if not os.fspath(given) or not os.path.exists(path):
            raise CheckpointError(f"{os.fspath(given) or 'an empty path'}: no such file or directory")
        if path.is_dir():
            for item in _search(path):
                (found if isinstance(item, FoundCheckpoint) else skipped).append(item)  # type: ignore[arg-type]
        else:
            found.append(FoundCheckpoint(path, _files_of(path)))
    kept, doubles = _once(found)
    taken = {os.path.abspath(c.path) for c in kept}
    return kept, [s for s in dict.fromkeys(skipped) if os.path.abspath(s.name) not in taken] + doubles


def _search(top: Path, above: frozenset[Key] = frozenset()) -> Iterator[FoundCheckpoint | Skipped]:
    """above: the directories this search was begun from, which links may lead back to."""
    visited = set(above)
    waiting = [top]
    while waiting:
        directory = waiting.pop()
        try:
            key = _key(directory)
            entries = sorted(directory.iterdir())
        except OSError as error:
            yield Skipped(str(directory), f"cannot be listed: {error.strerror or error}")
            continue
        if key in visited:
            continue
        visited.add(key)
        names = [p.name for p in entries if p.is_file()]
        yield from (Skipped(str(p), "a link to nothing") for p in entries if p.name.endswith((*_SEARCHED, _INDEX)) and not p.exists())
        if METADATA in names or PIPELINE in names:
            yield FoundCheckpoint(directory, _files_of(directory))
            continue
        below = [p for p in entries if p.is_dir() and not p.name.startswith(".")]
        main = _main_files(names)
        if main:
            yield from _whole(directory, main, names, below, frozenset(visited))
            continue
        for n in names:
            if n.endswith(_SEARCHED):
                yield FoundCheckpoint(directory / n, _files_of(directory / n))
            elif n.endswith(tuple(_UNREAD)):
                yield Skipped(str(directory / n), next(why for suffix, why in _UNREAD.items() if n.endswith(suffix)))
        waiting += reversed(below)


def _main_files(names: list[str]) -> list[str]:
    """The file, or the indexes, that make a directory a checkpoint itself."""
    indexes = [n for n in names if n.endswith(_INDEX)]
    return [n for n in _MAIN if n in (indexes or names)][:1] or indexes


def _whole(directory: Path, main: list[str], names: list[str], below: list[Path], above: frozenset[Key]) -> Iterator[FoundCheckpoint | Skipped]:
    """A directory that is a checkpoint, and what of others is in it."""
    yield from (FoundCheckpoint(directory / n, _files_of(directory / n)) for n in main)
    parts = {*main, *(shard for n in main for shard in _shards(directory / n))}
    for n in names:
        if n.endswith((*_SEARCHED, _INDEX, *_UNREAD)) and n not in parts:
            yield Skipped(str(directory / n), f"a file beside {main[0]}, which holds the model")
    for folder in below:
        for item in _search(folder, above):
            if isinstance(item, FoundCheckpoint):
                yield Skipped(str(item.path), f"below {directory}, which is a checkpoint itself: name it to have both")


def _shards(path: Path) -> set[str]:
    if not path.name.endswith(_INDEX):
        return set()
    try:
        return shard_names(path)
    except (CheckpointError, OSError):  # told when it is opened
        return set()


def _files_of(path: Path) -> frozenset[Key]:
    """The files that hold the weights of a checkpoint."""
    if path.is_dir():
        parts = [p for p in path.rglob("*") if p.name.endswith((*_SEARCHED, ".distcp"))]
    else:
        parts = [path.parent / name for name in _shards(path)]
    return frozenset(_key(p) for p in parts if p.is_file()) or frozenset([_key(path)])


def _key(path: Path) -> Key:
    about = os.stat(path)
    return about.st_dev, about.st_ino


def _once(found: list[FoundCheckpoint]) -> tuple[list[FoundCheckpoint], list[Skipped]]:
    kept: list[FoundCheckpoint] = []
    doubles: dict[Skipped, None] = {}
    holders: dict[Key, list[int]] = {}
    for i, c in enumerate(found):
        for key in c.files:
            holders.setdefault(key, []).append(i)
    for i, c in enumerate(found):
        others = (found[j] for j in holders[next(iter(c.files))] if c.files < found[j].files or (c.files == found[j].files and j < i))
        other = next(others, None)
        if other is None:
            kept.append(c)
        elif os.path.abspath(other.path) != os.path.abspath(c.path):
            doubles[Skipped(str(c.path), f"{'the same file as' if c.files == other.files else 'a part of'} {other.path}")] = None
    return kept, list(doubles)


def checkpoint_names(paths: Iterable[Path]) -> list[str]:
    """Short names for checkpoints, all different: the path from the directory that all are in, without file names that say nothing.

    A snapshot in a hub cache has the name of its repository, with its revision where there are several.
    """
    given = [Path(os.path.abspath(p)) for p in paths]
    short = [_telling_parts(p) for p in given]
    common = 0
    while all(len(parts) > common + 1 for parts, _ in short) and len({parts[common] for parts, _ in short}) == 1:
        common += 1
    if len(given) == 1:
        common = max(0, common - 1)  # a single file: with its directory
    names = ["/".join(parts[common:]) for parts, _ in short]
    for longer in ([f"{n}@{rev[:8]}" if rev else f"{n}/{p.name}" for n, p, (_, rev) in zip(names, given, short, strict=True)], [str(p) for p in given]):
        names = [long if names.count(n) > 1 else n for n, long in zip(names, longer, strict=True)]
    return names


def _telling_parts(path: Path) -> tuple[list[str], str]:
    parts = list(path.parts)
    revision = ""
    for i in range(len(parts) - 2):
        if parts[i].startswith("models--") and parts[i + 1] == _SNAPSHOTS:
            revision = parts[i + 2]
            parts[i : i + 3] = parts[i].removeprefix("models--").split("--")
            break
    if len(parts) > 2 and parts[-1] in _MAIN:
        parts.pop()
    return parts, revision
