"""Singular values of weights: the one place of this package that calls the kernels, many matrices of one shape at a time.

Everything else here gets its values, and how exact they are, from these functions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.select import BACKENDS, select, why_not
from ..linalg.arrays import RawArray, as_float64, as_tensor, is_torch
from ..linalg.lowrank import randomized_svd
from ..linalg.svd import svd_bound, svdvals
from ..metrics.rank import rank_tolerances, undecided
from .upload import Upload

if TYPE_CHECKING:
    from ..metrics.random_matrix import PermutationNull
    from ..metrics.rank import StorageNoise
    from .structure import MatrixPlan

__all__ = [
    "BATCH_BYTES",
    "OUT_OF_MEMORY",
    "Key",
    "Leading",
    "Matrix",
    "Pending",
    "ShapeBatches",
    "SingularValues",
    "batch_is_full",
    "core_values",
    "usable_device",
]

# Matrices of one shape are computed together up to this size and this many flops: a fraction of a second, so that progress is seen and
# an interruption loses little.
BATCH_BYTES = 64 << 20
BATCH_FLOPS = 1e10
THERE_BYTES, THERE_FLOPS = 2 << 30, 1e13  # the same on a device, which is busy only with many matrices

OUT_OF_MEMORY = "not enough memory"  # how the reason of a matrix begins that memory did not suffice for

F64 = NDArray[np.float64]
Matrix = NDArray[Any] | RawArray
Key = tuple[tuple[int, int], bool]  # shape, and whether the matrices are bits


@dataclass
class Pending:
    """A matrix on its way: what its entries told, and its values once they are there.

    s: (d_min,) descending, None until computed or where ``why`` says that they cannot be; bound: of every value's error. redone: a second time, with
    "high" accuracy, because "standard" left a rank or s_min open. frobenius: where s holds only the leading values, and backend: who found these.
    """

    plan: MatrixPlan
    noise: StorageNoise
    s: F64 | None = None
    why: str = ""
    bound: float = float("nan")
    permutation: PermutationNull | None = None
    zero_rows: int = 0
    zero_columns: int = 0
    redone: bool = False
    frobenius: float | None = None
    backend: str = ""


def usable_device(device: object) -> str:
    """The name of a device on which singular values can be computed; None: the CPU. torch is loaded for others.

    Raises ValueError naming ``device`` where it is not one, or cannot be used here."""
    if device is None or str(device) == "cpu":
        return "cpu"
    if str(device).partition(":")[0] not in BACKENDS:
        raise ValueError(f"device: got {device!r}; known: {', '.join(BACKENDS)}")
    reason = why_not("torch")
    if reason:
        raise ValueError(f"device: {device!r} cannot be used: {reason}")
    torch = sys.modules["torch"]
    try:
        return str(torch.zeros(1, device=torch.device(device)).device)
    except (RuntimeError, AssertionError) as e:  # torch asserts that it has been built for CUDA
        raise ValueError(f"device: {device!r} cannot be used: {str(e).splitlines()[0]}") from e


def batch_is_full(entries: int, shorter: int, there: bool = False) -> bool:
    """Whether matrices of so many entries together, their shorter sides so long, are worth a call. there: on a device."""
    most, flops = (THERE_BYTES, THERE_FLOPS) if there else (BATCH_BYTES, BATCH_FLOPS)
    return entries * 8 > most or entries * 4.0 * shorter > flops


class Leading:
    """The leading ``top`` values alone of matrices of more than ``above`` entries; none: no matrix is that large.

    columns: of the test matrix. passes: over a matrix. upload: to where they are computed, None: here.
    """

    # more passes than randomized_svd's default: values are wanted here, not subspaces, and hardly any time is spent on them
    passes, _oversample = 8, 16

    def __init__(self, top: int | None, above: int, backend: str, seed: int, upload: Upload | None = None) -> None:
        self._top, self._above, self._backend, self._seed = top, above, backend, seed
        self._upload = upload
        self.columns = 0 if top is None else top + self._oversample

    def wanted(self, shape: tuple[int, int]) -> bool:
        """Whether of a matrix of this shape."""
        return self._top is not None and shape[0] * shape[1] > self._above and min(shape) > self._top

    def compute(self, pending: Pending, w: Matrix) -> None:
        """Fill in what is found of ``w`` (m, n): values from below, each within ``bound`` of the true one (Weyl), and the Frobenius norm."""
        try:
            with nullcontext() if self._upload is None else _errors_of_torch():
                a = self._upload([w])[0] if self._upload is not None else w
                r = randomized_svd(a, self._top, oversample=self._oversample, n_iter=self.passes, seed=self._seed, backend=self._backend)
        except MemoryError:
            pending.why = f"{OUT_OF_MEMORY} for its leading singular values"
            return
        s = as_float64(r.s)
        if s[0] == 0.0:  # then all are known
            pending.s, pending.bound = np.zeros(min(pending.plan.shape)), 0.0
            return
        pending.s, pending.bound, pending.backend = s, float(r.error), r.backend
        pending.frobenius = float(s[0] * np.hypot(np.linalg.norm(s / s[0]), pending.bound / s[0]))


class SingularValues:
    """The kernel of one backend. backend: its name; exact: it keeps "high" accuracy whatever is asked; reads_bits: it takes bfloat16 as it is stored."""

    def __init__(self, backend: str = "auto", device: str = "cpu") -> None:
        self._kernel, self.backend = select("singular_values", backend, device)
        self.device = device
        self.exact = self.backend == "numpy"
        self.reads_bits = self.backend != "numpy"
        self.upload = None if device == "cpu" else Upload(device)

    def stack(self, arrays: Sequence[Matrix]) -> Any:
        """Matrices of one shape and format, (m, n) each, as one stack for the kernel: where it computes, on a device as they are stored."""
        if self.upload is not None:
            with _errors_of_torch():
                return self.upload(arrays)
        plain = [w.bits if isinstance(w, RawArray) else w for w in arrays]
        return np.stack(plain) if len(plain) > 1 else plain[0][None]

    def __call__(self, stack: Any, accuracy: str = "high", *, bits: bool = False) -> tuple[F64, F64]:
        """(b, m, n), an array or what ``stack`` made -> values (b, d_min), descending, and the bound of every value's error, alike. NaN where a matrix is
        not finite.

        bits: an array of bfloat16 as uint16, where ``reads_bits``.
        """
        if self.device != "cpu":
            with _errors_of_torch():
                there = stack if is_torch(stack) else as_tensor(RawArray(stack, "bfloat16") if bits else stack).to(self.device)
                s = np.asarray(self._kernel(there, accuracy=accuracy).cpu().numpy(), dtype=np.float64)
        else:
            s = self._kernel(stack, accuracy=accuracy, bits="bfloat16") if bits else self._kernel(stack, accuracy=accuracy)
        return s, svd_bound(s, "high" if self.exact else accuracy)


@contextmanager
def _errors_of_torch() -> Iterator[None]:
    """A device without memory and a decomposition that does not converge, in the words of numpy."""
    torch = sys.modules["torch"]
    try:
        yield
    except torch.OutOfMemoryError as e:
        raise MemoryError(str(e)) from e
    except torch.linalg.LinAlgError as e:
        raise np.linalg.LinAlgError(str(e)) from e


def core_values(a: Any) -> F64:
    """Values (..., d_min) of small matrices (..., m, n), such as the cores of products of factors, as exact as can be had."""
    return np.asarray(svdvals(a, accuracy="high"), dtype=np.float64)


class ShapeBatches:
    """Matrices that wait for others of their shape."""

    def __init__(self, values: SingularValues) -> None:
        self._values = values
        self._waiting: dict[Key, tuple[list[Pending], list[Matrix]]] = {}

    def add(self, pending: Pending, w: Matrix) -> Key | None:
        """Let ``w`` (m, n), an array or bfloat16 bits, wait. Returns the key of its batch where that is now worth a call."""
        shape = pending.plan.shape
        key = (shape, isinstance(w, RawArray))
        group, arrays = self._waiting.setdefault(key, ([], []))
        group.append(pending)
        arrays.append(w)
        return key if batch_is_full(len(arrays) * shape[0] * shape[1], min(shape), self._values.upload is not None) else None

    def names(self) -> set[str]:
        """Of the matrices that wait."""
        return {p.plan.name for pending, _ in self._waiting.values() for p in pending}

    def keys(self) -> list[Key]:
        """Of the batches that still wait."""
        return list(self._waiting)

    def compute(self, key: Key) -> tuple[list[Pending], list[Matrix]]:
        """Fill in the values of all that wait in this batch; returns them with their matrices, and forgets them."""
        pending, arrays = self._waiting.pop(key)
        self._compute(pending, arrays)
        return pending, arrays

    def _compute(self, pending: list[Pending], arrays: list[Matrix]) -> None:
        """The spectra of one batch; where that fails, of its matrices one by one, so that a bad one costs only itself."""
        bits = isinstance(arrays[0], RawArray)
        why = ""
        try:
            stack = self._values.stack(arrays)
            values, bounds = self._values(stack, "standard", bits=bits)
            again = [] if self._values.exact else [i for i, p in enumerate(pending) if _undecided(p, values[i], bounds[i])]
            if again:
                values[again], bounds[again] = self._values(stack[again] if len(again) < len(stack) else stack, "high", bits=bits)
        except (MemoryError, np.linalg.LinAlgError) as e:
            why = f"{OUT_OF_MEMORY} for its singular values" if isinstance(e, MemoryError) else f"no singular values: {e}"
        if why:  # out of the exception, which holds on to what the batch took
            stack = None
            if len(pending) > 1:
                for p, w in zip(pending, arrays, strict=True):
                    self._compute([p], [w])
            else:
                pending[0].why = why
            return
        for i, p in enumerate(pending):
            if not np.isfinite(values[i]).all() or not np.isfinite(bounds[i]).all():
                p.why = "its singular values are beyond the range of float64"
                continue
            p.s, p.bound, p.redone = values[i], float(bounds[i].max(initial=0.0)), i in again


def _undecided(p: Pending, s: F64, bound: F64) -> bool:
    """Whether "standard" accuracy leaves something open that "high" can decide: a rank (weightwatcher's rule too), or s_min."""
    shape = p.plan.shape
    rules = rank_tolerances(s, shape, p.plan.entry.dtype, storage_tol=p.noise.tolerance)
    return undecided(s, bound, (*rules.values(), rank_tolerances(s, shape, "float64")["numpy"]), p.noise.tolerance)
