"""Rated events of users, in time order, as arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from draftrec.core import FloatArray
from draftrec.data.interactions import label
from draftrec.data.readers import RecordSource, Row, open_records
from draftrec.errors import DraftrecError

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


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

    `user`, `item` int64 `[n]` index them; `rating` float32 `[n]` and `time` float64 `[n]` (as in
    the file; seconds since 1970 for dates) or None; `starts` int64 `[users + 1]`: the events of
    user u are `starts[u]` up to, without, `starts[u + 1]`.
    """

    users: tuple[str, ...]
    items: tuple[str, ...]
    user: Int64Array
    item: Int64Array
    rating: FloatArray | None
    time: Float64Array | None
    starts: Int64Array


def read_events(location: str, columns: EventColumns) -> Events:
    """Read Parquet, JSONL or CSV with a row per event.

    Raises DraftrecError for a missing column, and for ids, ratings and times that are none.
    """
    source = open_records(location)
    source.require(
        [columns.user, columns.item], "name the columns with --user-column and --item-column"
    )
    rating = _optional(source, columns.rating, "rating", "--rating-column")
    time = _optional(source, columns.time, "timestamp", "--time-column")
    wanted = [c for c in (columns.user, columns.item, rating, time) if c]
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    ratings: list[float] = []
    times: list[float] = []
    for row in source.rows(wanted):
        user, item = label(row, columns.user), label(row, columns.item)
        pairs.append((users.setdefault(user, len(users)), items.setdefault(item, len(items))))
        if rating:
            ratings.append(_converted(row, rating, float, "a number"))
        if time:
            times.append(_converted(row, time, _seconds, "a number or a date"))
    return _sorted(
        tuple(users),
        tuple(items),
        np.array(pairs, np.int64),
        np.array(ratings, np.float32) if rating else None,
        np.array(times, np.float64) if time else None,
    )


def _optional(source: RecordSource, named: str | None, usual: str, option: str) -> str | None:
    """The column that was named, which must exist, or the usual one where it does."""
    if named is not None:
        source.require([named], f"name another with {option}")
        return named
    return usual if source.has(usual) else None


def _converted(row: Row, column: str, convert: Callable[[Any], float], allowed: str) -> float:
    value = row.values.get(column)
    try:
        number = convert(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not np.isfinite(number):
        raise DraftrecError(
            f"{row.file} line {row.line}: {column} is {value!r}, not {allowed}; mend or remove the "
            "row"
        )
    return number


def _seconds(value: Any) -> float:
    """A number as it is; a date or its ISO form as seconds since 1970, UTC unless it says so."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            value = datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return float(value)


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
