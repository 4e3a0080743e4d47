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

STRENGTHS = (0.0, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
SHOWN = {"weak": 0.0003, "critical": 0.03, "over": 1.0}
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
        nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
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
        right = (model(x[TRAINING:]).argmax(1) == y[TRAINING:]).double().mean()
    return Run(l2, sf.scan({"fc1.weight": fc1.weight.detach()}, progress=False).spectrum("fc1.weight"), start, float(right))


def regime(run: Run) -> str:
    """Which of the article's regimes a run is in, from its spectrum: compared with the random matrix it began as."""
    null = run.fc1.null["s_min"] * run.start / run.fc1.metrics["frobenius"]
    if run.fc1.metrics["frobenius"] < 0.01 * run.start:
        return "over"
    return "critical" if run.fc1.metrics["s_min"] < 0.1 * null else "weak"


def table(runs: list[Run]) -> str:
    head = ["L2", "regime", "lambda_min", "lambda_max", "norm/start", "accuracy", *(f"rank: {rule}" for rule in RULES)]
    rows = [head]
    for r in runs:
        m = r.fc1
        numbers = [f"{m.evals[-1]:.1e}", f"{m.evals[0]:.1e}", f"{m.metrics['frobenius'] / r.start:.3g}", f"{r.accuracy:.3f}"]
        rows.append([f"{r.l2:g}", regime(r), *numbers, *(f"{m.ranks[rule]}/{len(m.s)}" for rule in RULES)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows)


def figure(runs: list[Run]) -> Figure:
    fig = Figure(figsize=(14, 8), layout="constrained", facecolor="white")
    FigureCanvasAgg(fig)
    fig.suptitle("FC1 of a small conv net on digits: what more and more L2 regularization does to its spectrum", fontsize=13)
    top, bottom = fig.subplots(2, 3)
    shown = {name: next(r for r in runs if r.l2 == l2) for name, l2 in SHOWN.items()}
    # the smallest eigenvalue over all three, so that they share their axis
    low = min(float(np.log10(r.fc1.evals[-1])) for r in shown.values())
    edges = np.linspace(np.floor(low), 1.5, 90)
    for ax, (name, run) in zip(top, shown.items(), strict=True):
        evals = run.fc1.evals
        ax.hist(np.log10(evals), edges, color=COLOURS[name], alpha=0.85)
        ax.axvline(np.log10(evals[-1]), ymax=0.55, color="black", linewidth=1, linestyle=":")
        collapsed = float((run.fc1.s < 1e-3).mean())
        ax.set_title(f"{name}: L2 = {run.l2:g}", loc="left", fontweight="bold", fontsize=11)
        facts = (
            f"$\\lambda_{{min}}$ = {evals[-1]:.1e}\n$\\lambda_{{max}}$ = {evals[0]:.1e}\nnorm {run.fc1.metrics['frobenius'] / run.start:.3g} x start"
            f"\n{collapsed:.0%} of $\\nu$ < 0.001\naccuracy {run.accuracy:.1%}"
        )
        ax.text(0.03, 0.96, facts, transform=ax.transAxes, va="top", fontsize=10)
        ax.set_yscale("log")
        ax.set_ylim(0.7, 10_000)
        ax.set_xlabel("log10 of the eigenvalue of WᵀW")
        ax.set_ylabel("eigenvalues")
    x = np.arange(len(runs))
    ax = bottom[0]
    for values, label, colour in (
        ([r.fc1.evals[0] for r in runs], "largest", "#0072B2"),
        ([float(np.median(r.fc1.evals)) for r in runs], "median", "#009E73"),
        ([r.fc1.evals[-1] for r in runs], "smallest: lambda_min", "#D55E00"),
    ):
        ax.plot(x, values, "o-", color=colour, label=label)
    ax.set_yscale("log")
    ax.set_title("eigenvalues of WᵀW", loc="left", fontweight="bold", fontsize=11)
    ax = bottom[1]
    for rule, marker, colour in zip(RULES, "osv^D", ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73"), strict=True):
        ax.plot(x, [r.fc1.ranks[rule] for r in runs], marker + "-", color=colour, label=rule, alpha=0.85, markersize=5)
    ax.set_ylim(0, 1.08 * len(runs[0].fc1.s))
    ax.set_title("rank under each rule", loc="left", fontweight="bold", fontsize=11)
    ax = bottom[2]
    ax.plot(x, [r.accuracy for r in runs], "o-", color="#0072B2", label="accuracy on other images")
    ax.plot(x, [r.fc1.metrics["frobenius"] / r.start for r in runs], "s-", color="#D55E00", label="Frobenius norm / norm at the start")
    ax.set_ylim(0, 1.3)
    ax.set_title("accuracy and norm", loc="left", fontweight="bold", fontsize=11)
    for ax in bottom:
        for name, group in regions(runs).items():
            ax.axvspan(group[0] - 0.5, group[-1] + 0.5, color=COLOURS[name], alpha=0.10, linewidth=0)
        ax.set_xticks(x, [f"{r.l2:g}" for r in runs], fontsize=8.5)
        ax.set_xlim(-0.5, len(runs) - 0.5)
        ax.set_xlabel("L2 strength (shaded: weak, critical, over)")
        ax.legend(fontsize=9, loc="lower left", framealpha=0.9)
    for ax in (*top, *bottom):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
    return fig


def regions(runs: list[Run]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, r in enumerate(runs):
        found.setdefault(regime(r), []).append(i)
    return found


def save(path: Path, runs: list[Run]) -> None:
    picture = png(figure(runs), dpi=110)
    if path.suffix.lower() not in (".html", ".htm"):
        path.write_bytes(picture)
        return
    image = f'<img alt="spectra of FC1" style="max-width:100%" src="data:image/png;base64,{base64.b64encode(picture).decode("ascii")}">'
    head = '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Rank collapse</title></head>'
    path.write_text(f"{head}<body><h1>Rank collapse</h1>{image}<pre>{html.escape(table(runs))}</pre></body></html>\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Rank collapse by over-regularization, after Martin 2018.")
    parser.add_argument("figure", type=Path, help="where the figure goes: .png, or .html with the table")
    parser.add_argument("--epochs", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the layers are too small to share
    x, y = images()
    runs = []
    for l2 in STRENGTHS:
        runs.append(train(x, y, l2, arguments.epochs))
        print(f"L2 {l2:g}: lambda_min {runs[-1].fc1.evals[-1]:.2e}, accuracy {runs[-1].accuracy:.3f}, {regime(runs[-1])}", flush=True)
    print(f"\n{table(runs)}")
    save(arguments.figure, runs)
    print(f"figure: {arguments.figure}")


if __name__ == "__main__":
    main()
