"""Collapse by depth: moments of the inputs of many layers from the one pass over the data that the classifier's need anyway."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..metrics.collapse_moments import ClassMoments, between_rank_tolerance, cdnv, feature_covariance, nc1, nc2, nc3, relative_spread
from ..metrics.gradient_noise import concentration
from ..results import Skipped
from .result import F64, I64, NAN, LayerCollapse

__all__ = ["LayerPass", "layer_numbers", "layers_named"]

_FIRST = (nn.modules.conv._ConvNd, nn.Flatten, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd,
          nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd)  # fmt: skip
_LAST = (nn.Linear, nn.LayerNorm, nn.MultiheadAttention)


def layers_named(model: nn.Module, layers: str | Sequence[str]) -> list[str]:
    """Names of the modules that match a glob, in the model's order. Raises TypeError for anything else, ValueError for a glob that matches nothing."""
    globs = [layers] if isinstance(layers, str) else list(layers) if isinstance(layers, Iterable) else []
    if not globs or not all(isinstance(g, str) for g in globs):
        raise TypeError(f"layers: wanted a glob on the names of modules, or a list of globs, got {layers!r}")
    names = [name for name, _ in model.named_modules() if name]
    for g in globs:
        if not any(fnmatchcase(name, g) for name in names):
            raise ValueError(f"layers: {g!r} matches no module; there are: {', '.join(names[:12])}{', ..' if len(names) > 12 else ''}")
    return [name for name in names if any(fnmatchcase(name, g) for g in globs)]


def vectors(x: object, module: nn.Module, lead: tuple[int, ...]) -> Tensor | str:
    """A module's input as one vector for each target (*lead, d), averaged over positions that targets lack; or why that cannot be.

    Channels are the first dimension after those of the targets for convolutions, pooling and their normalisations, the last one for linear layers, layer norms
    and attention; of other modules with inputs of more dimensions it is not known which.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return f"its input is not floating point ({str(x.dtype).removeprefix('torch.') if isinstance(x, Tensor) else type(x).__name__})"
    if tuple(x.shape[: len(lead)]) != lead or x.ndim == len(lead):
        return f"its input {tuple(x.shape)} is not one vector per target {lead}"
    more = x.ndim - len(lead)
    if more > 1:
        first = isinstance(module, _FIRST)
        if not first and not isinstance(module, _LAST):
            return f"which dimension of its input {tuple(x.shape)} holds the features is not known of {type(module).__name__}: name the layer after it"
        positions = tuple(range(len(lead) + 1, x.ndim) if first else range(len(lead), x.ndim - 1))
        x = x.mean(positions, dtype=None if x.device.type == "mps" else torch.float64)
    return x


class _Inputs:
    """Tensors that went into layers, each with the first layer that had it; one that was changed in place since is another."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[str, Tensor]] = {}  # the tensor is held, so that none after it gets its number

    def first_with(self, x: Tensor | None, name: str) -> str:
        if x is None or x.is_inference():  # which keep no count of their changes
            return name
        return self._known.setdefault((id(x), x._version), (name, x))[0]


class LayerPass:
    """Moments of the inputs of the layers ``names`` while the classifier's are gathered; within ``limit`` bytes, what does not fit is skipped."""

    def __init__(self, model: nn.Module, names: Sequence[str], classifier: str, limit: int, device: str = "cpu") -> None:
        self._modules: dict[str, nn.Module] = dict(model.named_modules())
        self._active = [name for name in names if name != classifier]
        self.classifier, self.limit, self._device = classifier, limit, device
        self.moments: dict[str, ClassMoments] = {}
        self.eps: dict[str, float] = {}
        self._reasons: dict[str, str] = {}
        self.same: dict[str, str] = {}  # layer -> one before it that has the very same input
        self._seen: dict[str, Tensor | str] = {}
        self.kept: list[dict[str, Tensor]] | None = []  # inputs of every batch, as long as there is room
        self._room = 0

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return tuple(Skipped(name, why) for name, why in self._reasons.items())

    def module(self, name: str) -> nn.Module:
        return self._modules[name]

    def replace(self, moments: dict[str, ClassMoments], eps: dict[str, float], reasons: dict[str, str], same: dict[str, str]) -> None:
        """What several passes have found together."""
        self.moments, self.eps, self._reasons, self.same = moments, eps, reasons, same

    @contextmanager
    def watching(self, targets: Any, shifted: bool) -> Iterator[None]:
        """Take down the inputs during one forward pass, at once: what comes later may change them in place."""
        self._seen = {}
        lead = tuple(targets.shape[:-1] if targets.ndim > 1 and targets.shape[-1] == 1 else targets.shape)
        first, inputs = not self.moments, _Inputs()

        def watch(name: str) -> Any:
            def note(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
                x = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
                before = inputs.first_with(x, name) if first else name
                if name == self.classifier:  # its moments are gathered elsewhere
                    if before != name and self._seen.pop(before, None) is not None:
                        self.same[before] = name
                elif name in self._seen or name in self.same:
                    self._seen[name] = "it is called several times in one forward pass"
                    self.same.pop(name, None)
                elif before != name:
                    self.same[name] = before
                else:
                    self._seen[name] = self._taken(name, vectors(x, module, lead), x, shifted)

            return note

        watched = [*self._active, self.classifier] if first else self._active
        handles = [self._modules[name].register_forward_pre_hook(watch(name), with_kwargs=True) for name in watched]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _taken(self, name: str, made: Tensor | str, x: Tensor | None, shifted: bool) -> Tensor | str:
        if isinstance(made, str) or x is None:
            return made
        self.eps[name] = max(torch.finfo(x.dtype).eps, self.eps.get(name, 0.0))
        made = made[:, :-1] if shifted else made
        dtype = torch.float64 if made.dtype == torch.float64 else torch.float32
        return made.detach().reshape(-1, made.shape[-1]).to(self._device, dtype, copy=True)

    def add(self, labels: I64, n_classes: int, batch: int) -> None:
        """The inputs of the last forward pass with the labels of all their rows, negative ones left out."""
        if not self.moments:
            self._plan(n_classes)
        valid = torch.from_numpy(labels >= 0)
        for name in self._active:
            x = self._seen.get(name, f"it was not called in batch {batch}")
            if isinstance(x, Tensor) and x.shape[1] != self.moments[name].dim:
                x = f"its input has {x.shape[1]} features in batch {batch}, {self.moments[name].dim} before"
            if isinstance(x, Tensor) and not bool(torch.isfinite(x[valid.to(x.device)]).all()):
                x = f"failed: its input holds NaN or Inf in batch {batch}"
            if isinstance(x, Tensor):
                self.moments[name].add(x.numpy() if self._device == "cpu" else x, labels)
            else:
                self._reasons[name] = x
                self.moments.pop(name, None)
        if self.kept is not None:
            inputs = self.taken(labels)
            self._room -= sum(x.numel() * x.element_size() for x in inputs.values())
            self.kept = [*self.kept, inputs] if self._room >= 0 else None
        self._seen = {}
        self._active = [name for name in self._active if name in self.moments]

    def taken(self, labels: I64) -> dict[str, Tensor]:
        """The inputs of the last forward pass, of the rows with labels."""
        valid = torch.from_numpy(labels >= 0)
        return {name: x[valid.to(x.device)] for name in self.moments if isinstance(x := self._seen.get(name), Tensor)}

    def _plan(self, n_classes: int) -> None:
        """After the first pass: as many layers as fit, small ones first; the eigenvalues of the largest have to be found too."""
        self._reasons.update({name: x for name, x in self._seen.items() if isinstance(x, str)})
        self._reasons.update({name: "it was not called" for name in self._active if name not in self._seen and name not in self.same})
        dims = {name: x.shape[1] for name, x in self._seen.items() if isinstance(x, Tensor)}
        batch = {name: x.numel() * x.element_size() for name, x in self._seen.items() if isinstance(x, Tensor)}
        left = self.limit
        for name in sorted(dims, key=lambda n: dims[n]):
            need, spectrum = ClassMoments.nbytes(n_classes, dims[name]) + batch[name], 8 * 2 * dims[name] ** 2
            if need + spectrum > left:
                self._reasons[name] = f"needs {(need + spectrum) / 1e9:.3g} GB for the scatter of {dims[name]} features, {left / 1e9:.3g} GB left (max_memory)"
                continue
            left -= need
            self.moments[name] = ClassMoments(n_classes, dims[name], device=self._device)
        self._room = max(left, 0) // 2
        # in the order of the forward pass
        self._active = [name for name in self._seen if name in self.moments]
        self.moments = {name: self.moments[name] for name in self._active}


def layer_numbers(moments: ClassMoments, module: nn.Module, eps: float, global_mean: str, per_class: bool) -> LayerCollapse:
    """The numbers of one layer; at least two classes occur."""
    present = np.flatnonzero(moments.counts)
    means, counts = moments.means[present], moments.counts[present]
    n_samples, (n_classes, dim) = int(counts.sum()), means.shape
    a = means - (means.mean(axis=0) if global_mean == "classes" else (counts / n_samples) @ means)
    one, two = nc1(moments.scatter, n_samples, a, between_rank_tolerance(means, eps), per_class=per_class), nc2(a)
    evals = np.maximum(np.linalg.eigvalsh(feature_covariance(moments.scatter, means, counts))[::-1], 0.0)
    carried = concentration(evals)
    w = classifier_rows(module, len(moments.counts), dim, present)
    return LayerCollapse(
        nc1=one.value, nc1_rank=one.rank, nc1_tolerance=one.tolerance, cdnv=cdnv(moments.spread[present], counts, a), nc2_norms=two.norms,
        nc2_angles=two.angles, nc2_etf=two.etf, nc3=NAN if w is None else nc3(w, a), spread=relative_spread(moments.scatter, means, counts),
        feature_dim=dim, etf_exists=n_classes <= dim + 1, effective_rank=carried.effective_rank, participation_ratio=carried.participation_ratio,
        eigenvalues=evals,
    )  # fmt: skip


def classifier_rows(module: nn.Module, n_classes: int, dim: int, present: NDArray[np.intp]) -> F64 | None:
    """Rows (C, d) of the classes that occur, centred among themselves where others do not; None where the weight is no C x d matrix."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or tuple(weight.shape) != (n_classes, dim):
        return None
    rows: F64 = weight.detach().double().cpu().numpy()[present]
    # the means of the classes that occur are centred among themselves; only rows centred likewise can match them
    return rows if len(present) == n_classes else rows - rows.mean(axis=0)
