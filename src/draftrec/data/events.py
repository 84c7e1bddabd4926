"""Rated events of users, in time order, as arrays, and the data cut: a user's first events feed the
prompt, samples come only from later ones.

The cut is that of KAR and of DARE (arXiv:2306.10933, arXiv:2408.05676): of a user with `len`
events, in time order, the first `min(ceil(len / 2), H)` are the history. What a language model
is told of a user and what a click model is tested on can so never be the same event.
"""

from __future__ import annotations

import hashlib
import logging
import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from draftrec.core import BoolArray, DoubleArray, FloatArray, LongArray
from draftrec.data.interactions import converted, label
from draftrec.data.records import Rejects, RowError
from draftrec.data.settings import CutSettings
from draftrec.data.tables.columns import (
    INTERACTIONS,
    ITEM,
    RATING,
    TIME,
    USER,
    find_column,
    need_columns,
)
from draftrec.data.tables.readers import Row, open_records
from draftrec.data.tables.times import Time, Times, read_time
from draftrec.data.tables.values import NO_WORDS
from draftrec.errors import DraftrecError
from draftrec.items.ids import Ids, as_whole, ids_array

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

_TRUTHS = {"true": True, "yes": True, "false": False, "no": False}
#: What is printed for a missing id.
_NOBODY = {*NO_WORDS, "NA", "N/A", "NULL"}
_TIMES = "a number or a date such as 2024-05-31 or 2024-05-31T10:00:00Z"
#: How numbers and dates are written in other countries, and how to mend that.
_ELSEWHERE = (
    (re.compile(r"\s*[+-]?\d+,\d+\s*"), "; write a decimal point"),
    (re.compile(r"\s*\d\d?([./-])\d\d?\1\d{4}\b.*"),
     "; write the year first, since it could be read with day and month swapped"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EventColumns:
    """Names of columns. The usual ones stand for their synonyms too (see `columns`); `rating` and
    `time`: None takes `rating` and `timestamp`, or synonyms, if they exist."""

    user: str = "user_id"
    item: str = "item_id"
    rating: str | None = None
    time: str | None = None

    @classmethod
    def named(
        cls, user: str | None, item: str | None, rating: str | None, time: str | None
    ) -> EventColumns:
        """With the usual names for None."""
        return cls(user or USER.usual, item or ITEM.usual, rating, time)


@dataclass(frozen=True, eq=False, slots=True)
class Events:
    """All events, user by user, each user's in time order (ties, and files without times: in file
    order). `users` and `items` are the ids, in the order of first appearance.

    `user`, `item` int64 `[n]` index them; `rating` float32 `[n]` (of booleans 1 and 0; NaN of what
    nobody rated, where that was asked for) and `time` float64 `[n]` or None: as in the file,
    seconds since 1970 for dates; where float64 cannot tell all times of the file apart, their ranks
    (`ranked`). `dated`: whether the file has dates.
    `starts` int64 `[users + 1]`: the events of user u are `starts[u]` up to, without,
    `starts[u + 1]`. `typed_texts`: whether the file's users, and items, are texts by type, also
    where these spell numbers.
    """

    users: tuple[str, ...]
    items: tuple[str, ...]
    user: LongArray
    item: LongArray
    rating: FloatArray | None
    time: DoubleArray | None
    starts: LongArray
    typed_texts: tuple[bool, bool] = (False, False)
    ranked: bool = False
    dated: bool = False

    @property
    def user_ids(self) -> Ids:
        """`users` `[users]` as they are in the file: int64 or texts."""
        return _as_in_file(self.users, typed_texts=self.typed_texts[0])

    @property
    def item_ids(self) -> Ids:
        """`items` `[items]` as they are in the file."""
        return _as_in_file(self.items, typed_texts=self.typed_texts[1])

    @property
    def labelled(self) -> bool:
        """Whether ratings are labels, click or no click: booleans, 0 and 1, or -1 and 1."""
        if self.rating is None:
            return False
        given = self.rating[~np.isnan(self.rating)]
        return len(given) > 0 and bool(np.isin(given, (-1, 0, 1)).all())


def read_events(
    location: str, columns: EventColumns, rejects: Rejects | None = None, *, unrated: bool = False
) -> Events:
    """Read a file with a row per event. Rows whose ids, rating or time are none join `rejects`;
    with `unrated`, those whose rating is null are kept, and theirs is NaN.

    Raises DraftrecError for a missing column, for a column of ratings that mixes numbers and
    booleans, or one of times that mixes numbers and dates, and, without `rejects`, at the first
    unusable row.
    """
    source = open_records(location)
    names = [
        (kind, None if name == kind.usual else name)
        for kind, name in ((USER, columns.user), (ITEM, columns.item))
    ]
    user_name, item_name = need_columns(source, names, INTERACTIONS)
    if rejects is not None:
        rejects.id_column = user_name
    rating = find_column(source, RATING, columns.rating)
    time = find_column(source, TIME, columns.time)
    wanted = [c for c in (user_name, item_name, rating, time) if c]
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    user_of, item_of, ratings, times = array("q"), array("q"), array("d"), Times()
    truths = 0
    kinds: tuple[set[type], set[type]] = set(), set()

    def event(row: Row) -> tuple[str, str, float, bool, Time | None]:
        if rating is None or (unrated and row.values.get(rating) is None):
            rated, truth = float("nan"), False
        else:
            rated, truth = _rating(row, rating)
        when = _converted(row, time, read_time, _TIMES) if time else None
        names = label(row, user_name), label(row, item_name)
        for name, seen in zip((user_name, item_name), kinds, strict=True):
            seen.add(type(row.values.get(name)))  # of rows that count: one without an id has no say
        return *names, rated, truth, when

    rows = source.rows(wanted)
    for user, item, rated, truth, when in converted(rows, event, rejects):
        user_of.append(users.setdefault(user, len(users)))
        item_of.append(items.setdefault(item, len(items)))
        ratings.append(rated)
        truths += truth
        if when is not None:
            times.add(when)
    numbers = np.array(ratings, np.float32)
    if 0 < truths < int(np.isfinite(numbers).sum()):
        raise DraftrecError(
            f"{location}: {rating} holds {truths:,} booleans among numbers; write one kind"
        )
    if 0 < times.dates < len(times.numbers):
        raise DraftrecError(
            f"{location}: {time} holds {times.dates:,} dates among numbers, which nothing "
            "compares; write one kind"
        )
    moments, ranked = times.as_numbers()
    found = Events(
        tuple(users),
        tuple(items),
        np.array(user_of, np.int64),
        np.array(item_of, np.int64),
        numbers if rating else None,
        moments if time else None,
        np.empty(0, np.int64),
        (source.typed and str in kinds[0], source.typed and str in kinds[1]),
        ranked,
        times.dates > 0,
    )
    for what, ids, places in (("user", users, found.user), ("item", items, found.item)):
        _say_unnamed(location, what, ids, places)
    return _sorted(found)


def _say_unnamed(location: str, what: str, ids: Mapping[str, int], places: LongArray) -> None:
    """Warn of a user, or item, who is what programs print where there is none."""
    for name in sorted(_NOBODY & ids.keys()):
        count = int((places == ids[name]).sum())
        _LOG.warning(
            "%s: %s interactions are of the %s %r, as programs print a missing value; if it is "
            "none, leave these rows out", location, f"{count:,}", what, name,
        )  # fmt: skip


def _as_in_file(names: Seq[str], *, typed_texts: bool) -> Ids:
    texts = ids_array(names) if names else np.empty(0, np.int64)
    numbers = None if typed_texts else as_whole(texts)
    return texts if numbers is None else numbers


def _converted(row: Row, column: str, convert: Callable[[Any], T], allowed: str) -> T:
    value = row.values.get(column)
    try:
        if value is not None and not isinstance(value, bool):
            return convert(value)
    except (TypeError, ValueError, ArithmeticError):
        pass
    mends = (mend for form, mend in _ELSEWHERE if isinstance(value, str) and form.fullmatch(value))
    shown = "null" if value is None else repr(value)
    raise RowError(row, f"{column} is {shown}, not {allowed}{next(mends, '')}")


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


def _sorted(read: Events) -> Events:
    """Events in file order, user by user in the order of time."""
    keys = (read.user,) if read.time is None else (read.time, read.user)
    order = np.lexsort(keys)  # stable: equal times stay in file order
    counts = np.bincount(read.user, minlength=len(read.users))
    return replace(
        read,
        user=read.user[order],
        item=read.item[order],
        rating=None if read.rating is None else read.rating[order],
        time=None if read.time is None else read.time[order],
        starts=np.concatenate([[0], counts.cumsum()]).astype(np.int64),
    )


#: Parts in the order of their numbers in `Samples.part`, and the share of each.
PARTS = ("train", "valid", "test")
_SHARES = (0.8, 0.9)
#: Splits by user whose test parts share nobody.
FOLDS = 10


@dataclass(frozen=True, eq=False, slots=True)
class Samples:
    """Click samples; users and items are indices into those of the events.

    `user`, `item` int64 `[n]`; `label` float32 `[n]`, 1 for a click; `sequence` int64 `[n, L]`:
    the user's last clicked items from before the event's moment, oldest first, -1 behind the last;
    `event` int64 `[n]`: the event (for a drawn item: that of its click); `part` int8 `[n]`, an
    index of PARTS.
    """

    user: LongArray
    item: LongArray
    label: FloatArray
    sequence: LongArray
    event: LongArray
    part: npt.NDArray[np.int8]


def positive_of(events: Events, asked: float | None) -> float:
    """The least rating that is a click: as asked for, else 1 where ratings are labels and 4 where
    they are ratings."""
    return asked if asked is not None else (1.0 if events.labelled else 4.0)


def cut_points(events: Events, history: int) -> LongArray:
    """int64 `[users]`: the first event after the history of each user (its end, if none)."""
    counts = np.diff(events.starts)
    return events.starts[:-1] + np.minimum((counts + 1) // 2, history)


def cut_samples(events: Events, settings: CutSettings) -> Samples:
    """The samples after the cut, in the order of the events, drawn items behind them.

    Raises DraftrecError without ratings or `negatives` (there would be clicks only), for a split
    by time without times, and for a part that has not both clicks and others.
    """
    if events.rating is None and not settings.negatives:
        raise DraftrecError(
            "the interactions have no ratings, so that all are clicks; draw items that the user "
            "never took with --negatives N, or name a --rating-column"
        )
    clicked = _clicked(events, settings.positive)
    after = np.arange(len(events.user)) >= cut_points(events, settings.history)[events.user]
    event = np.flatnonzero(after)
    item, label = events.item[event], clicked[event].astype(np.float32)
    if settings.negatives:
        source, drawn = _drawn(events, np.flatnonzero(after & clicked), settings)
        event, item = np.concatenate([event, source]), np.concatenate([item, drawn])
        label = np.concatenate([label, np.zeros(len(drawn), np.float32)])
    part = _parts(events, event, settings)
    _check_parts(part, label)
    sequence = _sequences(events, clicked, event, settings.sequence)
    return Samples(events.user[event], item, label, sequence, event, part)


def histories(
    events: Events, settings: CutSettings, items: Mapping[str, Mapping[str, Any]] | None = None
) -> Iterator[dict[str, Any]]:
    """What stands in front of the cut, as the records that prompts are made of: `entity_id` and
    `history`, a list of `rating` and what `items` says of an item id, its title first. Labels are
    no ratings: where there are labels only, the history is what was clicked.

    Items that `items` does not have are left out; without it, ids stand for titles.
    """
    ends = cut_points(events, settings.history)
    clicked = _clicked(events, settings.positive)
    for user, name in enumerate(events.users):
        places = range(int(events.starts[user]), int(ends[user]))
        shown = [i for i in places if clicked[i]] if events.labelled else places
        entries = [_entry(events, i, items) for i in shown]
        yield {"entity_id": name, "history": [entry for entry in entries if entry]}


def _entry(
    events: Events, place: int, items: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, Any]:
    """Of one event; empty where its item is not among `items`."""
    item = events.items[events.item[place]]
    entry = {"title": item} if items is None else dict(items.get(item, {}))
    if not entry:
        return entry
    if events.rating is not None and not events.labelled:
        rating = float(events.rating[place])
        entry["rating"] = int(rating) if rating.is_integer() else round(rating, 4)
    return entry


def _clicked(events: Events, positive: float | None) -> BoolArray:
    if events.rating is None:
        return np.ones(len(events.user), np.bool_)
    return events.rating >= positive_of(events, positive)


def _sequences(events: Events, clicked: BoolArray, event: LongArray, length: int) -> LongArray:
    """The last `length` clicked items from before each event, int64 `[n, length]`. Of one moment
    nothing is before the other, in whatever order a file has it: a list that was shown at once
    would tell by its one click that the others are none."""
    before = np.concatenate([[0], clicked.cumsum()])  # clicks in front of an event, of all users
    last = before[_moments(events)[event]]
    first = np.maximum(before[events.starts[events.user[event]]], last - length)
    places = first[:, None] + np.arange(length)
    clicks = np.append(events.item[clicked], -1)
    inside = places < last[:, None]
    return np.where(inside, clicks[np.where(inside, places, -1)], -1)


def _moments(events: Events) -> LongArray:
    """The first event of each event's user and time, int64 `[n]`; without times that event."""
    places = np.arange(len(events.user))
    if events.time is None:
        return places
    begins = np.ones(len(places), np.bool_)
    begins[1:] = (np.diff(events.time) != 0) | (np.diff(events.user) != 0)
    return np.maximum.accumulate(np.where(begins, places, 0))


def _drawn(events: Events, clicks: LongArray, settings: CutSettings) -> tuple[LongArray, LongArray]:
    """`negatives` items per click that its user has no event with, and the clicks again.

    Items are uniform among those of all events. Raises DraftrecError for a user who took all.
    """
    count = len(events.items)
    distinct = np.unique(events.user * count + events.item)
    if (np.bincount(distinct // count) >= count).any():
        raise DraftrecError("a user took every item there is, so that none can be drawn")
    random = np.random.default_rng(settings.seed)
    source = np.repeat(clicks, settings.negatives)
    found = random.integers(0, count, len(source))
    todo = np.arange(len(source))
    while len(todo):
        keys = events.user[source[todo]] * count + found[todo]
        places = np.minimum(np.searchsorted(distinct, keys), len(distinct) - 1)
        todo = todo[distinct[places] == keys]
        found[todo] = random.integers(0, count, len(todo))
    return source, found


def _parts(events: Events, event: LongArray, settings: CutSettings) -> npt.NDArray[np.int8]:
    if settings.split == "user":
        # By a hash of the id: more users, or other settings, move nobody to another part.
        users = np.array([_part_of(name, settings.fold) for name in events.users], np.int8)
        return users[events.user[event]]
    if events.time is None:
        raise DraftrecError(
            "a split by time needs times, and the interactions have no column timestamp; name it "
            "with --time-column, or use --split user"
        )
    time = events.time[event]
    # Bounds are times that occur: events of one moment stay together.
    bounds = np.quantile(time, _SHARES, method="lower")
    return (time[:, None] > bounds).sum(axis=1).astype(np.int8)


def _part_of(user: str, fold: int) -> int:
    digest = hashlib.blake2b(user.encode(errors="surrogatepass"), digest_size=8).digest()
    place = (int.from_bytes(digest, "little") / 2**64 + fold / FOLDS) % 1.0
    return int(np.searchsorted(_SHARES, place, side="right"))


def _check_parts(part: npt.NDArray[np.int8], label: FloatArray) -> None:
    for number, name in enumerate(PARTS):
        labels = label[part == number]
        if len(np.unique(labels)) < 2:
            raise DraftrecError(
                f"the {name} part has {int(labels.sum())} clicks among {len(labels)} samples and "
                "needs both kinds; give more interactions, or another --positive or --split"
            )
