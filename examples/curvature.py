"""The Hessian of a small classifier: everything in one call, then piece by piece.

    python examples/curvature.py
    torchrun --nproc-per-node 2 examples/curvature.py    # every process holds a part of the samples; the same numbers

Trains for a few seconds on prototypes with noise, then prints the analysis, where in the network the sharpest direction lives, what a step along it does to
the loss, the spectrum of one layer alone, and how far the learning rate is from its threshold.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

import spectral_fast as sf

CLASSES, SIDE, SAMPLES = 5, 8, 600


def data() -> TensorDataset:
    g = torch.Generator().manual_seed(0)
    prototypes = torch.randn(CLASSES, 1, SIDE, SIDE, generator=g)
    y = torch.randint(0, CLASSES, (SAMPLES,), generator=g)
    return TensorDataset(prototypes[y] + 1.5 * torch.randn(SAMPLES, 1, SIDE, SIDE, generator=g), y)


def trained(samples: TensorDataset) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 8, 3, padding=1), nn.GELU(), nn.AvgPool2d(2)]
    second = [nn.Conv2d(8, 16, 3, padding=1), nn.GELU(), nn.AvgPool2d(2)]
    model = nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(64, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    order = torch.Generator().manual_seed(1)
    for _ in range(6):
        for x, y in DataLoader(samples, batch_size=100, shuffle=True, generator=order):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model, optimizer


def mean_loss(model: nn.Module, samples: TensorDataset) -> float:
    x, y = samples.tensors
    with torch.no_grad():
        return float(F.cross_entropy(model(x), y))


def main() -> None:
    samples = data()
    model, optimizer = trained(samples)
    mine: Any = samples
    group = None
    if "WORLD_SIZE" in os.environ:  # under torchrun: the shards need not be equal
        torch.distributed.init_process_group("gloo")
        mine = Subset(samples, range(torch.distributed.get_rank(), SAMPLES, torch.distributed.get_world_size()))
        group = "world"
    loader = DataLoader(mine, batch_size=100)
    say = print if group is None or torch.distributed.get_rank() == 0 else lambda *_: None

    c = sf.curvature_spectra(model, loader, k=5, optimizer=optimizer, process_group=group, progress=False)
    say(c.summary())

    # an eigenvector as tensors of the parameters' shapes, and the loss along it: L(p + t v) = L + t g·v + t²/2 lambda + ...
    h = sf.Hessian(model, loader, process_group=group)
    top = c.hessian_top
    assert top is not None
    direction = h.unflatten(torch.from_numpy(top.vectors[:, 0].copy()).float())
    where = c.by_layer["hessian_top"]
    say("\nThe sharpest direction, by layer")
    for name, part in direction.items():
        say(f"  {name:10s} {tuple(part.shape)!s:16s} {where.of(name)[0]:6.1%} of its length, {where.rayleigh[where.names.index(name), 0]:7.3f} of lambda_1")
    t = 0.03
    losses = []
    for step in (-t, 0.0, t):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.add_(step * direction[name])
            losses.append(mean_loss(model, samples))
            for name, p in model.named_parameters():
                p.sub_(step * direction[name])
    say(f"second difference of the loss along it: {(losses[0] - 2 * losses[1] + losses[2]) / t**2:.3f}, lambda_1 {top.values[0]:.3f}")

    # one layer alone: the largest eigenvalues of a diagonal block, no larger than those of the whole
    h = sf.Hessian(model, loader, params="7.*", process_group=group)
    say(f"\nThe last layer alone ({h.shape[0]} parameters): {', '.join(f'{x:.3f}' for x in sf.eigsh(h, 3).values)}")
    ggn = sf.GGN(model, loader, params="7.*", process_group=group)
    say(f"its Gauss-Newton matrix, the same for a linear layer under a convex loss: {', '.join(f'{x:.3f}' for x in sf.eigsh(ggn, 3).values)}")

    assert c.sharpness is not None
    say(f"\nlambda_1 {c.sharpness.value:.3f}; stable below {c.sharpness.threshold:.3g} = {c.sharpness.rule}")
    if group is not None:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
