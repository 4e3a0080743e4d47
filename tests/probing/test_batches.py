from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from spectral_fast.probing import Batches, call_model, logits_of

X = np.arange(70.0).reshape(35, 2)
Y = np.arange(35) % 3


def rows(batches):
    return torch.cat([b.inputs for b in batches]).numpy()


@pytest.mark.parametrize(("width", "rows_wanted"), [(2, 2048), (1024, 512), (4096, 256)])
@pytest.mark.parametrize("n", [1, 255, 256, 257, 600, 2049])
def test_a_tuple_of_two_arrays_is_a_whole_set(n, width, rows_wanted):
    """4 MB of float64 inputs a batch, between 256 and 2,048 samples."""
    x, y = np.random.default_rng(0).standard_normal((n, width)), np.zeros(n, dtype=np.int64)
    batches = Batches((x, y))
    assert batches.n_samples == n and [b.size for b in batches] == [rows_wanted] * (n // rows_wanted) + ([n % rows_wanted] if n % rows_wanted else [])
    assert np.array_equal(rows(batches), x)
    assert not batches.truncated and batches.note == ""


def test_a_list_is_a_list_of_batches():
    pairs = Batches([(X[:20], Y[:20]), (X[20:], Y[20:])])
    assert [b.size for b in pairs] == [20, 15]
    alone = Batches([torch.ones(4, 2), torch.ones(3, 2)])
    assert [(b.size, b.targets) for b in alone] == [(4, None), (3, None)]


def test_shuffled_loaders_are_read_once_and_rng_is_put_back():
    generator = torch.Generator().manual_seed(7)
    loader = DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), batch_size=8, shuffle=True, generator=generator)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), generator.get_state()
    batches = Batches(loader)
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])
    assert torch.equal(before[2], generator.get_state())
    assert np.array_equal(rows(batches), rows(batches))
    assert np.array_equal(np.sort(rows(batches)[:, 0]), X[:, 0])
    assert [b.size for b in batches] == [8, 8, 8, 8, 3]


@pytest.mark.parametrize("key", ["labels", "label", "targets", "target", "y"])
def test_dict_batches(key):
    (b,) = Batches([{"input_ids": X, "mask": np.ones(35), key: Y}])
    assert set(b.inputs) == {"input_ids", "mask"} and b.label_key == key and b.size == 35
    assert np.array_equal(b.targets.numpy(), Y)


def test_limits_cut_exactly_and_say_so():
    batches = Batches((np.zeros((600, 4096)), np.zeros(600)), max_samples=300)
    assert [b.size for b in batches] == [256, 44] and [len(b.targets) for b in batches] == [256, 44]
    assert batches.truncated and "300 samples" in batches.note
    batches = Batches([(X, Y)] * 5, max_batches=2)
    assert len(batches) == 2 and batches.truncated and "70 samples" in batches.note and "max_batches" in batches.note
    assert not Batches([(X, Y)] * 2, max_batches=2).truncated
    assert not Batches([(X, Y)], max_samples=35).truncated

    class Endless:
        def __iter__(self):
            while True:
                yield X, Y

    assert len(Batches(Endless(), max_batches=3)) == 3


def test_floats_are_cast_and_integers_are_not():
    (b,) = Batches([((X, Y), X)], dtype=torch.float32)
    assert b.inputs[0].dtype == torch.float32 and b.inputs[1].dtype == torch.int64 and b.targets.dtype == torch.float32


def test_unpack():
    (b,) = Batches([(X, X + 1, Y)], unpack=lambda batch: (batch[:2], batch[2]))
    assert len(b.inputs) == 2 and call_model(lambda a, c: c - a, b).unique().tolist() == [1.0]
    with pytest.raises(TypeError, match="unpack"):
        Batches([(X, X, Y)], unpack=lambda batch: batch)


@pytest.mark.parametrize(
    "loader, error, match",
    [
        (iter([(X, Y)]), TypeError, "one-shot"),
        ((batch for batch in [(X, Y)]), TypeError, "one-shot"),
        ([], ValueError, "no samples"),
        (5, TypeError, "re-iterable"),
        (X, TypeError, "single array"),
        ((X, Y[:3]), ValueError, "equal length"),
        ([(X, X, Y)], TypeError, "unpack"),
        ([(X, Y[:3])], ValueError, "35 samples but 3 targets"),
        ([({"a": "text"}, Y)], TypeError, "no tensor"),
        (TensorDataset(torch.from_numpy(X)), TypeError, "DataLoader"),
    ],
)
def test_bad_loaders_are_explained(loader, error, match):
    with pytest.raises(error, match=match):
        Batches(loader)


@pytest.mark.parametrize("limit", [{"max_batches": 0}, {"max_samples": -1}])
def test_bad_limits(limit):
    with pytest.raises(ValueError, match="max_"):
        Batches([(X, Y)], **limit)


def test_logits_of():
    t = torch.ones(2)

    class Output:
        logits = t

    assert logits_of(t) is t and logits_of(Output()) is t and logits_of({"logits": t}) is t and logits_of((t,)) is t
    with pytest.raises(TypeError, match="model"):
        logits_of((t, t))
