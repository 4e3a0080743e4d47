"""The page: one file, nothing loaded, nothing executed, everything from outside escaped."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report import results_made as made

from spectral_fast.report import html
from spectral_fast.results import Skipped

VOID = {"meta", "img", "br", "hr"}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages whose figures are made but not rendered, for tests of everything else."""
    monkeypatch.setattr(html, "png", lambda figure: b"\x89PNG")


class Reader(HTMLParser):
    """Collects elements and text and insists on balanced tags."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def assert_harmless(page: str) -> Reader:
    reader = read(page)
    assert {tag for tag, _ in reader.elements} <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "h1",
        "h2",
        "h3",
        "p",
        "span",
        "section",
        "article",
        "div",
        "dl",
        "dt",
        "dd",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "img",
        "code",
    }
    for _, attributes in reader.elements:
        assert not any(name.startswith("on") or name in ("href", "srcset", "action") for name in attributes)
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")  # type: ignore[union-attr]
    assert not re.search(r"url\(|@import|expression\(", page)
    assert not re.search(r"https?:", page)
    assert not set("\x1b\x07\u2028\u202e") & set(page)
    return reader


def test_page_of_a_diagnosis() -> None:
    page = html.page(made.diagnosis())
    reader = assert_harmless(page)
    assert page.startswith("<!DOCTYPE html>")
    policy = next(a["content"] for tag, a in reader.elements if tag == "meta" and "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:") and "script" not in policy
    images = [a for tag, a in reader.elements if tag == "img"]
    assert len(images) == 4
    for attributes in images:
        assert base64.b64decode((attributes["src"] or "").partition(",")[2]).startswith(b"\x89PNG")
        assert attributes["alt"]
    text = reader.text
    order = ["FINDINGS (1 severe, 1 remark)", "low.weight", "1. WEIGHT", "2. GRADIENT", "3. LOSS LANDSCAPE (Hessian)", "4. NEURAL", "ABOUT"]
    places = [text.index(o) for o in order]
    assert places == sorted(places), "findings first"
    for number in ("14.0000", "112.5 ± 1.0", "345.0 samples", "1.250", "5/12", "rank 5 of 12", "less weight decay", "Martin 2018"):
        assert number in text


@pytest.mark.usefixtures("undrawn")
def test_hostile_names_are_shown_and_do_nothing() -> None:
    d = made.diagnosis(
        model_name=made.HOSTILE,
        weights=made.weights({made.HOSTILE: np.eye(8)}),
        findings=(
            made.finding(where=made.HOSTILE, title=made.HOSTILE, evidence=made.HOSTILE),
            *(made.finding("x\"'><img src=x onerror=alert(1)>", made.HOSTILE) for _ in "ab"),
        ),
        curvature=made.curvature(trace=made.trace((made.HOSTILE, "b")), notes=(made.HOSTILE,), loss_name=made.HOSTILE),
        collapse=made.collapse(layer=made.HOSTILE),
        gradients=made.gradients(loss_name=made.HOSTILE),
        skipped=(Skipped(made.HOSTILE, made.HOSTILE),),
        notes=(made.HOSTILE,),
        backend=made.HOSTILE,
    )
    for page in (html.page(d), html.fragment(d), html.page(d.weights), html.fragment(d.weights.matrices[-1])):
        reader = assert_harmless(page)
        assert "<script>alert('\"x')</script>?[31m" in reader.text, "the name itself is still readable"


@pytest.mark.parametrize("name", sorted(made.every_result()))
@pytest.mark.usefixtures("undrawn")
def test_every_result_has_a_page_and_a_fragment(name: str, tmp_path: Path) -> None:
    result = made.every_result()[name]
    result.save_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page == html.page(result), "deterministic"
    assert_harmless(page)
    assert "<img" in page
    fragment = result._repr_html_()
    assert_harmless(fragment)
    assert fragment.startswith('<div class="spectral-fast">') and "<img" not in fragment


@pytest.mark.usefixtures("undrawn")
def test_all_rows_are_on_the_page() -> None:
    w = made.weights({f"layer.{i}.weight": np.random.default_rng(i).standard_normal((4, 5)) for i in range(310)})
    text = read(html.page(w)).text
    assert "layer.309" in text and "more matrices" not in text
    assert "more matrices" in read(html.fragment(w)).text


@pytest.mark.usefixtures("undrawn")
def test_skipped_analyses_have_no_figure_but_a_reason() -> None:
    page = html.page(made.only_weights())
    assert page.count("<img") == 1 and read(page).text.count("skipped: no loader") == 3
    assert html.page(made.diagnosis(collapse=made.collapse(status="skipped", reason="float targets"))).count("<img") == 3


@pytest.mark.usefixtures("undrawn")
def test_status_stands_on_top() -> None:
    text = read(html.page(made.diagnosis(status="incomplete", reason="interrupted"))).text
    assert text.index("incomplete: interrupted") < text.index("FINDINGS")


@pytest.mark.usefixtures("undrawn")
def test_findings_that_say_the_same_are_one_table() -> None:
    same = tuple(made.finding(where=f"layer{i}", evidence=f"rank {i} of 12") for i in range(3))
    text = read(html.page(made.diagnosis(findings=same))).text
    assert "3 places : rank collapse" in text.replace("places:", "places :")
    assert text.count("less weight decay") == 1 and "layer2 rank 2 of 12 random: 12" in text
    differing = (made.finding(where="a", advice="widen a"), made.finding(where="b", advice="widen b"))
    text = read(html.page(made.diagnosis(findings=differing))).text
    assert "a rank 5 of 12 random: 12 widen a" in text and "b rank 5 of 12 random: 12 widen b" in text


def test_unknown_class() -> None:
    with pytest.raises(TypeError, match="result: got list; known: "):
        html.page([])  # type: ignore[arg-type]
