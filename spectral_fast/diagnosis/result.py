"""What ``diagnose`` found: ``Diagnosis``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..findings import SEVERITIES, Finding
from ..progress import ProgressOption
from ..results import Result, Skipped
from ..weights.spectra import WeightSpectra
from .overlaps import Overlaps

if TYPE_CHECKING:
    from ..collapse import NeuralCollapse
    from ..curvature import CurvatureSpectra
    from ..gradients import GradientSpectrum
    from ..weights.ablate import Ablation

__all__ = ["Diagnosis"]

# What a title says -> the part of the spectrum it speaks of, and so the treatment that shows whether that part matters.
_TREATMENTS = {
    "clip_spikes": ("amplifies", "spike", "stands out", "heavy tail"),
    "drop_noise": ("rank collapse", "few of its dimensions", "ill-conditioned", "light tail", "dampens", "dead", "duplicate"),
}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Diagnosis(Result):
    """What the spectra of a model say.

    weights, gradients, curvature, collapse: the analyses, None where not done (``skipped`` says why). findings: severest first.
    overlaps: of the gradient covariance's top space with the Hessian's and with the weights' top singular spaces; None where ``notes`` say why, or where
    neither of them was computed.
    model, data, loss: what was diagnosed, kept for ``test``; not part of to_dict, and left out of pickles.
    """

    model_name: str
    weights: WeightSpectra | None = None
    gradients: GradientSpectrum | None = None
    curvature: CurvatureSpectra | None = None
    collapse: NeuralCollapse | None = None
    overlaps: Overlaps | None = None
    findings: tuple[Finding, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    model: Any = field(default=None, repr=False)
    data: Any = field(default=None, repr=False)
    loss: Any = field(default=None, repr=False)

    def test(self, finding: Finding, gamma: float | Sequence[float] | None = None, *, progress: ProgressOption = None) -> Ablation:
        """Does it matter? The change of the loss when the part of the spectrum that a weight finding speaks of is taken away.

        finding: one of ``findings``. What stands out is clipped to the edge of the bulk; of what is small the noise is dropped, in a sweep up to the
        measured noise scale (``ablate``). gamma: where to cut instead. The samples are those of the diagnosis.
        Raises ValueError for a finding that has no such part (the message lists those that have), without a loader, and where the weight is not
        any more what it was at the diagnosis.
        """
        from ..weights.ablate import ablate

        treatment = self._treatment(finding)
        if treatment is None:
            possible = ", ".join(f"{f.where}: {f.title}" for f in self.findings if self._treatment(f) is not None) or "none"
            raise ValueError(f"finding: {finding.where}: {finding.title}: speaks of no part of a weight's spectrum. Can be tested here: {possible}")
        if self.model is None or self.data is None:
            raise ValueError("loader: this diagnosis has no model and data with it; diagnose(model, loader) keeps them")
        result = ablate(self.model, self.data, finding.where, gamma, loss=self.loss, treatment=treatment, progress=progress)
        before = self.weights.spectrum(finding.where) if self.weights is not None else None
        if before is not None and np.abs(result.s - before.s).max() > 2 * before.bound:
            raise ValueError(f"finding: {finding.where} has changed since this diagnosis; diagnose again")
        return result

    def _treatment(self, finding: Finding) -> str | None:
        known = {m.name for m in self.weights.matrices if m.status == "ok" and m.kind != "lora"} if self.weights is not None else set()
        if finding.analysis != "weights" or finding.where not in known:
            return None
        return next((treatment for treatment, words in _TREATMENTS.items() if any(w in finding.title for w in words)), None)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("model", "data", "loss")}

    def worst(self) -> str | None:
        """The severest finding's severity, None without findings."""
        return max((f.severity for f in self.findings), key=SEVERITIES.index, default=None)
