from __future__ import annotations

import numpy as np
import pytest

from spectral_fast.kernels.counters import gaussian, philox4x32, rademacher, random_words, uniform

# known answers for philox4x32 with 10 rounds: counter, key, output (Random123's kat_vectors, Salmon et al. 2011)
KNOWN = [
    ((0x0, 0x0, 0x0, 0x0), (0x0, 0x0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize("counter, key, expected", KNOWN)
def test_philox_gives_the_published_words(counter, key, expected):
    words = philox4x32(np.array([counter, counter], dtype=np.uint32), key)
    assert [tuple(row) for row in words.tolist()] == [expected, expected]


def test_rademacher_reads_bits_lowest_first():
    z = rademacher(70, seed=0)
    words = [int(w) for w in philox4x32(np.array([[0, 0, 0, 0]], dtype=np.uint32), (0, 0))[0]]
    expected = [-1.0 if words[i // 32] >> (i % 32) & 1 else 1.0 for i in range(70)]
    assert z.tolist() == expected


def test_prefixes_agree_and_streams_differ():
    long = rademacher(1000, seed=2**40 + 3, stream=7)
    for n in (0, 1, 31, 32, 33, 127, 128, 129):
        assert np.array_equal(rademacher(n, seed=2**40 + 3, stream=7), long[:n])
    assert set(np.unique(long)) == {-1.0, 1.0}
    # 1,000 fair signs agree in 500 +- 5 standard deviations of 15.8
    for other in (rademacher(1000, 2**40 + 4, 7), rademacher(1000, 2**40 + 3, 8), rademacher(1000, 3, 7)):
        assert abs((other == long).sum() - 500) < 80


def test_gaussian_has_the_moments_of_a_normal():
    x = gaussian(100_001, seed=1)
    assert x.shape == (100_001,)
    # standard errors 1/sqrt(n), sqrt(2/n), sqrt(96/n); five of them
    assert abs(x.mean()) < 5 / np.sqrt(len(x))
    assert abs(x.var() - 1) < 5 * np.sqrt(2 / len(x))
    assert abs((x**4).mean() - 3) < 5 * np.sqrt(96 / len(x))


@pytest.mark.parametrize("bad", [{"seed": -1}, {"seed": 2**64}, {"seed": 0, "stream": -1}])
def test_seeds_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="seed|stream"):
        rademacher(3, **bad)


@pytest.mark.parametrize("start", [0, 1, 2, 5, 1000, 4097])
def test_gaussian_from_anywhere(start: int) -> None:
    whole = gaussian(5000, 3, 7)
    assert np.array_equal(gaussian(800, 3, 7, start), whole[start : start + 800])


@pytest.mark.parametrize("seed, stream", [(0, 0), (2**40 + 3, 7), (2**64 - 1, 2**64 - 1), (5, 2**32)])
@pytest.mark.parametrize("start", [0, 1, 31, 77, 2**34 + 5])
def test_torch_makes_the_same_numbers(seed: int, stream: int, start: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from spectral_fast.kernels import torch_counters

    for n in (0, 1, 33, 257):
        words = torch_counters.random_words(n, seed, stream, start, device="cpu")
        assert np.array_equal(words.numpy(), random_words(n, seed, stream, start))
        signs = torch_counters.rademacher(n, seed, stream, start, device="cpu")
        assert signs.dtype == torch.float64 and np.array_equal(signs.numpy(), rademacher(n, seed, stream, start))
        assert np.array_equal(torch_counters.uniform(n, seed, stream, device="cpu").numpy(), uniform(n, seed, stream))
        bells = torch_counters.gaussian(n, seed, stream, start, device="cpu").numpy()
        assert np.abs(bells - gaussian(n, seed, stream, start)).max(initial=0.0) < 1e-13


def test_torch_refuses_the_same_seeds() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    from spectral_fast.kernels import torch_counters

    with pytest.raises(ValueError, match="seed"):
        torch_counters.rademacher(3, -1, device="cpu")
