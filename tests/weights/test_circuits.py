"""Products of weights through their factors: the spectrum of the dense product, to 1e-10 of its largest value."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_fast.weights.circuits import head_circuits, lora_svdvals
from tests.problems import orthogonal, with_singular_values

RELATIVE = 1e-10  # the acceptance bar of products through factors


def dense(product: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.svd(product, compute_uv=False))


def assert_same(found: np.ndarray, product: np.ndarray) -> None:
    """All values of the product; those left out are 0 in it."""
    expected = dense(product)
    padded = np.pad(found, [(0, 0)] * (found.ndim - 1) + [(0, expected.shape[-1] - found.shape[-1])])
    np.testing.assert_allclose(padded, expected, rtol=0, atol=RELATIVE * expected.max(initial=0.0))
    assert (np.diff(found, axis=-1) <= 0).all()


@pytest.mark.parametrize(("m", "n", "r"), [(64, 48, 4), (48, 64, 8), (200, 30, 1), (8, 8, 8), (5, 40, 16), (40, 5, 16), (3, 4, 9), (1, 7, 2), (1, 1, 1)])
def test_lora_equals_the_dense_product(m: int, n: int, r: int) -> None:
    rng = np.random.default_rng(m * n + r)
    b, a = rng.standard_normal((m, r)), rng.standard_normal((r, n))
    s = lora_svdvals(b, a)
    assert s.shape == (min(m, n, r),) and s.dtype == np.float64
    assert_same(s, b @ a)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(-140, 140))
def test_lora_of_any_shape_and_scale(m: int, n: int, r: int, seed: int, exponent: int) -> None:
    rng = np.random.default_rng(seed)
    b, a = rng.standard_normal((m, r)), rng.standard_normal((r, n))
    plain = lora_svdvals(b, a)
    assert_same(plain, b @ a)
    np.testing.assert_array_equal(lora_svdvals(np.ldexp(b, exponent), np.ldexp(a, exponent)), np.ldexp(plain, 2 * exponent))


@pytest.mark.parametrize("smallest", [1e-3, 1e-8, 1e-13, 0.0])
def test_nearly_rank_deficient_factors(smallest: float) -> None:
    graded = np.array([3.0, 1.0, 0.1, 1e-5, smallest])
    b, a = with_singular_values(graded, 60, 5, 1), with_singular_values(graded[::-1], 5, 40, 5)
    assert_same(lora_svdvals(b, a), b @ a)


def test_values_known_beforehand() -> None:
    """B = U D, A = Vᵀ with orthonormal columns: the values are those of D."""
    d = np.array([5.0, 1.0, 1e-3, 1e-9])
    b, a = orthogonal(50, 0)[:, :4] * d, orthogonal(30, 1)[:, :4].T
    np.testing.assert_allclose(lora_svdvals(b, a), d, rtol=0, atol=1e-14)


def test_against_higher_precision() -> None:
    """The promise in words: an error of c eps ||B|| ||A||, c about sqrt(m) + sqrt(n) + r, with 40 digits as the judge."""
    rng = np.random.default_rng(3)
    b = rng.standard_normal((12, 3)) * [1.0, 1e-4, 1e-9]
    a = rng.standard_normal((3, 9))
    with mpmath.workdps(40):
        product = mpmath.matrix(b.tolist()) * mpmath.matrix(a.tolist())
        exact = sorted((float(x) for x in mpmath.svd_r(product, compute_uv=False)), reverse=True)[:3]
    c = np.sqrt(12) + np.sqrt(9) + 3
    np.testing.assert_allclose(lora_svdvals(b, a), exact, rtol=0, atol=c * 2.0**-52 * np.linalg.norm(b, 2) * np.linalg.norm(a, 2))


def test_lora_scales() -> None:
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((20, 4)), rng.standard_normal((4, 10))
    plain = lora_svdvals(b, a)
    np.testing.assert_allclose(lora_svdvals(b, a, alpha=32), 8 * plain, rtol=1e-15)
    np.testing.assert_allclose(lora_svdvals(b, a, alpha=32, rank_stabilized=True), 16 * plain, rtol=1e-15)
    assert_same(lora_svdvals(b, a, alpha=-3.0), 0.75 * b @ a)


def test_lora_batches_and_bad_values_stay_apart() -> None:
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((3, 20, 4)), rng.standard_normal((4, 10))
    together = lora_svdvals(b, a)
    for i in range(3):
        np.testing.assert_array_equal(together[i], lora_svdvals(b[i], a))
    b[1, 2, 3] = np.nan
    b[2, 0, 0] = np.inf
    spoiled = lora_svdvals(b, a)
    np.testing.assert_array_equal(spoiled[0], together[0])
    assert np.isnan(spoiled[1:]).all()
    assert (lora_svdvals(np.zeros((5, 2)), np.ones((2, 5))) == 0).all()


def test_lora_torch_and_narrow_formats() -> None:
    b, a = torch.randn(20, 4, dtype=torch.bfloat16), torch.randn(4, 10, dtype=torch.float32)
    s = lora_svdvals(b, a)
    assert isinstance(s, torch.Tensor) and s.dtype == torch.float64
    assert_same(s.numpy(), b.double().numpy() @ a.double().numpy())


def test_lora_refuses() -> None:
    b, a = np.ones((5, 2)), np.ones((2, 3))
    with pytest.raises(ValueError, match=r"^b, a: got shapes \(5, 2\) and \(3, 2\)"):
        lora_svdvals(b, a.T)
    with pytest.raises(ValueError, match="^b: got shape"):
        lora_svdvals(np.ones(3), a)
    with pytest.raises(ValueError, match="^b, a: rank"):
        lora_svdvals(np.ones((5, 0)), np.ones((0, 3)))
    with pytest.raises(ValueError, match="^rank_stabilized"):
        lora_svdvals(b, a, rank_stabilized=True)
    with pytest.raises(ValueError, match="^alpha"):
        lora_svdvals(b, a, alpha=float("nan"))


def weights(d: int, d_head: int, heads: int, kv_heads: int, *, d_kv: int | None = None, d_v: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    d_kv, d_v = d_kv or d, d_v or d_head
    return {
        "w_q": rng.standard_normal((heads * d_head, d)), "w_k": rng.standard_normal((kv_heads * d_head, d_kv)),
        "w_v": rng.standard_normal((kv_heads * d_v, d_kv)), "w_o": rng.standard_normal((d, heads * d_v)),
    }  # fmt: skip


def check_heads(w: dict[str, np.ndarray], heads: int, kv_heads: int) -> None:
    """Against the products written out head by head, by slicing."""
    qk, ov = head_circuits(**w, n_heads=heads, n_kv_heads=kv_heads)
    d_head, d_v = w["w_q"].shape[0] // heads, w["w_v"].shape[0] // kv_heads
    assert len(qk) == len(ov) == heads
    for h in range(heads):
        g = h // (heads // kv_heads)
        q, k = w["w_q"][h * d_head : (h + 1) * d_head], w["w_k"][g * d_head : (g + 1) * d_head]
        v, o = w["w_v"][g * d_v : (g + 1) * d_v], w["w_o"][:, h * d_v : (h + 1) * d_v]
        assert_same(qk[h], q.T @ k)
        assert_same(ov[h], o @ v)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1), (1, 1)])
def test_heads_and_groups(heads: int, kv_heads: int) -> None:
    check_heads(weights(24, 5, heads, kv_heads), heads, kv_heads)


def test_heads_of_other_widths() -> None:
    check_heads(weights(24, 5, 4, 2, d_kv=17, d_v=3), 4, 2)  # cross attention, values narrower than keys
    check_heads(weights(6, 10, 2, 1), 2, 1)  # heads wider than the model
    qk, ov = head_circuits(**weights(6, 10, 2, 1), n_heads=2, n_kv_heads=1)
    assert qk.shape == ov.shape == (2, 6)


def test_heads_nearly_rank_deficient() -> None:
    w = weights(24, 5, 4, 2)
    for key in ("w_q", "w_k", "w_v"):
        w[key] = w[key] * np.tile([1.0, 1e-3, 1e-7, 1e-12, 0.0], len(w[key]) // 5)[:, None]
    check_heads(w, 4, 2)


def test_heads_of_torch() -> None:
    attention = torch.nn.MultiheadAttention(16, 4)
    q, k, v = attention.in_proj_weight.detach().chunk(3)
    qk, ov = head_circuits(q, k, v, attention.out_proj.weight, n_heads=4)
    assert isinstance(qk, torch.Tensor) and qk.shape == ov.shape == (4, 4)
    assert_same(qk[2].numpy(), (q[8:12].T.double() @ k[8:12].double()).numpy())


@pytest.mark.parametrize(
    ("change", "message"),
    [({"w_q": np.ones((19, 24))}, "^w_q: .* multiple of 4 heads"), ({"w_k": np.ones((6, 24))}, "^w_k: .* 3 per head; w_q has 5"),
     ({"w_o": np.ones((24, 8))}, "^w_o: .* 2 per head; w_v has 5"), ({"w_v": np.ones((10, 23))}, "^w_k, w_v: "),
     ({"n_kv_heads": 3}, "^n_heads, n_kv_heads: got 4 and 3"),
     ({"w_q": np.ones((2, 20, 24))}, "^w_q: .* two dimensions")],
)  # fmt: skip
def test_heads_refuse(change: dict[str, object], message: str) -> None:
    arguments = {**weights(24, 5, 4, 2), "n_heads": 4, "n_kv_heads": 2, **change}
    with pytest.raises(ValueError, match=message):
        head_circuits(**arguments)
