"""What the actors of `test_executor` do. A module of its own, which loads nothing: whoever dies and
starts again shall not take seconds for it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftrec.errors import DraftrecError


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
