"""Findings about how many directions a matrix uses, and how exactly they are known."""

from __future__ import annotations

import math

from ..linalg.arrays import FORMATS
from ..weights.spectra import MatrixSpectrum
from .beside import Beside
from .finding import Finding
from .thresholds import source_of, value_of

__all__ = ["concentrated", "condition", "dead", "rank_collapse", "rounded"]


def rank_collapse(m: MatrixSpectrum, beside: Beside) -> Finding | None:
    """Singular values below the storage noise: more than in the baseline, or than a random matrix has."""
    share, floor = m.metrics["near_zero_fraction"], m.rank_tolerances["storage"]
    # The singular values of a square random matrix follow a quarter circle of radius 2 sqrt(n var): density 2/(pi sqrt(n var)) at 0.
    d_max, d_min = max(m.shape), min(m.shape)
    size = m.null["frobenius"] / math.sqrt(d_min)
    expected = 2.0 * floor / (math.pi * size) if m.null["s_min"] < value_of("collapse, square") * size else 0.0
    base = beside.baseline
    lost = expected if base is None else base["near_zero_fraction"]
    if share < value_of("collapse, share") or share < value_of("collapse, times random") * lost or d_min < value_of("collapse, d_min"):
        return None
    # torch's default, U(±1/sqrt(fan_in)): variance 1/(3 fan_in), so ||W||_F² = m/3; recurrent layers use the hidden size, a gate's rows
    init = math.sqrt((m.shape[1] if m.kind == "rnn" or m.in_out else m.shape[0]) / 3.0) if base is None else base["frobenius"]
    over = (m.kind in ("linear", "conv", "rnn") or base is not None) and m.metrics["frobenius"] < value_of("over-regularized, times init") * init
    norm = f"||W||_F {m.metrics['frobenius']:.3g}, {'a default initialisation gives' if base is None else 'in the baseline'} {init:.3g}"
    other = f"a random {d_max} x {d_min} matrix loses {expected:.1%}" if base is None else f"in the baseline rank {base['rank']:.0f} of {d_min}"
    both = "less weight decay (Martin 2018: over-regularized)", 'a wider layer, or regularization that spreads the spectrum ("Eigenvalue Spectra")'
    return Finding(
        "severe" if share >= value_of("collapse, severe share") else "warning",
        m.name,
        "rank collapse",
        f"rank {m.ranks['storage']} of {d_min}: {share:.0%} of the singular values are below {floor:.2g}, what rounding to {m.dtype}"
        + (f" ({m.effective_precision} bits used)" if m.dtype in ("float32", "float64") and m.effective_precision < 24 else "")
        + " hides",
        f"{'not in the baseline; ' if beside.missing else ''}{other}; {norm}",
        f"{both[0]}; otherwise {both[1]}" if over else f"{both[1]}; the other source: {both[0]}, though the norm does not show it",
        source_of("collapse, share", "collapse, times random"),
        "weights",
    )


def dead(m: MatrixSpectrum, beside: Beside) -> Finding | None:
    """Rows or columns of zeros that the baseline does not have."""
    base = beside.baseline or {"zero_rows": 0, "zero_columns": 0}
    rows, columns = (m.zero_columns, m.zero_rows) if m.in_out else (m.zero_rows, m.zero_columns)
    before_rows, before_columns = (base["zero_columns"], base["zero_rows"]) if m.in_out else (base["zero_rows"], base["zero_columns"])
    n_rows, n_columns = m.shape[::-1] if m.in_out else m.shape
    limit = value_of("dead, share")
    outputs, inputs = rows > before_rows and rows >= limit * n_rows, columns > before_columns and columns >= limit * n_columns
    if m.kind == "embedding" or not (outputs or inputs):
        return None
    return Finding(
        severity="warning",
        where=m.name,
        title="dead outputs" if outputs else "dead inputs",
        evidence=f"{rows} of {n_rows} rows and {columns} of {n_columns} columns are exactly zero",
        comparison="a random matrix has none" if beside.baseline is None else f"in the baseline {before_rows:.0f} rows and {before_columns:.0f} columns",
        advice="lower learning rate or another activation if units died; remove them if they were pruned",
        source=source_of("dead, share"),
        analysis="weights",
    )


def concentrated(m: MatrixSpectrum, beside: Beside) -> Finding | None:
    """An effective rank far below the dimension, or far below the baseline's."""
    d_min, base = min(m.shape), beside.baseline
    # A random matrix keeps between 0.8 and 1 of its dimensions by this measure, so the share itself is the comparison.
    share = m.metrics["effective_rank"] / (d_min if base is None else base["effective_rank"])
    lost = m.metrics["near_zero_fraction"] >= value_of("collapse, share")  # then that is the finding
    if d_min < value_of("concentrated, d_min") or share >= value_of("concentrated, effective rank") or lost:
        return None
    return Finding(
        "warning",
        m.name,
        "uses only a few of its dimensions",
        f"effective rank {m.metrics['effective_rank']:.1f} of {d_min}, stable rank {m.metrics['stable_rank']:.1f}",
        beside.random(m, f"stable rank {m.null['stable_rank']:.1f}")
        if base is None
        else f"in the baseline: effective rank {base['effective_rank']:.1f}, stable rank {base['stable_rank']:.1f}",
        'a wider layer will not help; less weight decay (Martin 2018) or regularization that spreads the spectrum ("Eigenvalue Spectra")',
        source_of("concentrated, effective rank"),
        "weights",
    )


def condition(m: MatrixSpectrum, beside: Beside) -> Finding | None:
    """A condition number far above that of the baseline, or of nearly all random matrices of the shape."""
    number, base = m.metrics["condition_number"], beside.baseline
    low = m.null["s_min_low"]
    usual = (m.null["spectral_norm"] / low if low > 0 else math.inf) if base is None else base["condition_number"]
    if number < value_of("condition") or number < value_of("condition, times random") * usual or m.metrics["near_zero_fraction"] >= value_of("collapse, share"):
        return None
    at_least = ">= " if m.metrics["condition_number_is_lower_bound"] else ""
    return Finding(
        "warning",
        m.name,
        "ill-conditioned: some directions learned much better than others",
        f"condition number {at_least}{number:.2g} (of W Wᵀ {at_least}{m.metrics['gram_condition_number']:.2g})",
        f"{'not in the baseline; ' if beside.missing else ''}1 % of random matrices of the shape exceed {usual:.2g}"
        if base is None
        else f"in the baseline {'>= ' if base['condition_number_is_lower_bound'] else ''}{usual:.2g}",
        "normalisation before or after the layer; check the rank",
        source_of("condition", "condition, times random"),
        "weights",
    )


def rounded(m: MatrixSpectrum, beside: Beside) -> Finding | None:
    """Entries that use fewer bits than their format has."""
    if m.effective_precision > value_of("rounded, share of the bits") * FORMATS[m.dtype].precision:
        return None
    known = {8: "bfloat16", 11: "float16 or TF32", 24: "float32"}.get(m.effective_precision)
    of_format = f"{m.effective_precision} bits are those of {known}" if known else "no common format has that many bits"
    return Finding(
        "info",
        m.name,
        "stored wider than its precision",
        f"kept as {m.dtype} ({FORMATS[m.dtype].precision} bits), but the entries use {m.effective_precision} bits; "
        f"singular values below {m.rank_tolerances['storage']:.2g} are rounding noise",
        of_format if beside.baseline is None else f"{of_format}; in the baseline the entries use {beside.baseline['effective_precision']:.0f} bits",
        "the file can be smaller without loss",
        "ours: trailing zero bits of the significands",
        "weights",
    )
