"""Tensors that hold no weight matrix, and why: vectors, buffers, optimizer moments, averaged copies."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..linalg.arrays import FORMATS
from .sources import TensorEntry

__all__ = ["averaged_copies", "why_not_a_weight"]

# Buffers that models save with their weights, by the last part of the name, and what they are.
_FIXED = {
    **dict.fromkeys("running_mean running_var num_batches_tracked".split(), "batch statistics"),
    **dict.fromkeys("inv_freq original_inv_freq freqs_cis cos_cached sin_cached cos_cache sin_cache".split(), "rotary embedding"),
    **dict.fromkeys("masked_bias causal_mask attn_mask attention_mask tril".split(), "attention mask"),
    **dict.fromkeys("position_ids relative_position_index".split(), "positions"),
    **dict.fromkeys("window mel_filters buffer basis_buffer forward_basis_buffer inverse_basis_buffer".split(), "signal basis"),
}
_MOMENT = re.compile(
    r"(?:^|[._])(?:exp_avg|exp_avg_sq|exp_avg_sq_row|exp_avg_sq_col|max_exp_avg_sq|exp_avg_diff|exp_inf|momentum_buffer|square_avg|grad_avg|acc_delta)$"
)
_STFT = re.compile(r"(?:^|\.)stft_conv\.weight$")  # a short-time Fourier transform written as a convolution (silero)
_KERNEL = re.compile(r"conv\w*\.weight$", re.IGNORECASE)
_AVERAGED = re.compile(r"^(?:.*\.)?(?:ema|model_ema|ema_model|state_dict_ema|params_ema|unet_ema)\.(.+)$")


def why_not_a_weight(e: TensorEntry) -> str:
    """The reason why ``e`` holds no weight matrix; "" when it does."""
    leaf = e.name.rpartition(".")[2]
    if e.dtype not in FORMATS:
        return f"{e.dtype} is not a floating-point format"
    if 0 in e.shape:
        return "empty"
    if leaf in _FIXED:
        return f"fixed buffer by its name ({_FIXED[leaf]}), not a weight"
    if leaf == "bias" and len(e.shape) == 4 and e.shape[:2] == (1, 1) and e.shape[2] == e.shape[3]:  # GPT-2's lower triangle of ones
        return "fixed buffer by its name (attention mask), not a weight"
    if e.kind is None and _STFT.search(e.name):
        return "fixed buffer by its name (signal basis), not a weight"
    if e.fixed:
        return "fixed buffer, not a weight"
    if _MOMENT.search(e.name):
        return "optimizer moment, not a weight"
    if "lora_magnitude_vector" in e.name or leaf == "dora_scale":
        return "DoRA magnitudes: W' - W0 needs the base"
    if len(e.shape) < 2:
        return "scalar: no spectrum" if not e.shape else "vector: no spectrum"
    kernel = e.kind == "conv" or (e.kind is None and _KERNEL.search(e.name))
    if len(e.shape) > 2 and sum(n > 1 for n in e.shape) < 2 and not kernel:  # class tokens, layer scales, the norms of a weight normalization
        return "vector: no spectrum"
    return ""


def averaged_copies(entries: Sequence[TensorEntry]) -> dict[str, str]:
    """Names of tensors that are a running average of another one here, and that one's name; only where both exist with one shape.

    The copy's name is the other's, or an end of it, behind "ema." and the like; latent diffusion's also drops the dots.
    """
    copies = {e.name: found[1] for e in entries if (found := _AVERAGED.match(e.name)) is not None}
    if not copies:
        return {}
    originals: dict[tuple[str, tuple[int, ...]], str] = {}
    for e in entries:
        if e.name not in copies:
            parts = e.name.split(".")
            for i in range(len(parts)):
                originals.setdefault(("".join(parts[i:]), e.shape), e.name)
    shapes = {e.name: e.shape for e in entries}
    pairs = ((name, originals.get((rest.replace(".", ""), shapes[name]))) for name, rest in copies.items())
    return {name: original for name, original in pairs if original is not None and not _too_short(copies[name])}


def _too_short(rest: str) -> bool:
    """A bare "weight" is the end of every name and says nothing about whose copy it is."""
    return rest in ("weight", "bias", "kernel")
