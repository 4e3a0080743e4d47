"""What was compiled: no weak symbols in the sources built per instruction set, every level where it belongs."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from spectral_fast.kernels import native_kernels

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc").glob("*/*loops.cpp"))
FLAGS = {"baseline": [], "avx2": ["-mavx2", "-mfma", "-mf16c"], "avx512": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]}


@pytest.mark.native_only
@pytest.mark.parametrize("level", FLAGS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_isa_objects_have_no_weak_symbols(source, level, tmp_path):
    # A weak symbol exists once per level; the linker keeps one copy for all, perhaps one with instructions this CPU lacks.
    # Compiled here with the build's flags, so that the test needs no build tree, but without optimization: nothing is inlined, so every
    # function that the optimizer might leave out of line is there to be seen.
    compiler, nm = shutil.which("c++") or shutil.which("g++"), shutil.which("nm")
    if not compiler or not nm:
        pytest.skip("no C++ compiler or no nm on this machine")
    if level != "baseline" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"{level} is not built on {platform.machine()}")
    out = tmp_path / "loops.o"
    options = ["-std=c++20", "-O0", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"]
    command = [compiler, *options, *FLAGS[level], f"-DSF_ISA={level}", f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", str(out)]
    subprocess.run(command, check=True, timeout=120)
    symbols = [line.split() for line in subprocess.run([nm, str(out)], check=True, capture_output=True, text=True).stdout.splitlines()]
    defined = [s for s in symbols if s[-2] not in "U"]
    weak = [s for s in symbols if s[-2] in "WwVvu"]
    assert not weak, f"weak symbols in {source.relative_to(ROOT)} at {level}: {weak}"
    assert any(s[-2] in "DR" and level in s[-1] for s in defined), "the table of functions is missing: this test looks at the wrong file"


def test_flags_here_are_those_of_the_build():
    isa = (ROOT / "csrc/cmake/SfIsa.cmake").read_text(encoding="utf-8")
    top = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    for flag in ("-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"):
        assert flag in top
    named = {"flags_" + level: value.split() for level, value in re.findall(r"set\(flags_(\w+) ([^)]*)\)", isa)}
    built = {level: [f for flag in named.get("flags_" + level, []) for f in named.get(flag.strip("${}"), [flag])] for level in FLAGS}
    assert built == FLAGS
    appended = " ".join(re.findall(r"list\(APPEND flags_\w+ ([^)]*)\)", isa)).split()
    assert all(flag.startswith("-Wno-") for flag in appended)  # beyond the sets: only what silences a compiler
    for forbidden in ("-ffast-math", "-march=native", "-Ofast", "use_fast_math"):
        assert forbidden not in isa + top


def test_every_isa_source_is_looked_at():
    top = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    built = re.search(r"sf_add_isa_variants\(sf_cpu([^)]*)\)", top)
    assert built and sorted(built[1].split()) == [p.relative_to(ROOT).as_posix() for p in SOURCES]


@pytest.mark.native_only
def test_levels_of_this_machine():
    assert native_kernels.levels()[0] == "baseline"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and platform.machine() == "x86_64":
        flags = set(cpuinfo.read_text(encoding="utf-8").split("flags", 1)[1].split("\n", 1)[0].split())
        assert ("avx2" in native_kernels.levels()) == ({"avx2", "fma", "f16c"} <= flags)
        assert ("avx512" in native_kernels.levels()) == ({"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags)
