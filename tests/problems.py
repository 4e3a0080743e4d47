"""Problems with known answers: matrices of prescribed spectra, small networks and their dense curvature."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def orthogonal(n: int, seed: int) -> F64:
    """Haar-distributed orthogonal (n, n) (Mezzadri 2007: QR with the signs of R's diagonal)."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return np.asarray(q * np.sign(np.diag(r)))


def symmetric(evals: Any, seed: int = 0) -> F64:
    """Symmetric matrix with these eigenvalues and random eigenvectors."""
    evals = np.asarray(evals, dtype=np.float64)
    q = orthogonal(len(evals), seed)
    a = (q * evals) @ q.T
    return np.asarray((a + a.T) / 2)


def with_singular_values(s: Any, m: int, n: int, seed: int = 0) -> F64:
    """(m, n) matrix with the singular values ``s`` (min(m, n),) and random singular vectors."""
    s = np.asarray(s, dtype=np.float64)
    return np.asarray((orthogonal(m, seed)[:, : len(s)] * s) @ orthogonal(n, seed + 1)[:, : len(s)].T)


class Counting:
    """A matrix that counts its products and can change them: ``spoil(count, v, w) -> w``."""

    def __init__(self, a: F64, spoil: Callable[[int, F64, F64], F64] | None = None) -> None:
        self.a, self.spoil = a, spoil
        self.shape = a.shape
        self.products = 0

    def __matmul__(self, v: F64) -> F64:
        self.products += 1
        w = np.asarray(self.a @ v)
        return w if self.spoil is None else self.spoil(self.products, v, w)


class Reflected:
    """Symmetric operator with these eigenvalues and the eigenvectors of a few random reflections: large ones without their matrix."""

    def __init__(self, evals: Any, seed: int = 0, reflections: int = 4) -> None:
        self.evals = np.asarray(evals, dtype=np.float64)
        self.shape = (len(self.evals), len(self.evals))
        u = np.random.default_rng(seed).standard_normal((reflections, len(self.evals)))
        self.u = u / np.linalg.norm(u, axis=1, keepdims=True)

    def __matmul__(self, v: F64) -> F64:
        x = np.array(v, dtype=np.float64)
        for u in self.u:
            x -= 2.0 * np.multiply.outer(u, u @ x)
        x = (self.evals * x.T).T
        for u in self.u[::-1]:
            x -= 2.0 * np.multiply.outer(u, u @ x)
        return np.asarray(x)


# -- networks (torch only when asked for) ------------------------------------------------------------------------------------


def digits_like(n_samples: int, n_features: int, n_classes: int, seed: int = 0) -> tuple[F64, NDArray[np.int64]]:
    """Noisy class centres: (X (n_samples, n_features), y) that a small net learns but not perfectly."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n_samples)
    centres = rng.standard_normal((n_classes, n_features))
    return centres[y] + 1.5 * rng.standard_normal((n_samples, n_features)), y.astype(np.int64)


def mlp(sizes: tuple[int, ...], *, seed: int = 0, dropout: float = 0.0, batchnorm: bool = False, activation: str = "Tanh", dtype: str = "float64") -> Any:
    """Multilayer perceptron with seeded weights; the global generator is left alone."""
    import torch
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            layers.append(nn.Linear(a, b))
            if i < len(sizes) - 2:
                if batchnorm:
                    layers.append(nn.BatchNorm1d(b))
                layers.append(getattr(nn, activation)())
                if dropout:
                    layers.append(nn.Dropout(dropout))
        return nn.Sequential(*layers).to(getattr(torch, dtype))


def train(model: Any, x: Any, y: Any, *, steps: int = 60, lr: float = 0.02) -> Any:
    """A few full-batch Adam steps on the cross-entropy, so that spectra are those of a trained net. Gradients are cleared."""
    import torch

    optimizer = torch.optim.Adam(model.parameters(), lr)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def flat_loss(model: Any, loss_of_outputs: Callable[[Any], Any], x: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any], Any]:
    """(flat parameters -> loss, flat parameters -> outputs, flat parameters), model in the mode it is in."""
    import torch

    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for _, p in model.named_parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def outputs(v: Any) -> Any:
        parts = torch.split(v, [s.numel() for s in shapes])
        return torch.func.functional_call(model, {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}, (x,))

    return (lambda v: loss_of_outputs(outputs(v))), outputs, flat


def dense_hessian(model: Any, loss_of_outputs: Callable[[Any], Any], x: Any) -> F64:
    """The Hessian by torch.autograd.functional.hessian, every entry."""
    import torch

    loss, _, flat = flat_loss(model, loss_of_outputs, x)
    return np.asarray(torch.autograd.functional.hessian(loss, flat, vectorize=False).numpy())


def dense_ggn(model: Any, loss_of_outputs: Callable[[Any], Any], x: Any) -> F64:
    """Jᵀ H_L J from the materialized Jacobian and the autodiff Hessian of the loss with respect to all outputs, sample by sample."""
    import torch

    _, outputs, flat = flat_loss(model, loss_of_outputs, x)
    z = outputs(flat).detach()
    jacobian = torch.func.jacrev(outputs, chunk_size=500)(flat).reshape(z.numel(), -1)
    outer = torch.autograd.functional.hessian(loss_of_outputs, z).reshape(z.numel(), z.numel())
    return np.asarray((jacobian.T @ (outer @ jacobian)).numpy())


class DictLoader:
    """Re-iterable of dict batches {"input": ..., "labels": ...} of uneven sizes."""

    def __init__(self, x: Any, y: Any, sizes: tuple[int, ...]) -> None:
        self.x, self.y, self.sizes = x, y, sizes

    def __iter__(self) -> Iterator[dict[str, Any]]:
        start = 0
        for size in self.sizes:
            yield {"input": self.x[start : start + size], "labels": self.y[start : start + size]}
            start += size
