"""A report as it is shown: on a terminal, in short, and as a page, one HTML string without a
script, a font or an image from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import groupby
from pathlib import Path

import jinja2
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text as Styled

from draftrec.report.blocks import (
    Block,
    Card,
    Cards,
    Cell,
    Figure,
    Piece,
    Report,
    Section,
    Table,
    Text,
)

#: By tone, as near to the page's as sixteen colours come.
_COLOURS = ("bright_black", "blue", "yellow", "green", "magenta", "red")


def show(report: Report, console: Console) -> None:
    """Print a report, but for what its sections leave to the page."""
    _title(report.title, report.lead, console)
    for section in report.sections:
        if section.opens:
            _title(section.title, section.hint, console)
        elif blocks := section.blocks[: section.kept]:
            _section(section, blocks, console)


def show_block(block: Block, console: Console) -> None:
    """Print one block."""
    match block:
        case Text():
            _show_text(block, console)
        case Table():
            console.print(_grid(block, console) if block.columns else _pairs(block))
            if block.note:
                console.print(Styled(block.note, "dim"))
        case Figure():
            console.print(Styled(block.title, "bold").append(f"  {block.words}", "not bold"))
        case Cards():
            _show_cards(block, console)


def _title(title: str, lead: str, console: Console) -> None:
    console.print()
    console.print(Styled(title, "bold underline"))
    if lead:
        console.print(Styled(lead))


def _section(section: Section, blocks: Seq[Block], console: Console) -> None:
    console.print()
    if section.title:
        console.print(Styled(section.title, "bold"))
    if section.hint:
        console.print(Styled(section.hint, "dim"))
    for block in blocks:
        show_block(block, console)


def _show_text(text: Text, console: Console) -> None:
    points = Grid.grid(padding=(0, 1))
    for point in text.points:
        points.add_row(" -", Styled(point))
    if text.points:
        console.print(points)
    for command, purpose in text.commands:
        console.print(f"  {purpose}", highlight=False, markup=False)
        # Unwrapped, so that a terminal's selection is a command that runs.
        console.print(f"    {command}", style="bold", highlight=False, soft_wrap=True, markup=False)


def _pairs(table: Table) -> Grid:
    grid = Grid.grid(padding=(0, 1))
    for name, value in table.rows:
        grid.add_row("", Styled(name.value, "dim"), Styled(value.value))
    return grid


def _grid(table: Table, console: Console) -> Grid:
    names = table.columns
    kept = [i for i, n in enumerate(names) if not i or table.kept is None or n in table.kept]
    columns = [Styled(names[i]) for i in kept]
    rows = [[row[i] for i in kept] for row in table.rows]
    title = Styled(table.title) if table.title else None
    grid = Grid(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    if table.turned:
        grid.add_column("")
        for name, *_ in rows:
            grid.add_column(_styled(name, "bold"), justify="right")
        for i, column in enumerate(columns[1:], 1):
            grid.add_row(column, *(_with_small(row[i]) for row in rows))
        return grid
    grid.add_column(columns[0])
    for column in columns[1:]:
        grid.add_column(column, justify="right")
    for name, *cells in rows:
        grid.add_row(_with_small(name, "bold"), *map(_styled, cells))
    wanted = Measurement.get(console, console.options.update(width=1000), grid).maximum
    if wanted > console.width:
        grid.collapse_padding = True
        for place, column in enumerate(grid.columns[1:], 1):  # headings give way before names
            words = [*str(columns[place]).split(), *(row[place].value for row in rows)]
            column.max_width = max(map(len, words))
    return grid


def _styled(cell: Cell, style: str = "") -> Styled:
    styles = [style, "bold" * cell.strong, "" if cell.tone is None else _COLOURS[cell.tone]]
    return Styled(cell.value, " ".join(filter(None, styles)))


def _with_small(cell: Cell, style: str = "") -> Styled:
    text = _styled(cell, style)
    return text.append(f"\n{cell.small}", "not bold dim") if cell.small else text


def _show_cards(cards: Cards, console: Console) -> None:
    if cards.title:
        console.print()
        console.print(Styled(f"  {cards.title}", "bold"))
    for place, card in enumerate(cards.cards[: cards.kept]):
        words = f"{card.number}{card.unit} {card.note}".strip()
        console.print(Styled("  ").append(card.title, "bold").append(f"  {words}", "dim"))
        _show_content(card, console, first=place == 0)


def _show_content(card: Card, console: Console, *, first: bool) -> None:
    # A text equal to the one above is not printed again.
    if card.text and (first or any(piece.marked for piece in card.text)):
        console.print(Padding(_pieces(card.text, console), (0, 0, 0, 4), expand=False))
    for place, piece in enumerate(card.items, 1):
        console.print(Styled(f"  {place:>3}. ").append_text(_pieces([piece], console)))


def _pieces(pieces: Seq[Piece], console: Console) -> Styled:
    """The text; what is marked in colour, or in brackets where there is no colour."""
    text, plain = Styled(), console.color_system is None
    for piece in pieces:
        shown = f"[{piece.text}]" if piece.marked and plain else piece.text
        text.append(shown, "bold yellow" if piece.marked else "")
    return text


def render(report: Report) -> str:
    """The page, light or dark as the reader's screen is."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("draftrec.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    sections = [(one, _rows(one)) for one in report.sections if one.blocks or one.opens]
    values = {"report": report, "sections": sections, "style": Markup(style)}
    return environment.get_template("page.html.j2").render(values)


def _rows(section: Section) -> list[tuple[str, list[Block]]]:
    """Blocks of one look that follow each other share a row of the page."""
    return [(look, list(blocks)) for look, blocks in groupby(section.blocks, _look)]


def _look(block: Block) -> str:
    match block:
        case Text():
            return "text"
        case Table():
            return "table" if block.columns else "facts"
        case Figure():
            return "figures"
        case Cards():
            return "article" if block.title else "tiles"
