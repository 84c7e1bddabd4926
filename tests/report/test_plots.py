"""Plots keep within their frame, whatever the numbers."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from draftrec.report import plots
from draftrec.report.plots import Bar, Labels, Series, Stack

LABELS = Labels("Title & more", "What <is> shown.", "across, ms", "up, %")
positive = st.floats(0, 1e7, allow_nan=False)
finite = st.floats(-1e7, 1e7, allow_nan=False)


def inside(svg: Markup) -> ElementTree.Element:
    """Parse, and check that every coordinate lies in the view box."""
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for node in root.iter():
        get = lambda key, node=node: float(node.attrib.get(key, 0))  # noqa: E731
        if node.tag == "rect":
            assert get("width") >= 0
            assert get("height") >= 0
            assert -0.1 <= get("x") <= get("x") + get("width") <= width + 0.2
            assert -0.1 <= get("y") <= get("y") + get("height") <= height + 0.2
        for key in ("x1", "x2", "cx"):
            assert -0.1 <= get(key) <= width + 0.1
        for key in ("y1", "y2", "cy"):
            assert -0.1 <= get(key) <= height + 0.1
    return root


@pytest.mark.slow
@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=5))
def test_bars(values: list[tuple[float, float]]) -> None:
    data = [Bar(f"arm {i}", min(v), min(v), max(v), i) for i, v in enumerate(values)]
    root = inside(plots.bars(data, LABELS, reference=1.0))
    assert len(root.findall("rect")) == len(data)


@pytest.mark.slow
@given(st.dictionaries(st.integers(1, 4096), positive, min_size=1), st.booleans())
def test_lines(points: dict[int, float], doubling: bool) -> None:  # noqa: FBT001
    series = Series("cost", sorted(points), [points[x] for x in sorted(points)])
    root = inside(plots.lines([series, series], LABELS, doubling=doubling))
    assert len(root.findall("circle")) == 2 * len(points)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=6), st.one_of(st.none(), finite))
def test_scatter(points: list[tuple[float, float]], limit: float | None) -> None:
    cloud = Series("a", [x for x, _ in points], [y for _, y in points])
    root = inside(plots.scatter([cloud, cloud], LABELS, edge=cloud, limit=limit))
    assert len(root.findall("circle")) == 2 * len(points)
    corners = root.find("polyline")
    assert corners is not None
    assert len(corners.attrib["points"].split()) == len(points)
    dashed = [n for n in root.findall("line") if n.attrib["class"] == "reference"]
    assert len(dashed) == (limit is not None)


def test_scatter_spans_the_data_not_zero() -> None:
    cloud = Series("a", [0.1, 0.3], [1.5, 1.9])
    words = "".join(inside(plots.scatter([cloud], LABELS)).itertext())
    assert "1.5" in words
    assert "1.4" not in words


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60), st.integers(4, 30))
def test_histogram(counts: list[int], most: int) -> None:
    root = inside(plots.histogram([Series("a", range(len(counts)), counts)], LABELS, most))
    assert len(root.findall("rect")) == min(len(counts), most + 1)
    assert (f"{most}+" in "".join(root.itertext())) == (len(counts) > most + 1)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4))
def test_shares(rows: list[tuple[int, int]]) -> None:
    data = [Stack(f"arm {i}", [("pool", a), ("prompt", b)]) for i, (a, b) in enumerate(rows)]
    inside(plots.shares(data, LABELS))


@pytest.mark.parametrize(
    ("value", "shown"), [(3.0, "3"), (0.125, "0.125"), (1234.6, "1,235"), (2e6, "2.00M")]
)
def test_values_are_written_out(value: float, shown: str) -> None:
    assert f">{shown}<" in plots.bars([Bar("only", value)], LABELS)


def placed(svg: Markup) -> list[tuple[str, float, float]]:
    """Each level text of a plot, and where it begins and ends by the letters' usual width."""
    found = []
    for node in inside(svg).findall("text"):
        words, x, names = node.text or "", float(node.attrib["x"]), node.attrib["class"].split()
        long = sum(12.6 if ord(letter) > 0x2E80 else 6.3 for letter in words)
        start = x - (long if "end" in names else long / 2 if "middle" in names else 0)
        found.append((words, start, start + long))
    return found


def test_long_names_are_shortened_and_leave_room_for_the_plot() -> None:
    name = "relaxed-top4-minprob0.02-poolA-2026-12-01-second-try"
    data = [
        Bar(name, 1.0, note="1,000,000 letters"),
        Bar("基準モデルの出力テキスト全部の比較", 2.0),
    ]
    root = inside(plots.bars(data, LABELS))
    assert max(float(bar.attrib["width"]) for bar in root.iter("rect")) > 100
    stack = plots.shares([Stack(name, [("pool", 1), ("prompt", 1)])], LABELS)
    for words, start, end in [*placed(plots.bars(data, LABELS)), *placed(stack)]:
        assert 0 <= start < end <= plots.WIDTH, words
    assert any(
        words.startswith("relaxed-") and words.endswith("-try") for words, *_ in placed(stack)
    )


def test_legends_take_as_many_lines_as_they_need() -> None:
    names = [f"a run with a long name {i}" for i in range(5)]
    series = [Series(name, [1, 2], [1, 2], i) for i, name in enumerate(names)]
    stack = [Stack("all", [(name, 1) for name in names])]
    drawn = (
        plots.lines(series, LABELS), plots.histogram(series, LABELS),
        plots.scatter(series, LABELS), plots.shares(stack, LABELS),
    )  # fmt: skip
    for svg in drawn:
        assert {words for words, *_ in placed(svg)} >= set(names)
        for words, start, end in placed(svg):
            assert start >= 0, words
            assert end <= plots.WIDTH, words


def test_entries_of_a_legend_keep_apart_in_the_larger_letters_of_a_phone() -> None:
    """20 letters were 149 pixels wide there, where the next entry began after 138."""
    parts = [("own prompt and text", 3), ("group pool", 13), ("pool of all", 83)]
    root = inside(plots.shares([Stack("strict", parts)], LABELS))
    texts = [t for t in root.findall("text[@class='label']") if t.text in dict(parts)]
    swatches = [r for r in root.findall("rect") if r.attrib["width"] == "11.0"]
    rows = [(float(r.attrib["y"]), float(r.attrib["x"])) for r in swatches]
    for text, (y, _), (next_y, next_x) in zip(texts, rows, rows[1:], strict=False):
        end = float(text.attrib["x"]) + 7.8 * len(text.text or "")
        assert next_y > y or next_x > end, text.text


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([1, 3, 5, 12, 80, 130], ["1", "2", "4", "8", "16", "32", "64", "128"]),  # few are powers
        ([3, 5], ["3", "5"]),
        ([5, 6, 7], ["5", "6", "7"]),
    ],
)
def test_an_axis_of_powers_is_named_to_its_end(rows: list[float], named: list[str]) -> None:
    series = Series("pass", rows, [1.0] * len(rows))
    root = inside(plots.lines([series], LABELS, doubling=True))
    shown = [text.text for text in root.findall("text[@class='tick middle']")]
    assert shown == named


@pytest.mark.parametrize("value", [1.2345, 1000.15, 0.0, 2e7])
def test_ticks_of_a_single_point_differ(value: float) -> None:
    root = inside(plots.scatter([Series("a", [0.0, 1.0], [value] * 2)], LABELS))
    ticks = [it.text or "" for it in root.findall("text[@class='tick end']")]
    assert len(ticks) > 1
    assert len(set(ticks)) == len(ticks)
    assert "e+" not in "".join(ticks)


def test_words_are_escaped() -> None:
    svg = plots.bars([Bar("<b>", 1.0)], LABELS)
    assert "<b>" not in svg
    assert not re.search(r"&(?!\w+;|#\d+;)", svg)
