"""What a weight matrix is compared with: the matrix of its name in a baseline or a random one of its shape, and layers of its role."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..weights.roles import UNKNOWN
from ..weights.spectra import MatrixSpectrum
from .thresholds import value_of

__all__ = ["Beside", "Layers", "Peers", "Scale", "deviation", "gain"]

F64 = NDArray[np.float64]


class Scale(NamedTuple):
    """Median and spread (1.48 MAD of the natural logarithms) of one measure of size over a group of layers."""

    median: float
    spread: float


class Peers(NamedTuple):
    """Other matrices of the model, without embeddings, products and the smallest; NaN where there are too few.

    gain: sqrt(mean square x inputs), what a layer does to the size of a random input; deviation: root mean square of the entries. Initialisations keep
    one or the other alike between layers of different shapes; the one that varies less is the yardstick.
    who: the layers meant, in words.
    """

    gain: Scale
    deviation: Scale
    spectral_norm: float
    who: str


NO_PEERS = Peers(Scale(math.nan, math.nan), Scale(math.nan, math.nan), math.nan, "")


@dataclass(frozen=True)
class Beside:
    """peers: see there. baseline: numbers of the matrix of this name in the baseline (MatrixSpectrum.baseline), None where there is none.

    missing: a baseline was given, but this matrix has no partner there.
    """

    peers: Peers
    baseline: dict[str, float] | None
    missing: bool = False

    def words(self, m: MatrixSpectrum) -> str:
        """The comparison in words: extremes of the partner, median of the peers."""
        if self.baseline is not None:
            text = f"in the baseline: s_1 {self.baseline['spectral_norm']:.3g}, s_min {self.baseline['s_min']:.3g}"
        else:
            text = self.random(m, f"s_1 {m.null['spectral_norm']:.3g}, s_min {m.null['s_min']:.3g}")
        if m.permutation is not None:
            shuffled = m.permutation.spectral_norm
            text += f"; its entries shuffled {m.permutation.n_permutations} times: s_1 {shuffled.least:.3g} to {shuffled.largest:.3g}"
        return text if math.isnan(self.peers.spectral_norm) else f"{text}; median s_1 of {self.peers.who} {self.peers.spectral_norm:.3g}"

    def random(self, m: MatrixSpectrum, numbers: str) -> str:
        """What a random matrix shows, said to be the second choice where a baseline was asked for."""
        return f"{'not in the baseline; ' if self.missing else ''}a random matrix of the shape: {numbers}"


def deviation(m: MatrixSpectrum) -> float:
    """Root mean square of the entries."""
    return m.metrics["frobenius"] / math.sqrt(m.shape[0] * m.shape[1])


def gain(m: MatrixSpectrum) -> float:
    """What the matrix does to the size of a random input."""
    return deviation(m) * math.sqrt(m.shape[0] if m.in_out else m.shape[1])


class Layers:
    """All usable matrices of a report, to find the peers of each: layers of its role where there are enough, else all."""

    def __init__(self, matrices: Sequence[MatrixSpectrum]) -> None:
        usable = [m for m in matrices if m.kind != "embedding" and min(m.shape) >= value_of("peers, d_min")]
        self._place = {id(m): i for i, m in enumerate(usable)}
        self._role = np.array([m.role for m in usable], dtype=object)
        self._gain = np.log([gain(m) for m in usable])
        self._deviation = np.log([deviation(m) for m in usable])
        self._norm = np.array([m.metrics["spectral_norm"] for m in usable])

    def peers(self, m: MatrixSpectrum) -> Peers:
        other = np.ones(len(self._norm), dtype=bool)
        if id(m) in self._place:
            other[self._place[id(m)]] = False
        alike = other & (self._role == m.role) if m.role != UNKNOWN else np.zeros_like(other)
        enough = value_of("peers, number")
        if np.count_nonzero(alike) >= enough:
            chosen, who = alike, f"the {np.count_nonzero(alike)} other layers of role {m.role}"
        elif np.count_nonzero(other) >= enough:
            chosen, who = other, f"all {np.count_nonzero(other)} other layers"
        else:
            return NO_PEERS
        return Peers(_scale(self._gain[chosen]), _scale(self._deviation[chosen]), float(np.median(self._norm[chosen])), who)


def _scale(logs: F64) -> Scale:
    middle = float(np.median(logs))
    return Scale(math.exp(middle), 1.48 * float(np.median(np.abs(logs - middle))))
