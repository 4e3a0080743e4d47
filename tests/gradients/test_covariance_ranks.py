"""gradient_covariance on two ranks with shards of the samples (gloo) against one process with all of them."""

from __future__ import annotations

from typing import Any

import gradient_shards as shards
import numpy as np
import pytest
import torch
from children import found_by_ranks

from spectral_fast.probing.ghost_plan import blocks_of

pytestmark = [
    pytest.mark.skipif(not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch was built without gloo"),
    pytest.mark.timeout(200),
]

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return found_by_ranks(shards.__file__, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", shards.CASES)
def test_two_ranks_equal_one_process(case: str, ranks: Found) -> None:
    want = shards.found(case)
    first, second = ({name.removeprefix(f"{case}/"): x for name, x in found.items() if name.startswith(f"{case}/")} for found in ranks)
    assert first.keys() == second.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)  # to the bit
        x = np.asarray(value, dtype=np.float64)
        assert first[name].shape == x.shape, name
        size = np.abs(x[np.isfinite(x)]).max(initial=0.0)
        # what is small beside the trace is that of rounding alone
        assert np.allclose(first[name], x, rtol=1e-9, atol=1e-11 * max(size, want["trace"] if "eigenvalues" in name else 0.0), equal_nan=True), name


BOTH = {  # what both ranks say
    "numbers": "failed: gradients of 21 samples are not finite; batch:row (parameter) 1:0 (0.weight)",
    "arguments": "ValueError: model: the arguments or devices differ between rank 0",
    "parameters": "ValueError: model: parameter '0.weight' of rank 1 is not that of rank 0",
    "nothing": "ValueError: loader: no samples on any rank",
    "ignored": "ValueError: loader: no valid targets in the sample set of any rank",
    "room": "skipped: handing the samples of all ranks round needs",
    "k": "ValueError: rank 1 failed at reading the arguments: ValueError: k: wanted",
    "parameter names": "ValueError: rank 1 failed at reading the arguments: ValueError: params",
}


@pytest.mark.parametrize("name", [*BOTH, "things", "targets"])
def test_what_fails_on_one_rank_is_told_on_both(name: str, ranks: Found) -> None:
    said = [str(found[f"troubles/{name}"]) for found in ranks]
    if name == "things":
        assert said[1].startswith("TypeError: loader: a batch holds a object"), said
        assert said[0].startswith("TypeError: rank 1 failed at the samples of all ranks: TypeError: loader: a batch holds"), said
    elif name == "targets":
        assert all("loader: a class target is outside of the model's 4 classes" in words for words in said), said
    elif "rank 1 failed" in BOTH[name]:
        assert said[0].startswith(BOTH[name]) and said[1].startswith(BOTH[name].partition("arguments: ")[2]), said
    else:
        assert all(words.startswith(BOTH[name]) for words in said), said


def test_samples_are_taken_from_all_ranks(ranks: Found) -> None:
    for found in ranks:
        assert int(found["few/n"]) == 16
        assert "16 samples, over 2 ranks: 8, 8" in str(found["few/notes"])


@pytest.mark.parametrize("n", [1, 2, 7, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("hold", [1, 5, 100])
def test_every_product_is_of_one_rank(n: int, size: int, hold: int) -> None:
    times = np.zeros((n, n), dtype=int)
    for rank in range(size):
        for start, stop in blocks_of(n, hold, rank, size):
            assert 0 < stop - start <= hold
            times[start:, start:stop] += 1
    assert (times[np.tril_indices(n)] == 1).all()
    if size > 1 and n == 100 and hold == 100:
        work = [sum((100 - start) * (stop - start) for start, stop in blocks_of(n, hold, rank, size)) for rank in range(size)]
        assert max(work) <= 1.35 * min(work)
