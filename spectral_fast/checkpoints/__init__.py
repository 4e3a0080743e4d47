"""Readers of checkpoint files: ``open_checkpoint(path)`` gives names, shapes, dtypes, and the bytes of one tensor on demand.

    with open_checkpoint("model.safetensors") as checkpoint:
        for info in checkpoint.tensors:
            array = checkpoint.read(info.name)

Formats: safetensors (safetensors.py), torch.save's zip and legacy files and TorchScript archives (torch_files.py), GGUF (gguf.py), numpy's
.npz and .npy (numpy_files.py), torch.distributed.checkpoint's directories (torch_distributed.py), diffusers' pipelines (folders.py),
.tar.gz archives (tar_archives.py), and several of these with an index (sharded.py). The format is found from the content, not from the
suffix. A new format is one more entry in ``_open_source``.
"""

from __future__ import annotations

import os
from pathlib import Path

from spectral_fast.checkpoints.byte_source import ByteSource
from spectral_fast.checkpoints.folders import PIPELINE, FoldersCheckpoint
from spectral_fast.checkpoints.gguf import MAGIC as GGUF_MAGIC
from spectral_fast.checkpoints.gguf import GgufCheckpoint
from spectral_fast.checkpoints.numpy_files import NPY_MAGIC, open_npy, open_npz
from spectral_fast.checkpoints.reader import ITEM_SIZES, Checkpoint, CheckpointError, Skipped, StorageKey, TensorInfo
from spectral_fast.checkpoints.safetensors import MAX_HEADER, SafetensorsCheckpoint
from spectral_fast.checkpoints.sharded import ShardedCheckpoint
from spectral_fast.checkpoints.tar_archives import GZIP_MAGIC, open_tar_gz
from spectral_fast.checkpoints.torch_distributed import METADATA, DistributedCheckpoint
from spectral_fast.checkpoints.torch_files import LEGACY_MAGIC, open_torch_legacy, open_torch_zip
from spectral_fast.checkpoints.zip_records import read_zip_directory

__all__ = ["ITEM_SIZES", "Checkpoint", "CheckpointError", "Skipped", "StorageKey", "TensorInfo", "open_checkpoint"]

_KNOWN = (
    "known: safetensors, files of torch.save (.pt, .pth, .bin; zip and legacy), TorchScript archives, GGUF, .npz, .npy, .tar.gz archives of one of these, "
    "and directories with one of these, an index or a torch.distributed.checkpoint"
)

_NOT_YET = {
    b"\x89HDF": "HDF5 (Keras): not read yet",
    b"BZh": "bzip2: unpack it first",
    b"\xfd7zX": "xz: unpack it first",
    b"version https://git-lfs": "a git-lfs pointer: the weights themselves are not here (git lfs pull)",
}

# The names under which trainers save the model itself, best first; what lies beside them (optimizer, arguments, copies) is not opened.
_MAIN = (
    "model.safetensors.index.json",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "consolidated.safetensors",
    "adapter_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "adapter_model.bin",
)
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz", ".npy", ".gguf")


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint file, a directory that holds exactly one or one under a usual name (model.safetensors and the like; the others
    are listed), a directory (or its *.index.json) with an index of shards, one of torch.distributed.checkpoint, or a pipeline of folders (diffusers).

    Raises CheckpointError (a ValueError) naming the path, what was found and what is known; no other error for any content.
    """
    if not os.fspath(path):
        raise CheckpointError(f"path: got an empty string; wanted a file or directory; {_KNOWN}")
    given = Path(path)
    if not os.path.exists(given):  # False, not an error, for names no file can have
        raise CheckpointError(f"{given}: no such file or directory")
    if given.is_dir():
        return _open_directory(given)
    return _open_any_file(given)


def _open_any_file(path: Path) -> Checkpoint:
    return ShardedCheckpoint(path, _open_file) if path.name.endswith(".index.json") else _open_file(path)


def _open_directory(directory: Path) -> Checkpoint:
    try:
        names = sorted(p.name for p in directory.iterdir() if p.is_file())
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be listed: {error.strerror or error}") from error
    if METADATA in names:
        return DistributedCheckpoint(directory)
    if PIPELINE in names:
        return FoldersCheckpoint(directory, _open_part, _SUFFIXES)
    indexes = [n for n in names if n.endswith(".index.json")]
    files = indexes or [n for n in names if n.endswith(_SUFFIXES)]
    main = files[:1] if len(files) == 1 else [n for n in _MAIN if n in files][:1]
    if main:
        checkpoint = _open_any_file(directory / main[0])
        beside = [Skipped(n, f"a file beside {main[0]}, which holds the model") for n in names if n.endswith(_SUFFIXES) and n != main[0]]
        if not main[0].endswith(".index.json"):
            checkpoint.skipped = (*checkpoint.skipped, *beside)
        return checkpoint
    if files:
        raise CheckpointError(f"{directory}: holds {len(files)} checkpoints ({', '.join(files[:4])}{', ...' if len(files) > 4 else ''}): name one of them")
    raise CheckpointError(f"{directory}: no checkpoint among its {len(names)} files; {_KNOWN}")


def _open_part(directory: Path) -> Checkpoint:
    """A folder of a pipeline, which is none itself."""
    if (directory / PIPELINE).exists():
        raise CheckpointError(f"{directory}: a pipeline inside of a pipeline")
    return _open_directory(directory)


def _open_file(path: Path) -> Checkpoint:
    source = ByteSource(path)
    try:
        return _open_source(source)
    except BaseException:
        source.close()
        raise


def _open_packed(source: ByteSource) -> Checkpoint:
    if source.read(0, min(2, source.size)).tobytes() == GZIP_MAGIC:
        raise CheckpointError(f"{source.path}: an archive inside of an archive")
    return _open_source(source)


def _open_source(source: ByteSource) -> Checkpoint:
    path = source.path
    if source.size == 0:
        raise CheckpointError(f"{path}: the file is empty; {_KNOWN}")
    head = source.read(0, min(64, source.size)).tobytes()
    if head.startswith(b"PK\x03\x04"):
        records = read_zip_directory(source)
        pickled = any(name.endswith("data.pkl") for name in records)
        return open_npz(source, records) if not pickled and any(n.endswith(".npy") for n in records) else open_torch_zip(source, records)
    if head.startswith(GZIP_MAGIC):
        return open_tar_gz(source, _open_packed, (*_SUFFIXES, ".th"))
    if head.startswith(GGUF_MAGIC):
        return GgufCheckpoint(source)
    if head.startswith(NPY_MAGIC):
        return open_npy(source)
    if head.startswith(b"\x80") and LEGACY_MAGIC in head[:32]:
        return open_torch_legacy(source)
    if path.name.endswith(".safetensors") or (head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER):
        return SafetensorsCheckpoint(source)
    for magic, what in _NOT_YET.items():
        if head.startswith(magic):
            raise CheckpointError(f"{path}: {what}; {_KNOWN}")
    if head.startswith(b"\x80"):
        raise CheckpointError(f"{path}: a pickle that torch.save did not write: refused, it could run code; {_KNOWN}")
    raise CheckpointError(f"{path}: unknown format (begins with {head[:8]!r}); {_KNOWN}")
