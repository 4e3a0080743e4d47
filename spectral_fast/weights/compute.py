"""One work unit from its bytes to the values of its matrices: what every way of running a scan does, here, beside a reading thread or on another machine."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..linalg.arrays import CodedArray, RawArray, as_numpy, bfloat16_bits, dtype_name
from ..metrics.random_matrix import PermutationNull, permutation_null
from ..metrics.rank import StorageNoise
from ..results import Skipped
from .batches import OUT_OF_MEMORY, Key, Leading, Matrix, Pending, ShapeBatches, SingularValues, usable_device
from .measure import look_at, product_of
from .slices import cut_differently, slice_values
from .structure import MatrixPlan
from .upload import own_stream

__all__ = ["STAGES", "TOP_ABOVE", "Calculator", "Loaded", "Measured", "Options"]

TOP_ABOVE = 1 << 24
STAGES = ("read", "noise", "singular values", "slices", "permutation null")


@dataclass(frozen=True)
class Options:
    """What is computed of every matrix, and how; arguments as of ``scan``."""

    layers: tuple[str, ...] | None = None
    backend: str = "auto"
    slices: bool = False
    null: str | None = None
    seed: int = 0
    top: int | None = None
    top_above: int = TOP_ABOVE
    device: str = "cpu"


@dataclass
class Loaded:
    """The tensors of a unit in memory: each with its plans; ``lost``: those that could not be read. seconds: spent reading."""

    plans: tuple[MatrixPlan, ...]
    tensors: list[tuple[list[MatrixPlan], NDArray[Any] | RawArray, CodedArray | None]] = field(default_factory=list)
    lost: list[Skipped] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Measured:
    """What came of a unit.

    cuts: tensor name -> values of its slices. clock: seconds by stage. backend: of the singular values. failed: why all of it was lost with whatever
    computed it.
    """

    done: list[Pending] = field(default_factory=list)
    lost: list[Skipped] = field(default_factory=list)
    cuts: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    clock: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    backend: str = ""
    failed: str = ""


class Calculator:
    """Reads and measures units. values: the kernel of the singular values; leading: which matrices get only their leading ones."""

    def __init__(self, options: Options) -> None:
        self._options = options
        device = usable_device(options.device)
        self.values = SingularValues(options.backend, device)
        if device.startswith("cuda"):  # torch loads its linear algebra at the first call, which two threads must not make at once
            torch = sys.modules["torch"]
            torch.linalg.eigvalsh(torch.eye(2, dtype=torch.float64, device=device))
        self.leading = Leading(options.top, options.top_above, options.backend, options.seed, self.values.upload)

    @property
    def at_once(self) -> int:
        """Units that are worth measuring beside each other: on a device one travels while another is computed."""
        return 1 if self.values.upload is None else 2

    def read(self, plans: tuple[MatrixPlan, ...]) -> Loaded:
        """The tensors of these plans, in order; one that cannot be read costs only itself. May be called from another thread."""
        start = time.perf_counter()
        loaded = Loaded(plans)
        for group in _by_tensor(plans):
            entry = group[0].entry
            try:
                elements = entry.read()
                coded = elements if isinstance(elements, CodedArray) else None
                loaded.tensors.append((group, self._readable(elements), coded))
            except (ValueError, OSError) as e:
                loaded.lost.append(Skipped(entry.name, f"cannot be read: {e}", entry.shape))
            except MemoryError:
                loaded.lost.append(Skipped(entry.name, "cannot be read: not enough memory", entry.shape))
        loaded.seconds = time.perf_counter() - start
        return loaded

    def measure(self, loaded: Loaded) -> Measured:
        """All matrices of a unit; the tensors are let go of one by one. From any thread."""
        with own_stream(self.values.device):
            return self._measure(loaded)

    def _measure(self, loaded: Loaded) -> Measured:
        out = Measured(lost=list(loaded.lost), backend=self.values.backend)
        out.clock["read"] = loaded.seconds
        batches = ShapeBatches(self.values)
        for plan in loaded.plans:
            if plan.lora is not None:
                with _Timer(out.clock, "singular values"):
                    try:
                        out.done.append(product_of(plan, plan.lora))
                    except (ValueError, OSError) as e:
                        out.lost.append(Skipped(plan.name, f"cannot be read: {e}", plan.shape))
                    except MemoryError:
                        out.lost.append(Skipped(plan.name, "cannot be read: not enough memory", plan.shape))
        while loaded.tensors:
            plans, tensor, coded = loaded.tensors.pop(0)
            try:
                self._tensor(out, batches, plans, tensor, coded)
            except MemoryError:
                taken = {p.plan.name for p in out.done} | batches.names()
                out.done += [Pending(p, StorageNoise(math.nan, 0, p.entry.dtype), why=f"{OUT_OF_MEMORY} to look at it") for p in plans if p.name not in taken]
            del tensor, coded
        for key in batches.keys():
            self._flush(out, batches, key)
        return out

    def _tensor(self, out: Measured, batches: ShapeBatches, plans: list[MatrixPlan], tensor: NDArray[Any] | RawArray, coded: CodedArray | None) -> None:
        first = plans[0]
        if self._options.slices and cut_differently(first.kind, first.shape, first.entry.shape):
            with _Timer(out.clock, "slices"):
                out.cuts.update(dict.fromkeys((first.entry.name, *first.tied), slice_values(as_numpy(tensor), first.in_out, self.values)))
        for plan in plans:
            w = _matrix(tensor, plan)
            with _Timer(out.clock, "noise"):
                pending = look_at(plan, w, coded)
            if pending.why:
                out.done.append(pending)
            elif self.leading.wanted(plan.shape):
                with _Timer(out.clock, "singular values"):
                    self.leading.compute(pending, w)
                out.done.append(pending)
            else:
                full = batches.add(pending, w)
                if full:
                    self._flush(out, batches, full)

    def _flush(self, out: Measured, batches: ShapeBatches, key: Key) -> None:
        with _Timer(out.clock, "singular values"):
            pending, arrays = batches.compute(key)
        if self._options.null == "permutation":
            with _Timer(out.clock, "permutation null"):
                for p, w in zip(pending, arrays, strict=True):
                    p.permutation = self._null(w) if p.s is not None else None
        out.done += pending

    def _null(self, w: Matrix) -> PermutationNull:
        if self.values.upload is None:
            return permutation_null(w, seed=self._options.seed, backend=self._options.backend)
        return permutation_null(w, seed=self._options.seed, backend=self.values.backend, values=lambda stack: self.values(stack)[0])

    def _readable(self, elements: Any) -> NDArray[Any] | RawArray:
        """bfloat16 as its bits where the kernels read those, anything else as a numpy array."""
        if self.values.reads_bits and dtype_name(elements) == "bfloat16":
            return RawArray(bfloat16_bits(elements), "bfloat16")
        return as_numpy(elements)


def _by_tensor(plans: Sequence[MatrixPlan]) -> list[list[MatrixPlan]]:
    groups: dict[object, list[MatrixPlan]] = {}
    for p in plans:
        if p.lora is None:
            groups.setdefault(id(p.entry), []).append(p)
    return list(groups.values())


def _matrix(tensor: NDArray[Any] | RawArray, plan: MatrixPlan) -> Matrix:
    if isinstance(tensor, RawArray):
        return RawArray(tensor.bits.reshape(plan.view)[plan.part], tensor.dtype)
    w: NDArray[Any] = tensor.reshape(plan.view)[plan.part]
    return w


class _Timer:
    """Adds the seconds of a block to a stage."""

    def __init__(self, clock: dict[str, float], stage: str) -> None:
        self._clock, self._stage = clock, stage

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._clock[self._stage] += time.perf_counter() - self._start
