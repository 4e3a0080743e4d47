"""Results as pandas tables."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from report import results_made as made

from spectral_fast.collapse import LayerCollapse

pd = pytest.importorskip("pandas", reason="pandas is not installed")


def test_weights_rows() -> None:
    w = made.weights()
    frame = w.to_pandas().set_index("name")
    assert list(frame.index) == ["first.weight", "low.weight", "zero.weight", "first.bias"]
    assert frame.loc["low.weight", "rank_storage"] == 5 and bool(frame.loc["low.weight", "condition_number_is_lower_bound"])
    assert frame.loc["first.weight", "spectral_norm"] == w.spectrum("first.weight").s[0]
    assert frame.loc["first.weight", "alpha"] == w.spectrum("first.weight").power_law.alpha
    assert frame.loc["first.weight", "mp_var"] == w.spectrum("first.weight").mp.var and frame.loc["first.weight", "mp_spikes"] == 0
    assert np.isnan(frame.loc["zero.weight", "mp_spikes"]) and {"mp_soft_rank", "mp_upper_edge", "mp_status"} <= set(frame.columns)
    assert frame.loc["first.weight", "m"] == 40 and frame.loc["first.weight", "n"] == 24
    assert {f"rank_{rule}" for rule in ("numpy", "numerical_recipes", "loose", "log8", "storage")} <= set(frame.columns)
    assert {"tolerance_storage", "random_s_min", "alpha_stderr", "n_tail"} <= set(frame.columns)
    assert list(frame["status"]) == ["ok", "ok", "unresolved", "skipped"]
    assert frame.loc["first.bias", "reason"] == "vector: no spectrum" and np.isnan(frame.loc["first.bias", "alpha"])
    assert frame.loc["zero.weight", "reason"] == "zero matrix"


def test_rows_of_the_others() -> None:
    results = made.every_result()
    matrix = results["MatrixSpectrum"]
    assert np.array_equal(matrix.to_pandas()["singular_value"], matrix.s)
    gradients = results["GradientSpectrum"].to_pandas()
    assert np.array_equal(gradients["eigenvalue"], results["GradientSpectrum"].eigenvalues) and gradients["centered"].all()
    pairs = results["EigenResult"].to_pandas()
    assert list(pairs["eigenvalue"]) == [3.0, 2.0] and list(pairs["residual"]) == pytest.approx([3e-4, 2e-4]) and pairs["converged"].all()
    curvature = results["CurvatureSpectra"].to_pandas()
    assert list(curvature[(curvature["operator"] == "ggn")]["eigenvalue"]) == [15.0, 9.5, 1.25]
    assert list(curvature[curvature["quantity"] == "bottom eigenvalue"]["converged"]) == [True, False]
    assert curvature[curvature["quantity"] == "trace"]["trace"].tolist() == [112.5, 40.0, 72.5]
    density = results["SpectralDensity"].to_pandas()
    assert list(density["node"]) == [10.0, 0.0, -0.5] and density["weight"].sum() == 1.0
    trace = results["TraceResult"].to_pandas()
    assert list(trace["layer"]) == ["", "a.weight", "b.weight"] and trace["low95"][0] < 112.5 < trace["high95"][0]
    collapse = results["NeuralCollapse"].to_pandas().set_index("measure")
    assert collapse.loc["NC1", "value"] == 1.25 and collapse.loc["NC4", "value"] == 0.0
    layers = {"a": LayerCollapse(nc1=2.0), "b": LayerCollapse(nc1=3.0)}
    both = made.collapse(by_layer=layers, test=made.collapse(nc1=4.0, nc4=0.5, nc4_train=0.25, by_layer={"a": LayerCollapse(nc1=5.0)})).to_pandas()
    at = both.set_index(["layer", "measure"])["test"]
    assert list(both.columns[:4]) == ["layer", "measure", "value", "test"]
    assert at["", "NC1"] == 4.0 and at["", "NC4"] == 0.25 and at["a", "nc1"] == 5.0 and math.isnan(at["b", "nc1"])
    findings = results["Diagnosis"].to_pandas()
    assert list(findings["severity"]) == ["severe", "info"] and findings["advice"][0] == "less weight decay"


def test_empty_tables_have_their_columns() -> None:
    assert "advice" in made.diagnosis(findings=()).to_pandas().columns
    assert "residual" in made.curvature(hessian_top=None, hessian_bottom=None, ggn_top=None, trace=None).to_pandas().columns


def test_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        made.trace().to_pandas()


def test_unknown_class() -> None:
    from spectral_fast.report.tables import to_frame

    with pytest.raises(TypeError, match="result: got int; known: "):
        to_frame(3)  # type: ignore[arg-type]
