"""Writes a checkpoint with the shapes of a 1.1 B decoder: bfloat16 safetensors in shards, with an index.

    python benchmarks/made_checkpoint.py FOLDER [--seed N] [--layers 22] [--shards 3]

22 layers of hidden 2048, MLP 5632, key and value 256, vocabulary 32000 (2.2 GB). Every matrix is Gaussian with its columns scaled by Pareto
distributed factors, so that its spectrum has a heavy tail, and rounded to bfloat16. Nothing is kept in memory but one matrix.
"""

from __future__ import annotations

import argparse
import datetime
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SIZES = {"1.1B": (2048, 5632, 256, 32000), "7B": (4096, 11008, 4096, 32000)}  # hidden, MLP, key and value, vocabulary


def shapes(layers: int, size: str = "1.1B") -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, mlp, keys, words = SIZES[size]
    yield "model.embed_tokens.weight", (words, hidden)
    for i in range(layers):
        name = f"model.layers.{i}."
        for part, shape in (
            ("self_attn.q_proj", (hidden, hidden)),
            ("self_attn.k_proj", (keys, hidden)),
            ("self_attn.v_proj", (keys, hidden)),
            ("self_attn.o_proj", (hidden, hidden)),
            ("mlp.gate_proj", (mlp, hidden)),
            ("mlp.up_proj", (mlp, hidden)),
            ("mlp.down_proj", (hidden, mlp)),
        ):
            yield name + part + ".weight", shape
        yield name + "input_layernorm.weight", (hidden,)
        yield name + "post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (words, hidden)


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Bits of float32 numbers rounded to the nearest bfloat16, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def tensor(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if len(shape) == 1:
        return bfloat16(1.0 + 0.1 * rng.standard_normal(shape, dtype=np.float32))
    w = rng.standard_normal(shape, dtype=np.float32)
    w *= (0.02 * (1.0 + rng.pareto(3.0, shape[1]))).astype(np.float32)
    return bfloat16(w)


def write(folder: Path, seed: int, layers: int, shards: int, size: str = "1.1B") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    every = list(shapes(layers, size))
    total = sum(2 * int(np.prod(shape)) for _, shape in every)
    parts: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, shape in every:
        if filled >= total / shards * len(parts) and len(parts) < shards:
            parts.append([])
        parts[-1].append((name, shape))
        filled += 2 * int(np.prod(shape))
    rng = np.random.default_rng(seed)
    where = {}
    for k, part in enumerate(parts, start=1):
        file = f"model-{k:05d}-of-{len(parts):05d}.safetensors"
        header, at = {}, 0
        for name, shape in part:
            size = 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
            where[name] = file
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for _, shape in part:
                out.write(tensor(shape, rng).tobytes())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    today = int(datetime.date.today().strftime("%Y%m%d"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=today)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--shards", type=int, default=3)
    options = parser.parse_args()
    write(options.folder, options.seed, options.layers, options.shards)
