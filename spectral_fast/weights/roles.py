"""What a tensor does in its network: its role, from its name and the names and shapes beside it.

A role is finer than a kind: "attention.q", "mlp.down", "expert.gate", "router", "head". A name that several architectures use for different things
counts only with evidence beside it (a ``gate`` is a router where its sibling is ``experts``); a name that says nothing is an "unknown role".
Names and shapes are those of the published checkpoints (torch, Hugging Face transformers and diffusers, torchvision, timm, OpenAI, Meta).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["UNKNOWN", "Names", "role_of", "split_name"]

UNKNOWN = "unknown role"

Shape = tuple[int, ...]

_SUFFIX = re.compile(r"^(.*?)((?:\.base_layer)?\.(?:weight|kernel))$")
_SUFFIXES = (".weight", "", ".base_layer.weight", ".kernel")


def split_name(name: str) -> tuple[str, str, str]:
    """(parent module, last part, suffix): "h.0.attn.c_attn.weight" -> ("h.0.attn.", "c_attn", ".weight"). The parent keeps its dot."""
    found = _SUFFIX.match(name)
    path, suffix = (found[1], found[2]) if found else (name, "")
    if path.endswith("to_out.0"):  # diffusers: a Sequential of output projection and dropout, one thing
        path = path.removesuffix(".0")
    cut = path.rfind(".") + 1
    return path[:cut], path[cut:], suffix


class Names:
    """The names and shapes of all tensors of a source, to look beside one of them."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = dict(shapes)
        self._modules: set[str] = set()
        for name in shapes:
            at = name.find(".")
            while at > 0:
                self._modules.add(name[:at])
                at = name.find(".", at + 1)
        # transformers' Conv1D stores (in, out); the same names with torch's Linear, as in minimal GPTs, are (3 in, in).
        self.conv1d = any(s[1] == 3 * s[0] for n, s in shapes.items() if len(s) == 2 and n.endswith("attn.c_attn.weight"))

    def beside(self, *paths: str) -> Shape | None:
        """Shape of the first of these modules' weights (or of the parameter itself) that exists."""
        return next((self.shapes[p + s] for p in paths for s in _SUFFIXES if p + s in self.shapes), None)

    def has(self, module: str) -> bool:
        """Is there a module of this name?"""
        return module in self._modules

    def stored_in_out(self, name: str) -> bool:
        """Is this weight stored (in, out), the transpose of torch's (out, in)? Flax and Keras kernels, transformers' Conv1D, experts for ``bmm``."""
        parent, leaf, suffix = split_name(name)
        if suffix == ".kernel":
            return True
        if leaf in ("c_attn", "c_proj", "c_fc", "q_attn"):
            return self.conv1d
        if leaf in ("gate_up_proj", "down_proj") and len(self.shapes[name]) == 3:
            both, down = self.beside(f"{parent}gate_up_proj"), self.beside(f"{parent}down_proj")
            return both is not None and down is not None and len(both) == len(down) == 3 and both[1:] == (down[2], 2 * down[1])
        return False


# Last parts of names that mean the same in or below a module called like attention.
_ATTENTION_PARTS = {
    "q": "q query wq q_lin q_attn query_proj q_proj to_q add_q_proj q_proj_weight",
    "k": "k key wk k_lin key_proj k_proj to_k add_k_proj k_proj_weight",
    "v": "v value wv v_lin value_proj v_proj to_v add_v_proj v_proj_weight",
    "output": "o wo out proj c_proj dense out_lin out_proj o_proj to_out to_add_out proj_attn",
    "qkv": "qkv c_attn qkv_proj Wqkv W_pack wqkv query_key_value in_proj_weight in_proj",
    "kv": "kv to_kv kv_proj",
    "q_a": "q_a_proj",
    "q_b": "q_b_proj",
    "kv_a": "kv_a_proj_with_mqa",
    "kv_b": "kv_b_proj",
}
_ATTENTION_LEAVES = {leaf: part for part, leaves in _ATTENTION_PARTS.items() for leaf in leaves.split()}
# These say attention by themselves, whatever the module is called.
_ONLY_ATTENTION = set(
    "q_proj k_proj v_proj o_proj to_q to_k to_v to_out add_q_proj add_k_proj add_v_proj to_add_out q_lin k_lin v_lin out_lin in_proj_weight c_attn "
    "query_key_value Wqkv q_proj_weight k_proj_weight v_proj_weight q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj".split()
)
_ATTENTION = re.compile(r"(?:^|\.)\w*(?:attn|attention)\w*(?:\.(?:self|attention|output))?\.$", re.IGNORECASE)
_CROSS = re.compile(r"(?:^|\.)(?:encoder_attn|cross_?attn|cross_?attention|EncDecAttention|transformer_blocks\.\d+\.attn2)\.", re.IGNORECASE)

_MLP_LEAVES = {
    **dict.fromkeys("up_proj c_fc fc1 fc_in wi lin1 linear_1 linear_fc1 dense_h_to_4h".split(), "up"),
    **dict.fromkeys("down_proj c_proj fc2 fc_out wo lin2 linear_2 linear_fc2 dense_4h_to_h".split(), "down"),
    "gate_proj": "gate",
    "gate_up_proj": "gate_up",
}
_MLP = re.compile(r"(?:^|\.)(?:mlp|ffn|feed_forward|shared_mlp|DenseReluDense|DenseGatedActDense|experts(?:\.(?:expert_)?\d+)?(?:\.mlp)?|shared_experts?)\.$")
_EXPERT = re.compile(r"(?:^|\.)experts\.(?:(?:expert_)?\d+\.|$)")

_LEAVES = {
    **dict.fromkeys("wte embed_tokens word_embeddings tok_embeddings token_embd token_embedding tokens_embed embed_in".split(), "embedding"),
    **dict.fromkeys("embedding embeddings embed emb".split(), "embedding"),
    **dict.fromkeys(
        (
            "wpe embed_positions position_embd pos pos_emb pos_enc pos_encoding "
            "positional_encoding position_embeddings position_embedding positional_embedding pos_embed pos_embedding"
        ).split(),
        "position embedding",
    ),
    **dict.fromkeys("token_type_embeddings segment_embeddings".split(), "token type embedding"),
    **dict.fromkeys("relative_attention_bias relative_position_bias_table".split(), "position bias"),
    **dict.fromkeys("time_emb_proj".split(), "time embedding"),
    **dict.fromkeys("lm_head embed_out qa_outputs".split(), "head"),
    "shared_expert_gate": "shared expert gate",
}
# Whole ends of names; checked in order.
_ENDS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?:^|[._])(?:weight|w)_ih(?:_l\d+(?:_reverse)?)?$"), "rnn.input"),
    (re.compile(r"(?:^|[._])(?:weight|w)_hh(?:_l\d+(?:_reverse)?)?$"), "rnn.hidden"),
    (re.compile(r"(?:^|[._])weight_hr(?:_l\d+(?:_reverse)?)?$"), "rnn.projection"),
    (re.compile(r"\b(?:lora_A|lora_embedding_A|lora_down|lora\.down|lora_linear_layer\.down)\b"), "lora.A"),
    (re.compile(r"\b(?:lora_B|lora_embedding_B|lora_up|lora\.up|lora_linear_layer\.up)\b"), "lora.B"),
    (re.compile(r"(?:^|\.)(?:patch_embed\.proj|patch_embeddings?(?:\.projection)?|conv_proj)\.weight$"), "patch embedding"),
    (re.compile(r"(?:^|\.)time_embed(?:ding)?\.(?:linear_)?\d+\.weight$"), "time embedding"),
    (re.compile(r"(?:^|\.)cls\.predictions\.decoder\.weight$|(?:^|\.)lm_head\.decoder\.weight$|(?:^|\.)cls\.seq_relationship\.weight$"), "head"),
    (re.compile(r"(?:^|\.)cls\.predictions\.transform\.dense\.weight$|(?:^|\.)lm_head\.dense\.weight$"), "head.transform"),
    (re.compile(r"(?:^|\.)pooler\.dense\.weight$"), "pooler"),
    (re.compile(r"^(?:model\.)?(?:head|head\.fc|heads\.head|classifier|classifier\.out_proj|score)\.(?:weight|kernel)$"), "head"),
)
# GGUF's names: blk.0.attn_q.weight and the like.
_GGUF_PARENT = re.compile(r"^(?:enc\.|dec\.)?blk\.\d+\.$")
_GGUF_LEAVES = {
    **{f"attn_{leaf}": f"attention.{part}" for leaf, part in (("q", "q"), ("k", "k"), ("v", "v"), ("output", "output"), ("qkv", "qkv"))},
    **{f"ffn_{part}": f"mlp.{part}" for part in ("gate", "up", "down")},
    **{f"ffn_{part}_exps": f"expert.{part}" for part in ("gate", "up", "down")},
    **{f"ffn_{part}_shexp": f"shared expert.{part}" for part in ("gate", "up", "down")},
    "ffn_gate_inp": "router",
    "ffn_gate_inp_shexp": "shared expert gate",
}
_CONV = re.compile(r"conv", re.IGNORECASE)
_CONV_PARENT = re.compile(r"(?:^|\.)\w*(?:conv|downsample|upsample)\w*\.\d+\.weight$", re.IGNORECASE)  # one of a Sequential of that name
_MAX_KERNEL = 31


def role_of(name: str, names: Names, module_kind: str | None = None) -> str:
    """The role of one tensor of ``names``; "unknown role" where neither its name nor what stands beside it says.

    module_kind: what its torch module is (sources.TensorEntry.kind), None for files.
    """
    shape = names.shapes[name]
    role = _by_end(name, shape)
    if role == UNKNOWN and _is_matrix_like(shape):
        parent, leaf, _ = split_name(name)
        for rule in (_gguf, _attention, _router, _mlp, _beside_others, _leaf, _top):
            role = rule(parent, leaf, shape, names)
            if role != UNKNOWN:
                break
    if role != UNKNOWN:
        return role
    if module_kind == "embedding":
        return "embedding"
    return _conv(name, shape, module_kind)


def _is_matrix_like(shape: Shape) -> bool:
    """A matrix, a 1 x 1 convolution, a stack of matrices or a matrix with a leading 1; not a kernel with a grid."""
    return len(shape) in (2, 3) or all(n == 1 for n in shape[2:])


def _by_end(name: str, shape: Shape) -> str:
    role = next((role for pattern, role in _ENDS if pattern.search(name)), UNKNOWN)
    return UNKNOWN if role == "head" and len(shape) != 2 else role


def _gguf(parent: str, leaf: str, shape: Shape, names: Names) -> str:
    return _GGUF_LEAVES.get(leaf, UNKNOWN) if _GGUF_PARENT.match(parent) else UNKNOWN


def _attention(parent: str, leaf: str, shape: Shape, names: Names) -> str:
    part = _ATTENTION_LEAVES.get(leaf)
    if part is None:
        return UNKNOWN
    beside = leaf == "out_proj" and names.beside(f"{parent}in_proj_weight", f"{parent}q_proj_weight", f"{parent}q_proj") is not None
    if not (leaf in _ONLY_ATTENTION or _ATTENTION.search(parent) or beside):
        return UNKNOWN
    if leaf == "c_attn" and names.beside(f"{parent}q_attn") is not None:
        part = "kv"  # GPT-2's cross attention: queries apart, keys and values fused
    return f"{'cross attention' if _CROSS.search(parent) else 'attention'}.{part}"


def _router(parent: str, leaf: str, shape: Shape, names: Names) -> str:
    if leaf == "router" or (leaf == "gate" and names.has(f"{parent}experts")):
        return "router" if names.has(f"{parent}experts") and len(shape) == 2 else UNKNOWN
    if leaf in ("classifier", "layer") and parent.endswith("router."):
        return "router"
    return UNKNOWN


def _mlp(parent: str, leaf: str, shape: Shape, names: Names) -> str:
    """Feed-forward blocks and experts, where the parent is called like one."""
    if not _MLP.search(parent):
        return UNKNOWN
    part = _MLP_LEAVES.get(leaf, "")
    if leaf in ("w1", "w2", "w3"):
        part = _numbered(parent, leaf, names)
    elif leaf in ("wi_0", "wi_1"):
        part = {"wi_0": "gate", "wi_1": "up"}[leaf]
    elif leaf == "dense_h_to_4h" and (down := names.beside(f"{parent}dense_4h_to_h")) is not None and len(down) == 2 and shape[0] == 2 * down[1]:
        part = "gate_up"
    if not part:
        return UNKNOWN
    block = "shared expert" if "shared_expert" in parent else "expert" if _EXPERT.search(parent) else "mlp"
    return f"{block}.{part}"


def _numbered(parent: str, leaf: str, names: Names) -> str:
    """w1, w2, w3 as Meta's Llama and Mixtral use them: w2 (w1 x * w3 x), or w2 w1 x; where the shapes disagree they mean something else."""
    w1, w2, w3 = (names.beside(f"{parent}w{i}") for i in (1, 2, 3))
    if w1 is None or w2 is None or len(w1) != 2 or w2 != w1[::-1] or (w1[0] == w1[1] and w3 is None) or w3 not in (None, w1):
        return ""
    return {"w1": "up" if w3 is None else "gate", "w2": "down", "w3": "up"}[leaf]


def _beside_others(parent: str, leaf: str, shape: Shape, names: Names) -> str:
    """Feed-forward blocks under names of no meaning of their own, told by what stands beside them in the block."""
    block, _, last = parent.rstrip(".").rpartition(".")
    prefix = f"{block}." if block else ""
    if leaf in ("fc1", "linear1", "fc2", "linear2") and names.has(f"{parent}self_attn"):
        return "mlp.up" if leaf.endswith("1") else "mlp.down"
    if leaf == "dense" and last == "intermediate" and names.has(f"{prefix}attention"):
        return "mlp.up"
    if leaf == "dense" and last == "output" and names.beside(f"{prefix}intermediate.dense") is not None:
        return "mlp.down"
    if leaf in ("pwconv1", "pwconv2") and names.beside(f"{parent}dwconv") is not None:
        return "mlp.up" if leaf == "pwconv1" else "mlp.down"
    if leaf in ("0", "2", "3") and last == "mlp" and any(names.has(f"{prefix}{a}") for a in ("attn", "self_attention", "self_attn")):
        return "mlp.up" if leaf == "0" else "mlp.down"
    if leaf in ("3", "5") and last == "block" and (depthwise := names.beside(f"{parent}0")) is not None and len(depthwise) == 4 and depthwise[1] == 1:
        return "mlp.up" if leaf == "3" else "mlp.down"  # torchvision's ConvNeXt block: depthwise, permute, norm, up, GELU, down
    if leaf == "2" and parent.endswith("ff.net."):
        return "mlp.down"
    if leaf == "proj" and parent.endswith("ff.net.0.") and (down := names.beside(f"{parent[:-2]}2")) is not None and len(down) == 2:
        return {2 * down[1]: "mlp.gate_up", down[1]: "mlp.up"}.get(shape[0], UNKNOWN)
    return UNKNOWN


def _leaf(parent: str, leaf: str, shape: Shape, names: Names) -> str:
    return _LEAVES.get(leaf, "embedding" if leaf.endswith(("_embedding", "_embeddings")) else UNKNOWN)


def _top(parent: str, leaf: str, shape: Shape, names: Names) -> str:
    """Names that mean something only at the top of a model, beside what tells the model."""
    if parent.endswith("classifier.") and leaf.isdigit():
        numbers = [n[len(parent) :].split(".")[0] for n, s in names.shapes.items() if n.startswith(parent) and len(s) == 2]
        return "head" if len(shape) == 2 and int(leaf) == max(int(i) for i in numbers if i.isdigit()) else UNKNOWN
    if parent not in ("", "model.", "module."):
        return UNKNOWN
    evidence = {
        "fc": ("layer1.0",),
        "output": ("tok_embeddings", "token_embd"),
        "proj_out": ("model.decoder", "decoder"),
        "shared": ("encoder.block", "decoder.block"),
    }
    if leaf not in evidence or len(shape) != 2 or not any(names.has(f"{p}{e}") for e in evidence[leaf] for p in ("", parent)):
        return UNKNOWN
    return "embedding" if leaf == "shared" else "head"


def _conv(name: str, shape: Shape, module_kind: str | None) -> str:
    """Files do not say what a tensor of three or more axes is: its own name does, or four axes and more of which the trailing ones are short."""
    named = _CONV.search(split_name(name)[1]) is not None or _CONV_PARENT.search(name) is not None
    by_shape = len(shape) > 3 and all(n <= _MAX_KERNEL for n in shape[2:])
    if module_kind != "conv" and not (module_kind is None and len(shape) > 2 and (named or by_shape) and "expert" not in name.lower()):
        return UNKNOWN
    return "conv.depthwise" if len(shape) > 2 and shape[1] == 1 and re.search(r"dwconv|conv_dw|depthwise", name) else "conv"
