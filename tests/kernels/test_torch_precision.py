"""Full float32 products whatever the program has allowed, by torch's older switches or its newer ones; which are put back."""

from __future__ import annotations

import pytest
from children import run_python

pytest.importorskip("torch", reason="torch is not installed")

SWITCHES = {
    "nothing": "pass",
    "high": "torch.set_float32_matmul_precision('high')",
    "medium": "torch.set_float32_matmul_precision('medium')",
    "allow_tf32": "torch.backends.cuda.matmul.allow_tf32 = True",
    "matmul": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "all": "torch.backends.fp32_precision = 'tf32'",
    "convolutions": "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
}

PROGRAM = """
import numpy as np, torch, spectral_fast as sf
from spectral_fast.kernels.torch_precision import ieee_products
if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
    print("OK"); raise SystemExit
{switch}
def state():
    b = torch.backends
    return [x.fp32_precision for x in (b, b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul)]
before = state()
with ieee_products():
    assert torch.backends.cuda.matmul.fp32_precision == "ieee" == torch.backends.mkldnn.matmul.fp32_precision
assert state() == before
torch.manual_seed(0)
m = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Tanh(), torch.nn.Linear(30, 3))
data = [(torch.randn(50, 40), torch.arange(50) % 3)]
h = sf.Hessian(m, data)
v = np.random.default_rng(0).standard_normal(h.shape[0])
exact = sf.Hessian(m, data, dtype=torch.float64) @ v
assert np.abs(h @ v - exact).max() < 1e-5 * np.abs(exact).max()
assert sf.gradient_covariance(m, data).status == "ok"
assert state() == before
print("OK")
"""


@pytest.mark.parametrize("name", sorted(SWITCHES))
def test_the_programs_switches_change_nothing_and_are_put_back(name: str) -> None:
    done = run_python(PROGRAM.format(switch=SWITCHES[name]))
    assert done.stdout.strip() == "OK", done.stderr[-2000:]
