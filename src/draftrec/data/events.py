"""Rated events of users, in time order, as arrays."""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from draftrec.core import FloatArray
from draftrec.data.interactions import converted, label
from draftrec.data.readers import RecordSource, Row, open_records
from draftrec.data.rejects import Rejects, RowError
from draftrec.errors import DraftrecError

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
T = TypeVar("T")
#: A number, or a date in nanoseconds, and whether it is a date.
_Time = tuple[Any, bool]

_TRUTHS = {"true": True, "yes": True, "false": False, "no": False}
_FRACTION = re.compile(r"(?<=\d)\.(\d+)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class EventColumns:
    """Names of columns. `rating` and `time`: None takes `rating` and `timestamp` if they exist."""

    user: str = "user_id"
    item: str = "item_id"
    rating: str | None = None
    time: str | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Events:
    """All events, user by user, each user's in time order (ties, and files without times: in file
    order). `users` and `items` are the ids, in the order of first appearance.

    `user`, `item` int64 `[n]` index them; `rating` float32 `[n]` (of booleans 1 and 0) and `time`
    float64 `[n]` or None: as in the file, seconds since 1970 for dates; where float64 cannot tell
    all times of the file apart, their ranks. `starts` int64 `[users + 1]`: the events of
    user u are `starts[u]` up to, without, `starts[u + 1]`.
    """

    users: tuple[str, ...]
    items: tuple[str, ...]
    user: Int64Array
    item: Int64Array
    rating: FloatArray | None
    time: Float64Array | None
    starts: Int64Array

    @property
    def labelled(self) -> bool:
        """Whether ratings are labels, click or no click: booleans, 0 and 1, or -1 and 1."""
        return self.rating is not None and bool(np.isin(self.rating, (-1, 0, 1)).all())


def read_events(location: str, columns: EventColumns, rejects: Rejects | None = None) -> Events:
    """Read a file with a row per event. Rows whose ids, rating or time are none join `rejects`.

    Raises DraftrecError for a missing column, for a column of ratings that mixes numbers and
    booleans, and, without `rejects`, at the first unusable row.
    """
    source = open_records(location)
    source.require(
        [columns.user, columns.item], "name the columns with --user-column and --item-column"
    )
    rating = _optional(source, columns.rating, "rating", "--rating-column")
    time = _optional(source, columns.time, "timestamp", "--time-column")
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    ratings: list[float] = []
    times: list[_Time] = []
    truths = 0

    def event(row: Row) -> tuple[str, str, tuple[float, bool], _Time | None]:
        found = _rating(row, rating) if rating else (0.0, False)
        when = _converted(row, time, _moment, "a number or a date") if time else None
        return label(row, columns.user), label(row, columns.item), found, when

    rows = source.rows([c for c in (columns.user, columns.item, rating, time) if c])
    for user, item, (rated, truth), when in converted(rows, event, rejects):
        pairs.append((users.setdefault(user, len(users)), items.setdefault(item, len(items))))
        ratings.append(rated)
        truths += truth
        if when is not None:
            times.append(when)
    if 0 < truths < len(pairs):
        raise DraftrecError(
            f"{location}: {rating} holds {truths:,} booleans among numbers; write one kind"
        )
    return _sorted(
        tuple(users),
        tuple(items),
        np.array(pairs, np.int64),
        np.array(ratings, np.float32) if rating else None,
        _as_numbers(times) if time else None,
    )


def _optional(source: RecordSource, named: str | None, usual: str, option: str) -> str | None:
    """The column that was named, which must exist, or the usual one where it does."""
    if named is not None:
        source.require([named], f"name another with {option}")
        return named
    return usual if source.has(usual) else None


def _converted(row: Row, column: str, convert: Callable[[Any], T], allowed: str) -> T:
    value = row.values.get(column)
    try:
        if value is not None and not isinstance(value, bool):
            return convert(value)
    except (TypeError, ValueError, ArithmeticError):
        pass
    raise RowError(row, f"{column} is {value!r}, not {allowed}")


def _rating(row: Row, column: str) -> tuple[float, bool]:
    """The number, and whether it stands for a boolean."""
    value = row.values.get(column)
    if isinstance(value, str):
        value = _TRUTHS.get(value.strip().casefold(), value)
    if isinstance(value, bool):
        return float(value), True
    return _converted(row, column, _finite, "a number"), False


def _finite(value: Any) -> float:
    number = float(value)
    if not np.isfinite(number):
        raise ValueError
    return number


def _moment(value: Any) -> _Time:
    """A number as it is; a date or its ISO form as nanoseconds since 1970, UTC unless it says so.
    Nothing is rounded."""
    if isinstance(value, str):
        try:
            return _number(Decimal(value))
        except ArithmeticError:
            return _iso(value)
    if isinstance(value, date):
        return _nanoseconds(value), True
    return _number(value)


def _number(value: Any) -> _Time:
    if not np.isfinite(float(value)):
        raise ValueError
    return value, False


def _iso(text: str) -> _Time:
    """Digits behind the sixth of a second are read here: Python's own dates have no room."""
    found = _FRACTION.search(text)
    whole = text if found is None else text[: found.start()] + text[found.end() :]
    fraction = int(found[1][:9].ljust(9, "0")) if found else 0
    return _nanoseconds(datetime.fromisoformat(whole)) + fraction, True


def _nanoseconds(value: date) -> int:
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    since = (value if value.tzinfo else value.replace(tzinfo=UTC)) - _EPOCH
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1000


def _as_numbers(times: Seq[_Time]) -> Float64Array:
    """float64 `[n]`: numbers as they are, dates as seconds; ranks where these would be equal for
    times that are not."""
    exact = [Fraction(value) / 10**9 if dated else value for value, dated in times]
    numbers = np.array([float(value) for value in exact], np.float64)
    different = set(exact)
    if len(np.unique(numbers)) == len(different):
        return numbers
    ranks = {value: float(rank) for rank, value in enumerate(sorted(different))}
    return np.array([ranks[value] for value in exact], np.float64)


def _sorted(
    users: tuple[str, ...],
    items: tuple[str, ...],
    pairs: Int64Array,
    rating: FloatArray | None,
    time: Float64Array | None,
) -> Events:
    user = pairs[:, 0]
    keys = (user,) if time is None else (time, user)
    order = np.lexsort(keys)  # stable: equal times stay in file order
    starts = np.concatenate([[0], np.bincount(user, minlength=len(users)).cumsum()])
    return Events(
        users,
        items,
        user[order],
        pairs[order, 1],
        None if rating is None else rating[order],
        None if time is None else time[order],
        starts.astype(np.int64),
    )
