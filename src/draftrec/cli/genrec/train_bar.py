"""How a training or a recording shows on a terminal, or in a log."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from draftrec.cli.messages import StopSignal, no_bar, say
from draftrec.cli.progress import LOG_SECONDS
from draftrec.train import loop as train
from draftrec.train.teacher import TeachWatcher
from draftrec.train.teacher_files import TeacherManifest


class _Bar:
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


class TrainBar(_Bar, train.TrainWatcher):
    """Steps, the loss of late, and a line for every validation."""

    def __init__(self, stop: StopSignal) -> None:
        super().__init__("training", stop)
        self._steps = self._total = 0
        self._loss = 0.0
        self._reading = False

    def note(self, text: str) -> None:
        say(text)

    def reading(self, done: int, texts: int) -> None:
        if not self._reading:
            self._reading = True
            self.start(done, texts, "reading")
        self.show(done, "texts read by the target")
        if self.due:
            say(f"{done:,} of {texts:,} texts read by the target")

    def begin(self, progress: train.Progress, steps: int) -> None:
        epochs = len(progress.epochs)
        self._total, self._loss = steps, 0.0
        if progress.epoch or progress.step:
            say(f"continuing after {epochs} epochs and {progress.step} steps")
        self._steps = progress.step + sum(int(e["steps"]) for e in progress.epochs)
        self.start(self._steps, steps, "training")

    def step(self, progress: train.Progress, loss: float) -> None:
        self._steps += 1
        self._loss = loss if not self._loss else 0.98 * self._loss + 0.02 * loss
        note = f"epoch {progress.epoch + 1}, loss {self._loss:.3f}"
        self.show(self._steps, note)
        if self.due:
            say(f"step {self._steps:,} of {self._total:,}, {note}")

    def epoch(self, record: dict[str, float]) -> None:
        values = {k: v for k, v in record.items() if k not in ("epoch", "steps", "seconds")}
        found = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items())
        say(f"epoch {int(record['epoch']) + 1}: {found}; {record['seconds']:.0f} s")


class TeachBar(_Bar, TeachWatcher):
    """Contexts recorded."""

    def __init__(self, stop: StopSignal) -> None:
        super().__init__("contexts", stop)

    def begin(self, manifest: TeacherManifest) -> None:
        done = sum(manifest.shards)
        if done:
            say(f"continuing after {done:,} of {manifest.total:,} contexts")
        self.start(done, manifest.total)

    def shard(self, manifest: TeacherManifest) -> None:
        done = sum(manifest.shards)
        self.show(done, f"{done / max(manifest.seconds, 1e-9):.0f}/s")
        if self.due:
            say(f"{done:,} of {manifest.total:,} contexts")
