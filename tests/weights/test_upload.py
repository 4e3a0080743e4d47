"""Matrices on their way to a device: what arrives is what was sent, whatever the buffers' size, and no buffer is filled before it has gone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from spectral_fast.linalg.arrays import RawArray  # noqa: E402
from spectral_fast.weights import upload  # noqa: E402
from spectral_fast.weights.upload import Upload, own_stream  # noqa: E402


def _matrices(count: int, m: int, n: int, dtype: str, layout: str) -> list[Any]:
    rng = np.random.default_rng(count + m)
    made = []
    for _ in range(count):
        x = rng.integers(0, 250, (2 * m, 2 * n)).astype("uint16" if dtype == "bfloat16" else dtype)
        cut = {"plain": np.ascontiguousarray(x[:m, :n]), "strided": x[::2, ::2], "columns": np.asfortranarray(x[:m, :n]), "backwards": x[m:, n:][::-1, ::-1]}[
            layout
        ]
        cut.flags.writeable = False
        made.append(RawArray(cut, "bfloat16") if dtype == "bfloat16" else cut)
    return made


def _same(out: Any, arrays: list[Any]) -> bool:
    plain = np.stack([w.bits if isinstance(w, RawArray) else w for w in arrays])
    back = out.view(torch.int16).numpy().view(np.uint16) if out.dtype == torch.bfloat16 else out.numpy()
    return back.dtype == plain.dtype and np.array_equal(back, plain)


class Late:
    """A buffer whose bytes go only when they are waited for, as late as a device may take them."""

    def __init__(self, cuda: bool) -> None:
        self.there = np.zeros(upload.BUFFER_BYTES, dtype=np.uint8)
        self._under_way: list[tuple[Any, int]] = []

    def wait(self) -> None:
        for into, nbytes in self._under_way:
            into.copy_(torch.from_numpy(self.there[:nbytes]))
        self._under_way = []

    def send(self, into: Any, nbytes: int) -> None:
        assert not self._under_way and len(into) == nbytes
        self._under_way.append((into, nbytes))


@pytest.fixture(params=["at once", "late"])
def buffers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "late":
        monkeypatch.setattr(upload, "_Buffer", Late)
    yield


@pytest.mark.parametrize("layout", ["plain", "strided", "columns", "backwards"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("size", [39, 40, 64, 200, 1 << 20])
def test_what_arrives_is_what_was_sent(size: int, dtype: str, layout: str, buffers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "BUFFER_BYTES", size // 8 * 8 if size > 39 else size)
    send = Upload("cpu")
    for count, m, n in [(1, 7, 5), (4, 3, 5), (3, 11, 2), (2, 1, 1), (5, 6, 4), (2, 2, 60)]:
        arrays = _matrices(count, m, n, dtype, layout)
        assert _same(send(arrays), arrays), (count, m, n)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_matrices_without_entries(shape: tuple[int, int]) -> None:
    assert Upload("cpu")([np.zeros(shape), np.zeros(shape)]).shape == (2, *shape)


def test_every_thread_has_buffers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "BUFFER_BYTES", 160)
    send = Upload("cpu")
    wrong: list[int] = []

    def work(k: int) -> None:
        arrays = [np.full((30, 10), float(k)), np.arange(300.0).reshape(30, 10) * k]
        for _ in range(50):
            with own_stream("cpu"):
                if not _same(send(arrays), arrays):
                    wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []
