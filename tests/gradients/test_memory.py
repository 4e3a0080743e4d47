"""Many samples within a limit: what the spectrum of 4,096 gradients takes of memory, and that products with vectors give the same."""

from __future__ import annotations

import json

import pytest
from children import PEAK, run_python

CODE = """
import gc, json
import numpy as np, torch
from torch import nn
import spectral_fast as sf
torch.manual_seed(0)
N, LIMIT = %(n)d, %(limit)d

def made(n):
    x = torch.randn(n, 64)
    return x, (x[:, :10] + 0.3 * torch.randn(n, 10)).argmax(1)

model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10))
sf.gradient_covariance(model, made(64), progress=False)  # what torch, numpy and LAPACK take at their first use
x, y = made(N)
batches = list(zip(x.split(512), y.split(512)))
gc.collect()
most, before, g = peak(lambda: sf.gradient_covariance(model, batches, max_samples=N, max_memory=LIMIT, progress=False))
top = sf.eigsh(sf.GradientCovariance(model, batches), 5, tol=1e-5)
found = {"n": g.n_samples, "status": g.status, "backend": g.backend, "taken": most - before, "notes": g.notes}
print(json.dumps({**found, "exact": g.eigenvalues[:5].tolist(), "products": top.values.tolist()}))
"""


@pytest.mark.native_only  # numpy's tiles take more
@pytest.mark.parametrize("n, limit", [(700, 60_000_000), pytest.param(4096, 1_000_000_000, marks=pytest.mark.thorough)])
def test_many_samples_within_the_limit(n: int, limit: int) -> None:
    done = run_python(PEAK + CODE % {"n": n, "limit": limit}, OMP_NUM_THREADS="1", MALLOC_MMAP_THRESHOLD_="1000000", timeout=120 if n < 1000 else 600)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    print({**seen, "taken": seen["taken"] / 1e6})
    assert seen["status"] == "ok" and seen["n"] == n
    assert seen["taken"] <= limit
    # both are exact but for float32's rounding and eigsh's residuals
    assert seen["products"] == pytest.approx(seen["exact"], rel=1e-4)
