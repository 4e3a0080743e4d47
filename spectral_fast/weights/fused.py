"""Fused weights taken apart: q/k/v, k/v, gate/up and the gates of recurrent layers, where names and shapes determine the parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .roles import Names, split_name

__all__ = ["Piece", "fused_pieces"]

_GATES = {4: "ifgo", 3: "rzn"}  # torch's order: LSTM input, forget, cell, output; GRU reset, update, new
_HEADS = "(fused q/k/v: heads unknown)"
# Blocks of all queries, all keys, all values one after the other. query_key_value and wqkv are interleaved per head in some models and not in
# others, so these names alone determine nothing.
_CONCATENATED = {"qkv", "c_attn", "qkv_proj", "Wqkv", "W_pack"}
_OUTPUTS = ("o_proj", "proj", "c_proj", "out_proj", "dense", "wo", "Wo", "out", "out_lin", "to_out.0")


@dataclass(frozen=True)
class Piece:
    """A part of a matrix: its label, role, and the rows and columns it takes."""

    label: str
    role: str
    rows: slice = field(default_factory=lambda: slice(None))
    columns: slice = field(default_factory=lambda: slice(None))


def fused_pieces(name: str, role: str, shape: tuple[int, int], names: Names, in_out: bool) -> list[Piece]:
    """The parts of the (m, n) matrix ``name``; one piece with an empty label where there is nothing to take apart or it is not determined.

    in_out: the matrix is stored (in, out), so outputs are columns.
    """
    parent, leaf, _ = split_name(name)
    outputs, inputs = (shape[1], shape[0]) if in_out else shape
    sizes: dict[str, int] = {}
    order = "one after the other"
    block, _, part = role.rpartition(".")
    if part == "qkv":
        sizes, role = _qkv(parent, leaf, role, outputs, names, in_out)
    elif part == "kv":
        if leaf == "c_attn" and outputs == 2 * inputs:
            sizes = {"k": inputs, "v": inputs}
        else:
            role = f"{role} (fused k/v: heads unknown)"
    elif part == "gate_up":
        sizes, order, role = _gate_up(parent, leaf, role, outputs, names, in_out)
    elif role.startswith("rnn."):
        gates = _gates(name, names)
        return [Piece(letter, role, slice(i * (shape[0] // gates), (i + 1) * (shape[0] // gates))) for i, letter in enumerate(_GATES.get(gates, ""))] or [
            Piece("", role)
        ]
    if not sizes:
        return [Piece("", role)]
    spans: dict[str, slice] = {}
    start = 0
    for i, (label, size) in enumerate(sizes.items()):
        spans[label] = slice(i, None, len(sizes)) if order == "interleaved" else slice(start, start + size)
        start += size
    place: Callable[[str, slice], Piece] = (
        (lambda label, span: Piece(label, f"{block}.{label}", columns=span)) if in_out else (lambda label, span: Piece(label, f"{block}.{label}", rows=span))
    )
    return [place(label, span) for label, span in spans.items()]


def _qkv(parent: str, leaf: str, role: str, outputs: int, names: Names, in_out: bool) -> tuple[dict[str, int], str]:
    """Sizes of q, k, v. The output projection takes all heads, so its inputs count the queries; keys and values share the rest (GQA)."""
    if leaf == "in_proj_weight" and outputs % 3 == 0:  # torch's MultiheadAttention: three blocks of embed_dim each
        return dict.fromkeys("qkv", outputs // 3), role
    # qkv without a module called attention is guided diffusion's, per head; CodeGen's attn.qkv_proj is in blocks of its own.
    known = leaf in _CONCATENATED and (leaf != "qkv" or "att" in parent.lower()) and (leaf != "qkv_proj" or parent.endswith("self_attn."))
    output = names.beside(*(f"{parent}{o}" for o in _OUTPUTS))
    if not known or output is None or len(output) < 2:
        return {}, f"{role} {_HEADS}"
    queries = output[0] if in_out else output[1]
    pairs, odd = divmod(outputs - queries, 2)
    if odd or pairs <= 0 or queries % pairs:
        return {}, f"{role} {_HEADS}"
    return {"q": queries, "k": pairs, "v": pairs}, role


def _gate_up(parent: str, leaf: str, role: str, outputs: int, names: Names, in_out: bool) -> tuple[dict[str, int], str, str]:
    """Halves of a gated feed-forward block, confirmed by the width of the matrix that follows."""
    down = names.beside(f"{parent[:-2]}2" if leaf == "proj" else f"{parent}{'dense_4h_to_h' if leaf == 'dense_h_to_4h' else 'down_proj'}")
    width = None if down is None or len(down) < 2 else down[-2] if in_out and len(down) == 3 else down[-1]
    if width is None or outputs != 2 * width or leaf == "dense_h_to_4h":
        return {}, "", f"{role} (fused gate/up: order unknown)"
    if leaf == "proj":  # diffusers' GEGLU: value, then gate
        return {"up": width, "gate": width}, "one after the other", role
    # Experts with a bias beside them (gpt-oss) alternate gate and up along the outputs; all others keep two blocks, gate first.
    interleaved = in_out and f"{parent}gate_up_proj_bias" in names.shapes
    return {"gate": width, "up": width}, "interleaved" if interleaved else "one after the other", role


def _gates(name: str, names: Names) -> int:
    """Gates of a recurrent weight from its recurrent partner's shape (gates * hidden, hidden); 1 where that says nothing (projections)."""
    partner = names.shapes.get(name.replace("weight_ih", "weight_hh").replace("w_ih", "w_hh"))
    if "weight_hr" in name or partner is None or len(partner) != 2 or partner[1] == 0:
        return 1
    gates, rest = divmod(partner[0], partner[1])
    return gates if rest == 0 and gates in _GATES and names.shapes[name][0] == partner[0] else 1
