"""A report: complete in itself, safe with any text, silent about what is absent, in short on a
terminal."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from draftrec.demo import texts_report
from draftrec.demo.texts import Growth
from draftrec.demo.texts_report import Arm
from draftrec.evaluate.beam_speed import Spread
from draftrec.report import blocks
from draftrec.report.blocks import (
    Card,
    Cards,
    Cell,
    Figure,
    Piece,
    Report,
    Section,
    Table,
    differing,
    joined,
    machine_facts,
    row,
)
from draftrec.report.show import render, show

BASELINE = Arm(
    "baseline", "Baseline", 24, 24, 4100, 1.0, 0.0, 0.0, 0.0, Spread(10.2, 9.9, 10.8, 5), 402.0,
    0.0, tone=0,
)  # fmt: skip
STRICT = Arm(
    "strict", "Strict", 24, 24, 4100, 3.4, 2.6, 0.21, 0.0, Spread(3.4, 3.3, 3.6, 5), 1206.0, 0.04,
    Spread(3.0, 2.8, 3.1, 5), (210, 160, 130, 90, 70, 60, 40, 30, 25, 10, 8, 5),
    (900, 0, 1400, 350, 0, 0),
)  # fmt: skip
RELAXED = Arm(
    "relaxed", "Relaxed", 24, 3, 4040, 4.7, 3.9, 0.28, 0.041, Spread(2.5, 2.4, 2.7, 5), 1616.0,
    0.05, Spread(4.1, 3.7, 4.3, 5), (120, *([60] * 22)), (700, 0, 1900, 500, 0, 0), tone=2,
)  # fmt: skip
ARMS = (BASELINE, STRICT, RELAXED)
TEXT = (
    "This reader keeps returning to quiet sea tales and slow mysteries. High ratings go to books "
    "that let a place speak for itself. "
)
GROWTH = [
    Growth(size, {"strict": strict, "relaxed": relaxed})
    for size, strict, relaxed in ((0, 1.9, 2.3), (40, 2.7, 3.5), (80, 3.0, 4.1), (320, 3.4, 4.7))
]


def figures(arms: tuple[Arm, ...]) -> list[Figure]:
    drawn = [
        texts_report.speedups(arms), texts_report.calls(arms), texts_report.accepted(arms),
        texts_report.sources(arms), texts_report.pass_cost((1, 2, 4, 8), (2.1, 2.2, 2.3, 2.5)),
        texts_report.pool_growth(GROWTH),
    ]  # fmt: skip
    return [plot for plot in drawn if plot]


@pytest.fixture
def sample() -> Report:
    return sample_report()


def sample_report(arms: tuple[Arm, ...] = ARMS) -> Report:
    pieces = tuple(Piece(w + " ", i % 9 == 4) for i, w in enumerate((TEXT * 3).split()))
    example = Cards(
        (
            Card("Baseline", 0, "172 calls", text=(Piece(TEXT * 3),)),
            Card("Strict", 1, "51 calls, identical", text=(Piece(TEXT * 3),)),
            Card("Relaxed", 2, "37 calls, 5 relaxed tokens", text=pieces),
        ),
        "Reader u-0042",
        "Rate & describe <the reader> ...\n" * 4,
    )
    return Report(
        "Knowledge texts, drafted and verified",
        "The same 24 texts written three ways by the same model on the same machine.",
        (
            Section("", (texts_report.tiles(arms),), kept=0),
            blocks.findings(("Strict wrote exactly the baseline's texts.", "Relaxed did not.")),
            Section("Side by side", (texts_report.side_by_side(arms),)),
            blocks.gallery(figures(arms)),
            Section("Texts", (example, example), "Marked: other words.", kept=1),
            blocks.next_steps((("draftrec generate users.jsonl --output run", "Write your own"),)),
            blocks.facts(
                {"Machine": machine_facts(), "Settings": {"batch size": "1", "seed": "0"}}
            ),
        ),
    )


class _Page(HTMLParser):
    """Collects tags and complains about any left open."""

    void = frozenset({"meta", "br", "link", "img", "rect", "line", "circle", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, list[dict[str, str | None]]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.setdefault(tag, []).append(dict(attrs))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.setdefault(tag, []).append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(page: str) -> _Page:
    parser = _Page()
    parser.feed(page)
    assert not parser.open
    return parser


def test_page_is_well_formed_and_needs_nothing_from_elsewhere(sample: Report) -> None:
    page = render(sample)
    seen = parse(page).seen
    assert not {"script", "link", "img", "iframe"} & seen.keys()
    assert not re.search(r"https?://|url\(|@import", page)
    assert len(seen["svg"]) == 6
    assert "prefers-color-scheme: dark" in page


def test_every_plot_can_be_read_without_seeing_it() -> None:
    for plot in figures(ARMS):
        assert plot.title
        assert plot.caption
        assert 'role="img"' in plot.svg
        assert f"<title>{plot.title}</title><desc>" in plot.svg
        assert plot.words


def test_text_cannot_become_markup() -> None:
    evil = "<script>alert('x')</script>&amp;"
    arms = tuple(replace(arm, label=evil) for arm in ARMS)
    mine = (
        Section(
            evil, (Cards((Card(evil, 1, evil, text=(Piece(evil, marked=True),)),), evil, evil),)
        ),
        Section(evil, (Table((evil, evil), (row(evil, Cell(evil, evil)),), evil, evil),), evil),
        Section(evil, (Cards((Card(evil, 1, evil, evil, evil, items=(Piece(evil),)),)),)),
        blocks.findings((evil,)),
        blocks.next_steps(((evil, evil),)),
        blocks.facts({evil: {evil: evil}}),
        Section(evil, hint=evil, opens=True),
    )
    page = render(Report(evil, evil, (*mine, *sample_report(arms).sections)))
    parser = parse(page)
    assert "script" not in parser.seen
    assert "&lt;script&gt;" in page


def test_parts_without_numbers_are_left_out() -> None:
    arms = (BASELINE,)
    assert [plot.title for plot in figures(arms)][:1] == ["Tokens per call"]
    empty = Report("Plain", "Nothing.", (blocks.findings(()), blocks.gallery(()), Section("Texts")))
    page = render(empty)
    assert "svg" not in parse(page).seen
    assert "What this means" not in page
    assert "Texts" not in page
    assert "Texts" not in printed(empty)


def test_arms_appear_with_their_numbers(sample: Report) -> None:
    page, said = render(sample), printed(sample)
    for expected in ("3.00x", "2.80 to 3.10", "24 of 24", "3 of 24", "4.1 %", "1,616"):
        assert expected in page, expected
        assert expected in said, expected


def printed(report: Report, width: int = 80, colour: str | None = None) -> str:
    out = io.StringIO()
    options = {"color_system": colour, "force_terminal": True} if colour else {}
    show(report, Console(file=out, width=width, **options))  # type: ignore[arg-type]
    return out.getvalue()


def test_a_terminal_shows_the_same_in_short(sample: Report) -> None:
    said = printed(sample)
    assert max(map(len, said.splitlines())) <= 80
    for expected in (sample.title, "Relaxed did not.", "Side by side", "Write your own"):
        assert expected in said, expected
    assert said.count("Reader u-0042") == 1
    assert "Plots" not in said
    assert "Machine" not in said
    # Strict's text is the baseline's and not printed again; the relaxed one shows what differs.
    assert " ".join(said.split()).count("let a place speak for itself. This reader keeps") == 2
    assert re.search(r"\[\w+ ?\]", said)
    assert not re.search(r"\[\w+ ?\]", printed(sample, colour="standard"))


def test_a_terminal_has_room_for_the_columns_that_are_kept() -> None:
    rows = (row(Cell("a name of some words", "in small"), Cell("1", "0 to 2"), "a long tale"),)
    table = Table(("", "first figure", "words"), rows, "Title", "A note.", kept=("first figure",))
    said = printed(Report("", "", (Section("", (table,)),)), width=40)
    assert "a long tale" not in said
    assert "0 to 2" not in said
    for expected in ("a name of some words", "in small", "Title", "A note."):
        assert expected in said
    turned = printed(Report("", "", (Section("", (replace(table, turned=True),)),)))
    assert re.search(r"first figure +1 *\n +0 to 2", turned)


def test_figures_are_told_in_words_where_they_are_shown(sample: Report) -> None:
    plots = tuple(replace(one, kept=None) for one in sample.sections if one.title == "Plots")
    said = " ".join(printed(replace(sample, sections=plots)).split())
    assert "Median speedup over the baseline: Strict 3.00x, Relaxed 4.10x." in said


def test_reports_join_as_parts_of_one(sample: Report) -> None:
    both = joined("Two", "Both.", (sample, replace(sample, title="Another")))
    page, said = render(both), printed(both)
    assert page.count("<h1>") == 3
    assert len(parse(page).seen["svg"]) == 12
    assert said.index("Two") < said.index(sample.title) < said.index("Another")


def test_differing_marks_changed_words_and_keeps_the_text() -> None:
    words = ["", "the", " quiet", " sea", " loud", " old", "."]
    decode = lambda ids: "".join(words[i] for i in ids)  # noqa: E731
    assert differing([1, 2, 3, 6], [1, 2, 3, 6], decode) == (Piece("the quiet sea."),)
    assert differing([1, 2, 3, 6], [1, 4, 3, 5, 6], decode) == (
        Piece("the"),
        Piece(" "),
        Piece("loud", marked=True),
        Piece(" sea"),
        Piece(" "),
        Piece("old", marked=True),
        Piece("."),
    )
    assert differing([1, 2, 3], [1], decode) == (Piece("the"),)
    assert differing([1], [], decode) == ()


def test_machine_facts_are_filled() -> None:
    facts = machine_facts()
    assert {"processor", "cores", "Python"} <= facts.keys()
    assert all(facts.values())
