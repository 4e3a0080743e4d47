"""The exact Gram matrix of per-sample gradients from inputs and output gradients: no sample's gradient of the whole model is ever formed.

One forward and backward pass per batch, in which no parameter requires a gradient. As soon as all calls of a parameter have the gradients of their
outputs, its Gram is added up and they are let go. Parameters for which this cannot be done are computed sample by sample and listed in ``slow``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .batches import Batches
from .contributions import contribution
from .functional import FunctionalModel
from .ghost_plan import GhostPlan, blocks_of, plan_ghost
from .gradient_gram import GradientGram
from .layer_grams import Contribution, GramKernel, Rows
from .layer_sums import LayerSums
from .losses import Loss
from .parameter_gradient import ALGORITHMS, ParameterGradient, Route
from .parameter_uses import ParameterUses
from .per_sample import PerSampleGradients, Unit, take
from .selected import SelectedParameters, once_differentiable
from .use_records import Call, whole_region
from .use_survey import Refused, Survey, forward, refuse_reordering, survey

__all__ = ["GhostGram"]

F64 = NDArray[np.float64]
Report = Callable[[int, int, str], None]


class _Changed(Exception):
    """A parameter is used otherwise than on the samples looked at."""

    def __init__(self, names: list[str], why: str) -> None:
        super().__init__(why)
        self.names = names


Held = tuple[int, int, dict[str, ParameterGradient]]  # units from, to, and their gradients by parameter


class GhostGram(LayerSums):
    """K and, per parameter, what its spectrum and noise scale need; the first ``done`` units are complete.

    losses: unit -> its own mean loss. routes: name -> (algorithm, predicted flops); seconds: name -> time spent on its products. slow: name -> why its
    gradients were computed sample by sample. engine: "ghost", or "per-sample" where ``fallback`` had to do it all; notes say why.
    """

    def __init__(
        self,
        units: list[Unit],
        functional: FunctionalModel,
        batches: Batches,
        loss: Loss,
        kernel: GramKernel,
        *,
        limit: int,
        fallback: Callable[[], tuple[GradientGram, PerSampleGradients]] | None = None,
        layer_spectra: bool = True,
        algorithm: str = "auto",
        seed: int = 0,
        vectorise: int = 64,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """units: of single samples, ordered by batch. kernel: adds products to a Gram, see layer_grams.GramKernel. limit: bytes. fallback: makes the
        accumulator and the engine that form gradients, for models this cannot be done for; None: ValueError then. layer_spectra: whether to keep Grams per
        parameter, if they fit. vectorise: samples per vmap call of the slow route. share: (rank, size), which part of the products are
        this process's; see LayerSums.add_over.
        """
        if algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm: unknown {algorithm!r}; known: {', '.join(ALGORITHMS)}")
        if any(u.row is None for u in units):
            raise ValueError("units: wanted single samples, got whole batches")
        self.units, self.functional, self.batches, self.loss, self.kernel = units, functional, batches, loss, kernel
        self.limit, self.fallback, self.layer_spectra, self.algorithm = limit, fallback, layer_spectra, algorithm
        self.seed, self.vectorise, self.share = seed, vectorise, share
        super().__init__(np.array([u.weight for u in units]), {name: p.numel() for name, p in functional.parameters.items()})
        self.notes: list[str] = []
        self.engine = "ghost"
        self.slow: dict[str, str] = {}
        self.plan: GhostPlan | None = None
        self.start()

    def start(self, slow: Mapping[str, str] | None = None) -> None:
        """Nothing computed yet. slow: parameters known to be computed sample by sample, in place of those known so far."""
        if slow is not None:
            self.slow, self.notes = dict(slow), []
        self.reset()
        self.losses: dict[int, float] = {}
        self.routes: dict[str, Route] = {}
        self.seconds = dict.fromkeys(self.sizes, 0.0)
        self._written: set[str] = set()
        self._space = np.empty(0)

    def run(self, report: Report) -> None:
        """Use inside leave_no_trace(model). report(done, total, what) is called after each batch."""
        with once_differentiable():
            while True:
                try:
                    found = survey(self.functional, self.batches, self.loss, self.units, self.kernel, self.slow, self.algorithm)
                    self.slow = found.slow
                    if len(self.slow) == len(self.sizes):
                        raise Refused("; ".join(f"{name}: {why}" for name, why in list(self.slow.items())[:3]))
                    self._route(found)
                    try:
                        self._run(found, report)
                    except KeyboardInterrupt:
                        self.interrupted()
                        raise
                    break
                except _Changed as changed:
                    names = [name for name in changed.names if name not in self.slow]
                    if not names:
                        self.fall_back(str(changed), report)
                        break
                    self.slow.update(dict.fromkeys(names, str(changed)))
                    self.start()
                except Refused as refused:
                    self.fall_back(str(refused), report)
                    break
        if self.engine == "ghost":
            for name, why in self.slow.items():
                self.notes.append(f"gradients of {name} computed sample by sample: {why}")

    def fall_back(self, why: str, report: Report) -> None:
        """All gradients sample by sample. Raises ValueError where no ``fallback`` was given."""
        if self.fallback is None:
            raise ValueError(f"model: per-sample products cannot be had from one backward pass: {why}")
        self.start()
        self.engine, self.slow = "per-sample", dict.fromkeys(self.sizes, why)
        self.notes.append(f"per-sample gradients formed one by one, not from inputs and output gradients: {why}")
        sums, engine = self.fallback()
        try:
            sums.run(engine, report, self.share)
        finally:
            self.notes += engine.notes
            self.losses = engine.losses
            self.adopt(sums)

    def _route(self, found: Survey) -> None:
        """Algorithms, what is kept in which form, and the plan."""
        n = len(self.units)
        held = 0.0
        for name, gradient in found.gradients.items():
            self.routes[name] = gradient.route(n, self.algorithm)
            # gradients that are fewer numbers than what they are made of
            if self.routes[name][0] == "gradients" and gradient.can_be_written and gradient.numbers() <= max(n - 1, gradient.nbytes // (8 * found.probed)):
                self._written.add(name)
                held += 8.0 * gradient.numbers()
            else:
                held += gradient.nbytes / found.probed
        per_number = max(p.element_size() for p in self.functional.parameters.values())
        slow = sum(self.sizes[name] for name in self.slow)
        held += slow * per_number
        self.routes.update({name: ("per-sample", float(n) * (n + 1) * self.sizes[name]) for name in self.slow})
        few = [name for name, p in self.sizes.items() if p < n and self._forms_rows(name, found)]
        widths = [self.sizes[name] if name in few else n for name in self.sizes]
        largest = max(Counter(u.batch for u in self.units).values())
        if self.share[1] > 1:
            largest = min(largest, max(n - 1, 1))  # blocks are kept for later samples even of a single batch
        self.plan = plan_ghost(n, largest, widths, self.limit, found.run_bytes + held, held, self.layer_spectra)
        if self.plan.hold < n:
            self.notes.append(
                f"inputs and output gradients kept in blocks of {self.plan.hold} samples: {self.plan.evaluations} samples run for {n} (max_memory)"
            )
        if self.layer_spectra and not self.plan.layer_spectra:
            self.notes.append("no eigenvalues per layer: their Gram matrices do not fit (max_memory)")
        if self.plan.layer_spectra:
            self.keep_layers(few)

    def _forms_rows(self, name: str, found: Survey) -> bool:
        if name in self.slow or name in self._written:
            return True
        return name in found.gradients and found.gradients[name].are_rows and found.gradients[name].numbers() == self.sizes[name]

    def _run(self, found: Survey, report: Report) -> None:
        assert self.plan is not None
        n, evaluated = len(self.units), 0
        detached = {name: p.detach() for name, p in self.functional.parameters.items()}
        slow_engine = None
        if self.slow:
            selected = SelectedParameters(self.functional, list(self.slow))
            slow_engine = PerSampleGradients(selected, self.batches, self.loss, vectorise=self.vectorise, seed=self.seed)
        blocks = blocks_of(n, self.plan.hold, *self.share)
        evaluations = sum(n - start for start, _ in blocks)
        for start, stop in blocks:
            held: list[Held] = []
            lo = start
            while lo < n:
                hi = self._until(lo, stop)
                kept: dict[str, ParameterGradient] | None = {} if hi < n and lo < stop else None
                self._chunk(found, detached, slow_engine, held, lo, hi, lo < stop, kept)
                if kept is not None:
                    held.append((lo, hi, kept))
                if lo < stop:
                    self.done = hi
                evaluated += hi - lo
                report(evaluated, evaluations, "per-sample gradients")
                lo = hi
        if slow_engine is not None:
            self.notes += slow_engine.notes

    def _until(self, lo: int, stop: int) -> int:
        """The end of the chunk from ``lo``: samples of one batch, within a block, as many as are run at once."""
        assert self.plan is not None
        hi, last = lo + 1, stop if lo < stop else len(self.units)
        while hi < last and self.units[hi].batch == self.units[lo].batch and hi - lo < self.plan.chunk:
            hi += 1
        return hi

    def _chunk(
        self,
        found: Survey,
        detached: dict[str, Tensor],
        slow_engine: PerSampleGradients | None,
        held: list[Held],
        lo: int,
        hi: int,
        inside: bool,
        kept: dict[str, ParameterGradient] | None,
    ) -> None:
        n = hi - lo
        forget = getattr(self.kernel, "forget", None)
        if forget is not None:
            forget()  # the same memory may hold other numbers after a forward pass
        whole = self.batches[self.units[lo].batch]
        rows = [u.row for u in self.units[lo:hi] if u.row is not None]
        batch = whole if rows == list(range(whole.size)) else take(whole, rows)
        collected: dict[str, list[Contribution]] = {}
        pending: dict[str, int] = {}

        def finish(name: str) -> None:
            try:
                gradient = ParameterGradient(collected.pop(name), self.sizes[name])
            except ValueError as error:
                raise _Changed([name], str(error)) from None
            if name in self._written:
                gradient.written_out()
            self._products(name, gradient, held, lo, hi, inside)
            if kept is not None:
                kept[name] = gradient

        def receive(call: Call, gradient: Tensor) -> None:
            parts = [p for p in call.parts if p.name not in self.slow]
            if not parts:
                return
            names = [p.name for p in parts]
            layout = found.layouts.get(call.key)
            if layout is None:
                raise _Changed(names, f"a call of {call.key[0]} that was not seen before")
            if not found.certain[call.key] and bool(gradient.any()):
                raise _Changed(names, f"its samples could not be told apart in {call.key[0]}")
            for part in parts:
                try:
                    collected.setdefault(part.name, []).append(contribution(part, gradient, layout, n, detached[part.name].shape))
                except (RuntimeError, ValueError) as error:
                    if isinstance(error, torch.OutOfMemoryError):
                        raise
                    raise _Changed([part.name], str(error).splitlines()[0][:160]) from None
                part.x = None
                pending[part.name] -= 1
                if pending[part.name] == 0:
                    finish(part.name)

        uses = ParameterUses(detached, shared=found.shared, expected=frozenset(found.layouts), receive=receive)
        own = forward(self.functional, self.loss, batch, uses, detached)
        refuse_reordering(uses)
        for name, function in uses.unknown.items():
            if name not in self.slow:
                raise _Changed([name], f"used by {function}")
        for call in uses.calls:
            for part in call.parts:
                pending[part.name] = pending.get(part.name, 0) + 1
        uses.calls.clear()
        self.losses.update(zip(range(lo, hi), own.detach().double().tolist(), strict=True))
        if own.requires_grad:
            torch.autograd.grad(own.sum(), uses.token, allow_unused=True)
        for name in list(collected):
            finish(name)  # some of its calls do not lead to the loss
        if slow_engine is not None:
            found_rows: dict[str, list[Tensor]] = {}
            for _, gradients in slow_engine.rows(self.units, lo, hi):
                for name, g in gradients.items():
                    found_rows.setdefault(name, []).append(g)
            for name, parts in found_rows.items():
                collected[name] = [Rows(torch.cat(parts), whole_region((self.sizes[name],)))]
                finish(name)

    def _tile(self, rows: int, cols: int) -> F64:
        """Zeros, in memory that the last tile has left."""
        if self._space.size < rows * cols:
            self._space = np.empty(rows * cols)
        tile = self._space[: rows * cols].reshape(rows, cols)
        tile.fill(0.0)
        return tile

    def _products(self, name: str, gradient: ParameterGradient, held: list[Held], lo: int, hi: int, inside: bool) -> None:
        """The gradients lo .. hi of one parameter with themselves (inside the block) and with those that are held."""
        began = time.perf_counter()
        algorithm = self.routes[name][0] if name in self.routes else "auto"
        algorithm = algorithm if algorithm in ALGORITHMS else "auto"
        if inside:
            tile = self._tile(hi - lo, hi - lo)
            gradient.gram(tile, None, self.kernel, algorithm)
            self.add_own(name, tile, lo)
            if name in self.moments:
                self.add_rows(name, gradient.rows(), lo)
        for a, b, gradients in held:
            if name in gradients:
                if gradients[name].overwritten:
                    raise _Changed([name], "the input of a layer lies in memory that later samples are written to")
                tile = self._tile(hi - lo, b - a)
                try:
                    gradient.gram(tile, gradients[name], self.kernel, algorithm)
                except ValueError as error:
                    raise _Changed([name], str(error)) from None
                self.add_products(name, tile, lo, a)
        self.seconds[name] += time.perf_counter() - began
