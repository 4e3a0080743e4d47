"""A run of eigsh in files, so that a killed one goes on: a small file with its numbers, and the basis beside it, mapped into memory.

A row of the basis is written before the numbers speak of it and never changed afterwards: a restart writes the new rows into a file of their own, and the old
one goes when the numbers have been replaced. What a kill leaves is always one state of the run (a power cut may lose more: nothing is forced to the disk).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .krylov import Krylov
from .products import Apply
from .restart import Budget

__all__ = ["SavedRun"]

FORMAT = 1
_BASES = "basis"
_NUMBERS: dict[str, type] = {
    **dict.fromkeys(("generation", "t", "products", "stream", "used"), int),
    **dict.fromkeys(("scale", "defect", "factor"), float),
    "settled": bool,
}


class SavedRun:
    """``kry``: the run's basis, as it was left or empty; ``save(kry)``: keep what it has become; ``settled``: was it finished?

    identity: what has to agree for two calls to be the same run. Raises ValueError naming ``checkpoint`` where the file is of another run or no such file.
    """

    def __init__(
        self, path: Any, identity: dict[str, Any], apply: Budget | Apply, n: int, capacity: int, *, seed: int, dtype: str, spare: int, backend: str
    ) -> None:
        self.path = Path(path)
        self.identity = json.dumps({"format": FORMAT, **identity}, sort_keys=True)
        self.settled = False
        self._generation = 0
        self._next_save = 0.0
        known = self._read() if self.path.exists() else None
        if known is not None:
            self._generation = known["generation"]
        else:
            self._remove_others("")
        self._keep = known is not None
        self.kry = Krylov(apply, n, capacity, seed=seed, stream=spare, dtype=dtype, spare=spare, rows=self._rows, backend=backend)
        if known is not None:
            self._restore(known, apply)

    def _name(self) -> Path:
        return self.path.with_name(f"{self.path.name}.{_BASES}{self._generation}")

    def _rows(self, shape: tuple[int, int], stored: str) -> NDArray[Any]:
        """Memory for a basis, in a file; the first of a run that goes on is the one it left."""
        if self._keep:
            self._keep = False
            size = self._name().stat().st_size if self._name().exists() else -1
            row = shape[1] * np.dtype(stored).itemsize
            if size <= 0 or size % row:
                raise ValueError(f"checkpoint: {self._name().name!r}, the basis of {self.path.name!r}, is missing or cut")
            return np.memmap(self._name(), dtype=stored, mode="r+", shape=(size // row, shape[1]))
        self._generation += 1
        return np.memmap(self._name(), dtype=stored, mode="w+", shape=shape)

    def _read(self) -> dict[str, Any]:
        try:
            with open(self.path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                known = {name: arrays[name] for name in arrays.files}
            identity = str(known["identity"])
        except Exception as why:  # there is no end of what a strange file makes numpy and zipfile raise
            raise ValueError(f"checkpoint: {str(self.path)!r} is not a run of eigsh ({type(why).__name__}: {why})") from None
        if identity != self.identity:
            raise ValueError(f"checkpoint: {str(self.path)!r} is of another run: {identity}; wanted {self.identity}; name another file, or delete that one")
        try:
            numbers = {name: kind(known[name].item()) for name, kind in _NUMBERS.items()}
            lists = {name: [int(j) for j in known[name]] for name in ("order", "pending", "chain")}
            shared = np.asarray(known["T"], dtype=np.float64)
        except (KeyError, TypeError, ValueError) as why:
            raise self._contradiction(repr(why)) from None
        if not np.isfinite(shared).all() or not np.isfinite([float(x) for x in numbers.values()]).all() or min(numbers.values()) < 0:
            raise self._contradiction("numbers that are not finite or negative")
        return {**numbers, **lists, "T": shared}

    def _contradiction(self, why: str) -> ValueError:
        return ValueError(f"checkpoint: {str(self.path)!r} contradicts itself ({why})")

    def _restore(self, known: dict[str, Any], apply: Budget | Apply) -> None:
        kry = self.kry
        t, order, pending, chain = known["t"], known["order"], known["pending"], known["chain"]
        together = sorted(order + pending)
        if t > len(kry.rows) or known["T"].shape != (t, t) or together != list(range(t)) or not set(chain) <= set(together):
            raise self._contradiction(f"{t} rows, of {len(kry.rows)} there")
        kry.T = np.zeros((len(kry.rows), len(kry.rows)))
        kry.T[:t, :t] = known["T"]
        kry.t, kry.order, kry.pending, kry.chain = t, order, pending, chain
        kry.products, kry.stream, kry.scale, kry.defect = known["products"], known["stream"], known["scale"], known["defect"]
        self.settled = known["settled"]
        if isinstance(apply, Budget):
            apply.used, apply.factor = known["used"], known["factor"]

    def save(self, kry: Krylov, *, settled: bool = False) -> None:
        """Replace the numbers; seldom enough that it takes a twentieth of the time at most, and always where rows were dropped or moved: the next ones
        would be written over what the numbers still speak of."""
        start = time.perf_counter()
        if start < self._next_save and not settled and kry.rows is self._last and kry.t >= self._rows_kept:
            return
        self._rows_kept = kry.t
        self.settled = settled
        new = self.path.with_name(self.path.name + ".new")
        with open(new, "wb") as file:
            np.savez(
                file,
                identity=np.array(self.identity),
                generation=np.array(self._generation),
                t=np.array(kry.t),
                T=kry.T[: kry.t, : kry.t],
                order=np.array(kry.order, dtype=np.int64),
                pending=np.array(kry.pending, dtype=np.int64),
                chain=np.array(kry.chain, dtype=np.int64),
                products=np.array(kry.products),
                stream=np.array(kry.stream),
                scale=np.array(kry.scale),
                defect=np.array(kry.defect),
                used=np.array(kry.apply.used if isinstance(kry.apply, Budget) else kry.products),
                factor=np.array(kry.apply.factor if isinstance(kry.apply, Budget) else 1.0),
                settled=np.array(settled),
            )
        os.replace(new, self.path)
        if kry.rows is not self._last:
            self._last = kry.rows
            self._remove_others(self._name().name)
        now = time.perf_counter()
        self._next_save = now + 20.0 * (now - start)

    _last: Any = None
    _rows_kept = 0

    def _remove_others(self, keep: str) -> None:
        for old in self.path.parent.glob(f"{_escaped(self.path.name)}.{_BASES}*"):
            if old.name != keep and old.name[len(self.path.name) + 1 + len(_BASES) :].isdigit():
                old.unlink()


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "[]*?" else c for c in name)
