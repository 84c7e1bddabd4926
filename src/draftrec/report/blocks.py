"""What a report is made of: sections of text, tables, figures and cards, as plain values.

The same value is shown as a page (`page.render`) and, in short, on a terminal (`terminal.show`).
Nothing here knows how the numbers came about. A `tone`, 0 to 5, is the colour that one way of doing
things keeps in all blocks.
"""

from __future__ import annotations

import difflib
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from markupsafe import Markup

from draftrec.report import plots
from draftrec.report.plots import Labels


@dataclass(frozen=True, slots=True)
class Text:
    """Sentences, most important first, and commands with what each is for."""

    points: tuple[str, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """A value of a table with what is said of it in small, such as its range."""

    value: str
    small: str = ""
    strong: bool = False
    tone: int | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under `columns`, the first cell of each its name; without columns, pairs of a
    name and a value under a `title`. `note` explains the columns, `page_note` what a page alone
    shows of them: intervals in small, dots.

    `turned`: few rows of many columns, which a terminal shows as lines, with what is in small;
    `kept`: the columns that a terminal has room for, None for all. `roomy`: cells hold phrases.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    note: str = ""
    page_note: str = ""
    turned: bool = False
    roomy: bool = False
    kept: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot; `words` say what it shows to those who cannot see it."""

    title: str
    caption: str
    svg: Markup
    words: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text, marked where it is what to look at."""

    text: str
    marked: bool = False


@dataclass(frozen=True, slots=True)
class Card:
    """One way of doing things in one look: a `number` with its `unit`, or a text, or a list; `note`
    says a few words about it."""

    title: str
    tone: int
    note: str = ""
    number: str = ""
    unit: str = ""
    text: tuple[Piece, ...] = ()
    items: tuple[Piece, ...] = ()


@dataclass(frozen=True, slots=True)
class Cards:
    """Cards side by side. With a `title` they are about one thing, and `prompt` is what the model
    was asked. A terminal shows the first `kept` of them, None for all."""

    cards: tuple[Card, ...]
    title: str = ""
    prompt: str = ""
    kept: int | None = None


Block = Text | Table | Figure | Cards


@dataclass(frozen=True, slots=True)
class Section:
    """Blocks under a heading, and a `hint` how to read them. A terminal shows the first `kept` of
    them, None for all. One that `opens` a part of the report has title and hint, and no blocks."""

    title: str
    blocks: tuple[Block, ...] = ()
    hint: str = ""
    kept: int | None = None
    opens: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """A title, an introduction, and sections in their order; those without blocks are left out."""

    title: str
    lead: str
    sections: tuple[Section, ...]


def joined(title: str, lead: str, reports: Iterable[Report]) -> Report:
    """One report whose parts are `reports`, each under its own title."""
    sections: list[Section] = []
    for part in reports:
        sections += [Section(part.title, hint=part.lead, opens=True), *part.sections]
    return Report(title, lead, tuple(sections))


def row(*cells: str | Cell) -> tuple[Cell, ...]:
    """A table's row; bare text is a cell without more."""
    return tuple(Cell(cell) if isinstance(cell, str) else cell for cell in cells)


def figure(labels: Labels, caption: str, svg: Markup) -> Figure:
    """A plot under its own title."""
    return Figure(labels.title, caption, svg, labels.description)


def bars(
    labels: Labels, caption: str, data: Seq[plots.Bar], reference: float | None = None
) -> Figure:
    """A plot of bars; their notes complete its description."""
    words = ", ".join(f"{bar.label} {bar.note}" for bar in data)
    labels = replace(labels, description=f"{labels.description} {words}.".strip())
    return figure(labels, caption, plots.bars(data, labels, reference))


def lines(
    labels: Labels, caption: str, series: Seq[plots.Series], *, doubling: bool = False
) -> Figure:
    """A plot of lines; their ends complete its description."""
    words = "; ".join(f"{s.label}: {s.y[0]:.2f} to {s.y[-1]:.2f}" for s in series)
    labels = replace(labels, description=f"{labels.description} {words}.".strip())
    return figure(labels, caption, plots.lines(series, labels, doubling=doubling))


def findings(points: Iterable[str]) -> Section:
    """What the numbers mean."""
    points = tuple(points)
    return Section("What this means", (Text(points),) if points else ())


def gallery(figures: Iterable[Figure]) -> Section:
    """Figures, which a terminal leaves to the page."""
    return Section("Plots", tuple(figures), kept=0)


def next_steps(commands: Iterable[tuple[str, str]]) -> Section:
    """Commands to go on with, and what each is for."""
    commands = tuple(commands)
    return Section("What to do next", (Text(commands=commands),) if commands else ())


def facts(tables: Mapping[str, Mapping[str, str]], kept: int = 0) -> Section:
    """How it was measured: pairs of name and value by heading."""
    blocks = tuple(
        Table((), tuple(row(*pair) for pair in pairs.items()), title)
        for title, pairs in tables.items()
    )
    return Section("How it was measured", blocks, kept=kept)


def differing(
    base: Seq[int], other: Seq[int], decode: Callable[[Seq[int]], str]
) -> tuple[Piece, ...]:
    """`other` as pieces, marked where its tokens differ from `base`'s."""
    pieces: list[Piece] = []
    matcher = difflib.SequenceMatcher(None, list(base), list(other), autojunk=False)
    for kind, _, _, start, end in matcher.get_opcodes():
        if start == end:
            continue
        # Tokens are cut out of the decoded whole: alone, some decode without their leading space.
        text = decode(other[:end])[len(decode(other[:start])) :]
        if kind == "equal":
            pieces.append(Piece(text))
        elif text:
            pieces += _marked(text)
    return tuple(pieces)


def _marked(text: str) -> list[Piece]:
    """A changed stretch; the white space around it stays unmarked."""
    body = text.strip()
    before, _, after = text.partition(body) if body else (text, "", "")
    found = (Piece(before), Piece(body, marked=True), Piece(after))
    return [piece for piece in found if piece.text]


def machine_facts() -> dict[str, str]:
    """What this machine is, as far as Python can tell."""
    facts = {
        "processor": _processor(),
        "cores": str(_cores()),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
    }
    for name in ("draftrec", "torch", "transformers"):
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine() or "unknown")


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1
