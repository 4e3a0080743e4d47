"""Matrices of the host on their way to a device: through page-locked buffers, so that one is filled while another travels."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..linalg.arrays import RawArray, as_tensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BUFFERS", "BUFFER_BYTES", "Upload", "own_stream"]

BUFFERS, BUFFER_BYTES = 2, 8 << 20  # of each thread


@contextmanager
def own_stream(device: str) -> Iterator[None]:
    """A stream of the calling thread's own, where the device has such: what it launches runs beside what others do."""
    if not device.startswith("cuda"):
        yield
        return
    torch = sys.modules["torch"]
    stream = torch.cuda.Stream(torch.device(device))
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


class _Buffer:
    """Bytes of the host; ``wait`` until what was sent last has gone."""

    def __init__(self, cuda: bool) -> None:
        torch = sys.modules["torch"]
        self.bytes: Tensor = torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=cuda)
        self.there: NDArray[np.uint8] = self.bytes.numpy()
        self._gone = torch.cuda.Event() if cuda else None

    def wait(self) -> None:
        if self._gone is not None:
            self._gone.synchronize()

    def send(self, into: Tensor, nbytes: int) -> None:
        into.copy_(self.bytes[:nbytes], non_blocking=self._gone is not None)
        if self._gone is not None:
            self._gone.record()


class Upload:
    """Puts matrices together on a device. Every thread has buffers of its own, BUFFERS x BUFFER_BYTES, from its first matrix on."""

    def __init__(self, device: str) -> None:
        self._device, self._own = device, threading.local()

    def _buffers(self) -> list[_Buffer]:
        if not hasattr(self._own, "buffers"):
            self._own.buffers = [_Buffer(self._device.startswith("cuda")) for _ in range(BUFFERS)]
        made: list[_Buffer] = self._own.buffers
        return made

    def __call__(self, arrays: Sequence[NDArray[Any] | RawArray]) -> Tensor:
        """Matrices of one shape and format, (m, n) each with any strides -> (len(arrays), m, n) on the device, as they are stored."""
        torch = sys.modules["torch"]
        first = arrays[0]
        m, n = first.shape
        plain = [w.bits if isinstance(w, RawArray) else w for w in arrays]
        row, kind = n * plain[0].itemsize, as_tensor(RawArray(first.bits[:0], first.dtype) if isinstance(first, RawArray) else first[:0]).dtype
        out: Tensor = torch.empty((len(arrays), m, n), dtype=kind, device=self._device)
        if row > BUFFER_BYTES:
            for w, to in zip(arrays, out, strict=True):
                to.copy_(as_tensor(w))
            return out
        flat = out.view(torch.uint8).reshape(-1) if out.numel() else out
        buffers, current, used, sent = self._buffers(), 0, 0, 0
        for w in plain:
            at = 0
            while at < m and row:
                rows = min(m - at, (BUFFER_BYTES - used) // row)
                if rows == 0:
                    buffers[current].send(flat[sent : sent + used], used)
                    sent, used, current = sent + used, 0, (current + 1) % BUFFERS
                    buffers[current].wait()
                    continue
                into = buffers[current].there[used : used + rows * row].view(plain[0].dtype).reshape(rows, n)
                np.copyto(into, w[at : at + rows])
                at, used = at + rows, used + rows * row
        if used:
            buffers[current].send(flat[sent : sent + used], used)
        for buffer in buffers:
            buffer.wait()
        return out
