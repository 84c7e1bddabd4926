"""Folders that the dashboard watches, and what is in them now."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from draftrec.errors import DraftrecError
from draftrec.serve.dashboard.advice import Advice, advise
from draftrec.serve.dashboard.quality import Evaluation, read_evaluations
from draftrec.serve.dashboard.run_data import RunData, RunReader, with_baselines

#: Folders are looked at once in this many seconds, however many pages are open.
FRESH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The page's data as JSON text. `version` is equal for equal data; how long a run has been
    quiet does not count."""

    version: str
    json: str


@dataclass(frozen=True, slots=True)
class Found:
    """All that the folders hold. `notes`: files that could not be read, in a sentence each."""

    runs: list[RunData] = field(default_factory=list[RunData])
    evaluations: list[Evaluation] = field(default_factory=list[Evaluation])
    notes: list[str] = field(default_factory=list[str])
    advice: list[Advice] = field(default_factory=list[Advice])


class RunSources:
    """Reads run folders and evaluations; safe to ask from several threads.

    A folder is a run or an evaluation, or it holds some: then all that it holds, and will hold, are
    shown. `price_per_hour`: what an hour of the machine costs, as the page proposes it. Raises
    DraftrecError for a folder that does not exist.
    """

    def __init__(self, folders: Seq[Path], price_per_hour: float | None = None) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise DraftrecError(
                    f"{folder} is no folder; name the --output of a job, or a folder of such"
                )
        self.folders = list(dict.fromkeys(f.absolute() for f in folders))
        self.price_per_hour = price_per_hour
        self._readers: dict[Path, RunReader] = {}
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._looked = 0.0

    def snapshot(self) -> Snapshot:
        """The data as of now, or of at most a second ago."""
        with self._lock:
            now = time.monotonic()
            if self._snapshot is None or now - self._looked >= FRESH_SECONDS:
                self._snapshot, self._looked = self._take(), now
            return self._snapshot

    def read(self) -> Found:
        """All runs and evaluations, and advice on them."""
        found = Found()
        places = list(self._places())
        names = _names(places)
        for folder, name in zip(places, names, strict=True):
            if _is_run(folder):
                reader = self._readers.setdefault(folder, RunReader(folder, name))
                reader.name = name
                try:
                    run = reader.read()
                except (DraftrecError, OSError) as error:
                    found.notes.append(f"{name} cannot be shown: {error}")
                    continue
                found.runs.extend([run] if run else [])
            found.evaluations.extend(read_evaluations(folder, name))
        found.runs[:] = with_baselines(found.runs)
        found.advice.extend(advise(found.runs, found.evaluations))
        return found

    def _take(self) -> Snapshot:
        values: dict[str, Any] = {**asdict(self.read()), "price_per_hour": self.price_per_hour}
        lasting = [{**run, "quiet_seconds": 0} for run in values["runs"]]
        version = hashlib.sha256(json.dumps({**values, "runs": lasting}).encode()).hexdigest()
        values["version"] = version[:16]
        return Snapshot(version[:16], json.dumps(values))

    def _places(self) -> Iterable[Path]:
        """The given folders that hold something, and folders directly within the others."""
        seen: set[Path] = set()
        for folder in self.folders:
            inside = [folder]
            if not _is_run(folder):
                inside += sorted(p for p in _children(folder) if not p.name.startswith("."))
            for place in inside:
                if place not in seen:
                    seen.add(place)
                    yield place


def _children(folder: Path) -> list[Path]:
    try:
        return [p for p in folder.iterdir() if p.is_dir()]
    except OSError:
        return []


def _is_run(folder: Path) -> bool:
    """Whether a folder's manifest is that of a run; pools have one too."""
    try:
        content = json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == "draftrec-run"


def _names(folders: Seq[Path]) -> list[str]:
    """Short names that differ: the folder's own, with its parent's where two are alike."""
    own = [f.name or str(f) for f in folders]
    return [
        name if own.count(name) == 1 else f"{folder.parent.name}/{name}"
        for folder, name in zip(folders, own, strict=True)
    ]
