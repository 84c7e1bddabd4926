"""The recording in README.md shows what the demo prints, whole, small, and of a known commit."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import demo_recording
import pytest

SVG = "{http://www.w3.org/2000/svg}"
PRINTED = """
Two jobs
\x1b[1;4mThe same texts, written three ways\x1b[0m
12 readers
What this means
 - left out
\x1b[1mSide by side\x1b[0m

   Baseline  \x1b[1;34mStrict\x1b[0m
 a <b> & c   1.50x

Medians of the repeats
The same books, recommended six ways
What this means
Side by side
 Plain  1
Times: left out
Report with plots: draftrec-demo/report.html
"""
HERE = {"cores": 2, "cpu": "A & B", "commit": "1" * 40, "date": "2030-01-02"}


def rows(picture: str) -> list[str]:
    """The lines that a reader sees, from top to bottom."""
    found: dict[float, str] = {}
    for text in ElementTree.fromstring(picture).iter(f"{SVG}text"):
        if "clip-path" in text.attrib:
            at = float(text.attrib["y"])
            found[at] = found.get(at, "") + (text.text or "").replace("\xa0", " ")
    return [found[at].strip() for at in sorted(found)]


def test_what_was_printed_is_drawn_and_what_is_left_out_is_marked() -> None:
    picture = demo_recording.drawn(PRINTED, 41.6, HERE)
    assert [row for row in rows(picture) if row] == [
        "$ draftrec demo",
        "The same texts, written three ways", "12 readers",
        "...", "Baseline  Strict", "a <b> & c   1.50x",
        "...", "The same books, recommended six ways",
        "...", "Plain  1",
        "...", "Report with plots: draftrec-demo/report.html",
    ]  # fmt: skip
    assert "#5f9bff" in picture, "the colour of Strict"
    assert "42 seconds, the wait cut out" in picture.replace("&#160;", " ")
    assert f"2 cores of A &amp; B; commit {'1' * 40}" in picture


def test_lines_come_one_by_one_only_where_movement_is_wanted() -> None:
    picture = demo_recording.drawn(PRINTED, 1, HERE)
    still, moving = picture.split("@media (prefers-reduced-motion: no-preference) {", 1)
    assert "animation:" not in still
    delays = [float(s) for s in re.findall(r"animation-delay: ([\d.]+)s", moving)]
    drawn = set(re.findall(r'text[^>]*clip-path="url\(#demo-line-(\d+)\)"', moving))
    assert delays == sorted(delays)
    assert drawn - {"0"} <= set(re.findall(r'\[clip-path="url\(#demo-line-(\d+)\)"\]', moving))


def test_a_demo_that_prints_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="did not print 'Times:'"):
        demo_recording.excerpt(PRINTED.replace("Times:", "Time:"))
