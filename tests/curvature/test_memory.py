"""What eigsh takes of memory on an operator of 20 million parameters: its basis, beside what one product takes by itself."""

from __future__ import annotations

import pytest
from children import PEAK, run_python

CODE = """
import gc, json
import numpy as np, torch
from torch import nn
import spectral_fast as sf
from spectral_fast.linalg.restart import Ends, basis_size
torch.manual_seed(0)
WIDTH, K, DTYPE = %(width)d, 3, %(dtype)r

warm = sf.Hessian(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)), (torch.randn(5, 4), torch.randint(0, 3, (5,))))
sf.eigsh(warm, 2)  # what torch and numpy take at their first use
assert warm._agrees("forward mode")  # torch's rules for it: 40 MB, which a fast machine comes to load within the run that is measured
model = nn.Sequential(nn.Linear(100, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10))
x, y = torch.randn(32, 100), torch.randint(0, 10, (32,))
gc.collect()
def product():
    op = sf.Hessian(model, (x, y))
    v = np.ones((1, op.shape[0]), dtype=np.float32)
    for _ in range(50):  # the peak of one is over between two looks at the memory
        w = op.row_products(v)
        del w
    return op.shape[0]
alone, before, n = peak(product)
gc.collect()
found, _, r = peak(lambda: sf.eigsh(sf.Hessian(model, (x, y)), K, basis_dtype=DTYPE))
item = 2 if DTYPE == "bfloat16" else 4
basis = item * n * (basis_size(n, Ends(top=K)) + 1)
print(json.dumps({"n": n, "alone": alone - before, "basis": basis, "eigsh": found - before, "status": r.status, "matvecs": r.matvecs, "vector": 4 * n}))
"""


@pytest.mark.native_only  # numpy takes minutes, and arrays of its own
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [1400, pytest.param(4400, marks=pytest.mark.thorough)])
def test_peak_memory_is_one_product_and_the_basis(width, dtype):
    import json

    done = run_python(
        PEAK + CODE % {"width": width, "dtype": dtype}, OMP_NUM_THREADS="1", MALLOC_MMAP_THRESHOLD_="1000000", timeout=120 if width < 4000 else 400
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    print({name: value / 2**20 if name in ("alone", "basis", "eigsh", "vector") else value for name, value in seen.items()})
    assert seen["n"] > (19_000_000 if width == 4400 else 2_000_000)
    # bfloat16's pairs come as float32 vectors, made beside the basis
    pairs = 3 * seen["vector"] if dtype == "bfloat16" else 0
    assert seen["eigsh"] <= 1.1 * (seen["alone"] + seen["basis"]) + pairs
    assert seen["eigsh"] >= 0.3 * seen["basis"]
