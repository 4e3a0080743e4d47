"""Results made by hand for the tests of the report: real classes, numbers that can be recognised in the output."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from spectral_fast.collapse import NeuralCollapse
from spectral_fast.curvature.spectra import CurvatureSpectra
from spectral_fast.diagnosis import Diagnosis
from spectral_fast.findings import Finding
from spectral_fast.gradients import GradientSpectrum, LayerGradient
from spectral_fast.linalg.density import SpectralDensity
from spectral_fast.linalg.eigsh import EigenResult
from spectral_fast.linalg.lowrank import LowRankSVD, randomized_svd
from spectral_fast.linalg.trace import TraceResult
from spectral_fast.results import Skipped
from spectral_fast.weights.ablate import Ablation
from spectral_fast.weights.advise import advise
from spectral_fast.weights.scan import scan
from spectral_fast.weights.spectra import WeightSpectra
from spectral_fast.weights.surveyed import Survey, SurveyedMatrix, SurveyedModel, collapse_shares

HOSTILE = "<script>alert('\"x')</script>\x1b[31m\u2028\u202e\x07$a_b$"


def made(cls: type, **values: Any) -> Any:
    """An instance of a result class; what is not given and has no default is filled with a harmless value of its kind."""
    filled = dict(values)
    for f in dataclasses.fields(cls):
        no_default = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if f.name not in filled and no_default:
            kind = str(f.type)
            empty = {"tuple": (), "int": 0, "str": "", "F64": np.zeros(0), "NDArray": np.zeros(0)}
            filled[f.name] = next((value for word, value in empty.items() if word in kind), 0.0)
    return cls(**filled)


def weights(extra: dict[str, Any] | None = None) -> WeightSpectra:
    """Three matrices: full rank, rank 5 of 12, zero; and a bias that is skipped."""
    rng = np.random.default_rng(0)
    low = rng.standard_normal((12, 5)) @ rng.standard_normal((5, 16))
    state: dict[str, Any] = {
        "first.weight": rng.standard_normal((40, 24)).astype(np.float32),
        "low.weight": low.astype(np.float32),
        "zero.weight": np.zeros((6, 6), dtype=np.float32),
        "first.bias": np.zeros(40, dtype=np.float32),
    }
    return scan({**state, **(extra or {})}, progress=False)


def pairs(values: list[float], converged: list[bool] | None = None, **options: Any) -> EigenResult:
    v = np.array(values)
    good = np.ones(len(v), dtype=bool) if converged is None else np.array(converged)
    return made(EigenResult, values=v, residuals=1e-4 * np.abs(v), converged=good, matvecs=77, vectors=np.zeros((50, len(v))), tol=1e-3, scale=14.0, **options)


def low_rank() -> LowRankSVD:
    """Three matrices, one of them of lower rank."""
    a = np.random.default_rng(4).standard_normal((3, 12, 9))
    a[1] = a[1][:, :2] @ a[1][:2]
    return randomized_svd(a, 5, tol=0.01)


def density() -> SpectralDensity:
    """A quarter of the eigenvalues each at 10 and 0, half of them at -0.5; the grid view holds Gaussians of width 0.2."""
    nodes, shares = np.array([-0.5, 0.0, 10.0]), np.array([0.5, 0.25, 0.25])
    grid = np.linspace(-2.0, 12.0, 400)
    heights = (shares * np.exp(-0.5 * ((grid[:, None] - nodes) / 0.2) ** 2) / (0.2 * np.sqrt(2 * np.pi))).sum(axis=1)
    return made(
        SpectralDensity,
        nodes=nodes,
        weights=shares,
        grid=grid,
        density=heights,
        width=0.2,
        trace=112.5,
        trace_stderr=3.0,
        frobenius=35.0,
        frobenius_stderr=1.0,
        probes=4,
        steps=3,
        matvecs=12,
    )


def trace(names: tuple[str, str] = ("a.weight", "b.weight")) -> TraceResult:
    samples = np.array([110.0, 115.0, 112.0, 113.0])
    layers = {names[0]: (40.0, 1.0), names[1]: (72.5, 2.0)}
    return made(TraceResult, estimate=112.5, stderr=float(samples.std(ddof=1) / 2), samples=samples, by_layer=layers, matvecs=4, method="hutchinson")


def curvature(**changes: Any) -> CurvatureSpectra:
    values: dict[str, Any] = {
        "hessian_top": pairs([14.0, 9.0, 1.5]),
        "hessian_bottom": pairs([-0.25, -0.75], [True, False]),
        "ggn_top": pairs([15.0, 9.5, 1.25]),
        "density": density(),
        "trace": trace(),
        "loss": 0.625,
        "gradient_norm": 0.125,
        "n_params": 50,
        "n_samples": 1234,
        "loss_name": "cross_entropy",
        "products": 321,
        "seconds": 1.5,
        "notes": ("eval mode: dropout off",),
    }
    return made(CurvatureSpectra, **{**values, **changes})


def gradients(**changes: Any) -> GradientSpectrum:
    spectrum = 2.0 ** -np.arange(30.0)
    layers = {"a.weight": LayerGradient(spectrum, 1.5, 3.0, 12.0), "b.weight": LayerGradient(spectrum, 0.5, 2.0, 8.0)}
    values: dict[str, Any] = {
        "eigenvalues": spectrum,
        "other": spectrum,
        "centered": True,
        "unit": "sample",
        "trace": float(spectrum.sum()),
        "effective_rank": 4.0,
        "participation_ratio": 3.0,
        "top_share": 0.875,
        "noise_scale": 345.0,
        "noise_scale_interval": (210.0, 777.0),
        "gradient_norm2": 0.0625,
        "noise_floor": 1e-8,
        "n_resolved": 27,
        "n_samples": 31,
        "n_units": 31,
        "n_params": 50,
        "by_layer": layers,
        "gram": np.eye(31),
        "weights": np.full(31, 1 / 31),
        "loss": 0.5,
        "loss_name": "cross_entropy",
        "seconds": 0.5,
    }
    return made(GradientSpectrum, **{**values, **changes})


def collapse(**changes: Any) -> NeuralCollapse:
    values: dict[str, Any] = {
        "nc1": 1.25,
        "nc1_rank": 9,
        "cdnv": 0.375,
        "nc2_norms": 0.125,
        "nc2_norms_classifier": 0.0625,
        "nc2_angles": 0.1875,
        "nc2_etf": 0.5,
        "nc3": 0.4375,
        "nc4": 0.0,
        "accuracy": 0.9875,
        "n_classes": 10,
        "n_samples": 1234,
        "feature_dim": 32,
        "layer": "head",
        "etf_exists": True,
        "class_counts": np.array([120] * 9 + [154]),
        "means": np.zeros((10, 32)),
    }
    return made(NeuralCollapse, **{**values, **changes})


def ablation(**changes: Any) -> Ablation:
    """A sweep over eight values: three cuts that do nothing, one that lowers the loss, two that raise it."""
    s = 2.0 ** -np.arange(8.0)
    gammas = np.array([2.0**-7, 2.0**-6, 2.0**-5, 2.0**-4, 2.0**-3, 1.0])
    steps = np.array([0.0, 1e-4, -2e-4, -0.0625, 0.125, 2.5])
    values: dict[str, Any] = {
        "layer": "low.weight",
        "treatment": "drop_noise",
        "shape": (8, 20),
        "gammas": gammas,
        "kept": np.array([7, 6, 5, 4, 3, 0]),
        "losses": 0.5 + steps,
        "changes": steps,
        "stderr": np.array([0.0, 2e-4, 2e-4, 0.0125, 0.025, 0.25]),
        "moved": np.array([False, False, False, True, True, True]),
        "noise_scale": 2.0**-3,
        "noise_rank": 4,
        "baseline_loss": 0.5,
        "floor": 0.01,
        "s": s,
        "n_samples": 1234,
        "unit": "sample",
        "loss_name": "cross_entropy",
    }
    return made(Ablation, **{**values, **changes})


def surveyed(model: str, name: str, shape: tuple[int, int], s_min: float, kind: str = "linear", *, noise: float = 1e-6, zero: bool = False) -> SurveyedMatrix:
    """A matrix that lost one rank under every rule whose tolerance is not below s_min."""
    limits = {"numpy": 1e-5, "numerical_recipes": 1e-7, "loose": 1e-3, "log8": 1e-8, "storage": noise}
    ranks = {rule: min(shape) - (zero or s_min <= at) for rule, at in limits.items()}
    unresolved = not zero and s_min <= noise
    return made(
        SurveyedMatrix,
        model=model,
        name=name,
        kind=kind,
        shape=shape,
        s_min=0.0 if zero else s_min,
        s_max=2.0,
        noise=noise,
        exactly_singular=zero,
        ranks=ranks,
        unresolved=unresolved,
    )


def survey_of(names: list[str], **changes: Any) -> Survey:
    """Of each model four matrices: square and lost at the noise, square and small, oblong, with a row of zeros."""
    models = []
    for i, name in enumerate(names):
        found = (
            surveyed(name, "q.weight", (16, 16), 3e-7, "attention"),
            surveyed(name, "fc.weight", (32, 30), 10.0 ** (-4 + 0.1 * i)),
            surveyed(name, "up.weight", (64, 16), 0.25),
            surveyed(name, "gone.weight", (8, 12), 0.0, zero=True),
        )
        apart = (Skipped("x (lora BA)", "product of LoRA factors: its rank is that of the factors", (8, 8)),)
        models.append(
            made(
                SurveyedModel,
                name=name,
                path=f"/models/{name}",
                status="ok",
                parameters=2336,
                matrices=found,
                apart=apart,
                not_matrices={"vector: no spectrum": 3},
            )
        )
    shares = collapse_shares([m for model in models for m in model.matrices], names)
    return made(Survey, models=tuple(models), shares=shares, **changes)


def finding(severity: str = "warning", where: str = "low.weight", title: str = "rank collapse", **changes: str) -> Finding:
    texts = {"evidence": "rank 5 of 12", "comparison": "random: 12", "advice": "less weight decay", "source": "Martin 2018", "analysis": "weights"}
    return Finding(severity=severity, where=where, title=title, **{**texts, **changes})  # type: ignore[arg-type]


def diagnosis(**changes: Any) -> Diagnosis:
    values: dict[str, Any] = {
        "model_name": "Net",
        "weights": weights(),
        "gradients": gradients(),
        "curvature": curvature(),
        "collapse": collapse(),
        "findings": (finding("info", "loss", "flat"), finding("severe")),
        "seconds": 2.5,
        "notes": ("budget 'quick'",),
    }
    return made(Diagnosis, **{**values, **changes})


def only_weights() -> Diagnosis:
    absent = tuple(Skipped(name, "no loader") for name in ("gradients", "curvature", "collapse"))
    return diagnosis(gradients=None, curvature=None, collapse=None, skipped=absent)


def every_result() -> dict[str, Any]:
    w = weights()
    return {
        "Diagnosis": diagnosis(),
        "WeightSpectra": w,
        "MatrixSpectrum": w.matrices[0],
        "GradientSpectrum": gradients(),
        "CurvatureSpectra": curvature(),
        "EigenResult": pairs([3.0, 2.0]),
        "LowRankSVD": low_rank(),
        "SpectralDensity": density(),
        "TraceResult": trace(),
        "NeuralCollapse": collapse(),
        "Ablation": ablation(),
        "Advice": advise(w),
        "Survey": survey_of(["net-a", "net-b"]),
    }
