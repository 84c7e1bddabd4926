"""The data cut: a user's first events feed the prompt, samples come only from later ones.

The cut is that of KAR and of DARE (arXiv:2306.10933, arXiv:2408.05676): of a user with `len`
events, in time order, the first `min(ceil(len / 2), H)` are the history. What a language model
is told of a user and what a click model is tested on can so never be the same event.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from draftrec.core import BoolArray, FloatArray, LongArray
from draftrec.data.events import Events
from draftrec.errors import DraftrecError

Split = Literal["user", "time"]

#: Parts in the order of their numbers in `Samples.part`, and the share of each.
PARTS = ("train", "valid", "test")
_SHARES = (0.8, 0.9)
#: Splits by user whose test parts share nobody.
FOLDS = 10


@dataclass(frozen=True, slots=True)
class CutSettings:
    """`history` H: most events in front of the cut. `positive`: ratings from here on are clicks;
    None: as `positive_of` has it.
    `sequence` L: length of the behaviour sequence. `negatives`: unseen items drawn per click.
    `split`: test on other users, or on later events. `fold` 0 to 9: which tenth of the users is the
    test part of a split by user; over all folds each user is tested once."""

    history: int = 30
    positive: float | None = None
    sequence: int = 5
    negatives: int = 0
    seed: int = 0
    split: Split = "user"
    fold: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class Samples:
    """Click samples; users and items are indices into those of the events.

    `user`, `item` int64 `[n]`; `label` float32 `[n]`, 1 for a click; `sequence` int64 `[n, L]`:
    the user's last clicked items before the sample's event, oldest first, -1 behind the last;
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
    events: Events, settings: CutSettings, items: Mapping[str, Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """What stands in front of the cut, as the records that prompts are made of: `entity_id` and
    `history`, a list of `title`, `rating` and what else `items` says of an item id. Labels are no
    ratings: where there are labels only, the history is what was clicked.

    An item without a title has its id for one.
    """
    ends = cut_points(events, settings.history)
    clicked = _clicked(events, settings.positive)
    for user, name in enumerate(events.users):
        places = range(int(events.starts[user]), int(ends[user]))
        shown = [i for i in places if clicked[i]] if events.labelled else places
        yield {"entity_id": name, "history": [_entry(events, i, items) for i in shown]}


def _entry(events: Events, place: int, items: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    item = events.items[events.item[place]]
    entry = {"title": item, **items.get(item, {})}
    if events.rating is not None and not events.labelled:
        rating = float(events.rating[place])
        entry["rating"] = int(rating) if rating.is_integer() else round(rating, 4)
    return entry


def _clicked(events: Events, positive: float | None) -> BoolArray:
    if events.rating is None:
        return np.ones(len(events.user), np.bool_)
    return events.rating >= positive_of(events, positive)


def _sequences(events: Events, clicked: BoolArray, event: LongArray, length: int) -> LongArray:
    """The last `length` clicked items in front of each event, int64 `[n, length]`."""
    before = np.concatenate([[0], clicked.cumsum()])  # clicks in front of an event, of all users
    last = before[event]
    first = np.maximum(before[events.starts[events.user[event]]], last - length)
    places = first[:, None] + np.arange(length)
    clicks = np.append(events.item[clicked], -1)
    inside = places < last[:, None]
    return np.where(inside, clicks[np.where(inside, places, -1)], -1)


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
