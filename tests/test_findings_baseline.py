"""Findings beside a baseline and beside layers of the same role."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import spectral_fast as sf
from spectral_fast.findings import Finding, weight_findings

F32 = np.float32


def layers(seed: int = 0, number: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"{i}.weight": (rng.standard_normal((64, 48)) / 8).astype(F32) for i in range(number)}


def trained(state: dict[str, np.ndarray], seed: int = 9) -> dict[str, np.ndarray]:
    """A little further along."""
    rng = np.random.default_rng(seed)
    return {k: (w + 0.01 * rng.standard_normal(w.shape)).astype(F32) for k, w in state.items()}


def found(state: object, baseline: object = None) -> list[Finding]:
    return list(weight_findings(sf.scan(state, baseline=baseline, progress=False)))


def changed(what: str, w: np.ndarray) -> np.ndarray:
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    if what == "scaled":
        return (4 * w).astype(F32)
    if what == "spike":
        s[0] *= 8
    elif what == "rank":
        s[30:] = 0
    elif what == "few dimensions":
        s = s[0] * 0.75 ** np.arange(len(s))
    elif what == "condition":
        s[-1] = s[0] * 1e-5
    elif what == "dead":
        w = w.copy()
        w[:10] = 0
        return w
    return ((u * s) @ vt).astype(F32)


TITLES = {
    "scaled": "amplifies; exploding gradients possible",
    "spike": "stands out of the bulk and amplifies",
    "rank": "rank collapse",
    "few dimensions": "uses only a few of its dimensions",
    "condition": "ill-conditioned: some directions learned much better than others",
    "dead": "dead outputs",
}


@pytest.mark.parametrize("what", TITLES)
def test_a_change_since_the_baseline_is_named_and_an_old_one_is_not(what: str) -> None:
    before = layers()
    now = trained(before)
    now["2.weight"] = changed(what, now["2.weight"])
    fresh = [f for f in found(now, before) if f.severity != "info"]
    assert (TITLES[what], "2.weight") in {(f.title, f.where) for f in fresh} and {f.where for f in fresh} == {"2.weight"}
    assert all("in the baseline" in f.comparison or "in the baseline" in f.evidence for f in fresh)
    # the same matrix in the baseline: nothing has happened since, whatever a random matrix would be
    assert not [f for f in found(now, {**before, "2.weight": now["2.weight"]}) if f.severity != "info"]


def test_without_a_partner_a_random_matrix_is_the_comparison_and_that_is_said() -> None:
    before = layers()
    now = trained(before)
    now["new.weight"] = changed("rank", now["2.weight"])
    del before["3.weight"]
    collapse = next(f for f in found(now, before) if f.title == "rank collapse")
    assert collapse.where == "new.weight" and collapse.comparison.startswith("not in the baseline; a random")


def test_weights_that_halved_since_the_baseline_are_over_regularized() -> None:
    before = layers()
    now = trained(before)
    now["2.weight"] = (0.2 * changed("rank", now["2.weight"])).astype(F32)
    collapse = next(f for f in found(now, before) if f.title == "rank collapse")
    assert collapse.advice.startswith("less weight decay (Martin 2018") and "in the baseline" in collapse.comparison


class Block(torch.nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.self_attn = torch.nn.ModuleDict({k: torch.nn.Linear(48, 48) for k in ("q_proj", "k_proj", "v_proj", "o_proj")})
        self.mlp = torch.nn.ModuleDict({"up_proj": torch.nn.Linear(48, 96), "down_proj": torch.nn.Linear(96, 48)})
        with torch.no_grad():
            self.mlp["down_proj"].weight *= gain


def blocks(gain: float, number: int = 6) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.ModuleDict({"layers": torch.nn.ModuleList(Block(gain) for _ in range(number))})


def test_layers_are_compared_with_those_of_their_role() -> None:
    # small output projections are a design (scaled by 1/sqrt(2 layers) in GPT-2), not a defect of each of them
    assert not [f for f in found(blocks(0.2)) if f.severity != "info"]
    model = blocks(0.2)
    with torch.no_grad():
        model["layers"][3].mlp["down_proj"].weight *= 4  # now as large as the other roles' weights
    warned = [f for f in found(model) if f.severity != "info"]
    assert [(f.where, f.title) for f in warned] == [("layers.3.mlp.down_proj.weight", TITLES["scaled"])]
    assert "median s_1 of the 5 other layers of role mlp.down" in warned[0].comparison and "role mlp.down" in warned[0].evidence


INITS = {
    "default": lambda w: None,
    "kaiming normal": torch.nn.init.kaiming_normal_,
    "kaiming uniform": torch.nn.init.kaiming_uniform_,
    "xavier": torch.nn.init.xavier_uniform_,
    "small": lambda w: torch.nn.init.normal_(w, std=0.02),
    "orthogonal": torch.nn.init.orthogonal_,
}


def deep(init: str, seed: int) -> torch.nn.Module:
    """Five encoder layers: every role has four others to be compared with."""
    torch.manual_seed(seed)
    model = torch.nn.ModuleList(torch.nn.TransformerEncoderLayer(48, 4, 96, batch_first=True) for _ in range(5))
    for p in model.parameters():
        if p.ndim >= 2:
            INITS[init](p.data)
    return model


def warned_places(model: torch.nn.Module) -> set[str]:
    return {f.where for f in found(model) if f.severity != "info"}


@pytest.mark.parametrize("init", INITS)
def test_deep_networks_are_compared_by_role_fresh_and_with_a_scaled_layer(init: str) -> None:
    for seed in range(2):
        model = deep(init, seed)
        assert not warned_places(model)
        with torch.no_grad():
            model[2].linear1.weight *= 4
        assert warned_places(model) == {"2.linear1.weight"}


@pytest.mark.thorough
@pytest.mark.parametrize("init", INITS)
def test_deep_networks_in_95_of_100(init: str) -> None:
    quiet = loud = 0
    for seed in range(100):
        model = deep(init, seed)
        quiet += not warned_places(model)
        with torch.no_grad():
            model[seed % 5].linear1.weight *= 4
        loud += warned_places(model) == {f"{seed % 5}.linear1.weight"}
    assert quiet >= 95 and loud >= 95


def test_few_layers_of_a_role_are_compared_with_all() -> None:
    model = blocks(1.0, number=3)  # two others of each role
    with torch.no_grad():
        model["layers"][1].mlp["up_proj"].weight *= 4
    warned = [f for f in found(model) if f.severity != "info"]
    assert [f.where for f in warned] == ["layers.1.mlp.up_proj.weight"]
    assert "of all 17 other layers" in warned[0].comparison
