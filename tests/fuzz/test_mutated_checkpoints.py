"""Mutated files of every hand-read format: a valid Checkpoint whose tensors all read, or CheckpointError; nothing else, in bounded time and memory.

The plain run takes a few mutations of each format, `-m thorough` 10,000. Which they are is decided by a number alone:
`checks.mutated(format, number)` is the input that failed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors
from fuzz.checks import check_checkpoint, check_input, mutated, peak_growth, run_all, timed, traced
from fuzz.corpus import TARGETS, target

from spectral_fast.checkpoints import open_checkpoint

PLAIN, THOROUGH = 150, 10_000


@pytest.mark.parametrize("name", TARGETS)
def test_the_unmutated_files_are_valid(name: str, tmp_path: Path) -> None:
    which = target(name)
    for seed in which.seeds:
        assert b"".join(which.fields(seed)) == seed
        assert check_input(which, seed, tmp_path)


def compare_with_owner(path: Path) -> None:
    """What we call valid, the format's own package has to call valid: it may know less only of dtypes that we skip."""
    with open_checkpoint(path) as checkpoint:
        ours = {t.name: checkpoint.read(t.name) for t in checkpoint.tensors}
        skipped, kind = checkpoint.skipped, checkpoint.format
    if kind == "safetensors" and not skipped:
        with safetensors.safe_open(path, "pt") as theirs:
            assert set(theirs.keys()) == ours.keys()
    if kind == "npy" and not skipped:
        np.testing.assert_array_equal(np.load(path, allow_pickle=False), ours[path.stem])


def run(name: str, folder: Path, numbers: range) -> int:
    which = target(name)

    def one(number: int) -> bool:
        valid = check_input(which, mutated(name, number), folder)
        if valid and name.split("-")[0] in ("safetensors", "npy"):
            compare_with_owner(folder / which.opened)
        return valid

    return run_all(one, numbers)


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_files(name: str, tmp_path: Path) -> None:
    valid = run(name, tmp_path, range(PLAIN))
    assert 0 < valid < PLAIN  # both ways are taken


@pytest.mark.thorough
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", TARGETS)
def test_mutated_files_thorough(name: str, tmp_path: Path) -> None:
    run(name, tmp_path, range(2))  # what is loaded at the first file is not counted
    with peak_growth():
        assert 0 < run(name, tmp_path, range(PLAIN, PLAIN + THOROUGH)) < THOROUGH


def test_the_guards_see(tmp_path: Path) -> None:
    """A loop without end, and an allocation."""
    with pytest.raises(BaseException, match="took too long"), timed(0.2):
        while True:
            pass
    with pytest.raises(AssertionError, match="bytes"), traced():
        bytearray(2**29)
    with pytest.raises(AssertionError, match="kB"), peak_growth():
        np.ones(5 * 2**24).sum()
    with pytest.raises(AssertionError, match="input 3: ValueError"):
        run_all(lambda n: bool(1 / (3 - n)) if n < 3 else bool(int("x")), range(5))
    assert not check_checkpoint(tmp_path / "missing", 0)
