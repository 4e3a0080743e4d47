"""Figures: what is drawn is what was measured, names are not mathematics, pyplot is left alone."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from children import run_python
from matplotlib.figure import Figure
from report import results_made as made

from spectral_fast.report import plots
from spectral_fast.weights.scan import scan


def texts(figure: Figure) -> str:
    figure.canvas.draw()  # lays everything out and raises where a label cannot be drawn
    found = [ax.get_title(loc="left") for ax in figure.axes]
    for ax in figure.axes:
        found += [t.get_text() for t in ax.texts] + [t.get_text() for t in ax.get_yticklabels()] + [ax.get_xlabel(), ax.get_ylabel()]
        legend = ax.get_legend()
        found += [t.get_text() for t in legend.get_texts()] if legend is not None else []
    return "\n".join(found)


@pytest.mark.parametrize("name", sorted(made.every_result()))
def test_every_result_has_a_figure(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = made.every_result()[name].plot()
        data = plots.png(figure, dpi=40)
    assert isinstance(figure, Figure)
    assert data.startswith(b"\x89PNG") and len(data) > 3000
    for ax in figure.axes:
        assert ax.get_title(loc="left")
        assert ax.get_xlabel()


def test_the_same_numbers_give_the_same_picture() -> None:
    assert plots.png(made.trace().plot(), dpi=40) == plots.png(made.trace().plot(), dpi=40)


def test_singular_values_are_drawn() -> None:
    w = made.weights()
    right = w.plot().axes[1]
    drawn = {line.get_label(): np.asarray(line.get_ydata(), dtype=float) for line in right.lines}
    assert np.array_equal(drawn["first.weight"], w.spectrum("first.weight").s)
    low = w.spectrum("low.weight")
    assert np.array_equal(drawn["low.weight"][:5], low.s[:5])
    tolerance = low.rank_tolerances["storage"]
    assert (drawn["low.weight"][5:] < tolerance).all() and (drawn["low.weight"][5:] >= right.get_ylim()[0]).all(), "lost ones are drawn below the tolerance"
    assert "storage tolerance (rounding noise)" in texts(w.plot())
    assert right.get_yscale() == "log"


def test_density_of_evals_integrates_to_one_and_tail_is_the_fit() -> None:
    m = made.weights().spectrum("first.weight")
    ax = m.plot().axes[0]
    stairs = ax.patches[0].get_data()
    inside = stairs.values > 1.001 * ax.get_ylim()[0]  # empty bins are drawn at the bottom
    assert float((stairs.values * np.diff(stairs.edges))[inside].sum()) == pytest.approx(1.0, abs=1e-9)
    tail = next(line for line in ax.lines if str(line.get_label()).startswith("tail"))
    x, y = (np.asarray(v, dtype=float) for v in (tail.get_xdata(), tail.get_ydata()))
    assert np.polyfit(np.log(x), np.log(y), 1)[0] == pytest.approx(-m.power_law.alpha)
    assert x[0] == pytest.approx(m.power_law.xmin) and x[-1] == pytest.approx(m.s[0] ** 2)
    assert y[0] == pytest.approx(m.power_law.n_tail / 24 * (m.power_law.alpha - 1) / m.power_law.xmin)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_marchenko_pastur_curve_is_a_density() -> None:
    curve = plots.panels._marchenko_pastur((200, 50), 0.25)
    assert curve is not None
    x, y = curve
    assert np.trapezoid(y, x) == pytest.approx(1.0, abs=2e-3)
    assert np.trapezoid(x * y, x) == pytest.approx(200 * 0.25, rel=2e-3), "mean of the eigenvalues of WᵀW: d_max var"


def test_name_selects_the_matrix() -> None:
    w = made.weights()
    assert "first.weight" in w.plot(name="first.weight").axes[0].get_title(loc="left")
    assert "low.weight" in w.plot().axes[0].get_title(loc="left"), "the one that lost rank stands out"
    with pytest.raises(KeyError, match="nowhere"):
        w.plot(name="nowhere")
    with pytest.raises(ValueError, match="name: only weights"):
        made.trace().plot(name="first.weight")


def test_diagnosis_is_two_by_two_with_reasons_for_what_is_missing() -> None:
    figure = made.only_weights().plot()
    assert len(figure.axes) == 4
    assert texts(figure).count("skipped: no loader") == 3


def test_parts_that_are_missing() -> None:
    partial = made.curvature(hessian_bottom=None, ggn_top=None, trace=None)
    assert "not estimated by layer" in texts(partial.plot())
    assert "H, largest" in texts(made.curvature(density=None).plot())
    nothing = made.gradients(eigenvalues=np.zeros(4), trace=0.0)
    assert "no positive eigenvalue" in texts(nothing.plot())
    zero = made.weights().spectrum("zero.weight")
    assert "zero matrix" in texts(zero.plot()) and "no matrix with a spectrum" in texts(zero.plot())


def test_eigenvalues_are_ticks_on_the_density() -> None:
    c = made.curvature()
    ticks = {str(line.get_label()): list(np.asarray(line.get_xdata(), dtype=float)) for line in c.plot().axes[0].lines}
    assert ticks["H, largest"] == [14.0, 9.0, 1.5] and ticks["GGN, largest"] == [15.0, 9.5, 1.25] and ticks["H, smallest"] == [-0.25, -0.75]


def test_unconverged_pairs_are_drawn_apart() -> None:
    figure = made.pairs([3.0, 2.0, 1.0], [True, False, True]).plot()
    drawn = {str(line.get_label()): list(np.asarray(line.get_ydata(), dtype=float)) for line in figure.axes[0].lines}
    assert drawn["not converged"] == [2.0] and drawn["converged"] == [3.0, 1.0]


def test_noise_floor_of_gradients() -> None:
    g = made.gradients()
    assert "3 eigenvalues below" in texts(g.plot())
    line = np.asarray(g.plot().axes[0].lines[0].get_ydata(), dtype=float)
    assert len(line) == 27 and line.min() > g.noise_floor


def test_names_are_data() -> None:
    names = ["_hidden.weight", "$\\frac{1}{0}$.weight", "a$b.weight", made.HOSTILE]
    w = made.weights({n: np.diag(np.arange(1.0, 9.0)) + i for i, n in enumerate(names)})
    shown = texts(w.plot(name="$\\frac{1}{0}$.weight"))
    assert "_hidden.weight" in shown and "$\\frac{1}{0}$.weight" in shown
    assert not set("\x1b\x07\u2028") & set(shown)
    texts(made.trace(("$x^{$", "_y")).plot())
    texts(made.collapse(layer="$_{$").plot())


def test_pyplot_is_not_imported() -> None:
    code = (
        "import sys, numpy as np, spectral_fast as sf;"
        "sf.scan({'a.weight': np.random.default_rng(0).standard_normal((20, 30))}, progress=False).plot().savefig(__import__('io').BytesIO());"
        "print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    )
    out = run_python(code)
    assert out.stdout.split() == ["False", "False"]


def test_unknown_class() -> None:
    with pytest.raises(TypeError, match="result: got str; known: "):
        plots.plot("x")  # type: ignore[arg-type]


def test_every_matrix_is_marked_by_its_own_tolerance() -> None:
    """A bfloat16 matrix's rounding noise says nothing of float32 ones beside it."""
    state = made.weights()
    fine, coarse = (replace(state.spectrum("first.weight"), name=name, rank_tolerances={"storage": t}) for name, t in (("fine", 1e-7), ("coarse", 2.0)))
    figure = replace(state, matrices=(fine, coarse)).plot()
    lines = [line for ax in figure.axes for line in ax.get_lines() if line.get_label() == "at or below its own storage tolerance (rounding noise)"]
    assert len(lines) == 1 and np.array_equal(lines[0].get_ydata(), coarse.s[coarse.s <= 2.0])


def test_squares_beyond_the_range_are_not_drawn() -> None:
    huge = scan({"w": np.random.default_rng(0).standard_normal((12, 12)) * 1e200}, progress=False).spectrum("w")
    assert "beyond the range of float64" in texts(huge.plot())
