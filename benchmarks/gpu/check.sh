#!/usr/bin/env bash
# Builds _native and _cuda for this machine's GPU, says what the kernels take of it, runs the tests marked `gpu`, a few of them
# under compute-sanitizer where there is one, and bench.py. Needs nvcc, cmake, a C++20 compiler and a Python with torch, pybind11
# and pytest; no network, and installs nothing.
#
#   benchmarks/gpu/check.sh [FOLDER]      FOLDER (default build/gpu): build tree, tests.xml, build.log, result.json, bench.json
#   PYTHON=python3.12 SF_CUDA_ARCHITECTURES="90" SF_SCAN=1 benchmarks/gpu/check.sh      SF_SCAN: bench_scan.py too
#
# Exit code: 0 all passed, 1 something failed, 2 this machine lacks something (said in one line).
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
out=${1:-$root/build/gpu}
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}

lacks() {
  echo "check.sh: $1" >&2
  exit 2
}

if ! command -v nvcc >/dev/null && [ -x /usr/local/cuda/bin/nvcc ]; then
  export PATH=$PATH:/usr/local/cuda/bin
fi
command -v "$python" >/dev/null || lacks "no $python; set PYTHON"
command -v nvcc >/dev/null || lacks "no nvcc on PATH or in /usr/local/cuda/bin"
command -v cmake >/dev/null || lacks "no cmake"
for module in torch numpy scipy pybind11 pytest hypothesis mpmath; do
  "$python" -c "import $module" 2>/dev/null || lacks "$python has no $module"
done
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || lacks "torch sees no CUDA device"

architectures=${SF_CUDA_ARCHITECTURES:-$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')}
options=(-DSF_CUDA=ON -DCMAKE_CUDA_FLAGS=-Xptxas=-v "-DCMAKE_CUDA_ARCHITECTURES=$architectures" "-DPython_EXECUTABLE=$(command -v "$python")"
  "-Dpybind11_DIR=$("$python" -m pybind11 --cmakedir)" "-DCMAKE_CUDA_COMPILER=$(command -v nvcc)")
if command -v ninja >/dev/null; then
  options+=(-G Ninja)
fi

echo "building for sm_$architectures in $out"
started=$(date +%s)
if ! { cmake -S "$root" -B "$out/tree" "${options[@]}" && cmake --build "$out/tree" --parallel; } >"$out/build.log" 2>&1; then
  tail -n 40 "$out/build.log" >&2
  echo "check.sh: the build failed; all of it: $out/build.log" >&2
  exit 1
fi
build_seconds=$(($(date +%s) - started))
if grep -q ptxas "$out/build.log"; then # else nothing had to be compiled again
  cp "$out/build.log" "$out/resources.log"
fi
"$python" "$root/benchmarks/gpu/resources.py" "$out/resources.log" || echo "check.sh: kernels spill registers" >&2

# the package as it would be installed: the Python files and, beside them, the two modules
rm -rf "$out/package"
mkdir -p "$out/package"
cp -R "$root/spectral_fast" "$out/package/"
cp "$out"/tree/_native*.so "$out"/tree/_cuda*.so "$out/package/spectral_fast/"

export PYTHONPATH="$out/package${PYTHONPATH:+:$PYTHONPATH}" SPECTRAL_FAST_EXPECT_NATIVE=1
code=0
rm -f "$out/tests.xml"
cd "$out" # python puts the working directory first on its path, and in the repository it would find the package uncompiled
"$python" -m pytest -c "$root/pyproject.toml" --rootdir="$root" -m gpu -p no:cacheprovider --junitxml="$out/tests.xml" "$root/tests" || code=$?
small="(test_singular_values and standard and float32 and cuda and not 512 and not 600)"
small="$small or (test_small_svd and not 25) or (test_orthogonalize and cuda and 1000)"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    echo "compute-sanitizer --tool $tool"
    compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m pytest -q -c "$root/pyproject.toml" --rootdir="$root" -m gpu -p no:cacheprovider \
      "$root/tests/test_gpu.py" -k "$small" || code=$?
  done
else
  echo "check.sh: no compute-sanitizer on PATH: memory and races were not checked on the device" >&2
fi
"$python" "$root/benchmarks/gpu/bench.py" --json "$out/bench.json" || code=$?
if [ -n "${SF_SCAN:-}" ]; then # minutes, and 16 GB of files
  "$python" "$root/benchmarks/gpu/bench_scan.py" --folder "$out" --json "$out/scan.json" || code=$?
fi
if [ ! -e "$out/tests.xml" ]; then
  echo "check.sh: pytest stopped before any test (exit code $code)" >&2
  exit 1
fi

"$python" - "$out" "$build_seconds" "$code" <<'PYTHON'
import json, platform, subprocess, sys, xml.etree.ElementTree as xml
from pathlib import Path

import torch

from spectral_fast.kernels.select import show_config

out, build_seconds, code = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rows = []
for case in xml.parse(out / "tests.xml").iter("testcase"):
    bad = [c.tag for c in case if c.tag in ("failure", "error", "skipped")]
    rows.append({"test": f"{case.get('classname')}::{case.get('name')}", "outcome": bad[0] if bad else "passed", "seconds": float(case.get("time", 0))})
query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
try:
    driver = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout.split()[0]
except (OSError, subprocess.SubprocessError, IndexError) as error:
    driver = f"unknown ({type(error).__name__})"
result = {
    "machine": platform.node(),
    "gpu": torch.cuda.get_device_name(),
    "capability": list(torch.cuda.get_device_capability()),
    "driver": driver,
    "torch": torch.__version__,
    "torch_cuda": torch.version.cuda,
    "python": platform.python_version(),
    "config": show_config(),
    "build_seconds": build_seconds,
    "pytest_exit_code": code,
    "tests": rows,
}
(out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
width = max([len(r["test"]) for r in rows], default=4)
print(f"\n{result['machine']}: {result['gpu']}, driver {driver}, torch {result['torch']}, built in {build_seconds} s")
for r in rows:
    print(f"{r['test']:<{width}}  {r['outcome']:<8}  {r['seconds']:8.2f} s")
print(f"{sum(r['outcome'] == 'passed' for r in rows)} of {len(rows)} passed; {out / 'result.json'}")
PYTHON
[ "$code" -eq 0 ] || exit 1
