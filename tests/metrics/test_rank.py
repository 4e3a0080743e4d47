"""Rank rules against matrices of known rank, and the storage noise against its definition."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectral_fast.linalg.arrays import FORMATS, RawArray
from spectral_fast.metrics.rank import (
    common_grid,
    effective_precision,
    entries_and_noise,
    entry_counts,
    matrix_rank,
    numerical_rank,
    rank_tolerances,
    storage_noise,
)

DTYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}


def known_rank(rng: np.random.Generator, m: int, n: int, rank: int, uneven: bool) -> np.ndarray:
    """(m, n) float64 of exactly ``rank`` nonzero singular values between 0.1 and 10, entries of order 1 for the narrow formats."""
    u = np.linalg.qr(rng.standard_normal((m, rank)))[0]
    v = np.linalg.qr(rng.standard_normal((n, rank)))[0]
    w = (u * np.geomspace(10.0, 0.1, rank)) @ v.T
    return w * np.geomspace(1.0, 1e-3, m)[:, None] if uneven else w


@pytest.mark.parametrize("uneven", [False, True], ids=["even", "uneven rows"])
@pytest.mark.parametrize("name", DTYPES)
def test_storage_rule_on_rounded_matrices_of_known_rank(name: str, uneven: bool) -> None:
    """The rank never exceeds the true one, and no value above twice the tolerance is reported lost."""
    for seed in range(200):
        rng = np.random.default_rng(seed)
        m, n = int(rng.integers(20, 70)), int(rng.integers(20, 70))
        rank = int(rng.integers(1, min(m, n) + 1))
        exact = known_rank(rng, m, n, rank, uneven)
        stored = exact.astype(DTYPES[name])
        s_true = np.linalg.svd(exact, compute_uv=False)
        tol = storage_noise(np.asarray(stored, dtype=np.float64), FORMATS[name]).tolerance
        found = matrix_rank(stored)
        assert found <= rank, (seed, m, n, rank)
        assert found >= int((s_true > 2 * tol).sum()), (seed, m, n, rank, tol)


@pytest.mark.parametrize("kept", [np.float32, np.float64, ml_dtypes.bfloat16], ids=["float32", "float64", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "scale"), [("float8_e4m3fn", 1.0), ("float8_e4m3fn", 0.02), ("float8_e5m2", 1e-3), ("float16", 2e-6), ("float16", 1.0), ("bfloat16", 1.0)]
)
def test_storage_rule_sees_through_a_cast(name: str, scale: float, kept: type) -> None:
    """Values rounded to a narrow format, many of them subnormal there, and then kept in a wider one."""
    if name == "float16" and kept is ml_dtypes.bfloat16:
        return  # not a wider format
    for seed in range(20):
        rng = np.random.default_rng(seed)
        exact = known_rank(rng, 60, 50, 20, False) * scale / 0.4
        cast = exact.astype(DTYPES[name]).astype(kept)
        assert matrix_rank(cast) <= 20, seed
        # and no more is given up than the narrow format itself costs
        assert matrix_rank(cast) >= matrix_rank(exact.astype(DTYPES[name])) - 1, seed


def test_storage_rule_is_not_blind() -> None:
    """A full-rank, well-conditioned matrix keeps its full rank in every format but the narrowest."""
    rng = np.random.default_rng(3)
    w = np.linalg.qr(rng.standard_normal((48, 48)))[0]
    for name in ("float32", "float16", "bfloat16", "float8_e4m3fn"):
        assert matrix_rank(w.astype(DTYPES[name])) == 48


@pytest.mark.parametrize("name", DTYPES)
def test_storage_noise_is_its_definition(name: str) -> None:
    """The tolerance from frexp equals the one from spacings counted entry by entry."""
    rng = np.random.default_rng(7)
    scale = 2.0 ** rng.integers(-12, 4, size=(17, 11))
    stored = (rng.standard_normal((17, 11)) * scale).astype(DTYPES[name])
    stored[3, 4] = 0
    w = stored.astype(np.float64)
    f = FORMATS[name]
    with np.errstate(divide="ignore"):
        exponent = np.maximum(np.floor(np.log2(np.abs(w))), f.emin)
    tau = 2.0 ** (exponent + 1 - f.precision) / np.sqrt(12)
    expected = np.sqrt((tau**2).sum(axis=1)).max() + np.sqrt((tau**2).sum(axis=0)).max() + 3 * tau.max()
    assert storage_noise(w if name != "float32" else w.astype(np.float32), f).tolerance == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-40, 1.0, 1e30, 1e300])
def test_storage_noise_scales_without_overflow(scale: float) -> None:
    w = np.random.default_rng(0).standard_normal((8, 8))
    noise = storage_noise(w * scale, FORMATS["float64"]).tolerance
    assert 0 < noise < np.inf
    assert noise / scale == pytest.approx(storage_noise(w, FORMATS["float64"]).tolerance, rel=0.8)


def test_effective_precision_sees_through_a_cast() -> None:
    rng = np.random.default_rng(1)
    w = rng.standard_normal((32, 32))

    def bits(x: np.ndarray) -> int:
        return effective_precision(entry_counts(x, FORMATS[x.dtype.name]), FORMATS[x.dtype.name])

    assert bits(w.astype(ml_dtypes.bfloat16).astype(np.float32)) == 8
    assert bits(w.astype(np.float16).astype(np.float32)) == 11
    assert bits(w.astype(np.float32).astype(np.float64)) == 24
    assert bits(w.astype(np.float32)) == 24


@pytest.mark.parametrize(
    "w",
    [np.eye(32), np.sign(np.random.default_rng(0).standard_normal((32, 32))), np.zeros((32, 32)), np.ones((16, 16)) * 0.5],
    ids=["eye", "signs", "zero", "half"],
)
def test_effective_precision_believes_no_structure(w: np.ndarray) -> None:
    """Few mantissa bits used by design are not rounding: the identity keeps its rank."""
    counts = entry_counts(w.astype(np.float32), FORMATS["float32"])
    assert effective_precision(counts, FORMATS["float32"]) == 24
    assert common_grid(counts) is None


def test_common_grid_of_quantized_weights() -> None:
    """Multiples of 2^-9 up to 127, kept as float32: their last place is a fixed one, and each is off by its twelfth root."""
    w = (np.random.default_rng(5).integers(-127, 128, size=(40, 30)) * 2.0**-9).astype(np.float32)
    counts = entry_counts(w, FORMATS["float32"])
    assert common_grid(counts) == -9
    tau = 2.0**-9 / np.sqrt(12)
    assert storage_noise(w, FORMATS["float32"]).tolerance == pytest.approx(tau * (np.sqrt(30) + np.sqrt(40) + 3), rel=1e-12)


def test_bfloat16_bits_tell_what_their_values_do() -> None:
    w = np.random.default_rng(5).standard_normal((70, 30)).astype(ml_dtypes.bfloat16)
    stored = FORMATS["bfloat16"]
    assert entries_and_noise(RawArray(w.view(np.uint16), "bfloat16"), stored) == entries_and_noise(w.astype(np.float32), stored)


def test_rules_are_their_formulas() -> None:
    s = np.array([4.0, 1.0, 5e-4, 1e-9])
    eps = 2.0**-23
    tolerances = rank_tolerances(s, (10, 4), "bfloat16", storage_tol=0.5)
    assert tolerances == pytest.approx({"numpy": 40 * eps, "numerical_recipes": 0.5 * np.sqrt(15) * 4 * eps, "loose": 1e-3, "log8": 1e-8, "storage": 0.5})
    assert [numerical_rank(s, (10, 4), "float32", rule, storage_tol=2.0) for rule in ("numpy", "numerical_recipes", "loose", "log8", "storage")] == [
        3,
        3,
        2,
        3,
        1,
    ]
    assert numerical_rank(s, (10, 4), "float64", "numpy") == 4


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_numpy_rule_agrees_with_numpy(m: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((m, 2)) @ rng.standard_normal((2, n))
    assert matrix_rank(w, "numpy") == np.linalg.matrix_rank(w)


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="rule.*known: numpy"):
        matrix_rank(np.eye(3), "svd")
    with pytest.raises(ValueError, match="^a: got shape"):
        matrix_rank(np.ones(3))
    with pytest.raises(ValueError, match="^a: .*not finite"):
        matrix_rank(np.array([[np.nan, 1.0]]))
    with pytest.raises(TypeError, match="^a: got dtype int"):
        matrix_rank(np.eye(3, dtype=np.int64))
    with pytest.raises(ValueError, match="storage_tol"):
        numerical_rank(np.ones(3), (3, 3), "float32")
