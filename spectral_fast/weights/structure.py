"""From tensors to matrices: which matrices a tensor holds, under which names and roles, and why a tensor holds none."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any

from ..linalg.arrays import FORMATS
from ..results import Skipped
from .adapter_config import AdapterConfig
from .adapters import LoraPair, lora_pairs
from .fused import Piece, fused_pieces
from .not_weights import averaged_copies, why_not_a_weight
from .roles import UNKNOWN, Names, role_of, split_name
from .sources import TensorEntry

__all__ = ["MatrixPlan", "plan_matrices"]

_BLAS_LIMIT = 2**31 - 1
_MAX_KERNEL = 31
_CONV = re.compile(r"conv|downsample|patch_embed", re.IGNORECASE)
_EXPERTS = re.compile(r"expert|moe", re.IGNORECASE)
_EMBEDDINGS = ("embedding", "position embedding", "token type embedding", "position bias")

Index = int | tuple[int | slice, ...]


@dataclass(frozen=True)
class MatrixPlan:
    """One matrix inside a tensor.

    entry: the tensor. name: its name, with the part in brackets where it holds several. kind: linear, conv, embedding, rnn, attention, stack, lora or
    unknown role; role: what it does in the network (roles.py). shape: (m, n).
    view:  the tensor is reshaped to this (matrices, rows, columns); part: the index into that which gives the (m, n) matrix, also to write to it.
    in_out: stored (in, out), the transpose of torch's (out, in). tied: further names of the same tensor.
    lora:  the two factors whose product this is; there is then no tensor behind ``view`` and ``part``.
    """

    entry: TensorEntry
    name: str
    kind: str
    shape: tuple[int, int]
    view: tuple[int, int, int]
    part: Index
    tied: tuple[str, ...]
    role: str = UNKNOWN
    in_out: bool = False
    lora: LoraPair | None = None


def plan_matrices(
    entries: Sequence[TensorEntry], layers: str | Sequence[str] | None = None, adapter: AdapterConfig | None = None
) -> tuple[list[MatrixPlan], list[Skipped]]:
    """Matrices of all tensors, in order, then the products of LoRA pairs; tied tensors once, under their first name.

    layers:  glob or globs over tensor names; None takes all. adapter: where the scale of LoRA products is from.
    Raises ValueError when ``layers`` matches no tensor.
    """
    patterns = None if layers is None else [layers] if isinstance(layers, str) else list(layers)
    if patterns is not None and not any(fnmatchcase(e.name, p) for e in entries for p in patterns):
        raise ValueError(f"layers: {', '.join(map(repr, patterns))} matches none of {len(entries)} tensors (first: {', '.join(e.name for e in entries[:3])})")

    def asked(name: str) -> bool:
        return patterns is None or any(fnmatchcase(name, p) for p in patterns)

    tied: dict[object, list[str]] = {}
    for e in entries:
        tied.setdefault(e.storage, []).append(e.name)
    names = Names({e.name: e.shape for e in entries})
    copies = averaged_copies(entries)
    plans: list[MatrixPlan] = []
    skipped: list[Skipped] = []
    done: set[object] = set()
    taken: set[str] = set()
    for e in entries:
        why = ""
        if not asked(e.name):
            why = "not asked for (layers)"
        elif e.storage in done:
            why = f"tied to {tied[e.storage][0]}"
        else:
            done.add(e.storage)
            why = why_not_a_weight(e) or (f"EMA copy of {copies[e.name]}" if e.name in copies else "")
        if not why:
            made = _plans(e, names, tuple(n for n in tied[e.storage] if n != e.name))
            twice = "" if isinstance(made, str) else next((p.name for p in made if p.name in taken), "")
            if isinstance(made, str):
                why = made
            elif twice:
                why = f"its matrix would have the name of another one: {twice}"
            else:
                taken.update(p.name for p in made)
                plans += made
        if why:
            skipped.append(Skipped(e.name, why, e.shape))
    products, unusable = _products(entries, asked, adapter)
    return plans + products, skipped + unusable


def _plans(e: TensorEntry, names: Names, tied: tuple[str, ...]) -> list[MatrixPlan] | str:
    """The matrices of one tensor, or why there are none."""
    role = role_of(e.name, names, e.kind)
    in_out = names.stored_in_out(e.name)
    kind = _kind(e, role)
    if kind != "conv":
        matrices, rows, columns = prod(e.shape[:-2]), e.shape[-2], e.shape[-1]
    elif in_out and len(e.shape) > 2:  # (..., in, out)
        matrices, rows, columns = 1, prod(e.shape[:-1]), e.shape[-1]
    else:
        matrices, rows, columns = 1, e.shape[0], prod(e.shape[1:])
    if max(matrices, rows, columns) > _BLAS_LIMIT:
        return f"a dimension of {(matrices, rows, columns)} is beyond {_BLAS_LIMIT}"
    pieces = fused_pieces(e.name, role, (rows, columns), names, in_out) if kind != "conv" else [Piece("", role)]
    plans = []
    for i in range(matrices):
        for p in pieces:
            label = ", ".join(t for t in (str(i) if matrices > 1 else "", p.label) if t)
            shape = (_length(p.rows, rows), _length(p.columns, columns))
            part: Index = i if not p.label else (i, p.rows, p.columns)
            plans.append(MatrixPlan(e, f"{e.name}[{label}]" if label else e.name, kind, shape, (matrices, rows, columns), part, tied, p.role, in_out))
    return plans


def _length(span: slice, n: int) -> int:
    return len(range(*span.indices(n)))


def _kind(e: TensorEntry, role: str) -> str:
    if role.startswith("rnn."):
        return "rnn"
    if role in _EMBEDDINGS:
        return "embedding"
    if len(e.shape) == 2:
        if role.endswith((".qkv", ".kv")):
            return "attention"
        if e.kind not in (None, UNKNOWN):
            return e.kind
        return "linear" if role != UNKNOWN or (e.kind is None and split_name(e.name)[2]) else UNKNOWN
    if e.kind == "conv" or (e.kind is None and (role.startswith("conv") or _looks_like_kernel(e))):
        return "conv"
    return "stack" if e.kind in (None, "stack", UNKNOWN) else e.kind


def _looks_like_kernel(e: TensorEntry) -> bool:
    """Files do not say what a 3-D or higher tensor is: kernels of convolutions have short axes (Flax: the leading ones), expert stacks do not."""
    if _EXPERTS.search(e.name):
        return False
    grid = e.shape[:-2] if e.name.endswith(".kernel") else e.shape[2:]
    return bool(_CONV.search(e.name)) or all(n <= _MAX_KERNEL for n in grid)


def _products(entries: Sequence[TensorEntry], asked: Callable[[str], bool], adapter: AdapterConfig | None) -> tuple[list[MatrixPlan], list[Skipped]]:
    pairs, skipped = lora_pairs([e for e in entries if asked(e.name) or e.name.endswith(".alpha")], adapter)
    plans = []
    for pair in pairs:
        coarser = min((pair.b.dtype, pair.a.dtype), key=lambda d: FORMATS[d].precision)
        entry = TensorEntry(pair.name, pair.shape, coarser, ("lora", pair.b.storage, pair.a.storage), _no_tensor(pair))
        plans.append(MatrixPlan(entry, pair.name, "lora", pair.shape, (1, *pair.shape), 0, (), f"lora product ({pair.why})", False, pair))
    return plans, skipped


def _no_tensor(pair: LoraPair) -> Callable[[], Any]:
    def read() -> Any:
        raise ValueError(f"{pair.name}: a product of {pair.b.name} and {pair.a.name} that no tensor holds")

    return read
