"""What an eigensolver's basis promises the operator, and bases of bfloat16 on spectra that exhaust their spaces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from children import run_python
from problems import symmetric

from spectral_fast.linalg.eigsh import extreme_pairs
from spectral_fast.linalg.krylov import Krylov
from spectral_fast.linalg.pairs import PairRun, Pairs
from spectral_fast.linalg.products import product_of
from spectral_fast.linalg.restart import Budget, Ends
from spectral_fast.linalg.share import Share

N = 300
_BULK = 0.1 * np.random.default_rng(5).standard_normal(N - 8)
SPECTRA = {
    "outliers": np.r_[_BULK, [9, 8, 7, 6, 5, 4, 3, 2]],
    "multiplicity 7": np.r_[_BULK, [10.0] * 7, [4.0]],
    "both signs": np.r_[_BULK, [-9, 8, -7, 6, -5, 4, -3, 2]],
    "power law": np.arange(1, N + 1) ** -1.5,
    "low rank": np.r_[np.zeros(N - 3), [3, 2, 1]],
    "identity": np.ones(N),
    "zero": np.zeros(N),
}


def test_an_operator_may_keep_the_vectors_it_is_given() -> None:
    """Their memory stays while somebody looks at it, whatever becomes of the basis; in a child, for it would not survive."""
    code = """
import numpy as np
from spectral_fast.linalg.eigsh import eigsh
class Keeps:
    def __init__(self, evals): self.evals, self.shape, self.kept = evals, (len(evals),) * 2, []
    def __matmul__(self, v):
        self.kept.append(v)
        return self.evals * v
n = 400_000
op = Keeps(np.r_[0.1 * np.sin(np.arange(n - 5.0)), [3, 4, 5, 6, 7]])
r = eigsh(op, 3)
assert np.abs(r.values - [7, 6, 5]).max() < 1e-2
print(np.isfinite(sum(float(v.sum()) for v in op.kept)))
"""
    done = run_python(code, OMP_NUM_THREADS="1")
    assert done.returncode == 0 and done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("backend", ["numpy", pytest.param("native", marks=pytest.mark.native_only)])
@pytest.mark.parametrize("name", SPECTRA)
def test_bfloat16_basis(name: str, backend: str) -> None:
    evals = np.sort(SPECTRA[name])
    a = symmetric(evals, 1)
    pairs, how = extreme_pairs(a, Ends(top=4, bottom=1), basis_dtype="bfloat16", max_matvecs=2000, backend=backend)
    size = float(np.abs(evals).max())
    assert how["status"] == "ok" and how["tol"] <= 5e-3
    assert np.abs(pairs.values - np.r_[evals[:1], evals[-4:]]).max() <= 1e-3 * size
    true = np.linalg.norm(a @ pairs.rows.T.astype(np.float64) - pairs.rows.T * pairs.values, axis=0)
    assert true.max() <= how["tol"] * size * (1 + 1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_pairs_that_are_worse_than_was_thought_are_polished(dtype: str) -> None:
    """Vectors spoilt after the run, as by the rounding of many restarts: from their own products come better ones, in float32 where rows were bfloat16."""
    evals = np.sort(SPECTRA["outliers"])
    a, rng, count = symmetric(evals, 2), np.random.default_rng(0), 3
    vectors = np.linalg.eigh(a)[1].T[-count:] + 0.1 * rng.standard_normal((count, N)) / np.sqrt(N)
    rows = np.array(np.linalg.qr(vectors.T)[0].T, dtype="float64" if dtype == "float64" else "float32", order="C")
    search = PairRun(Budget(product_of(a), 500, 0), N, Ends(top=count), 5e-3, 0, Share(N))
    search.pairs, search.scale = Pairs(evals[-count:], rows, np.full(count, 1e-9)), 9.0
    search._measured(Krylov(search.budget, N, 30, seed=0, dtype=dtype))
    found = search.pairs
    true = np.linalg.norm(a @ found.rows.T.astype(np.float64) - found.rows.T * found.values, axis=0)
    assert search.budget.used > count and true.max() <= 5e-3 * 9 and np.abs(true - found.residuals).max() <= 1e-5
    assert np.abs(found.values - evals[-count:]).max() <= 1e-3 and found.rows.dtype == rows.dtype


@pytest.mark.parametrize("backend", ["numpy", pytest.param("native", marks=pytest.mark.native_only)])
def test_backends_find_the_same_pairs(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import spectral_fast.linalg.krylov as basis

    used: set[str] = set()
    select: Any = basis.select

    def told(op: str, name: str = "auto", device: str = "cpu") -> Any:
        used.add(name)
        return select(op, name, device)

    monkeypatch.setattr(basis, "select", told)
    evals = SPECTRA["both signs"]
    for dtype, tol in (("float64", 1e-10), ("float32", 1e-5)):
        pairs, how = extreme_pairs(symmetric(evals), Ends(top=2, bottom=2), tol=tol, backend=backend, basis_dtype=dtype, capacity=18)
        assert how["status"] == "ok" and np.abs(pairs.values - [-9, -7, 6, 8]).max() <= 2 * tol * 9
    assert used == {backend}, "polishing too"
