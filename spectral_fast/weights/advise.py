"""``advise``: from the exact spectra, what each matrix can do without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..linalg.arrays import FORMATS
from ..results import Result, Skipped
from .spectra import MatrixSpectrum, WeightSpectra

__all__ = ["Advice", "LowRank", "MatrixAdvice", "advise"]

ERRORS = (0.01, 0.05, 0.10)
# Narrowest first. The 8-bit formats and float16 have a short range of exponents: they need a scale per matrix.
_FORMATS = ("float8_e5m2", "float8_e4m3fn", "bfloat16", "float16", "float32", "float64")
_PRODUCTS = ("lora",)  # kinds of matrices that no tensor holds


@dataclass(frozen=True)
class LowRank:
    """A matrix of rank ``rank`` in place of W (m, n), for a wanted relative Frobenius error ``wanted``.

    error: sqrt(sum_{i > rank} s_i² / sum s_i²), the smallest any matrix of this rank has (Eckart & Young 1936). parameters: rank (m + n) for the two
    factors where that is less than m n, else m n. saved: share of the parameters that go away, 0 where factors would be no smaller.
    """

    wanted: float
    rank: int
    error: float
    parameters: int
    saved: float


@dataclass(frozen=True)
class MatrixAdvice:
    """What one matrix can do without.

    low_rank: one per wanted error. bits: significand bits (the implicit one included) until the bulk drowns, i.e. the fewest with which the
    rounding error stays below the median significant singular value; bits_all: below the smallest significant one, so that no direction is lost
    (0 for a zero matrix, -1 where unknown). format: the narrowest common format with that many bits (of ``bits``), never wider than the stored one.
    spikes: singular values above the edge of a random matrix (-1: no bulk to compare with). lora_rank, lora_from: rank proposed for an adapter,
    and where it comes from.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    dtype: str
    status: str
    reason: str
    low_rank: tuple[LowRank, ...]
    bits: int
    bits_all: int
    format: str
    spikes: int
    lora_rank: int
    lora_from: str

    @property
    def parameters(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Advice(Result):
    """What the matrices of a model can do without; sizes in megabytes (10^6 bytes), of the matrices alone (products that no tensor holds left out).

    errors: the wanted relative Frobenius errors. megabytes: as stored. megabytes_low_rank: one per error, in the stored formats.
    megabytes_formats: every matrix in its narrowest format.
    """

    source: str
    errors: tuple[float, ...]
    matrices: tuple[MatrixAdvice, ...]
    megabytes: float
    megabytes_low_rank: tuple[float, ...]
    megabytes_formats: float
    skipped: tuple[Skipped, ...] = ()


def advise(spectra: WeightSpectra, *, errors: Sequence[float] = ERRORS) -> Advice:
    """Per matrix: the rank for a given error, the bits it needs, a rank for an adapter, what may be pruned; and totals.

    spectra: of ``scan`` or ``diagnose``. errors: relative Frobenius errors ||W - W_k||_F / ||W||_F, ascending, each in (0, 1).

    Rank: the smallest k whose truncation error sqrt(sum_{i > k} s_i²)/||W||_F is at most the wanted one (Eckart & Young 1936).

    Bits: rounding to p bits of significand puts an error of norm at most tol(p) into W, tol the storage tolerance of ``metrics.rank.storage_noise``.
    Each entry's unit in the last place, and with it tol, halves with every further bit: tol(p) = tol(p_0) 2^(p_0 - p), p_0 the bits in use now
    (subnormal numbers aside). By Weyl every singular value moves by at most tol(p), so one above it is still told from rounding. The fewest
    bits with tol(p) < s are floor(p_0 + log2(tol(p_0)/s)) + 1, never more than p_0 for a significant s. ``bits`` takes the median of the significant values
    (half of the directions stay readable: fewer bits and the bulk drowns), ``bits_all`` the smallest.

    Adapter (LoRA): directions that training made stand out of the bulk are those above the edge of a random matrix with the same bulk
    (Marchenko & Pastur 1967; Johnstone & Ma 2012); as many are proposed, but no more than the stable rank, rounded up: in a heavy
    tail, which has no edge, half of the values stand out. Where none does: the stable rank.

    Raises TypeError for another class, ValueError for errors outside (0, 1) or not ascending.
    """
    if not isinstance(spectra, WeightSpectra):
        raise TypeError(f"spectra: got {type(spectra).__name__}; wanted the WeightSpectra that scan or diagnose returns")
    wanted = tuple(float(e) for e in errors)
    if not wanted or not all(0 < e < 1 for e in wanted) or list(wanted) != sorted(set(wanted)):
        raise ValueError(f"errors: got {tuple(errors)}; wanted ascending numbers between 0 and 1")
    rows = tuple(_matrix(m, wanted) for m in spectra.matrices)
    held = [r for r in rows if r.kind not in _PRODUCTS]
    stored = [r.parameters * _bytes(r.dtype) for r in held]
    low = tuple(sum(r.low_rank[i].parameters * _bytes(r.dtype) if r.low_rank else b for r, b in zip(held, stored, strict=True)) for i in range(len(wanted)))
    return Advice(
        status=spectra.status,
        reason=spectra.reason,
        backend="numpy",
        source=spectra.source,
        errors=wanted,
        matrices=rows,
        megabytes=sum(stored) / 1e6,
        megabytes_low_rank=tuple(total / 1e6 for total in low),
        megabytes_formats=sum(r.parameters * _bytes(r.format) for r in held) / 1e6,
        skipped=spectra.skipped,
    )


def _bytes(dtype: str) -> float:
    return FORMATS[dtype].bits / 8


def _matrix(m: MatrixSpectrum, errors: tuple[float, ...]) -> MatrixAdvice:
    zero = m.reason == "zero matrix"
    if m.status != "ok" and not zero:
        return MatrixAdvice(m.name, m.kind, m.shape, m.dtype, m.status, m.reason, (), -1, -1, m.dtype, -1, -1, "")
    tails = _tails(m.s)
    spikes = m.mp.n_spikes if m.mp.status == "ok" else -1
    stable = 0 if zero else math.ceil(m.metrics["stable_rank"])
    lora, origin = (spikes, "above the edge") if 0 < spikes < stable else (stable, "stable rank")
    significant = m.s[m.s > m.rank_tolerances["storage"]]
    bits = _bits(m, float(np.median(significant))) if significant.size else 0
    return MatrixAdvice(
        name=m.name,
        kind=m.kind,
        shape=m.shape,
        dtype=m.dtype,
        status=m.status,
        reason=m.reason,
        low_rank=tuple(_low_rank(m.shape, tails, e) for e in errors),
        bits=bits,
        bits_all=_bits(m, float(significant[-1])) if significant.size else 0,
        format=_format(bits, m.dtype),
        spikes=spikes,
        lora_rank=lora,
        lora_from=origin,
    )


def _tails(s: NDArray[np.float64]) -> NDArray[np.float64]:
    """(d_min + 1,) relative error of every truncation: entry k is sqrt(sum_{i > k} s_i²)/||s||. Summed from the small end, so that small tails keep
    their digits; divided by s_1 first, so that squares neither overflow nor vanish. All 0 for a zero matrix."""
    if s[0] == 0.0:
        return np.zeros(s.size + 1)
    squares = np.square(s / s[0])
    sums = np.concatenate([np.cumsum(squares[::-1])[::-1], [0.0]])
    return np.asarray(np.sqrt(sums / sums[0]))


def _low_rank(shape: tuple[int, int], tails: NDArray[np.float64], wanted: float) -> LowRank:
    m, n = shape
    rank = int(np.argmax(tails <= wanted))  # tails descend to 0, so there is one
    factors = rank * (m + n)
    parameters = min(factors, m * n)
    return LowRank(wanted, rank, float(tails[rank]), parameters, 1.0 - parameters / (m * n))


def _bits(m: MatrixSpectrum, s: float) -> int:
    """Fewest bits of significand whose rounding error stays below ``s``."""
    if not m.storage_noise > 0:
        return m.effective_precision
    return max(1, math.floor(m.effective_precision + math.log2(m.storage_noise / s)) + 1)


def _format(bits: int, stored: str) -> str:
    """The narrowest format of at least ``bits`` bits of significand that is not wider than the stored one."""
    for name in _FORMATS:
        if FORMATS[name].precision >= bits and FORMATS[name].bits < FORMATS[stored].bits:
            return name
    return stored
