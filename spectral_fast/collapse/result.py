"""``NeuralCollapse``: the numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..results import Result, Skipped

__all__ = ["LayerCollapse", "NeuralCollapse"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
NAN = math.nan


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerCollapse:
    """The numbers of one layer's inputs, as in :class:`NeuralCollapse`; nc3 is NaN but where the layer is a classifier, with a row for each class.

    eigenvalues: (d,) of the covariance of all features, descending: sum (h - mu)(h - mu)ᵀ / N over all samples, whatever their class. effective_rank:
    exp(-sum q ln q), q = eigenvalues / their sum (Roy & Vetterli 2007); far below feature_dim the representation has collapsed to few dimensions.
    participation_ratio: 1 / sum q². NaN where all features are one point.
    """

    nc1: float = NAN
    nc1_rank: int = 0
    nc1_tolerance: float = NAN
    cdnv: float = NAN
    nc2_norms: float = NAN
    nc2_angles: float = NAN
    nc2_etf: float = NAN
    nc3: float = NAN
    nc4: float = NAN
    ncc_accuracy: float = NAN
    spread: float = NAN
    feature_dim: int = 0
    etf_exists: bool = False
    effective_rank: float = NAN
    participation_ratio: float = NAN
    eigenvalues: F64 = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class NeuralCollapse(Result):
    """Neural-collapse numbers at the input of `layer` (Papyan, Han & Donoho 2020); all are 0 at full collapse, NaN where unknown.

    C = n_classes counts the classes that occur in the samples, in every number here; class_counts: samples of every class of the
    model, zeros included, so len(class_counts) is the model's number of classes.
    nc1: tr(S_W S_B^+)/C, with nc1_rank directions of S_B above nc1_tolerance (a singular value of the centred means).
    cdnv: class-distance normalized variance, the mean over pairs of (var_c + var_c')/(2 |mu_c - mu_c'|²) (Galanti, Gyorgy & Hutter 2021).
    nc2_norms, nc2_norms_classifier: std/mean of the lengths of class means and of
    classifier rows; nc2_angles: mean |cos + 1/(C-1)| over pairs; nc2_etf: distance to a simplex ETF,
    ‖AAᵀ/‖AAᵀ‖_F - (I - 11ᵀ/C)/sqrt(C-1)‖_F of the centred means A, which exists only if etf_exists (C <= d + 1).
    mean_values: (min(C, d),) singular values of the centred class means, descending: along how many directions the classes differ. spread: root mean
    square distance of the features to their mean over the length of that mean, 0 where all samples give one point.
    nc3: ‖W/‖W‖_F - A/‖A‖_F‖_F of the classifier's rows W and the centred class means A. nc4: share of samples where the model's decision differs from the
    nearest class mean. accuracy: share decided right; ncc_accuracy: share whose nearest class mean is their own class's. means: (C, d) float64 class means
    of the classes that occur.
    by_layer: with ``layers=``, the numbers of every layer by name, in the order of the forward pass, the classifier's last. skipped: layers without numbers,
    and why.
    test: the same of ``test_loader=``'s samples, about their own class means; nc4_train and ncc_accuracy_train: theirs with the class means of the samples
    trained on, NaN elsewhere.
    """

    nc1: float = NAN
    nc1_rank: int = 0
    nc1_tolerance: float = NAN
    cdnv: float = NAN
    nc2_norms: float = NAN
    nc2_norms_classifier: float = NAN
    nc2_angles: float = NAN
    nc2_etf: float = NAN
    nc3: float = NAN
    nc4: float = NAN
    accuracy: float = NAN
    ncc_accuracy: float = NAN
    n_classes: int = 0
    n_samples: int = 0
    feature_dim: int = 0
    layer: str = ""
    etf_exists: bool = False
    class_counts: I64 = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    mean_values: F64 = field(default_factory=lambda: np.zeros(0))
    spread: float = NAN
    means: F64 = field(default_factory=lambda: np.zeros((0, 0)), repr=False)  # repr=False: too large for to_dict
    global_mean: str = "classes"
    by_layer: dict[str, LayerCollapse] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    test: NeuralCollapse | None = None
    nc4_train: float = NAN
    ncc_accuracy_train: float = NAN
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
