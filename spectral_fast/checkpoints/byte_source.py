"""Positioned reads from a regular file, checked against its size."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from spectral_fast.checkpoints.reader import CheckpointError

__all__ = ["ByteSource", "MemorySource"]


class ByteSource:
    """An open regular file of a known size. Reads never move a shared position, so threads may read at the same time.

    Plain reads instead of a memory map: a mapped file that is truncated by another process kills the reader with SIGBUS.
    """

    _close = staticmethod(os.close)  # a file that is closed while the interpreter ends finds no module any more

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        try:
            # The type is asked before opening: opening a named pipe would wait for its writer.
            regular = stat.S_ISREG(os.stat(path).st_mode)
            if regular:
                self._fd = os.open(path, os.O_RDONLY)
        except (OSError, ValueError) as error:  # ValueError: a NUL or a lone surrogate in the name
            raise CheckpointError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error
        if not regular:
            raise CheckpointError(f"{path}: not a regular file")
        self.size = os.fstat(self._fd).st_size

    def read(self, offset: int, count: int) -> NDArray[np.uint8]:
        """``count`` bytes from ``offset`` on, as a new writable array. The range has to lie inside the file."""
        if self._fd < 0:
            raise CheckpointError(f"{self.path}: read after close")
        if offset < 0 or count < 0 or offset + count > self.size:
            raise CheckpointError(f"{self.path}: bytes {offset} to {offset + count} asked for, the file has {self.size}")
        data = np.empty(count, dtype=np.uint8)
        target = data.data
        done = 0
        while done < count:
            try:
                got = os.preadv(self._fd, [target[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"{self.path}: read of {count} bytes at {offset} failed: {error.strerror or error}") from error
            if got == 0:
                raise CheckpointError(f"{self.path}: ends at byte {offset + done}, had {self.size} bytes when it was opened; has it been overwritten?")
            done += got
        return data

    def stream(self) -> BinaryIO:
        """A second, sequential handle on the same open file, at position 0. Not for use by several threads at once."""
        if self._fd < 0:
            raise CheckpointError(f"{self.path}: read after close")
        handle = os.fdopen(os.dup(self._fd), "rb")
        handle.seek(0)
        return handle

    def close(self) -> None:
        if self._fd >= 0:
            self._close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


class MemorySource(ByteSource):
    """Bytes that were read already, as a file of their own. path: what messages name."""

    def __init__(self, path: Path, data: NDArray[np.uint8]) -> None:
        self.path = path
        self.size = len(data)
        self._data = data
        self._fd = -1

    def read(self, offset: int, count: int) -> NDArray[np.uint8]:
        if offset < 0 or count < 0 or offset + count > self.size:
            raise CheckpointError(f"{self.path}: bytes {offset} to {offset + count} asked for, there are {self.size}")
        part: NDArray[np.uint8] = self._data[offset : offset + count].copy()
        return part

    def stream(self) -> BinaryIO:
        return io.BytesIO(self._data.tobytes())
