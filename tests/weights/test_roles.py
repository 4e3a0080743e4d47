"""Roles by name and shape on the tensors of published architectures.

Each file of architectures/ lists tensors of one (two layers, small sizes): ``name | shape | what``, where {0,1} stands for both and what is
a role, or ``label shape role; ...`` for a tensor that holds several matrices, or ``skip: reason``; after a role: in_out for weights stored
(in, out), kind=... and shape=... where they are not what a plain matrix has. Every plan and every skip has to be the one listed, no more and no less.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from spectral_fast.weights.roles import UNKNOWN, Names, role_of, split_name
from spectral_fast.weights.sources import TensorEntry
from spectral_fast.weights.structure import plan_matrices

ARCHITECTURES = sorted((Path(__file__).parent / "architectures").glob("*.txt"))


@dataclass
class Expected:
    role: str
    shape: tuple[int, ...]
    in_out: bool
    kind: str | None


def shape_of(text: str) -> tuple[int, ...]:
    return () if text == "-" else tuple(int(n) for n in text.split("x"))


def expanded(name: str) -> Iterator[str]:
    parts = re.split(r"\{([^}]*)\}", name)
    yield from ("".join(choice) for choice in itertools.product(*([p] if i % 2 == 0 else p.split(",") for i, p in enumerate(parts))))


def expectation(text: str, shape: tuple[int, ...]) -> Expected:
    options = dict(t.split("=") for t in re.findall(r"(?:kind|shape)=\w+", text))
    role = re.sub(r"\s+(?:in_out|kind=\w+|shape=\w+)", "", text).strip()
    kind = {"unknown": UNKNOWN}.get(options.get("kind", ""), options.get("kind"))
    return Expected(role, shape_of(options["shape"]) if "shape" in options else shape[-2:], "in_out" in text.split(), kind)


def read(path: Path) -> tuple[list[TensorEntry], dict[str, Expected], dict[str, str]]:
    entries, plans, skipped = [], {}, {}
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            continue
        listed, shape_text, what = (t.strip() for t in line.split("|"))
        for name in expanded(listed):
            shape = () if shape_text == "product" else shape_of(shape_text)
            if shape_text != "product":
                entries.append(TensorEntry(name, shape, "float32", name, lambda: None))
            pieces = [re.match(r"^([\w, ]+?) (\d+x\d+) (.*)$", p.strip()) for p in what.split(";")]
            if what.startswith("skip: "):
                skipped[name] = what.removeprefix("skip: ")
            elif all(pieces):
                plans |= {f"{name}[{p[1]}]": expectation(p[3], shape_of(p[2])) for p in pieces if p}
            else:
                plans[name] = expectation(what, shape)
    return entries, plans, skipped


@pytest.mark.parametrize("path", ARCHITECTURES, ids=lambda p: p.stem)
def test_every_tensor_of_an_architecture(path: Path) -> None:
    entries, expected, skipped = read(path)
    plans, left = plan_matrices(entries)
    found = {p.name: Expected(p.role, p.shape, p.in_out, p.kind if p.name in expected and expected[p.name].kind else None) for p in plans}
    assert found == expected
    assert {s.name: s.reason for s in left} == skipped
    # the parts of a tensor are all of it
    for e in entries:
        sizes = [p.shape[0] * p.shape[1] for p in plans if p.entry is e]
        total = 1
        for n in e.shape:
            total *= n
        assert not sizes or sum(sizes) == total


def test_at_least_the_named_architectures_are_there() -> None:
    named = {"gpt2", "llama", "mixtral", "gemma", "qwen_moe", "bert", "t5", "vit", "resnet", "convnext", "lstm", "stable_diffusion_unet", "whisper", "phi3"}
    assert named <= {p.stem for p in ARCHITECTURES}


@pytest.mark.parametrize("path", [p for p in ARCHITECTURES if p.stem not in ("made_up", "lora")], ids=lambda p: p.stem)
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_prefixes_of_wrappers_change_nothing(path: Path, prefix: str) -> None:
    """DataParallel and torch.compile put a module in front; heads told by standing at the top are then left unknown, not something else."""
    entries, _, _ = read(path)
    plain = Names({e.name: e.shape for e in entries})
    wrapped = Names({prefix + e.name: e.shape for e in entries})
    for e in entries:
        if len(e.shape) > 1:
            role = role_of(e.name, plain)
            assert role_of(prefix + e.name, wrapped) in ((role, UNKNOWN) if role in ("head", "embedding") else (role,))


@pytest.mark.parametrize("path", [p for p in ARCHITECTURES if p.stem not in ("made_up", "lora")], ids=lambda p: p.stem)
def test_modules_renamed_by_chance_are_unknown(path: Path) -> None:
    """With every word of a name replaced the shape alone says only "conv", or nothing."""
    entries, _, _ = read(path)
    renamed = {re.sub(r"[A-Za-z]+", lambda m: "zq" + m[0][::-1].lower() + "xj" if m[0] != "weight" else "weight", e.name): e.shape for e in entries}
    names = Names(renamed)
    for name, shape in names.shapes.items():
        if len(shape) > 1:
            assert role_of(name, names) in ((UNKNOWN, "conv") if len(shape) > 3 else (UNKNOWN,)), name


def test_names_come_apart() -> None:
    assert split_name("h.0.attn.c_attn.weight") == ("h.0.attn.", "c_attn", ".weight")
    assert split_name("in_proj_weight") == ("", "in_proj_weight", "")
    assert split_name("attn1.to_out.0.weight") == ("attn1.", "to_out", ".weight")
    assert split_name("q_proj.base_layer.weight") == ("", "q_proj", ".base_layer.weight")
    assert split_name("weight") == ("", "weight", "")


def test_module_kinds_help_where_names_do_not() -> None:
    names = Names({"a.weight": (8, 4, 3), "b.weight": (8, 4), "c.weight": (8, 4)})
    assert role_of("a.weight", names, "conv") == "conv" and role_of("a.weight", names) == UNKNOWN
    assert role_of("b.weight", names, "embedding") == "embedding" and role_of("c.weight", names, "linear") == UNKNOWN


def test_a_base_layer_under_an_adapter_keeps_its_role() -> None:
    names = Names({"layers.0.self_attn.q_proj.base_layer.weight": (8, 8), "layers.0.self_attn.q_proj.lora_A.default.weight": (2, 8)})
    assert [role_of(n, names) for n in names.shapes] == ["attention.q", "lora.A"]
