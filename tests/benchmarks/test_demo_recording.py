"""The recording in README.md shows what the demo prints, whole, small, and of a known commit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import demo_recording
import pytest
from common import ROOT

from draftrec.demo import items_report, texts_report

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
    assert "opacity: 0;" not in picture, "before its turn a line is dim, not gone"
    delays = [float(s) for s in re.findall(r"animation-delay: ([\d.]+)s", moving)]
    drawn = set(re.findall(r'text[^>]*clip-path="url\(#demo-line-(\d+)\)"', moving))
    assert delays == sorted(delays)
    assert drawn - {"0"} <= set(re.findall(r'\[clip-path="url\(#demo-line-(\d+)\)"\]', moving))


def test_a_demo_that_prints_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="did not print 'Times:'"):
        demo_recording.excerpt(PRINTED.replace("Times:", "Time:"))


def test_a_run_that_was_kept_is_drawn_again(tmp_path: Path) -> None:
    run = {"printed": PRINTED, "seconds": 1.0, "machine": HERE | {"dirty": False}}
    kept, picture, again = tmp_path / "a.json", tmp_path / "a.svg", tmp_path / "b.json"
    kept.write_text(json.dumps(run))
    words = ["--run", str(kept), "--output", str(picture), "--keep", str(again)]
    assert demo_recording.main(words) == 0
    assert picture.read_text("utf-8") == demo_recording.drawn(PRINTED, 1.0, HERE)
    assert json.loads(again.read_text()) == run
    kept.write_text(json.dumps(run | {"machine": HERE | {"dirty": True}}))
    assert demo_recording.main(words) == 2


def test_the_committed_picture_is_of_a_clean_commit_small_and_shows_today_s_tables() -> None:
    path = ROOT / "docs" / "assets" / "demo.svg"
    picture = path.read_text("utf-8")
    assert path.stat().st_size < 200_000
    assert re.search(r"commit [0-9a-f]{40};", picture)
    assert re.findall(r"https?://[^\"\s<]+", picture) == ["http://www.w3.org/2000/svg"]
    seen = "\n".join(rows(picture))
    for label in (*texts_report._COLUMNS, *items_report.LABELS.values()):
        assert re.search(rf"^{re.escape(label)}\b", seen, re.MULTILINE), label
    assert "docs/assets/demo.svg" in (ROOT / "README.md").read_text("utf-8")
