"""Weight spectra as sections: one row per matrix, what was skipped grouped by reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .blocks import Block, Facts, Note, Section, Table
from .words import NOTHING, Column, integer, number, pick, plain, plus_minus, shape_text, share

if TYPE_CHECKING:
    from ..results import Skipped
    from ..weights.spectra import MatrixSpectrum, WeightSpectra

__all__ = ["TITLE", "alpha_text", "condition_text", "dtype_text", "matrix_section", "rank_text", "skipped_notes", "weight_section"]

TITLE = "WEIGHT MATRICES"

_SHORT_DTYPES = {"float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_DTYPE_BITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}
_NAMES_SHOWN = 4

# What a table's columns mean; a part is shown where something in the table needs it.
_CONDITION = "condition '>=': s_min lies below the rounding noise of the stored numbers, so this is a lower bound."
_RANK = "eff. rank: effective rank. rank: singular values above the rounding noise of the stored numbers / how many there are; ~0: share below it."
_BITS = "f32/11b: stored as float32, but only 11 bits of the significand are used."
_ALPHA = "alpha: exponent of the power-law tail of s², ± standard error."
_SPIKES = (
    "spikes: values above all that random entries like those of the bulk would give (5 % for all matrices together); soft rank: edge of the bulk / largest s²."
)


def weight_section(spectra: WeightSpectra, title: str = TITLE, rows: int | None = None) -> Section:
    """All matrices of a model or checkpoint. rows: at most so many in the table (None: all)."""
    matrices = spectra.matrices
    parameters = sum(math.prod(m.shape) for m in matrices if m.kind != "lora")  # the entries of a product are its factors'
    pairs = [("source", plain(spectra.source))] if spectra.source else []
    pairs.append(("analysed", f"{integer(len(matrices))} matrices" + (f", {integer(parameters)} entries" if parameters else "")))
    tied = [f"{plain(m.name)} = {', '.join(plain(t) for t in m.tied)}" for m in matrices if m.tied]
    if tied:
        pairs.append(("tied, counted once", "; ".join(tied[:_NAMES_SHOWN]) + (f"; and {len(tied) - _NAMES_SHOWN} more" if len(tied) > _NAMES_SHOWN else "")))
    stored = {dtype_text(m) for m in matrices}
    if len(stored) == 1:
        pairs.append(("stored as", stored.pop()))
    if spectra.baseline:
        partners = sum(bool(m.baseline) for m in matrices)
        pairs.append(("baseline", f"{plain(spectra.baseline)}: {integer(partners)} of {integer(len(matrices))} matrices compared with theirs"))
    blocks: list[Block] = [Facts(pairs)]
    if matrices:
        shown = matrices if rows is None else matrices[:rows]
        blocks.append(_matrix_table(shown))
        if len(shown) < len(matrices):
            blocks.append(Note(f"and {len(matrices) - len(shown)} more matrices: to_pandas(), to_json() and save_html() list every one.", "note"))
    blocks += [Note(f"{plain(m.name)}: {m.status}: {plain(m.reason)}", "note") for m in matrices if m.status != "ok"]
    blocks += skipped_notes(spectra.skipped)
    blocks += skipped_notes(spectra.not_compared, "not compared")
    return Section(title, blocks, "weights")


def _matrix_table(matrices: Sequence[MatrixSpectrum]) -> Table:
    names = [plain(m.name) for m in matrices]
    all_weights = len(names) > 1 and all(n.endswith(".weight") for n in names)
    if all_weights:
        names = [n.removesuffix(".weight") for n in names]

    def metric(key: str, digits: int = 3) -> list[str]:
        return [number(m.metrics.get(key), digits) for m in matrices]

    status = [m.status for m in matrices]
    conditions, alphas, spikes = [condition_text(m) for m in matrices], [alpha_text(m).replace(" ", "") for m in matrices], [spikes_text(m) for m in matrices]
    stored = [dtype_text(m) for m in matrices]  # one format for all is said once, above the table
    legend = (
        (_CONDITION, any(c.startswith(">=") for c in conditions)),
        (_RANK, any(m.ranks for m in matrices)),
        (_BITS, any("/" in d for d in stored)),
        (_ALPHA, any(a != NOTHING for a in alphas)),
        (_SPIKES, any(s != NOTHING for s in spikes)),
    )
    return Table(
        columns=(
            Column("name (.weight)" if all_weights else "name", names, "left", shrink=18),
            Column("role", [role_text(m) for m in matrices], "left", drop=7),
            Column("shape", [shape_text(m.shape) for m in matrices], drop=4),
            Column("dtype", stored if len(set(stored)) > 1 else [""] * len(stored), "left", drop=6),
            Column("spectral\nnorm", metric("spectral_norm")),
            Column("s_min", metric("s_min"), drop=3),
            Column("condition\nnumber", conditions),
            Column("stable\nrank", metric("stable_rank"), drop=5),
            Column("eff.\nrank", metric("effective_rank"), drop=2),
            Column("rank", [rank_text(m) for m in matrices]),
            Column("~0", [share(m.metrics.get("near_zero_fraction")) for m in matrices], drop=8),
            Column("alpha", alphas, drop=1),
            Column("spikes", spikes, drop=9),
            Column("soft\nrank", [number(m.mp.soft_rank, 2) for m in matrices], drop=10),
            Column("status", status if any(s != "ok" for s in status) else [""] * len(status), "left"),
        ),
        legend=" ".join(text for text, used in legend if used),
    )


def condition_text(m: MatrixSpectrum) -> str:
    text = number(m.metrics.get("condition_number"), 3)
    return f">={text}" if m.metrics.get("condition_number_is_lower_bound") and text != NOTHING else text


def rank_text(m: MatrixSpectrum) -> str:
    return f"{m.ranks['storage']}/{len(m.s)}" if "storage" in m.ranks else NOTHING


def role_text(m: MatrixSpectrum) -> str:
    """The role without its explanation in parentheses; where none is known, the kind."""
    return plain(m.kind if m.role == "unknown role" else m.role.partition(" (")[0])


def alpha_text(m: MatrixSpectrum) -> str:
    fit = m.power_law
    return plus_minus(pick(fit, "alpha", None), pick(fit, "stderr", None)) if fit is not None else NOTHING


def spikes_text(m: MatrixSpectrum) -> str:
    return integer(m.mp.n_spikes) if m.mp.status == "ok" else NOTHING


def dtype_text(m: MatrixSpectrum) -> str:
    """The stored format; with the bits of the significand really used where a cast hides a narrower format."""
    name = _SHORT_DTYPES.get(m.dtype, plain(m.dtype))
    full = _DTYPE_BITS.get(m.dtype)
    used = m.effective_precision
    return f"{name}/{used}b" if full is not None and used is not None and used < full else name


def matrix_section(m: MatrixSpectrum) -> Section:
    """Everything known about one matrix."""
    pairs = [
        ("kind", plain(m.kind)),
        ("role", plain(m.role)),
        ("matrix", shape_text(m.shape) + (f"  from a tensor {shape_text(m.tensor_shape)}" if tuple(m.tensor_shape) != tuple(m.shape) else "")),
        ("stored as", dtype_text(m)),
    ]
    if m.in_out:
        pairs.append(("orientation", "(in, out): the transpose of torch's Linear"))
    if m.tied:
        pairs.append(("tied with", ", ".join(plain(t) for t in m.tied)))
    if m.status != "ok":
        pairs.append(("status", f"{m.status}: {plain(m.reason)}"))
    fit = m.power_law
    if fit is not None:
        used = f"{integer(fit.n_tail)} of {integer(fit.n_values)} values in the tail"
        tail = f"alpha {alpha_text(m)}, xmin {number(fit.xmin)}, KS distance {number(fit.D, 3)}, {used}"
        pairs.append(("power-law tail", tail if fit.status == "ok" else f"{fit.status}: {plain(fit.reason)}"))
    mp = m.mp
    bulk = f"as of entries of variance {number(mp.var)}, edges {number(mp.lower_edge)} to {number(mp.upper_edge)}, KS distance {number(mp.distance, 3)}"
    pairs.append(("random bulk", bulk if mp.status == "ok" else f"{mp.status}: {plain(mp.reason)}"))
    if mp.status == "ok":
        largest = f", the largest {', '.join(number(v) for v in mp.spikes[:_NAMES_SHOWN])}" if mp.n_spikes else ""
        pairs.append(("spikes", f"{integer(mp.n_spikes)} above {number(mp.threshold)}{largest}; soft rank {number(mp.soft_rank, 3)}"))
    if m.permutation is not None:
        shuffled = m.permutation.spectral_norm
        p = number(m.permutation.p_value(float(m.s[0])), 2)
        pairs.append(
            ("entries shuffled", f"spectral norm {number(shuffled.mean)}, largest of {m.permutation.n_permutations} {number(shuffled.largest)}, p {p}")
        )
    blocks: list[Block] = [Facts(pairs)]
    shown = [(k.replace("_", " "), k) for k in m.metrics if k != "condition_number_is_lower_bound"]
    if shown:
        values = [condition_text(m) if key == "condition_number" else number(m.metrics[key], 5) for _, key in shown]
        null = [number(m.null.get(key), 5) if key in m.null else "" for _, key in shown]
        base = [number(m.baseline.get(key), 5) if m.baseline else "" for _, key in shown]
        columns = (Column("quantity", [label for label, _ in shown], "left"), Column("value", values), Column("random matrix", null))
        blocks.append(Table((*columns, Column("baseline", base))))
    if m.ranks:
        rules = list(m.ranks)
        blocks.append(
            Table(
                (
                    Column("rank under rule", rules, "left"),
                    Column("tolerance", [number(m.rank_tolerances.get(r), 3) for r in rules]),
                    Column("rank", [f"{m.ranks[r]}/{len(m.s)}" for r in rules]),
                )
            )
        )
    return Section(f"MATRIX {plain(m.name)}", blocks, "weights")


def skipped_notes(skipped: Sequence[Skipped], lead: str = "skipped") -> list[Block]:
    """One note per reason, with the first few names; JSON and tables list them all."""
    reasons: dict[str, list[str]] = {}
    for item in skipped:
        shape = f" ({shape_text(item.shape)})" if item.shape is not None else ""
        reasons.setdefault(plain(item.reason), []).append(plain(item.name) + shape)
    notes: list[Block] = []
    for reason, names in reasons.items():
        more = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        count = f"{len(names)} x " if len(names) > 1 else ""
        notes.append(Note(f"{count}{reason}: {', '.join(names[:_NAMES_SHOWN])}{more}", lead))
    return notes
