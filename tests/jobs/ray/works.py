"""What the actors of the tests do. A module of its own, since workers must be able to import it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftrec.errors import DraftrecError
from draftrec.jobs.knowledge.plan import JobSpec
from tests.fakes import FakeGenerator, FakePool


def die() -> None:
    """As the kernel kills a process that took too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def once(marker: Path) -> bool:
    """True for the first who asks."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@dataclass(frozen=True)
class Chore:
    """Makes itself. A task is a pair: how long to sleep, and what to do then."""

    folder: Path
    fails: str = ""
    facts: Any = "same"

    def __call__(self) -> Chore | Doer:
        if self.fails == "refuse":
            raise DraftrecError("no such model")
        if self.fails == "die":
            die()
        if self.fails == "die once" and once(self.folder / "start"):
            die()
        if self.fails == "differ":
            return Doer(self.folder, os.getpid())
        return Doer(self.folder, self.facts)


@dataclass(frozen=True)
class Doer:
    folder: Path
    facts: Any

    def __call__(self, task: tuple[float, str]) -> tuple[int, str]:
        seconds, what = task
        time.sleep(seconds)
        if what.startswith("meet"):
            self._meet(int(what.split()[1]))
        if what == "die" or (what == "die once" and once(self.folder / "task")):
            die()
        if what == "refuse":
            raise DraftrecError("this is refused")
        if what == "break":
            raise RuntimeError("a device error")
        if what == "break once" and once(self.folder / "task"):
            raise RuntimeError("a device error")
        return os.getpid(), what

    def _meet(self, others: int) -> None:
        """Wait until so many workers are here: from then on all of them are ready."""
        (self.folder / f"here-{os.getpid()}").touch()
        while len(list(self.folder.glob("here-*"))) < others:
            time.sleep(0.01)


def fake_pool(spec: JobSpec, tokenizer: str) -> FakePool:
    return FakePool()


@dataclass(frozen=True)
class LoadFake:
    """The generator of a job; `kill_at`: with which request of a worker's first life it dies."""

    relaxed: bool = False
    kill_at: int | None = None
    marker: Path | None = None

    def __call__(self, spec: JobSpec, cost_state: dict[str, Any] | None) -> FakeGenerator:
        made = FakeGenerator(relaxed=self.relaxed, on_request=self._on_request)
        if spec.config.generate.draft.draft != "pool":
            made.pool = None
        return made

    def _on_request(self, decoded: int) -> None:
        if self.marker is not None and decoded == self.kill_at and once(self.marker):
            die()
