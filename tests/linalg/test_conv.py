"""Singular values of convolutions against the dense matrix of the operator, built by applying torch's convolution to every basis vector."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import spectral_fast as sf
from spectral_fast.linalg import conv as conv_module

CONV = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}
CONV_TRANSPOSE = {1: torch.nn.functional.conv_transpose1d, 2: torch.nn.functional.conv_transpose2d, 3: torch.nn.functional.conv_transpose3d}


def basis(channels: int, size: tuple[int, ...]) -> torch.Tensor:
    n = channels * math.prod(size)
    return torch.eye(n, dtype=torch.float64).reshape(n, channels, *size)


def periodic_matrix(w: NDArray[Any], size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], groups: int) -> NDArray[Any]:
    """Matrix of the periodic convolution: the input is continued periodically as far as the kernel reaches."""
    x = basis(w.shape[1] * groups, size)
    for axis, (n, k, a) in enumerate(zip(size, w.shape[2:], dilation, strict=True)):
        x = x.index_select(axis + 2, torch.arange(n + a * (k - 1)) % n)
    y = CONV[len(size)](x, torch.from_numpy(w), stride=stride, dilation=dilation, groups=groups)
    assert y.shape[2:] == tuple(n // t for n, t in zip(size, stride, strict=True))
    return y.flatten(1).numpy().T


def transposed_matrix(w: NDArray[Any], size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], groups: int) -> NDArray[Any]:
    """Matrix of the periodic transposed convolution: what reaches beyond the output's grid is added where it wraps to."""
    y = CONV_TRANSPOSE[len(size)](basis(w.shape[0], size), torch.from_numpy(w), stride=stride, dilation=dilation, groups=groups)
    for axis, (n, t) in enumerate(zip(size, stride, strict=True)):
        folded = torch.zeros(*y.shape[: axis + 2], n * t, *y.shape[axis + 3 :], dtype=y.dtype)
        y = folded.index_add(axis + 2, torch.arange(y.shape[axis + 2]) % (n * t), y)
    return y.flatten(1).numpy().T


def zero_padded_matrix(w: NDArray[Any], size: tuple[int, ...], padding: int, **options: Any) -> NDArray[Any]:
    y = CONV[len(size)](basis(w.shape[1] * options.get("groups", 1), size), torch.from_numpy(w), padding=padding, **options)
    return y.flatten(1).numpy().T


def dense_values(matrix: NDArray[Any]) -> NDArray[Any]:
    return np.linalg.svd(matrix, compute_uv=False)


# kernel (C_out, C_in / groups, k...), grid, stride, dilation, groups
CASES = [
    ((3, 2, 3), (8,), (1,), (1,), 1),
    ((2, 5, 4), (9,), (3,), (1,), 1),
    ((5, 2, 3), (12,), (2,), (2,), 1),
    ((4, 3, 2), (6,), (6,), (1,), 1),
    ((4, 2, 3), (8,), (2,), (3,), 2),
    ((3, 2, 5), (4,), (1,), (1,), 1),  # wraps
    ((3, 2, 3), (4,), (2,), (4,), 1),  # all taps on one point
    ((3, 4, 3, 3), (5, 6), (1, 1), (1, 1), 1),
    ((4, 3, 3, 3), (6, 4), (2, 2), (1, 1), 1),
    ((3, 4, 1, 1), (4, 6), (2, 2), (1, 1), 1),
    ((5, 3, 1, 1), (4, 6), (1, 1), (1, 1), 1),
    ((3, 2, 1, 3), (4, 6), (1, 2), (1, 1), 1),
    ((3, 2, 2, 3), (6, 6), (3, 1), (1, 2), 1),
    ((6, 1, 3, 3), (4, 4), (1, 1), (1, 1), 6),
    ((6, 2, 3, 2), (4, 6), (2, 3), (1, 2), 3),
    ((3, 2, 5, 3), (3, 2), (1, 1), (1, 1), 1),  # wraps along both axes
    ((2, 3, 2, 3, 2), (3, 4, 2), (1, 1, 1), (1, 1, 1), 1),
    ((4, 1, 3, 2, 3), (4, 4, 2), (2, 2, 1), (1, 3, 1), 2),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_against_the_dense_matrix(case: tuple[Any, ...], transposed: bool) -> None:
    shape, grid, stride, dilation, groups = case
    w = np.random.default_rng(CASES.index(case)).standard_normal(shape)
    if transposed:
        size = tuple(n // t for n, t in zip(grid, stride, strict=True))
        matrix = transposed_matrix(w, size, stride, dilation, groups)
    else:
        size = grid
        matrix = periodic_matrix(w, size, stride, dilation, groups)
    expected = dense_values(matrix)
    s = sf.conv_svdvals(w, size, stride=stride, dilation=dilation, groups=groups, transposed=transposed)
    assert s.dtype == np.float64 and s.shape == expected.shape
    assert (np.diff(s) <= 0).all()
    np.testing.assert_allclose(s, expected, rtol=0, atol=1e-12 * expected[0])


@settings(max_examples=40, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    taps=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    data=st.data(),
)
def test_any_shape(channels: tuple[int, int], taps: list[int], data: st.DataObject) -> None:
    stride = tuple(data.draw(st.integers(1, 3)) for _ in taps)
    coarse = tuple(data.draw(st.integers(1, 3)) for _ in taps)
    dilation = tuple(data.draw(st.integers(1, 3)) for _ in taps)
    groups = data.draw(st.integers(1, 2))
    grid = tuple(n * t for n, t in zip(coarse, stride, strict=True))
    w = np.random.default_rng(0).standard_normal((channels[0] * groups, channels[1], *taps))
    expected = dense_values(periodic_matrix(w, grid, stride, dilation, groups))
    s = sf.conv_svdvals(w, grid, stride=stride, dilation=dilation, groups=groups)
    np.testing.assert_allclose(s, expected, rtol=0, atol=1e-12 * expected[0])


def test_closed_forms() -> None:
    # 1 + z^-1 on a grid of n: |1 + exp(-2 pi i j / n)| = 2 |cos(pi j / n)|
    n = 7
    expected = np.sort(2 * np.abs(np.cos(np.pi * np.arange(n) / n)))[::-1]
    np.testing.assert_allclose(sf.conv_svdvals(np.ones((1, 1, 2)), n), expected, atol=1e-15)
    # a shift is orthogonal; every second sample of it is a row selection
    shift = np.zeros((3, 3, 3, 3))
    shift[:, :, 2, 0] = np.eye(3)
    np.testing.assert_allclose(sf.conv_svdvals(shift, (6, 4)), np.ones(72), atol=1e-14)
    np.testing.assert_allclose(sf.conv_svdvals(shift, (6, 4), stride=2), np.ones(18), atol=1e-14)


def test_same_sum_of_squares_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """One frequency at a time gives what all at once give, and sum s² is the operator's squared Frobenius norm."""
    w = np.random.default_rng(1).standard_normal((3, 4, 3, 3))
    whole = sf.conv_svdvals(w, (8, 10), stride=(2, 1))
    monkeypatch.setattr(conv_module, "_CHUNK_BYTES", 1)
    np.testing.assert_allclose(sf.conv_svdvals(w, (8, 10), stride=(2, 1)), whole, atol=1e-13)
    assert (whole**2).sum() == pytest.approx((w**2).sum() * 40, rel=1e-12)


@pytest.mark.parametrize("exponent", [-1060, -300, 0, 500, 1000])
def test_powers_of_two_change_nothing_but_the_scale(exponent: int) -> None:
    w = np.round(np.random.default_rng(2).standard_normal((3, 2, 3)) * 16) / 16  # few bits: exact as denormals too
    np.testing.assert_array_equal(sf.conv_svdvals(np.ldexp(w, exponent), 6), np.ldexp(sf.conv_svdvals(w, 6), exponent))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_torch_in_torch_out(dtype: torch.dtype) -> None:
    w = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    s = sf.conv_svdvals(w, 4)
    assert isinstance(s, torch.Tensor) and s.dtype == torch.float64
    np.testing.assert_array_equal(s.numpy(), sf.conv_svdvals(w.detach().double().numpy(), 4))
    assert sf.conv_svdvals(w, 4, boundary="bound").shape == (1,)


BOUNDED: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((3, 2, 3), {}),
    ((3, 2, 5), {"stride": 2}),
    ((2, 3, 4), {"dilation": 3}),
    ((4, 2, 3), {"groups": 2, "stride": 3, "dilation": 2}),
    ((3, 2, 3, 3), {}),
    ((3, 2, 3, 3), {"stride": 2}),
    ((2, 2, 1, 1), {}),
    ((2, 2, 2, 2, 2), {}),
]


@pytest.mark.parametrize(("shape", "options"), BOUNDED, ids=str)
def test_the_bound_bounds_zero_padding(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    d = len(shape) - 2
    for seed, padding in itertools.product(range(4), range(3)):
        w = np.random.default_rng(seed).standard_normal(shape)
        bound = sf.conv_svdvals(w, 11, boundary="bound", **options)  # the stride need not divide anything
        assert bound.shape == (1,)
        size = {1: 15, 2: 6, 3: 4}[d]
        assert dense_values(zero_padded_matrix(w, (size,) * d, padding, **options))[0] <= bound[0]
        # at most 1 % above the supremum, which a much finer grid finds to 0.3 %
        highest = sf.conv_svdvals(w, {1: 1200, 2: 96, 3: 36}[d], **options)[0]
        assert highest <= bound[0] <= 1.013 * highest


def test_the_bound_is_reached_by_long_signals() -> None:
    w = np.random.default_rng(3).standard_normal((2, 2, 3))
    norm = dense_values(zero_padded_matrix(w, (200,), 1))[0]
    assert norm <= sf.conv_svdvals(w, 200, boundary="bound")[0] <= 1.011 * norm


@pytest.mark.parametrize("boundary", ["periodic", "bound"])
def test_nan_gives_nan_and_zero_gives_zero(boundary: Any) -> None:
    w = np.ones((2, 3, 3))
    w[1, 0, 2] = np.nan
    s = sf.conv_svdvals(w, 5, boundary=boundary)
    assert np.isnan(s).all() and s.shape == ((10,) if boundary == "periodic" else (1,))
    assert (sf.conv_svdvals(np.zeros((2, 3, 3)), 5, boundary=boundary) == 0.0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": 3}, "stride: got .3, 3.; it has to divide the grid"),
        ({"stride": 0}, "stride: got 0"),
        ({"stride": (1, 1, 1)}, "stride: got"),
        ({"dilation": 1.5}, "dilation: got 1.5"),
        ({"input_size": -4}, "input_size: got -4"),
        ({"input_size": (4, 4, 4)}, "input_size: got"),
        ({"groups": 3}, "groups: got 3"),
        ({"boundary": "zero"}, "boundary: got 'zero'; known: periodic, bound"),
        ({"kernel": np.ones((2, 2))}, "kernel: got shape"),
        ({"kernel": np.ones((2, 0, 3))}, "kernel: got shape"),
        ({"kernel": np.ones((1,) * 6)}, "kernel: got shape"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sf.conv_svdvals(**({"kernel": np.ones((4, 2, 3, 3)), "input_size": 4} | arguments))


def test_complex_kernels_are_refused() -> None:
    with pytest.raises(TypeError, match="kernel: got dtype complex128"):
        sf.conv_svdvals(np.ones((2, 2, 3), dtype=complex), 4)
