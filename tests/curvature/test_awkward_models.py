"""Layers, wrappers and loaders that trip other tools: the right answer against a dense one in float64, what was done is named, nothing changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import digits_like, mlp
from tolerances import tolerance
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

from spectral_fast.curvature import GGN, Hessian
from spectral_fast.probing import keep_rng

X, Y = (torch.from_numpy(a) for a in digits_like(21, 6, 3))
SEQUENCES = torch.from_numpy(np.random.default_rng(2).standard_normal((6, 5, 4)))
MATH = "computed by the math kernel: the fused ones have no second derivative"


def fingerprint(model):
    bits = lambda t: None if t is None else (id(t), bytes(t.detach().contiguous().reshape(-1).view(torch.uint8).numpy()))  # noqa: E731
    return (
        [(n, bits(p), p.requires_grad, bits(p.grad)) for n, p in model.named_parameters()],
        [bits(b) for m in model.modules() for b in m._buffers.values()],
        [m.training for m in model.modules()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        torch.get_rng_state().numpy().tobytes(),
        (torch.backends.mha.get_fastpath_enabled(), torch.get_float32_matmul_precision(), torch.is_grad_enabled()),
    )


def unchanged(model, before):
    return fingerprint(model) == before  # a bool: pytest would print the difference of thousands of bytes


def dense(model, loss):
    """Hessian of ``loss(model)``, row by row in float64 from the gradient of the model's own parameters; nothing of the operators."""
    params = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        grads = torch.autograd.grad(loss(model), params, create_graph=True, allow_unused=True)
        flat = torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(grads, params, strict=True)])
        rows = [torch.autograd.grad(f, params, retain_graph=True, allow_unused=True) if f.requires_grad else [None] * len(params) for f in flat]
    h = np.stack([np.concatenate([(torch.zeros_like(p) if r is None else r).reshape(-1).numpy() for r, p in zip(row, params, strict=True)]) for row in rows])
    return h


def agree(op, want, dtype=np.float64):
    n = len(want)
    got = op.row_products(np.eye(n))
    assert op.shape == want.shape
    assert np.abs(got - want).max() <= tolerance(dtype, n) * max(np.linalg.norm(want, 2), 1.0)


def ce(z, t):
    return F.cross_entropy(z, t)


class Attention(nn.Module):
    """Self-attention as models write it: a function called in the middle of a module."""

    def __init__(self, heads=2, kv_heads=2, **options):
        super().__init__()
        self.heads, self.kv_heads, self.options = heads, kv_heads, options
        self.q, self.kv, self.out = nn.Linear(4, 4), nn.Linear(4, 2 * 2 * kv_heads), nn.Linear(4, 4)

    def forward(self, x):
        q = self.q(x).unflatten(-1, (self.heads, 2)).transpose(1, 2)
        k, v = (t.unflatten(-1, (self.kv_heads, 2)).transpose(1, 2) for t in self.kv(x).chunk(2, dim=-1))
        return self.out(F.scaled_dot_product_attention(q, k, v, **self.options).transpose(1, 2).flatten(2))


class Blocks(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"attn": body})])
        self.head = nn.Linear(4, 3)
        self.double()

    def forward(self, x):
        h = self.blocks[0]["attn"](x)
        return self.head((h[0] if isinstance(h, tuple) else h).mean(1))


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return make()


BODIES = {
    "plain": lambda: Attention(),
    "causal": lambda: Attention(is_causal=True),
    "grouped": lambda: Attention(kv_heads=1, enable_gqa=True, is_causal=True),
    "encoder": lambda: nn.TransformerEncoderLayer(4, 2, dim_feedforward=3, batch_first=True, dropout=0.2),
    "lstm": lambda: nn.LSTM(4, 4, batch_first=True),
}


@pytest.mark.parametrize("name", BODIES)
def test_attention_and_recurrent_layers(name):
    model = seeded(lambda: Blocks(BODIES[name]()))
    y = Y[:6]
    want = dense(model.eval(), lambda m: ce(m(SEQUENCES), y))
    model.train()
    before = fingerprint(model)
    op = Hessian(model, [(SEQUENCES[:4], y[:4]), (SEQUENCES[4:], y[4:])])
    agree(op, want)
    g = GGN(model, (SEQUENCES, y))
    assert np.linalg.eigvalsh(g.row_products(np.eye(len(want)))).min() >= -tolerance(np.float64, len(want))
    assert unchanged(model, before)
    notes = [note for note in op.notes if "math kernel" in note]
    where = {"encoder": "blocks.0.attn.self_attn", "lstm": None}.get(name, "blocks.0.attn")
    assert notes == ([] if where is None else [f"attention of {where} {MATH}"])
    if name == "encoder":
        assert any("dropout off" in note for note in op.notes)


@pytest.mark.parametrize("name", ["causal", "lstm"])
def test_the_fast_kernels_of_float32_are_differentiated_twice_too(name):
    model = seeded(lambda: Blocks(BODIES[name]())).float().eval()
    exact = seeded(lambda: Blocks(BODIES[name]())).eval()
    exact.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    agree(Hessian(model, (SEQUENCES.float(), Y[:6])), dense(exact, lambda m: ce(m(SEQUENCES), Y[:6])), np.float32)


def test_functional_dropout_gives_the_matrix_of_one_draw():
    class Always(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp((6, 4, 3))

        def forward(self, x):
            return self.body(F.dropout(x, 0.5, training=True))

    model = Always()
    torch.manual_seed(3)
    with keep_rng():
        want = dense(model, lambda m: ce(m(X), Y))
    for keep in (True, False):
        before = fingerprint(model)
        op = Hessian(model, (X, Y))
        op.keep = keep
        agree(op, want)
        assert unchanged(model, before)


def test_batchnorm_shuffling_and_ragged_batches():
    model = mlp((6, 5, 3), batchnorm=True, dropout=0.4)
    model(X)
    F.cross_entropy(model(X), Y).backward()
    want = dense(model.eval(), lambda m: ce(m(X), Y))
    model.train()
    loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)
    before = fingerprint(model)
    op = Hessian(model, loader)
    agree(op, want)
    again = op.row_products(np.eye(len(want))[:2])
    assert unchanged(model, before)
    assert np.array_equal(again, op.row_products(np.eye(len(want))[:2]))  # the sample set is fixed once
    assert any("running statistics frozen" in note for note in op.notes)


def test_one_shot_iterators_are_refused_by_name():
    with pytest.raises(TypeError, match=r"one-shot iterator \(generator\).*list\(loader\)"):
        Hessian(mlp((6, 4, 3)), ((x, y) for x, y in [(X, Y)]))


class PaddedForCausalLM(nn.Module):
    """As transformer libraries do it: dict batches, an attention mask, labels with -100 shifted inside, an object with .loss and .logits; tied ends."""

    def __init__(self, vocabulary=7, width=4):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.mix = nn.Linear(width, width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.embed.weight
        self.double()

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        h = self.embed(input_ids)
        t = input_ids.shape[1]
        allowed = torch.ones(t, t, dtype=torch.bool).tril() & attention_mask.bool()[:, None, :] | torch.eye(t, dtype=torch.bool)
        h = h + F.scaled_dot_product_attention(self.mix(h)[:, None], h[:, None], h[:, None], attn_mask=allowed[:, None])[:, 0]
        logits = self.lm_head(h)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100)
        return type("Output", (), {"logits": logits, "loss": loss})()


def padded(lengths, width, seed):
    rng = np.random.default_rng(seed)
    ids = torch.from_numpy(rng.integers(0, 7, (len(lengths), width)))
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, -100)}


def test_padded_language_models():
    model = seeded(PaddedForCausalLM)
    batches = [padded([6, 3, 2], 6, 0), padded([4, 1], 5, 1)]
    want_terms = 5 + 2 + 1 + 3 + 0

    def loss(m):
        total = 0.0
        for b in batches:
            z = m(b["input_ids"], b["attention_mask"]).logits
            total = total + F.cross_entropy(z[:, :-1].reshape(-1, 7), b["labels"][:, 1:].reshape(-1), reduction="sum", ignore_index=-100)
        return total / want_terms

    want = dense(model, loss)
    before = fingerprint(model)
    op = Hessian(model, batches)
    assert op.names == ("embed.weight", "mix.weight", "mix.bias") and op.loss.terms(op.batches[0]) == 8
    agree(op, want)
    g = GGN(model, batches).row_products(np.eye(len(want)))
    assert unchanged(model, before)
    # the GGN by its definition: Jᵀ diag(p - p pᵀ) J over the valid positions
    names, flat = list(op.names), torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    exact = np.zeros_like(want)
    for b in batches:

        def logits(v, b=b):
            parts = op.unflatten(v)
            parts["lm_head.weight"] = parts[names[0]]
            z = torch.func.functional_call(model, parts, (b["input_ids"], b["attention_mask"]), tie_weights=False).logits[:, :-1]
            return z[b["labels"][:, 1:] != -100]

        j = torch.autograd.functional.jacobian(logits, flat)
        p = torch.softmax(logits(flat).detach(), dim=-1)
        exact += torch.einsum("tci,tcd,tdj->ij", j, torch.diag_embed(p) - p[:, :, None] * p[:, None], j).numpy() / want_terms
    assert np.abs(g - exact).max() <= tolerance(np.float64, len(want)) * np.linalg.norm(exact, 2)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_ddp_is_unwrapped(process_group):
    model = mlp((6, 4, 3))
    want = dense(model, lambda m: ce(m(X), Y))
    wrapped = nn.parallel.DistributedDataParallel(model)
    before = fingerprint(wrapped)
    op = Hessian(wrapped, (X, Y))
    agree(op, want)
    assert op.names == ("0.weight", "0.bias", "2.weight", "2.bias") and unchanged(wrapped, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models(dtype):
    model = seeded(lambda: Blocks(Attention(is_causal=True))).to(dtype)
    exact = seeded(lambda: Blocks(Attention(is_causal=True)))
    exact.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    x = SEQUENCES.to(dtype)
    want = dense(exact, lambda m: ce(m(x.double()), Y[:6]))
    before = fingerprint(model)
    op = Hessian(model, (x, Y[:6]))
    agree(op, want, np.float32)
    agree(Hessian(model, (x, Y[:6]), dtype=torch.float64), want)
    assert unchanged(model, before)
    assert any(f"run in float32 on a copy of the {str(dtype)[6:]} parameters" in note for note in op.notes)
