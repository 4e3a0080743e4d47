"""Who may import whom: every import of every module, read from its syntax tree, against the tiers of the design."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from children import run_python

PACKAGE = Path(__file__).parents[1] / "spectral_fast"

# From the user's side (left) to the machine's (right). A module may import what stands on a later tier, and its own package.
TIERS = (
    {"cli"},
    {"integrations"},
    {"report"},
    {"diagnosis", "trajectory"},
    {"findings"},
    {"weights", "curvature", "gradients", "collapse"},
    {"checkpoints", "probing", "metrics"},
    {"linalg"},
    {"kernels"},
)
FOR_ALL = {"results", "progress", "memory", "__init__"}  # may be imported by all; themselves import nothing, but results report inside methods
COMPILED = {"_native": "kernels.native_kernels", "_cuda": "kernels.cuda_kernels"}
ONLY_INSIDE_FUNCTIONS = {"matplotlib", "plotly", "pandas", "dask", "lightning", "transformers", "sklearn"}


def may_load_torch(module: str) -> bool:
    head, _, rest = module.partition(".")
    return head in {"probing", "curvature", "gradients", "collapse"} or module == "kernels.cuda_kernels" or (
        head in {"checkpoints", "kernels"} and rest.startswith("torch_")
    )  # fmt: skip


@dataclass(frozen=True)
class Import:
    module: str  # the importing one, without the package's name
    target: str  # "torch.nn", or "spectral_fast.linalg.svd"
    where: str  # "module", "function" or "types"
    line: int

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def imports_of(path: Path, package: Path = PACKAGE) -> list[Import]:
    relative = path.relative_to(package).with_suffix("")
    parts = [p for p in relative.parts if p != "__init__"]
    module = ".".join(parts) or "__init__"
    home = ["spectral_fast", *(parts if path.name == "__init__.py" else parts[:-1])]
    found: list[Import] = []

    def add(target: str, where: str, line: int) -> None:
        found.append(Import(module, target, where, line))

    def visit(node: ast.AST, where: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = where
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                inner = "function"
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                inner = "types"
            elif isinstance(child, ast.Import):
                for alias in child.names:
                    add(alias.name, where, child.lineno)
            elif isinstance(child, ast.ImportFrom):
                base = home[: len(home) - child.level + 1] if child.level else []
                target = ".".join([*base, *([child.module] if child.module else [])])
                if child.module or not child.level:
                    add(target, where, child.lineno)
                if target.startswith("spectral_fast"):  # "from . import x": x may be a module
                    for alias in child.names:
                        if (package / Path(*target.split(".")[1:]) / alias.name).exists() or (
                            package / Path(*target.split(".")[1:]) / f"{alias.name}.py"
                        ).exists():
                            add(f"{target}.{alias.name}", where, child.lineno)
            visit(child, inner)

    visit(ast.parse(path.read_text(encoding="utf-8")), "module")
    return found


def violations(i: Import) -> str:
    """Why an import is not allowed; empty when it is."""
    top = i.target.partition(".")[0]
    own = i.module.partition(".")[0]
    if top == "torch" and i.where == "module" and not may_load_torch(i.module):
        return "torch at module level"
    if top in ONLY_INSIDE_FUNCTIONS and i.where == "module":
        return f"{top} at module level"
    if top != "spectral_fast":
        return ""
    other = i.target.split(".")[1] if "." in i.target else "__init__"
    if other in COMPILED:
        return "" if i.module == COMPILED[other] else f"only {COMPILED[other]} imports {other}"
    if other in FOR_ALL or other == own:
        return ""
    if own == "results" and other == "report" and i.where in ("function", "types"):
        return ""
    tier = {name: level for level, names in enumerate(TIERS) for name in names}
    if other not in tier or own not in tier:
        return f"{other if own in tier else own} stands on no tier"
    return "" if tier[own] < tier[other] else f"{own} stands on tier {tier[own]}, {other} on {tier[other]}"


MODULES = sorted(PACKAGE.rglob("*.py"))


def test_every_import_goes_to_the_right():
    wrong = [f"{i}: {why}" for path in MODULES for i in imports_of(path) if (why := violations(i))]
    assert not wrong, "\n".join(wrong)


def test_no_cycles_at_module_level():
    names = {("spectral_fast." + ".".join(p.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): p for p in MODULES}
    edges = {name: {i.target for i in imports_of(path) if i.where == "module" and i.target in names} - {name} for name, path in names.items()}
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name in done:
            return
        for target in sorted(edges[name]):
            if not (name.startswith(target + ".") or target.startswith(name + ".")):  # a package and its own modules
                walk(target, (*way, name))
        done.add(name)

    for name in names:
        walk(name, ())


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("linalg/bad.py", "from ..metrics import rank", True),
        ("linalg/bad.py", "import spectral_fast.report.text", True),
        ("linalg/bad.py", "def f():\n    import torch", False),
        ("linalg/bad.py", "import torch", True),
        ("linalg/bad.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", False),
        ("linalg/bad.py", "from ..results import Result", False),
        ("metrics/bad.py", "from ..kernels.select import select", False),
        ("metrics/bad.py", "from .. import _native", True),
        ("metrics/bad.py", "from ..checkpoints import reader", True),
        ("report/bad.py", "import pandas", True),
        ("results.py", "from .report import text", True),
    ],
)
def test_the_rules_bite(tmp_path, module, source, wrong):
    path = tmp_path / module
    path.parent.mkdir(exist_ok=True)
    path.write_text(source, encoding="utf-8")
    (tmp_path / "_native.py").touch()
    assert any(violations(i) for i in imports_of(path, tmp_path)) == wrong


# The Gram matrix of rows that a callback makes, for other ops too.
LENT_HEADERS = {"singular_values/two_stage.h"}


def test_cpp_includes_go_to_the_right():
    # bindings, tests -> op -> core; an op's CPU and CUDA sources meet in headers only
    csrc = PACKAGE.parent / "csrc"
    for path in sorted(p for p in csrc.rglob("*") if p.suffix in {".h", ".cpp", ".cu"}):
        own = path.parent.name
        for target in re.findall(r'#include "([^"]+)"', path.read_text(encoding="utf-8")):
            room = target.split("/")[0]
            assert room in {own, "core"} or own in {"bindings", "tests"} or target in LENT_HEADERS, f"{path.relative_to(csrc)} includes {target}"
            assert target.endswith(".h"), f"{path.relative_to(csrc)} includes the source {target}"


def loaded_by(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter holds after ``code``."""
    end = "; import sys; print(*(m for m in ('torch', 'matplotlib', 'pandas', 'sklearn', 'scipy', 'plotly') if m in sys.modules))"
    done = run_python(code + end)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import spectral_fast", set()),
        ("import spectral_fast as sf; sf.show_config()", set()),
        ("import spectral_fast as sf; sf.scan, sf.svdvals, sf.power_law, sf.matrix_rank, sf.diagnose", {"scipy"}),
        ("import spectral_fast.cli, spectral_fast.findings, spectral_fast.diagnosis, spectral_fast.report.text", {"scipy"}),
    ],
)
def test_torch_and_other_heavy_packages_wait(code, allowed):
    assert loaded_by(code) <= allowed
