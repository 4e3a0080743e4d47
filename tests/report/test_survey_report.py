"""Surveys on paper: bars are counts, limits and zeros stand apart, names are data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from report import results_made as made

from spectral_fast.report import html, plots
from spectral_fast.report.survey_panels import rows_of_models
from spectral_fast.report.survey_sections import drawn_at
from spectral_fast.report.text import summarize
from spectral_fast.results import Skipped
from spectral_fast.weights.surveyed import ASPECTS, Survey, collapse_shares

SQUARE, OBLONG = ASPECTS


def squeezed(text: str) -> str:
    return " ".join(text.split())


def panels(survey: Survey, *headings: str) -> list[Axes]:
    """Those of the figure whose headings begin so."""
    figure = survey.plot()
    return [next(ax for ax in figure.axes if ax.get_title(loc="left").startswith(heading)) for heading in headings]


def bars(ax: Axes) -> list[tuple[float, float, str]]:
    """(middle in log10, height, hatch) of every bar that is there."""
    return sorted((round(p.get_x() + p.get_width() / 2, 6), p.get_height(), p.get_hatch() or "") for p in ax.patches if p.get_height() > 0)  # type: ignore[attr-defined]


def of(matrices: list[Any], **changes: Any) -> Survey:
    model = made.made(made.SurveyedModel, name="net", path="/net", status="ok", parameters=1, matrices=tuple(matrices))
    return made.made(Survey, models=(model,), shares=collapse_shares(matrices, ["net"]), **changes)


def test_bars_are_counts_and_limits_stand_apart() -> None:
    survey = made.survey_of(["a", "b", "c"])
    square, oblong = panels(survey, "6 matrices with Q < 1.1", "6 matrices with Q ≥ 1.1")
    found = bars(square)
    hatched = [b for b in found if b[2]]
    assert sum(b[1] for b in found) == 6 and [b[1] for b in hatched] == [3] and not any(b[2] for b in bars(oblong))
    width = square.patches[0].get_width()  # type: ignore[attr-defined]
    assert abs(hatched[0][0] - np.log10(1e-6)) <= width, "drawn at the noise of 1e-6, not at the 3e-7 that were computed"
    known = [b for b in found if not b[2]]
    assert all(-4 - width <= b[0] <= -3.8 + width for b in known)
    zero = bars(oblong)[0]
    ticks = {round(t.get_position()[0], 6): t.get_text() for t in square.get_xticklabels()}
    assert zero[1] == 3 and ticks[zero[0]] == "0" and zero[0] < hatched[0][0], "what is 0 stands left of the axis"
    texts = [t.get_text() for ax in (square, oblong) for t in ax.get_legend().get_texts()]  # type: ignore[union-attr]
    assert texts == ["3 above the noise", "3 within it: upper limit", "3 above the noise", "3 exactly 0"]


def test_every_matrix_is_in_its_kind_and_model() -> None:
    survey = made.survey_of(["net-a", "net-b"])
    found = panels(survey, "linear (6)", "attention (2)", "net-a (4)", "net-b (4)")
    assert [sum(b[1] for b in bars(ax)) for ax in found] == [6, 2, 4, 4]
    assert not any(ax.get_title(loc="left").startswith("net") for ax in made.survey_of(["net"]).plot().axes), "one model is all there is"


def test_shares_with_their_intervals() -> None:
    survey = made.survey_of(["a", "b"])
    (ax,) = panels(survey, "matrices that lost rank")
    written = [t.get_text() for t in ax.texts]
    assert written == [*["2 of 4"] * 5, "2 of 4", "0 of 4", "4 of 4", "0 of 4", "2 of 4"]
    text = squeezed(summarize(survey))
    assert "loose 6 = 75.0 % 40.9 .. 92.9 % 4 = 100.0 % 51.0 .. 100.0 % 2 = 50.0 % 15.0 .. 85.0 %" in text


def test_far_values_are_clipped_and_said(recwarn: pytest.WarningsRecorder) -> None:
    far = [made.surveyed("net", f"{i}", (8, 8), 10.0**-e, noise=0.0) for i, e in enumerate((0, 1, 3, 30, 200, 310))]
    survey = of(far)
    (ax,) = panels(survey, "6 matrices with Q < 1.1")
    assert sum(b[1] for b in bars(ax)) == 6 and "3 below the axis" in ax.get_xlabel()
    assert "below 1e-16 50.00 %" in squeezed(summarize(survey))
    assert drawn_at(far[-1]) == 1e-300
    one = of(far[:1])
    assert sum(b[1] for b in bars(panels(one, "1 matrix with Q <")[0])) == 1
    zeros = of([made.surveyed("net", "z", (8, 8), 0.0, zero=True)])
    assert bars(panels(zeros, "1 matrix with Q <")[0])[0][1] == 1
    assert not recwarn.list


def test_nothing_and_parts() -> None:
    nothing = made.made(Survey, status="failed", reason="failed: none of 1 checkpoints could be surveyed", models=(), shares=collapse_shares([], []))
    text = squeezed(summarize(nothing))
    assert "SURVEY OF 0 CHECKPOINTS" in text and "status failed: none of 1" in text
    assert "none of 1" in nothing.plot().axes[0].texts[0].get_text() and "none of 1" in html.page(nothing)
    some = made.survey_of(["net"], status="incomplete", reason="interrupted after 1 of 3 checkpoints", skipped=(Skipped("b", "odd"), Skipped("c", "odd")))
    text = squeezed(summarize(some))
    assert "SURVEY OF 1 CHECKPOINT:" in text and "status incomplete: interrupted after 1 of 3" in text and "skipped: 2 x odd: b, c" in text
    assert "not counted: product of LoRA factors: its rank is that of the factors: x (lora BA) (8x8)" in text
    assert "no matrices 3 tensors: 3 x vector: no spectrum" in text and "exactly 0 1: by their rows" in text


def test_many_models() -> None:
    names = [f"organisation/a.very.long.name.of.a.model-{i}" for i in range(75)]
    survey = made.survey_of(names)
    figure = survey.plot()
    headings = [ax.get_title(loc="left") for ax in figure.axes]
    small = [h for h in headings if h.endswith("(4)")]
    assert len(small) == len(set(small)) == 60 and rows_of_models(survey) == 12
    assert any("first 60 of 75 checkpoints" in (s.get_text() if (s := part._suptitle) else "") for part in figure.subfigs)
    assert all(len(h) <= 32 for h in small), "cut in the middle"
    text, fragment = summarize(survey), html.fragment(survey)
    assert max(map(len, text.split("\n"))) <= 120 and all(f"model-{i} " in text for i in range(75))
    assert all(name in fragment for name in names)


def test_hostile_names() -> None:
    survey = made.survey_of([made.HOSTILE, "$\\frac{1}{0}$"], notes=(made.HOSTILE,), store=made.HOSTILE, skipped=(Skipped(made.HOSTILE, made.HOSTILE),))
    page, text = html.page(survey), summarize(survey)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not set("\x1b\x07\u2028\u202e") & set(page + text)
    assert plots.png(survey.plot(), dpi=30).startswith(b"\x89PNG")
