"""What a survey keeps: the smallest singular value of every matrix of many checkpoints, and how many matrices lost rank under every rule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..metrics.rank import RULES
from ..results import Result, Skipped, Status

__all__ = ["ASPECTS", "ASPECT_SPLIT", "CollapseShare", "Survey", "SurveyedMatrix", "SurveyedModel", "collapse_shares", "wilson"]

ASPECT_SPLIT = 1.1  # Martin (2018): only for Q above it does random matrix theory expect s_min > 0
ASPECTS = (f"Q < {ASPECT_SPLIT}", f"Q >= {ASPECT_SPLIT}")
_Z95 = 1.959963984540054  # 0.975 quantile of the normal distribution


@dataclass(frozen=True)
class SurveyedMatrix:
    """One matrix of a survey.

    model: name of its checkpoint. kind: as of a scan (linear, conv, embedding, rnn, stack, unknown role), but every matrix with a part in attention is of
    kind "attention". s_min, s_max: smallest and largest singular value. bound: of their errors; noise: what rounding to the stored format put in
    (metrics.rank.storage_noise). exactly_singular: so many rows or columns are zeros that s_min is 0 for certain, and given as 0. unresolved: not that, but
    at or below ``floor``: then all that is known is 0 <= s_min <= floor.
    ranks: under every rule of metrics.rank.
    """

    model: str
    name: str
    kind: str
    role: str
    shape: tuple[int, int]
    dtype: str
    effective_precision: int
    s_min: float
    s_max: float
    bound: float
    noise: float
    exactly_singular: bool
    unresolved: bool
    ranks: dict[str, int]

    @property
    def q(self) -> float:
        """Aspect ratio d_max / d_min, at least 1."""
        return max(self.shape) / min(self.shape)

    @property
    def aspect(self) -> str:
        """Its class of aspect ratios, one of :data:`ASPECTS`."""
        return ASPECTS[self.q >= ASPECT_SPLIT]

    @property
    def floor(self) -> float:
        """What no singular value of this matrix can be told from: the larger of noise and bound."""
        return max(self.noise, self.bound)

    def collapsed(self, rule: str) -> bool:
        """Whether its rank under this rule is less than d_min."""
        return self.ranks[rule] < min(self.shape)


@dataclass(frozen=True)
class SurveyedModel:
    """One checkpoint of a survey.

    status: "ok", or "incomplete" where the survey was interrupted in it. parameters: entries of its matrices. matrices: those that count.
    apart: matrices that do not, and why: products and factors of LoRA, not finite, not all values computed; tensors that could not be read.
    not_matrices: reason -> how many tensors hold no weight matrix for it.
    """

    name: str
    path: str
    status: Status
    reason: str
    parameters: int
    matrices: tuple[SurveyedMatrix, ...]
    apart: tuple[Skipped, ...] = ()
    not_matrices: dict[str, int] = field(default_factory=dict)

    @property
    def s_min(self) -> NDArray[np.float64]:
        """(matrices,) float64; of unresolved ones a number below their ``floor``."""
        return np.array([m.s_min for m in self.matrices], dtype=np.float64)


@dataclass(frozen=True)
class CollapseShare:
    """How many matrices of a group lost rank (rank < d_min).

    by: "all", "aspect", "kind" or "model"; name: which one. unresolved, exactly_singular: as of the matrices. collapsed, share: rule -> number, and part
    of ``matrices``; low, high: 95 % interval of the share (Wilson 1927), as of independent matrices. NaN for an empty group.
    """

    by: str
    name: str
    matrices: int
    unresolved: int
    exactly_singular: int
    collapsed: dict[str, int]
    share: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Survey(Result):
    """The smallest singular values of many checkpoints (Martin 2018, "Rank Collapse in Deep Learning").

    models: a checkpoint each. shares: of collapsed matrices: all, then per aspect ratio, kind and model. skipped: checkpoints that were not surveyed, and
    why. notes: what to know before counting, such as checkpoints that hold the same matrices. store: directory of the scans' stores.
    """

    models: tuple[SurveyedModel, ...]
    shares: tuple[CollapseShare, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    layers: tuple[str, ...] | None = None
    store: str = ""
    seconds: float = 0.0

    @property
    def matrices(self) -> tuple[SurveyedMatrix, ...]:
        """Those of all models, in order."""
        return tuple(m for model in self.models for m in model.matrices)

    def share(self, by: str = "all", name: str = "all") -> CollapseShare:
        """One of ``shares``; KeyError lists what there is."""
        for s in self.shares:
            if (s.by, s.name) == (by, name):
                return s
        raise KeyError(f"{by}, {name}: no such group; there are {', '.join(f'{s.by}: {s.name}' for s in self.shares)}")


def collapse_shares(matrices: Sequence[SurveyedMatrix], models: Iterable[str]) -> tuple[CollapseShare, ...]:
    """Shares of all matrices, by aspect ratio (both classes always), kind (largest group first) and model."""
    kinds: dict[str, list[SurveyedMatrix]] = {}
    by_model: dict[str, list[SurveyedMatrix]] = {name: [] for name in models}
    for m in matrices:
        kinds.setdefault(m.kind, []).append(m)
        by_model[m.model].append(m)
    groups = [("all", "all", list(matrices))]
    groups += [("aspect", a, [m for m in matrices if m.aspect == a]) for a in ASPECTS]
    groups += [("kind", kind, found) for kind, found in sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))]
    groups += [("model", name, found) for name, found in by_model.items()]
    return tuple(_share(by, name, found) for by, name, found in groups)


def _share(by: str, name: str, matrices: list[SurveyedMatrix]) -> CollapseShare:
    n = len(matrices)
    collapsed = {rule: sum(m.collapsed(rule) for m in matrices) for rule in RULES}
    intervals = {rule: wilson(k, n) for rule, k in collapsed.items()}
    return CollapseShare(
        by=by,
        name=name,
        matrices=n,
        unresolved=sum(m.unresolved for m in matrices),
        exactly_singular=sum(m.exactly_singular for m in matrices),
        collapsed=collapsed,
        share={rule: k / n if n else math.nan for rule, k in collapsed.items()},
        low={rule: low for rule, (low, _) in intervals.items()},
        high={rule: high for rule, (_, high) in intervals.items()},
    )


def wilson(k: int, n: int) -> tuple[float, float]:
    """95 % interval of a share of k in n (Wilson 1927): (p + z²/2n ± z sqrt(p (1-p)/n + z²/4n²)) / (1 + z²/n). NaN for n = 0."""
    if n == 0:
        return math.nan, math.nan
    p, z2 = k / n, _Z95 * _Z95 / n
    centre, half = (p + z2 / 2) / (1 + z2), _Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n)) / (1 + z2)
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)
