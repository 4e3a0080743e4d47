"""What torch's own functions do for randomized SVD on a device: orthonormal columns by Cholesky factors, by reflections where these do not hold."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from spectral_fast.kernels import torch_lowrank  # noqa: E402


def _columns(kind: str, m: int, c: int, seed: int) -> Any:
    x = torch.randn(m, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if kind == "steep":  # of very different lengths, far from depending on each other
        return x * torch.logspace(0, -12, c, dtype=torch.float64)
    if kind == "close":  # far too close to each other for a Gram matrix
        return x[:, :1] + 1e-9 * x
    if kind == "dependent":
        return torch.cat((x[:, :-1], x[:, :1]), 1)
    return x * (kind != "zero")


def _apart(kinds: list[str], m: int, c: int, known_columns: int) -> tuple[Any, Any, Any]:
    known = torch.stack([torch.linalg.qr(_columns("plain", m, known_columns, 50 + i))[0] for i in range(len(kinds))])
    y = torch.stack([_columns(kind, m, c, i) for i, kind in enumerate(kinds)])
    norm = torch.linalg.matrix_norm(y)

    def refill(draw: int, columns: int) -> Any:
        return _columns("plain", m, columns, 100 + draw)

    return known, y, torch_lowrank._apart_from(known, y, norm, refill)


@pytest.fixture
def reflected(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many matrices were decomposed by reflections, call by call."""
    seen: list[int] = []
    qr = torch.linalg.qr

    def counted(y: Any, *more: Any) -> Any:
        if y.ndim == 3:
            seen.append(len(y))
        return qr(y, *more)

    monkeypatch.setattr(torch_lowrank.torch.linalg, "qr", counted)
    return seen


@pytest.mark.parametrize("known_columns", [0, 7])
@pytest.mark.parametrize("kinds", [["plain", "steep"], ["plain", "close", "steep"], ["zero", "plain", "dependent"], ["close"], ["zero", "zero"]])
def test_columns_are_orthonormal_whatever_came(kinds: list[str], known_columns: int) -> None:
    m, c = 60, 9
    known, y, q = _apart(kinds, m, c, known_columns)
    both = torch.cat((known, q), 2)
    assert torch.allclose(both.mT @ both, torch.eye(both.shape[2], dtype=y.dtype).expand(len(y), -1, -1), atol=1e-13)
    left = y - both @ (both.mT @ y)
    assert bool((torch.linalg.vector_norm(left, dim=1) <= 1e-13 * torch.linalg.matrix_norm(y)[:, None]).all())


def test_only_those_that_need_it_are_reflected(reflected: list[int]) -> None:
    _apart(["plain", "steep", "plain"], 40, 6, 0)
    assert reflected == []
    _apart(["plain", "close", "plain", "dependent"], 40, 6, 0)
    assert reflected and set(reflected) == {2}


def test_a_matrix_for_a_product_spans_the_same(reflected: list[int]) -> None:
    y = torch.stack([_columns(kind, 30, 5, i) for i, kind in enumerate(["plain", "close", "steep"])])
    q = torch_lowrank._spanning(y)
    assert reflected == [1]
    assert float(torch.linalg.cond(q).max()) < 1.01
    unit = y / torch.linalg.vector_norm(y, dim=1, keepdim=True)
    assert float((unit - q @ torch.linalg.lstsq(q, unit).solution).abs().max()) < 1e-9
