"""``scan``: the spectra of all weight matrices of a checkpoint, a state dict or a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..progress import ProgressOption, progress_reporter
from .sources import open_source
from .spectra import WeightSpectra, weight_spectra

__all__ = ["scan"]


def scan(
    source: Any,
    *,
    layers: str | Sequence[str] | None = None,
    progress: ProgressOption = None,
    backend: str = "auto",
    slices: bool = False,
    null: str | None = None,
    seed: int = 0,
) -> WeightSpectra:
    """Spectra of every weight matrix: norms, condition, rank under every rule, power law, bulk and spikes, beside a random matrix of the same shape.

    source:   a checkpoint file (safetensors; .pt, .pth and .bin, new and legacy, read without running any code in them), a directory holding one,
              a state dict (mapping of names to arrays or tensors, nested or not) or a ``torch.nn.Module``.
    layers:   glob or globs over tensor names; None: all.
    progress: None: a bar on a terminal after a second; False: none; or a function called as progress(done, total, what).
    backend:  of the singular values: "auto" or a name listed by ``show_config()``.
    slices:   also the singular values of every convolution slice by slice, W[:, :, i, j], and of every fused tensor as a whole
              (``WeightSpectra.slices``). ``to_pandas(view="weightwatcher")`` needs them; off by default because they cost about as much again
              as the spectra of the convolutions.
    null:     "permutation": also the spectra of 20 shuffles of every matrix's entries (``MatrixSpectrum.permutation``), at 20 times the cost.
    seed:     of the shuffles.

    Returns WeightSpectra; tensors that hold no weight matrix are in its ``skipped`` with the reason, matrices with NaN or Inf among its
    ``matrices`` with status "failed" and the place of the first.
    Raises TypeError for another kind of source, checkpoints.CheckpointError (a ValueError) for a missing file or one that cannot be read, ValueError
    when ``layers`` matches nothing, for an unknown ``null`` or ``backend``.
    """
    with open_source(source) as tensors, progress_reporter(progress) as report:
        return weight_spectra(tensors, layers=layers, progress=report, backend=backend, slices=slices, null=null, seed=seed)
