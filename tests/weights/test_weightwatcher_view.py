"""The weightwatcher view: its formulas by hand, its limits and slips; against weightwatcher itself: benchmarks/peers/compare_weightwatcher.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

import spectral_fast as sf
from spectral_fast.weights.weightwatcher_view import COLUMNS

EPS = 2.0**-52


def view(source: Any, **options: Any) -> pd.DataFrame:
    return sf.scan(source, slices=True, **options).to_pandas(view="weightwatcher")


def row(source: Any, longname: str) -> pd.Series:
    return view(source).set_index("longname", drop=False).loc[longname]


def with_values(rng: np.random.Generator, m: int, n: int, s: NDArray[Any]) -> NDArray[Any]:
    u, v = (np.linalg.qr(rng.standard_normal((k, len(s))))[0] for k in (m, n))
    return (u * s) @ v.T


def test_dense_by_hand() -> None:
    """12 known values: every column from its formula."""
    s = np.array([8.0, 4.0, 3.0, 2.0, 1.5, 1.0, 0.8, 0.6, 0.5, 0.4, 1e-4, 0.0])
    r = row({"head.weight": with_values(np.random.default_rng(0), 15, 12, s)}, "head")
    e = np.sort(s**2)
    p = e / e.sum() + 1e-10
    assert (r["layer_id"], r["name"], r["layer_type"], r["has_esd"]) == (1, "head", "dense", True)
    assert (r["N"], r["M"], r["Q"], r["rf"], r["num_evals"]) == (15, 12, 1.25, 1, 12)
    assert (r["matrix_rank"], r["rank_loss"], r["weak_rank_loss"]) == (11, 1, 2)
    assert r["norm"] == pytest.approx(e.sum()) and r["log_norm"] == pytest.approx(math.log10(e.sum()))
    assert r["lambda_max"] == r["spectral_norm"] == pytest.approx(64.0) and r["log_spectral_norm"] == pytest.approx(math.log10(64.0))
    assert r["stable_rank"] == pytest.approx(e.sum() / 64.0)
    assert r["sv_max"] == pytest.approx(8.0) and r["sv_min"] < 1e-14
    assert r["entropy"] == pytest.approx(-(p * np.log(p)).sum() / math.log(11 + 1e-10))
    # 10 values above 1e-5: the corrected estimate over the starts with at least 8 values, chosen by D
    x = np.sort(s[:10] ** 2)
    alphas, D = [], []
    for i in range(3):
        alphas.append(1 + (9 - i) / np.log(x[i:] / x[i]).sum())
        D.append(np.abs(1 - (x[i:] / x[i]) ** (1 - alphas[i]) - np.arange(10 - i) / (10 - i)).max())
    i = int(np.argmin(D))
    assert (r["alpha"], r["D"], r["xmin"], r["xmax"]) == pytest.approx((alphas[i], D[i], x[i], 64.0))
    assert r["sigma"] == pytest.approx((alphas[i] - 1) / math.sqrt(10 - i)) and r["num_pl_spikes"] == 10 - i
    assert r["alpha_weighted"] == pytest.approx(alphas[i] * math.log10(64.0))
    assert r["log_alpha_norm"] == pytest.approx(math.log10((e ** alphas[i]).sum()))
    assert (r["status"], r["warning"]) == ("success", "over-trained")


def test_twenty_values_and_more_take_every_start() -> None:
    s = np.sqrt(np.arange(1.0, 25.0) ** 2)[::-1]
    r = row({"a.weight": np.diag(np.concatenate([s, np.full(6, 1e-3)]))}, "a")  # 1e-6 is not above 1e-5
    x = np.sort(s**2)
    best = (math.inf, 0, 0.0)
    for i in range(23):
        alpha = 1 + (24 - i) / np.log(x[i:] / x[i]).sum()
        D = np.abs(1 - (x[i:] / x[i]) ** (1 - alpha) - np.arange(24 - i) / (24 - i)).max()
        best = min(best, (D, i, alpha))
    D, i, alpha = best
    assert (r["D"], r["xmin"], r["alpha"], r["num_pl_spikes"]) == pytest.approx((D, x[i], alpha, 24 - i))
    assert r["sigma"] == pytest.approx((alpha - 1) / math.sqrt(24 - i))


def test_alpha_depends_on_the_units() -> None:
    w = np.random.default_rng(3).standard_normal((60, 50))
    tail = row({"a.weight": w}, "a")
    assert row({"a.weight": 2.0**-4 * w}, "a")["alpha"] == tail["alpha"]
    cut = row({"a.weight": 2.0**-12 * w}, "a")
    assert cut["num_evals"] == 50 and cut["num_pl_spikes"] < tail["num_pl_spikes"] and cut["alpha"] > tail["alpha"] + 0.1


@pytest.mark.parametrize(
    ("shape", "N", "M"),
    [
        ((16, 6, 3, 3), 16, 6),
        ((6, 16, 3, 3), 16, 6),  # an odd number of slices: exchanged
        ((6, 16, 2, 2), 6, 16),  # an even number: exchanged back
        ((6, 4, 9, 9), 6, 4),
        ((3, 4, 9, 9), 3, 4),  # the kernel's axes are longer: taken for channels first, not exchanged
        ((20, 9, 1, 1), 20, 9),
    ],
)
def test_convolution(shape: tuple[int, ...], N: int, M: int) -> None:
    w = np.random.default_rng(1).standard_normal(shape)
    r = row({"conv.weight": w}, "conv")
    slices = np.array([np.linalg.svd(w[:, :, i, j], compute_uv=False) for i in range(shape[2]) for j in range(shape[3])])
    e = np.sort(slices.ravel() ** 2) / 2
    assert (r["layer_type"], r["N"], r["M"], r["Q"], r["rf"]) == ("conv2d", N, M, N / M, shape[2] * shape[3])
    assert (r["num_evals"], r["matrix_rank"], r["rank_loss"]) == (e.size, e.size, 0)
    assert r["lambda_max"] == pytest.approx(e[-1]) and r["norm"] == pytest.approx(e.sum()) and r["xmax"] == pytest.approx(e[-1])
    assert r["sv_max"] == pytest.approx(slices.max() / math.sqrt(2)) and r["sv_min"] == pytest.approx(slices.min(axis=1).max() / math.sqrt(2))
    fit = sf.power_law(e, threshold=1e-5)
    if e.size >= 20:
        assert (r["alpha"], r["xmin"], r["D"]) == pytest.approx((fit.alpha, fit.xmin, fit.D))


def test_slices_are_kept_where_asked_for() -> None:
    w = np.random.default_rng(2).standard_normal((5, 4, 3))
    state = {"conv1.weight": w, "pointwise.conv.weight": w[..., :1], "rnn.weight_hh_l0": np.random.default_rng(3).standard_normal((20, 5))}
    spectra = sf.scan(state, slices=True)
    assert spectra.slices["conv1.weight"].shape == (3, 4)
    np.testing.assert_allclose(spectra.slices["conv1.weight"], [np.linalg.svd(w[..., i], compute_uv=False) for i in range(3)], atol=1e-14)
    whole = np.linalg.svd(state["rnn.weight_hh_l0"], compute_uv=False)
    np.testing.assert_allclose(spectra.slices["rnn.weight_hh_l0"], [whole], atol=1e-14)
    assert set(spectra.slices) == {"conv1.weight", "rnn.weight_hh_l0"}
    assert sf.scan(state).slices == {}
    flax = sf.scan({"Conv_0.kernel": np.moveaxis(w, 2, 0).swapaxes(1, 2)}, slices=True).slices["Conv_0.kernel"]
    np.testing.assert_allclose(flax, spectra.slices["conv1.weight"], atol=1e-14)


def test_fused_tensors_are_one_row() -> None:
    w = np.random.default_rng(4).standard_normal((12, 36))
    state = {"h.0.attn.c_attn.weight": w, "h.0.attn.c_proj.weight": np.eye(12)}
    assert len(sf.scan(state)) == 4
    r = row(state, "h.0.attn.c_attn")
    assert (r["layer_id"], r["num_evals"], r["layer_type"]) == (1, 12, "dense")
    assert r["norm"] == pytest.approx((w**2).sum()) and r["sv_max"] == pytest.approx(np.linalg.norm(w, 2))
    with pytest.raises(ValueError, match="first: h.0.attn.c_attn.weight"):
        sf.scan(state).to_pandas(view="weightwatcher")


def test_missing_slices_are_an_error_that_says_what_to_do() -> None:
    spectra = sf.scan({"conv.weight": np.ones((8, 4, 3, 3)), "a.weight": np.eye(9)})
    with pytest.raises(ValueError, match=r"1 tensors \(first: conv.weight\).*scan\(..., slices=True\)"):
        spectra.to_pandas(view="weightwatcher")
    with pytest.raises(ValueError, match="view: got 'ww'; known: None, 'weightwatcher'"):
        spectra.to_pandas(view="ww")
    assert "conv.weight" in set(spectra.to_pandas()["name"])


def test_what_gets_a_row_and_its_number() -> None:
    ones = np.ones
    state = {
        "a.weight": np.eye(8),
        "a.bias": ones(8),
        "norm.weight": ones(8),  # counted, no row
        "too_small.weight": np.eye(7),
        "small_conv.weight": ones((1, 1, 3, 3)),  # first axis 1
        "b.weight": np.eye(9),
        "lstm.weight_ih_l0": ones((40, 10)),
        "stack.weight": ones((9, 12, 10)),
        "experts.weight": np.random.default_rng(0).standard_normal((2, 3, 9, 10)),  # matrices, not a kernel: absent
        "long.weight": ones((50001, 8)),
        "c.weight": np.eye(10),
    }
    state["again.weight"] = state["b.weight"]
    table = view(state)
    assert list(table.columns) == list(COLUMNS)
    assert list(zip(table["layer_id"], table["name"], strict=True)) == [(1, "a"), (5, "b"), (9, "c"), (10, "again")]
    assert list(view(state, layers=["b.*", "c.*"])["layer_id"]) == [5, 9, 10]
    assert len(view({"weights": np.eye(9)})) == 0 and list(view({"weights": np.eye(9)}).columns) == list(COLUMNS)


def test_modules_are_numbered_by_their_place() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = torch.nn.Linear(12, 9)
            self.conv = torch.nn.Conv2d(4, 8, 3)
            self.emb = torch.nn.Embedding(20, 10)
            self.norm = torch.nn.LayerNorm(9)
            self.conv1 = torch.nn.Conv1d(16, 32, 9)
            self.lstm = torch.nn.LSTM(10, 20)
            self.tied = torch.nn.Linear(10, 20)
            self.tied.weight = self.emb.weight  # type: ignore[assignment]

    table = view(torch.nn.Sequential(Block(), torch.nn.ConvTranspose2d(8, 8, 3)))
    found = list(zip(table["layer_id"], table["name"], table["longname"], table["layer_type"], strict=True))
    assert found == [
        (2, "lin", "0.lin", "dense"),
        (3, "conv", "0.conv", "conv2d"),
        (4, "emb", "0.emb", "embedding"),
        (8, "tied", "0.tied", "dense"),
    ]
    alone = view(torch.nn.Linear(12, 9))
    assert list(alone[["layer_id", "name", "longname"]].iloc[0]) == [0, "Linear", "Linear"]


def test_files_are_seen_like_state_dicts(tmp_path: Any) -> None:
    state = {"a.weight": torch.randn(12, 9), "a.bias": torch.randn(12), "conv.weight": torch.randn(8, 4, 3, 3)}
    torch.save(state, tmp_path / "x.pt")
    pd.testing.assert_frame_equal(view(tmp_path / "x.pt"), view(state))


def test_zero_short_and_equal_values() -> None:
    state = {
        "zero.weight": np.zeros((10, 8)),
        "one.weight": np.diag([3.0, *np.zeros(9)]),
        "equal.weight": 2.0 * np.eye(12),
        "identity.weight": np.eye(30),
        "five.weight": np.diag([5.0, 4.0, 3.0, 2.0, 1.0, *np.zeros(5)]),
    }
    table = view(state).set_index("name")
    failed = {"alpha": -1, "D": -1, "sigma": -1, "xmin": -1, "num_pl_spikes": -1, "status": "failed", "warning": "over-trained"}
    for name in ("zero", "one"):
        assert {key: table.loc[name, key] for key in failed} == failed
        assert math.isnan(table.loc[name, "xmax"])
    zero = table.loc["zero"]
    assert (zero["norm"], zero["log_norm"], zero["alpha_weighted"], zero["log_alpha_norm"]) == (0, -math.inf, math.inf, math.inf)
    assert (zero["matrix_rank"], zero["rank_loss"], zero["weak_rank_loss"]) == (0, 8, 8) and math.isnan(zero["stable_rank"])
    # rank 1: the 1e-10 added to p and to the rank is all there is, 9 x 1e-10 x 23 / 1e-10
    assert table.loc["one", "entropy"] == pytest.approx((9 * math.log(1e10) - 1), rel=1e-3)
    equal = table.loc["equal"]
    assert (equal["alpha"], equal["D"], equal["num_pl_spikes"], equal["sigma"]) == (0.0, 1.0, 12, pytest.approx(-1 / math.sqrt(12)))
    identity = table.loc["identity"]
    assert (identity["alpha"], identity["D"], identity["num_pl_spikes"]) == (math.inf, 0.5, 30)
    five = table.loc["five"]  # fewer than 8: all of them
    x = np.array([1.0, 4.0, 9.0, 16.0, 25.0])
    assert (five["alpha"], five["num_pl_spikes"], five["xmin"]) == pytest.approx((1 + 4 / np.log(x).sum(), 5, 1.0))
    assert five["sigma"] == pytest.approx(-1 / math.sqrt(5))


def test_not_finite_is_a_row_with_its_reason() -> None:
    w, conv = np.eye(9), np.ones((8, 4, 3, 3))
    w[1, 2], conv[0, 0, 1, 1] = np.nan, np.inf
    table = view({"a.weight": w, "conv.weight": conv, "b.weight": np.eye(9)}).set_index("name")
    for name in ("a", "conv"):
        r = table.loc[name]
        assert (r["status"], r["has_esd"], r["matrix_rank"], r["num_pl_spikes"]) == ("failed", False, -1, -1)
        assert math.isnan(r["alpha"]) and math.isnan(r["norm"]) and "not finite" in r["warning"] and r["Q"] >= 1
    assert table.loc["b", "status"] == "success"
