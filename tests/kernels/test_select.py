"""The dispatch table: what is chosen, what is refused, and what it says about this installation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from children import run_python

from spectral_fast.kernels import native_kernels, numpy_kernels
from spectral_fast.kernels.select import OPS, select, show_config


def test_auto_takes_the_fastest():
    _, name = select("power_law")
    assert name == ("numpy" if native_kernels.why_not else "native")


def test_named_backend():
    assert select("power_law", "numpy") == (numpy_kernels.power_law, "numpy")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("eigensalad",), "op: 'eigensalad' is unknown; known: .*power_law"),
        (("power_law", "fortran"), "backend: 'fortran' is unknown; known: auto, numpy, native, torch, cuda"),
        (("power_law", "numpy", "cuda:0"), "backend: 'numpy' has no 'power_law' for arrays on 'cuda:0'"),
        (("power_law", "auto", "tpu"), "device: no kernels for 'tpu'; known: cpu, cuda, xpu"),
    ],
)
def test_unknown_names_list_the_known(arguments, words):
    with pytest.raises(ValueError, match=words):
        select(*arguments)


def test_every_op_has_a_definition():
    for op, backends in OPS.items():
        assert "numpy" in backends and callable(getattr(numpy_kernels, op))


def test_show_config_is_json():
    config = json.loads(json.dumps(show_config()))
    assert set(config) >= {"native", "levels", "threads", "cuda"}
    assert config["threads"] >= 1


@pytest.mark.native_only
def test_levels():
    assert native_kernels.why_not == ""
    assert native_kernels.levels()[0] == "baseline"
    assert show_config()["native"] == native_kernels.default_level()


def run_with_module(folder: Path, content: str | None) -> dict[str, object]:
    """show_config() and select() of a child whose spectral_fast/_native is ``content`` instead of the real one; None: missing."""
    code = f"""if True:
        import sys, types, importlib.abc, importlib.util, json
        class Door(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name != "spectral_fast._native": return None
                if {content!r} is None: raise ModuleNotFoundError("No module named " + name, name=name)
                return importlib.util.spec_from_file_location(name, {str(folder / "_native.py")!r})
        sys.meta_path.insert(0, Door())
        from spectral_fast.kernels.select import select, show_config
        why = ""
        try: select("power_law", "native")
        except RuntimeError as e: why = str(e)
        print(json.dumps([show_config(), select("power_law")[1], why]))
    """
    if content is not None:
        (folder / "_native.py").write_text(content, encoding="utf-8")
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    config, chosen, why = json.loads(done.stdout)
    return {"config": config, "chosen": chosen, "why": why}


def test_missing_and_broken_are_told_apart(tmp_path):
    missing = run_with_module(tmp_path, None)
    assert missing["chosen"] == "numpy" and "not built" in missing["config"]["native"] and "not built" in missing["why"]
    broken = run_with_module(tmp_path, "raise ImportError('libfancy.so.9: cannot open shared object file')")
    assert broken["chosen"] == "numpy"
    assert "built but cannot be loaded: libfancy.so.9" in broken["config"]["native"] and "libfancy" in broken["why"]
