"""What each CUDA kernel takes of a multiprocessor, from the log of a build with ``-DCMAKE_CUDA_FLAGS=-Xptxas=-v``.

    python benchmarks/gpu/resources.py build.log

Warps: as many as the registers leave room for at once, of the 64 that there is room for (48 on sm_86 and sm_89); shared memory that is asked for at the
launch can be less. Exit code 1 where a kernel keeps numbers in memory because registers did not suffice (spills), or where the log names no kernel.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

REGISTERS = 65536  # of a multiprocessor; a warp's are handed out 256 at a time


def kernels(log: str) -> list[dict[str, str | int]]:
    found = []
    for block in re.split(r"Compiling entry function ", log)[1:]:
        head = re.match(r"'(\S+)' for '(\w+)'", block)
        used = re.search(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?", block)
        spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", block)
        if head is None or used is None or spilled is None:
            raise SystemExit(f"resources.py: not the words of ptxas: {block[:200]}")
        named = re.search(r"\d([a-z][a-z_]*_kernel)(?:ILb(\d)E)?", head[1])
        name = head[1] if named is None else named[1] + ("" if named[2] is None else f"<{'true' if named[2] == '1' else 'false'}>")
        registers = int(used[1])
        warps = min(64, REGISTERS // (-(-32 * registers // 256) * 256))
        row = {
            "kernel": name,
            "for": head[2],
            "registers": registers,
            "spilled": int(spilled[1]) + int(spilled[2]),
            "shared": int(used[2] or 0),
            "warps": warps,
        }
        found.append(row)
    return found


def main() -> int:
    rows = kernels(Path(sys.argv[1]).read_text(encoding="utf-8", errors="replace"))
    if not rows:
        print("resources.py: the log names no kernel; it has to be of a build from nothing with -Xptxas=-v", file=sys.stderr)
        return 1
    print(f"{'kernel':<28} {'for':<6} {'registers':>9} {'spilled':>8} {'static shared':>14} {'warps':>6}")
    for r in sorted(rows, key=lambda r: (r["kernel"], r["for"])):
        print(f"{r['kernel']:<28} {r['for']:<6} {r['registers']:>9} {r['spilled']:>6} B {r['shared']:>12} B {r['warps']:>6}")
    return int(any(r["spilled"] for r in rows))


if __name__ == "__main__":
    sys.exit(main())
