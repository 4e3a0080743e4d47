"""The public functions on a device (a pretended one): the same numbers as on the CPU, results that stay there, and no matrix that travels."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import run_python
from pretend_device import NAME, pretend_device
from safetensors.torch import save_file

import spectral_fast as sf


def graded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)) / torch.arange(1, shape[-1] + 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int32])
@pytest.mark.parametrize("accuracy", ["standard", "high"])
def test_svdvals(dtype: torch.dtype, accuracy: str) -> None:
    a = (100 * graded(3, 2, 40, 25)).to(dtype)
    expected, bounds = sf.svdvals(a, accuracy=accuracy, return_bound=True)
    with pretend_device() as traffic:
        there = a.to(NAME)
        traffic.there = 0
        s, bound = sf.svdvals(there, accuracy=accuracy, return_bound=True)
        assert s.device.type == bound.device.type == NAME and s.shape == (3, 2, 25)
        assert traffic.back == s.nbytes and traffic.there == bound.nbytes  # the bounds are computed from the values on the host
        assert (np.abs(s.cpu().numpy() - expected.numpy()) <= bounds.numpy() + bound.cpu().numpy()).all()


def test_svdvals_of_awkward_matrices() -> None:
    a = torch.stack([torch.eye(6), torch.zeros(6, 6), torch.full((6, 6), torch.nan), 1e300 * torch.ones(6, 6, dtype=torch.float64)])
    with pretend_device():
        s = sf.svdvals(a.to(NAME)).cpu().numpy()
        assert np.array_equal(s[0], np.ones(6)) and np.array_equal(s[1], np.zeros(6)) and np.isnan(s[2]).all()
        assert s[3, 0] == pytest.approx(6e300, rel=1e-14)
        assert sf.svdvals(torch.zeros(2, 0, 3).to(NAME)).shape == (2, 0)
        with pytest.raises(TypeError, match="^a: got dtype complex64"):
            sf.svdvals(torch.zeros(2, 2, dtype=torch.complex64).to(NAME))
        with pytest.raises(ValueError, match="backend: 'native' has no 'singular_values' for arrays on 'pretend:0'; usable there: torch"):
            sf.svdvals(torch.eye(2).to(NAME), backend="native")


@pytest.mark.parametrize("options", [{}, {"method": "krylov"}, {"method": "sketch"}, {"tol": 1e-2}])
def test_randomized_svd(options: dict[str, Any]) -> None:
    a = graded(2, 90, 60)
    expected = sf.randomized_svd(a, 5, **options)
    with pretend_device() as traffic:
        there = a.to(NAME)
        traffic.there = traffic.back = 0
        r = sf.randomized_svd(there, 5, **options)
        assert {x.device.type for x in (r.u, r.s, r.vt, r.error, r.ranks)} == {NAME} and r.backend == "torch" and r.status == expected.status
        assert traffic.back < 1000, "a few numbers to decide by"
        assert traffic.there < 1000 or options.get("method") == "sketch", "random vectors are made there"
        for name in ("s", "error"):
            assert torch.allclose(getattr(r, name).cpu(), getattr(expected, name), rtol=1e-6)
        whole = [(x.u * x.s[:, None]) @ x.vt for x in (r, expected)]
        assert torch.allclose(whole[0].cpu(), whole[1], atol=1e-3 * float(expected.s.max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("basis", [None, "float32", "bfloat16"])
def test_eigsh_of_a_matrix(dtype: torch.dtype, basis: str | None) -> None:
    n, k = 1200, 3  # of which a vector is far more than what a step brings back
    q = torch.linalg.qr(graded(n, n) + torch.eye(n))[0]
    values = torch.cat([torch.tensor([9.0, 7.0, 7.0]), torch.linspace(-2, 2, n - 3)])
    a = ((q * values) @ q.mT).to(dtype)
    with pretend_device() as traffic:
        there = a.to(NAME)
        traffic.there = traffic.back = 0
        r = sf.eigsh(there, k, tol=1e-4, basis_dtype=basis)
        assert r.status == "ok" and r.vectors.device.type == NAME
        tol = 1e-2 if basis == "bfloat16" else 1e-6
        assert np.allclose(r.values.cpu().numpy(), [9, 7, 7], rtol=tol)
        # start vectors, a few eigenvectors, and the coefficients of each step; neither the matrix nor the basis
        assert traffic.back < 20 * n * 8 + r.matvecs * 300 * 8
        residual = there.double() @ r.vectors.double() - r.vectors.double() * r.values
        assert float(residual.norm(dim=0).max()) <= 2 * max(1e-4, r.tol) * 9


def test_a_basis_that_does_not_fit_is_kept_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    a = torch.diag(torch.linspace(-1, 1, 600, dtype=torch.float64))
    monkeypatch.setattr("spectral_fast.linalg.places._free", lambda device: 1e6)
    with pretend_device(), pytest.warns(RuntimeWarning, match="^op: a Krylov basis of 0[.]00.* GB does not fit on pretend:0, of which 0.001 GB are free"):
        r = sf.eigsh(a.to(NAME), 3, tol=1e-8)
    assert r.status == "ok" and r.vectors.device.type == NAME


def test_polishing_stays_where_the_basis_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A basis on the host for want of memory; the few rows that polish its pairs, of products that are not symmetric, would fit on the device."""
    n = 600
    a = torch.diag(torch.linspace(-1, 1, n, dtype=torch.float64)) + 1e-3 * torch.randn(n, n, generator=torch.Generator().manual_seed(0)) / n**0.5
    monkeypatch.setattr("spectral_fast.linalg.places._free", lambda device: 8e5)
    with pretend_device(), pytest.warns(RuntimeWarning, match="it is kept on the host"):
        r = sf.eigsh(a.float().to(NAME), 3, tol=1e-4, max_matvecs=600)
    assert r.status == "unresolved" and "not symmetric" in r.reason


def test_power_law() -> None:
    evals = torch.from_numpy((1.0 - np.random.default_rng(0).random(300)) ** -0.8)
    expected = sf.power_law(evals, p_value=True, n_bootstrap=20)
    with pretend_device():
        fit = sf.power_law(evals.to(NAME), p_value=True, n_bootstrap=20)
    assert fit.backend == "torch" and fit.p_value == expected.p_value and fit.index == expected.index
    assert fit.alpha == pytest.approx(expected.alpha, rel=1e-13) and np.allclose(fit.curve.D, expected.curve.D, atol=1e-13)


def test_density_of_a_matrix() -> None:
    a = torch.diag(torch.linspace(-1, 1, 400, dtype=torch.float64))
    expected = sf.spectral_density(a, probes=2, steps=12)
    with pretend_device():
        d = sf.spectral_density(a.to(NAME), probes=2, steps=12)
        for name in ("nodes", "weights"):
            assert np.allclose(getattr(d, name).cpu(), getattr(expected, name), atol=1e-9)
    assert d.trace == pytest.approx(expected.trace)


@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_models(net: str) -> None:
    folder = Path(__file__).parent
    done = run_python(f"import runpy, sys; sys.path.insert(0, {str(folder)!r}); sys.argv[1:] = [{net!r}]; "
                      f"runpy.run_path({str(folder / 'device_models.py')!r}, run_name='__main__')")  # fmt: skip
    assert done.stdout.strip() == "OK", done.stderr[-3000:]


def checkpoint(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    kinds = {"float32": torch.float32, "bf16": torch.bfloat16, "half": torch.float16}
    made = {f"{name}.{i}.weight": torch.from_numpy(rng.standard_normal((48, 40 + 8 * i)) / 7).to(dtype) for name, dtype in kinds.items() for i in range(3)}
    made["deficient.weight"] = torch.from_numpy(np.outer(rng.standard_normal(40), rng.standard_normal(30))).float()
    made["bad.weight"] = torch.full((5, 6), torch.nan)
    save_file(made, folder / "w.safetensors")
    return folder / "w.safetensors"


@pytest.mark.parametrize("top", [None, 4])
def test_scan(tmp_path: Path, top: int | None) -> None:
    path = checkpoint(tmp_path)
    options: dict[str, Any] = {} if top is None else {"top": top, "top_above": 100}
    expected = sf.scan(path, progress=False, **options)
    with pretend_device() as traffic:
        found = sf.scan(path, progress=False, device=NAME, **options)
    assert found.status == expected.status and "singular values: torch" in found.backend
    assert 0 < traffic.there <= path.stat().st_size + 200, "as they are stored, and once; accuracy that does not suffice is mended there"
    for m, e in zip(found.matrices, expected.matrices, strict=True):
        assert (m.name, m.status, m.reason) == (e.name, e.status, e.reason)
        assert m.s == pytest.approx(e.s, abs=(m.bound + e.bound) if top is None else 1e-4 * np.abs(e.s).max(), nan_ok=True)
        assert m.ranks == e.ranks


def test_permutations_are_computed_there_too(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    expected = sf.scan(path, progress=False, null="permutation")
    with pretend_device():
        found = sf.scan(path, progress=False, device=NAME, null="permutation", backend="torch")
    for m, e in zip(found.matrices, expected.matrices, strict=True):
        assert (m.permutation is None) == (e.permutation is None)
        if m.permutation is not None and e.permutation is not None:
            assert m.permutation.backend == "torch" and np.allclose(m.permutation.samples, e.permutation.samples, rtol=1e-6)


def test_what_does_not_fit_is_let_go_of_before_it_is_tried_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spectral_fast.weights.batches import SingularValues

    held: list[weakref.ref[torch.Tensor]] = []
    compute = SingularValues.__call__

    def short_of_memory(self: Any, stack: Any, *more: Any, **options: Any) -> Any:
        assert all(tensor() is None for tensor in held), "the batch is still there"
        if len(stack) > 1:
            held.append(weakref.ref(stack))
            raise MemoryError("too many")
        return compute(self, stack, *more, **options)

    monkeypatch.setattr(SingularValues, "__call__", short_of_memory)
    made = {f"{i}.weight": torch.randn(30, 20) for i in range(4)}
    save_file(made, tmp_path / "w.safetensors")
    with pretend_device():
        found = sf.scan(tmp_path / "w.safetensors", progress=False, device=NAME)
    assert held and [m.status for m in found.matrices] == ["ok"] * 4


def test_an_interrupted_scan_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spectral_fast.weights.batches.THERE_BYTES", 1)  # every matrix by itself
    path = checkpoint(tmp_path)
    whole, before = sf.scan(path, progress=False), threading.active_count()

    def progress(done: int, total: int, what: str) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pretend_device():
        found = sf.scan(path, progress=progress, device=NAME)
    assert found.status == "incomplete" and "interrupted after 4 of 11 matrices" in found.reason and threading.active_count() == before
    assert [m.name for m in found.matrices] == [m.name for m in whole.matrices][:4]
    assert sum("interrupted" in s.reason for s in found.skipped) == 7


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "gpu", "", 3.5])
def test_scan_on_a_device_that_is_not_there(tmp_path: Path, device: Any) -> None:
    if torch.cuda.is_available() and device == "cuda":
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="^device: "):
        sf.scan(checkpoint(tmp_path), progress=False, device=device)


@pytest.mark.parametrize("device", ["gpu", "", 3.5, "meta", "cuda:99"])
@pytest.mark.parametrize("what", ["gradient_covariance", "neural_collapse", "Hessian", "GradientCovariance"])
def test_a_device_that_is_none_is_named(what: str, device: Any) -> None:
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    with pytest.raises(ValueError, match="^device: got "):
        getattr(sf, what)(torch.nn.Linear(4, 3), [(x, y)], device=device)
