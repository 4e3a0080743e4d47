"""Rank collapse by over-regularization: the experiment of Martin's "Rank Collapse in Deep Learning" (2018), small enough for two cores.

A small AlexNet-like network learns scikit-learn's digits (1,797 real images, 8 x 8, enlarged to 16 x 16) again and again, each time with more L2
regularization on its first dense layer FC1, 384 x 512 (aspect ratio Q = 1.33; the article wants more than 1.1). Three regimes:

    weak      the eigenvalue density of WᵀW is that of a random matrix with a few eigenvalues that training added; lambda_min is well above 0
    critical  lambda_min goes to 0: most of the layer is gone and the accuracy does not notice
    over      nearly all eigenvalues and the norm go to 0, and the network no longer learns

Run it (a minute or two on two cores); the figure goes where you say, as PNG, or as one HTML page with the table:

    python examples/rank_collapse.py rank_collapse.png
    python examples/rank_collapse.py rank_collapse.html
"""

from __future__ import annotations

import argparse
import base64
import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn

import spectral_fast as sf
from spectral_fast.report.plots import png

STRENGTHS = (0.0, 0.0003, 0.001, 0.003, 0.006, 0.01, 0.03, 0.1)
SHOWN = {"weak": 0.0003, "critical": 0.006, "over": 0.1}
RULES = ("numpy", "numerical_recipes", "loose", "log8", "storage")
TRAINING = 1437
COLOURS = {"weak": "#0072B2", "critical": "#E69F00", "over": "#D55E00"}


@dataclass
class Run:
    """One training. l2: strength; fc1: FC1's spectrum; start: Frobenius norm of FC1 at initialisation; accuracy: on images not trained on."""

    l2: float
    fc1: sf.MatrixSpectrum
    start: float
    accuracy: float


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """(1797, 1, 16, 16) in [0, 1] and (1797,) labels, in a fixed random order."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x = torch.tensor(digits.images[order] / 16.0, dtype=torch.float32).unsqueeze(1)
    return nn.functional.interpolate(x, size=(16, 16), mode="bilinear", align_corners=False), torch.tensor(digits.target[order])


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(512, 384), nn.ReLU(),
        nn.Linear(384, 192), nn.ReLU(),
        nn.Linear(192, 10),
    )  # fmt: skip


def train(x: torch.Tensor, y: torch.Tensor, l2: float, epochs: int) -> Run:
    """SGD on cross-entropy + l2 ||FC1||², the article's kernel_regularizer."""
    torch.manual_seed(0)
    model = network()
    fc1 = model[7]
    assert isinstance(fc1, nn.Linear)
    start = float(fc1.weight.detach().norm())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(TRAINING), 64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen]) + l2 * fc1.weight.square().sum()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
    with torch.no_grad():
        right = (model[:](x[TRAINING:]).argmax(1) == y[TRAINING:]).double().mean()
    return Run(l2, sf.scan({"fc1.weight": fc1.weight.detach()}, progress=False).spectrum("fc1.weight"), start, float(right))


def regime(run: Run) -> str:
    """Which of the article's regimes a run is in, from its spectrum: compared with the random matrix it began as."""
    null = run.fc1.null["s_min"] * run.start / run.fc1.metrics["frobenius"]
    if run.fc1.metrics["frobenius"] < 0.01 * run.start:
        return "over"
    return "critical" if run.fc1.metrics["s_min"] < 0.1 * null else "weak"
