"""A report in a real browser: on paper, on a phone, and with texts that run from right to left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from draftrec.report.blocks import Card, Cards, Piece, Section, Table, row
from draftrec.report.show import render
from tests.report.test_report import sample_report

#: What is cut off or has to be scrolled to.
_HIDDEN = """() => [document.documentElement, ...document.querySelectorAll('.scroll, .steps code')]
  .filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.outerHTML.slice(0, 60))"""
#: Words of a plot that leave it, or run into one another.
_CROWDED = """() => [...document.querySelectorAll('svg')].flatMap((svg) => {
  const texts = [...svg.querySelectorAll('text:not(g text)')];
  const boxes = [...texts, ...svg.querySelectorAll('rect[width="11.0"]')].map((e) =>
    [e.textContent, e.getBBox()]);
  const cut = boxes.filter(([, b]) => b.x < 0 || b.x + b.width > svg.viewBox.baseVal.width);
  const over = boxes.flatMap(([one, a], i) => boxes.slice(i + 1)
    .filter(([, b]) => a.x < b.x + b.width && b.x < a.x + a.width
      && a.y < b.y + b.height - 3 && b.y < a.y + a.height - 3)
    .map(([other]) => [one, other]));
  return [...cut.map(([words]) => words), ...over];
})"""


def opened(browser: Any, report: Any, width: int, scheme: str = "light") -> Any:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_content(render(report))
    return page


def test_paper_is_white_and_has_all_columns(browser: Any) -> None:
    """What is asked for dark on a screen was printed in light letters, on paper that is white."""
    columns = ("", *(f"a figure number {i}" for i in range(10)))
    wide = Table(columns, tuple(row(f"setting {i}", *["1,234.56 %"] * 10) for i in range(3)))
    report = sample_report()
    report = replace(report, sections=(*report.sections, Section("All settings", (wide,))))
    page = opened(browser, report, 718, "dark")
    dark = page.evaluate("getComputedStyle(document.body).color")
    page.emulate_media(media="print", color_scheme="dark")
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert ink == "rgb(27, 36, 48)" != dark
    assert paper == "rgb(255, 255, 255)"
    assert page.evaluate(_HIDDEN) == []
    page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_plots_are_not_crowded(browser: Any, width: int) -> None:
    page = opened(browser, sample_report(), width)
    assert page.evaluate(_CROWDED) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_a_text_runs_in_its_own_direction(browser: Any) -> None:
    cards = (
        Card("Baseline", 0, text=(Piece("הספר הזה!"),)),
        Card("Strict", 1, text=(Piece("This book!"),), items=(Piece("كتاب قديم!"),)),
    )
    section = Section("Texts", (Cards(cards, "One", "اكتب عن الكتاب."),))
    page = opened(browser, replace(sample_report(), sections=(section,)), 1280)
    way = "e => getComputedStyle(e).direction"
    found = [page.locator(of).evaluate(way) for of in ("pre", ".version p >> nth=0")]
    found += [page.locator(of).evaluate(way) for of in (".version p >> nth=1", ".items li")]
    assert found == ["rtl", "rtl", "ltr", "rtl"]
    page.close()
