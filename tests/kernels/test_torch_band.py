"""Symmetric matrices to bands, in torch's functions: the same eigenvalues, and nothing beside the band."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from pretend_device import NAME, pretend_device  # noqa: E402

from spectral_fast.kernels.torch_band import band_of  # noqa: E402


def _gram(kind: str, n: int) -> Any:
    x = torch.randn(n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    made = {
        "gaussian": x,
        "low rank": x[:, :2] @ x[:2],
        "steep": x * torch.logspace(0, -8, n, dtype=torch.float64),
        "zero": 0.0 * x,
        "identity": torch.eye(n, dtype=torch.float64),
        "ones": torch.ones(n, n, dtype=torch.float64),
        "huge": 1e150 * x,
        "tiny": 1e-150 * x,
        "twice": torch.cat((x[:, : n // 2], x[:, : n - n // 2]), 1),
    }[kind]
    return made.mT @ made


KINDS = ["gaussian", "low rank", "steep", "zero", "identity", "ones", "huge", "tiny", "twice"]


def _dense(band: Any, width: int) -> Any:
    n = band.shape[1]
    a = torch.zeros(len(band), n, n, dtype=torch.float64)
    for d in range(min(width + 1, n)):
        a.diagonal(-d, 1, 2).copy_(band[:, : n - d, d])
        a.diagonal(d, 1, 2).copy_(band[:, : n - d, d])
    return a


@pytest.mark.parametrize("width", [1, 2, 4, 32])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 9, 33, 64, 65, 66, 100])
def test_eigenvalues_are_kept(n: int, width: int) -> None:
    grams = torch.stack([_gram(kind, n) for kind in KINDS])
    wanted = torch.linalg.eigvalsh(grams)
    band = band_of(grams.clone(), width, ld=2 * width)
    assert band.shape == (len(KINDS), n, 2 * width) and not bool(band[:, :, width + 1 :].any())
    away = (torch.linalg.eigvalsh(_dense(band, width)) - wanted).abs().amax(1)
    assert bool((away <= 2e-15 * max(4.0, n**0.5) * wanted.abs().amax(1)).all()), away / wanted.abs().amax(1)


def test_on_a_device_only_what_decides_comes_back() -> None:
    grams = torch.stack([_gram(kind, 80) for kind in ("gaussian", "steep", "zero")])
    wanted = torch.linalg.eigvalsh(grams)
    with pretend_device() as traffic:
        there = grams.to(NAME)
        traffic.there = 0
        band = band_of(there, 8)
        assert traffic.back < 200 and traffic.there == 0
        away = (torch.linalg.eigvalsh(_dense(band.cpu(), 8)) - wanted).abs().amax(1)
    assert bool((away <= 2e-14 * wanted.abs().amax(1)).all())
