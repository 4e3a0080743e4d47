"""LoRA pairs in a checkpoint: which factors belong together, and the spectrum of their product."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..linalg.arrays import FORMATS, FloatFormat, as_numpy
from ..linalg.svd import svd_bound
from ..metrics.rank import StorageNoise, storage_noise
from ..results import Skipped
from .adapter_config import AdapterConfig
from .batches import core_values
from .circuits import lora_svdvals
from .sources import TensorEntry

__all__ = ["LoraPair", "ProductSpectrum", "lora_pairs", "product_spectrum"]

# PEFT: <module>.lora_A[.<adapter>].weight; kohya: lora_down; diffusers: lora.down. The first names B's partner.
_MARKS = {
    "lora_A": "lora_B",
    "lora_embedding_A": "lora_embedding_B",
    "lora_down": "lora_up",
    "lora.down": "lora.up",
    "lora_linear_layer.down": "lora_linear_layer.up",
}
_A = re.compile(r"^(.+?)\.(lora_A|lora_embedding_A|lora_down|lora\.down|lora_linear_layer\.down)((?:\.(?!weight$)[^.]+)?)((?:\.weight)?)$")


@dataclass(frozen=True)
class LoraPair:
    """Two factors of one update scale * B A.

    module: name of the adapted module. adapter: which adapter, "" where there is one. a: (r, in) or a kernel (r, in, ...); b: (out, r) or (out, r, 1, ...).
    scale:  alpha/r or alpha/sqrt(r); with ``alpha`` a scalar in the checkpoint, scale = alpha/r is read from there. why: where the scale is from.
    """

    module: str
    adapter: str
    a: TensorEntry
    b: TensorEntry
    scale: float
    why: str
    alpha: TensorEntry | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the product."""
        return self.b.shape[0], math.prod(self.a.shape[1:])

    @property
    def name(self) -> str:
        return f"{self.module} (lora BA{f', {self.adapter}' if self.adapter else ''})"


def lora_pairs(entries: Sequence[TensorEntry], config: AdapterConfig | None) -> tuple[list[LoraPair], list[Skipped]]:
    """The pairs among ``entries``, in order of their A; factors that do not multiply are listed."""
    by_name = {e.name: e for e in entries}
    pairs: list[LoraPair] = []
    skipped: list[Skipped] = []
    for a in entries:
        found = _A.match(a.name)
        if found is None or a.dtype not in FORMATS or len(a.shape) < 2 or 0 in a.shape:
            continue
        module, mark, adapter, suffix = found.groups()
        b = by_name.get(f"{module}.{_MARKS[mark]}{adapter}{suffix}")
        if b is None or b.dtype not in FORMATS:
            continue
        if len(b.shape) < 2 or b.shape[1] != a.shape[0] or math.prod(b.shape[2:]) != 1 or 0 in b.shape:
            skipped.append(Skipped(f"{module} (lora BA)", f"factors of shapes {b.shape} and {a.shape} do not multiply"))
            continue
        alpha = by_name.get(f"{module}.alpha")
        if alpha is not None and alpha.shape not in ((), (1,)):
            alpha = None
        label = "" if adapter == ".default" else adapter.removeprefix(".")  # PEFT's name for the only adapter
        pairs.append(_scaled(module, label, a, b, alpha, config))
    return pairs, skipped


def _scaled(module: str, adapter: str, a: TensorEntry, b: TensorEntry, alpha: TensorEntry | None, config: AdapterConfig | None) -> LoraPair:
    if alpha is not None:
        return LoraPair(module, adapter, a, b, math.nan, "alpha/r, alpha in the file", alpha)
    if config is None:
        return LoraPair(module, adapter, a, b, 1.0, "scale 1: no adapter_config.json")
    if config.reason:
        return LoraPair(module, adapter, a, b, 1.0, f"scale 1: {config.reason}")
    scale = config.scale(module, a.shape[0])
    return LoraPair(module, adapter, a, b, scale, f"scale {scale:.6g}: {'alpha/sqrt(r)' if config.rank_stabilized else 'alpha/r'}, adapter_config.json")


@dataclass(frozen=True)
class ProductSpectrum:
    """s: (min(m, n, r),) descending, NaN when ``why`` says what is wrong; bound: error of every value; noise: what rounding of the factors put in."""

    s: NDArray[np.float64]
    bound: float
    noise: StorageNoise
    why: str = ""


def product_spectrum(pair: LoraPair) -> ProductSpectrum:
    """Singular values of scale * B A, and what rounding of B and A to their formats put into it.

    With errors E_B, E_A of the factors the product is off by E_B A + B E_A + E_B E_A: tolerance = |scale| (t_B ||A|| + t_A ||B|| + t_B t_A), t the
    factors' own tolerances.
    Raises ValueError or OSError where a factor cannot be read.
    """
    b, a = (_matrix(e) for e in (pair.b, pair.a))
    formats = FORMATS[pair.b.dtype], FORMATS[pair.a.dtype]
    coarser = min(formats, key=lambda f: f.precision)
    scale = pair.scale
    if pair.alpha is not None:
        scale = float(np.asarray(as_numpy(pair.alpha.read()), dtype=np.float64).reshape(())) / pair.rank
    bad = [name for name, w in (("B", b), ("A", a)) if not np.isfinite(w).all()] + ([] if math.isfinite(scale) else ["alpha"])
    if bad:
        return _no_product(pair, coarser, f"{' and '.join(bad)} not finite")
    noise_b, noise_a = storage_noise(b, formats[0]), storage_noise(a, formats[1])
    norm_b, norm_a = (float(core_values(w).max(initial=0.0)) for w in (b, a))
    tolerance = noise_b.tolerance * norm_a + noise_a.tolerance * norm_b + noise_b.tolerance * noise_a.tolerance
    if not math.isfinite(abs(scale) * (norm_a + noise_a.tolerance) * (norm_b + noise_b.tolerance)):
        return _no_product(pair, coarser, f"with a scale of {scale:.3g} its values are beyond float64")
    s = np.asarray(lora_svdvals(b, a)) * abs(scale)
    bound = float(svd_bound(np.full(s.shape, abs(scale) * norm_a * norm_b)).max(initial=0.0))
    precision = min(noise_b.precision, noise_a.precision)
    return ProductSpectrum(s, bound, StorageNoise(abs(scale) * tolerance, precision, coarser.name))


def _no_product(pair: LoraPair, coarser: FloatFormat, why: str) -> ProductSpectrum:
    nan = np.full(min(*pair.shape, pair.rank), math.nan)
    return ProductSpectrum(nan, math.nan, StorageNoise(math.nan, coarser.precision, coarser.name), why)


def _matrix(e: TensorEntry) -> NDArray[Any]:
    w = as_numpy(e.read())
    return w.reshape(w.shape[0], -1)
