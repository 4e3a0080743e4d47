"""The k largest Hessian eigenpairs by other tools, at their fastest documented settings: one batch, float32, the CPU.

Each tool is a function (problem, k, setting, watch) -> values (k,), vectors (n, k); ``setting`` is one of its ``settings``, and ``watch`` (or None)
is put around the tool's product with a vector, to count it. What a call needs is built inside it, the operator too.

hessian-eigenthings 1.0.0a5: lanczos() on HessianOperator; exact products or central differences of gradients; the number of steps is the setting,
    with and without reorthogonalization.
curvlinops 3.0.1: HessianLinearOperator, its checks for determinism off, in scipy's eigsh; ncv and tol are the setting.
PyHessian 0.1: hessian(data=one batch), which keeps the gradient's graph; power iteration, one pair after the other; tol is the setting. It finds the
    largest in magnitude: more than k are asked for, and the k largest of them count.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from curvature_problems import CrossEntropy, Problem
from numpy.typing import NDArray

Pairs = tuple[NDArray[Any], NDArray[Any]]
Apply = Callable[..., Any]
Watch = Callable[[Apply], Apply] | None
Setting = dict[str, Any]


def hessian_eigenthings(problem: Problem, k: int, setting: Setting, watch: Watch = None) -> Pairs:
    from hessian_eigenthings import lanczos

    operator = eigenthings_operator(problem, setting)
    if watch is not None:
        operator.matvec = watch(operator.matvec)
    result = lanczos(operator, k=k, max_iter=setting["steps"], reorthogonalize=setting["reorthogonalize"], which="LA", seed=0)
    return result.eigenvalues.numpy(), result.eigenvectors.numpy().T


def eigenthings_operator(problem: Problem, setting: Setting) -> Any:
    from hessian_eigenthings import HessianOperator
    from hessian_eigenthings.loss_fns import supervised_loss

    return HessianOperator(problem.model, problem.batches, supervised_loss(CrossEntropy()), method=setting["method"], fd_eps=setting.get("eps"))


def curvlinops(problem: Problem, k: int, setting: Setting, watch: Watch = None) -> Pairs:
    from scipy.sparse.linalg import LinearOperator, eigsh

    operator = curvlinops_operator(problem).to_scipy(np.float32)
    if watch is not None:
        operator = LinearOperator(operator.shape, matvec=watch(operator.matvec), dtype=np.float32)
    start = np.random.default_rng(0).standard_normal(problem.size).astype(np.float32)
    return eigsh(operator, k, which="LA", ncv=setting["ncv"], tol=setting["tol"], v0=start)


def curvlinops_operator(problem: Problem) -> Any:
    from curvlinops import HessianLinearOperator

    samples = sum(len(x) for x, _ in problem.batches)
    return HessianLinearOperator(problem.model, CrossEntropy(), problem.parameters, problem.batches, check_deterministic=False, num_data=samples)


def pyhessian(problem: Problem, k: int, setting: Setting, watch: Watch = None) -> Pairs:
    module = importlib.import_module("pyhessian.hessian")  # the package has a class of that name too
    torch.manual_seed(0)
    with quiet(), mock.patch.object(module, "hessian_vector_product", watch(module.hessian_vector_product)) if watch else contextlib.nullcontext():
        try:
            operator = pyhessian_operator(problem)
            values, vectors = operator.eigenvalues(maxIter=setting["iterations"], tol=setting["tol"], top_n=setting["pairs"])
        finally:
            problem.model.zero_grad()  # the gradients it leaves there hold the graph, and the next run would add to them
    chosen = np.argsort(values)[::-1][:k]
    return np.array(values)[chosen], torch.stack([torch.cat([p.reshape(-1) for p in vectors[i]]) for i in chosen], dim=1).numpy()


def pyhessian_operator(problem: Problem) -> Any:
    from pyhessian import hessian

    with quiet():
        return hessian(problem.model, CrossEntropy(), data=problem.batches[0], cuda=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """backward(create_graph=True) warns of the cycle it makes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


TOOLS: dict[str, Callable[..., Pairs]] = {"hessian-eigenthings": hessian_eigenthings, "curvlinops": curvlinops, "PyHessian": pyhessian}


def settings(tool: str, k: int, extra: int = 0) -> list[list[Setting]]:
    """Lines of settings, each ordered by rising cost. extra: eigenvalues below zero that are larger in magnitude than the k-th."""
    if tool == "hessian-eigenthings":
        ways: list[Setting] = [{"method": "autograd", "reorthogonalize": r} for r in (False, True)]
        ways += [{"method": "finite_difference", "reorthogonalize": True, "eps": e} for e in (None, 2e-2, 1e-3)]
        return [[{**way, "steps": steps} for steps in range(2 * k - 4, 200, 2)] for way in ways]
    if tool == "curvlinops":
        # the default, 2 k + 1, first; a large basis that needs no restart has the fewest products
        sizes = (2 * k + 1, 14, 17, 24, 27, 30, 34, 38, 42, 48, 54, 60, 70, 80)
        return [[{"ncv": ncv, "tol": tol} for tol in (0.3, 0.1, 0.03, 0.01, 1e-3)] for ncv in sizes]
    return [[{"pairs": k + extra, "iterations": 10_000, "tol": tol} for tol in (1e-3, 1e-4, 1e-5, 1e-6)]]


def products(problem: Problem) -> dict[str, Callable[[], Any]]:
    """tool -> one product of its operator with the same vector each time."""
    v = torch.randn(problem.size, generator=torch.Generator().manual_seed(0))
    v /= v.norm()
    exact, differences = (eigenthings_operator(problem.copy(), {"method": m}) for m in ("autograd", "finite_difference"))
    linear = curvlinops_operator(problem.copy())
    kept = pyhessian_operator(problem.copy())
    parts = [part.reshape(p.shape) for part, p in zip(v.split([p.numel() for p in kept.params]), kept.params, strict=True)]
    from pyhessian.utils import hessian_vector_product

    return {
        "hessian-eigenthings": lambda: exact.matvec(v),
        "hessian-eigenthings, differences": lambda: differences.matvec(v),
        "curvlinops": lambda: linear @ v,
        "PyHessian": lambda: hessian_vector_product(kept.gradsH, kept.params, parts),
    }
