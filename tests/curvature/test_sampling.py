from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from problems import Counting, DictLoader, dense_hessian, digits_like, mlp, symmetric, train
from torch.nn import functional as F

from spectral_fast.curvature import GGN, Hessian
from spectral_fast.curvature.sampling import jackknife, random_pieces, sampling_errors
from spectral_fast.probing.batches import Batches

X, Y = (torch.from_numpy(a) for a in digits_like(240, 4, 3, seed=1))
MODEL = train(mlp((4, 4, 3)), X, Y, steps=40)
RAGGED = (30, 45, 20, 60, 35, 50)


class Parts:
    """sum_b w_b A_b with its batches in the open."""

    def __init__(self, weights, matrices):
        self.weights, self.matrices = weights, matrices
        self.shape = matrices[0].shape

    def __matmul__(self, v):
        return sum(w * (a @ v) for w, a in zip(self.weights, self.matrices, strict=True))

    def batch_products(self, v):
        return ((w, a @ v) for w, a in zip(self.weights, self.matrices, strict=True))


@functools.cache
def dense_parts(sizes):
    matrices = [dense_hessian(MODEL, lambda z, t=t: F.cross_entropy(z, t), x) for x, t in zip(X.split(sizes), Y.split(sizes), strict=True)]
    return Parts(np.array(sizes) / sum(sizes), matrices)


def test_jackknife_of_a_mean_is_its_standard_error():
    """Equal weights: the textbook s/sqrt(g). Unequal: unbiased, checked over many draws of means of groups."""
    x = np.random.default_rng(0).standard_normal((12, 3))
    w = np.full(12, 1 / 12)
    without = (x.mean(0) - w[:, None] * x) / (1 - w[:, None])
    assert jackknife(x.mean(0), without, w) == pytest.approx(x.std(0, ddof=1) / np.sqrt(12), rel=1e-12)
    assert np.isnan(jackknife(x[0], x[:1], np.ones(1))).all()
    sizes = np.array([5, 40, 10, 25, 20])
    rng, w = np.random.default_rng(1), sizes / 100
    groups = rng.standard_normal((5, 20_000)) / np.sqrt(sizes)[:, None]
    mean = w @ groups
    squared = jackknife(mean, (mean - w[:, None] * groups) / (1 - w[:, None]), w) ** 2
    assert squared.mean() == pytest.approx(1 / 100, rel=0.02)  # its own error: sqrt(2/4/20000) = 0.5 %


def test_batches_of_an_operator_are_those_of_the_dense_hessians():
    parts = dense_parts(RAGGED)
    vectors = np.linalg.eigh(parts @ np.eye(parts.shape[0]))[1][:, ::-1][:, :3]
    want = sampling_errors(parts, vectors)
    op = Hessian(MODEL, list(zip(X.split(RAGGED), Y.split(RAGGED), strict=True)))
    before = op @ np.ones(op.shape[0])
    got = sampling_errors(op, vectors)
    assert got.groups == want.groups == 6 and not got.pieces and got.products == 4
    assert got.effective_groups == pytest.approx(1 / np.sum(parts.weights**2))
    assert np.allclose(got.values, want.values, rtol=1e-10) and np.allclose(got.stderr, want.stderr, rtol=1e-8)
    # by hand: eigenvalues without each batch, in the space of the vectors
    without = [
        np.linalg.eigvalsh(vectors.T @ (parts @ vectors - w * (a @ vectors)) / (1 - w))[::-1] for w, a in zip(parts.weights, parts.matrices, strict=True)
    ]
    assert np.allclose(want.stderr, jackknife(want.values, np.array(without), parts.weights), rtol=1e-10)
    assert np.array_equal(op @ np.ones(op.shape[0]), before)  # the operator is what it was
    # columns in any order, sign or length: each keeps its own
    mixed = sampling_errors(op, vectors[:, [2, 0, 1]] * [-2.0, 1.0, 3.0])
    assert np.allclose(mixed.values, got.values[[2, 0, 1]], rtol=1e-9) and np.allclose(mixed.stderr, got.stderr[[2, 0, 1]], rtol=1e-7)


@pytest.fixture(scope="module")
def pool():
    """Hessians of single samples of a large data set at fixed parameters: any data set drawn from it has their mean."""
    x, y = (torch.from_numpy(a) for a in digits_like(4000, 4, 3, seed=1))
    names = [name for name, _ in MODEL.named_parameters()]
    shapes = [p.shape for p in MODEL.parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in MODEL.parameters()])

    def loss(v, sample, target):
        parts = torch.split(v, [s.numel() for s in shapes])
        z = torch.func.functional_call(MODEL, {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}, (sample[None],))
        return F.cross_entropy(z, target[None])

    return torch.func.vmap(torch.func.hessian(loss), (None, 0, 0), chunk_size=500)(flat, x, y).numpy()


@pytest.mark.parametrize("sizes", [(40,) * 10, (20, 80, 40, 60, 30, 70, 50, 50)])
def test_error_bars_are_the_spread_over_resampled_data(pool, sizes):
    rng, n, top = np.random.default_rng(0), sum(sizes), 4
    values, squared, covered = [], [], np.zeros(top)
    results = []
    for _ in range(300):
        draws = np.split(pool[rng.integers(0, len(pool), n)], np.cumsum(sizes)[:-1])
        op = Parts(np.array(sizes) / n, [part.mean(0) for part in draws])
        evals, vectors = np.linalg.eigh(op @ np.eye(op.shape[0]))
        values.append(evals[::-1][:top])
        results.append(sampling_errors(op, vectors[:, ::-1][:, :top]))
        squared.append(results[-1].stderr ** 2)
    truth = np.std(values, axis=0, ddof=1)
    # the spread of 300 is known to 4 %; the jackknife leans upwards, by what is of second order
    ratio = np.sqrt(np.mean(squared, axis=0)) / truth
    assert (ratio > 0.85).all() and (ratio < 1.25).all(), ratio
    for i, centre in enumerate(np.mean(values, axis=0)):
        covered[i] = sum(lo <= centre <= hi for lo, hi in (r.interval(i) for r in results))
    assert (covered >= 0.9 * 300).all(), covered
    widths = [np.subtract(*r.interval(0)[::-1]) for r in results]
    assert np.median(widths) < 2 * 2.6 * truth[0]  # t(0.975, 5) and less


@pytest.mark.parametrize("loader", ["one batch", "unequal", "dict"])
def test_few_batches_are_cut_at_random(loader):
    """Sorted by class: pieces of neighbours would differ far more than samples do."""
    order = torch.argsort(Y, stable=True)
    x, y = X[order], Y[order]
    given = {
        "one batch": [(x, y)],
        "unequal": [(x[:200], y[:200]), (x[200:220], y[200:220]), (x[220:230], y[220:230]), (x[230:235], y[230:235]), (x[235:], y[235:])],
        "dict": DictLoader(x, y, (120, 120)),
    }[loader]
    op = Hessian(MODEL, given) if loader != "dict" else Hessian(_Named(), given)
    vectors = np.linalg.eigh(op @ np.eye(op.shape[0]))[1][:, ::-1][:, :2]
    found = [sampling_errors(op, vectors, seed=s) for s in range(6)]
    assert all(r.pieces and r.groups == 16 and r.effective_groups == pytest.approx(16) for r in found)
    assert not np.allclose(found[0].stderr, found[1].stderr) and np.array_equal(found[0].stderr, sampling_errors(op, vectors, seed=0).stderr)
    # every sample a group of its own: the first-order error without any choice of pieces
    single = dense_parts((1,) * 240)
    quotients = np.array([np.diag(vectors.T @ a @ vectors) for a in single.matrices])
    want = quotients.std(0, ddof=1) / np.sqrt(240)
    got = np.sqrt(np.mean([r.stderr**2 for r in found], axis=0))
    # 6 times 15 degrees of freedom and tails of kurtosis 7 to 12: 7 % to one standard deviation
    assert np.allclose(got, want, rtol=0.25)


class _Named(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = MODEL

    def forward(self, input):
        return self.net(input)


def test_pieces_hold_every_sample_once():
    x = torch.arange(23.0)[:, None]
    batches = list(Batches([({"x": x[:20], "n": torch.tensor(3.0)}, x[:20, 0].clone()), ({"x": x[20:], "n": torch.tensor(3.0)}, x[20:, 0].clone())]))
    pieces = random_pieces(batches, 8)
    assert [sum(part.size for part in piece) for piece in pieces] == [3] * 7 + [2]
    parts = [part for piece in pieces for part in piece]
    assert sorted(float(v) for part in parts for v in part.inputs["x"][:, 0]) == list(range(23))
    assert all(torch.equal(part.inputs["x"][:, 0], part.targets) and float(part.inputs["n"]) == 3.0 for part in parts)
    assert any(len(piece) == 2 for piece in pieces) and any(float(piece[0].targets.max() - piece[0].targets.min()) > 4 for piece in pieces)
    assert len(random_pieces(batches, 100)) == 23


def test_ignored_targets_and_the_gauss_newton_matrix():
    y = Y.clone()
    y[40:80] = -100  # two batches of no valid target
    op = GGN(MODEL, list(zip(X.split(20), y.split(20), strict=True)))
    vectors = np.linalg.eigh(op @ np.eye(op.shape[0]))[1][:, ::-1][:, :2]
    r = sampling_errors(op, vectors)
    assert r.groups == 10 and r.effective_groups == pytest.approx(10)
    assert np.allclose(r.values, np.linalg.eigvalsh(op @ np.eye(op.shape[0]))[::-1][:2], rtol=1e-9)


def test_a_single_sample_has_no_error_bar():
    op = Hessian(MODEL, [(X[:1], Y[:1])])
    r = sampling_errors(op, np.eye(op.shape[0])[:, :1])
    assert np.isnan(r.stderr).all() and "one sample" in r.reason and r.interval(0) == (-np.inf, np.inf)


def test_bad_arguments():
    a = symmetric(np.arange(1.0, 7.0))
    parts = Parts(np.full(6, 1 / 6), [a] * 6)
    for vectors in (np.ones(6), np.ones((5, 1)), np.ones((6, 2)), np.full((6, 1), np.nan), np.zeros((6, 0))):
        with pytest.raises(ValueError, match="vectors"):
            sampling_errors(parts, vectors)
    with pytest.raises(TypeError, match="batch_products"):
        sampling_errors(Counting(a), np.eye(6)[:, :1])
    with pytest.raises(ArithmeticError, match="NaN"):
        sampling_errors(Parts(parts.weights, [*[a] * 5, a * np.nan]), np.eye(6)[:, :1])
    wrong = Parts(parts.weights, [a] * 6)
    wrong.batch_products = lambda v: ((1 / 6, 2 * a @ v) for _ in range(6))
    with pytest.raises(ArithmeticError, match="not the whole"):
        sampling_errors(wrong, np.eye(6)[:, :1])
