"""How running work shows on a terminal, or in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from draftrec.cli.messages import StopSignal, no_bar, say, warn
from draftrec.core import ratio
from draftrec.jobs.knowledge.job import Watcher
from draftrec.jobs.knowledge.manifest import Manifest

if TYPE_CHECKING:
    from draftrec.engine.text.stats import Spent, StepStats

#: A log has a line at least this often.
LOG_SECONDS = 30.0


class Bar:
    """A bar on a terminal; elsewhere a line now and then."""

    def __init__(self, name: str, stop: StopSignal) -> None:
        self._stop = stop
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            disable=no_bar(console),
        )
        self._task: TaskID = self._bar.add_task(name, total=None, note="")
        self._logged = time.monotonic()

    def start(self, done: int, total: int, name: str | None = None) -> None:
        """Show the bar, under another name than so far if one is given; from now on a signal
        finishes the step first."""
        self._bar.update(self._task, total=total, completed=done, description=name)
        self._bar.start()
        self._stop.arm()

    def show(self, done: int, note: str) -> None:
        self._bar.update(self._task, completed=done, note=note)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bar.stop()

    @property
    def due(self) -> bool:
        """Is it time for a line in the log?"""
        now = time.monotonic()
        if self._bar.disable and now - self._logged >= LOG_SECONDS:
            self._logged = now
            return True
        return False


class ProgressBar(Bar, Watcher):
    """Records done, tokens per second, tokens per call, acceptance, how many times as fast as
    plain decoding that is, and time left.

    A terminal gets a bar; a log file gets a line at least every half minute. Arms `stop` once
    decoding begins: from then on a signal finishes the step first.
    """

    def __init__(self, stop: StopSignal) -> None:
        super().__init__("texts", stop)
        self._start = self._logged
        self._done = self._total = 0
        self._what = "records"
        self._tokens = self._calls = self._drafted = self._accepted = 0
        self._spent: Spent | None = None

    def should_stop(self) -> bool:
        """Whether a signal asked to stop. Asked often, so it is the time to log a line, too."""
        if self._stop.armed and self.due:
            say(f"{self._done:,} of {self._total:,} {self._what}, {self._rates()}")
        return self._stop()

    def note(self, text: str) -> None:
        """Say it; a bar keeps below it."""
        say(text)

    def warn(self, text: str) -> None:
        """Say it so that --quiet does not hide it."""
        warn(text)

    def begin(self, manifest: Manifest, kept: int) -> None:
        """Show where the job stands, and start the clock."""
        self._done, self._total, self._what = progress_of(manifest, kept)
        self._start = self._logged = time.monotonic()
        if self._done:
            say(f"continuing after {self._done:,} of {self._total:,} {self._what}")
        self.start(self._done, self._total)

    def step(self, step: StepStats) -> None:
        """Count a step and redraw (the bar itself limits how often)."""
        self._done += step.finished
        self._tokens += step.new_tokens
        self._calls += step.target_calls
        self._drafted += step.drafted_tokens
        self._accepted += step.accepted_tokens
        self._spent = step.spent if self._spent is None else self._spent + step.spent
        self.show(self._done, self._rates())

    def shard(self, manifest: Manifest) -> None:
        """Set the count right: rejected records pass without a step."""
        self._done = max(self._done, manifest.records_done * manifest.samples)
        self._bar.update(self._task, completed=self._done)

    def _rates(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        accepted = ratio(self._accepted, self._drafted)
        per_call = ratio(self._tokens, self._calls)
        times = self._spent.times_plain if self._spent else None
        speed = f", {times:.2f} times plain" if times is not None else ""
        return (
            f"{rate(self._tokens / seconds)} tokens/s, {per_call:.2f} tokens/call, "
            f"{accepted:.0%} accepted{speed}"
        )


class FirstShards(ProgressBar):
    """Also stops the job once it has `shards` shards, of which `enough` tells."""

    def __init__(self, stop: StopSignal, shards: int) -> None:
        super().__init__(stop)
        self._shards = shards
        self.enough = False

    def begin(self, manifest: Manifest, kept: int) -> None:
        """Look what there is already."""
        self._look(manifest)
        super().begin(manifest, kept)

    def shard(self, manifest: Manifest) -> None:
        """Look whether it is enough now."""
        self._look(manifest)
        super().shard(manifest)

    def should_stop(self) -> bool:
        """A signal, or enough shards."""
        return super().should_stop() or self.enough

    def _look(self, manifest: Manifest) -> None:
        self.enough = len(manifest.shards) >= self._shards and not manifest.shards_complete


def progress_of(manifest: Manifest, kept: int) -> tuple[int, int, str]:
    """How much of a job is done, how much there is, and of what: records, or texts where a record
    has several. `kept`: texts of shards that are not finished."""
    each = manifest.samples
    what = "records" if each == 1 else "texts"
    return manifest.records_done * each + kept, manifest.input.records * each, what


def rate(per_second: float) -> str:
    """A number of things per second: 1,234 or 56, but 0.4 where whole ones say nothing."""
    return f"{per_second:,.{0 if per_second >= 10 else 1}f}"


def duration(seconds: float) -> str:
    """As people write it: 8.3 s, 2 min 05 s, 3 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def users_bar(total: int, name: str) -> Iterator[Callable[[int], None]]:
    """A bar over `total` users; yields a function that is told how many more are done. Without a
    terminal nothing is shown."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=no_bar(console)) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.update(task, advance=done)
