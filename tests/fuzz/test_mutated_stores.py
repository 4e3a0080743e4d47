"""Mutated stores of scans: a WeightSpectra or StoreError, whatever a stranger wrote into the SQLite file; in bounded time and memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.checks import peak_growth, run_all, timed, traced
from fuzz.stores import check_store, mutate, valid_store

import spectral_fast as sf

PLAIN, THOROUGH = 120, 10_000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return valid_store(tmp_path_factory.mktemp("store"))


def run(store: Path, folder: Path, numbers: range) -> int:
    whole, path = store.read_bytes(), folder / "mutated"

    def one(number: int) -> bool:
        mutate(number, whole, path)
        with timed(), traced():
            return check_store(path)

    return run_all(one, numbers)


def test_the_store_is_valid(store: Path) -> None:
    assert check_store(store)
    assert {m.status for m in sf.WeightSpectra.open(store)} == {"ok", "incomplete", "failed", "unresolved"}


def test_mutated_stores(store: Path, tmp_path: Path) -> None:
    assert 0 < run(store, tmp_path, range(PLAIN)) < PLAIN


@pytest.mark.thorough
@pytest.mark.timeout(3600)
def test_mutated_stores_thorough(store: Path, tmp_path: Path) -> None:
    run(store, tmp_path, range(2))
    with peak_growth():
        assert 0 < run(store, tmp_path, range(PLAIN, PLAIN + THOROUGH)) < THOROUGH
