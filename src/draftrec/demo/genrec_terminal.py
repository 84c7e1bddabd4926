"""The demo of recommendation on a terminal: a table, two readers, what it means, what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from draftrec.demo.genrec_report import BeamArm, GenrecReport, Reader
from draftrec.demo.terminal import heading, show_findings, show_next_steps

_READERS = 2
_COLOURS = {"plain": "bright_black", "sample": "magenta", "relaxed": "yellow"}


def show(report: GenrecReport, page: Path, console: Console) -> None:
    """Print the report in short."""
    console.print()
    console.print(_table(report))
    others = ", ".join(f"{one.label.lower()} {one.recall:.3f}" for one in report.quality[1:])
    console.print(f"  Recall@{report.k} without a model: {others}", highlight=False)
    for reader in report.readers[:_READERS]:
        _show_reader(reader, console)
    show_findings(report.findings, console)
    show_next_steps(report.next_steps, page, console)


def _table(report: GenrecReport) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=report.title, title_justify="left", pad_edge=False)
    table.add_column("", no_wrap=True)
    for name, _ in _columns(report.k):
        table.add_column(name, justify="right", no_wrap=True)
    for arm in report.arms:
        style = f"bold {_COLOURS.get(arm.name, 'blue')}"
        cells = (cell(arm) for _, cell in _columns(report.k))
        table.add_row(Text(arm.label, style=style), *cells)
    return table


def _columns(k: int) -> tuple[tuple[str, Callable[[BeamArm], str]], ...]:
    return (
        ("walltime\nspeedup", _speedup),
        ("ms per\nuser", lambda arm: f"{arm.timed.ms_per_user:.1f}"),
        ("target\ncalls", lambda arm: f"{arm.figures.target_calls:.2f}"),
        (f"AS@{k}", lambda arm: f"{arm.figures.accepted_steps_per_call:.2f}"),
        ("same as\nplain", _identical),
        (f"Recall\n@{k}", lambda arm: f"{arm.recall:.3f}"),
        (f"NDCG\n@{k}", lambda arm: f"{arm.ndcg:.3f}"),
    )


def _speedup(arm: BeamArm) -> str:
    return f"[bold]{arm.speedup.median:.2f}x[/]" if arm.speedup else "1"


def _identical(arm: BeamArm) -> str:
    return f"{arm.identical}/{arm.users}" if arm.same_as == "plain search" else "-"


def _show_reader(reader: Reader, console: Console) -> None:
    heading(f"{reader.title}: read last, read then, and recommended", console)
    for title in reader.before:
        console.print(f"    {title}", style="dim", highlight=False, markup=False)
    console.print(f"    then: {reader.following}", style="italic", highlight=False, markup=False)
    for place, book in enumerate(reader.lists[0][1], 1):
        mark = "  <- read next" if book.hit else ""
        style = "bold green" if book.hit else ""
        line = f"  {place}. {book.title}{mark}"
        console.print(line, style=style, highlight=False, markup=False)
