"""The public names: all resolve, the stub lists the same ones, and an unknown one is an AttributeError."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from children import run_python

import spectral_fast as sf


def test_every_name_resolves_and_is_documented() -> None:
    for name in sf.__all__:
        value = getattr(sf, name)
        assert name.startswith("__") or value.__doc__, name


def test_stub_and_module_agree() -> None:
    stub = ast.parse(Path(sf.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imported = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported | {"__version__"} == set(sf.__all__)
    homes = {alias.asname: (f"{node.module}", alias.name) for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    for name, (module, inner) in homes.items():
        assert name is not None
        value = getattr(__import__(f"spectral_fast.{module}", fromlist=[inner]), inner)
        assert getattr(sf, name) is value


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'diagnosis_of_everything'"):
        _ = sf.diagnosis_of_everything  # type: ignore[attr-defined]


def test_import_loads_nothing_heavy() -> None:
    code = "import sys, spectral_fast; print([m for m in ('torch', 'numpy', 'scipy', 'matplotlib', 'rich') if m in sys.modules])"
    out = run_python(code)
    assert out.stdout.strip() == "[]"
