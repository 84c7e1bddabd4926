"""How a running job shows on a terminal, or in a log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from draftrec.cli.common import StopSignal, say
from draftrec.cli.messages import no_bar
from draftrec.knowledge.job import Watcher
from draftrec.knowledge.manifest import Manifest

if TYPE_CHECKING:
    from draftrec.decoding.stats import StepStats

_LOG_SECONDS = 10.0


class ProgressBar(Watcher):
    """Records done, tokens per second, tokens per call, acceptance and time left.

    A terminal gets a bar; a log file gets a line now and then. Arms `stop` once decoding begins:
    from then on a signal finishes the step first.
    """

    def __init__(self, stop: StopSignal) -> None:
        self._stop = stop
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=no_bar(self._console),
        )
        self._task = self._bar.add_task("texts", total=None, rates="")
        self._start = self._logged = time.monotonic()
        self._done = self._tokens = self._calls = self._drafted = self._accepted = 0

    def note(self, text: str) -> None:
        """Say it before the bar starts."""
        say(text)

    def begin(self, manifest: Manifest) -> None:
        """Show where the job stands, and start the clock."""
        self._done = manifest.records_done
        self._start = self._logged = time.monotonic()
        if self._done:
            say(f"continuing after {_progress(manifest)}")
        self._bar.update(self._task, total=manifest.input.records, completed=self._done)
        self._bar.start()
        self._stop.armed = True

    def step(self, step: StepStats) -> None:
        """Count a step and redraw (the bar itself limits how often)."""
        self._tokens += step.new_tokens
        self._calls += step.target_calls
        self._drafted += step.drafted_tokens
        self._accepted += step.accepted_tokens
        self._bar.update(self._task, advance=step.finished, rates=self._rates())

    def shard(self, manifest: Manifest) -> None:
        """Set the count right (rejected records pass without a step), and log a line if due."""
        self._bar.update(self._task, completed=manifest.records_done)
        now = time.monotonic()
        if self._bar.disable and now - self._logged >= _LOG_SECONDS:
            self._logged = now
            say(f"{_progress(manifest)}, {self._rates()}")

    def end(self) -> None:
        """Leave the terminal as it was."""
        self._bar.stop()

    def _rates(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        accepted = self._accepted / self._drafted if self._drafted else 0.0
        per_call = self._tokens / self._calls if self._calls else 0.0
        return (
            f"{self._tokens / seconds:,.0f} tokens/s, {per_call:.2f} tokens/call, "
            f"{accepted:.0%} accepted"
        )


def _progress(manifest: Manifest) -> str:
    return f"{manifest.records_done:,} of {manifest.input.records:,} records"
