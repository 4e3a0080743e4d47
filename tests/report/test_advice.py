"""How ablation and advice look: every number in its row, bounds said, names harmless."""

from __future__ import annotations

import numpy as np
import pytest
from report import results_made as made

from spectral_fast.report.text import summarize
from spectral_fast.weights.advise import advise


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_ablation_in_words() -> None:
    text = squeezed(summarize(made.ablation()))
    assert "matrix low.weight, 8x20" in text and "baseline loss 0.5000 (cross_entropy, 1,234 samples)" in text
    assert "noise scale 0.1250: the loss first rises there; 4 of 8 singular values lie below" in text
    for row in ("0.007812 7/8 0.5000 0 ± 0 0.0 % no", "0.06250 4/8 0.4375 -0.062 ± 0.013 -12.5 % down", "1.000 0/8 3.000 2.50 ± 0.25 500.0 % up"):
        assert row in text
    assert "more than 1.0 % of the baseline" in text and "each sample with itself" in text


def test_what_a_sweep_did_not_find_is_said() -> None:
    assert "noise scale none: the loss does not rise even without the whole matrix" in squeezed(summarize(made.ablation(noise_scale=np.inf, noise_rank=0)))
    assert "noise scale not measured: single cuts, no sweep" in squeezed(summarize(made.ablation(noise_scale=np.nan, noise_rank=-1)))
    text = squeezed(summarize(made.ablation(noise_scale=np.nan, noise_rank=-1, status="incomplete", reason="interrupted")))
    assert "status incomplete: interrupted" in text and "not measured: interrupted" in text


def test_ablation_drawn_and_tabled() -> None:
    a = made.ablation()
    ax = a.plot().axes[0]
    drawn = sorted(float(x) for c in ax.containers for x in np.asarray(c.lines[0].get_xdata()))
    assert drawn == list(a.gammas)
    ticks = next(line for line in ax.lines if line.get_label() == "singular values")
    assert sorted(np.asarray(ticks.get_xdata())) == sorted(a.s)
    frame = a.to_pandas()
    assert list(frame["change"]) == list(a.changes) and list(frame["kept"]) == [7, 6, 5, 4, 3, 0] and frame["moved"].sum() == 3
    empty = made.ablation(**{k: np.zeros(0) for k in ("gammas", "kept", "losses", "changes", "stderr", "moved")}, status="incomplete", reason="interrupted")
    assert "interrupted" in summarize(empty) and empty.to_pandas().empty and empty.plot().axes


def test_advice_in_words() -> None:
    a = advise(made.weights())
    text = summarize(a)
    lines = [line.replace(" %", "%").split() for line in text.split("\n")]
    rows = {words[0]: words for words in lines if len(words) > 8 and words[0].endswith(".weight")}
    assert set(rows) == {"first.weight", "low.weight", "zero.weight"}
    low = next(m for m in a.matrices if m.name == "low.weight")
    saved = ["none" if r.saved == 0 else f"{100 * r.saved:.1f}%" for r in low.low_rank]
    assert rows["low.weight"][2:8] == [text for r, s in zip(low.low_rank, saved, strict=True) for text in (str(r.rank), s)]
    assert f"{low.bits}/{low.bits_all}" in rows["low.weight"]
    assert "unresolved" in rows["zero.weight"]
    assert f"{a.megabytes:.4g}"[:4] in squeezed(text) and "as stored" in text
    assert "skipped: vector: no spectrum: first.bias (40)" in text


def test_long_advice_ends_with_where_the_rest_is() -> None:
    small = np.random.default_rng(0).standard_normal((4, 4))
    a = advise(made.weights({f"layer.{i}.weight": small.copy() for i in range(310)}))
    assert "and 13 more matrices" in squeezed(summarize(a))
    assert len(a.to_pandas()) == 313
    assert "(first 30 of 313)" in a.plot().axes[0].get_title(loc="left")


@pytest.mark.parametrize("form", ["text", "page", "figure"])
def test_hostile_names_do_nothing(form: str) -> None:
    results = (made.ablation(layer=made.HOSTILE, loss_name=made.HOSTILE, notes=(made.HOSTILE,)), advise(made.weights({made.HOSTILE: np.eye(9)})))
    for result in results:
        if form == "figure":
            figure = result.plot()
            figure.canvas.draw()
            continue
        shown = summarize(result) if form == "text" else result._repr_html_()
        assert not set("\x1b\x07\u2028\u202e") & set(shown)
        assert form == "text" or "<script>" not in shown
