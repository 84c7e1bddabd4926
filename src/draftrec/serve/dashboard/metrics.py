"""A run's `metrics.jsonl` as it grows: every record read once, and summed as it comes.

Lines are read block by block into columns (`Rows`): by Arrow's reader of JSON where all of them are
what draftrec writes, and one by one where some are not. Both say the same of every line.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from pydantic_core import from_json

from draftrec.core import COUNTED, SOURCES, BoolArray, ByteArray, Counts, DoubleArray, LongArray

Record = Mapping[str, Any]

#: Points of a curve; more would be noise, so neighbours are merged.
MOST_POINTS = 120
#: Seconds between two records that still count as one stretch of work.
_SEAM = 2.0
_BLOCK_BYTES = 1 << 20
#: Lines that are no longer halved in search of the odd ones among them.
_FEW_LINES = 64
#: Arrow's reader recurses and knows no longest number; what could tell it from the slow one is not
#: given to it.
_LONGEST_LINE = 4096

#: Kinds of records: what a few steps came to, what a shard did, all others.
_STEPS, _SHARD, _OTHER = 1, 2, 0
_KINDS = {"steps": _STEPS, "shard": _SHARD}
#: Numbers of a record that add up, in this order, before those by source. Nanoseconds are whole, so
#: that a sum is the same in whatever order it is made.
_SUMMED = ("nanoseconds", "finished", "new_tokens", *COUNTED)
_COLUMNS = len(_SUMMED) + len(SOURCES)
#: A record's own numbers and seconds lie below these; sums of rows fit 64 bits.
_TOO_MANY, _TOO_LONG, _TOO_LARGE = 2.0**53, 2.0**32, 2.0**62


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
        for rows in rows_of(content[:end]):
            self.progress.take(rows)
        return content[end:]


@dataclass(frozen=True, slots=True)
class Rows:
    """Records in the order of their lines. `kinds` uint8 `[n]`; `at` float64 `[n]`, Unix seconds, 0
    where that is not known; `active` int64 `[n]`; `numbers` int64 `[n, columns]`, those of
    `_SUMMED`, then by source. `odd`: lines beside them that were no records."""

    kinds: ByteArray
    at: DoubleArray
    active: LongArray
    numbers: LongArray
    odd: int = 0

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, which: slice | LongArray) -> Rows:
        """Some of the records, with no odd lines."""
        return Rows(self.kinds[which], self.at[which], self.active[which], self.numbers[which])


def rows_of(content: bytes) -> Iterator[Rows]:
    """The records of whole lines, blocks with odd lines in smaller blocks."""
    if not content:
        return
    rows = quick_rows(content)
    middle = content.find(b"\n", len(content) // 2) + 1
    if rows is not None:
        yield rows
    elif content.count(b"\n") <= _FEW_LINES or middle == len(content):
        yield slow_rows(content)
    else:
        yield from rows_of(content[:middle])
        yield from rows_of(content[middle:])


def slow_rows(content: bytes) -> Rows:
    """The records of whole lines, one by one."""
    found: list[tuple[int, float, int, list[int]]] = []
    lines = content.split(b"\n")[:-1]
    for line in lines:
        try:
            found.append(_row(from_json(line)))
        except (TypeError, ValueError, OverflowError, AttributeError):
            continue
    kinds, at, active, numbers = zip(*found, strict=True) if found else ((), (), (), ())
    return Rows(
        np.array(kinds, np.uint8),
        np.array(at, np.float64),
        np.array(active, np.int64),
        np.array(numbers, np.int64).reshape(-1, _COLUMNS),
        odd=len(lines) - len(found),
    )


def _row(record: Record) -> tuple[int, float, int, list[int]]:
    """Kind, end, active texts and numbers of a record.

    Raises TypeError, ValueError, OverflowError or AttributeError for one that does not hold plain
    numbers.
    """
    get = record.get
    kind = get("kind")
    if kind not in ("steps", "shard"):
        return _OTHER, 0.0, 0, [0] * _COLUMNS
    seconds = float(get("seconds", get("wall_seconds", 0.0)))
    if not 0 <= seconds < _TOO_LONG:
        raise ValueError("seconds are 0 or more, and no age")
    finished = int(get("finished", get("texts", get("entities", 0))))
    sources = [int(n) for n in get("accepted_by_source", ())[: len(SOURCES)]]
    # What was written before a source existed has counted nothing for it.
    sources += [0] * (len(SOURCES) - len(sources))
    counts = [finished, *(int(get(name, 0)) for name in _SUMMED[2:]), *sources]
    active = int(get("active", 0))
    if min(active, *counts) < 0 or max(active, *counts) >= _TOO_MANY:
        raise ValueError("numbers of a record are 0 or more, and no giants")
    return _KINDS[kind], _end(record), active, [round(seconds * 1e9), *counts]


def _end(record: Record) -> float:
    """Unix seconds at which a record was written."""
    try:
        return datetime.fromisoformat(str(record.get("at"))).timestamp()
    except (ValueError, OverflowError):
        return 0.0


_INTEGERS = ("active", "finished", "texts", "entities", *_SUMMED[2:])
_SCHEMA = pa.schema(
    [("kind", pa.string()), ("at", pa.string())]
    + [(name, pa.float64()) for name in ("seconds", "wall_seconds")]
    + [(name, pa.int64()) for name in _INTEGERS]
    + [("accepted_by_source", pa.list_(pa.int64()))]
)


def quick_rows(content: bytes) -> Rows | None:
    """The same of lines that are all plain records, None where some may not be."""
    if not _plain(content):
        return None
    try:
        table = pj.read_json(
            pa.BufferReader(content),
            pj.ReadOptions(use_threads=False, block_size=len(content)),
            pj.ParseOptions(explicit_schema=_SCHEMA, unexpected_field_behavior="ignore"),
        ).combine_chunks()
        at = _ends(table["at"])
    except pa.ArrowInvalid:
        return None
    if at is None or len(table) != content.count(b"\n"):
        return None
    kinds = np.zeros(len(table), np.uint8)
    for name, kind in _KINDS.items():
        kinds[_call("equal", table["kind"], name).fill_null(False).to_numpy()] = kind
    seconds = _numpy(_call("coalesce", table["seconds"], table["wall_seconds"]), 0.0)
    finished = _call("coalesce", table["finished"], table["texts"], table["entities"])
    numbers = np.zeros((len(table), _COLUMNS), np.int64)
    for place, column in enumerate((finished, *(table[name] for name in _SUMMED[2:])), 1):
        numbers[:, place] = _numpy(column, 0)
    _put_sources(table["accepted_by_source"], numbers[:, len(_SUMMED) :])
    active = _numpy(table["active"], 0)
    # NaN is nowhere within.
    if not ((seconds >= 0) & (seconds < _TOO_LONG)).all():
        return None
    if min(numbers.min(), active.min()) < 0 or max(numbers.max(), active.max()) >= _TOO_MANY:
        return None
    numbers[:, 0] = np.rint(seconds * 1e9)
    return Rows(kinds, at, active, numbers)


def _plain(content: bytes) -> bool:
    """Whether every line is one object of plain values, of which Arrow's reader says what the slow
    one does: no nulls, which it takes for what is not there, no NaN and Infinity, which it spells
    in other ways too; nothing nested, escaped or endless."""
    odd = any(sign in content for sign in (b"\\", b"\0", b"N", b"I", b"null"))
    if odd or not content.isascii() or not content.endswith(b"}\n"):
        return False
    letters = np.frombuffer(content, np.uint8)
    ends, opened, closed = (np.flatnonzero(letters == ord(sign)) for sign in "\n[]")
    begins = np.concatenate(([0], ends[:-1] + 1))
    if content.count(b"{") != len(ends) or (letters[begins] != ord("{")).any():
        return False
    if (letters[ends - 1] != ord("}")).any() or (ends - begins).max() > _LONGEST_LINE:
        return False
    lists = len(opened) == len(closed) and (opened < closed).all()
    return bool(lists and (closed[:-1] < opened[1:]).all())


def _call(name: str, *columns: Any) -> pa.ChunkedArray:
    """One of Arrow's functions, which checkers of types do not find by name."""
    return pc.call_function(name, list(columns))


def _numpy(column: pa.ChunkedArray, missing: float) -> Any:
    """A column's values, `missing` where a record has none."""
    return (column.fill_null(missing) if column.null_count else column).to_numpy()


def _put_sources(column: pa.ChunkedArray, into: LongArray) -> None:
    """Write lists of any length into as many columns as there are sources."""
    for lists in column.chunks:
        offsets, values = np.asarray(lists.offsets), lists.values.to_numpy(zero_copy_only=False)
        for source in range(into.shape[1]):
            some = np.flatnonzero(np.diff(offsets) > source)
            into[some, source] = values[offsets[some] + source]


#: Moments as `metrics.jsonl` has them, and the years in which two readers of dates agree.
_UTC = "+00:00"
_FIRST, _LAST = 0, 4_000_000_000 * 10**6


def _ends(column: pa.ChunkedArray) -> DoubleArray | None:
    """Unix seconds of the moments of UTC, None where there are others. Raises ArrowInvalid for
    what is none."""
    of_utc = pc.call_function("ends_with", [column], pc.MatchSubstringOptions(_UTC))
    if not of_utc.fill_null(True).to_numpy().all():
        return None
    micros = _numpy(column.cast(pa.timestamp("us", "UTC")).cast(pa.int64()), 0)
    if len(micros) and not _FIRST <= micros.min() <= micros.max() < _LAST:
        return None
    return micros / 1e6


class Sums:
    """What a stretch of work came to, and what its texts cost. `active`: the last batch; `at`: Unix
    seconds at its end, 0 where that is not known."""

    __slots__ = ("_numbers", "active", "at")

    def __init__(self, numbers: list[int] | None = None, active: int = 0, at: float = 0.0) -> None:
        self._numbers, self.active, self.at = numbers or [0] * _COLUMNS, active, at

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
        last = len(_SUMMED)
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
        steps = rows.kinds == _STEPS
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
        rows = rows[np.flatnonzero(rows.kinds != _OTHER)]
        if not len(rows):
            return
        told = np.concatenate(([self._has_steps], rows.kinds[:-1] == _STEPS))
        self._has_steps = bool(rows.kinds[-1] == _STEPS)
        counts = (rows.kinds == _STEPS) | ~told
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
    return np.concatenate((np.zeros((1, _COLUMNS), np.int64), rows.numbers.cumsum(axis=0)))


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
