"""The page: complete in itself, safe with any text, silent about what is absent."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from draftrec.evaluate import report as reports
from draftrec.evaluate.report import (
    Arm,
    Curve,
    Example,
    Piece,
    Report,
    Spread,
    Version,
    differing,
    machine_facts,
    render,
)

BASELINE = Arm(
    "baseline", "Baseline", 24, 24, 4100, 1.0, 0.0, 0.0, 0.0, Spread(10.2, 9.9, 10.8), 402.0, 0.0,
    tone=0,
)  # fmt: skip
STRICT = Arm(
    "strict", "Strict", 24, 24, 4100, 3.4, 2.6, 0.21, 0.0, Spread(3.4, 3.3, 3.6), 1206.0, 0.04,
    Spread(3.0, 2.8, 3.1), (210, 160, 130, 90, 70, 60, 40, 30, 25, 10, 8, 5),
    (900, 0, 1400, 350, 0),
)  # fmt: skip
RELAXED = Arm(
    "relaxed", "Relaxed", 24, 3, 4040, 4.7, 3.9, 0.28, 0.041, Spread(2.5, 2.4, 2.7), 1616.0, 0.05,
    Spread(4.1, 3.7, 4.3), (120, *([60] * 22)), (700, 0, 1900, 500, 0), tone=2,
)  # fmt: skip
TEXT = (
    "This reader keeps returning to quiet sea tales and slow mysteries. High ratings go to books "
    "that let a place speak for itself. "
)


@pytest.fixture
def sample() -> Report:
    return sample_report()


def sample_report() -> Report:
    words = tuple(Piece(w + " ", i % 9 == 4) for i, w in enumerate((TEXT * 3).split()))
    example = Example(
        "Reader u-0042",
        "Rate & describe <the reader> ...\n" * 4,
        (
            Version("Baseline", (Piece(TEXT * 3),), "172 calls", 0),
            Version("Strict", (Piece(TEXT * 3),), "51 calls, identical", 1),
            Version("Relaxed", words, "37 calls, 5 relaxed tokens", 2),
        ),
    )
    return Report(
        title="Knowledge texts, drafted and verified",
        lead="The same 24 texts written three ways by the same model on the same machine.",
        findings=(
            "Strict wrote exactly the baseline's texts, 3.0 times as fast.",
            "Relaxed was 4.1 times as fast and changed 4.1 % of the tokens.",
        ),
        arms=(BASELINE, STRICT, RELAXED),
        examples=(example, example),
        cost=Curve("pass", (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64),
                   (2.1, 2.1, 2.2, 2.2, 2.3, 2.5, 2.8, 3.1, 3.9, 4.6, 6.1, 7.9)),
        pool_growth=(
            Curve("Strict", (0, 40, 80, 160, 320), (1.9, 2.7, 3.0, 3.3, 3.4)),
            Curve("Relaxed", (0, 40, 80, 160, 320), (2.3, 3.5, 4.1, 4.5, 4.7), 2),
        ),
        next_steps=(
            ("draftrec generate users.jsonl --model path/or/hub-id --output run", "Write your own"),
        ),
        facts={"Machine": machine_facts(), "Settings": {"batch size": "1", "seed": "0"}},
    )  # fmt: skip


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


def test_every_plot_can_be_read_without_seeing_it(sample: Report) -> None:
    for heading, caption, svg in reports.draw(sample):
        assert heading
        assert caption
        assert 'role="img"' in svg
        assert re.search(r"<title>.+</title><desc>.+</desc>", svg)


def test_text_cannot_become_markup(sample: Report) -> None:
    evil = "<script>alert('x')</script>&amp;"
    example = Example(evil, evil, (Version(evil, (Piece(evil, changed=True),), evil),))
    arms = tuple(replace(arm, label=evil) for arm in sample.arms)
    page = render(
        replace(sample, title=evil, lead=evil, findings=(evil,), arms=arms, examples=(example,))
    )
    parser = parse(page)
    assert "script" not in parser.seen
    assert "&lt;script&gt;" in page


def test_parts_without_numbers_are_left_out() -> None:
    page = render(Report("Plain", "Only a baseline.", (), (BASELINE,)))
    seen = parse(page).seen
    assert len(seen["svg"]) == 1  # tokens per call is known for every arm
    assert "What this means" not in page
    assert "Texts" not in page


def test_arms_appear_with_their_numbers(sample: Report) -> None:
    page = render(sample)
    for expected in ("3.00x", "2.80 to 3.10", "24 of 24", "3 of 24", "4.1 %", "1,616"):
        assert expected in page, expected


def test_differing_marks_changed_words_and_keeps_the_text() -> None:
    words = ["", "the", " quiet", " sea", " loud", " old", "."]
    decode = lambda ids: "".join(words[i] for i in ids)  # noqa: E731
    assert differing([1, 2, 3, 6], [1, 2, 3, 6], decode) == (Piece("the quiet sea."),)
    assert differing([1, 2, 3, 6], [1, 4, 3, 5, 6], decode) == (
        Piece("the"),
        Piece(" "),
        Piece("loud", changed=True),
        Piece(" sea"),
        Piece(" "),
        Piece("old", changed=True),
        Piece("."),
    )
    assert differing([1, 2, 3], [1], decode) == (Piece("the"),)
    assert differing([1], [], decode) == ()


def test_machine_facts_are_filled() -> None:
    facts = machine_facts()
    assert {"processor", "cores", "Python"} <= facts.keys()
    assert all(facts.values())
