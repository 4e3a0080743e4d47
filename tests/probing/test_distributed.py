"""Two ranks with shards of the samples (gloo) against one process with all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shards
import torch
from children import found_by_ranks

from spectral_fast.curvature import Hessian
from spectral_fast.probing.distributed import Ranks
from spectral_fast.probing.sharded import share_of

pytestmark = [
    pytest.mark.skipif(not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch was built without gloo"),
    pytest.mark.timeout(200),
]

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What both ranks found; one more than is there for ``gone``, what the first said when the other had left."""
    folder = tmp_path_factory.mktemp("ranks")
    return [*found_by_ranks(shards.__file__, folder), {"gone": (folder / "gone").read_text()}]


@pytest.mark.parametrize("case", shards.CASES)
def test_two_ranks_equal_one_process(case: str, ranks: Found) -> None:
    """Sums of the same float64 terms in another order, and eigenvalues to the square of tol: far below 1e-10. Products of a float32 model are rounded
    batch by batch, alike in both; its Krylov vectors are float32, so that Ritz values differ by eps."""
    want = shards.found(case)
    first, second = ({name.removeprefix(f"{case}/"): x for name, x in found.items() if name.startswith(f"{case}/")} for found in ranks[:2])
    assert first.keys() == second.keys() == want.keys() and len(want) == (7 + 10 if case in shards.DEEP else 7)
    for name, value in want.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)  # to the bit
        x = np.asarray(value, dtype=np.float64)
        limit = 1e-6 if case == "float32" else 1e-10
        assert np.abs(first[name] - x).max() <= limit * np.abs(x).max(), name


def test_the_analysis_on_two_ranks_equals_that_on_one(ranks: Found) -> None:
    """Eigenvectors of more than 1 GiB stay in parts: the gradient's share comes of the parts too, and the preconditioned Hessian's basis is spread."""
    for name, value in shards.analysed().items():
        first, second = (found[f"analysis/{name}"] for found in ranks[:2])
        np.testing.assert_array_equal(first, second, err_msg=name)
        assert np.abs(first - value).max() <= 1e-7 * np.abs(value).max(), name


def test_every_rank_holds_a_part_of_the_basis(ranks: Found) -> None:
    assert [int(found["width"]) for found in ranks[:2]] == [42, 41]
    assert all(float(found["scattered"]) == 0.0 for found in ranks[:2])


BOTH = {  # what all ranks say
    "parameter": "ValueError: model: parameter '0.bias' of rank 1 is not that of rank 0",
    "shape": "ValueError: model: the models differ between rank 0 (0.weight (8, 6) torch.float64) and rank 1 (0.weight (9, 6)",
    "params": "ValueError: model: the arguments or devices differ between rank 0 (cpu, float64, 0.weight, 0.bias, 2.weight",
    "loss": "ValueError: loss: it differs between the ranks (rank 0: bce, rank 1: mse)",
    "nothing valid": "ValueError: loader: no valid targets in the sample set of any rank",
    "vectors": "RuntimeError: process_group: the ranks do not have the same vectors for a product",
    "checkpoint": "ValueError: checkpoint: not available for a basis that is spread over processes",
    "group": "ValueError: process_group: wanted a group of torch.distributed, 'world' or None, got 'wrold'",
    "interrupt": "incomplete, interrupted after 3 products, 2 values",
    "Ctrl-C": "incomplete, interrupted after 3 products, 2 values",
    "wrapped": "2: the loaders of all ranks count: the process group is that of DistributedDataParallel; 48 samples, over 2 ranks: 37, 11",
    "sampler": "the DistributedSampler makes all shards equal: samples that count twice: 1; 48 samples, over 2 ranks: 24, 24",
}


@pytest.mark.parametrize("trouble", BOTH)
def test_all_ranks_say_the_same(trouble: str, ranks: Found) -> None:
    for found in ranks[:2]:
        assert str(found[f"troubles/{trouble}"]).startswith(BOTH[trouble])


def test_what_fails_on_one_rank_is_raised_on_all(ranks: Found) -> None:
    first, second = ranks[:2]
    assert str(second["troubles/product"]) == "ZeroDivisionError: own message"
    assert str(first["troubles/product"]) == "ZeroDivisionError: rank 1 failed at a product: ZeroDivisionError: own message"
    assert str(second["troubles/loader"]).startswith("TypeError: loader: wanted a re-iterable")
    assert str(first["troubles/loader"]).startswith("TypeError: rank 1 failed at reading model and loader: TypeError: loader: wanted a re-iterable")


def test_a_rank_that_is_gone_is_no_hang(ranks: Found) -> None:
    assert ranks[2]["gone"] != "nothing"


def test_a_process_group_is_never_guessed(ranks: Found) -> None:
    for rank, found in enumerate(ranks[:2]):
        assert str(found["troubles/alone"]) == f"1: the samples of rank {rank} alone, of 2; process_group='world' is for those of all"


def test_without_torch_distributed() -> None:
    model, parts, _ = shards.classes()
    op = Hessian(model, parts[0])
    assert op.ranks.size == 1 and op.sharded is None and not op.ranks.notes
    with pytest.raises(ValueError, match="process_group: torch.distributed is not in use"):
        Hessian(model, parts[0], process_group="world")


@pytest.mark.parametrize("size, n", [(2, 64), (3, 100), (7, 1000), (8, 64)])
def test_the_ranks_columns_are_all_columns_once(size: int, n: int) -> None:
    got = []
    for rank in range(size):
        ranks = Ranks(None)
        ranks.size, ranks.rank = size, rank
        share = share_of(ranks, n)
        assert share is not None and 0 < share.width <= -(-n // size)
        got += list(range(n))[share.columns]
    assert got == list(range(n))


@pytest.mark.parametrize("size, n", [(1, 1000), (2, 63), (16, 65), (30, 64)])
def test_short_vectors_are_kept_whole(size: int, n: int) -> None:
    ranks = Ranks(None)
    ranks.size = size
    assert share_of(ranks, n) is None  # 16 ranks: 5 columns for 13 of them, none for the others
