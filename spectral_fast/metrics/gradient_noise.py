"""Numbers of the gradient covariance, from the Gram matrix of per-sample gradients: spectrum, noise scale, concentration.

Notation: G (N x P) holds one gradient per row, K = G Gᵀ (N x N), p (N) the weights of the samples (sum 1), g = Gᵀ p the mean
gradient, J = I - 1 pᵀ. With s2 = sum p² the covariance is

    C = sum_n p_n (g_n - g)(g_n - g)ᵀ / (1 - s2)                 (1/(N-1) sum ... for equal weights)

which is unbiased for independent samples of one distribution. The uncentred second moment (empirical Fisher) is sum_n p_n g_n g_nᵀ.
Everything here is numpy in, numbers out; nothing knows of networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

__all__ = [
    "ClassParts",
    "Concentration",
    "NoiseScale",
    "Spectrum",
    "class_parts",
    "concentration",
    "gram_spectrum",
    "gram_vectors",
    "moment_spectrum",
    "noise_scale",
    "signal_share",
]

F64 = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues (descending, clipped at 0), the rounding floor below which they are only known to be <= floor, and the trace."""

    evals: F64
    floor: float
    trace: float

    @property
    def n_resolved(self) -> int:
        """Number of eigenvalues above the rounding floor."""
        return int(np.count_nonzero(self.evals > self.floor))


def _rounding_floor(largest: float, trace: float, n_samples: int, n_params: int, gradient_eps: float) -> float:
    """Size below which an eigenvalue of sum p g gᵀ cannot be told from rounding.

    Forming K and eigvalsh are backward stable: error <= N eps lambda_1 (both in float64). Gradients known to a relative
    gradient_eps per entry (independent errors; factor 10 for what a backward pass accumulates) perturb G by a matrix of norm
    10 gradient_eps ||G||_F (1/sqrt(N) + 1/sqrt(P)); a true singular value 0 can appear as large as that norm (Weyl), an
    eigenvalue as its square.
    """
    from_gradients = (10.0 * gradient_eps * (1.0 / math.sqrt(n_samples) + 1.0 / math.sqrt(n_params))) ** 2 * trace
    return max(n_samples, 1) * EPS * largest + from_gradients


def gram_spectrum(gram: F64, weights: F64, n_params: int, *, centered: bool, gradient_eps: float = EPS) -> Spectrum:
    """Spectrum of C (centered) or of the second moment from K (N x N): eig(P^½ J K Jᵀ P^½)/(1 - s2), eig(P^½ K P^½).

    gram: (N, N) symmetric float64. weights: (N,) >= 0, any sum > 0. n_params: P, bounds the number of nonzero eigenvalues:
    min(N - 1, P) are returned when centred, min(N, P) otherwise. gradient_eps: relative precision of the gradients' entries.
    """
    n = gram.shape[0]
    p = weights / weights.sum()
    root = np.sqrt(p)
    scale = 1.0
    matrix = gram
    # errors of K are relative to the uncentred K: centring removes the mean but not the rounding that came with it
    second_moment_trace = float(p @ np.diagonal(gram))
    if centered:
        scale = 1.0 - float(p @ p)
        rows = gram @ p
        matrix = gram - rows[:, None] - rows[None, :] + float(p @ rows)
    if scale <= 0.0:
        return Spectrum(np.zeros(0), math.nan, math.nan)
    matrix = root[:, None] * matrix * root[None, :]
    trace = max(float(np.trace(matrix)), 0.0) / scale
    evals = np.linalg.eigvalsh(matrix)[::-1] / scale
    count = min(n - 1 if centered else n, n_params)
    floor = _rounding_floor(_largest_uncentred(gram, p, float(evals[0]) * scale, centered), second_moment_trace, n, n_params, gradient_eps) / scale
    return Spectrum(np.maximum(evals[:count], 0.0), floor, trace)


def gram_vectors(gram: F64, weights: F64, k: int, *, centered: bool) -> tuple[F64, F64]:
    """The k largest eigenvalues of C, or of the second moment, and coefficients c (k, N) whose combinations sum_n c_n g_n are its unit eigenvectors.

    With X = P^½ J G/sqrt(1 - s2) and X Xᵀ a = lambda a the eigenvector is Xᵀ a/sqrt(lambda) = Gᵀ Jᵀ P^½ a/sqrt(lambda (1 - s2)). Zeros for lambda <= 0.
    """
    p = weights / weights.sum()
    root = np.sqrt(p)
    scale = 1.0 - float(p @ p) if centered else 1.0
    matrix = gram
    if centered:
        rows = gram @ p
        matrix = gram - rows[:, None] - rows[None, :] + float(p @ rows)
    values, vectors = np.linalg.eigh(root[:, None] * matrix * root[None, :] / scale)
    values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k].T * root
    if centered:
        vectors = vectors - vectors.sum(axis=1, keepdims=True) * p
    safe = np.where(values > 0.0, values, math.inf)
    return np.maximum(values, 0.0), vectors / np.sqrt(scale * safe)[:, None]


def _largest_uncentred(gram: F64, p: F64, largest: float, centered: bool) -> float:
    """An upper bound on the largest eigenvalue of P^½ K P^½: lambda_1 of the centred part plus |g|² (triangle inequality on the factors)."""
    if not centered:
        return largest
    mean_norm = math.sqrt(max(float(p @ gram @ p), 0.0))
    return (math.sqrt(max(largest, 0.0)) + mean_norm) ** 2


def moment_spectrum(moment: F64, mean: F64, weights: F64, *, centered: bool, gradient_eps: float = EPS) -> Spectrum:
    """The same spectrum from the other side, for P < N: moment = sum p g gᵀ (P x P), mean = sum p g (P); weights (N,) as above."""
    n, n_params = len(weights), len(mean)
    p = weights / weights.sum()
    scale = 1.0 - float(p @ p) if centered else 1.0
    if scale <= 0.0:
        return Spectrum(np.zeros(0), math.nan, math.nan)
    matrix = moment - np.outer(mean, mean) if centered else moment
    evals = np.linalg.eigvalsh(matrix)[::-1]
    largest = (math.sqrt(max(float(evals[0]), 0.0)) + (float(np.linalg.norm(mean)) if centered else 0.0)) ** 2
    floor = _rounding_floor(largest, float(np.trace(moment)), n, n_params, gradient_eps) / scale
    count = min(n - 1 if centered else n, n_params)
    return Spectrum(np.maximum(evals[:count], 0.0) / scale, floor, max(float(np.trace(matrix)), 0.0) / scale)


@dataclass(frozen=True)
class NoiseScale:
    """value = trace / gradient_norm2 (samples). interval: two-sided 95 %; an end of inf means that the data set no bound there."""

    value: float
    interval: tuple[float, float]
    trace: float
    gradient_norm2: float
    reason: str = ""


def noise_scale(norms2: F64, rows: F64, weights: F64, *, level: float = 0.95) -> NoiseScale:
    """The simple noise scale tr C / |g|² (McCandlish, Kaplan & Amodei 2018, eq. 2.9), |g|² debiased by s2 tr C.

    norms2: (N,) the diagonal of K. rows: (N,) K p with p = weights / sum. weights: (N,).
    The mean gradient of N samples has E|ĝ|² = |g|² + s2 tr C, so that |ĝ|² - s2 tr C estimates |g|² without bias; it may be
    negative, which is reported with value inf. The interval is a jackknife over samples (O(N): leaving one out changes the
    sums above by known terms) of the ratio |g|²/tr C, whose denominator is well away from 0, laid on the logarithm's scale: symmetric
    intervals of the ratio itself are too long at one end and too short at the other. Where the ratio is within its half-width of 0 the
    upper end is inf, for a mean gradient of 0 is not excluded.
    """
    n = len(norms2)
    p = weights / weights.sum()
    s2 = float(p @ p)
    if n < 2 or s2 >= 1.0:
        return NoiseScale(math.nan, (math.nan, math.nan), math.nan, math.nan, "noise scale needs at least 2 samples")
    second, mean2 = float(p @ norms2), float(p @ rows)
    trace = (second - mean2) / (1.0 - s2)
    gradient_norm2 = mean2 - s2 * trace
    if second <= 0.0:
        return NoiseScale(math.nan, (math.nan, math.nan), 0.0, 0.0, "all gradients are zero")
    floor = n * EPS * second
    if trace <= floor:
        return NoiseScale(0.0, (0.0, floor / mean2), max(trace, 0.0), gradient_norm2, "all gradients are equal to rounding")
    value = trace / gradient_norm2 if gradient_norm2 > 0.0 else math.inf
    reason = "" if gradient_norm2 > 0.0 else f"the debiased |g|² is {gradient_norm2:.3g}: the mean gradient is not resolved by {n} gradients"
    return NoiseScale(value, _jackknife(norms2, rows, p, second, mean2, s2, level), trace, gradient_norm2, reason)


def _jackknife(norms2: F64, rows: F64, p: F64, second: float, mean2: float, s2: float, level: float) -> tuple[float, float]:
    n = len(p)
    if n < 3:
        return (math.nan, math.nan)
    rest = 1.0 - p
    second_i = (second - p * norms2) / rest
    mean2_i = (mean2 - 2.0 * p * rows + p**2 * norms2) / rest**2
    s2_i = (s2 - p**2) / rest**2
    trace_i = (second_i - mean2_i) / (1.0 - s2_i)
    # a left-out sample that carried all variation leaves trace 0: the ratio then has no finite spread and sets no bound
    if not np.all(trace_i > n * EPS * second_i):
        return (0.0, math.inf)
    ratios = (mean2_i - s2_i * trace_i) / trace_i
    stderr = math.sqrt((n - 1) / n * float(np.sum((ratios - ratios.mean()) ** 2)))
    trace = (second - mean2) / (1.0 - s2)
    centre = (mean2 - s2 * trace) / trace
    half = float(stdtrit(n - 1, 0.5 + level / 2.0)) * stderr
    # an unresolved ratio has the lower end of the smallest resolved one
    least = max(centre, half)
    if half == 0.0:
        return (1.0 / least, 1.0 / least) if least > 0.0 else (0.0, math.inf)
    return (math.exp(-half / least) / least, math.exp(half / least) / least if centre > half else math.inf)


def signal_share(noise: NoiseScale) -> tuple[float, tuple[float, float]]:
    """(|g|²/E|g_n|², its jackknife interval): the part of a single gradient's mean square that all samples have in common.

    E|g_n|² = |g|² + tr C, so that the share is 1/(1 + noise scale), and so are the ends of the interval. Both parts debiased; below 0 where the mean
    gradient is not resolved. NaN without gradients that differ or are not zero.
    """
    whole = noise.gradient_norm2 + noise.trace
    low, high = noise.interval
    return (noise.gradient_norm2 / whole if whole > 0.0 else math.nan), (1.0 / (1.0 + high), 1.0 / (1.0 + low))


@dataclass(frozen=True)
class ClassParts:
    """tr C of samples with classes = between + within. between: of the classes' mean gradients, weighted by their shares p_c; within: of the gradients
    around the mean of their class. Both debiased (one-way random effects), so that between may be negative where classes do not differ.
    n_classes: with at least one sample; n_single of them with just one, whose scatter is taken to be that of the others."""

    between: float
    within: float
    n_classes: int
    n_single: int

    @property
    def between_share(self) -> float:
        return self.between / (self.between + self.within) if self.between + self.within > 0.0 else math.nan


def class_parts(gram: F64, weights: F64, classes: NDArray[np.int64]) -> ClassParts | None:
    """The parts of the covariance's trace between and within classes, from K (N, N), weights (N,) and class indices (N,) alone.

    With q = p/p_c in class c and m_c = sum q g_n: W_c = (sum q |g_n|² - |m_c|²)/(1 - sum q²) is unbiased for the scatter within; sum_c p_c |m_c|² -
    |sum_c p_c m_c|² for the scatter between has the bias sum_c p_c (1 - p_c) (sum q²) W_c, which is taken off. None for one class, or for classes of
    one sample each: nothing tells the parts apart there.
    """
    p = weights / weights.sum()
    _, index, counts = np.unique(classes, return_inverse=True, return_counts=True)
    member = np.zeros((len(counts), len(p)))
    member[index, np.arange(len(p))] = p
    share = member.sum(axis=1)  # p_c
    q = member / share[:, None]
    means = np.einsum("cn,nm,dm->cd", q, gram, q, optimize=True)  # <m_c, m_d>
    own, s2 = np.diagonal(means), (q * q).sum(axis=1)
    several = s2 < 1.0 - 1e-12
    if len(counts) < 2 or not several.any():
        return None
    scatter = np.zeros(len(counts))
    scatter[several] = np.maximum(q @ np.diagonal(gram) - own, 0.0)[several] / (1.0 - s2[several])
    scatter[~several] = share[several] @ scatter[several] / share[several].sum()
    between = float(share @ own - share @ means @ share - (share * (1.0 - share) * s2) @ scatter)
    return ClassParts(between, float(share @ scatter), len(counts), int(np.count_nonzero(~several)))


@dataclass(frozen=True)
class Concentration:
    """effective_rank exp(-sum q ln q), participation_ratio (sum)²/sum of squares, top_share of the k largest; q = evals / sum."""

    effective_rank: float
    participation_ratio: float
    top_share: float


def concentration(evals: F64, k: int = 10) -> Concentration:
    """How many directions carry the spectrum (Roy & Vetterli 2007 on the eigenvalues of a covariance, its singular values).

    evals: descending, >= 0. All NaN when they are all zero or there is none.
    """
    total = float(evals.sum())
    if len(evals) == 0 or not total > 0.0:
        return Concentration(math.nan, math.nan, math.nan)
    q = evals / total
    positive = q[q > 0.0]
    return Concentration(math.exp(-float(positive @ np.log(positive))), 1.0 / float(q @ q), float(q[:k].sum()))
