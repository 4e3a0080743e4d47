from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Counting, symmetric
from tolerances import tolerance

from spectral_fast.kernels.select import select
from spectral_fast.linalg.density import spectral_density
from spectral_fast.linalg.eigsh import eigsh, extreme_pairs
from spectral_fast.linalg.krylov import Krylov
from spectral_fast.linalg.restart import Ends
from spectral_fast.linalg.trace import trace

N = 300
RNG = np.random.default_rng(5)
BULK = 0.1 * RNG.standard_normal(N - 8)
SPECTRA = {
    "outliers": np.r_[BULK, [9, 8, 7, 6, 5, 4, 3, 2]],
    "multiplicity 3": np.r_[BULK, [10, 10, 10, 5, 5, 4, 3, 2]],
    "multiplicity 7": np.r_[BULK, [10.0] * 7, [4.0]],
    "multiplicity at the bottom": np.r_[BULK, [10, 9, -3, -3, -3, -3, -2, 1]],
    "cluster": np.r_[BULK, 3 + 1e-5 * np.arange(8)],
    "both signs": np.r_[BULK, [-9, 8, -7, 6, -5, 4, -3, 2]],
    "power law": np.arange(1, N + 1) ** -1.5,
    "low rank": np.r_[np.zeros(N - 3), [3, 2, 1]],
    "shifted": 1000 + np.r_[BULK, np.arange(8)],
    "tiny": 1e-150 * np.r_[BULK, np.arange(1, 9)],
    "identity": np.ones(N),
    "zero": np.zeros(N),
}


def expected(evals, which, k):
    e = np.sort(evals)[::-1]
    if which == "LM":
        return np.sort(e[np.argsort(-np.abs(e), kind="stable")[:k]])[::-1]
    return {"LA": e[:k], "SA": e[len(e) - k :], "BE": np.r_[e[: k - k // 2], e[len(e) - k // 2 :]]}[which]


@pytest.mark.parametrize("which, k", [("LA", 6), ("SA", 5), ("LM", 5), ("BE", 7)])
@pytest.mark.parametrize("name", SPECTRA)
def test_values_of_prescribed_spectra(name, which, k):
    evals = SPECTRA[name]
    a = Counting(symmetric(evals, seed=1))
    tol = 1e-7
    r = eigsh(a, k, which=which, tol=tol, max_matvecs=4000)
    size = np.abs(evals).max()
    # a residual r means an eigenvalue within r (Weinstein)
    assert np.abs(r.values - expected(evals, which, k)).max() <= (tol + tolerance(np.float64, N)) * size
    assert r.status == "ok" and r.converged.all()
    assert r.matvecs == a.products
    assert np.all(np.diff(r.values) <= 0)
    true = np.linalg.norm((a.a @ r.vectors - r.vectors * r.values) / (size or 1.0), axis=0) * (size or 1.0)  # squares of 1e-157 are nothing
    assert np.abs(true - r.residuals).max() <= tolerance(np.float64, N) * size
    assert np.all(r.residuals <= tol * size * (1 + 1e-12))
    assert np.abs(r.vectors.T @ r.vectors - np.eye(k)).max() <= (10 * tol if "shifted" in name else tol)


def test_default_tolerance_bounds_the_values_too():
    evals = SPECTRA["outliers"]
    r = eigsh(symmetric(evals), 6)
    assert np.abs(r.values - expected(evals, "LA", 6)).max() <= 1e-3 * 9
    assert r.residuals.max() <= 1e-3 * r.scale


@pytest.mark.parametrize("block", [1, 2, 5])
def test_block_sizes_agree(block):
    evals = SPECTRA["multiplicity 3"]
    r = eigsh(symmetric(evals), 5, tol=1e-9, block=block)
    assert r.status == "ok"
    assert np.abs(r.values - expected(evals, "LA", 5)).max() <= (1e-9 + tolerance(np.float64, N)) * 10


def test_one_run_gives_both_ends():
    evals = SPECTRA["both signs"]
    a = Counting(symmetric(evals))
    pairs, run = extreme_pairs(a, Ends(top=4, bottom=2), tol=1e-8)
    assert run["matvecs"] == a.products
    assert np.abs(pairs.values - np.r_[[-9, -7], [2, 4, 6, 8]]).max() <= 1e-7


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 45), st.integers(1, 50), st.sampled_from(["LA", "SA", "LM", "BE"]), st.integers(0, 2**32 - 1), st.booleans())
def test_any_size_and_number(n, k, which, seed, repeated):
    evals = np.round(np.random.default_rng(seed).standard_normal(n) * (2 if repeated else 1000)) / (1 if repeated else 1000)
    r = eigsh(symmetric(evals, seed % 1000), k, which=which, tol=1e-8, seed=seed)
    want = expected(evals, which, min(k, n))
    size = max(np.abs(evals).max(), 1e-300)
    assert len(r) == min(k, n)
    if which == "LM":  # equal magnitudes of opposite sign may go either way
        assert np.abs(np.sort(np.abs(r.values)) - np.sort(np.abs(want))).max() <= 1e-7 * size
    else:
        assert np.abs(r.values - want).max() <= 1e-7 * size


def test_two_by_two_by_hand():
    r = eigsh(np.array([[2.0, 1.0], [1.0, 2.0]]), 2)
    assert np.allclose(r.values, [3, 1], rtol=0, atol=tolerance(np.float64, 2))
    assert np.allclose(np.abs(r.vectors), np.sqrt(0.5), rtol=0, atol=tolerance(np.float64, 2))
    one = eigsh(np.array([[-4.0]]), 3)
    assert one.values.tolist() == [-4.0] and one.residuals.tolist() == [0.0]


def test_laplacian_against_its_closed_form_with_restarts():
    n = 700
    lap = scipy.sparse.diags([-np.ones(n - 1), 2 * np.ones(n), -np.ones(n - 1)], [-1, 0, 1]).tocsr()
    r = eigsh(scipy.sparse.linalg.aslinearoperator(lap), 3, tol=1e-6, max_matvecs=3000)
    closed = 2 - 2 * np.cos(np.arange(n, n - 3, -1) * np.pi / (n + 1))
    assert np.abs(r.values - closed).max() <= 1e-6 * 4
    assert r.converged.all()
    assert r.matvecs > 320 and r.symmetry_defect <= tolerance(np.float64, n)  # restarts carry the couplings over


def test_budget_ends_honestly():
    n = 2000
    lap = scipy.sparse.diags([-np.ones(n - 1), 2 * np.ones(n), -np.ones(n - 1)], [-1, 0, 1]).tocsr()
    r = eigsh(scipy.sparse.linalg.aslinearoperator(lap), 4, tol=1e-9, max_matvecs=30)
    assert r.status == "incomplete" and "30 products" in r.reason
    assert r.matvecs <= 30
    true = np.linalg.norm(lap @ r.vectors - r.vectors * r.values, axis=0)
    assert np.allclose(true, r.residuals, rtol=1e-6)
    assert not r.converged.any()
    with pytest.raises(ValueError, match="max_matvecs"):
        eigsh(lap, 4, max_matvecs=6)


def test_noise_of_the_operator_is_reported_not_hidden():
    a = symmetric(SPECTRA["outliers"])
    noise = np.random.default_rng(0)
    noisy = Counting(a, lambda i, v, w: w + 1e-5 * noise.standard_normal(len(w)) / np.sqrt(len(w)))
    r = eigsh(noisy, 4, tol=1e-9, max_matvecs=2000)
    assert r.status == "unresolved" and "noisy" in r.reason
    assert not r.converged.any()
    assert np.abs(r.values - [9, 8, 7, 6]).max() < 1e-4
    assert 1e-8 < r.symmetry_defect < 1e-5  # 1e-5/sqrt(n) per coefficient, over 9, largest of some thousands


def test_asymmetry_is_measured():
    a = symmetric(SPECTRA["outliers"])
    assert eigsh(a, 4).symmetry_defect < tolerance(np.float64, N)
    r = eigsh(a + np.triu(np.full((N, N), 0.1)), 4, tol=1e-6)
    assert r.status == "unresolved" and "not symmetric" in r.reason and r.symmetry_defect > 1e-2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("when", [1, 12])
def test_nan_from_the_operator_is_an_arithmetic_error(bad, when):
    def spoil(i, v, w):
        return np.where(np.arange(len(w)) == 3, bad, w) if i == when else w

    with pytest.raises(ArithmeticError, match="op"):
        eigsh(Counting(symmetric(SPECTRA["outliers"]), spoil), 3)


def test_float32_basis_and_warm_start():
    evals = SPECTRA["outliers"]
    a = symmetric(evals)
    r = eigsh(a, 4, tol=1e-4, basis_dtype="float32")
    assert r.converged.all() and np.abs(r.values - [9, 8, 7, 6]).max() <= 9e-4
    n = 400
    lap = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    cold = eigsh(lap, 2, tol=1e-4)
    warm = eigsh(lap, 2, tol=1e-4, v0=cold.vectors)
    assert warm.matvecs < cold.matvecs
    assert np.abs(warm.values - cold.values).max() <= 4e-4


def test_same_seed_same_bits():
    a = symmetric(SPECTRA["power law"])
    first, second, other = eigsh(a, 4, seed=3), eigsh(a, 4, seed=3), eigsh(a, 4, seed=4)
    assert np.array_equal(first.values, second.values) and np.array_equal(first.vectors, second.vectors)
    assert not np.array_equal(first.vectors, other.vectors)


def test_torch_in_torch_out():
    torch = pytest.importorskip("torch")
    a = symmetric(SPECTRA["outliers"])
    r, n = eigsh(torch.from_numpy(a), 3, tol=1e-8), eigsh(a, 3, tol=1e-8)
    for name in ("values", "residuals", "converged", "vectors"):
        value = getattr(r, name)
        assert isinstance(value, torch.Tensor) and value.device.type == "cpu", name
    assert r.values.dtype == torch.float64 and r.converged.dtype == torch.bool
    assert np.abs(r.values.numpy() - n.values).max() <= 1e-7 and np.abs(np.abs(r.vectors.numpy()) - np.abs(n.vectors)).max() <= 1e-6
    # what is shown and kept is the same as that of numpy
    assert r.to_dict()["values"] == pytest.approx(n.to_dict()["values"], abs=1e-7) and "9" in r.summary() and len(r.to_pandas()) == 3


@pytest.mark.parametrize("a, k", [(np.array([[0.0, 1.0], [0.0, 0.0]]), 1), (np.triu(np.ones((20, 20))), 3), (np.triu(np.ones((20, 20))), 20)])
def test_small_operators_that_are_not_symmetric_are_unresolved(a, k):
    r = eigsh(a, k)
    assert r.status == "unresolved" and "not symmetric" in r.reason and not r.converged.any()
    assert r.residuals.max() > 0.1 * r.scale


def test_asymmetry_outside_of_the_pairs_found_is_unresolved_too():
    for n in (10, 60):
        a = np.diag(np.r_[10.0, 9.0, np.zeros(n - 2)])
        assert eigsh(a, 2).status == "ok"
        a[n - 1, n - 2] = 2.0  # the wanted eigenvectors do not notice
        r = eigsh(a, 2)
        assert r.status == "unresolved" and "symmetric only to" in r.reason and r.converged.all()


@pytest.mark.parametrize("when, stage", [(3, "first products"), (13, "first run"), (15, "search for missed ones"), (2, "dense")])
def test_an_interrupt_hands_back_the_pairs_so_far(when, stage):
    evals = SPECTRA["outliers"]
    n = 12 if stage == "dense" else 600
    a = symmetric(np.r_[np.zeros(n - 8), evals[-8:]] if stage == "dense" else np.r_[0.1 * np.sin(np.arange(n - 8)), evals[-8:]])

    def interrupt(i, v, w):
        if i == when:
            raise KeyboardInterrupt
        return w

    tol = 1e-5
    op = Counting(a, interrupt)
    r = eigsh(op, 4, tol=tol)
    assert r.status == "incomplete" and r.reason == f"interrupted after {when} products" and r.matvecs == op.products == when
    if stage in ("dense", "first products"):
        assert len(r) == 4 and not r.converged.any()
        return
    true = np.linalg.norm(a @ r.vectors - r.vectors * r.values, axis=0)
    assert np.abs(true - r.residuals).max() <= tolerance(np.float64, n) * 9
    assert np.array_equal(r.converged, r.residuals <= r.tol * r.scale)
    assert np.abs(r.values - [9, 8, 7, 6]).max() <= r.residuals.max()
    assert r.converged.all() == (stage != "first run") and r.converged[0]


def test_an_interrupt_during_a_restart_waits_for_its_end():
    import signal

    from spectral_fast.linalg.krylov import uninterrupted

    seen = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            seen.append("done")
    assert seen == ["done"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("where", ["taken", "compress"])
@pytest.mark.parametrize("k", [2, 4])
def test_an_interrupt_while_the_basis_is_changed_loses_nothing(k, where, monkeypatch):
    """Ctrl-C in the middle of a restart, or of the making of the vectors, at the end of which the basis is no more."""
    recombine = select("recombine", "auto")[0]
    inside, came = [], []
    original = getattr(Krylov, where)

    def marked(self, *args):
        inside.append(where)
        try:
            return original(self, *args)
        finally:
            inside.pop()

    def interrupted(*args):
        if inside and not came:
            came.append(where)
            signal.raise_signal(signal.SIGINT)
        return recombine(*args)

    monkeypatch.setattr(Krylov, where, marked)
    monkeypatch.setattr("spectral_fast.linalg.krylov.select", lambda name, *where: (interrupted, "") if name == "recombine" else select(name, *where))
    a = symmetric(np.r_[0.1 * np.sin(np.arange(592)), np.arange(2, 10)])
    pairs, run = extreme_pairs(a, Ends(top=k), tol=1e-8, capacity=k + 12)
    assert came and run["interrupted"] and run["status"] == "incomplete" and "interrupted" in run["reason"]
    assert np.abs(pairs.values - np.arange(10 - k, 10)).max() <= (1e-6 if where == "taken" else 1)
    true = np.linalg.norm(a @ pairs.rows.T - pairs.rows.T * pairs.values, axis=0)
    assert np.abs(true - pairs.residuals).max() <= tolerance(np.float64, 600) * 10
    assert np.all(pairs.residuals <= 1e-8 * 9) or where == "compress"


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_smaller_basis_finds_the_same_pairs(dtype):
    n = 700
    a = symmetric(np.r_[0.1 * np.sin(np.arange(n - 8)), -3, np.arange(3, 10)])
    pairs, run = extreme_pairs(a, Ends(top=4, bottom=1), tol=1e-5, capacity=11, basis_dtype=dtype)
    assert run["status"] == "ok" and not run["interrupted"]
    assert np.abs(pairs.values - [-3, 6, 7, 8, 9]).max() <= 1e-5 * 9


@pytest.mark.parametrize(
    "kwargs, match",
    [
        ({"which": "XX"}, "which.*LA"),
        ({"k": 0}, "k:"),
        ({"tol": 0.0}, "tol"),
        ({"block": 0}, "block"),
        ({"basis_dtype": "float16"}, "basis_dtype.*float32"),
        ({"v0": np.ones(4)}, "v0"),
        ({"v0": np.full(5, np.nan)}, "v0"),
        ({"checkpoint": "no/such/folder/file"}, "checkpoint"),
    ],
)
def test_bad_arguments_are_named(kwargs, match):
    with pytest.raises(ValueError, match=match):
        eigsh(np.eye(5), **{"k": 2, **kwargs})


def test_bad_operators_are_named():
    with pytest.raises(ValueError, match="op.*square"):
        eigsh(np.zeros((3, 4)), 1)
    with pytest.raises(TypeError, match="op"):
        eigsh([[1.0]], 1)


def test_integer_matrices_of_torch():
    a = torch.diag(torch.arange(100))
    assert eigsh(a, 3).values.tolist() == pytest.approx([99, 98, 97], rel=1e-3)
    assert float(trace(a, max_matvecs=200).estimate) == pytest.approx(4950)
    assert trace(a, max_matvecs=60, method="xtrace").estimate == pytest.approx(4950, rel=0.2)


@pytest.mark.parametrize("format", ["float16", "bfloat16"])
def test_matrices_of_torch_in_narrow_formats(format):
    """Vectors keep their digits: only the matrix is rounded to the format."""
    a = torch.from_numpy(symmetric(SPECTRA["outliers"])).to(getattr(torch, format))
    want = np.linalg.eigvalsh(a.double().numpy())[::-1][:3]
    r = eigsh(a, 3, tol=1e-5)
    assert r.status == "ok" and np.abs(r.values.numpy() - want).max() <= 1e-5 * 9
    assert trace(a, max_matvecs=N).estimate == pytest.approx(float(np.trace(a.double().numpy())), rel=1e-6)


class Turned:
    """Real dtype, complex products."""

    shape = (60, 60)

    def __matmul__(self, v):
        return 1j * v


def test_complex_operators_are_refused():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((60, 60)) + 1j * rng.standard_normal((60, 60))
    for op in (a + a.conj().T, torch.from_numpy(a + a.conj().T), Turned()):
        for ask in (lambda op: eigsh(op, 3), spectral_density, lambda op: trace(op, max_matvecs=40)):
            with pytest.raises(TypeError, match="^op: wanted a real symmetric operator"):
                ask(op)


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"k": None}, "k"),
        ({"k": True}, "k"),
        ({"k": 2.5}, "k"),
        ({"tol": "a"}, "tol"),
        ({"seed": 1.5}, "seed"),
        ({"max_matvecs": "x"}, "max_matvecs"),
        ({"block": 1.7}, "block"),
        ({"block": 2, "v0": np.ones(30)}, "block"),
    ],
)
def test_wrong_arguments_are_named(arguments, match):
    with pytest.raises(ValueError, match=f"^{match}: "):
        eigsh(np.eye(30), **arguments)


@pytest.mark.parametrize("at", ["before", "after"])
def test_interrupt_while_the_vectors_are_formed_keeps_them(monkeypatch, at):
    taken = Krylov.taken

    def interrupted(kry, s):
        if at == "before":
            os.kill(os.getpid(), signal.SIGINT)
            return taken(kry, s)
        rows = taken(kry, s)
        os.kill(os.getpid(), signal.SIGINT)
        return rows

    a = np.diag(np.r_[np.linspace(0, 1, 197), 3.0, 4.0, 5.0])
    monkeypatch.setattr(Krylov, "taken", interrupted)
    r = eigsh(a, 3)
    assert r.status == "incomplete" and r.values == pytest.approx([5, 4, 3]) and np.isfinite(r.vectors).all()
