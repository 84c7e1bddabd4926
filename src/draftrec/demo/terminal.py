"""The story on a terminal: a table, a few texts, what it means, what to do next."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from pathlib import Path

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from draftrec.evaluate.report import Arm, Example, Report, Version

_COLOURS = {"baseline": "bright_black", "strict": "blue", "relaxed": "yellow"}
_TEXTS = 2


def show(report: Report, page: Path, console: Console) -> None:
    """Print the report in short."""
    console.print()
    console.print(_table(report))
    for example in report.examples[:_TEXTS]:
        _show_example(example, console)
    show_findings(report.findings, console)
    show_next_steps(report.next_steps, page, console)


def show_findings(findings: Seq[str], console: Console) -> None:
    """What the numbers mean, as a list."""
    heading("What this means", console)
    points = Table.grid(padding=(0, 1))
    for finding in findings:
        points.add_row(" -", Text(finding))
    console.print(points)


def show_next_steps(steps: Seq[tuple[str, str]], page: Path, console: Console) -> None:
    """Commands with their purposes, and where the page lies."""
    heading("What to do next", console)
    for command, purpose in steps:
        console.print(f"  {purpose}", highlight=False, markup=False)
        # Unwrapped, so that a terminal's selection is a command that runs.
        console.print(f"    {command}", style="bold", highlight=False, soft_wrap=True, markup=False)
    console.print()
    place = f"Report with plots: {page}"
    console.print(place, style="bold", highlight=False, soft_wrap=True, markup=False)


def _table(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=report.title, title_justify="left")
    table.add_column("")
    for arm in report.arms:
        table.add_column(Text(arm.label, style=f"bold {_COLOURS[arm.name]}"), justify="right")
    for name, cell in _ROWS:
        table.add_row(name, *(cell(arm) for arm in report.arms))
    return table


def _speedup(arm: Arm) -> str:
    if not arm.speedup:
        return "1"
    s = arm.speedup
    return f"[bold]{s.median:.2f}x[/] [dim]{s.low:.2f}-{s.high:.2f}[/]"


def _drafted(form: Callable[[Arm], str]) -> Callable[[Arm], str]:
    """A cell that makes no sense without drafts."""
    return lambda arm: form(arm) if arm.speedup else "-"


_ROWS: tuple[tuple[str, Callable[[Arm], str]], ...] = (
    ("walltime speedup (lowest-highest)", _speedup),
    ("seconds for all texts", lambda a: f"{a.seconds.median:.2f}"),
    ("tokens per second", lambda a: f"{a.tokens_per_second:,.0f}"),
    ("tokens per call", lambda a: f"{a.tokens_per_call:.2f}"),
    ("mean accepted tokens", _drafted(lambda a: f"{a.mean_accepted_tokens:.2f}")),
    ("acceptance rate", _drafted(lambda a: f"{a.acceptance_rate:.0%}")),
    ("relaxed share", _drafted(lambda a: f"{a.relaxed_share:.1%}")),
    ("time spent drafting", _drafted(lambda a: f"{a.draft_share:.1%}")),
    ("identical to the baseline", _drafted(lambda a: f"{a.identical} of {a.texts}")),
)


def _show_example(example: Example, console: Console) -> None:
    heading(example.title, console)
    base = example.versions[0]
    for version in example.versions:
        head = Text("  ").append(version.label, style="bold").append(f"  {version.note}", "dim")
        console.print(head)
        # A text equal to the one above is not printed again.
        if version is base or any(p.changed for p in version.pieces):
            console.print(Padding(_marked(version, console), (0, 0, 0, 4), expand=False))


def _marked(version: Version, console: Console) -> Text:
    """The text; differing words in colour, or in brackets where there is no colour."""
    text = Text()
    plain = console.color_system is None
    for piece in version.pieces:
        if not piece.changed:
            text.append(piece.text)
        elif plain:
            text.append(f"[{piece.text}]")
        else:
            text.append(piece.text, style="bold yellow")
    return text


def heading(words: str, console: Console) -> None:
    """A line apart."""
    console.print()
    console.print(Text(words, style="bold"))
