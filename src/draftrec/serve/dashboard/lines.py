"""Lines of `metrics.jsonl` as columns of numbers (`Rows`).

Of lines that differ in their digits alone, as most of a job's do, the first one says what stands
where, and the numbers of all are read together. Others are read one by one, as is whatever could
mean two things. Both say the same of every line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
from pydantic_core import from_json

from draftrec.core import COUNTED, SOURCES, BoolArray, ByteArray, DoubleArray, IntArray, LongArray

Record = Mapping[str, Any]

#: What is read line by line: some 200 records, of which a short run has no more.
_FEW_BYTES = 1 << 16
#: So few lines of one form are read one by one.
_FEW_LINES = 8
_NEWLINE, _ZERO, _DIGITS = ord("\n"), ord("0"), b"0123456789"

#: Kinds of records: what a few steps came to, what a shard did, all others.
STEPS, SHARD, OTHER = 1, 2, 0
_KINDS = {"steps": STEPS, "shard": SHARD}
#: Numbers of a record that add up, in this order, before those by source. Nanoseconds are whole, so
#: that a sum is the same in whatever order it is made.
SUMMED = ("nanoseconds", "finished", "new_tokens", *COUNTED)
COLUMNS = len(SUMMED) + len(SOURCES)
#: A record's own numbers and seconds lie below these.
_TOO_MANY, _TOO_LONG = 2.0**53, 2.0**32


@dataclass(frozen=True, slots=True)
class Rows:
    """Records in the order of their lines. `kinds` uint8 `[n]`; `at` float64 `[n]`, Unix seconds, 0
    where that is not known; `active` int64 `[n]`; `numbers` int64 `[n, columns]`, those of
    `SUMMED`, then by source. `odd`: lines beside them that were no records."""

    kinds: ByteArray
    at: DoubleArray
    active: LongArray
    numbers: LongArray
    odd: int = 0

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, which: slice | LongArray | BoolArray) -> Rows:
        """Some of the records, with no odd lines."""
        return Rows(self.kinds[which], self.at[which], self.active[which], self.numbers[which])


def rows_of(content: bytes, few: int = _FEW_BYTES) -> Rows:
    """The records of whole lines. No more than `few` bytes are read one by one."""
    letters = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(letters == _NEWLINE)
    begins, count = np.concatenate(([0], ends + 1))[:-1], len(ends)
    kinds, at, active = np.zeros(count, np.uint8), np.zeros(count), np.zeros(count, np.int64)
    rows = Rows(kinds, at, active, np.zeros((count, COLUMNS), np.int64))
    read = np.zeros(count, np.bool_)
    if len(content) > few:
        for lines, form, runs in _alike(content, letters, begins, ends):
            good = form.put(runs, lines, rows)
            read[lines[good]] = True
    for line in np.flatnonzero(~read):
        try:
            found = _row(from_json(content[begins[line] : ends[line]]))
        except (TypeError, ValueError, OverflowError, AttributeError):
            continue
        kinds[line], at[line], active[line], rows.numbers[line] = found
        read[line] = True
    return replace(rows[read], odd=count - int(read.sum()))


@dataclass(frozen=True, slots=True)
class _Runs:
    """Runs of digits in lines of one form. `letters` uint8, of all lines; `starts` and `lengths`
    int32 `[lines, runs]`."""

    letters: ByteArray
    starts: IntArray
    lengths: IntArray

    def __getitem__(self, lines: BoolArray) -> _Runs:
        """Those of some lines."""
        return _Runs(self.letters, self.starts[lines], self.lengths[lines])

    def numbers(self, which: list[int], most: int) -> LongArray:
        """The numbers that the first `most` digits of some runs are, int64 `[runs, lines]`."""
        found = np.zeros((len(which), len(self.starts)), np.int64)
        for number, run in zip(found, which, strict=True):
            starts, lengths = self.starts[:, run], self.lengths[:, run]
            for place in range(min(lengths.max(initial=0), most)):
                digits = self.letters.take(starts + place, mode="clip") - _ZERO
                np.copyto(number, 10 * number + digits, where=lengths > place)
        return found


def _alike(
    content: bytes, letters: ByteArray, begins: LongArray, ends: LongArray
) -> Iterator[tuple[LongArray, _Form, _Runs]]:
    """Lines that differ in their digits alone, int64 `[lines]`, where there are many and they are
    plain."""
    edges = np.flatnonzero(np.diff(letters - _ZERO < len(_DIGITS), prepend=False)).astype(np.int32)
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    first = np.searchsorted(starts, np.append(begins, len(letters)))
    known: dict[bytes, int] = {}
    rests = content.translate(None, _DIGITS).split(b"\n")[:-1]
    kinds = np.array([known.setdefault(rest, len(known)) for rest in rests])
    for kind in range(len(known)):
        lines = np.flatnonzero(kinds == kind)
        count = int(first[lines[0] + 1] - first[lines[0]])
        lines = lines[np.diff(first)[lines] == count]
        form = _form(content[begins[lines[0]] : ends[lines[0]]]) if count else None
        if form is None or len(lines) < _FEW_LINES:
            continue
        if len(lines) == len(begins):
            found = _Runs(letters, starts.reshape(-1, count), lengths.reshape(-1, count))
        else:
            places = first[lines][:, None] + np.arange(count)
            found = _Runs(letters, starts[places], lengths[places])
        # What lies between runs is the same wherever it is as long.
        behind = np.column_stack((begins[lines], (found.starts + found.lengths)[:, :-1]))
        between = found.starts - behind[:, : found.starts.shape[1]]
        same = (between == between[0]).all(1)
        yield lines[same], form, found if same.all() else found[same]


#: A plain record: names and values without escapes, of ASCII, and lists of nothing but digits.
_TEXT = rb'"[ !#-\[\]-~]*"'
_VALUE = rb"%b|-?\d+(?:\.\d+)?|\[(?:\d+(?:, ?\d+)*)?\]|true|false|null" % _TEXT
_PAIR = re.compile(rb"(%b): ?(%b)" % (_TEXT, _VALUE))
_RECORD = re.compile(rb"\{(?:%b(?:, ?%b)*)?\}" % (_PAIR.pattern, _PAIR.pattern))
_INTEGER, _SECONDS, _LIST = (re.compile(p) for p in (rb"\d+", rb"\d+(\.\d+)?", rb"\[[\d, ]*\]"))
#: A moment of UTC, and how many digits each of its runs has.
_MOMENT = re.compile(rb'"\d+-\d+-\d+T\d+:\d+:\d+\.\d+\+\d+:\d+"')
_WIDTHS = np.array([4, 2, 2, 2, 2, 2, 3, 2, 2])
#: Digits that are read: of a whole number, of seconds before and after their point; and those of
#: which no number needs more.
_EXACT, _WHOLE, _FRACTION, _ENDLESS = 15, 9, 9, 100


@dataclass(frozen=True, slots=True)
class _Form:
    """What the runs of digits of alike lines are, by their places in a line. `heads`: those that
    begin a number; `moment`: nine or none; `seconds`: their whole and their fraction, as far as
    they have them; `counts`: of whole numbers, which belong to these `columns`, -1 for active."""

    kind: int
    heads: list[int]
    moment: list[int]
    seconds: list[int]
    counts: list[int]
    columns: list[int]

    def put(self, runs: _Runs, lines: LongArray, into: Rows) -> BoolArray:
        """Put alike `lines` where they belong; which of them are plain, bool `[lines]`."""
        lengths = runs.lengths
        padded = (runs.letters[runs.starts] == _ZERO) & (lengths > 1)
        plain = ~padded[:, self.heads].any(1) & (lengths < _ENDLESS).all(1)
        plain &= (lengths[:, self.counts] <= _EXACT).all(1)
        into.kinds[lines] = self.kind
        for column, values in zip(self.columns, runs.numbers(self.counts, _EXACT), strict=True):
            (into.active if column < 0 else into.numbers[:, column])[lines] = values
        if self.seconds:
            whole, *fraction = self.seconds
            plain &= lengths[:, whole] <= _WHOLE
            into.numbers[lines, 0] = runs.numbers([whole], _WHOLE)[0] * 10**_FRACTION
            for place in fraction:
                worth = 10 ** (_FRACTION - np.minimum(lengths[:, place], _FRACTION))
                into.numbers[lines, 0] += runs.numbers([place], _FRACTION)[0] * worth
        if self.moment:
            micros, sound = _micros(runs.numbers(self.moment, _WHOLE))
            plain &= sound & (lengths[:, self.moment] == _WIDTHS).all(1)
            into.at[lines] = micros / 1e6
        return plain


def _form(line: bytes) -> _Form | None:
    """What lines are that differ from this one in their digits, None where they are not plain."""
    pairs = list(_PAIR.finditer(line)) if _RECORD.fullmatch(line) else []
    values = {pair[1][1:-1].decode(): pair.span(2) for pair in pairs}
    if not pairs or len(values) < len(pairs):
        return None
    runs = [run.start() for run in _INTEGER.finditer(line)]
    texts = [pair.span(n) for pair in pairs for n in (1, 2) if pair[n][:1] == b'"']
    outside = [not any(begin < start < end for begin, end in texts) for start in runs]
    heads = [i for i, start in enumerate(runs) if outside[i] and line[start - 1] != ord(".")]
    kind = _KINDS.get(line[slice(*values.get("kind", (0, 0)))].decode().strip('"'), OTHER)
    if kind == OTHER:
        return _Form(kind, heads, [], [], [], [])

    def places(form: re.Pattern[bytes], *names: str) -> list[int]:
        """Of the runs of the first of these values that there is. Raises ValueError for one of
        another form."""
        begin, end = next((values[name] for name in names if name in values), (0, 0))
        if begin and not form.fullmatch(line, begin, end):
            raise ValueError(names)
        return [place for place, start in enumerate(runs) if begin <= start < end]

    columns = {"active": -1, "finished": 1} | {name: 2 + i for i, name in enumerate(SUMMED[2:])}
    others = {"finished": ("texts", "entities")}
    try:
        counts = {c: places(_INTEGER, n, *others.get(n, ())) for n, c in columns.items()}
        by_source = places(_LIST, "accepted_by_source")[: len(SOURCES)]
        counts |= {len(SUMMED) + i: [place] for i, place in enumerate(by_source)}
        moment, seconds = places(_MOMENT, "at"), places(_SECONDS, "seconds", "wall_seconds")
    except ValueError:
        return None
    counts = {column: found[0] for column, found in counts.items() if found}
    return _Form(kind, heads, moment, seconds, list(counts.values()), list(counts))


def _micros(moments: LongArray) -> tuple[LongArray, BoolArray]:
    """Microseconds since 1970 of years, months, days, hours, minutes, seconds, milliseconds and how
    far east, int64 `[9, n]`; and which of them there are."""
    year, month, day, hour, minute, second, milli, east, more = moments
    months = 12 * (year - 1970) + month - 1
    before, after = (
        m.astype("M8[M]").astype("M8[D]").astype(np.int64) for m in (months, months + 1)
    )
    sound = (year >= 1970) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= after - before)
    sound &= (hour < 24) & (minute < 60) & (second < 60) & (east + more == 0)
    seconds = 86_400 * (before + day - 1) + 3600 * hour + 60 * minute + second
    return 1000 * (1000 * seconds + milli), sound


def _row(record: Record) -> tuple[int, float, int, list[int]]:
    """Kind, end, active texts and numbers of a record.

    Raises TypeError, ValueError, OverflowError or AttributeError for one that does not hold plain
    numbers.
    """
    get = record.get
    kind = get("kind")
    if kind not in ("steps", "shard"):
        return OTHER, 0.0, 0, [0] * COLUMNS
    seconds = float(get("seconds", get("wall_seconds", 0.0)))
    if not 0 <= seconds < _TOO_LONG:
        raise ValueError("seconds are 0 or more, and no age")
    finished = int(get("finished", get("texts", get("entities", 0))))
    sources = [int(n) for n in get("accepted_by_source", ())[: len(SOURCES)]]
    # What was written before a source existed has counted nothing for it.
    sources += [0] * (len(SOURCES) - len(sources))
    counts = [finished, *(int(get(name, 0)) for name in SUMMED[2:]), *sources]
    active = int(get("active", 0))
    if min(active, *counts) < 0 or max(active, *counts) >= _TOO_MANY:
        raise ValueError("numbers of a record are 0 or more, and no giants")
    return _KINDS[kind], _end(record), active, [_nanoseconds(seconds), *counts]


def _end(record: Record) -> float:
    """Unix seconds at which a record was written."""
    try:
        return datetime.fromisoformat(str(record.get("at"))).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def _nanoseconds(seconds: float) -> int:
    """Whole ones, cut off as they are written."""
    return int(Decimal(repr(seconds)).scaleb(9))
