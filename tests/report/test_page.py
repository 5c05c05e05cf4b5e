"""The page: whole, escaped, self-contained, and readable without eyes, colour or network."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from limbeck.report.curves import BINS, Axis, figure
from limbeck.report.page import STYLE, page
from limbeck.report.sections import Curve, Examples, KeyValues, Section, Spread, Table, Text, Worked, before_and_after

VOID = {"meta", "line", "polyline", "polygon", "br"}
WORKED = Worked(
    query="مصر",
    expected="Egypt",
    answers={"zero-shot": "<b>مصر</b>", "MEND": " Egypt "},
    demos=[("Deutschland", "Germany")],
    task="ar to en",
)
SECTIONS: list[Section] = [
    Text("Summary", "One & two.\n\nThree."),
    Table(
        "Scores", ("method", "score", "n"), [("MEND", Spread(0.94, 0.012), 3), ("none", None, 12345)], note="A note."
    ),
    Curve("Loss", {"a": ([0, 1, 2], [3.0, 2.0, 1.0]), "b": ([0, 1], [1.0, math.nan])}),
    Curve("Rate", {"lr": (range(1000), [1e-4] * 1000)}),
    Examples("Worked", [WORKED]),
    KeyValues("Facts", {"versions": {"torch": "2"}, "none": None}),
]


class Nesting(HTMLParser):
    """Follows open tags, and collects what a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        return

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html() -> str:
    return page("A run <1>", SECTIONS, "subtitle")


def test_tags_close_and_anchors_meet(html: str) -> None:
    seen = Nesting()
    seen.feed(html)
    assert seen.open == []
    assert len(set(seen.ids)) == len(seen.ids)
    assert [f"#{name}" for name in seen.ids] == seen.links


def test_two_sections_of_one_title_get_two_anchors() -> None:
    seen = Nesting()
    seen.feed(page("t", [Text("Same", "a"), Text("Same", "b"), Text("???", "c")]))
    assert len(set(seen.ids)) == 3


def test_nothing_is_fetched_and_nothing_runs(html: str) -> None:
    assert not re.search(r"<script|<link|@import|url\(|https?:", html)
    assert "default-src &#x27;none&#x27;" in html


def test_text_is_escaped(html: str) -> None:
    assert "<b>مصر" not in html
    assert "&lt;b&gt;مصر" in html
    assert "<title>A run &lt;1&gt;</title>" in html
    assert "<p>One &amp; two.</p>" in html


def test_tables_show_intervals_and_empty_cells(html: str) -> None:
    assert '0.940 <span class="half">± 0.012</span>' in html
    assert "12\u202f345" in html
    assert "A note." in html


def test_before_and_after_go_by_name() -> None:
    table = before_and_after("Change", {"kl": 2.0, "nll": 3.0}, {"nll": 1.0, "kl": 0.5}, "Nats.")
    assert table.rows == [("kl", 2.0, 0.5), ("nll", 3.0, 1.0)]
    assert (table.columns, table.note) == (("", "before", "after"), "Nats.")


def test_marks_are_words_too_and_each_script_runs_its_own_way(html: str) -> None:
    assert '<tr class="wrong"><th scope="row">zero-shot</th>' in html
    assert '<tr class="right"><th scope="row">MEND</th>' in html
    assert 'aria-label="wrong"' in html
    assert "<bdi>مصر</bdi>" in html


def test_a_verdict_can_be_given() -> None:
    worked = Worked("q", "Egypt", {"a": "egypt", "b": "Egypt"}, right={"a": True})
    assert (worked.verdict("a"), worked.verdict("b")) == (True, True)
    assert not Worked("q", "Egypt", {"a": "egypt"}).verdict("a")


def test_curves_say_in_words_what_they_show(html: str) -> None:
    assert "Loss: a from 3.000 at step 0 to 1.000 at 2, least 1.000, most 3.000; b from 1.000" in html


def test_long_curves_are_thinned_and_keep_their_extremes() -> None:
    spike = [1.0] * 5000
    spike[2501] = 9.0
    drawn = figure(Curve("x", {"y": (range(5000), spike)}))
    line = re.search(r'<polyline class="line c0" points="([^"]*)"', drawn)
    assert line is not None
    assert len(line[1].split()) <= BINS
    band = re.search(r'<polygon class="band c0" points="([^"]*)"', drawn)
    assert band is not None
    highest = min(float(point.split(",")[1]) for point in band[1].split())
    assert highest < min(float(point.split(",")[1]) for point in line[1].split())


@pytest.mark.parametrize(
    ("series", "log"),
    [
        ({"y": ([0], [1.0])}, False),
        ({"y": ([0, 1], [0.0, 0.0])}, False),
        ({"y": ([0, 1], [-5.0, -5.0])}, False),
        ({"y": ([0, 1, 2], [0.0, 1e-6, 1e6])}, True),
        ({"y": ([0, 1], [math.inf, 3.0])}, False),
        ({"y": ([], [])}, False),
        ({}, False),
    ],
)
def test_odd_curves_are_drawn_without_odd_numbers(
    series: dict[str, tuple[list[float], list[float]]], log: bool
) -> None:
    drawn = figure(Curve("odd", series, log=log))
    assert "nan" not in drawn
    assert "inf" not in drawn
    seen = Nesting()
    seen.feed(drawn)
    assert seen.open == []


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 3000), (-4.2, 17), (1e-5, 9e-5), (0.4301, 0.4302)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    ticks = Axis(low, high, 0, 100).ticks()
    assert 2 <= len(ticks) <= 8
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)


def test_an_axis_maps_ends_to_ends() -> None:
    axis = Axis(1, 100, 10, 30, log=True)
    assert (axis.at(1), axis.at(10), axis.at(100)) == (10, 20, 30)


def luminance(colour: str) -> float:
    """WCAG relative luminance of ``#rrggbb``."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_every_colour_of_text_has_contrast(mode: int) -> None:
    blocks = re.findall(r":root\s*{([^}]*)}", Path(STYLE).read_text(encoding="utf-8"))
    colours = dict(re.findall(r"--(\w+):\s*(#\w{6})", blocks[mode]))
    for ground in ("paper", "tint"):
        for name in set(colours) - {"paper", "tint", "rule"}:
            a, b = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
            assert (a + 0.05) / (b + 0.05) >= 4.5, f"{name} on {ground}"
