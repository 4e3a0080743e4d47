"""power_law on every backend and instruction-set level, against its definition in higher precision and against numpy."""

from __future__ import annotations

import math
import os
import sys
import threading

import mpmath
import numpy as np
import pytest
from children import run_python
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_fast.kernels import native_kernels, numpy_kernels
from spectral_fast.kernels.select import select

NAN_EQUAL = {"equal_nan": True}


def pareto(rng: np.random.Generator, n: int, alpha: float, xmin: float = 1.0) -> np.ndarray:
    return np.sort(xmin * (1.0 - rng.random(n)) ** (-1.0 / (alpha - 1.0)))


def spectrum(kind: str, n: int, seed: int = 0) -> np.ndarray:
    """Ascending positive values: a pure tail, a tail with a body, ties, values all but equal, a very wide range."""
    rng = np.random.default_rng(seed)
    return {
        "pareto": lambda: pareto(rng, n, 2.5),
        "body and tail": lambda: np.sort(rng.pareto(2.0, n) + 0.05 * rng.random(n) + 0.01),
        "ties": lambda: np.sort(np.floor(3.0 * rng.random(n) ** -1.0)),
        "all but equal": lambda: np.sort(1.0 + 1e-12 * rng.integers(0, 9, n)),
        "cluster far away": lambda: np.sort(np.concatenate((rng.random(n // 2) + 1e-9, 1e12 * (1.0 + 1e-10 * rng.random(n - n // 2))))),
        "wide": lambda: np.sort(10.0 ** rng.uniform(-300, 300, n)),
    }[kind]()


KINDS = ["pareto", "body and tail", "ties", "all but equal", "cluster far away", "wide"]


def by_definition(x: np.ndarray) -> tuple[list[float], list[float]]:
    """alpha_i and D_i, 60 digits, straight from the formulas."""
    with mpmath.workdps(60):
        logs = [mpmath.log(mpmath.mpf(float(v))) for v in x]
        alphas, Ds = [], []
        for i in range(len(x) - 1):
            n = len(x) - i
            total = mpmath.fsum(v - logs[i] for v in logs[i:])
            if total == 0:
                alphas.append(math.inf)
                Ds.append(math.nan)
                continue
            slope = n / total
            alphas.append(float(1 + slope))
            Ds.append(float(max(abs(1 - mpmath.exp(-slope * (v - logs[i])) - mpmath.mpf(j) / n) for j, v in enumerate(logs[i:]))))
        return alphas, Ds


def offsets_of(spectra: list[np.ndarray]) -> np.ndarray:
    return np.cumsum([0, *(len(x) for x in spectra)], dtype=np.int64)


def same_fit(ours, theirs, offsets) -> None:
    """The agreement promised: every alpha to rounding, every D within 1e-12, the same best start or equal D there."""
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-12, **NAN_EQUAL)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=0, atol=1e-12, **NAN_EQUAL)
    for s in range(len(offsets) - 1):
        a, b = int(ours[2][s]), int(theirs[2][s])
        assert (a < 0) == (b < 0)
        if a != b:
            D = ours[1][offsets[s] : offsets[s + 1]]
            assert abs(D[a] - D[b]) <= 1e-12


@pytest.mark.parametrize("n", [2, 3, 8, 17, 60])
@pytest.mark.parametrize("kind", KINDS)
def test_definition_in_60_digits(kernels, kind, n):
    x = spectrum(kind, n)
    alpha, D, best = kernels("power_law")(x, np.array([0, n]))
    expected_alpha, expected_D = by_definition(x)
    np.testing.assert_allclose(alpha[:-1], expected_alpha, rtol=1e-14)
    np.testing.assert_allclose(D[:-1], expected_D, rtol=0, atol=1e-14)
    assert math.isnan(alpha[-1]) and math.isnan(D[-1])
    if np.isnan(expected_D).all():
        assert best[0] == -1
    else:
        assert expected_D[best[0]] <= np.nanmin(expected_D) + 1e-14


@pytest.mark.parametrize("n", [255, 256, 257, 1000, 4097])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.native_only
def test_agrees_with_numpy(kind, n):
    x, offsets = spectrum(kind, n, seed=n), np.array([0, n])
    expected = numpy_kernels.power_law(x, offsets)
    for level in native_kernels.levels() or ["baseline"]:
        same_fit(native_kernels.power_law(x, offsets, level=level), expected, offsets)


def test_known_exponent(kernels):
    # stderr of alpha is (alpha-1)/sqrt(n) = 0.027; 4 of them
    alpha, _, best = kernels("power_law")(pareto(np.random.default_rng(5), 3000, 2.5), np.array([0, 3000]))
    assert abs(alpha[0] - 2.5) < 0.11
    assert abs(alpha[best[0]] - 2.5) < 0.11


def test_two_values_by_hand(kernels):
    # n = 2, x = (1, e): the sum of logs is 1, alpha = 3; model 1 - e^-2 against the left step 1/2
    alpha, D, best = kernels("power_law")(np.array([1.0, math.e]), np.array([0, 2]))
    assert alpha[0] == pytest.approx(3.0, rel=1e-15)
    assert D[0] == pytest.approx(0.5 - math.exp(-2.0), abs=1e-15)
    assert best[0] == 0


def test_first_of_equal_minima(kernels):
    # starts 0 and 3: the third of three equal smallest values stands at 1/3 of its tail (2/6, here by ties; 1/3), the model at 0
    _, D, best = kernels("power_law")(np.array([1.0, 1.0, 1.0, 4.0, 4.0, 8.0]), np.array([0, 6]))
    assert D[0] == pytest.approx(1 / 3, abs=1e-15) and D[3] == pytest.approx(1 / 3, abs=1e-15)
    assert best[0] == np.flatnonzero(D == np.nanmin(D))[0]


def test_empty_and_tiny_spectra(kernels):
    x = np.array([3.0, 1.0, 2.0, 5.0, 5.0])
    alpha, D, best = kernels("power_law")(x, np.array([0, 0, 1, 3, 3, 5]))
    assert best.tolist() == [-1, -1, 0, -1, -1]
    assert np.isnan(D).tolist() == [True, False, True, True, True]
    assert math.isinf(alpha[3])
    alpha, D, best = kernels("power_law")(np.empty(0), np.array([0]))
    assert alpha.shape == D.shape == best.shape == (0,)


@given(st.lists(st.lists(st.floats(5e-324, 1.7e308), max_size=40), max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_ragged_batches_of_anything(spectra, data):
    spectra = [np.sort(np.array(s, dtype=np.float64)) for s in spectra]
    if spectra and len(spectra[0]):
        spectra[0][:] = data.draw(st.sampled_from([spectra[0][0], spectra[0]]), label="ties or not")
    offsets = offsets_of(spectra)
    values = np.concatenate(spectra) if spectra else np.empty(0)
    expected = numpy_kernels.power_law(values, offsets)
    for level in native_kernels.levels():
        ours = native_kernels.power_law(values, offsets, level=level)
        same_fit(ours, expected, offsets)
    for s, x in enumerate(spectra):  # a spectrum's result depends neither on the batch nor on its place there
        alone = numpy_kernels.power_law(x, np.array([0, len(x)]))
        assert np.array_equal(alone[1], expected[1][offsets[s] : offsets[s + 1]], equal_nan=True)
        assert alone[2][0] == expected[2][s]


@pytest.mark.parametrize("exponent", [-900, -1, 1, 900])
def test_power_of_two_scale_changes_no_bit(kernels, exponent):
    x = spectrum("body and tail", 300)
    offsets = np.array([0, 300])
    plain, scaled = kernels("power_law")(x, offsets), kernels("power_law")(np.ldexp(x, exponent), offsets)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(plain, scaled, strict=True))


@pytest.mark.native_only
def test_levels_threads_batch_and_strides_change_no_bit():
    spectra = [spectrum(kind, n, seed=n) for kind in KINDS for n in (2, 16, 300, 1500)]
    values, offsets = np.concatenate(spectra), offsets_of(spectra)
    reference = native_kernels.power_law(values, offsets, level="baseline", threads=1)
    for level in native_kernels.levels():
        for threads in (1, 2, 5):
            again = native_kernels.power_law(values, offsets, level=level, threads=threads)
            assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(reference, again, strict=True)), (level, threads)
    for s, x in enumerate(spectra):
        alone = native_kernels.power_law(x, np.array([0, len(x)]))
        assert np.array_equal(alone[1], reference[1][offsets[s] : offsets[s + 1]], equal_nan=True)
    strided = native_kernels.power_law(np.repeat(values, 3)[::3], np.repeat(offsets, 2)[::2])
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(reference, strided, strict=True))


@pytest.mark.native_only
def test_calls_from_many_threads():
    x, offsets = spectrum("body and tail", 2000), np.array([0, 2000])
    expected = native_kernels.power_law(x, offsets)
    results = []
    workers = [threading.Thread(target=lambda: results.extend(native_kernels.power_law(x, offsets) for _ in range(5))) for _ in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert len(results) == 20
    assert all(np.array_equal(r[1], expected[1], equal_nan=True) for r in results)


@pytest.mark.native_only
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_works_after_fork():
    # in a fresh interpreter, so that the fork happens with one Python thread and a pool that is running
    code = """if True:
        import os, numpy as np
        from spectral_fast.kernels import native_kernels as k
        x, o = np.sort(np.random.default_rng(0).random(3000)), np.array([0, 3000])
        here = k.power_law(x, o, threads=2)
        child = os.fork()
        if child == 0:
            there = k.power_law(x, o, threads=2)
            os._exit(0 if np.array_equal(here[1], there[1], equal_nan=True) else 1)
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.native_only
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_interrupt_stops_a_long_call():
    code = """if True:
        import os, signal, threading, time, numpy as np
        from spectral_fast.kernels import native_kernels as k
        x = np.sort(np.random.default_rng(0).pareto(1.5, 3_000_000) + 0.01)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            for _ in range(100):
                k.power_law(x, np.array([0, len(x)]), threads=1)
        except KeyboardInterrupt:
            raise SystemExit(7)
    """
    done = run_python(code)
    assert done.returncode == 7, done.stderr


@pytest.mark.parametrize(
    ("values", "offsets", "error", "words"),
    [
        (np.array([2.0, 1.0]), np.array([0, 2]), ValueError, "values: .*ascending"),
        (np.array([0.0, 1.0]), np.array([0, 2]), ValueError, "values: .*positive"),
        (np.array([-1.0, 1.0]), np.array([0, 2]), ValueError, "values: .*positive"),
        (np.array([1.0, np.inf]), np.array([0, 2]), ValueError, "values: .*finite"),
        (np.array([1.0, np.nan]), np.array([0, 2]), ValueError, "values"),
        (np.array([1.0, np.nan, 2.0]), np.array([0, 3]), ValueError, "values"),
        (np.array([1.0, 2.0]), np.array([0, 1]), ValueError, "offsets"),
        (np.array([1.0, 2.0]), np.array([1, 2]), ValueError, "offsets"),
        (np.array([1.0, 2.0]), np.array([0, 2, 1, 2]), ValueError, "offsets"),
        (np.array([1.0, 2.0]), np.empty(0, dtype=np.int64), ValueError, "offsets"),
        (np.array([1.0, 2.0], dtype=np.float32), np.array([0, 2]), TypeError, "values: .*float64.*float32"),
        (np.array([1.0, 2.0]), np.array([0, 2], dtype=np.int32), TypeError, "offsets: .*int64.*int32"),
        (np.array([[1.0, 2.0]]), np.array([0, 2]), ValueError, "values: .*one-dimensional"),
    ],
)
def test_bad_input_is_named(kernels, values, offsets, error, words):
    with pytest.raises(error, match=words):
        kernels("power_law")(values, offsets)


@pytest.mark.native_only
class TestSharedNumerics:
    """The functions that CPU and GPU share, against 60 digits."""

    def test_exp_neg(self):
        from spectral_fast import _native

        t = np.concatenate(([0.0, 5e-324, 1e-300, 1e-17, 699.999], np.geomspace(1e-16, 699, 4000)))
        ours = np.array([_native.exp_neg(v) for v in t])
        exact = np.array([float(mpmath.exp(-mpmath.mpf(v))) for v in t])
        assert np.max(np.abs(ours - exact) / exact) <= 4 * 2.0**-53
        assert _native.exp_neg(1e308) == _native.exp_neg(700.0) < 1e-300
        assert (np.diff(ours[5:]) <= 4 * 2.0**-53).all()

    def test_log_ratio(self):
        from spectral_fast import _native

        rng = np.random.default_rng(0)
        a = 10.0 ** rng.uniform(-307, 307, 3000)
        close = a * (1.0 + 10.0 ** rng.uniform(-16, 0, a.size))
        pairs = [*zip(a, close, strict=True), *zip(a, 10.0 ** rng.uniform(-307, 308, a.size), strict=True), (5e-324, 1.7e308), (1.0, 1.0)]
        with mpmath.workdps(60):
            for x, y in pairs:
                low, high = min(x, y), max(x, y)
                exact = float(mpmath.log(mpmath.mpf(float(high)) / mpmath.mpf(float(low))))
                assert abs(_native.log_ratio(low, high) - exact) <= 6 * 2.0**-53 * exact


@pytest.mark.native_only
def test_default_level_from_the_environment():
    code = """if True:
        import numpy as np
        from spectral_fast.kernels import native_kernels as k, select
        print(select.show_config()["native"])
        k.power_law(np.array([1.0, 2.0]), np.array([0, 2]))
    """
    for level in native_kernels.levels():
        assert run_python(code, SPECTRAL_FAST_ISA=level).stdout.strip() == level
    wrong = run_python(code, SPECTRAL_FAST_ISA="sse9")
    assert "SPECTRAL_FAST_ISA=sse9" in wrong.stdout and "baseline" in wrong.stdout
    assert wrong.returncode == 1 and "ValueError: SPECTRAL_FAST_ISA=sse9 is not an instruction-set level" in wrong.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_gives_the_same_bits(kind):
    import torch

    from spectral_fast.kernels import cuda_kernels

    assert not cuda_kernels.why_not, cuda_kernels.why_not
    spectra = [spectrum(kind, n, seed=n) for n in (2, 3, 100, 1, 4096, 1500)]
    values, offsets = np.concatenate(spectra), offsets_of(spectra)
    function, name = select("power_law", device="cuda:0")
    assert name == "cuda"
    ours = [r.cpu().numpy() for r in function(torch.from_numpy(values).cuda(), torch.from_numpy(offsets).cuda())]
    if not native_kernels.why_not:
        expected = native_kernels.power_law(values, offsets)
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(ours, expected, strict=True))
    same_fit(ours, numpy_kernels.power_law(values, offsets), offsets)
