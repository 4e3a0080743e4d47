"""Results as pandas tables: a row per matrix, layer, eigenvalue, measure or finding. pandas is imported when asked for."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..metrics.rank import RULES
from .learning_sections import collapse_rows, test_rows
from .sections import by_severity

if TYPE_CHECKING:
    import pandas as pd

    from ..collapse import NeuralCollapse
    from ..curvature.spectra import CurvatureSpectra
    from ..diagnosis import Diagnosis
    from ..gradients import GradientSpectrum
    from ..linalg.density import SpectralDensity
    from ..linalg.eigsh import EigenResult
    from ..linalg.lowrank import LowRankSVD
    from ..linalg.trace import TraceResult
    from ..results import Result
    from ..trajectory import Trajectory
    from ..weights.ablate import Ablation
    from ..weights.advise import Advice
    from ..weights.plan import ScanPlan
    from ..weights.spectra import MatrixSpectrum, WeightSpectra
    from ..weights.surveyed import Survey

__all__ = ["save_table", "to_frame"]

Row = dict[str, Any]

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_WEIGHT_COLUMNS = ("name", "kind", "role", "shape", "m", "n", "dtype", "effective_precision", "status", "reason")


def to_frame(result: Result) -> pd.DataFrame:
    """A result as a table.

    WeightSpectra: a row per matrix and per skipped tensor (status "skipped"). MatrixSpectrum: a row per singular value. GradientSpectrum,
    EigenResult: a row per eigenvalue. CurvatureSpectra: its eigenvalues with operator and end, then the trace and its parts.
    LowRankSVD: a row per triplet. SpectralDensity: a row per node. TraceResult: the whole, then each layer. NeuralCollapse: a row per measure,
    then those of each layer, with a column for the test samples.
    Ablation: a row per cut. Trajectory: a row per step, a column per series. Advice, Survey: a row per matrix. ScanPlan: a row per shape.
    Diagnosis: a row per finding, severe first.
    Raises ImportError without pandas, TypeError for another class.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("to_pandas needs pandas: pip install pandas") from error
    rows, columns = _rows(result)
    return pd.DataFrame(rows, columns=list(columns) if not rows else None)


def save_table(result: Result, path: str | os.PathLike[str]) -> None:
    """The same table as a file, by its suffix: .csv (UTF-8, RFC 4180; no cell that a spreadsheet would take for a formula) or .parquet.

    Raises ValueError for another suffix, ImportError without pandas and pyarrow for .parquet, TypeError for another class.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        frame = to_frame(result)
        for column in frame.columns:
            if frame[column].map(lambda v: isinstance(v, (tuple, list))).any():  # shapes: as text, "2048x256"
                frame[column] = frame[column].map(_cell)
        try:
            frame.to_parquet(path, index=False)
        except ImportError as error:
            raise ImportError("a .parquet file needs pyarrow: pip install pyarrow") from error
        return
    if suffix != ".csv":
        raise ValueError(f"path: got {os.fspath(path)!r}; known: .csv, .parquet")
    rows, columns = _rows(result)
    names = list(dict.fromkeys(name for row in rows for name in row)) or list(columns)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([_cell(row.get(name)) for name in names] for row in rows)


def _cell(value: Any) -> str:
    """A value as the text of one cell; numbers so that they are read back as they were."""
    if value is None:
        return ""
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value)).lower()
    if isinstance(value, (int, float, np.number)):
        number = float(value)
        return "" if number != number else repr(int(value)) if isinstance(value, (int, np.integer)) else repr(number)
    text = "x".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    return f"'{text}" if text[:1] in _FORMULA else text


def _rows(result: Result) -> Made:
    name = type(result).__name__
    make = _ROWS.get(name)
    if make is None:
        raise TypeError(f"result: got {name}; known: {', '.join(sorted(_ROWS))}")
    return make(result)


Made = tuple[list[Row], tuple[str, ...]]


def _weights(w: WeightSpectra) -> Made:
    rows: list[Row] = [_matrix_row(m) for m in w.matrices]
    for s in w.skipped:
        m, n = s.shape if s.shape is not None and len(s.shape) == 2 else (None, None)
        rows.append({"name": s.name, "shape": s.shape, "m": m, "n": n, "status": "skipped", "reason": s.reason})
    return rows, _WEIGHT_COLUMNS


def _matrix_row(m: MatrixSpectrum) -> Row:
    fit = m.power_law
    return {
        "name": m.name,
        "kind": m.kind,
        "role": m.role,
        "shape": m.tensor_shape,
        "m": m.shape[0],
        "n": m.shape[1],
        "dtype": m.dtype,
        "effective_precision": m.effective_precision,
        **m.metrics,
        **{f"rank_{rule}": rank for rule, rank in m.ranks.items()},
        **{f"tolerance_{rule}": tol for rule, tol in m.rank_tolerances.items()},
        "alpha": fit.alpha,
        "alpha_stderr": fit.stderr,
        "xmin": fit.xmin,
        "D": fit.D,
        "n_tail": fit.n_tail,
        "alpha_status": fit.status,
        "mp_var": m.mp.var,
        "mp_upper_edge": m.mp.upper_edge,
        "mp_spikes": m.mp.n_spikes if m.mp.status == "ok" else None,
        "mp_soft_rank": m.mp.soft_rank,
        "mp_status": m.mp.status,
        **{f"random_{key}": value for key, value in m.null.items()},
        **{f"baseline_{key}": value for key, value in m.baseline.items()},
        "tied": ", ".join(m.tied),
        "status": m.status,
        "reason": m.reason,
    }


def _matrix(m: MatrixSpectrum) -> Made:
    return [{"index": i, "singular_value": float(s), "eigenvalue": float(s) ** 2} for i, s in enumerate(m.s)], ("index", "singular_value", "eigenvalue")


def _gradients(g: GradientSpectrum) -> Made:
    return [{"index": i, "eigenvalue": float(v), "centered": g.centered} for i, v in enumerate(g.eigenvalues)], ("index", "eigenvalue", "centered")


def _eigen_rows(e: EigenResult) -> list[Row]:
    found = zip(e.values, e.residuals, e.converged, strict=True)
    return [{"index": i, "eigenvalue": float(v), "residual": float(r), "converged": bool(c)} for i, (v, r, c) in enumerate(found)]


def _eigen(e: EigenResult) -> Made:
    return _eigen_rows(e), ("index", "eigenvalue", "residual", "converged")


def _low_rank(r: LowRankSVD) -> Made:
    s, errors = np.asarray(r.s, dtype=np.float64), np.asarray(r.error, dtype=np.float64).reshape(-1)
    ranks = np.asarray(r.ranks).reshape(-1)
    rows = [
        {"matrix": i, "index": k, "singular_value": float(s.reshape(len(ranks), -1)[i, k]), "error": float(errors[i])}
        for i in range(len(ranks))
        for k in range(int(ranks[i]))
    ]
    return rows, ("matrix", "index", "singular_value", "error")


def _curvature(c: CurvatureSpectra) -> Made:
    rows: list[Row] = []
    for operator, end, pairs in (("hessian", "top", c.hessian_top), ("hessian", "bottom", c.hessian_bottom), ("ggn", "top", c.ggn_top)):
        if pairs is not None:
            what = {"operator": operator, "quantity": f"{end} eigenvalue"}
            rows += [{**what, **row, "unresolved": bool(noise)} for row, noise in zip(_eigen_rows(pairs), c.unresolved(pairs), strict=True)]
    if c.trace is not None:
        rows += [{"operator": "hessian", "quantity": "trace", **row} for row in _trace(c.trace)[0]]
    return rows, ("operator", "quantity", "index", "eigenvalue", "residual", "converged", "unresolved")


def _density(d: SpectralDensity) -> Made:
    nodes, weights = np.asarray(d.nodes), np.asarray(d.weights)
    order = np.argsort(-nodes, kind="stable")
    return [{"node": float(nodes[i]), "weight": float(weights[i])} for i in order], ("node", "weight")


def _trace(t: TraceResult) -> Made:
    low, high = t.interval(0.95)
    rows: list[Row] = [{"layer": "", "trace": t.estimate, "stderr": t.stderr, "low95": low, "high95": high}]
    rows += [{"layer": name, "trace": value[0], "stderr": value[1]} for name, value in t.by_layer.items()]
    return rows, ("layer", "trace", "stderr", "low95", "high95")


_LAYER_MEASURES = ("nc1", "cdnv", "nc2_norms", "nc2_angles", "nc2_etf", "nc3", "nc4", "ncc_accuracy", "spread", "effective_rank", "participation_ratio",
                   "feature_dim")  # fmt: skip


def _collapse(c: NeuralCollapse) -> Made:
    """With a column for the test samples and one for layers where there are such."""
    rows: list[Row] = [{"measure": short, "value": value, "collapsed": at, "what": what} for short, what, value, at in collapse_rows(c)]
    rows += [{"layer": name, "measure": measure, "value": float(getattr(v, measure))} for name, v in c.by_layer.items() for measure in _LAYER_MEASURES]
    if c.test is not None:
        whole = {short: value for short, _, value, _ in test_rows(c.test)}
        for row in rows:
            layer = c.test.by_layer.get(row["layer"]) if "layer" in row else None
            row["test"] = whole[row["measure"]] if "layer" not in row else math.nan if layer is None else float(getattr(layer, row["measure"]))
    if c.by_layer:
        for row in rows:
            row.setdefault("layer", "")
    columns = (*(("layer",) if c.by_layer else ()), "measure", "value", *(("test",) if c.test is not None else ()), "collapsed", "what")
    return [{name: row[name] for name in columns if name in row} for row in rows], columns


def _trajectory(t: Trajectory) -> Made:
    return [{"step": p.step, **{name: p.values.get(name, math.nan) for name in t.names}} for p in t.points], ("step",)


def _ablation(a: Ablation) -> Made:
    columns = ("gamma", "kept", "loss", "change", "stderr", "moved")
    values = zip(a.gammas, a.kept, a.losses, a.changes, a.stderr, a.moved, strict=True)
    return [dict(zip(columns, (float(g), int(k), float(v), float(c), float(e), bool(m)), strict=True)) for g, k, v, c, e, m in values], columns


def _advice(a: Advice) -> Made:
    rows: list[Row] = []
    for m in a.matrices:
        row: Row = {"name": m.name, "kind": m.kind, "m": m.shape[0], "n": m.shape[1], "parameters": m.parameters, "dtype": m.dtype}
        for low in m.low_rank:
            at = f"{100 * low.wanted:g}%"
            row |= {f"rank_{at}": low.rank, f"error_{at}": low.error, f"saved_{at}": low.saved}
        row |= {"bits": m.bits, "bits_all": m.bits_all, "format": m.format, "spikes": m.spikes, "lora_rank": m.lora_rank, "lora_from": m.lora_from}
        rows.append({**row, "status": m.status, "reason": m.reason})
    return rows, ("name", "kind", "m", "n", "parameters", "dtype", "bits", "format", "lora_rank", "status", "reason")


def _survey(s: Survey) -> Made:
    about = ("model", "name", "kind", "role", "m", "n", "Q", "aspect", "dtype", "effective_precision", "s_min", "s_max", "floor", "unresolved")
    columns = (*about, "exactly_singular", *(f"rank_{rule}" for rule in RULES), *(f"collapsed_{rule}" for rule in RULES))
    rows: list[Row] = []
    for m in s.matrices:
        numbers = (*m.shape, m.q, m.aspect, m.dtype, m.effective_precision, m.s_min, m.s_max, m.floor, m.unresolved)
        values = (m.model, m.name, m.kind, m.role, *numbers, m.exactly_singular, *(m.ranks[rule] for rule in RULES), *(m.collapsed(rule) for rule in RULES))
        rows.append(dict(zip(columns, values, strict=True)))
    return rows, columns


def _diagnosis(d: Diagnosis) -> Made:
    columns = ("severity", "analysis", "where", "title", "evidence", "comparison", "advice", "source")
    return [{key: getattr(f, key) for key in columns} for f in by_severity(d.findings)], columns


def _plan(p: ScanPlan) -> Made:
    rows: list[Row] = [{"m": c.shape[0], "n": c.shape[1], "matrices": c.matrices, "flops": c.flops, "seconds": c.seconds} for c in p.shapes]
    return rows, ("m", "n", "matrices", "flops", "seconds")


_ROWS: dict[str, Callable[[Any], Made]] = {
    "Diagnosis": _diagnosis,
    "WeightSpectra": _weights,
    "MatrixSpectrum": _matrix,
    "GradientSpectrum": _gradients,
    "CurvatureSpectra": _curvature,
    "EigenResult": _eigen,
    "LowRankSVD": _low_rank,
    "SpectralDensity": _density,
    "TraceResult": _trace,
    "NeuralCollapse": _collapse,
    "Ablation": _ablation,
    "Trajectory": _trajectory,
    "Advice": _advice,
    "ScanPlan": _plan,
    "Survey": _survey,
}
