from .checkpoints import CheckpointError as CheckpointError
from .collapse import NeuralCollapse as NeuralCollapse
from .collapse import neural_collapse as neural_collapse
from .curvature import GGN as GGN
from .curvature import CurvatureSpectra as CurvatureSpectra
from .curvature import Hessian as Hessian
from .curvature.analysis import curvature as curvature_spectra
from .diagnosis import Diagnosis as Diagnosis
from .diagnosis import diagnose as diagnose
from .findings import Finding as Finding
from .gradients import GradientCovariance as GradientCovariance
from .gradients import GradientSpectrum as GradientSpectrum
from .gradients import gradient_covariance as gradient_covariance
from .kernels.select import show_config as show_config
from .linalg.conv import conv_svdvals as conv_svdvals
from .linalg.density import SpectralDensity as SpectralDensity
from .linalg.density import spectral_density as spectral_density
from .linalg.eigsh import EigenResult as EigenResult
from .linalg.eigsh import eigsh as eigsh
from .linalg.lowrank import LowRankSVD as LowRankSVD
from .linalg.lowrank import randomized_svd as randomized_svd
from .linalg.lowrank import subspace_overlap as subspace_overlap
from .linalg.sketch import SketchSVD as SketchSVD
from .linalg.spectral_norm import SpectralNorm as SpectralNorm
from .linalg.spectral_norm import spectral_norm as spectral_norm
from .linalg.svd import svdvals as svdvals
from .linalg.trace import TraceResult as TraceResult
from .linalg.trace import trace as trace
from .metrics.marchenko_pastur import MarchenkoPasturFit as MarchenkoPasturFit
from .metrics.marchenko_pastur import marchenko_pastur as marchenko_pastur
from .metrics.power_law import PowerLawFit as PowerLawFit
from .metrics.power_law import fit_power_law as power_law
from .metrics.rank import matrix_rank as matrix_rank
from .metrics.tikhonov import tikhonov as tikhonov
from .results import Skipped as Skipped
from .trajectory import Trajectory as Trajectory
from .weights.ablate import Ablation as Ablation
from .weights.ablate import ablate as ablate
from .weights.advise import Advice as Advice
from .weights.advise import advise as advise
from .weights.plan import ScanPlan as ScanPlan
from .weights.plan import scan_plan as scan_plan
from .weights.scan import scan as scan
from .weights.spectra import MatrixSpectrum as MatrixSpectrum
from .weights.spectra import WeightSpectra as WeightSpectra
from .weights.survey import survey as survey
from .weights.surveyed import Survey as Survey

__version__: str

__all__ = [
    "Ablation",
    "Advice",
    "CheckpointError",
    "CurvatureSpectra",
    "Diagnosis",
    "EigenResult",
    "Finding",
    "GGN",
    "GradientCovariance",
    "GradientSpectrum",
    "Hessian",
    "LowRankSVD",
    "MarchenkoPasturFit",
    "MatrixSpectrum",
    "NeuralCollapse",
    "PowerLawFit",
    "ScanPlan",
    "SketchSVD",
    "Skipped",
    "SpectralDensity",
    "SpectralNorm",
    "Survey",
    "TraceResult",
    "Trajectory",
    "WeightSpectra",
    "__version__",
    "ablate",
    "advise",
    "conv_svdvals",
    "curvature_spectra",
    "diagnose",
    "eigsh",
    "gradient_covariance",
    "marchenko_pastur",
    "matrix_rank",
    "neural_collapse",
    "power_law",
    "randomized_svd",
    "scan",
    "scan_plan",
    "show_config",
    "spectral_density",
    "spectral_norm",
    "subspace_overlap",
    "survey",
    "svdvals",
    "tikhonov",
    "trace",
]
