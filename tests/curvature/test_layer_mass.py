"""Eigenvectors by layer against dense eigenvectors, and what is within the noise of the products."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import dense_hessian, digits_like, mlp, train
from torch import nn
from torch.nn import functional as F

from spectral_fast.curvature import Hessian, curvature
from spectral_fast.curvature.layer_mass import layer_mass
from spectral_fast.findings import curvature_findings
from spectral_fast.linalg.eigsh import eigsh
from spectral_fast.linalg.share import Share

X, Y = (torch.from_numpy(a) for a in digits_like(40, 6, 3))


@pytest.fixture(scope="module")
def model():
    return train(mlp((6, 8, 3)), X, Y, steps=30)


def test_shares_and_parts_of_the_eigenvalues(model):
    """At tol 1e-3 the parts are those of the true product to within the error given, which is no more than the residual."""
    h = dense_hessian(model, lambda z: F.cross_entropy(z, Y), X)
    op = Hessian(model, (X, Y))
    for tol in (1e-2, 1e-8):
        r = eigsh(op, 4, tol=tol, basis_dtype="float64")
        found = layer_mass(r, op.blocks)
        assert found.names == tuple(op.blocks) and found.mass.shape == (4, 4)
        product = h @ r.vectors
        for i, block in enumerate(op.blocks.values()):
            v = r.vectors[block]
            assert np.abs(found.mass[i] - (v**2).sum(0)).max() <= 1e-13
            assert (np.abs(found.rayleigh[i] - (v * product[block]).sum(0)) <= found.error[i] + 1e-13).all() and (
                found.error[i] <= r.residuals + r.residual_error
            ).all()
        assert np.abs(found.mass.sum(0) - 1).max() <= 1e-13 and np.abs(found.rayleigh.sum(0) - r.values).max() <= 1e-12
    assert np.array_equal(found.of("2.bias"), found.mass[3])
    with pytest.raises(KeyError, match="conv"):
        found.of("conv")


def test_parts_of_the_vectors_on_several_processes_add_up(model):
    op = Hessian(model, (X, Y))
    r = eigsh(op, 3, tol=1e-6)
    whole = layer_mass(r, op.blocks).mass
    half = op.shape[0] // 2 - 3  # inside a block
    sums = []
    for rows in (slice(0, half), slice(half, op.shape[0])):
        part = type(r)(**{**vars(r), "vectors": r.vectors[rows], "columns": (rows.start, rows.stop)})
        layer_mass(part, op.blocks, Share(op.shape[0], rows, lambda x: sums.append(x.copy())))
    assert np.abs(sums[0] + sums[1] - whole).max() <= 1e-13


def test_the_analysis_tells_where_its_eigenvectors_live(model):
    r = curvature(model, (X, Y), k=3, k_bottom=2, probes=1, steps=40, progress=False)
    assert (
        set(r.by_layer) == {"hessian_top", "hessian_bottom", "ggn_top"} and r.products == curvature(model, (X, Y), k=3, k_bottom=2, probes=1, steps=40).products
    )
    for name, found in r.by_layer.items():
        pairs = getattr(r, name)
        assert np.abs(found.mass - layer_mass(pairs, Hessian(model, (X, Y)).blocks).mass).max() == 0.0
    told = json.loads(json.dumps(r.to_dict(), allow_nan=False))["by_layer"]["hessian_top"]
    assert told["names"] == ["0.weight", "0.bias", "2.weight", "2.bias"] and np.shape(told["mass"]) == (4, 3)
    assert "Hessian eigenvectors by layer" in r.summary()


class Cut(nn.Module):
    """Part of the loss does not go through differentiation."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8).double(), nn.Linear(8, 3).double()

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.second(4 * h * h.detach())


def test_of_another_matrix_nothing_is_found_but_that():
    torch.manual_seed(0)
    r = curvature(Cut(), (X, Y), probes=1, steps=40, progress=False)
    assert r.status == "unresolved" and r.hessian_bottom.values[-1] < -0.1 * r.hessian_top.values[0]
    (found,) = curvature_findings(r)
    assert found.title == "the Hessian's eigenvalues are unresolved" and "detach" in found.evidence and found.severity == "warning"


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_eigenvalues_within_the_noise_are_marked(dtype):
    """The loss of a linear model has flat directions: the same added to all classes changes nothing. What rounding makes of these zeros is marked."""
    x = X.to(getattr(torch, dtype))
    r = curvature(mlp((6, 3), dtype=dtype), (x, Y), k=4, probes=1, steps=21, tol=1e-5, progress=False)
    eps = torch.finfo(x.dtype).eps
    assert eps * 1e-2 < r.value_floor < 100 * eps * r.hessian_top.scale
    assert not r.unresolved(r.hessian_top).any() and r.unresolved(r.hessian_bottom).all() and not r.unresolved(r.ggn_top).any()
    assert "~: within the noise" in r.summary()


def test_no_sign_is_told_of_what_the_noise_covers(model):
    r = curvature(model, (X, Y), k=3, k_bottom=1, probes=1, steps=40, progress=False)
    low, top = r.hessian_bottom, r.hessian_top
    below = replace(low, values=np.array([-0.5 * top.values[0]]))
    titles = [[f.title for f in curvature_findings(replace(r, hessian_bottom=below, value_floor=floor * top.values[0]))] for floor in (0.4, 0.6)]
    assert any("negative curvature" in t for t in titles[0]) and not any("negative curvature" in t for t in titles[1])
    assert curvature_findings(replace(r, value_floor=2 * top.values[0])) == ()
