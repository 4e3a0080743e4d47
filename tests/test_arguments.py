"""What every function with such an argument says to one that is none; what objects say of themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import spectral_fast as sf
from spectral_fast.metrics.random_matrix import permutation_null


def _model(frozen: bool = False) -> tuple[torch.nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    for p in model.parameters():
        p.requires_grad_(not frozen)
    return model, [(torch.randn(10, 3), torch.randint(0, 2, (10,)))]


def _seeded(name: str, seed: Any) -> Any:
    model, data = _model()
    w = np.arange(12.0).reshape(3, 4) ** 2
    calls: dict[str, Callable[[], Any]] = {
        "eigsh": lambda: sf.eigsh(w @ w.T, 1, seed=seed),
        "spectral_density": lambda: sf.spectral_density(sf.Hessian(model, data), seed=seed),
        "trace": lambda: sf.trace(w @ w.T, seed=seed),
        "randomized_svd": lambda: sf.randomized_svd(w, 2, seed=seed),
        "spectral_norm": lambda: sf.spectral_norm(w, seed=seed),
        "SketchSVD": lambda: sf.SketchSVD((3, 4), 1, seed=seed),
        "gradient_covariance": lambda: sf.gradient_covariance(model, data, seed=seed),
        "curvature_spectra": lambda: sf.curvature_spectra(model, data, seed=seed),
        "diagnose": lambda: sf.diagnose(model, data, seed=seed),
        "scan": lambda: sf.scan({"w": w}, seed=seed),
        "power_law": lambda: sf.power_law(w.ravel(), seed=seed),
        "permutation_null": lambda: permutation_null(w, seed=seed),
        "ablate": lambda: sf.ablate(model, data, "0", seed=seed),
    }
    return calls[name]()


@pytest.mark.parametrize("seed", ["a", -1, 1.5, 2.0, None, True, 2**64])
@pytest.mark.parametrize("name", ["eigsh", "spectral_density", "trace", "randomized_svd", "spectral_norm", "SketchSVD", "gradient_covariance",
                                  "curvature_spectra", "diagnose", "scan", "power_law", "permutation_null", "ablate"])  # fmt: skip
def test_a_seed_is_a_whole_number(name: str, seed: Any) -> None:
    with pytest.raises(ValueError, match="seed"):
        _seeded(name, seed)


def test_parameters_that_are_frozen_are_spoken_of() -> None:
    model, data = _model(frozen=True)
    assert any("all parameters are frozen" in note for note in sf.Hessian(model, data).notes)
    assert any("all parameters are frozen" in note for note in sf.gradient_covariance(model, data).notes)
    model[0].weight.requires_grad_(True)  # type: ignore[index, union-attr]
    assert "3 frozen parameters (requires_grad=False) left out" in sf.gradient_covariance(model, data).notes
    asked_for = sf.Hessian(model, data, params="0.*")
    assert not any("frozen" in note for note in asked_for.notes)


def test_operators_say_what_they_are_of() -> None:
    model, data = _model()
    assert repr(sf.Hessian(model, data)) == "Hessian(Sequential: 26 parameters, 10 samples, loss cross_entropy)"


def test_residuals_of_a_whole_krylov_space_are_not_zero() -> None:
    """Where the space is exhausted the relation has no residual; the products have their rounding."""
    model, data = _model()
    op = sf.Hessian(model, data)
    found = sf.eigsh(op, 6, tol=1e-6)
    away = np.linalg.norm(op @ found.vectors - found.vectors * found.values, axis=0)
    assert (found.residuals > 0.0).all() and (away <= 30.0 * found.residuals).all()


def _spoiled(what: str) -> tuple[torch.nn.Module, list[tuple[torch.Tensor, torch.Tensor]], str]:
    model, data = _model()
    if what == "weight":
        with torch.no_grad():
            model[0].weight[1, 1] = torch.nan  # type: ignore[index, union-attr]
        return model, data, "; first in the output of '0', whose weight holds NaN or Inf"
    if what == "samples":
        data[0][0][3, 1] = torch.nan
        return model, data, "; the samples themselves hold NaN or Inf"

    class Root(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x - 10.0).sqrt()

    assert isinstance(model, torch.nn.Sequential)
    return torch.nn.Sequential(model[0], Root(), model[1], model[2]), data, "; first in the output of '1'"


@pytest.mark.parametrize("what", ["weight", "samples", "root"])
def test_where_a_nan_comes_from_is_said(what: str) -> None:
    model, data, wanted = _spoiled(what)
    gradients = sf.gradient_covariance(model, data)
    collapse, curvature = sf.neural_collapse(model, data), sf.curvature_spectra(model, data)
    assert {collapse.status, curvature.status, gradients.status} == {"failed"} and gradients.reason.endswith(wanted)
    assert collapse.reason.endswith(wanted) and curvature.reason.endswith(wanted)


def test_loaders_without_targets_are_named() -> None:
    model, data = _model()
    for analysis in (sf.diagnose, sf.gradient_covariance, sf.Hessian):
        with pytest.raises(ValueError, match="^loader: yields no targets"):
            analysis(model, [data[0][0]])


@pytest.mark.parametrize("kind", ["Hessian", "GGN", "GradientCovariance"])
@pytest.mark.parametrize("power", [-1000, -140, -50, 50, 130, 900])
def test_products_are_linear_in_the_size_of_vectors(kind: str, power: int) -> None:
    """Also of models in single precision, which has no such numbers."""
    model, data = _model()
    op = getattr(sf, kind)(model, data)
    v = np.random.default_rng(0).standard_normal((op.shape[0], 2))
    plain = op @ v
    assert np.abs((op @ (v * 2.0**power)) / 2.0**power - plain).max() <= 1e-5 * np.abs(plain).max()
    mixed = v * np.array([1.0, 2.0**power])
    assert np.abs((op @ mixed) / [1.0, 2.0**power] - plain).max() <= 1e-5 * np.abs(plain).max()
    there = op @ torch.from_numpy(v[:, 0] * 2.0**power)
    assert there.dtype == torch.float64 and np.abs(there.numpy() / 2.0**power - plain[:, 0]).max() <= 1e-5 * np.abs(plain).max()
    assert np.array_equal(op @ v[:, 0].tolist(), op @ v[:, 0]), "a list too"
    for bad in (v * 1j, torch.from_numpy(v * 1j), v.astype(object)):
        with pytest.raises(TypeError, match="v: wanted real numbers, got"):
            op @ bad


def test_sums_beyond_the_range_are_no_trace() -> None:
    b = np.random.default_rng(0).standard_normal((300, 300))
    with np.errstate(all="ignore"), pytest.raises(ArithmeticError, match="^op: .* overflow"):
        sf.trace(b @ b.T * 1e200)


@pytest.mark.parametrize("x", [np.r_[np.ones(50), 2 * np.ones(50)], np.random.default_rng(1).zipf(2.2, 400).astype(float)])
def test_a_tail_holds_all_values_from_its_start_on(x: np.ndarray) -> None:
    fit = sf.power_law(x)
    assert fit.n_tail == int((x >= fit.xmin).sum())
    assert sf.power_law(x, xmin=fit.xmin).alpha == pytest.approx(fit.alpha, rel=1e-12)


def test_power_laws_are_of_real_numbers() -> None:
    with pytest.raises(TypeError, match="evals: wanted real numbers, got complex128"):
        sf.power_law(np.arange(1, 50) * (1 + 1j))


@pytest.mark.parametrize("bad", [{"optimizer": "adam"}, {"max_memory": "4GB"}, {"unpack": 3}])
def test_diagnose_says_at_once_what_no_analysis_could_use(bad: dict[str, Any]) -> None:
    model, data = _model()
    with pytest.raises((TypeError, ValueError), match=f"^{next(iter(bad))}: wanted"):
        sf.diagnose(model, data, **bad)


def test_a_diagnosis_for_which_memory_did_not_suffice_is_not_whole() -> None:
    model, data = _model()
    found = sf.diagnose(model, data, max_memory=10, progress=False)
    assert (found.status, found.reason) == ("incomplete", "max_memory is too little for: gradients, curvature, collapse")


def test_help_of_operators_shows_their_arguments() -> None:
    for operator in (sf.Hessian, sf.GGN):
        assert {"model", "loader", "loss", "params", "device"} <= set(inspect.signature(operator).parameters)
