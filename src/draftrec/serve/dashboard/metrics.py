"""A run's `metrics.jsonl` as it grows: records read once, and what they say of speed over time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from draftrec.core import COUNTED, SOURCES, Counts

Record = dict[str, Any]

#: Points of a curve; more would be noise, so neighbours are merged.
MOST_POINTS = 120
#: Seconds between two records that still count as one stretch of work.
_SEAM = 2.0


class MetricsTail:
    """Reads what was added to a file of JSON lines since the last look.

    A last line without its end is left for the next look; a line that is no JSON object is passed
    over; a file that was cut or replaced is read anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []
        self._offset = 0
        self._file: tuple[int, int] | None = None

    def read(self) -> list[Record]:
        """All records so far; empty where there is no file."""
        try:
            with self.path.open("rb") as file:
                status = self.path.stat()
                identity = (status.st_dev, status.st_ino)
                if identity != self._file or status.st_size < self._offset:
                    self.records, self._offset, self._file = [], 0, identity
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            self.records, self._offset, self._file = [], 0, None
            return self.records
        complete = added[: added.rfind(b"\n") + 1]
        self._offset += len(complete)
        self.records += [r for line in complete.splitlines() if (r := _record(line)) is not None]
        return self.records


@dataclass(slots=True)
class Sums:
    """What a stretch of work came to, and what its texts cost."""

    seconds: float = 0.0
    new_tokens: int = 0
    finished: int = 0
    active: int = 0
    counts: Counts = field(default_factory=Counts)

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a record of steps, or one of a shard."""
        by_source = [int(n) for n in record.get("accepted_by_source", ())[: len(SOURCES)]]
        numbers = {name: int(record.get(name, 0)) for name in COUNTED}
        self.counts += Counts(**numbers, accepted_by_source=by_source)
        self.new_tokens += int(record.get("new_tokens", 0))
        self.seconds += _seconds(record)
        counted = next((n for n in ("finished", "texts", "entities") if n in record), None)
        self.finished += int(record[counted]) if counted else 0
        self.active = int(record.get("active", 0))


@dataclass(frozen=True, slots=True)
class Curves:
    """Columns of equal length over `seconds` of work; rates are those of the stretch before."""

    seconds: list[float]
    tokens_per_second: list[float]
    tokens_per_call: list[float]
    acceptance_rate: list[float]
    relaxed_share: list[float]
    batch: list[int]


def curves(records: Seq[Record], most: int = MOST_POINTS) -> Curves:
    """Speed over time. Time in which nothing ran, between an interruption and its resumption,
    is left out."""
    stretches = _stretches(records)
    size = -(-len(stretches) // most) if stretches else 1
    found = Curves([], [], [], [], [], [])
    clock = 0.0
    for first in range(0, len(stretches), size):
        sums = Sums()
        for record in stretches[first : first + size]:
            sums.add(record)
        clock += sums.seconds
        found.seconds.append(round(clock, 3))
        per_second = sums.new_tokens / sums.seconds if sums.seconds else 0.0
        found.tokens_per_second.append(round(per_second, 5))
        rates = sums.counts.rates(sums.new_tokens)
        for name in ("tokens_per_call", "acceptance_rate", "relaxed_share"):
            getattr(found, name).append(round(rates[name], 5))
        found.batch.append(sums.active)
    return found


def unfinished(records: Seq[Record]) -> Sums:
    """What was done since the last finished shard, in one stretch up to the last record: an
    interruption loses what went before it."""
    sums, following = Sums(), None
    for record in reversed(records):
        if record.get("kind") != "steps":
            break
        end = _end(record)
        if following is not None and abs(following - end) > _SEAM:
            break
        sums.add(record)
        following = end - _seconds(record)
    return sums


def _stretches(records: Seq[Record]) -> list[Record]:
    """Records of steps; a shard's own where it has none, as in runs that were shorter."""
    found: list[Record] = []
    has_steps = False
    for record in records:
        if record.get("kind") == "steps":
            found.append(record)
            has_steps = True
        elif record.get("kind") == "shard":
            if not has_steps:
                found.append(record)
            has_steps = False
    return [r for r in found if _seconds(r) > 0]


def _record(line: bytes) -> Record | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _seconds(record: Mapping[str, Any]) -> float:
    return float(record.get("seconds", record.get("wall_seconds", 0.0)))


def _end(record: Mapping[str, Any]) -> float:
    """Unix seconds at which a record was written."""
    try:
        return datetime.fromisoformat(str(record.get("at"))).timestamp()
    except ValueError:
        return 0.0
