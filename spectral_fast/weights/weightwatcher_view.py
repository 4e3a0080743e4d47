"""The table weightwatcher 0.7.7 would give (``analyze()`` on a CPU): ``WeightSpectra.to_pandas(view="weightwatcher")``.

For those who come from there and compare with numbers they have. What is peculiar in it is reproduced here and nowhere else:

- norm, spectral_norm and stable_rank speak of eigenvalues (squares); N is the larger and M the smaller dimension, but a convolution keeps
  (C_out, C_in) as it stands unless C_out < C_in with an odd number of slices: then Q can be below 1.
- conv2d: the slices W[:, :, i, j] are pooled, every eigenvalue halved; sv_min is the largest of the slices' minima.
- the power law is fitted to eigenvalues above 1e-5, an absolute number, so that alpha depends on the units. With fewer than 20 of them
  alpha = 1 + (n - 1) / sum ln and tails shorter than 8 do not compete; with fewer than 8, sigma = -1 / sqrt(n); equal values give alpha = 0,
  D = 1. A failed fit has alpha = -1, which is then called over-trained, and enters alpha_weighted and log_alpha_norm.
- entropy: -sum p ln p / ln(rank + 1e-10) with p = evals / sum + 1e-10, which is far beyond 1 for matrices of rank 1.
- matrix_rank: pooled values above the largest x N x 2^-52; rank_loss: the same slice by slice; weak_rank_loss: eigenvalues below 1e-6.
- what is left out: less than 8 or more than 15,000 values, N above 50,000, everything whose name does not end in ".weight" (LSTM and
  attention's in_proj), vectors, 3-D tensors of files.
- layer_id: of a module its place among ``named_modules()``; of a file or state dict the count of names ending in ".weight", from 1.

Deliberately different:

- float64 tensors are taken as they are; weightwatcher rounds torch tensors to float32 first (not numpy arrays).
- 3-D kernels of Conv1d modules and Bilinear are absent. weightwatcher hands the 3-D array to an SVD that, depending on SciPy's version, fails or
  decomposes the C_in x k matrix of every output and keeps the largest min(shape) values of all.
- xmax of a failed fit is NaN, not None.
- matrices with NaN or Inf have a row of NaN (-1 for integers), status "failed" and the reason as warning; weightwatcher raises.
- tails of equal values have alpha = inf. weightwatcher has what rounding makes of 0/0 unless the value is 1.
- modules are told by their class like there, but a weight that is a buffer or is computed (weight_norm) is absent; so is what scan takes for no
  weight (averaged copies) and, in files, a 4-D stack of matrices.
- files are numbered like state dicts, from 1 in our order of tensors; weightwatcher numbers them from 0, safetensors by name, and leaves gaps
  between shards. Nested state dicts have rows.
- numbers made of rounding alone (sv_min of a matrix of lower rank, log_alpha_norm of a failed fit on one) are rounding here too, but other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..metrics.power_law import PowerLawFit, fit_power_laws
from .sources import TensorRecord

if TYPE_CHECKING:
    import pandas as pd

    from .spectra import WeightSpectra

__all__ = ["COLUMNS", "weightwatcher_frame"]

COLUMNS = (
    *("layer_id", "name", "D", "M", "N", "Q", "alpha", "alpha_weighted", "entropy", "has_esd", "lambda_max", "layer_type", "log_alpha_norm"),
    *("log_norm", "log_spectral_norm", "longname", "matrix_rank", "norm", "num_evals", "num_pl_spikes", "rank_loss", "rf", "sigma"),
    *("spectral_norm", "stable_rank", "status", "sv_max", "sv_min", "warning", "weak_rank_loss", "xmax", "xmin"),
)

_EPS = 2.0**-52
_LEAST_EVAL = 1e-5  # of the power law
_WEAK_EVAL = 1e-6
_EPSILON = 1e-10  # added to probabilities and rank in the entropy
_MIN_EVALS, _MAX_EVALS, _MAX_N = 8, 15000, 50000
_FEW, _LEAST_TAIL = 20, 8
_OVER_TRAINED, _UNDER_TRAINED = 2.0, 6.0

Floats = NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True)
class _Layer:
    """A tensor that gets a row. rf: number of slices."""

    tensor: TensorRecord
    layer_id: int
    name: str
    longname: str
    layer_type: str
    N: int
    M: int
    rf: int


@dataclass(frozen=True)
class _Tail:
    """The power law's columns; xmax is None for a failed fit."""

    alpha: float
    D: float
    sigma: float
    xmin: float
    xmax: float | None
    status: str


_FAILED = _Tail(-1.0, -1.0, -1.0, -1.0, None, "failed")


def weightwatcher_frame(spectra: WeightSpectra) -> pd.DataFrame:
    """One row per layer that weightwatcher analyses, its columns in its order; see the module's docstring.

    Raises ImportError without pandas; ValueError when a tensor has not the spectra this needs: scan with ``slices=True``.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("to_pandas needs pandas: pip install pandas") from error
    layers = list(_layers(spectra.tensors))
    found = _singular_values(spectra, layers)
    layers = [layer for layer in layers if layer.tensor.name in found]
    values = [found[layer.tensor.name] * (math.sqrt(0.5) if layer.layer_type == "conv2d" else 1.0) for layer in layers]
    with np.errstate(all="ignore"):  # zero matrices give NaN and infinities, here as there
        evals = [np.sort((sv * sv).ravel()) for sv in values]
        tails = _tails(evals)
        rows = [_row(layer, sv, e, tail) for layer, sv, e, tail in zip(layers, values, evals, tails, strict=True)]
    reasons = {m.name: m.reason for m in spectra.matrices if m.status in ("failed", "incomplete")}
    for layer, sv, row in zip(layers, values, rows, strict=True):
        if not np.isfinite(sv).all():
            row.update(warning=reasons.get(layer.tensor.name, "no singular values of some slice"))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _layers(tensors: Sequence[TensorRecord]) -> Iterator[_Layer]:
    of_module = any(t.module is not None for t in tensors)
    count = 0
    for t in tensors:
        parent, _, leaf = t.name.rpartition(".")
        if leaf != "weight" or not (parent or of_module):
            continue
        count += 1
        owner = t.owner or ""
        layer_type = _type_of_module(owner) if of_module else _type_of_tensor(t.shape)
        if of_module and t.module is None:
            continue
        longname = parent or owner.rpartition(".")[2]  # a model that is a layer itself goes by the name of its class
        sizes = _sizes(layer_type, t.shape)
        if sizes is None:
            continue
        N, M, rf = sizes
        if _MIN_EVALS <= M * rf <= _MAX_EVALS and N <= _MAX_N:
            layer_id = t.module if t.module is not None else count
            yield _Layer(t, layer_id, longname.rpartition(".")[2] if of_module else longname, longname, layer_type, N, M, rf)


def _type_of_module(owner: str) -> str:
    """By what the class's full name contains; the first that fits."""
    known = (("linear", "dense"), ("conv1d", "conv1d"), ("conv2d", "conv2d"), ("embedding", "embedding"))
    return next((layer_type for part, layer_type in known if part in owner.lower()), "unknown")


def _type_of_tensor(shape: tuple[int, ...]) -> str:
    return {2: "dense", 4: "conv2d"}.get(len(shape), "unknown") if shape and shape[0] > 1 else "unknown"


def _sizes(layer_type: str, shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """N, M and the number of slices; None for what gets no row."""
    if layer_type in ("dense", "conv1d", "embedding") and len(shape) == 2:
        return max(shape), min(shape), 1
    if layer_type != "conv2d" or len(shape) != 4:
        return None
    m, n, rf = shape[0], shape[1], shape[2] * shape[3]
    channels_first = m + n < shape[2] + shape[3]  # so it believes; N and M are then not exchanged
    return (n, m, rf) if m < n and rf % 2 and not channels_first else (m, n, rf)


def _singular_values(spectra: WeightSpectra, layers: Sequence[_Layer]) -> dict[str, Floats]:
    """Tensor name -> (slices, d_min); tensors that were not analysed are absent."""
    whole = {name: m for m in spectra.matrices for name in (m.name, *m.tied)}
    # a stack of matrices has neither: it is no convolution, and no one matrix either
    cut = {name.partition("[")[0] for name, m in whole.items() if m.kind == "conv" or len(m.tensor_shape) == 2}
    found: dict[str, Floats] = {}
    missing = []
    for layer in layers:
        name, shape = layer.tensor.name, layer.tensor.shape
        m = whole.get(name)
        if m is not None and sorted(m.shape) == sorted(shape[:2]) and layer.rf == 1:
            found[name] = m.s[None] if m.status != "incomplete" else np.full((1, min(m.shape)), np.nan)
        elif name in spectra.slices:
            found[name] = spectra.slices[name]
        elif name in cut:
            missing.append(name)
    if missing:
        raise ValueError(
            f"view: 'weightwatcher' shows convolutions slice by slice and fused blocks whole; {len(missing)} tensors (first: {missing[0]}) have no such "
            "values here: scan(..., slices=True)"
        )
    return found


def _row(layer: _Layer, sv: Floats, evals: Floats, tail: _Tail) -> Row:
    """sv: (slices, d_min) descending; evals: all of them squared, ascending."""
    finite = bool(np.isfinite(sv).all())
    largest = float(sv.max())
    total, lambda_max = np.sum(evals), np.max(evals)
    pooled = np.sqrt(evals)
    rank = int(np.count_nonzero(pooled > pooled.max() * layer.N * _EPS))
    p = evals / total + _EPSILON
    alpha = tail.alpha
    row: Row = {
        "layer_id": layer.layer_id,
        "name": layer.name,
        "D": tail.D,
        "M": layer.M,
        "N": layer.N,
        "Q": layer.N / layer.M,
        "alpha": alpha,
        "alpha_weighted": alpha * np.log10(lambda_max),
        "entropy": -np.sum(p * np.log(p)) / np.log(rank + _EPSILON),
        "has_esd": finite,
        "lambda_max": lambda_max,
        "layer_type": layer.layer_type,
        "log_alpha_norm": np.log10(np.sum(evals**alpha)),
        "log_norm": np.log10(total),
        "log_spectral_norm": np.log10(lambda_max),
        "longname": layer.longname,
        "matrix_rank": rank,
        "norm": total,
        "num_evals": evals.size,
        "num_pl_spikes": -1 if tail.status == "failed" else int(np.count_nonzero(evals >= tail.xmin)),
        "rank_loss": int(np.count_nonzero(sv <= sv.max(axis=1, keepdims=True) * layer.N * _EPS)),
        "rf": layer.rf,
        "sigma": tail.sigma,
        "spectral_norm": lambda_max,
        "stable_rank": total / lambda_max,
        "status": tail.status,
        "sv_max": largest,
        "sv_min": float(sv.min(axis=1).max()),
        "warning": "over-trained" if alpha < _OVER_TRAINED else "under-trained" if alpha > _UNDER_TRAINED else "",
        "weak_rank_loss": int(np.count_nonzero(evals < _WEAK_EVAL)),
        "xmax": tail.xmax,
        "xmin": tail.xmin,
    }
    if not finite:
        row.update({key: math.nan for key, value in row.items() if isinstance(value, float)}, Q=layer.N / layer.M)
        row.update(dict.fromkeys(("matrix_rank", "rank_loss", "weak_rank_loss", "num_pl_spikes"), -1))
    return row


def _tails(spectra: Sequence[Floats]) -> list[_Tail]:
    """One fit per spectrum (ascending); those of at least 20 values above 1e-5 in one call."""
    kept = [e[e > _LEAST_EVAL] if np.isfinite(e).all() else e[:0] for e in spectra]
    many = [i for i, x in enumerate(kept) if x.size >= _FEW]
    fits = dict(zip(many, fit_power_laws([kept[i] for i in many]), strict=True))
    return [_tail_of_many(x, fits[i]) if i in fits else _tail_of_few(x) for i, x in enumerate(kept)]


def _tail_of_many(x: Floats, fit: PowerLawFit) -> _Tail:
    """The first start of minimal D. A tail of n equal values counts with alpha = inf, D = (n - 1) / n."""
    if fit.status != "ok":  # all equal
        return _Tail(math.inf, 0.5, math.inf, float(x[-2]), float(x[-1]), "success")
    n = np.arange(x.size, 1, -1.0)
    D = np.where(np.isinf(fit.curve.alpha), (n - 1.0) / n, fit.curve.D)
    i = int(np.argmin(D))
    alpha = float(fit.curve.alpha[i])
    return _Tail(alpha, float(D[i]), (alpha - 1.0) / math.sqrt(x.size - i), float(x[i]), float(x[-1]), "success")


def _tail_of_few(x: Floats) -> _Tail:
    """Fewer than 20 values: the corrected estimate, starts with at least 8 values above them, or the first one where there is none."""
    if x.size < 2:
        return _FAILED
    logs = np.log(x)
    starts = range(x.size - _LEAST_TAIL + 1) if x.size >= _LEAST_TAIL else range(1)
    alphas, D = np.zeros(x.size - 1), np.ones(x.size - 1)
    for i in starts:
        n = x.size - i
        log_sum = float(np.sum(logs[i:] - logs[i]))
        if log_sum <= 1e-12:  # equal values
            continue
        alphas[i] = 1.0 + (n - 1.0) / log_sum
        D[i] = np.max(np.abs(1.0 - (x[i:] / x[i]) ** (1.0 - alphas[i]) - np.arange(n) / n))
    i = int(np.argmin(D))
    # sigma is taken before the lone start of a short tail has its alpha, so that 0 stands in for it
    sigma = ((float(alphas[i]) if x.size >= _LEAST_TAIL else 0.0) - 1.0) / math.sqrt(x.size - i)
    return _Tail(float(alphas[i]), float(D[i]), sigma, float(x[i]), float(x[-1]), "success")
