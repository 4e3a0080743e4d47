"""Spectra beside those of a baseline: the same network before fine-tuning, compression or the last epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from ..progress import Progress
from ..results import Skipped
from .sources import TensorList, open_source
from .spectra import MatrixSpectrum, WeightSpectra

__all__ = ["Reference", "beside_baseline", "open_baseline"]

Reference = TensorList | WeightSpectra | None
Layers = str | Sequence[str] | None


@contextmanager
def open_baseline(baseline: Any) -> Iterator[Reference]:
    """The tensors of a baseline, or the spectra where it is a result (of ``scan``, or of ``diagnose`` with its weights).

    Raises what ``open_source`` raises, the message beginning with "baseline".
    """
    spectra = baseline if isinstance(baseline, WeightSpectra) else getattr(baseline, "weights", None)
    if baseline is None or isinstance(spectra, WeightSpectra):
        yield None if baseline is None else spectra
        return
    opened = open_source(baseline)
    try:
        tensors = opened.__enter__()
    except TypeError as error:
        kinds = "a path, a state dict, a torch.nn.Module or the result of a scan or of a diagnosis with weights"
        raise TypeError(f"baseline: got {type(baseline).__name__}; wanted {kinds}") from error
    except ValueError as error:
        raise ValueError(f"baseline: {error}") from error
    try:
        yield tensors
    finally:
        opened.__exit__(None, None, None)


def beside_baseline(
    spectra: WeightSpectra,
    reference: Reference,
    measure: Callable[..., WeightSpectra],
    *,
    layers: Layers = None,
    progress: Progress | None = None,
    backend: str = "auto",
) -> WeightSpectra:
    """``spectra`` with the numbers of the matrices of the same names in the baseline, and the list of those that could not be compared.

    measure: makes spectra of a TensorList (scan.weight_spectra), called with layers, progress and backend.
    """
    if reference is None or (spectra.status == "incomplete" and "interrupt" in spectra.reason):
        return spectra
    if isinstance(reference, WeightSpectra):
        base = reference
    elif not any(_asked(e.name, layers) for e in reference.entries):
        base = WeightSpectra(source=reference.label, matrices=(), skipped=())
    else:

        def reported(done: int, total: int, what: str) -> None:
            if progress:
                progress(done, total, f"baseline: {what}")

        base = measure(reference, layers=layers, progress=reported, backend=backend)
    compared = _compared(spectra, base, layers)
    stopped = not isinstance(reference, WeightSpectra) and base.status == "incomplete"
    return replace(compared, status="incomplete", reason=f"interrupted in the baseline: {base.reason}") if stopped else compared


def _asked(tensor: str, layers: Layers) -> bool:
    return layers is None or any(fnmatchcase(tensor, p) for p in ([layers] if isinstance(layers, str) else layers))


def _compared(spectra: WeightSpectra, base: WeightSpectra, layers: Layers) -> WeightSpectra:
    partners = _by_name(base)
    lost = {s.name: s.reason for s in base.skipped}
    used: set[int] = set()
    matrices: list[MatrixSpectrum] = []
    alone: list[Skipped] = []
    for m in spectra.matrices:
        partner = partners.get(m.name)
        why = ""
        if partner is None:
            known = next((n for n in (m.name, m.name.partition("[")[0]) if n in lost), None)
            why = "not in the baseline" if known is None else f"skipped in the baseline: {lost[known]}"
        else:
            used.add(id(partner))
            if partner.shape != m.shape:
                why = f"{_size(m)} here, {_size(partner)} in the baseline"
            elif partner.status != "ok":
                why = f"{partner.status} in the baseline: {partner.reason}"
        matrices.append(m if why or partner is None else replace(m, baseline=_numbers(partner)))
        if why:
            alone.append(Skipped(m.name, why, m.shape))
    here = {m.name for m in spectra.matrices} | {s.name for s in spectra.skipped}
    for b in base.matrices:
        if id(b) not in used and _asked(b.name.partition("[")[0], layers):
            why = "skipped here" if b.name in here or b.name.partition("[")[0] in here else "only in the baseline"
            alone.append(Skipped(b.name, why, b.shape))
    return replace(spectra, matrices=tuple(matrices), baseline=base.source or "baseline", not_compared=tuple(alone))


def _by_name(base: WeightSpectra) -> dict[str, MatrixSpectrum]:
    """Also under the names of tied tensors: which of them comes first may differ."""
    found = {m.name: m for m in base.matrices}
    for m in base.matrices:
        part = m.name[m.name.index("[") :] if "[" in m.name else ""
        for other in m.tied:
            found.setdefault(other + part, m)
    return found


def _size(m: MatrixSpectrum) -> str:
    return f"{m.shape[0]} x {m.shape[1]}"


def _numbers(m: MatrixSpectrum) -> dict[str, float]:
    tail = {"alpha": m.power_law.alpha, "alpha_stderr": m.power_law.stderr, "n_tail": m.power_law.n_tail}
    counts = {"rank": m.ranks["storage"], "effective_precision": m.effective_precision, "zero_rows": m.zero_rows, "zero_columns": m.zero_columns}
    return {**m.metrics, **tail, **counts}
