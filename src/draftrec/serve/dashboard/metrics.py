"""A run's `metrics.jsonl` as it grows: every record read once, and summed as it comes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from draftrec.core import COUNTED, SOURCES, Counts

Record = Mapping[str, Any]

#: Points of a curve; more would be noise, so neighbours are merged.
MOST_POINTS = 120
#: Seconds between two records that still count as one stretch of work.
_SEAM = 2.0
_BLOCK_BYTES = 4 << 20


class MetricsTail:
    """Reads what was added to a file of JSON lines since the last look.

    A last line without its end is left for the next look; a line that is no record is passed over
    and counted; a file that was cut or replaced is read anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.progress = Progress()
        self._offset = 0
        self._file: tuple[int, int] | None = None

    def read(self) -> Progress:
        """What all records so far come to; nothing where there is no file."""
        try:
            with self.path.open("rb") as file:
                status = self.path.stat()
                identity = (status.st_dev, status.st_ino)
                if identity != self._file or status.st_size < self._offset:
                    self.progress, self._offset, self._file = Progress(), 0, identity
                file.seek(self._offset)
                rest = b""
                while block := file.read(_BLOCK_BYTES):
                    rest = self._take(rest + block)
        except FileNotFoundError:
            self.progress, self._offset, self._file = Progress(), 0, None
        return self.progress

    def _take(self, content: bytes) -> bytes:
        """Sum the whole lines; what is left of the last one."""
        end = content.rfind(b"\n") + 1
        self._offset += end
        for line in content[:end].splitlines():
            self.progress.add_line(line)
        return content[end:]


#: Numbers of a record that add up, in this order, before those by source.
_SUMMED = ("new_tokens", *COUNTED)


class Sums:
    """What a stretch of work came to, and what its texts cost. `active`: the last batch; `at`: Unix
    seconds at its end, 0 where that is not known."""

    __slots__ = ("_numbers", "active", "at", "finished", "seconds")

    def __init__(self) -> None:
        self.seconds, self.at, self.finished, self.active = 0.0, 0.0, 0, 0
        self._numbers = [0] * (len(_SUMMED) + len(SOURCES))

    @property
    def new_tokens(self) -> int:
        return self._numbers[0]

    @property
    def counts(self) -> Counts:
        """All but the new tokens."""
        last = len(_SUMMED)
        return Counts(
            **dict(zip(COUNTED, self._numbers[1:last], strict=True)),
            accepted_by_source=self._numbers[last:],
        )

    def add(self, other: Sums) -> None:
        """Add what came later."""
        self.seconds += other.seconds
        self.finished += other.finished
        self.active, self.at = other.active, other.at
        self._numbers = [a + b for a, b in zip(self._numbers, other._numbers, strict=True)]

    @classmethod
    def of(cls, record: Record) -> Sums:
        """A record of steps, or one of a shard.

        Raises TypeError, ValueError or OverflowError for one that does not hold plain numbers.
        """
        sums, get = cls(), record.get
        sums.seconds = float(get("seconds", get("wall_seconds", 0.0)))
        sums.finished = int(get("finished", get("texts", get("entities", 0))))
        sums.active, sums.at = int(get("active", 0)), _end(record)
        sources = [int(n) for n in get("accepted_by_source", ())[: len(SOURCES)]]
        # What was written before a source existed has counted nothing for it.
        sources += [0] * (len(SOURCES) - len(sources))
        sums._numbers = [int(get(name, 0)) for name in _SUMMED] + sources
        if not math.isfinite(sums.seconds) or min(sums.seconds, *sums._numbers) < 0:
            raise ValueError("numbers of a record are 0 or more")
        return sums


class Progress:
    """Speed over time, and what is under way, of records that are added one by one: at most `most`
    points, however many records there are. `odd`: lines that were no records.

    `pending`: what was done since the last finished shard, in one stretch up to the last record, as
    an interruption loses what went before it.
    """

    def __init__(self, most: int = MOST_POINTS) -> None:
        self.most, self.odd = most, 0
        self.pending = Sums()
        self._ended: float | None = None  # when the last record of `pending` did
        self._has_steps = False  # of the shard under way
        self._points: list[Sums] = []
        self._size = 1  # stretches of work that a point holds
        self._in_last = 0

    def add_line(self, line: bytes) -> None:
        """A line of the file."""
        try:
            record = from_json(line)
            if not isinstance(record, dict):
                raise TypeError("not an object")
            self.add(record)
        except (TypeError, ValueError, OverflowError):
            self.odd += 1

    def add(self, record: Record) -> None:
        """A record. Raises what `Sums.of` does, and is unchanged then."""
        kind = record.get("kind")
        if kind not in ("steps", "shard"):
            self._end_pending()
            return
        sums = Sums.of(record)
        if kind == "steps":
            ended = sums.at
            if self._ended is not None and abs(ended - sums.seconds - self._ended) > _SEAM:
                self.pending = Sums()
            self.pending.add(sums)
            self._ended, self._has_steps = ended, True
            self._add_stretch(sums)
            return
        if not self._has_steps:  # as in runs that were shorter
            self._add_stretch(sums)
        self._has_steps = False
        self._end_pending()

    def curves(self) -> Curves:
        """Speed over time. Time in which nothing ran, between an interruption and its resumption,
        is left out."""
        found = Curves([], [], [], [], [], [], [], [])
        tokens = 0
        clock = 0.0
        for sums in self._points:
            clock += sums.seconds
            tokens += sums.new_tokens
            found.seconds.append(round(clock, 3))
            found.at.append(round(sums.at, 1))
            found.tokens.append(tokens)
            found.tokens_per_second.append(round(sums.new_tokens / sums.seconds, 5))
            rates = sums.counts.rates(sums.new_tokens)
            for name in ("tokens_per_call", "acceptance_rate", "relaxed_share"):
                getattr(found, name).append(round(rates[name], 5))
            found.batch.append(sums.active)
        return found

    def _end_pending(self) -> None:
        self.pending, self._ended = Sums(), None

    def _add_stretch(self, sums: Sums) -> None:
        if sums.seconds <= 0:
            return
        if not self._points or self._in_last == self._size:
            self._points.append(Sums())
            self._in_last = 0
        self._points[-1].add(sums)
        self._in_last += 1
        if len(self._points) > self.most:
            self._merge()

    def _merge(self) -> None:
        """Let a point hold twice as many stretches."""
        if len(self._points) % 2 == 0:
            self._in_last += self._size
        self._size *= 2
        for first, second in zip(self._points[::2], self._points[1::2], strict=False):
            first.add(second)
        self._points = self._points[::2]


@dataclass(frozen=True, slots=True)
class Curves:
    """Columns of equal length over `seconds` of work; rates are those of the stretch before. `at`:
    the same moments in Unix seconds, 0 where a record has none; `tokens`: written by then."""

    seconds: list[float]
    at: list[float]
    tokens: list[int]
    tokens_per_second: list[float]
    tokens_per_call: list[float]
    acceptance_rate: list[float]
    relaxed_share: list[float]
    batch: list[int]


def _end(record: Record) -> float:
    """Unix seconds at which a record was written."""
    try:
        return datetime.fromisoformat(str(record.get("at"))).timestamp()
    except (ValueError, OverflowError):
        return 0.0
