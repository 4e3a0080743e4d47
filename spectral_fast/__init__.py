"""spectral_fast: what the spectra of a neural network say.

The public names are resolved on first use, so that ``import spectral_fast`` costs nothing and loads no torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "Ablation": "weights.ablate",
    "Advice": "weights.advise",
    "CheckpointError": "checkpoints",
    "CurvatureSpectra": "curvature",
    "Diagnosis": "diagnosis",
    "EigenResult": "linalg.eigsh",
    "Finding": "findings",
    "GGN": "curvature",
    "GradientCovariance": "gradients",
    "GradientSpectrum": "gradients",
    "Hessian": "curvature",
    "LowRankSVD": "linalg.lowrank",
    "MarchenkoPasturFit": "metrics.marchenko_pastur",
    "MatrixSpectrum": "weights.spectra",
    "NeuralCollapse": "collapse",
    "PowerLawFit": "metrics.power_law",
    "ScanPlan": "weights.plan",
    "SketchSVD": "linalg.sketch",
    "Skipped": "results",
    "SpectralDensity": "linalg.density",
    "SpectralNorm": "linalg.spectral_norm",
    "Survey": "weights.surveyed",
    "TraceResult": "linalg.trace",
    "Trajectory": "trajectory",
    "WeightSpectra": "weights.spectra",
    "ablate": "weights.ablate",
    "advise": "weights.advise",
    "conv_svdvals": "linalg.conv",
    "curvature_spectra": "curvature.analysis:curvature",
    "diagnose": "diagnosis",
    "eigsh": "linalg.eigsh",
    "gradient_covariance": "gradients",
    "neural_collapse": "collapse",
    "marchenko_pastur": "metrics.marchenko_pastur",
    "matrix_rank": "metrics.rank",
    "power_law": "metrics.power_law:fit_power_law",
    "randomized_svd": "linalg.lowrank",
    "scan": "weights.scan",
    "scan_plan": "weights.plan",
    "show_config": "kernels.select",
    "spectral_density": "linalg.density",
    "spectral_norm": "linalg.spectral_norm",
    "subspace_overlap": "linalg.lowrank",
    "survey": "weights.survey",
    "svdvals": "linalg.svd",
    "tikhonov": "metrics.tikhonov",
    "trace": "linalg.trace",
}

__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, _, inner = _HOMES[name].partition(":")
    value = getattr(import_module(f".{home}", __name__), inner or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
