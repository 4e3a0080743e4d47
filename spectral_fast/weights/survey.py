"""``survey``: the smallest singular value of every weight matrix of many checkpoints, one scan after the other."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..checkpoints import CheckpointError
from ..checkpoints.search import FoundCheckpoint, checkpoint_names, find_checkpoints
from ..kernels.select import select
from ..progress import Progress, ProgressOption, progress_reporter
from ..results import Skipped, Status
from .scan import scan
from .sources import open_source
from .spectra import MatrixSpectrum, WeightSpectra
from .store import StoreError, fingerprint
from .surveyed import Survey, SurveyedMatrix, SurveyedModel, collapse_shares

__all__ = ["survey"]

_Path = str | os.PathLike[str]
_UNREAD = re.compile(  # reasons of tensors that might have been matrices
    r"cannot be read|not decoded|needs .* of memory|not enough memory|its worker|the executor took|(?:tensor|view)\b.*: not read|interrupted"
)
_OF_ANOTHER = re.compile(r"^(tied to|EMA copy of) .*", re.DOTALL)


def survey(
    paths: _Path | Sequence[_Path],
    *,
    layers: str | Sequence[str] | None = None,
    progress: ProgressOption = None,
    backend: str = "auto",
    store: _Path | None = None,
    resume: bool = True,
) -> Survey:
    """The smallest singular value of every weight matrix of many checkpoints, and the share that lost rank under every rule.

    The study of Martin (2018), "Rank Collapse in Deep Learning": 40 models, some 7,500 matrices. Convolutions count as one matrix each, flattened to outputs
    x the rest; fused tensors as their parts, as in a scan.

    paths:    checkpoint files, checkpoint directories, and directories to search (checkpoints.search.find_checkpoints says for what): one or many.
              What is reached twice is surveyed once.
    layers:   glob or globs over tensor names; None: all.
    progress: None: a bar on a terminal after a second; False: none; or a function called as progress(done, total, what), counting checkpoints.
    backend:  of the singular values: "auto", "native" or "numpy".
    store:    a directory (made where it is missing) for the store of every scan: a survey that was killed goes on when it is started again with the same
              one. A checkpoint that has changed, and other ``layers`` or ``backend``, have stores of their own there.
    resume:   False: begin anew, whatever the stores hold.

    Returns Survey. A checkpoint that cannot be read is in its ``skipped`` with the reason, and the rest goes on; on Ctrl-C what is done is returned with
    status "incomplete". Status "failed": there were checkpoints, but none could be surveyed.
    Raises checkpoints.CheckpointError (a ValueError) for a path that does not exist or where nothing below any path is a checkpoint, ValueError for
    an unknown ``backend`` or a ``store`` that cannot be used, TypeError for other kinds of paths.
    """
    start = time.perf_counter()
    globs = None if layers is None else (layers,) if isinstance(layers, str) else tuple(layers)
    _, kernel = select("singular_values", backend)
    given = _paths(paths)
    found, skipped = find_checkpoints(given)
    if not found:
        why = f" ({skipped[0].name}: {skipped[0].reason})" if skipped else ""
        raise CheckpointError(f"paths: no checkpoint in or below {', '.join(map(str, given))[:300] or 'no path at all'}{why}")
    folder = _store_folder(store)
    names = checkpoint_names([c.path for c in found])
    models: list[SurveyedModel] = []
    lost: list[Skipped] = []
    interrupted = False
    with progress_reporter(progress) as report:
        try:
            for i, (name, c) in enumerate(zip(names, found, strict=True)):
                try:
                    kept = _store_of(folder, name, c, globs, kernel)
                    spectra = scan(c.path, layers=globs, progress=_within(report, i, len(found), name), backend=backend, store=kept, resume=resume)
                except _Unreadable as error:
                    lost.append(Skipped(name, str(error)))
                except StoreError:
                    raise
                except (ValueError, OSError) as error:
                    lost.append(Skipped(name, str(error).removeprefix(f"{c.path}: ") or type(error).__name__))
                except MemoryError:
                    lost.append(Skipped(name, "not enough memory"))
                else:
                    interrupted = spectra.status == "incomplete" and "interrupt" in spectra.reason
                    if spectra.matrices:
                        models.append(_model(name, c.path, spectra))
                    elif not interrupted:
                        lost.append(Skipped(name, _why_none(spectra)))
                if interrupted:
                    break
                report(i + 1, len(found), name)
        except KeyboardInterrupt:
            interrupted = True
    told = {m.name for m in models} | {s.name for s in lost}
    if interrupted:
        lost += [Skipped(name, "interrupted before it was done") for name in names if name not in told]
    status: Status = "incomplete" if interrupted else "ok" if models else "failed"
    whole = sum(m.status == "ok" for m in models)
    reasons = {
        "incomplete": f"interrupted after {whole} of {len(found)} checkpoints",
        "failed": f"failed: none of {len(found)} checkpoints could be surveyed; {lost[0].name}: {lost[0].reason}" if lost else "",
    }
    matrices = [m for model in models for m in model.matrices]
    return Survey(
        status=status,
        reason=reasons.get(status, ""),
        backend=f"singular values: {kernel}",
        models=tuple(models),
        shares=collapse_shares(matrices, [m.name for m in models]),
        skipped=(*lost, *(Skipped(s.name, s.reason) for s in skipped)),
        notes=tuple(_same_matrices(models)),
        layers=globs,
        store="" if folder is None else str(folder),
        seconds=time.perf_counter() - start,
    )


def _paths(paths: _Path | Sequence[_Path]) -> list[_Path]:
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths) if isinstance(paths, Iterable) else [paths]
    for p in given:
        if not isinstance(p, (str, os.PathLike)):
            raise TypeError(f"paths: got a {type(p).__name__}; wanted paths of checkpoints or directories")
    return given


def _within(report: Progress, done: int, total: int, name: str) -> Progress:
    """The progress of one scan as that of the survey: the matrices go by, the checkpoints are counted."""
    return lambda matrices, of, what: report(done, total, f"{name}, {matrices} of {of} matrices")


# -- stores ----------------------------------------------------------------------------------------------------------------------


class _Unreadable(Exception):
    """A checkpoint whose files cannot be read."""


def _store_folder(store: _Path | None) -> Path | None:
    if store is None:
        return None
    folder = Path(store)
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"store: {folder} is a file; a survey keeps one store per checkpoint and wants a directory")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"store: {folder} cannot be made: {error.strerror or error}") from error
    return folder


def _store_of(folder: Path | None, name: str, c: FoundCheckpoint, layers: tuple[str, ...] | None, kernel: str) -> Path | None:
    """The file for one checkpoint. All that a store is held against when a scan goes on is in its name, so that stores of other states stay untouched."""
    if folder is None:
        return None
    from .. import __version__

    try:
        with open_source(c.path) as tensors:
            files = fingerprint(tensors)
    except (StoreError, OSError) as error:
        raise _Unreadable(str(error).removeprefix("store: ")) from error
    about = json.dumps([os.path.realpath(c.path), files, layers, kernel, __version__], sort_keys=True)
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-60:]
    return folder / f"{readable}-{hashlib.sha256(about.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.sqlite"


# -- from a scan to what is kept of it -------------------------------------------------------------------------------------------


def _model(name: str, path: Path, spectra: WeightSpectra) -> SurveyedModel:
    apart: list[Skipped] = []
    matrices: list[SurveyedMatrix] = []
    for m in spectra.matrices:
        why = _why_apart(m)
        if why:
            apart.append(Skipped(m.name, why, m.shape))
        else:
            matrices.append(_matrix(name, m))
    others: Counter[str] = Counter()
    for s in spectra.skipped:
        if _UNREAD.search(s.reason):
            apart.append(s)
        else:
            others[_OF_ANOTHER.sub(r"\1 another one", s.reason)] += 1
    return SurveyedModel(
        name=name,
        path=str(path),
        status="incomplete" if spectra.status == "incomplete" else "ok",
        reason=spectra.reason,
        parameters=sum(math.prod(m.shape) for m in matrices),
        matrices=tuple(matrices),
        apart=tuple(apart),
        not_matrices=dict(others),
    )


def _why_none(spectra: WeightSpectra) -> str:
    """Why a scan found no matrix: because there is none, or because none could be read."""
    unread = [s for s in spectra.skipped if _UNREAD.search(s.reason)]
    return f"{spectra.reason}; {len(unread)} tensors were not read, {unread[0].name}: {unread[0].reason}" if unread else spectra.reason


def _why_apart(m: MatrixSpectrum) -> str:
    if m.kind == "lora":
        return "product of LoRA factors: its rank is that of the factors"
    if m.role.startswith("lora."):
        return "factor of a LoRA product"
    return f"{m.status}: {m.reason}" if m.status in ("failed", "incomplete", "skipped") else ""


def _matrix(model: str, m: MatrixSpectrum) -> SurveyedMatrix:
    rows, columns = m.shape
    # certain: so many rows or columns of zeros that the others cannot have rank d_min. A 0 that was computed is one to within its bound.
    singular = min(rows - m.zero_rows, columns - m.zero_columns) < min(rows, columns)
    return SurveyedMatrix(
        model=model,
        name=m.name,
        kind="attention" if m.role.startswith("attention.") else m.kind,
        role=m.role,
        shape=m.shape,
        dtype=m.dtype,
        effective_precision=m.effective_precision,
        s_min=0.0 if singular else float(m.s[-1]),
        s_max=float(m.s[0]),
        bound=m.bound,
        noise=m.storage_noise,
        exactly_singular=singular,
        unresolved=not singular and bool(m.s[-1] <= max(m.storage_noise, m.bound)),
        ranks=dict(m.ranks),
    )


def _same_matrices(models: Sequence[SurveyedModel]) -> list[str]:
    """One weight in two checkpoints, such as a model in two formats, counts twice: that must be known."""
    homes: dict[tuple[object, ...], str] = {}
    notes = []
    for model in models:
        again: Counter[str] = Counter()
        for m in model.matrices:
            if m.s_max > 0.0:
                first = homes.setdefault((*sorted(m.shape), m.s_min, m.s_max), model.name)
                if first != model.name:
                    again[first] += 1
        notes += [f"{n} of {len(model.matrices)} matrices of {model.name} have the spectrum of one of {first}: counted twice" for first, n in again.items()]
    return notes
