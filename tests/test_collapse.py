"""Neural collapse against exact simplices, a two-pass float64 reference, and the promise to leave the model alone."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from spectral_fast.collapse import NeuralCollapse, neural_collapse
from spectral_fast.findings import collapse_findings
from spectral_fast.metrics.collapse_moments import ClassMoments, between_rank_tolerance, cdnv, nc1, nc2, nc3, nearest_mean

F64 = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)


def simplex(n_classes: int, dim: int, seed: int = 0) -> F64:
    """(C, d) simplex equiangular tight frame of norm sqrt(1 - 1/C), randomly rotated."""
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, n_classes)))[0]
    rows: F64 = (np.eye(n_classes) - 1.0 / n_classes) @ q.T
    return rows


def linear(weight: F64, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias).double()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        if bias:
            layer.bias.zero_()
    return layer


def reference(h: F64, y: NDArray[np.int64], w: F64, logits: F64, n_classes: int, global_mean: str = "classes") -> dict[str, float]:
    """Every number by its definition, two passes, dense matrices."""
    n, d = h.shape
    shift = h.mean(axis=0)  # nothing depends on a shift; without it the reference itself would lose digits
    h = h - shift
    mu = np.stack([h[y == c].mean(axis=0) for c in range(n_classes)])
    mu_g = mu.mean(axis=0) if global_mean == "classes" else h.mean(axis=0)
    a = mu - mu_g
    s_w = sum(np.outer(x - mu[c], x - mu[c]) for x, c in zip(h, y, strict=True)) / n
    s_b = a.T @ a / n_classes
    var = np.array([np.mean(np.sum((h[y == c] - mu[c]) ** 2, axis=1)) for c in range(n_classes)])
    pairs = [(i, j) for i in range(n_classes) for j in range(n_classes) if i < j]
    norms = np.linalg.norm(a, axis=1)
    gram = a @ a.T
    etf = (np.eye(n_classes) - 1.0 / n_classes) / math.sqrt(n_classes - 1)
    nearest = np.argmin(((h[:, None, :] - mu[None]) ** 2).sum(axis=2), axis=1)
    w_norms = np.linalg.norm(w, axis=1)
    return {
        "nc1": float(np.trace(s_w @ np.linalg.pinv(s_b, rcond=1e-8, hermitian=True))) / n_classes,
        "cdnv": float(np.mean([(var[i] + var[j]) / (2 * np.sum((mu[i] - mu[j]) ** 2)) for i, j in pairs])),
        "nc2_norms": float(norms.std() / norms.mean()),
        "nc2_norms_classifier": float(w_norms.std() / w_norms.mean()),
        "nc2_angles": float(np.mean([abs(a[i] @ a[j] / norms[i] / norms[j] + 1 / (n_classes - 1)) for i, j in pairs])),
        "nc2_etf": float(np.linalg.norm(gram / np.linalg.norm(gram) - etf)),
        "nc3": float(np.linalg.norm(w / np.linalg.norm(w) - a / np.linalg.norm(a))),
        "nc4": float(np.mean(nearest != logits.argmax(axis=1))),
        "accuracy": float(np.mean(y == logits.argmax(axis=1))),
    }


def batches(h: F64, y: NDArray[np.int64], size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.from_numpy(h[i : i + size]), torch.from_numpy(y[i : i + size])) for i in range(0, len(y), size)]


@pytest.mark.parametrize(("n_classes", "dim"), [(2, 2), (3, 3), (10, 16), (10, 9 + 1), (40, 64)])
def test_exact_simplex_is_collapsed(n_classes: int, dim: int) -> None:
    m = simplex(n_classes, dim)
    y = np.tile(np.arange(n_classes), 5)
    result = neural_collapse(linear(3.0 * m), batches(m[y], y, 7))
    assert result.status == "ok" and result.etf_exists and result.nc1_rank == n_classes - 1
    assert result.nc1 == 0.0 and result.cdnv == 0.0 and result.nc4 == 0.0 and result.accuracy == 1.0
    # entries of size 1 known to a few eps, summed over C or C² of them
    bound = 10 * n_classes * EPS
    for name in ("nc2_norms", "nc2_norms_classifier", "nc2_angles", "nc2_etf", "nc3"):
        assert getattr(result, name) <= bound, name


@pytest.mark.parametrize("shift", [0.0, 1e4])
@pytest.mark.parametrize("global_mean", ["classes", "samples"])
@pytest.mark.parametrize(("n_classes", "dim", "size"), [(5, 12, 13), (10, 64, 256), (7, 4, 1)])
def test_two_pass_reference(n_classes: int, dim: int, size: int, global_mean: str, shift: float) -> None:
    rng = np.random.default_rng(n_classes)
    n = 40 * n_classes
    y = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)])  # uneven classes, all present
    h = rng.standard_normal((n, dim)) + 2.0 * rng.standard_normal((n_classes, dim))[y] + shift * rng.standard_normal(dim)
    model = linear(rng.standard_normal((n_classes, dim)))
    with torch.no_grad():
        model.bias.copy_(torch.from_numpy(rng.standard_normal(n_classes)))
        logits = model(torch.from_numpy(h)).numpy()
    result = neural_collapse(model, batches(h, y, size), global_mean=global_mean)
    expected = reference(h, y, model.weight.detach().numpy(), logits, n_classes, global_mean)
    for name, value in expected.items():
        assert getattr(result, name) == pytest.approx(value, rel=1e-10, abs=1e-13), name
    assert np.array_equal(result.class_counts, np.bincount(y, minlength=n_classes))


def test_nc1_conventions() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 4
    h = rng.standard_normal((60, 6)) + 3.0 * np.eye(4, 6)[y]
    model = linear(rng.standard_normal((4, 6)))
    assert neural_collapse(model, (h, y), per_class=False).nc1 == pytest.approx(4 * neural_collapse(model, (h, y)).nc1, rel=1e-14)


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 6), st.floats(-1e6, 1e6), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_merge_in_any_split(n: int, n_classes: int, dim: int, shift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n)
    x = rng.standard_normal((n, dim))
    h = x + shift
    moments = ClassMoments(n_classes, dim)
    edges = np.sort(rng.integers(0, n + 1, 3))
    for lo, hi in zip([0, *edges], [*edges, n], strict=True):
        moments.add(h[lo:hi], y[lo:hi])
    assert np.array_equal(moments.counts, np.bincount(y, minlength=n_classes))
    scatter = np.zeros((dim, dim))
    for c in np.unique(y):
        d = h[y == c] - h[y == c].mean(axis=0)
        scatter += d.T @ d
    # each deviation is known to eps |shift|, and multiplies deviations of size 1 in n terms
    tolerance = 50 * n * EPS * (1.0 + abs(shift))
    assert np.abs(moments.scatter - scatter).max() <= tolerance
    assert moments.spread.sum() == pytest.approx(np.trace(scatter), abs=dim * tolerance)


def test_rank_of_float32_features_without_full_rank() -> None:
    """Class means of true rank 2 stored in float32 with a large common part: the noise directions must not enter NC1."""
    rng = np.random.default_rng(1)
    plane = rng.standard_normal((2, 20))
    y = np.arange(600) % 6
    h = (100.0 + (rng.standard_normal((6, 2))[y] + 0.1 * rng.standard_normal((600, 2))) @ plane).astype(np.float32)
    model = linear(rng.standard_normal((6, 20))).float()
    result = neural_collapse(model, (h, y))
    assert result.nc1_rank == 2 and any("span 2 of 5" in note for note in result.notes)
    assert result.nc1_tolerance == pytest.approx(between_rank_tolerance(result.means, float(np.finfo(np.float32).eps)))


def test_absent_classes_and_no_etf() -> None:
    m = simplex(5, 8)
    y = np.tile([0, 1, 3], 6)
    result = neural_collapse(linear(m, bias=False), (m[y], y))
    # C is the number of classes that occur, in the count as in every formula
    assert result.n_classes == len(result.means) == 3 and result.class_counts.tolist() == [6, 6, 0, 6, 0] and result.nc1_rank == 2
    assert any("2 of 5 classes do not occur" in n for n in result.notes)
    assert max(result.nc2_angles, result.nc2_etf, result.nc3) <= 100 * EPS and result.nc4 == 0.0
    rng = np.random.default_rng(0)
    wide = neural_collapse(linear(rng.standard_normal((9, 3))), (rng.standard_normal((90, 3)), np.arange(90) % 9))
    assert not wide.etf_exists and any("C > d + 1" in n for n in wide.notes) and wide.nc1_rank == 3


def test_absent_classes_change_no_number() -> None:
    """A classifier with two more classes that never occur, and never win, is the classifier without them."""
    rng = np.random.default_rng(0)
    y = np.concatenate([np.arange(3), rng.integers(0, 3, 57)])
    h = rng.standard_normal((60, 6)) + 3.0 * np.eye(3, 6)[y]
    w = rng.standard_normal((3, 6))
    w -= w.mean(axis=0)  # rows of the classes that occur are centred among themselves
    less, more = linear(w), linear(np.vstack([w, np.zeros((2, 6))]))
    with torch.no_grad():
        more.bias[3:] = -1e6
    few, many = neural_collapse(less, (h, y)), neural_collapse(more, (h, y))
    for name in ("nc1", "nc1_rank", "cdnv", "nc2_norms", "nc2_norms_classifier", "nc2_angles", "nc2_etf", "nc3", "nc4", "accuracy", "n_classes"):
        assert getattr(many, name) == pytest.approx(getattr(few, name), rel=1e-12), name
    assert collapse_findings(many) == collapse_findings(few)


def test_named_layer_has_no_classifier() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(60, 6), torch.arange(60) % 3
    assert neural_collapse(net, (x, y)).layer == "2"
    inner = neural_collapse(net, (x, y), layer="0")
    assert inner.feature_dim == 6 and math.isnan(inner.nc3) and not math.isnan(inner.nc4)
    assert any("NC3" in n for n in inner.notes)
    with pytest.raises(ValueError, match="layer"):
        neural_collapse(net, (x, y), layer="nothing")


def test_second_pass_agrees_with_kept_features() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 3))
    loader = [(torch.randn(50, 40), torch.randint(0, 3, (50,))) for _ in range(4)]
    kept, again = neural_collapse(net, loader), neural_collapse(net, loader, max_memory=4000)
    assert any("kept in float32" in n for n in kept.notes) and any("second forward pass" in n for n in again.notes)
    assert kept.nc4 == again.nc4 and kept.nc1 == again.nc1
    assert neural_collapse(net, loader, max_memory=100).status == "skipped"


def test_positions_and_ignored_targets() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(x)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Tagger()
    x, y = torch.randn(20, 5, 6), torch.randint(0, 4, (20, 5))
    y[0, :3] = -100
    result = neural_collapse(model, [(x, y)])
    valid = y.flatten() != -100
    flat = neural_collapse(model, [(x.reshape(100, 6)[valid], y.flatten()[valid])])
    assert result.n_samples == 97
    for name in ("nc1", "nc2_etf", "nc3", "nc4", "accuracy"):
        assert getattr(result, name) == pytest.approx(getattr(flat, name), rel=1e-12)
    assert neural_collapse(model, [(x, y[:, 0])]).status == "skipped"


def test_binary_classifier_with_one_logit() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    h = np.where(y[:, None] == 1, 1.0, -1.0) * np.ones((40, 3)) + 0.01 * rng.standard_normal((40, 3))
    result = neural_collapse(linear(np.ones((1, 3))), [(torch.from_numpy(h), torch.from_numpy(y))])
    assert result.n_classes == 2 and result.accuracy == 1.0 and result.nc4 == 0.0 and math.isnan(result.nc3)


@pytest.mark.parametrize(
    ("targets", "reason"),
    [(torch.zeros(12, 3), "integer class targets"), (torch.zeros(12, dtype=torch.int64), "at least two classes")],
)
def test_skipped_with_reason(targets: torch.Tensor, reason: str) -> None:
    result = neural_collapse(nn.Linear(4, 3), [(torch.randn(12, 4), targets)])
    assert isinstance(result, NeuralCollapse) and result.status == "skipped" and reason in result.reason and math.isnan(result.nc1)


def test_no_classifier_is_skipped_and_bad_values_are_named() -> None:
    conv = nn.Sequential(nn.Conv1d(3, 5, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    y = torch.arange(12) % 5
    result = neural_collapse(conv, [(torch.randn(12, 3, 4), y)])
    assert result.status == "skipped" and "layer" in result.reason
    with pytest.raises(ValueError, match="target 7"):
        neural_collapse(nn.Linear(4, 3), [(torch.randn(8, 4), torch.full((8,), 7))])
    with pytest.raises(ValueError, match="global_mean"):
        neural_collapse(nn.Linear(4, 3), [(torch.randn(12, 4), y)], global_mean="median")
    x = torch.randn(12, 4)
    x[3, 1] = math.nan
    failed = neural_collapse(nn.Linear(4, 5), [(x, y)])
    assert failed.status == "failed" and "NaN or Inf in batch 0" in failed.reason
    assert neural_collapse(nn.Linear(4, 5), [(torch.ones(12, 4), y)]).status == "unresolved"


def test_interrupt_returns_what_is_done() -> None:
    torch.manual_seed(0)
    loader = [(torch.randn(30, 4), torch.arange(30) % 3) for _ in range(5)]
    model = nn.Linear(4, 3)

    def stop(done: int, total: int, what: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    result = neural_collapse(model, loader, progress=stop)
    whole = neural_collapse(model, loader[:2])
    assert result.status == "incomplete" and "2 of 5 batches" in result.reason and result.n_samples == 60
    assert result.nc1 == whole.nc1 and result.nc4 == whole.nc4


@pytest.mark.parametrize("breaks", [False, True])
def test_leaves_no_trace(breaks: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    net[2].eval()
    net(torch.randn(9, 4)).sum().backward()
    before = copy.deepcopy(net.state_dict())
    grads = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    flags = [m.training for m in net.modules()]
    rng = torch.get_rng_state()
    y = torch.arange(30) % 3

    def fail(done: int, total: int, what: str) -> None:
        raise RuntimeError("stop")

    if breaks:
        with pytest.raises(RuntimeError, match="stop"):
            neural_collapse(net, (np.ones((30, 4)), y.numpy()), progress=fail)
    else:
        neural_collapse(net, (np.random.default_rng(0).standard_normal((30, 4)), y.numpy()))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(g, p.grad) for g, p in zip(grads, net.parameters(), strict=True) if p.grad is not None)
    assert [m.training for m in net.modules()] == flags and torch.equal(torch.get_rng_state(), rng)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_formulas_on_plain_arrays() -> None:
    m = simplex(4, 6)
    assert nc3(m, -m) == pytest.approx(2.0) and math.isnan(nc3(m, 0 * m))
    assert math.isnan(nc2(0 * m).etf) and nc1(np.eye(6), 1, 0 * m, 1e-12).rank == 0
    assert cdnv(np.array([1.0, 1.0]), np.array([1, 1]), np.array([[0.0], [2.0]])) == pytest.approx(0.25)
    assert cdnv(np.ones(2), np.ones(2, dtype=np.int64), np.zeros((2, 3))) == math.inf
    assert list(nearest_mean(m + 1e6, np.full(6, 1e6), m)) == [0, 1, 2, 3]


@pytest.mark.parametrize("n_classes", [2, 50, 1500])
def test_cdnv_of_close_and_distant_means(n_classes: int) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((n_classes, 3))
    a[: n_classes // 2] = 5.0 + 1e-5 * a[: n_classes // 2]  # products alone would leave nothing of these distances
    a -= a.mean(axis=0)
    counts = rng.integers(1, 9, n_classes)
    spread = rng.random(n_classes) * counts
    total, exact = np.longdouble(0), a.astype(np.longdouble)
    var = spread.astype(np.longdouble) / counts
    for c in range(n_classes - 1):
        total += ((var[c + 1 :] + var[c]) / (2 * ((exact[c + 1 :] - exact[c]) ** 2).sum(axis=1))).sum()
    assert cdnv(spread, counts, a) == pytest.approx(float(total / (n_classes * (n_classes - 1) / 2)), rel=1e-10)
    a[-1] = a[0]
    assert cdnv(spread, counts, a) == math.inf


class _CausalLM(torch.nn.Module):
    """Predicts token t + 1 from token t, with the shift inside, as causal language models on a hub do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(6, 8)
        self.body = torch.nn.Linear(8, 8)
        self.head = torch.nn.Linear(8, 6)

    def forward(self, input_ids, labels=None):
        logits = self.head(torch.tanh(self.body(self.embed(input_ids))))
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"logits": logits, "loss": loss}


def test_causal_language_models_are_shifted():
    torch.manual_seed(0)
    model = _CausalLM()
    ids = (torch.arange(12)[None] + torch.arange(30)[:, None]) % 6  # the next token is always this one plus one
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        model(ids, ids)["loss"].backward()
        optimizer.step()
    result = neural_collapse(model, [{"input_ids": ids, "labels": ids}])
    assert (result.accuracy, result.n_samples) == (1.0, 30 * 11)
    aligned = neural_collapse(model, [(ids[:, :-1], ids[:, 1:])])
    assert result.nc1 == pytest.approx(aligned.nc1, abs=1e-12)


def test_half_precision_models_are_run_in_float32():
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10)).bfloat16()
    x, y = torch.randn(300, 20).bfloat16(), torch.arange(300) % 10
    half = neural_collapse(model, (x, y))
    full = neural_collapse(copy.deepcopy(model).float(), (x.float(), y))
    assert half.nc1 == pytest.approx(full.nc1, rel=1e-12) and half.nc1_rank == 9
    assert any("float32 on a copy" in n for n in half.notes)
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
