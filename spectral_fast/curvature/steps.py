"""The curvature analysis step by step: checks, probes, eigenpairs of the Hessian, what comes of them, the GGN's eigenpairs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..kernels.select import BACKENDS
from ..linalg.density import ProbeRun, density_of, run_probes
from ..linalg.eigsh import EigenResult, basis_dtype_for, extreme_pairs, pairs_so_far, result_of
from ..linalg.krylov import Krylov
from ..linalg.pairs import Pairs
from ..linalg.restart import Ends, basis_size
from ..linalg.share import Share
from ..linalg.trace import trace_of
from ..probing.capture import origin_of_nan
from ..probing.memory import memory_limit
from ..progress import Progress
from ..results import Status
from .basis_plan import BasisPlan, plan_basis
from .layer_mass import layer_mass
from .operators import GGN, GRAPH_SHARE, Hessian
from .preflight import Preflight, preflight
from .reporting import Reporting
from .sampling import sampling_errors
from .sharpness import gradient_share, stability_rule
from .spectra import CurvatureSpectra, Sharpness

__all__ = ["Steps"]

# Of what is left of the memory limit beside the bases, so much may be predicted for kept graphs: the predictions are up to 30 % low (see GRAPH_FACTOR), and
# what torch's allocator keeps of freed pieces comes on top.
GRAPHS = 0.5


class Steps:
    """The analysis step by step; what is finished stays readable when a step is interrupted."""

    def __init__(
        self, hessian: Hessian, *, tol: float, probes: int, max_matvecs: int | None, seed: int, basis_dtype: str | None, optimizer: Any, data_errors: bool
    ) -> None:
        self.hessian = hessian
        self.ggn: GGN | None = None
        self.plan: BasisPlan
        self.n = hessian.shape[0]
        self.tol, self.probes, self.max_matvecs, self.seed = tol, probes, max_matvecs, seed
        self.dtype = basis_dtype_for(hessian, tol, basis_dtype)
        self.run = ProbeRun(n=self.n, steps=1)
        self.found: dict[str, Any] = {}
        self.notes: list[str] = list(hessian.notes)
        self.preflight: Preflight | None = None
        self.optimizer, self.data_errors = optimizer, data_errors
        self.more_products = 0  # made by copies of the operator
        self.limit = 0
        self.started = time.perf_counter()

    def fit(self, k: int, k_bottom: int, steps: int, max_memory: int | float | None) -> None:
        """Settle the sizes of bases and whether graphs are kept. Raises MemoryError when nothing fits."""
        op, n = self.hessian, self.n
        # the bases are on the device where there are kernels for it, with several ranks on the host; all ranks have to come to the same plan
        there = op.device.type in BACKENDS and op.ranks.size == 1
        self.limit = limit = op.ranks.least(memory_limit(max_memory, op.device if there else torch.device("cpu")))
        graphs, one = op.graph_bytes()
        one = -op.ranks.least(-int(one))
        on_host = op.device.type == "cpu"
        self.plan = plan_basis(n, min(k, n), min(k_bottom, n), self.probes, min(steps, n), limit, int(one) if on_host else 0, self.dtype)
        self.k, self.k_bottom = self.plan.k, self.plan.k_bottom
        self.run = ProbeRun(n=n, steps=self.plan.steps)
        self.notes += self.plan.notes
        if on_host:
            op.graph_memory = GRAPHS * (limit - self.plan.bytes + one)
        elif max_memory is not None:
            op.graph_memory = GRAPH_SHARE * memory_limit(max_memory, op.device)
        if op.graph_memory is not None and graphs > op.graph_memory:
            self.notes.append(f"graphs built anew for every product: kept, they would take about {graphs / 1e9:.3g} GB")

    def work(self, report: Progress) -> None:
        pairs = self.k + self.k_bottom
        reporting = Reporting(report, self.probes * self.run.steps + pairs + 40)
        value, gradient = self.hessian.loss_and_gradient()
        self.found["loss"], self.found["gradient_norm"] = value, float(gradient.norm())
        if not (math.isfinite(value) and bool(torch.isfinite(gradient).all())):
            op = self.hessian
            where = next((w for batch in op.batches if (w := origin_of_nan(op.model, op.functional, batch))), "")
            raise ArithmeticError(f"the loss is {value}, its gradient has {int((~torch.isfinite(gradient)).sum())} NaN or Inf{where}")
        if self.hessian.without_influence:
            self.notes.append(f"no influence on the loss: {', '.join(self.hessian.without_influence)}")
        self._preflight(reporting)
        # one Krylov space of all probes: density, trace, and where the eigensolver starts
        run_probes(reporting.of(self.hessian, "Hessian"), self.run, probes=self.probes, seed=self.seed, capacity=self.plan.rows, basis_dtype=self.plan.dtype)
        kry, self.run.basis = self.run.basis, None
        assert kry is not None
        self._respect_noise(kry)
        ends = Ends(top=self.k, bottom=self.k_bottom)
        found, how = self._pairs(reporting.of(self.hessian, "Hessian"), ends, kry)
        del kry
        if how["defect"] > 0.1 * self.tol:
            self.notes.append(f"products are symmetric to {how['defect']:.1g} of the largest eigenvalue only; dtype=torch.float64 shows less")
        self._keep_hessian(found, how)
        self.found["gradient_in_top"] = gradient_share(self.found["hessian_top"].vectors, gradient, self._share(self.found["hessian_top"]))
        del gradient
        if how["interrupted"]:
            raise KeyboardInterrupt
        del found
        self._sharpness(reporting)
        self._sampling(reporting)
        self.hessian.release()
        self._gauss_newton(reporting)

    def _preflight(self, reporting: Reporting) -> None:
        before = self.hessian.products
        self.preflight = preflight(self.hessian, seed=self.seed)
        reporting.tick(self.hessian.products - before, "checks")
        self.notes += self.preflight.notes

    def _respect_noise(self, kry: Krylov) -> None:
        """No residual can be asked for that is below the noise of a product; the largest Ritz value of the probes tells how large that is."""
        assert self.preflight is not None
        largest = float(np.abs(kry.ritz()[0]).max(initial=0.0))
        if (reached := self.preflight.tolerance(self.tol, largest)) > self.tol:
            self.notes.append(f"tol {self.tol:.1g} raised to {reached:.1g} of the largest eigenvalue, what the noise of the products allows")
            self.tol = min(reached, 0.5)

    def _keep_hessian(self, found: Pairs, how: dict[str, Any]) -> None:
        count = len(found.values)
        self.found["hessian_top"] = result_of(found, how, slice(max(0, count - self.k), None), self.k)
        self.found["hessian_bottom"] = result_of(found, how, slice(0, min(self.k_bottom, count)), self.k_bottom)

    def _share(self, pairs: EigenResult) -> Share | None:
        """Of which of all ranks' entries the vectors are; None: whole vectors."""
        spread = None if pairs.columns is None else self.hessian.sharded
        return None if spread is None else spread.share

    def _sharpness(self, reporting: Reporting) -> None:
        """lambda_1 as the optimizer's stability is about it."""
        if self.optimizer is None:
            return
        trained = sum(p.numel() for p in self.hessian.model.parameters() if p.requires_grad)
        if self.n < trained:
            self.notes.append(f"lambda_1 of {self.n} of {trained} trainable parameters is compared with the stability threshold; that of all is not smaller")
        top = float(self.found["hessian_top"].values[0])
        rule = stability_rule(self.optimizer, self.hessian)
        if isinstance(rule, str):
            self.notes.append(rule)
        elif rule.plain:
            self.found["sharpness"] = Sharpness(top + float(rule.weight_decay), rule.threshold, rule.rule)
        else:
            found, how = self._pairs(rule.operator(reporting.of(self.hessian, "preconditioned Hessian")), Ends(top=1))
            if how["interrupted"]:
                raise KeyboardInterrupt
            self.found["sharpness"] = Sharpness(float(found.values[-1]), rule.threshold, rule.rule)
            if how["status"] != "ok":
                self.notes.append(f"lambda_1 of the preconditioned Hessian: {how['reason']}")

    def _sampling(self, reporting: Reporting) -> None:
        """What the data being a sample does to the top eigenvalues, from the batches' own products."""
        top = self.found["hessian_top"]
        if not self.data_errors or not np.isfinite(top.vectors).all():
            return
        if top.columns is not None:
            self.notes.append("standard errors from the data left out: the eigenvectors are spread over the ranks (more than 1 GiB of them)")
            return
        if 8 * top.vectors.size + self.plan.bytes > self.limit:
            self.notes.append("standard errors from the data left out (max_memory)")
            return
        before = self.hessian.products
        try:
            self.found["sampling"] = found = sampling_errors(self.hessian, top.vectors, seed=self.seed)
        except ArithmeticError as why:
            self.notes.append(f"no standard errors from the data: {why}")
            return
        reporting.tick(max(found.products, self.hessian.products - before), "error bars from the data")
        self.more_products = found.products - (self.hessian.products - before)
        if found.reason:
            self.notes.append(f"no standard errors from the data: {found.reason}")

    def _pairs(self, op: Any, ends: Ends, start: Krylov | None = None) -> tuple[Pairs, dict[str, Any]]:
        rows = basis_size(self.n, ends)
        return extreme_pairs(
            op,
            ends,
            tol=self.tol,
            max_matvecs=self.max_matvecs,
            seed=self.seed,
            basis_dtype=self.plan.dtype,
            capacity=min(self.plan.rows, rows),
            start=start,
            polish=self.plan.polish,
        )

    def _gauss_newton(self, reporting: Reporting) -> None:
        like = self.hessian
        self.ggn = GGN(
            like.model,
            like.batches,
            like.loss,
            params=lambda name, _: name in like.blocks,
            device=like.device,
            dtype=like.requested_dtype,
            process_group=like.ranks.group,
        )
        self.ggn.graph_memory = like.graph_memory
        try:
            found, how = self._pairs(reporting.of(self.ggn, "GGN"), Ends(top=self.k))
        except ArithmeticError:
            raise
        except Exception as why:  # the Hessian's results stay, whatever a model's output or a caller's loss did
            told = "" if isinstance(why, (NotImplementedError, TypeError)) else f"{type(why).__name__}: "
            self.notes.append(f"GGN skipped: {told}{why}")
            return
        finally:
            self.ggn.release()
        self.found["ggn_top"] = result_of(found, how, slice(None), self.k)
        if how["interrupted"]:
            raise KeyboardInterrupt

    def _value_floor(self, parts: Mapping[str, EigenResult]) -> float:
        """Noise as the checks measured it, or as the runs met it since, whichever is larger."""
        if self.preflight is None:
            return math.nan
        return max(self.preflight.value_floor, *(pairs.symmetry_defect * pairs.scale for pairs in parts.values() if len(pairs)), 0.0)

    def interrupted(self) -> None:
        """Eigenvalues as they stood, where the probes were interrupted before the eigensolver had its turn."""
        kry, self.run.basis = self.run.basis, None
        if kry is not None and kry.m and "hessian_top" not in self.found:
            self._keep_hessian(*pairs_so_far(kry, Ends(top=self.k, bottom=self.k_bottom), self.tol, kry.products))

    def result(self, status: Status, reason: str) -> CurvatureSpectra:
        if self.run.parts:
            self.found["density"], self.found["trace"] = density_of(self.run), trace_of(self.run)
        if status == "ok" and self.preflight is not None and self.preflight.status != "ok":
            status, reason = self.preflight.status, self.preflight.reason
        if status == "ok":
            for name in ("hessian_top", "ggn_top"):
                part = self.found.get(name)
                if part is not None and part.status != "ok":
                    status, reason = part.status, f"{name}: {part.reason}"
                    break
        op = self.hessian
        parts = {name: self.found[name] for name in ("hessian_top", "hessian_bottom", "ggn_top") if self.found.get(name) is not None}
        return CurvatureSpectra(
            **self.found,
            preflight=self.preflight,
            value_floor=self._value_floor(parts),
            by_layer={name: layer_mass(pairs, op.blocks, self._share(pairs)) for name, pairs in parts.items() if len(pairs)},
            n_params=self.n,
            n_samples=op.n_samples,
            loss_name=op.loss.name,
            products=op.products + self.more_products + (0 if self.ggn is None else self.ggn.products),
            seconds=time.perf_counter() - self.started,
            notes=tuple(self.notes),
            status=status,
            reason=reason,
            backend=f"torch {op.device.type} {str(op.dtype).removeprefix('torch.')}",
        )
