"""Numbers, names and tables as text."""

from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectral_fast.report.words import Column, cells, integer, number, paragraph, plain, plus_minus, share, shorten, shorten_all, table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1.000"),
        (12.3456, "12.35"),
        (0.0012345, "0.001234"),
        (0.00012345, "1.234e-4"),
        (123456.0, "1.235e+5"),
        (99999.6, "1.000e+5"),
        (-2.5, "-2.500"),
        (math.nan, "-"),
        (None, "-"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (9.9996, "10.00"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300))
def test_number_is_right_to_its_digits(value: float) -> None:
    assert float(number(value, 4)) == pytest.approx(value, rel=6e-4, abs=1e-307)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (3.14159, 0.12, "3.14 ± 0.12"),
        (123.4, 5.61, "123.4 ± 5.6"),
        (0.0, 0.5, "0.00 ± 0.50"),
        (2.0, 0.0, "2.000 ± 0"),
        (1.5, math.nan, "1.500"),
        (math.nan, 1.0, "-"),
        (2.0e-9, 1.0e-10, "(2.00 ± 0.10)e-9"),
        (12.0, 345.0, "12 ± 345"),
        (None, None, "-"),
        (1.0, math.inf, "1.000"),
    ],
)
def test_plus_minus(value: float | None, error: float | None, text: str) -> None:
    assert plus_minus(value, error) == text


def test_share_never_rounds_something_to_nothing() -> None:
    assert (share(0.0), share(1e-9), share(0.281), share(1.0), share(math.nan), share(1e-9, 2)) == ("0.0 %", "<0.1 %", "28.1 %", "100.0 %", "-", "<0.01 %")


def test_integer() -> None:
    assert (integer(1234567), integer(None), integer(math.nan)) == ("1,234,567", "-", "-")


@given(st.text())
def test_plain_leaves_nothing_that_moves_a_cursor(text: str) -> None:
    shown = plain(text)
    assert len(shown) == len(text)
    assert not any(unicodedata.category(c)[0] == "C" or unicodedata.category(c) in ("Zl", "Zp") for c in shown)
    assert len(shown.splitlines()) <= 1


def test_plain_keeps_names_readable() -> None:
    assert plain("encoder.layer.0.weight [q] é 層") == "encoder.layer.0.weight [q] é 層"
    assert plain("a\x1b[31mb\nc\u2028d\u202ee\x00") == "a?[31mb?c?d?e?"


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["C", "M"]), max_size=60), st.integers(5, 40))
def test_shorten_fits(text: str, width: int) -> None:
    assert cells(shorten(text, width)) <= width
    if cells(text) <= width:
        assert shorten(text, width) == text


def test_shortened_names_keep_what_tells_them_apart() -> None:
    names = [f"encoder.layer.{i}.attention.self.{part}" for i in (0, 11) for part in ("query", "key")]
    assert shorten_all(names, 20) == ["e.l.0.a.self.query", "e.l.0.a.self.key", "e.l.11.a.self.query", "e.l.11.a.self.key"]
    assert shorten("a" * 30, 10) == "aaa..aaaaa"
    assert len(set(shorten_all([f"{'x' * 40}{i}{'y' * 40}" for i in range(12)], 12))) == 12


def test_initials_that_would_make_names_alike_are_not_taken() -> None:
    short = shorten_all(["encoder.block.weight", "embedding.block.weight"], 14)
    assert len(set(short)) == 2 and all(cells(s) <= 14 for s in short)


def test_numbered_names_are_told_in_full() -> None:
    names = [f"{'x' * 40}{i}{'y' * 40}" for i in range(3)]
    lines = table([Column("name", names, "left", shrink=12), Column("value", ["1", "2", "3"])], width=40)
    shown = " ".join(lines)
    assert all(f"~{i + 1} " in shown for i in range(3)) and "".join(lines).replace(" ", "").count("y" * 40) == 3
    assert "in full" not in " ".join(table(columns(), width=60))


def test_wide_characters_count_twice() -> None:
    assert (cells("abc"), cells("層"), cells("e\u0301")) == (3, 2, 1)


def columns() -> list[Column]:
    names = [f"block.{i}.weight" for i in range(3)]
    return [
        Column("name", names, "left", shrink=14),
        Column("long\nheading", ["1.0", "22.0", "333.0"], drop=2),
        Column("kept", ["x", "y", "z"]),
        Column("empty", ["", "", ""]),
    ]


def test_table_is_aligned() -> None:
    lines = table(columns(), width=60, indent=2)
    assert lines == [
        "                     long",
        "  name            heading  kept",
        "  block.0.weight      1.0     x",
        "  block.1.weight     22.0     y",
        "  block.2.weight    333.0     z",
    ]


def test_table_names_what_it_leaves_out() -> None:
    lines = table(columns(), width=24, indent=2)
    assert "(left out at this width: long heading)" in " ".join(" ".join(lines).split())
    assert all(cells(line) <= 30 for line in lines)
    assert lines[1].split() == ["block.0.weight", "x"]


@given(st.integers(12, 120), st.lists(st.text(alphabet="ab.0", min_size=1, max_size=40), min_size=1, max_size=4))
def test_table_fits_while_something_can_go(width: int, names: list[str]) -> None:
    made = [Column("n", names, "left", shrink=6)] + [Column(f"c{i}", ["1234567"] * len(names), drop=i + 1) for i in range(6)]
    assert all(cells(line) <= max(width, 30) for line in table(made, width))


def test_paragraph_wraps_and_hangs() -> None:
    assert paragraph("one two three four five six seven", 30, lead="note: ", indent=1, hang=4) == [" note: one two three four five", "    six seven"]
