"""The fuzzer's targets by themselves, without the fuzzer: every one takes its corpus, and what is no file of its format."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.atheris_targets import FORMATS, one_input, seeds


@pytest.mark.parametrize("name", FORMATS)
def test_one_input(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    one = one_input(name, tmp_path / "file")
    valid = seeds(name, tmp_path)
    assert valid and all(one(seed) for seed in valid)
    assert not all([one(strange) for strange in (b"", b"\0", b"no such file", valid[0][: len(valid[0]) // 2])])
