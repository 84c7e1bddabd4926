"""How many users are done, on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from draftrec.cli.messages import no_bar


@contextmanager
def users_bar(total: int, name: str) -> Iterator[Callable[[int], None]]:
    """A bar over `total` users; yields a function that is told how many more are done. Without a
    terminal nothing is shown."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=no_bar(console)) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.update(task, advance=done)
