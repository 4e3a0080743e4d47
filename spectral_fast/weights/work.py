"""Work units: tensors that are read together because their matrices are worth one call of a kernel, and what a unit costs.

Everything is known from names and shapes, before a byte of a tensor is read: the order of the work, its operations, its memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..kernels import native_kernels
from ..linalg.arrays import FORMATS
from ..linalg.svd import svd_workspace
from ..memory import byte_size
from ..results import Skipped
from .batches import BATCH_BYTES, Leading, batch_is_full
from .sources import TensorEntry
from .structure import MatrixPlan

__all__ = ["Costs", "Work", "WorkUnit", "work_units"]

_BESIDE = 16 << 20  # bytes for readers, directories of files and what the interpreter loads
_RESULT = 48  # bytes kept per singular value: the value, and what the fits make of it at the end
_BATCH_SHARE = 16  # several matrices together take at most this part of the memory
_IN_PLACE = {"float16": 2, "float32": 4, "float64": 8}  # bytes of an entry as the kernels read it
_DECODED = 4


@dataclass(frozen=True)
class WorkUnit:
    """Whole tensors whose matrices are computed together.

    plans: of all their matrices, those of one tensor side by side. nbytes: of the tensors in the file. flops: of the singular values. memory: the most
    that is held at a time from reading on, in bytes.
    """

    plans: tuple[MatrixPlan, ...]
    nbytes: int
    flops: float
    memory: int


class Work(NamedTuple):
    """All that is to be done. fixed: bytes that are held whatever unit is computed. memory: the least that does all of it. too_large: tensors that need
    more than there is."""

    units: list[WorkUnit]
    fixed: int
    memory: int
    too_large: list[Skipped]

    @property
    def flops(self) -> float:
        return sum(u.flops for u in self.units)

    @property
    def nbytes(self) -> int:
        """Of all tensors in the file."""
        return sum(u.nbytes for u in self.units)


class Costs:
    """What tensors and matrices cost with one way of computing.

    reads_bits: bfloat16 is computed from as it is stored. extra: float64 copies of a tensor's entries that are made beside the spectra (slices, shuffles).
    """

    def __init__(self, backend: str, reads_bits: bool, leading: Leading, extra: int = 0) -> None:
        self._backend, self._reads_bits, self._leading, self._extra = backend, reads_bits, leading, extra
        self._threads = 1 if native_kernels.why_not else native_kernels.threads()
        self.there = backend in ("cuda", "torch")  # the work is done on a device, in its own memory

    def held(self, entry: TensorEntry) -> int:
        """Bytes of a tensor's entries as they are computed from."""
        width = 2 if entry.dtype == "bfloat16" and self._reads_bits else _IN_PLACE.get(entry.dtype, _DECODED)
        coded = entry.nbytes is not None and entry.dtype == "float32" and entry.nbytes < math.prod(entry.shape) * width
        if coded:  # there are steps too, and their squares
            return math.prod(entry.shape) * (width + 1) + (entry.nbytes or 0)
        there = entry.nbytes is None and width == FORMATS[entry.dtype].bits // 8
        return 0 if there else math.prod(entry.shape) * width

    def reading(self, entry: TensorEntry) -> int:
        """Bytes that reading takes for a moment beside those."""
        decoded = entry.nbytes is not None and self.held(entry) != entry.nbytes
        return entry.extra + (entry.nbytes or 0) * decoded

    def flops(self, plan: MatrixPlan) -> float:
        """m n^2 for the Gram matrix and 4/3 n^3 for its condensed form (n the shorter side): what a spectrum costs at least; of the ``top`` leading
        values two products with the test matrix per pass; of a LoRA product the QR factors of both."""
        m, n = max(plan.shape), min(plan.shape)
        if plan.lora is not None:
            r = plan.lora.rank
            return 2.0 * r * r * (m + n) + 4.0 / 3.0 * r**3
        if self._leading.wanted(plan.shape):
            return 4.0 * m * n * self._leading.columns * (self._leading.passes / 2 + 1)
        return m * float(n) ** 2 + 4.0 / 3.0 * float(n) ** 3

    def memory(self, held: _Held) -> int:
        """The most that tensors which are held together, and what is made of them, take at a time."""
        if held.lora:
            return held.nbytes + 6 * 8 * held.entries
        computing = 0
        for shape, each in held.shapes.items():
            count = max(1, min(each * held.tensors, BATCH_BYTES // (8 * shape[0] * shape[1]) + 1))  # in one call
            if self.there:
                computing = max(computing, 16 * each * held.tensors * min(shape))
            elif self._leading.wanted(shape):
                computing = max(computing, 8 * sum(shape) * self._leading.columns * (self._leading.passes + 2))
            else:
                width = _IN_PLACE.get(held.dtype, _DECODED)
                stacks = 2 * count * shape[0] * shape[1] * width if count > 1 else 0  # one with all, another of those that are computed again
                work = max(svd_workspace((count, *shape), accuracy, backend=self._backend, threads=self._threads) for accuracy in ("standard", "high"))
                computing = max(computing, stacks + work)
        computing += max(m * n for m, n in held.shapes) // 32  # sums of rows and columns by tile, for the rounding noise
        computing += self._extra * 8 * held.largest
        return held.nbytes + computing + held.reading if held.in_memory else held.nbytes + max(computing, held.reading)


@dataclass
class _Held:
    """Tensors that are alike: each holds matrices of these shapes, so many of each. nbytes: as they are computed from; reading: the most that reading
    one takes beside (of those in memory: a copy, which stays while it is computed); entries: of all; largest: of one."""

    shapes: dict[tuple[int, int], int]
    dtype: str
    lora: bool
    in_memory: bool
    tensors: int = 0
    nbytes: int = 0
    reading: int = 0
    entries: int = 0
    largest: int = 0

    def with_more(self, other: _Held) -> _Held:
        sums = (self.tensors + other.tensors, self.nbytes + other.nbytes, max(self.reading, other.reading))
        return _Held(self.shapes, self.dtype, self.lora, self.in_memory, *sums, self.entries + other.entries, max(self.largest, other.largest))


@dataclass
class _Group:
    place: int
    plans: list[MatrixPlan]
    held: _Held


def work_units(plans: Sequence[MatrixPlan], costs: Costs, limit: int) -> Work:
    """Units in the order of their first tensors, none of which needs more than ``limit`` bytes.

    Tensors are together when they hold matrices of the same shapes in the same format, until that is worth a call.
    """
    fixed = _BESIDE + _RESULT * sum(min(p.shape) for p in plans)
    tensors: dict[object, list[MatrixPlan]] = {}
    for p in plans:
        tensors.setdefault((id(p.entry), p.lora is None), []).append(p)
    groups: dict[object, _Group] = {}
    closed: list[_Group] = []
    too_large: list[Skipped] = []
    most = fixed
    for place, together in enumerate(tensors.values()):
        first = together[0]
        one = _held(together, costs)
        need = fixed + costs.memory(one)
        most = max(most, need)
        if need > limit:
            too_large.append(Skipped(first.entry.name, f"needs {byte_size(need)} of memory, max_memory is {byte_size(limit)}", first.entry.shape))
            continue
        kind = (first.entry.dtype, first.lora is None, tuple(p.shape for p in together))
        group = groups.get(kind)
        if group is not None and fixed + costs.memory(group.held.with_more(one)) > limit:
            closed.append(group)
            group = None
        if group is None:
            group = groups[kind] = _Group(place, together, one)
        else:
            group.plans += together
            group.held = group.held.with_more(one)
        full = batch_is_full(group.held.entries, max(map(min, one.shapes)), costs.there) or costs.memory(group.held) * _BATCH_SHARE > limit
        if full or first.lora is not None:
            closed.append(groups.pop(kind))
    done = sorted([*closed, *groups.values()], key=lambda g: g.place)
    return Work([_unit(g, costs) for g in done], fixed, most, too_large)


def _held(plans: list[MatrixPlan], costs: Costs) -> _Held:
    """One tensor's matrices, or the factors of one LoRA product."""
    shapes: dict[tuple[int, int], int] = {}
    for p in plans:
        shapes[p.shape] = shapes.get(p.shape, 0) + 1
    entries = _tensors(plans)
    sizes = [math.prod(e.shape) for e in entries]
    held = sum(map(costs.held, entries))
    what = (shapes, plans[0].entry.dtype, plans[0].lora is not None, plans[0].entry.nbytes is None)
    return _Held(*what, 1, held, max(map(costs.reading, entries)), sum(sizes), max(sizes))


def _unit(group: _Group, costs: Costs) -> WorkUnit:
    nbytes = sum(e.nbytes or 0 for e in _tensors(group.plans))
    return WorkUnit(tuple(group.plans), nbytes, sum(map(costs.flops, group.plans)), costs.memory(group.held))


def _tensors(plans: Sequence[MatrixPlan]) -> list[TensorEntry]:
    """Every tensor of these plans once; the factors of a LoRA product."""
    found = {id(e): e for p in plans for e in ([p.entry] if p.lora is None else [p.lora.a, p.lora.b])}
    return list(found.values())


assert all(FORMATS[name].bits == 8 * width for name, width in _IN_PLACE.items())
