"""neural_collapse on two ranks with shards of the samples (gloo) against one process with all of them."""

from __future__ import annotations

from typing import Any

import collapse_shards as shards
import numpy as np
import pytest
import torch
from children import found_by_ranks

pytestmark = [
    pytest.mark.skipif(not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch was built without gloo"),
    pytest.mark.timeout(200),
]

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("ranks")
    return found_by_ranks(shards.__file__, folder)


@pytest.mark.parametrize("case", shards.CASES)
def test_two_ranks_equal_one_process(case: str, ranks: Found) -> None:
    want = shards.found(case)
    first, second = ({name.removeprefix(f"{case}/"): x for name, x in found.items() if name.startswith(f"{case}/")} for found in ranks)
    assert first.keys() == second.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)  # to the bit
        if name == "skipped":
            assert first[name].tolist() == value
            continue
        x = np.asarray(value, dtype=np.float64)
        assert np.abs(first[name] - x).max() <= 1e-10 * np.abs(x).max(), name
    if case == "no room":
        assert want["skipped"]
    if case in ("ragged", "empty"):
        assert sum(name.endswith("eigenvalues") for name in want) >= 3


BOTH = {  # what both ranks say
    "parameters": "ValueError: model: parameter '0.weight' of rank 1 is not that of rank 0",
    "arguments": "ValueError: model: the arguments or devices differ between rank 0",
    "nothing": "ValueError: loader: no samples on any rank",
    "numbers": "failed: rank 1: the input of '4' holds NaN or Inf in batch 0",
    "floats": "skipped: rank 1: neural collapse needs integer class targets, got float64",
    "ignored": "skipped: no sample has a valid target",
    "tests": "ValueError: model: the arguments or devices differ between rank 0",
    "floats and tests": "skipped: rank 1: neural collapse needs integer class targets, got float64",
}


@pytest.mark.parametrize("tests", [False, True])
@pytest.mark.parametrize("at", shards.INTERRUPTS)
def test_ctrl_c_on_one_rank_ends_both_with_what_there_is(at: int, tests: bool, ranks: Found) -> None:
    said = {str(found[f"interrupted/{at} {tests}"]) for found in ranks}
    during = at <= 3
    assert said == {"incomplete, None" if during else "incomplete, incomplete" if tests else "ok, None"}


@pytest.mark.parametrize("name", [*BOTH, "target", "test target", "layers"])
def test_what_fails_on_one_rank_is_told_on_both(name: str, ranks: Found) -> None:
    said = [str(found[f"troubles/{name}"]) for found in ranks]
    if name == "layers":
        assert said[0].startswith("ValueError: rank 1 failed at reading the arguments: ValueError: layers: 'nothing*' matches no module"), said
        assert said[1].startswith("ValueError: layers: 'nothing*' matches no module"), said
    elif name == "target":
        assert said[0].startswith("ValueError: rank 1 failed at the features' class moments: ValueError: loader: target 11 is outside"), said
        assert said[1].startswith("ValueError: loader: target 11 is outside"), said
    elif name == "test target":
        assert said[0].startswith("ValueError: rank 1 failed at the features' class moments: ValueError: test_loader: target 11 is outside"), said
        assert said[1].startswith("ValueError: test_loader: target 11 is outside"), said
    else:
        assert all(words.startswith(BOTH[name]) for words in said), said
