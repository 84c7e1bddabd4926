"""Interactions cut into sequences to train on, to validate on and to test on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from draftrec.core import BoolArray, LongArray
from draftrec.data.events import Events
from draftrec.data.sequences import PARTS
from draftrec.data.settings import Repeats, SplitSettings
from draftrec.data.tables.columns import arrow_ids
from draftrec.errors import DraftrecError

_TRAIN, _VALID, _TEST = range(3)


@dataclass(frozen=True, eq=False, slots=True)
class Split:
    """`table`: rows of `user`, `items`, `part`, user by user in the order of their first
    interactions, without empty lists. `figures`: what was kept, and what was left out and why."""

    table: pa.Table
    figures: dict[str, Any]


def split_events(events: Events, settings: SplitSettings) -> Split:
    """Sequences of all users, items in the order of time; equal times in file order, or in one
    that is drawn.

    Raises DraftrecError for settings that need ratings or times where the events have none, when
    nobody is left, and when a split by time leaves a part without interactions.
    """
    _check(events, settings)
    if settings.ties == "random":
        events = _ties_drawn(events, settings.seed)
    kept = np.ones(len(events.user), np.bool_)
    if settings.min_rating is not None and events.rating is not None:
        kept = events.rating >= settings.min_rating
    low = len(kept) - int(kept.sum())
    late = np.zeros(len(kept), np.bool_)
    if settings.until is not None and events.time is not None:
        late = kept & (events.time >= settings.until)
        kept &= ~late
    repeated = _repeated(events, kept, settings.repeats)
    kept &= ~repeated
    before = _distinct(events, kept)
    kept = _with_enough(events, kept, settings)
    after = _distinct(events, kept)
    if not kept.any():
        raise DraftrecError(
            f"no user is left: none of {len(events.users):,} has {settings.fewest} "
            "interactions that count; lower --min-interactions, --min-item-interactions or "
            "--min-rating, or give a later --until"
        )
    rows = np.flatnonzero(kept)
    cuts: tuple[float, float] | None = None
    if settings.way == "time":
        cuts = _cuts(events, rows, settings)
        part = _by_time(events, rows, cuts)
    else:
        part = _leave_one_out(events.user[rows])
    figures: dict[str, Any] = {
        "users": after[0],
        "items": after[1],
        "interactions": len(rows),
        "users_left_out": before[0] - after[0],
        "items_left_out": before[1] - after[1],
        "low_ratings": low,
        "late": int(late.sum()),
        "repeats_left_out": int(repeated.sum()),
        "repeats_of_a_moment": int(_repeated(events, kept, "moment").sum()),
        **_counts(events.user[rows], part),
        "targets_tied": _tied(events, rows, part),
    }
    if cuts is not None and not events.ranked:
        figures |= {"valid_from": cuts[0], "test_from": cuts[1]}
    return Split(_table(events, rows, part), figures)


def _check(events: Events, settings: SplitSettings) -> None:
    if settings.min_rating is not None and events.rating is None:
        raise DraftrecError(
            "the interactions have no ratings; name their column with --rating-column, or leave "
            "--min-rating out"
        )
    if events.time is None and (settings.until is not None or settings.repeats == "moment"):
        raise DraftrecError(
            "the interactions have no times; name their column with --time-column, or leave "
            "--until and --repeats moment out"
        )
    if settings.way == "time" and events.time is None:
        raise DraftrecError(
            "the interactions have no times to split by; name their column with --time-column, or "
            "use --split leave-one-out, which takes them in file order"
        )
    if (settings.test_from is not None or settings.until is not None) and events.ranked:
        raise DraftrecError(
            "the times are so fine that only their order is known; split by --valid-share and "
            "--test-share, without --valid-from, --test-from and --until"
        )
    if settings.valid_from is not None and settings.test_from is None:
        raise DraftrecError("--valid-from needs --test-from, where the part to test begins")
    valid, test = settings.valid_from, settings.test_from
    if valid is not None and test is not None and valid >= test:
        raise DraftrecError(f"--valid-from ({valid:g}) must lie before --test-from ({test:g})")
    shares = settings.valid_share, settings.test_share
    if min(shares) < 0 or sum(shares) >= 1:
        raise DraftrecError("--valid-share and --test-share must be from 0 on and below 1 together")


def _ties_drawn(events: Events, seed: int) -> Events:
    """The same, each user's events of one moment in any order."""
    if events.time is None:
        return events
    drawn = np.random.default_rng(seed).random(len(events.user))
    order = np.lexsort((drawn, events.time, events.user))
    rating = None if events.rating is None else events.rating[order]
    return replace(events, item=events.item[order], rating=rating)


def _tied(events: Events, rows: LongArray, part: LongArray) -> int:
    """How many of the kept `rows` begin another `part` int64 `[n]` of their user's than the row
    before, of the same moment: what is to be predicted is decided by the order of the file."""
    if events.time is None:
        return 0
    user, time = events.user[rows], events.time[rows]
    tied = (user[1:] == user[:-1]) & (time[1:] == time[:-1]) & (part[1:] != part[:-1])
    return int(tied.sum())


def _repeated(events: Events, kept: BoolArray, repeats: Repeats) -> BoolArray:
    """bool `[n]`: which of the kept events say again what another one says."""
    found = np.zeros(len(kept), np.bool_)
    if repeats == "keep" or (repeats == "moment" and events.time is None):
        return found
    rows = np.flatnonzero(kept)
    rows = rows[::-1] if repeats == "last" else rows
    pairs = events.user[rows] * len(events.items) + events.item[rows]
    if repeats == "moment" and events.time is not None:
        moments = np.unique(events.time[rows], return_inverse=True)[1]
        same = np.unique(pairs, return_inverse=True)[1]
        pairs = same * (moments.max(initial=0) + 1) + moments
    first = np.unique(pairs, return_index=True)[1]
    found[rows] = True
    found[rows[first]] = False
    return found


def _with_enough(events: Events, kept: BoolArray, settings: SplitSettings) -> BoolArray:
    """Without users and items that have too few of what is kept, until none is left that has."""
    kept = kept.copy()
    while True:
        users = np.bincount(events.user[kept], minlength=len(events.users))
        items = np.bincount(events.item[kept], minlength=len(events.items))
        enough = users[events.user] >= settings.fewest
        enough &= items[events.item] >= settings.min_item_interactions
        if (enough | ~kept).all():
            return kept
        kept &= enough


def _distinct(events: Events, kept: BoolArray) -> tuple[int, int]:
    return len(np.unique(events.user[kept])), len(np.unique(events.item[kept]))


def _leave_one_out(user: LongArray) -> LongArray:
    """The part of each event, int64 `[n]`; `user` int64 `[n]` is grouped."""
    left = _before_the_end(user)
    counts = np.bincount(user)[user]
    part = np.full(len(user), _TRAIN)
    part[(left == 1) & (counts > 2)] = _VALID
    part[(left == 0) & (counts > 2)] = _TEST
    return part


def _before_the_end(user: LongArray) -> LongArray:
    """How many of the same user's events follow each, int64 `[n]`."""
    n = len(user)
    last = np.append(user[1:] != user[:-1], True)
    ends = np.flatnonzero(last)
    return ends[np.searchsorted(ends, np.arange(n))] - np.arange(n)


def _cuts(events: Events, rows: LongArray, settings: SplitSettings) -> tuple[float, float]:
    """Where validation and test begin."""
    assert events.time is not None
    times = np.sort(events.time[rows])
    if settings.test_from is not None:
        test = settings.test_from
        return (test if settings.valid_from is None else settings.valid_from), test
    valid_share, test_share = settings.valid_share, settings.test_share
    ends = [1 - valid_share - test_share, 1 - test_share]
    # Events of one moment stay together, on the later side of the cut.
    valid, test = np.quantile(times, ends, method="higher").tolist()
    return valid, test


def _by_time(events: Events, rows: LongArray, cuts: tuple[float, float]) -> LongArray:
    assert events.time is not None
    times = events.time[rows]
    part = (times >= cuts[0]).astype(np.int64) + (times >= cuts[1])
    wanted = [_TRAIN, _TEST] if cuts[0] == cuts[1] else [_TRAIN, _VALID, _TEST]
    for number in wanted:
        if not (part == number).any():
            raise DraftrecError(
                f"no interaction falls into the part {PARTS[number]!r}: times go from "
                f"{times.min():.15g} to {times.max():.15g}, the valid part begins at "
                f"{cuts[0]:.15g}, the test part at {cuts[1]:.15g}; choose --valid-from and "
                "--test-from between them"
            )
    return part


def _counts(user: LongArray, part: LongArray) -> dict[str, Any]:
    found: dict[str, Any] = {}
    users = [np.unique(user[part == number]) for number in range(len(PARTS))]
    for number, name in enumerate(PARTS):
        found[name] = {"users": len(users[number]), "items": int((part == number).sum())}
    known = np.union1d(users[_TRAIN], users[_VALID])
    found["test_users_without_history"] = len(np.setdiff1d(users[_TEST], known))
    return found


def _table(events: Events, rows: LongArray, part: LongArray) -> pa.Table:
    """A row for every run of one user's events in one part; times order parts, too."""
    user = events.user[rows]
    key = user * len(PARTS) + part
    first = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    offsets = np.append(first, len(key)).astype(np.int64)
    items = arrow_ids(events.item_ids[events.item[rows]])
    return pa.table(
        {
            "user": arrow_ids(events.user_ids[user[first]]),
            "items": pa.LargeListArray.from_arrays(offsets, items),
            "part": pa.array([PARTS[number] for number in part[first].tolist()]),
        }
    )
