"""A report as a page: one HTML string, no script, no font, no image from elsewhere."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import jinja2
from markupsafe import Markup

from draftrec.report.blocks import Block, Cards, Figure, Report, Section, Table, Text


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
