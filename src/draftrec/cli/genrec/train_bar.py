"""How a training or a recording shows on a terminal, or in a log."""

from __future__ import annotations

from draftrec.cli.messages import StopSignal, say
from draftrec.cli.progress import Bar
from draftrec.train import loop as train
from draftrec.train.teacher import TeachWatcher
from draftrec.train.teacher_files import TeacherManifest


class TrainBar(Bar, train.TrainWatcher):
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


class TeachBar(Bar, TeachWatcher):
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
