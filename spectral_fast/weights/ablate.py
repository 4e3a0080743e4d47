"""``ablate``: does a part of a weight's spectrum matter? It is taken out, the loss is measured, and the weight is put back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..linalg.options import seed_number
from ..metrics.marchenko_pastur import marchenko_pastur
from ..progress import ProgressOption, progress_reporter
from ..results import Result
from .treated_weight import TreatedWeight, find_matrix

if TYPE_CHECKING:
    from ..probing.evaluation import SampleLosses

__all__ = ["MAX_EVALUATIONS", "TREATMENTS", "Ablation", "ablate"]

TREATMENTS = ("drop_noise", "clip_spikes")
MAX_EVALUATIONS = 24
_STDERRS = 2.0

F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Ablation(Result):
    """What a spectral treatment of one weight matrix does to the loss.

    gammas: (t,) ascending, where the treatment was cut. kept: (t,) singular values left as they are. losses: (t,) mean loss with the treatment;
    changes: (t,) losses - baseline_loss; stderr: (t,) standard errors of the changes, from paired differences over the same samples.
    moved: (t,) whether the change is more than 2 standard errors and more than ``floor`` x baseline_loss.
    noise_scale: of a sweep: the smallest gamma tried at which the loss moved up; every singular value below it is noise by this measure (so are those
    without which the loss falls). inf: the loss does not rise even without the whole matrix; NaN: not swept. noise_rank: singular values kept at
    the last cut below it (-1: not swept).
    s: (d_min,) the matrix's singular values, descending. unit: what the standard errors are over ("sample" or "batch").
    """

    layer: str
    treatment: str
    shape: tuple[int, int]
    gammas: F64
    kept: NDArray[np.int64]
    losses: F64
    changes: F64
    stderr: F64
    moved: NDArray[np.bool_]
    noise_scale: float
    noise_rank: int
    baseline_loss: float
    floor: float
    s: F64
    n_samples: int
    unit: str
    loss_name: str
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


def ablate(
    model: Any,
    loader: Any,
    layer: str,
    gamma: float | Sequence[float] | None = None,
    *,
    loss: Any = None,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    treatment: str = "drop_noise",
    floor: float = 0.01,
    max_batches: int | None = None,
    unpack: Callable[[Any], tuple[Any, Any]] | None = None,
    device: Any = None,
    seed: int = 0,
    progress: ProgressOption = None,
) -> Ablation:
    """The change of the loss when the spectrum of one weight matrix is cut at ``gamma``.

    model:     a ``torch.nn.Module``; afterwards it is what it was, bit for bit, also after an exception.
    loader, loss, loss_fn, unpack, max_batches: as in ``diagnose``; every evaluation sees the same samples.
    layer:     a matrix by the name ``scan(model)`` gives it ("fc1.weight", "lstm.weight_hh_l0[f]"), or a module with one such ".weight".
    treatment: "drop_noise": singular values <= gamma become 0, the information s > gamma stays (Martin 2018);
               "clip_spikes": those above gamma become gamma.
    gamma:     one cut or several. None: for "drop_noise" a sweep up to the cut at which the loss first rises, the layer's measured noise scale:
               1, 2, 4, ... smallest values dropped, then bisection, at most 24 evaluations; for "clip_spikes" the edge of the bulk
               (Marchenko-Pastur law, Tracy-Widom threshold at 5 %).
    floor:     a change counts above 2 standard errors and above ``floor`` x the baseline loss.
    device:    where the batches go; None: where the matrix is. seed: set before every pass, for models with randomness of their own.

    Returns an Ablation; on Ctrl-C what is done, with status "incomplete".
    Raises ValueError for an unknown layer, treatment or gamma, for a matrix with NaN or Inf and for a baseline loss that is not finite.
    """
    import torch

    from ..probing.batches import Batches
    from ..probing.evaluation import SampleLosses, paired_change
    from ..probing.losses import resolve_loss
    from ..probing.state import eval_notes, leave_no_trace

    start = time.perf_counter()
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: got {type(model).__name__}; wanted a torch.nn.Module")
    if treatment not in TREATMENTS:
        raise ValueError(f"treatment: got {treatment!r}; known: {', '.join(TREATMENTS)}")
    if not (np.isfinite(floor) and floor >= 0):
        raise ValueError(f"floor: got {floor!r}; wanted a finite share >= 0")
    seed_number(seed)
    plan = find_matrix(model, layer)
    weight = TreatedWeight(plan)
    cuts = _cuts(gamma, treatment, weight)
    notes = list(eval_notes(model))
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    with leave_no_trace(model), progress_reporter(progress) as report, torch.no_grad():
        batches = Batches(
            loader,
            device=device if device is not None else None if first is None else first.device,
            dtype=next(iter(dtypes)) if len(dtypes) == 1 else None,
            max_batches=max_batches,
            unpack=unpack,
        )
        settled = resolve_loss(model, batches, loss, loss_fn)
        losses = SampleLosses(model, batches, settled, seed=seed)
        notes += [n for n in (batches.note, losses.note) if n]
        before = losses()
        baseline = float(losses.weights @ before)
        if not math.isfinite(baseline):
            raise ValueError(f"model: its loss on these samples is {baseline}; nothing can be compared with it")
        trial = _Trial(weight, treatment, losses, before, baseline, floor, paired_change)
        interrupted = False
        try:
            with weight.replaceable():
                if cuts is None:
                    _sweep(trial, lambda done, what: report(done, MAX_EVALUATIONS, f"{plan.name}: {what}"))
                else:
                    for i, cut in enumerate(cuts):
                        trial(cut)
                        report(i + 1, len(cuts), f"{plan.name}: gamma {cut:.3g}")
        except KeyboardInterrupt:
            interrupted = True
    rows = [trial.done[g] for g in sorted(trial.done)]
    scale, rank = _noise_scale(rows, weight.s) if cuts is None and not interrupted else (math.nan, -1)
    unresolved = losses.n_units < 2
    reasons = ["interrupted"] if interrupted else [f"a single {losses.unit} gives no error bar"] if unresolved else []
    return Ablation(
        status="incomplete" if interrupted else "unresolved" if unresolved else "ok",
        reason="; ".join(reasons),
        backend=f"torch, {first.device.type if first is not None else 'cpu'}",
        layer=plan.name,
        treatment=treatment,
        shape=plan.shape,
        gammas=np.array([r.gamma for r in rows]),
        kept=np.array([r.kept for r in rows], dtype=np.int64),
        losses=np.array([r.loss for r in rows]),
        changes=np.array([r.change for r in rows]),
        stderr=np.array([r.stderr for r in rows]),
        moved=np.array([r.moved for r in rows], dtype=bool),
        noise_scale=math.nan if unresolved else scale,
        noise_rank=-1 if unresolved else rank,
        baseline_loss=baseline,
        floor=floor,
        s=weight.s,
        n_samples=batches.n_samples,
        unit=losses.unit,
        loss_name=settled.name,
        seconds=time.perf_counter() - start,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Row:
    gamma: float
    kept: int
    loss: float
    change: float
    stderr: float
    moved: bool

    @property
    def rose(self) -> bool:
        """Moved, and not down: a loss that falls when directions go says that they were noise."""
        return self.moved and not self.change < 0


class _Trial:
    """``trial(gamma)``: treats the matrix there, measures, and remembers."""

    def __init__(
        self,
        weight: TreatedWeight,
        treatment: str,
        losses: SampleLosses,
        before: F64,
        baseline: float,
        floor: float,
        paired_change: Callable[[F64, F64, F64], tuple[float, float]],
    ) -> None:
        self.weight, self.treatment, self.losses = weight, treatment, losses
        self.before, self.baseline, self.least = before, baseline, floor * abs(baseline)
        self.paired_change = paired_change
        self.done: dict[float, _Row] = {}

    def __call__(self, gamma: float) -> bool:
        """Whether the loss rose."""
        s = self.weight.s
        # a gamma taken from another decomposition of the same matrix means the value itself, last bits or not
        above = s > gamma + self.weight.bound
        if self.treatment == "drop_noise":
            cut, kept = np.where(above, 0.0, s), above
        else:
            cut, kept = np.where(above, s - gamma, 0.0), ~above
        self.weight.put(cut)
        after = self.losses()
        change, stderr = self.paired_change(self.before, after, self.losses.weights)
        # a loss that is no number any more has moved; without an error bar nothing can be said to have
        moved = not math.isfinite(change) or (abs(change) > _STDERRS * stderr and abs(change) > self.least)
        row = self.done[gamma] = _Row(gamma, int(np.count_nonzero(kept)), self.baseline + change, change, stderr, moved)
        return row.rose


def _sweep(trial: _Trial, report: Callable[[int, str], None]) -> None:
    """Drop 1, 2, 4, ... of the distinct smallest singular values until the loss rises, then halve the gap to the last cut where it did not."""
    levels = trial.weight.levels()

    def rises(count: int) -> bool:
        rose = trial(float(levels[count - 1]))
        report(len(trial.done), f"{count} of {len(levels)} smallest values dropped")
        return rose

    low, high = 0, 1
    while not rises(high):
        if high == len(levels):
            return
        low, high = high, min(2 * high, len(levels))
    while high - low > 1 and len(trial.done) < MAX_EVALUATIONS:
        middle = (low + high) // 2
        low, high = (low, middle) if rises(middle) else (middle, high)


def _noise_scale(rows: Sequence[_Row], s: F64) -> tuple[float, int]:
    first = min((r for r in rows if r.rose), key=lambda r: r.gamma, default=None)
    return (math.inf, 0) if first is None else (first.gamma, min((r.kept for r in rows if r.gamma < first.gamma), default=s.size))


def _cuts(gamma: float | Sequence[float] | None, treatment: str, weight: TreatedWeight) -> list[float] | None:
    """The cuts asked for; None for a sweep."""
    if gamma is None and treatment == "drop_noise":
        return None
    if gamma is None:
        top = float(weight.s[0]) if weight.s.size else 0.0
        fit = marchenko_pastur(np.square(weight.s / top) if top > 0 else weight.s, (weight.w.shape[0], weight.w.shape[1]))
        if fit.status != "ok":
            raise ValueError(f"gamma: the bulk of this matrix has no edge ({fit.reason}); give one")
        return [top * math.sqrt(fit.threshold)]
    given = np.atleast_1d(np.asarray(gamma, dtype=np.float64))
    if given.ndim != 1 or given.size == 0 or not np.isfinite(given).all() or (given < 0).any():
        raise ValueError(f"gamma: got {gamma!r}; wanted finite numbers >= 0, or None")
    return [float(g) for g in np.unique(given)]
