"""A small store of a scan, what a stranger may write into it, and what must be true of it then.

Cells are replaced through SQLite, so that the mutation gets past the file's structure, and bytes of the file itself.
"""

from __future__ import annotations

import random
import sqlite3
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.fields import text_fields
from fuzz.mutations import TEXTS, mutate_bytes, mutate_fields
from safetensors.numpy import save_file

import spectral_fast as sf
from spectral_fast.weights.store import StoreError

__all__ = ["check_store", "mutate", "valid_store"]

_WORDS = (
    *("ok", "failed", "incomplete", "float32", "bfloat16", "linear", "lora", "stack", "weight", "", "\0", "x" * 5000),
    *("[]", "{}", "null", "1", '"a"', "é"),
)
_CELLS: tuple[Any, ...] = (
    *(None, 0, 1, -1, 2, 3, 24, 2**31, 2**62, -(2**63), 0.0, -1.0, 1e-300, 1e300, float("inf"), float("-inf")),
    *(
        b"",
        b"x",
        bytes(8),
        bytes(16),
        struct.pack("<d", float("nan")),
        struct.pack("<3d", 3, 2, 1),
        struct.pack("<3d", 1, 2, 3),
        struct.pack("<3d", -1, -2, -3),
    ),
    *(struct.pack("<3d", float("inf"), 1, 0), struct.pack("<3d", float("nan"), 1, 0), struct.pack("<3d", 1e308, 1e-308, 5e-324), bytes(24), bytes(2**16)),
)
_NUMBERS = (
    *("NaN", "Infinity", "-Infinity"),
    *("1e999", "1e400", "-1", "0", "1", "2", "3", "2147483647", "2147483648", "9223372036854775808", "1.5", "true", "9" * 400),
)
_JSON = (*TEXTS, *(text.encode() for text in (*_NUMBERS, *(f'"{w}"' for w in _WORDS[:10]), '"incomplete"', '"unresolved"', '"slice(None, None, None)"')))


def valid_store(folder: Path) -> Path:
    """Of matrices of most kinds: whole, leading values only, zero, not finite, a product of factors, a convolution."""
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in {"a.weight": (4, 3), "b.weight": (40, 30), "conv.weight": (4, 3, 3, 3)}.items()
    }
    tensors |= {"q.lora_A.weight": np.ones((2, 6), np.float32), "q.lora_B.weight": np.ones((5, 2), np.float32), "bias": np.ones(3, np.float32)}
    tensors |= {"zero.weight": np.zeros((4, 3), np.float32), "bad.weight": np.full((4, 3), np.nan, np.float32)}
    save_file(tensors, folder / "x.safetensors")
    sf.scan(folder / "x.safetensors", store=folder / "store", top=3, top_above=1000, progress=False)
    return folder / "store"


def strange_cells(rng: random.Random, path: Path) -> None:
    """Some cells replaced; texts that hold JSON piece by piece."""
    with sqlite3.connect(path) as db:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            table = rng.choice(("run", "run", "spectra", "spectra", "spectra", "skipped"))
            column = rng.choice([row[1] for row in db.execute(f"PRAGMA table_info({table})")])
            cells = db.execute(f"SELECT rowid, {column} FROM {table} ORDER BY rowid").fetchall()
            if not cells:
                continue
            row, cell = rng.choice(cells)
            if isinstance(cell, str) and cell[:1] in '[{"' and rng.random() < 0.8:
                value: Any = mutate_fields(rng, text_fields(cell.encode()), _JSON).decode("utf-8", "replace")
            elif isinstance(cell, bytes) and rng.random() < 0.5:
                value = mutate_bytes(rng, cell)
            else:
                value = rng.choice(rng.choice((_CELLS, _CELLS, _WORDS, [c for _, c in cells])))
            try:
                db.execute(f"UPDATE {table} SET {column} = ? WHERE {rng.choice(('rowid = ?', 'rowid = ?', '0 < ?'))}", (value, row))
            except sqlite3.IntegrityError:
                continue
    db.close()


def mutate(number: int, whole: bytes, path: Path) -> None:
    """Write store ``number`` made from a valid one: the same for the same number, always."""
    rng = random.Random(f"store {number}")
    path.write_bytes(whole)
    if rng.random() < 0.6:
        strange_cells(rng, path)
        return
    if rng.random() < 0.5:  # a page's header and the places of its cells
        at = 4096 * rng.randrange(len(whole) // 4096) + 100 * rng.randrange(2)
        path.write_bytes(whole[:at] + mutate_bytes(rng, whole[at : at + 24])[:24].ljust(24, b"\0") + whole[at + 24 :])
    else:
        path.write_bytes(mutate_bytes(rng, whole))


def check_store(path: Path) -> bool:
    """True for a store that opens; what it holds can be shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # numpy's, of values that no spectrum has
        try:
            spectra = sf.WeightSpectra.open(path)
        except StoreError as error:
            assert str(path) in str(error) and len(str(error).encode("utf-8")) < 5000
            return False
        spectra.to_dict()
        str(spectra).encode("utf-8")
        return True
