"""``Trajectory``: results of one model at several steps of its training, and what moves between them."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .results import Result

if TYPE_CHECKING:
    from .weights.spectra import MatrixSpectrum

__all__ = ["Move", "Point", "Trajectory", "scalars"]

# of every matrix; a checkpoint of thousands of them has four series each
_OF_A_MATRIX = ("spectral_norm", "stable_rank", "effective_rank")
_FIELDS: dict[str, tuple[str, ...]] = {
    "GradientSpectrum": ("trace", "noise_scale", "gradient_norm2", "effective_rank", "participation_ratio", "top_share", "loss"),
    "CurvatureSpectra": ("loss", "gradient_norm", "gradient_in_top"),
    "NeuralCollapse": ("nc1", "cdnv", "nc2_norms", "nc2_norms_classifier", "nc2_angles", "nc2_etf", "nc3", "nc4", "accuracy", "spread"),
    "EigenResult": (),
    "TraceResult": ("estimate",),
    "SpectralDensity": ("trace", "frobenius"),
}
_PARTS = {"weights": "WeightSpectra", "gradients": "GradientSpectrum", "curvature": "CurvatureSpectra", "collapse": "NeuralCollapse"}
_OF_A_KIND = {kind: part for part, kind in _PARTS.items()}


@dataclass(frozen=True)
class Point:
    """The numbers at one step: series name -> value."""

    step: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Move:
    """How a series went: first and last finite value, and trend, Spearman's rank correlation with the step (-1: it only falls; NaN for fewer than
    three points)."""

    name: str
    first: float
    last: float
    trend: float
    points: int

    @property
    def factor(self) -> float:
        """last / first; NaN where they differ in sign or one is zero."""
        return self.last / self.first if self.first * self.last > 0 else math.nan


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Trajectory(Result):
    """Results of one model by step.

    points: ascending in step; ``add`` puts one in. ``names`` are the series, ``moves()`` what became of them, ``plot(names=...)`` draws those that moved
    most. Only numbers are kept, not the results themselves.
    """

    points: list[Point] = field(default_factory=list)

    def add(self, step: float, result: Result) -> Trajectory:
        """Put in what ``result``, a Diagnosis or any of its parts, says at ``step``; more results of one step add to it. -> this trajectory.

        Raises TypeError for another class, ValueError for a step that is not a finite number.
        """
        if isinstance(step, bool) or not isinstance(step, (int, float, np.number)) or not math.isfinite(step):
            raise ValueError(f"step: wanted a finite number, got {step!r}")
        values = scalars(result)
        at = next((i for i, p in enumerate(self.points) if p.step >= step), len(self.points))
        if at < len(self.points) and self.points[at].step == step:
            self.points[at] = Point(float(step), {**self.points[at].values, **values})
        else:
            self.points.insert(at, Point(float(step), values))
        return self

    def __len__(self) -> int:
        return len(self.points)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all series, in the order they came."""
        return tuple(dict.fromkeys(name for p in self.points for name in p.values))

    def series(self, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """(steps, values) of one series, both (m,) float64. Raises KeyError for an unknown name."""
        if name not in self.names:
            raise KeyError(f"name: no series {name!r}; there are {', '.join(self.names[:20])}{', ...' if len(self.names) > 20 else ''}")
        pairs = [(p.step, p.values[name]) for p in self.points if name in p.values]
        return np.array([s for s, _ in pairs]), np.array([v for _, v in pairs])

    def moves(self, pattern: str = "*") -> tuple[Move, ...]:
        """What became of the series whose names match ``pattern`` (glob), those that moved most first: by |log factor|, or by the change over the largest
        value where there is no factor; series of fewer than two finite values are left out."""
        found = [m for name in self.names if fnmatch.fnmatchcase(name, pattern) for m in _move(name, *self.series(name))]
        return tuple(sorted(found, key=_size, reverse=True))


def _move(name: str, steps: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> Iterator[Move]:
    known = np.isfinite(values)
    if known.sum() < 2:
        return
    steps, values = steps[known], values[known]
    trend = math.nan
    if len(values) > 2:
        from scipy.stats import rankdata

        r = rankdata(values) - (len(values) + 1) / 2
        s = rankdata(steps) - (len(steps) + 1) / 2
        trend = float(r @ s / math.sqrt(float(r @ r) * float(s @ s))) if r.any() else 0.0
    yield Move(name, float(values[0]), float(values[-1]), trend, len(values))


def _size(move: Move) -> float:
    if math.isfinite(move.factor):
        return abs(math.log(move.factor))
    return abs(move.last - move.first) / max(abs(move.last), abs(move.first), 1e-300)


def scalars(result: Result) -> dict[str, float]:
    """The numbers of a result that can be followed: "collapse.nc1", "curvature.lambda_1", "weights.<matrix>.alpha", ... A Diagnosis gives those of its parts,
    and its findings counted by severity. Parts that were not analysed give none. Raises TypeError for a class that has none."""
    kind = type(result).__name__
    if kind == "Diagnosis":
        found: dict[str, float] = {}
        for part in _PARTS:
            inner = getattr(result, part)
            if inner is not None:
                found.update(scalars(inner))
        for severity in ("info", "warning", "severe"):
            found[f"findings.{severity}"] = float(sum(f.severity == severity for f in result.findings))  # type: ignore[attr-defined]
        return found
    if kind not in (*_FIELDS, "WeightSpectra"):
        raise TypeError(f"result: got {kind}; known: Diagnosis, WeightSpectra, {', '.join(_FIELDS)}")
    if result.status in ("skipped", "failed"):
        return {}
    prefix = _OF_A_KIND.get(kind, kind)
    if kind == "WeightSpectra":
        return {f"{prefix}.{m.name}.{name}": value for m in result.matrices if m.status == "ok" for name, value in _of_matrix(m)}  # type: ignore[attr-defined]
    found = {f"{prefix}.{name}": float(value) for name in _FIELDS[kind] if (value := getattr(result, name)) is not None}
    more: dict[str, Any] = {}
    if kind == "EigenResult":
        more = {f"{i + 1}": value for i, value in enumerate(np.asarray(result.values, dtype=np.float64))}  # type: ignore[attr-defined]
    elif kind == "CurvatureSpectra":
        more = dict(_of_curvature(result))
    elif kind == "NeuralCollapse":
        layers = getattr(result, "by_layer", {})
        more = {f"{name}.{field}": getattr(c, field) for name, c in layers.items() for field in ("nc1", "cdnv", "nc2_etf", "ncc_accuracy") if hasattr(c, field)}
        test = getattr(result, "test", None)
        if test is not None and test.status == "ok":
            more |= {f"test.{field}": getattr(test, field) for field in ("nc1", "cdnv", "nc4_train", "ncc_accuracy_train", "accuracy")}
    found.update({f"{prefix}.{name}": float(value) for name, value in more.items()})
    return found


def _of_matrix(m: MatrixSpectrum) -> Iterator[tuple[str, float]]:
    for name in _OF_A_MATRIX:
        if name in m.metrics:
            yield name, float(m.metrics[name])
    if m.power_law is not None and m.power_law.status == "ok":
        yield "alpha", float(m.power_law.alpha)


def _of_curvature(c: Any) -> Iterator[tuple[str, float]]:
    for name, part, at in (("lambda_1", c.hessian_top, 0), ("lambda_min", c.hessian_bottom, -1), ("ggn_1", c.ggn_top, 0)):
        if part is not None and len(part.values):
            yield name, part.values[at]
    if c.trace is not None:
        yield "trace", c.trace.estimate
    if c.sharpness is not None:
        yield "sharpness", c.sharpness.value
        yield "stability_threshold", c.sharpness.threshold
