"""What scans of decoders from 1 to 405 billion parameters cost: the table of docs/scaling.md, from the plans of files that hold names and shapes only.

    python benchmarks/scaling_table.py [--reads GB_PER_SECOND]

Every file is sparse (a header and a hole), so that ``scan_plan`` sees what it would see of the real one; the time is this machine's, from the rate
that the plan measures.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

import spectral_fast as sf
from spectral_fast.memory import byte_size
from spectral_fast.report.words import duration


@dataclass(frozen=True)
class Decoder:
    """layers of attention (queries hidden x hidden, keys and values keys x hidden) and a gated feed-forward block of width mlp; experts: of the latter."""

    name: str
    layers: int
    hidden: int
    keys: int
    mlp: int
    words: int
    experts: int = 1

    def shapes(self) -> dict[str, tuple[int, int]]:
        found = {"model.embed_tokens.weight": (self.words, self.hidden), "lm_head.weight": (self.words, self.hidden)}
        for i in range(self.layers):
            block = f"model.layers.{i}."
            rows = {"q_proj": self.hidden, "k_proj": self.keys, "v_proj": self.keys, "o_proj": self.hidden}
            found |= {f"{block}self_attn.{part}.weight": (m, self.hidden) for part, m in rows.items()}
            for e in range(self.experts):
                mlp = f"{block}mlp." if self.experts == 1 else f"{block}mlp.experts.{e}."
                found |= {f"{mlp}{part}.weight": (self.mlp, self.hidden) for part in ("gate_proj", "up_proj")}
                found[f"{mlp}down_proj.weight"] = (self.hidden, self.mlp)
        return found


DECODERS = (
    Decoder("1.1 B", 22, 2048, 256, 5632, 32_000),
    Decoder("8 B", 32, 4096, 1024, 14_336, 128_256),
    Decoder("47 B, 8 experts", 32, 4096, 1024, 14_336, 32_000, experts=8),
    Decoder("70 B", 80, 8192, 1024, 28_672, 128_256),
    Decoder("405 B", 126, 16_384, 1024, 53_248, 128_256),
)


def sparse(path: Path, shapes: dict[str, tuple[int, int]]) -> None:
    """A bfloat16 safetensors file of these shapes without their contents."""
    header, at = {}, 0
    for name, (m, n) in shapes.items():
        header[name] = {"dtype": "BF16", "shape": [m, n], "data_offsets": [at, at + 2 * m * n]}
        at += 2 * m * n
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        os.truncate(file.fileno(), 8 + len(text) + at)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reads", type=float, default=1.0, help="GB per second that the storage gives")
    options = parser.parse_args()
    print("| decoder | matrices | file | operations | memory, at least | computing | reading | `--top 20`: operations, time |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for decoder in DECODERS:
            path = Path(folder) / "model.safetensors"
            sparse(path, decoder.shapes())
            plan = sf.scan_plan(path, max_memory=1e15)
            top = sf.scan_plan(path, max_memory=1e15, top=20)
            cells = (
                decoder.name,
                f"{plan.matrices:,}",
                byte_size(plan.nbytes),
                f"{plan.flops / 1e12:,.3g} TFLOP" if plan.flops < 1e15 else f"{plan.flops / 1e15:,.3g} PFLOP",
                byte_size(plan.memory),
                duration(plan.seconds),
                duration(plan.nbytes / options.reads / 1e9),
                f"{top.flops / 1e12:,.3g} TFLOP, {duration(top.seconds)}",
            )
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
