"""From tensors to matrices: which matrices a tensor holds, under which names, and why a tensor holds none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..linalg.arrays import FORMATS
from ..results import Skipped
from .sources import TensorEntry

__all__ = ["MatrixPlan", "plan_matrices"]

_BLAS_LIMIT = 2**31 - 1
_RNN = re.compile(r"(^|[._])weight_(ih|hh|hr)(_l\d+(_reverse)?)?$")
_EMBEDDING = re.compile(r"(^|[._])(embed|embedding|embeddings|wte|wpe|embed_tokens|embed_positions|(word|position|token_type)_embeddings)[._]", re.IGNORECASE)
_CONV = re.compile(r"conv|downsample|patch_embed", re.IGNORECASE)
_EXPERTS = re.compile(r"expert|moe", re.IGNORECASE)
_FIXED = re.compile(r"(^|[._])(buffer|basis_buffer|forward_basis_buffer|inv_freq|masked_bias|position_ids|window)$")
_MAX_KERNEL = 31
_GATES = {4: "ifgo", 3: "rzn"}  # torch's order: LSTM input, forget, cell, output; GRU reset, update, new


@dataclass(frozen=True)
class MatrixPlan:
    """One matrix inside a tensor.

    entry: the tensor. name: its name, with the part in brackets where it holds several. shape: (m, n).
    view:  the tensor is reshaped to this (parts, m, n); part: which of them this is.
    tied:  further names of the same tensor.
    """

    entry: TensorEntry
    name: str
    kind: str
    shape: tuple[int, int]
    view: tuple[int, int, int]
    part: int
    tied: tuple[str, ...]


def plan_matrices(entries: Sequence[TensorEntry], layers: str | Sequence[str] | None = None) -> tuple[list[MatrixPlan], list[Skipped]]:
    """Matrices of all tensors, in order; tied tensors once, under their first name.

    layers: glob or globs over tensor names; None takes all.
    Raises ValueError when ``layers`` matches no tensor.
    """
    patterns = None if layers is None else [layers] if isinstance(layers, str) else list(layers)
    if patterns is not None and not any(fnmatchcase(e.name, p) for e in entries for p in patterns):
        raise ValueError(f"layers: {layers!r} matches none of {len(entries)} tensors (first: {', '.join(e.name for e in entries[:3])})")
    names: dict[object, list[str]] = {}
    for e in entries:
        names.setdefault(e.storage, []).append(e.name)
    rows_of_hh = {e.name: e.shape for e in entries}
    plans: list[MatrixPlan] = []
    skipped: list[Skipped] = []
    done: set[object] = set()
    for e in entries:
        if patterns is not None and not any(fnmatchcase(e.name, p) for p in patterns):
            skipped.append(Skipped(e.name, "not asked for (layers)", e.shape))
            continue
        if e.storage in done:
            skipped.append(Skipped(e.name, f"tied to {names[e.storage][0]}", e.shape))
            continue
        done.add(e.storage)
        why = _why_not(e)
        if why:
            skipped.append(Skipped(e.name, why, e.shape))
            continue
        kind, parts, labels = _parts(e, rows_of_hh)
        size = 1
        for n in e.shape:
            size *= n
        rows = e.shape[-2] if kind == "stack" else e.shape[0] // parts
        view = (parts, rows, size // (parts * rows))
        if max(view) > _BLAS_LIMIT:
            skipped.append(Skipped(e.name, f"a dimension of {view} is beyond {_BLAS_LIMIT}", e.shape))
            continue
        tied = tuple(n for n in names[e.storage] if n != e.name)
        for i in range(parts):
            name = f"{e.name}[{labels[i] if labels else i}]" if parts > 1 else e.name
            plans.append(MatrixPlan(e, name, kind, (view[1], view[2]), view, i, tied))
    return plans, skipped


def _why_not(e: TensorEntry) -> str:
    if e.dtype not in FORMATS:
        return f"{e.dtype} is not a floating-point format"
    if 0 in e.shape:
        return "empty"
    if len(e.shape) < 2:
        return "scalar: no spectrum" if not e.shape else "vector: no spectrum"
    if e.fixed:
        return "fixed buffer, not a weight"
    if _FIXED.search(e.name):
        return "fixed buffer by its name, not a weight"
    return ""


def _parts(e: TensorEntry, shapes: dict[str, tuple[int, ...]]) -> tuple[str, int, str]:
    """(kind, number of matrices, one letter per matrix or "")."""
    if len(e.shape) == 2:
        if e.kind in (None, "rnn") and _RNN.search(e.name):
            gates = _gates(e.name, shapes)
            return "rnn", gates, _GATES.get(gates, "")
        if e.kind in (None, "attention") and e.name.endswith("in_proj_weight") and e.shape[0] % 3 == 0:
            return "attention", 3, "qkv"
        if e.kind is not None:
            return e.kind, 1, ""
        if _EMBEDDING.search(f"{e.name}."):
            return "embedding", 1, ""
        return ("linear" if e.name.split(".")[-1] in ("weight", "kernel") else "unknown role"), 1, ""
    if e.kind == "conv" or (e.kind is None and _looks_like_kernel(e)):
        return "conv", 1, ""
    if e.kind in (None, "stack", "unknown role"):
        parts = 1
        for n in e.shape[:-2]:
            parts *= n
        return "stack", parts, ""
    return e.kind, 1, ""


def _looks_like_kernel(e: TensorEntry) -> bool:
    """Files do not say what a 3-D or higher tensor is: kernels of convolutions have short trailing axes, expert stacks do not."""
    if _EXPERTS.search(e.name):
        return False
    return bool(_CONV.search(e.name)) or all(n <= _MAX_KERNEL for n in e.shape[2:])


def _gates(name: str, shapes: dict[str, tuple[int, ...]]) -> int:
    """Gates of a recurrent weight from its recurrent partner's shape (gates * hidden, hidden); 1 where that says nothing (projections)."""
    partner = shapes.get(name.replace("weight_ih", "weight_hh"))
    if "weight_hr" in name or partner is None or len(partner) != 2 or partner[1] == 0:
        return 1
    gates, rest = divmod(partner[0], partner[1])
    return gates if rest == 0 and gates in _GATES and shapes[name][0] == partner[0] else 1
