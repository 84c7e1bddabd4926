"""A run's `metrics.jsonl` as it grows: every record read once, and summed as it comes."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from draftrec.core import COUNTED, BoolArray, Counts, LongArray
from draftrec.serve.dashboard.lines import COLUMNS, OTHER, STEPS, SUMMED, Rows, rows_of

#: Points of a curve; more would be noise, so neighbours are merged.
MOST_POINTS = 120
#: Seconds between two records that still count as one stretch of work.
_SEAM = 2.0
#: Read and then understood at once. The C library keeps memory of the size that it was given back
#: last, so that the parts of a block, which need less, do not ask the system for theirs each time.
_BLOCK_BYTES, _PART_BYTES = 8 << 20, 1 << 20
#: Sums of rows fit 64 bits.
_TOO_LARGE = 2.0**62


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
        end, start = content.rfind(b"\n") + 1, 0
        self._offset += end
        while start < end:
            # A line that is longer than a part is one.
            stop = content.rfind(b"\n", start, start + _PART_BYTES) + 1
            stop = stop or content.find(b"\n", start) + 1
            self.progress.take(rows_of(content[start:stop]))
            start = stop
        return content[end:]


class Sums:
    """What a stretch of work came to, and what its texts cost. `active`: texts at once, of its last
    record; `at`: Unix seconds at its end, 0 where that is not known."""

    __slots__ = ("_numbers", "active", "at")

    def __init__(self, numbers: list[int] | None = None, active: int = 0, at: float = 0.0) -> None:
        self._numbers, self.active, self.at = numbers or [0] * COLUMNS, active, at

    @property
    def seconds(self) -> float:
        return self._numbers[0] / 1e9

    @property
    def finished(self) -> int:
        return self._numbers[1]

    @property
    def new_tokens(self) -> int:
        return self._numbers[2]

    @property
    def counts(self) -> Counts:
        """Those of drafts and passes."""
        last = len(SUMMED)
        return Counts(
            **dict(zip(COUNTED, self._numbers[3:last], strict=True)),
            accepted_by_source=self._numbers[last:],
        )

    def add(self, other: Sums) -> None:
        """Add what came later."""
        self.active, self.at = other.active, other.at
        self._numbers = list(map(operator.add, self._numbers, other._numbers))


class Progress:
    """Speed over time, and what is under way, of records that are added block by block: at most
    `most` points, however many records there are. `odd`: lines that were no records.

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

    def take(self, rows: Rows) -> None:
        """Add records that follow those so far."""
        self.odd += rows.odd
        if len(rows) > 1 and rows.numbers.sum(axis=0, dtype=np.float64).max() > _TOO_LARGE:
            half = len(rows) // 2
            self.take(rows[:half])
            self.take(rows[half:])
        elif len(rows):
            self._take_pending(rows)
            self._take_stretches(rows)

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

    def _take_pending(self, rows: Rows) -> None:
        """What is under way begins anew after a record that is not of steps, and with one of steps
        that does not follow the one before."""
        steps = rows.kinds == STEPS
        before = np.concatenate(([np.nan if self._ended is None else self._ended], rows.at[:-1]))
        before[1:][~steps[:-1]] = np.nan  # nothing to follow
        idle = np.abs(rows.at - rows.numbers[:, 0] / 1e9 - before)
        begins = max(_last(~steps) + 1, _last(steps & (idle > _SEAM)), -1)
        if begins >= 0:
            self.pending = Sums()
        under_way = rows[max(begins, 0) :]
        if len(under_way):
            self.pending.add(_sum(_running(under_way), under_way, 0, len(under_way)))
        self._ended = float(rows.at[-1]) if len(under_way) else None

    def _take_stretches(self, rows: Rows) -> None:
        """Shards count where no record of steps told of their work, as in short runs."""
        rows = rows[np.flatnonzero(rows.kinds != OTHER)]
        if not len(rows):
            return
        told = np.concatenate(([self._has_steps], rows.kinds[:-1] == STEPS))
        self._has_steps = bool(rows.kinds[-1] == STEPS)
        counts = (rows.kinds == STEPS) | ~told
        rows = rows[np.flatnonzero(counts & (rows.numbers[:, 0] > 0))]
        running, taken = _running(rows), 0
        while taken < len(rows):
            if not self._points or self._in_last == self._size:
                self._points.append(Sums())
                self._in_last = 0
            more = min(self._size - self._in_last, len(rows) - taken)
            self._points[-1].add(_sum(running, rows, taken, taken + more))
            self._in_last += more
            taken += more
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


def _last(where: BoolArray) -> int:
    """The last place that is true, -2 where none is."""
    places = np.flatnonzero(where)
    return int(places[-1]) if len(places) else -2


def _running(rows: Rows) -> LongArray:
    """Sums of the first 0, 1, 2 ... records, int64 `[n + 1, columns]`."""
    return np.concatenate((np.zeros((1, COLUMNS), np.int64), rows.numbers.cumsum(axis=0)))


def _sum(running: LongArray, rows: Rows, start: int, end: int) -> Sums:
    """The records from `start` up to `end`, one at least."""
    numbers = (running[end] - running[start]).tolist()
    return Sums(numbers, int(rows.active[end - 1]), float(rows.at[end - 1]))


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
