"""Builds the module _cuda for the CPU: its kernels as they are, with the launches rewritten for ``cuda_runtime.h`` beside this file.

``python csrc/tests/cuda_on_cpu/build.py FOLDER`` prints the path of the module; needs a C++20 compiler and pybind11.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent


def arguments(text: str) -> list[str]:
    """At the commas outside of brackets."""
    found, depth, current = [], 0, ""
    for c in text:
        depth += (c in "(<{[") - (c in ")>}]")
        if c == "," and depth == 0:
            found.append(current.strip())
            current = ""
        else:
            current += c
    return [*found, current.strip()]


def rewritten(source: str) -> str:
    """kernel<<<grid, threads, bytes, stream>>>(...) as a call; shared memory as the block's."""
    source = re.sub(r"extern __shared__ (\w+) (\w+)\[\];", r"\1* \2 = on_cpu::block->shared.get();", source)
    source = re.sub(r"(?m)^(\s*)__shared__ ", r"\1static ", source)  # one block at a time
    while "<<<" in source:
        at = source.index("<<<")
        close = source.index(">>>", at)
        name = re.search(r"[\w:]+(?:<[\w, ]*>)?$", source[:at])
        assert name is not None, source[max(0, at - 80) : at]
        end, depth = close + 3, 0
        while True:
            depth += (source[end] == "(") - (source[end] == ")")
            end += 1
            if depth == 0:
                break
        how = arguments(source[at + 3 : close])
        how += ["0", "nullptr"][len(how) - 2 :]
        call = f"on_cpu::launch({', '.join(how)}, [=] {{ {name[0]}{source[close + 3 : end]}; }})"
        source = source[: name.start()] + call + source[end:]
    return source


def build(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    sources = []
    for path in sorted(CSRC.glob("*/cuda.cu")):
        sources.append(folder / f"{path.parent.name}.cpp")
        sources[-1].write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")
    module = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = [f"-I{d}" for d in (HERE, CSRC, pybind11.get_include(), sysconfig.get_paths()["include"])]
    flags = ["-std=c++20", "-O2", "-g", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread"]
    subprocess.run([os.environ.get("CXX", "c++"), *flags, *include, *sources, CSRC / "bindings/cuda_module.cpp", "-o", module], check=True)
    return module


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
