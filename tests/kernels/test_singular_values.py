"""The singular-value kernels: every backend and instruction set, accuracy and format through one suite."""

from __future__ import annotations

from functools import cache

import ml_dtypes
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pretend_device import on_device

from spectral_fast.kernels import native_kernels, numpy_kernels, torch_kernels
from spectral_fast.linalg.svd import svd_bound
from tests.problems import with_singular_values

EPS = 2.0**-52
LEVELS = native_kernels.levels()
BACKENDS = ["numpy", "torch", *LEVELS]
# one shape at least for every route and every remainder of its loops: lanes, one stage, two stages; square, tall, wide
SMALL = [(1, 1), (2, 2), (3, 5), (7, 7), (16, 16), (40, 17), (33, 33), (64, 64), (64, 100)]
MIDDLE = [(65, 65), (100, 100), (128, 500), (129, 140), (200, 200), (257, 300)]
LARGE = [(321, 321), (330, 700), (513, 513)]


def values(backend: str, a: np.ndarray, accuracy: str, **options: object) -> np.ndarray:
    if backend == "numpy":
        return numpy_kernels.singular_values(a, accuracy=accuracy)
    if backend == "torch":
        return on_device(torch_kernels.singular_values)(a, accuracy=accuracy)
    return native_kernels.singular_values(a, accuracy=accuracy, level=backend, **options)  # type: ignore[arg-type]


def families(m: int, n: int, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """name -> (matrix, its singular values where they are known)."""
    d = min(m, n)
    half = (d + 1) // 2
    k = np.arange(d)
    spectra = {
        "graded": np.geomspace(1.0, 1e-15, d),
        "repeated": np.where(k < half, 1.0, 1e-3),
        "clustered": np.where(k < half, 1.0, 1e-6) * (1 + 1e-12 * k[::-1] / d),
        "deficient": np.where(k < half, np.linspace(2.0, 1.0, d), 0.0),
        "flat": np.ones(d),
    }
    found: dict[str, tuple[np.ndarray, np.ndarray | None]] = {
        name: (with_singular_values(s, m, n, int(rng.integers(1 << 30))), s) for name, s in spectra.items()
    }
    found["gaussian"] = rng.standard_normal((m, n)), None
    found["heavy-tailed"] = rng.standard_t(1.5, (m, n)), None
    found["zero"] = np.zeros((m, n)), np.zeros(d)
    found["identity"] = np.eye(m, n), np.ones(d)
    found["ones"] = np.ones((m, n)), np.where(k == 0, np.sqrt(m * n), 0.0)
    entries = rng.standard_normal(d)
    found["diagonal"] = np.eye(m, n) * np.resize(entries, n), None if n > m else np.sort(np.abs(entries))[::-1]
    found["holes"] = rng.standard_normal((m, n)), None
    found["holes"][0][::3] = 0.0
    found["holes"][0][:, 1::4] = 0.0
    found["scaled rows"] = rng.standard_normal((m, n)) * np.geomspace(1.0, 1e-30, m)[:, None], None
    blocks = np.zeros((m, n))
    blocks[: d // 2, : d // 2] = 1e-4 * rng.standard_normal((d // 2, d // 2))
    blocks[d // 2 :, d // 2 :] = rng.standard_normal((m - d // 2, n - d // 2))
    found["blocks"] = blocks, None
    found["kahan"] = (np.sin(1.2) ** np.arange(m))[:, None] * (np.triu(np.full((m, n), -np.cos(1.2)), 1) + np.eye(m, n)), None
    found["hilbert"] = 1.0 / (np.arange(m)[:, None] + np.arange(n) + 1.0), None
    found["cauchy"] = 1.0 / (np.arange(m)[:, None] * 1.1 - np.arange(n) + 0.3), None
    return found


def check(got: np.ndarray, matrix: np.ndarray, known: np.ndarray | None, accuracy: str, what: str) -> None:
    """Within the contract, where the spectrum is known up to what forming the matrix in float64 moved; else against LAPACK, which has the same bound."""
    d = min(matrix.shape)
    c_eps = 10.0 * np.sqrt(d) * EPS
    lapack = np.linalg.svd(matrix, compute_uv=False)
    exact, slack = (lapack, 0.2 * c_eps * lapack[0]) if known is None else (known, 4.0 * np.sqrt(max(matrix.shape)) * EPS * known[0])
    top = exact[0]
    assert (np.diff(got) <= 0).all(), what
    if accuracy == "high":
        assert np.abs(got - exact).max() <= c_eps * top + slack, what
    else:
        assert np.abs(got**2 - exact**2).max() <= c_eps * top**2 + 2 * slack * top, what
        assert (np.abs(got - exact) <= svd_bound(got, "standard") + slack).all(), what


@pytest.mark.parametrize("accuracy", ["standard", "high"])
@pytest.mark.parametrize("shape", SMALL + MIDDLE + LARGE, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_families(backend: str, shape: tuple[int, int], accuracy: str) -> None:
    found = families(*shape, np.random.default_rng(sum(shape)))
    stack = np.stack([matrix for matrix, _ in found.values()])
    for got, (name, (matrix, known)) in zip(values(backend, stack, accuracy), found.items(), strict=True):
        check(got, matrix, known, accuracy, name)


@cache
def fifty_digits(n: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """name -> (matrix, its singular values computed with fifty digits)."""
    found = families(n, n, np.random.default_rng(n))
    out = {}
    for name in ("gaussian", "graded", "repeated", "kahan", "hilbert", "cauchy", "scaled rows"):
        matrix = found[name][0]
        with mpmath.workdps(50):
            exact = np.sort([float(x) for x in mpmath.svd_r(mpmath.matrix(matrix.tolist()), compute_uv=False)])[::-1]
        out[name] = matrix, exact
    return out


@pytest.mark.parametrize("n", [6, 17, 40])
@pytest.mark.parametrize("backend", BACKENDS)
def test_high_against_fifty_digits(backend: str, n: int) -> None:
    for name, (matrix, exact) in fifty_digits(n).items():
        got = values(backend, matrix[None], "high")[0]
        assert np.abs(got - exact).max() <= 10 * np.sqrt(n) * EPS * exact[0], name
        coarse = values(backend, matrix[None], "standard")[0]
        assert np.abs(coarse**2 - exact**2).max() <= 10 * np.sqrt(n) * EPS * exact[0] ** 2, name


@pytest.mark.parametrize("accuracy", ["standard", "high"])
@pytest.mark.parametrize("n", [5, 16, 33, 64, 90, 330])
@pytest.mark.parametrize("level", LEVELS)
def test_bits_depend_on_the_matrix_alone(level: str, n: int, accuracy: str) -> None:
    batch = 23 if n <= 100 else 3
    a = np.random.default_rng(n).standard_normal((batch, n, n + 3)).astype(np.float32)
    a[1, :, :2] = 0.0
    a[2, 3:] = a[2, :1]
    whole = values(level, a, accuracy, threads=1)
    np.testing.assert_array_equal(values(level, a, accuracy, threads=2), whole)
    np.testing.assert_array_equal(values(level, a[::-1], accuracy, threads=2)[::-1], whole)
    for i in (0, 1, 2, batch - 1):
        np.testing.assert_array_equal(values(level, a[i : i + 1], accuracy)[0], whole[i])


@pytest.mark.parametrize("accuracy", ["standard", "fast"])
@pytest.mark.parametrize("shape", [(4200, 330), (900, 520)], ids=str)
@pytest.mark.parametrize("level", LEVELS)
def test_threads_share_a_tall_matrix(level: str, shape: tuple[int, int], accuracy: str) -> None:
    a = np.random.default_rng(8).standard_normal(shape, dtype=np.float32)
    wide = a.astype(np.float64)
    exact = np.sqrt(np.linalg.eigvalsh(wide.T @ wide))[::-1]  # conditions of 2 to 3: good to 1e-15
    whole = values(level, np.stack([a, a]), accuracy, threads=1)
    assert (np.abs(whole[0] - exact) <= svd_bound(whole[0], accuracy) + svd_bound(exact)).all()
    np.testing.assert_array_equal(whole[0], whole[1])
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(values(level, a[None], accuracy, threads=threads)[0], whole[0])


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_stride_and_format(level: str, data: st.DataObject) -> None:
    batch, m, n = (data.draw(st.integers(low, high)) for low, high in ((0, 9), (0, 80), (0, 80)))
    formats = {"float16": np.float16, "float32": np.float32, "float64": np.float64, "bfloat16": ml_dtypes.bfloat16}
    name = data.draw(st.sampled_from(sorted(formats)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    a = rng.standard_normal((2 * batch, 2 * m + 1, 3 * n + 1)).astype(formats[name])
    view = a[data.draw(st.sampled_from([slice(None, batch), slice(None, None, -2)]))]
    view = view[:, data.draw(st.sampled_from([slice(m), slice(None, 2 * m, 2), slice(2 * m, m, -1)]))]
    view = view[:, :, data.draw(st.sampled_from([slice(n), slice(None, 3 * n, 3), slice(n, 0, -1)]))]
    if data.draw(st.booleans()):
        view = np.swapaxes(view, 1, 2)
    accuracy = data.draw(st.sampled_from(["standard", "high"]))
    exact = numpy_kernels.singular_values(view.astype(np.float64))
    if name == "bfloat16":
        got = values(level, view.view(np.uint16), accuracy, bits="bfloat16")
    else:
        got = values(level, view, accuracy)
    assert got.shape == exact.shape
    assert (np.abs(got - exact) <= svd_bound(got, accuracy) + svd_bound(exact)).all()


@pytest.mark.parametrize("accuracy", ["standard", "high"])
@pytest.mark.parametrize("shape", [(5, 5), (64, 40), (90, 100), (330, 325)], ids=str)
@pytest.mark.parametrize("level", LEVELS)
def test_powers_of_two_change_the_exponent_alone(level: str, shape: tuple[int, int], accuracy: str) -> None:
    rng = np.random.default_rng(5)
    for dtype, exponents in ((np.float64, (-1000, -400, 300, 1000)), (np.float32, (-90, 60))):
        a = rng.standard_normal((2, *shape)).astype(dtype)
        plain = values(level, a, accuracy)
        for e in exponents:
            np.testing.assert_array_equal(values(level, np.ldexp(a, e).astype(dtype), accuracy), np.ldexp(plain, e))


@pytest.mark.parametrize("accuracy", ["standard", "high"])
@pytest.mark.parametrize("shape", [(3, 3), (64, 40), (90, 100), (330, 325)], ids=str)
@pytest.mark.parametrize("level", LEVELS)
def test_denormal_matrices(level: str, shape: tuple[int, int], accuracy: str) -> None:
    whole = np.random.default_rng(6).integers(-7, 8, (2, *shape)).astype(np.float64)
    got = values(level, np.ldexp(whole, -1074), accuracy)  # entries exact, values rounded to multiples of 2^-1074
    assert np.abs(np.ldexp(got, 1074) - values(level, whole, accuracy)).max() <= 0.5


@pytest.mark.parametrize("accuracy", ["standard", "high"])
@pytest.mark.parametrize("shape", [(3, 3), (64, 40), (90, 100), (330, 325)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_entries_spoil_their_matrix_alone(backend: str, shape: tuple[int, int], accuracy: str) -> None:
    a = np.random.default_rng(7).standard_normal((7, *shape))
    clean = values(backend, a, accuracy)
    a[1, -1, -1], a[3, 0, 0], a[6, 1, 2] = np.nan, np.inf, -np.inf
    got = values(backend, a, accuracy)
    assert np.isnan(got[[1, 3, 6]]).all()
    np.testing.assert_array_equal(got[[0, 2, 4, 5]], clean[[0, 2, 4, 5]])


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty(backend: str, shape: tuple[int, int, int]) -> None:
    assert values(backend, np.ones(shape), "standard").shape == (shape[0], min(shape[1:]))


@pytest.mark.native_only
def test_foreign_data_are_copied_not_refused() -> None:
    a = np.random.default_rng(8).standard_normal((2, 6, 5))
    expected = native_kernels.singular_values(a)
    raw = np.zeros(a.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(np.float64).reshape(a.shape)
    unaligned[...] = a
    np.testing.assert_array_equal(native_kernels.singular_values(unaligned), expected)
    np.testing.assert_array_equal(native_kernels.singular_values(a.astype(">f8")), expected)
    np.testing.assert_array_equal(native_kernels.singular_values(np.eye(3, dtype=np.int64)[None]), 1.0)


@pytest.mark.native_only
def test_stages_are_timed() -> None:
    seconds: dict[str, float] = {}
    native_kernels.singular_values(np.random.default_rng(9).standard_normal((8, 100, 100)), seconds=seconds)
    assert seconds["gram"] > 0 and seconds["reduce"] > 0 and seconds["solve"] > 0


@pytest.mark.native_only
@pytest.mark.parametrize(("options", "message"), [({"accuracy": "best"}, "^accuracy"), ({"level": "sse9"}, "sse9"), ({"threads": -1}, "^threads")])
def test_errors_name_the_argument(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native_kernels.singular_values(np.eye(3)[None], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("accuracy", ["standard", "high"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (20, 32), (33, 33), (40, 90), (130, 130), (325, 321)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_complex_matrices(backend: str, shape: tuple[int, int], accuracy: str) -> None:
    rng = np.random.default_rng(11)
    a = rng.standard_normal((5, *shape)) + 1j * rng.standard_normal((5, *shape))
    a[1] = np.round(a[1].real)  # a real one
    a[2] = 1j * a[2, :1]  # rank one
    a[3] *= 2.0**-900
    a[4, 0, 0] = np.nan * 1j
    got = values(backend, a, accuracy)
    assert np.isnan(got[4]).all()
    exact = np.linalg.svd(a[:4], compute_uv=False)
    c_eps = 10 * np.sqrt(2 * min(shape)) * EPS  # of the real matrix of twice the size
    ratio, reached = (x[:4] / exact[:, :1] for x in (exact, got))
    if accuracy == "high":
        assert np.abs(reached - ratio).max() <= 1.2 * c_eps
    else:
        assert np.abs(reached**2 - ratio**2).max() <= 1.2 * c_eps
