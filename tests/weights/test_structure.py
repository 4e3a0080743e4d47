"""Which matrices are found in which tensors, and what is said of the others."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from spectral_fast.linalg.arrays import RawArray, as_numpy
from spectral_fast.weights.sources import TensorEntry, TensorList, open_source
from spectral_fast.weights.structure import MatrixPlan, plan_matrices


def plan(source: object, layers: str | list[str] | None = None) -> tuple[dict[str, MatrixPlan], dict[str, str]]:
    with open_source(source) as tensors:
        plans, skipped = plan_matrices(tensors.entries, layers)
        return {p.name: p for p in plans}, {s.name: s.reason for s in (*tensors.skipped, *skipped)}


def values(p: MatrixPlan) -> np.ndarray:
    return as_numpy(p.entry.read()).reshape(p.view)[p.part]


def test_linear_embedding_conv_of_a_module() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(50, 8)
            self.conv = torch.nn.Conv2d(3, 6, (5, 4))
            self.fc = torch.nn.Linear(7, 9)
            self.norm = torch.nn.BatchNorm1d(4)
            self.custom = torch.nn.Parameter(torch.randn(3, 4))
            self.register_buffer("basis", torch.randn(16, 16))

    plans, skipped = plan(Net())
    assert {n: (p.kind, p.shape) for n, p in plans.items()} == {
        "custom": ("unknown role", (3, 4)), "embed.weight": ("embedding", (50, 8)), "conv.weight": ("conv", (6, 60)), "fc.weight": ("linear", (9, 7)),
    }  # fmt: skip
    assert skipped["basis"] == "fixed buffer, not a weight"
    assert skipped["fc.bias"] == "vector: no spectrum"
    assert skipped["norm.num_batches_tracked"] == "int64 is not a floating-point format"


def test_conv_is_flattened_to_outputs_by_the_rest() -> None:
    conv = torch.nn.Conv2d(3, 6, (5, 4))
    plans, _ = plan(conv)
    np.testing.assert_array_equal(values(plans["weight"]), conv.weight.detach().numpy().reshape(6, 60))


@pytest.mark.parametrize(("cls", "letters"), [(torch.nn.LSTM, "ifgo"), (torch.nn.GRU, "rzn"), (torch.nn.RNN, "")])
def test_gates_are_split(cls: type, letters: str) -> None:
    rnn = cls(5, 6, num_layers=2, bidirectional=True)
    for source in (rnn, rnn.state_dict()):
        plans, _ = plan(source)
        assert len(plans) == 8 * max(1, len(letters))
        for k, letter in enumerate(letters):
            p = plans[f"weight_ih_l1_reverse[{letter}]"]
            assert (p.kind, p.shape, p.tied) == ("rnn", (6, 12), ())
            np.testing.assert_array_equal(values(p), rnn.weight_ih_l1_reverse.detach().numpy()[6 * k : 6 * k + 6])


def test_lstm_with_projection_is_not_split() -> None:
    plans, _ = plan(torch.nn.LSTM(5, 6, proj_size=3))
    assert {n: p.shape for n, p in plans.items()} == {"weight_ih_l0": (24, 5), "weight_hh_l0": (24, 3), "weight_hr_l0": (3, 6)}


def test_names_are_unique() -> None:
    plans, skipped = plan({"w": np.ones((2, 40, 50), np.float32), "w[0]": np.ones((4, 3), np.float32)})
    assert list(plans) == ["w[0]", "w[1]"] and skipped == {"w[0]": "its matrix would have the name of another one: w[0]"}


@pytest.mark.parametrize(("gates", "letters"), [(3, "rzn"), (4, "ifgo"), (5, "")])
def test_recurrent_weights_of_short_names(gates: int, letters: str) -> None:
    arrays = {"enc_w_ih": np.ones((6 * gates, 5), np.float32), "enc_w_hh": np.ones((6 * gates, 6), np.float32)}
    plans, _ = plan(arrays)
    assert list(plans) == [f"{name}[{c}]" if c else name for name in arrays for c in letters or [""]]
    assert {p.role for p in plans.values()} == {"rnn.input", "rnn.hidden"}


def test_attention_in_proj_is_split() -> None:
    attention = torch.nn.MultiheadAttention(8, 2)
    plans, _ = plan(attention)
    assert set(plans) == {"in_proj_weight[q]", "in_proj_weight[k]", "in_proj_weight[v]", "out_proj.weight"}
    np.testing.assert_array_equal(values(plans["in_proj_weight[v]"]), attention.in_proj_weight.detach().numpy()[16:])


def test_stacks_and_kernels_of_files() -> None:
    state = {
        "experts.w1": np.ones((4, 32, 3), np.float32),
        "blocks.mlp": np.ones((2, 3, 40, 50), np.float32),
        "stem.conv.weight": np.ones((8, 40, 64), np.float32),
        "head.weight": np.ones((8, 4, 3), np.float32),
    }
    plans, _ = plan(state)
    assert [n for n in plans if n.startswith("experts")] == [f"experts.w1[{i}]" for i in range(4)]
    assert plans["experts.w1[3]"].shape == (32, 3)
    assert len([n for n in plans if n.startswith("blocks")]) == 6 and plans["blocks.mlp[5]"].shape == (40, 50)
    assert (plans["stem.conv.weight"].kind, plans["stem.conv.weight"].shape) == ("conv", (8, 40 * 64))
    assert (plans["head.weight"].kind, plans["head.weight"].shape) == ("conv", (8, 12))


def test_tied_once_but_a_shared_storage_is_no_tie() -> None:
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(20, 6), "head": torch.nn.Linear(6, 20, bias=False)})
    model["head"].weight = model["embed"].weight
    for source in (model, model.state_dict()):
        plans, skipped = plan(source)
        assert list(plans) == ["embed.weight"] and plans["embed.weight"].tied == ("head.weight",)
        assert skipped["head.weight"] == "tied to embed.weight"
    flat = torch.randn(48)
    plans, skipped = plan({"a": flat[:24].view(4, 6), "b": flat[24:].view(4, 6), "c": flat[:24].view(6, 4)})
    assert set(plans) == {"a", "b", "c"} and not skipped


def test_state_dicts_of_other_arrays() -> None:
    bf16 = np.arange(12, dtype=np.float32).reshape(3, 4).astype(ml_dtypes.bfloat16)
    plans, skipped = plan(
        {"numpy": np.eye(3), "ml": bf16, "raw": RawArray(bf16.view(np.uint16).copy(), "bfloat16"), "torch": torch.ones(2, 2, dtype=torch.float8_e4m3fn),
         "int": np.ones((2, 2), int), "complex": np.ones((2, 2), complex), "note": "text", "empty": np.ones((0, 4)), "nested": {"w": np.eye(2)},
         "optim": {"state": {}, "param_groups": []}, "meta": torch.empty(2, 2, device="meta"), "sparse": torch.eye(2).to_sparse(), "one": np.ones(())}
    )  # fmt: skip
    assert {n: p.entry.dtype for n, p in plans.items()} == {
        "numpy": "float64", "ml": "bfloat16", "raw": "bfloat16", "torch": "float8_e4m3fn", "nested.w": "float64"
    }  # fmt: skip
    np.testing.assert_array_equal(values(plans["raw"]), values(plans["ml"]))
    assert skipped["optim"] == "optimizer state, not weights"
    assert skipped["note"] == "not a tensor: str"
    assert skipped["complex"] == "complex128 is not a floating-point format"
    assert skipped["empty"] == "empty"
    assert skipped["one"] == "scalar: no spectrum"
    assert "meta" in skipped["meta"] and "sparse" in skipped["sparse"]


def test_layers_glob() -> None:
    state = {f"block.{i}.{n}.weight": np.eye(3) for i in range(2) for n in ("q", "k")}
    plans, skipped = plan(state, "*.q.*")
    assert set(plans) == {"block.0.q.weight", "block.1.q.weight"}
    assert skipped["block.0.k.weight"] == "not asked for (layers)"
    with pytest.raises(ValueError, match=r"^layers: 'z\*' matches none of 4 tensors"):
        plan(state, "z*")


def test_other_sources_are_refused() -> None:
    with pytest.raises(TypeError, match="^source: got int"), open_source(3):
        pass


def test_absurd_dimensions_are_refused_by_name() -> None:
    entry = TensorEntry("huge.weight", (2**32, 2), "float32", "key", lambda: None)
    plans, skipped = plan_matrices(TensorList("x", (entry,)).entries)
    assert not plans and "beyond" in skipped[0].reason


def entries(shapes: dict[str, tuple[int, ...]]) -> list[TensorEntry]:
    return [TensorEntry(name, shape, "float32", name, lambda: None) for name, shape in shapes.items()]


def test_fused_blocks_are_the_named_rows_and_columns() -> None:
    rng = np.random.default_rng(0)
    linear = {"a.attn.qkv.weight": rng.standard_normal((40, 24)), "a.attn.proj.weight": rng.standard_normal((24, 24))}
    plans, _ = plan(linear)
    whole = linear["a.attn.qkv.weight"]
    for label, rows in {"q": slice(0, 24), "k": slice(24, 32), "v": slice(32, 40)}.items():
        np.testing.assert_array_equal(values(plans[f"a.attn.qkv.weight[{label}]"]), whole[rows])
    conv1d = {"h.0.attn.c_attn.weight": rng.standard_normal((24, 72)), "h.0.attn.c_proj.weight": rng.standard_normal((24, 24))}
    plans, _ = plan(conv1d)
    for i, label in enumerate("qkv"):
        p = plans[f"h.0.attn.c_attn.weight[{label}]"]
        assert p.in_out and p.kind == "attention"
        np.testing.assert_array_equal(values(p), conv1d["h.0.attn.c_attn.weight"][:, 24 * i : 24 * i + 24])


def test_stacked_experts_are_halves_or_alternate() -> None:
    rng = np.random.default_rng(0)
    both, down = rng.standard_normal((3, 8, 20)), rng.standard_normal((3, 10, 8))
    state = {"mlp.experts.gate_up_proj": both, "mlp.experts.down_proj": down}
    plans, _ = plan(state)
    np.testing.assert_array_equal(values(plans["mlp.experts.gate_up_proj[2, gate]"]), both[2, :, :10])
    np.testing.assert_array_equal(values(plans["mlp.experts.gate_up_proj[2, up]"]), both[2, :, 10:])
    np.testing.assert_array_equal(values(plans["mlp.experts.down_proj[1]"]), down[1])
    plans, _ = plan({**state, "mlp.experts.gate_up_proj_bias": rng.standard_normal((3, 20))})  # gpt-oss
    np.testing.assert_array_equal(values(plans["mlp.experts.gate_up_proj[2, gate]"]), both[2, :, ::2])
    np.testing.assert_array_equal(values(plans["mlp.experts.gate_up_proj[2, up]"]), both[2, :, 1::2])
    plans, _ = plan({"mlp.experts.gate_up_proj": both})
    assert {p.role for p in plans.values()} == {"expert.gate_up (fused gate/up: order unknown)"} and len(plans) == 3


def test_parts_can_be_written_in_place() -> None:
    """What changes a layer and puts it back (ablate) writes through view and part."""
    w = np.zeros((2, 8, 20))
    plans, _ = plan({"mlp.experts.gate_up_proj": w, "mlp.experts.down_proj": np.zeros((2, 10, 8))})
    p = plans["mlp.experts.gate_up_proj[1, up]"]
    w.reshape(p.view)[p.part][...] = 1.0
    assert w.sum() == 80 and w[1, :, 10:].all()


def test_flax_kernels_are_stored_inputs_first() -> None:
    rng = np.random.default_rng(0)
    state = {"stem.Conv_0.kernel": rng.standard_normal((3, 3, 4, 8)), "Dense_0.kernel": rng.standard_normal((16, 10))}
    plans, _ = plan(state)
    p = plans["stem.Conv_0.kernel"]
    assert (p.kind, p.shape, p.in_out) == ("conv", (36, 8), True) and plans["Dense_0.kernel"].in_out
    np.testing.assert_array_equal(values(p)[:, 2], state["stem.Conv_0.kernel"][..., 2].ravel())


def test_optimizer_moments_are_listed() -> None:
    shapes = {f"state.0.{m}": (4, 4) for m in ("exp_avg", "exp_avg_sq", "momentum_buffer", "max_exp_avg_sq", "square_avg")}
    plans, skipped = plan_matrices(entries({**shapes, "model.exp_average.weight": (4, 4)}))
    assert [p.name for p in plans] == ["model.exp_average.weight"]
    assert {s.reason for s in skipped} == {"optimizer moment, not a weight"} and len(skipped) == 5


def test_averaged_copies_only_beside_the_original() -> None:
    latent = {"model.diffusion_model.out.2.weight": (4, 8, 3, 3), "model_ema.diffusion_modelout2weight": (4, 8, 3, 3), "model_ema.decay": ()}
    plans, skipped = plan_matrices(entries(latent))
    assert [p.name for p in plans] == ["model.diffusion_model.out.2.weight"]
    assert {s.name: s.reason for s in skipped}["model_ema.diffusion_modelout2weight"] == "EMA copy of model.diffusion_model.out.2.weight"
    alone = {"ema.fc.weight": (4, 4), "model_ema.other.weight": (4, 4), "model.fc.weight": (5, 4), "ema.weight": (9, 9), "x.weight": (9, 9)}
    plans, skipped = plan_matrices(entries(alone))  # no original, another shape, no name worth comparing
    assert len(plans) == 5 and not skipped
    _, skipped = plan_matrices(entries({"model.fc.weight": (4, 4), "ema_model.model.fc.weight": (4, 4)}))
    assert skipped[0].reason == "EMA copy of model.fc.weight"


def test_tensors_whose_names_are_buffers() -> None:
    shapes = {"h.attn.bias": (1, 1, 8, 8), "rope.cos_cached": (32, 4), "swin.relative_position_index": (49, 49), "layer_scale": (8, 1, 1), "h.mlp.bias": (8, 8)}
    plans, skipped = plan_matrices(entries(shapes))
    assert [p.name for p in plans] == ["h.mlp.bias"]
    assert [s.reason.partition(" by its name ")[2] for s in skipped] == [
        "(attention mask), not a weight", "(rotary embedding), not a weight", "(positions), not a weight", ""
    ]  # fmt: skip
