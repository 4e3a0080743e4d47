"""The network of the demo: scikit-learn's digits, one hidden layer."""

from __future__ import annotations

from typing import Any

from .inputs import BadInput

__all__ = ["DEMO_TRAIN", "digits", "train"]

DEMO_TRAIN = 1437  # images the demo trains on; the other 360 are held out


def digits() -> tuple[Any, Any]:
    """(1797, 64) float32 images in [0, 1] and (1797,) int64 labels in a fixed random order."""
    import numpy as np

    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sklearn":  # there, but broken
            raise
        raise BadInput('the demo needs scikit-learn: pip install "spectral_fast[demo]"') from error
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return np.ascontiguousarray(data.data[order] / 16.0, dtype=np.float32), np.ascontiguousarray(data.target[order], dtype=np.int64)


def train(images: Any, labels: Any, epochs: int, seed: int) -> tuple[Any, tuple[float, float]]:
    """A 64-32-10 network after ``epochs`` of Adam in batches of 64; its accuracy on the training images and on the others."""
    import torch

    torch.manual_seed(seed)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(DEMO_TRAIN), 64):
            adam.zero_grad()
            torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()  # type: ignore[no-untyped-call]
            adam.step()
    with torch.no_grad():
        right = (model(x).argmax(1) == y).double()
    return model, (float(right[:DEMO_TRAIN].mean()), float(right[DEMO_TRAIN:].mean()))
