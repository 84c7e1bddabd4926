"""From events, attributes and vectors to the arrays that click models read."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from draftrec.core import FloatArray, LongArray
from draftrec.ctr.attributes import Attribute, ColumnUse, attributes, read_rows
from draftrec.data.events import PARTS, Events, Samples
from draftrec.data.joins import Join
from draftrec.data.records import Rejects
from draftrec.data.vectors import read_vectors
from draftrec.errors import DraftrecError


@dataclass(frozen=True, slots=True)
class Sources:
    """Files beside the interactions; None for what there is not. Columns: None chooses them."""

    items: str | None = None
    item_columns: tuple[str, ...] | None = None
    users: str | None = None
    user_columns: tuple[str, ...] | None = None
    user_vectors: str | None = None
    item_vectors: str | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Side:
    """What is known of users, or of items. Entity e of the events has row e + 1; row 0 is none.

    `ids` int64 `[entities + 1]`, below `id_count`: the codes of the entities seen in training, 0
    for all others; None where the id is no feature. `vectors` float32 `[entities + 1, d]`: the
    knowledge, standardised, zeros for an entity without; or None.
    """

    ids: LongArray | None
    id_count: int
    attributes: tuple[Attribute, ...]
    vectors: FloatArray | None


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """Samples as rows of the two sides: `users`, `items` int64 `[n]`, `sequence` int64 `[n, L]`
    with 0 behind its end, `labels` float32 `[n]`."""

    users: LongArray
    items: LongArray
    sequence: LongArray
    labels: FloatArray


@dataclass(frozen=True, eq=False, slots=True)
class Inputs:
    """All that a trial needs."""

    users: Side
    items: Side
    train: Part
    valid: Part
    test: Part


@dataclass(frozen=True, eq=False, slots=True)
class Prepared:
    """`without_vectors`: users and items of the samples that the vector files lack; `columns`: what
    became of the columns of the files of `users` and `items`, where there are such."""

    inputs: Inputs
    without_vectors: dict[str, int]
    columns: dict[str, ColumnUse]


def prepare(
    events: Events,
    samples: Samples,
    sources: Sources,
    columns: tuple[str, str],
    rejects: Rejects | None = None,
    *,
    user_ids: bool,
) -> Prepared:
    """Read attributes and vectors and put everything into arrays.

    `columns` are those of users' and items' ids. `user_ids`: whether a user's id is a feature; in
    a split by user it cannot be, as all users of the test are strangers. Rows without an id join
    `rejects`. Raises DraftrecError for
    files that cannot be read or that know none of the entities.
    """
    train = samples.part == PARTS.index("train")
    known_users = np.unique(samples.user[train])
    known_items = np.unique(samples.item[train])
    followed = np.unique(samples.sequence[train])
    user_codes = _codes(len(events.users), known_users)
    item_codes = _codes(len(events.items), np.union1d(known_items, followed[followed >= 0]))
    user_vectors, item_vectors = (
        _vectors(sources.user_vectors, events.users, known_users),
        _vectors(sources.item_vectors, events.items, known_items),
    )
    described = {
        "users": _Described(sources.users, columns[0], sources.user_columns, events.users),
        "items": _Described(sources.items, columns[1], sources.item_columns, events.items),
    }
    user_attributes, user_use = described["users"].attributes(known_users, rejects)
    item_attributes, item_use = described["items"].attributes(known_items, rejects)
    users = Side(
        user_codes if user_ids else None,
        int(user_codes.max()) + 1,
        user_attributes,
        None if user_vectors is None else user_vectors[0],
    )
    items = Side(
        item_codes,
        int(item_codes.max()) + 1,
        item_attributes,
        None if item_vectors is None else item_vectors[0],
    )
    without = {
        name: len(np.intersect1d(np.unique(used), found[1]))
        for name, used, found in (
            ("users", samples.user, user_vectors),
            ("items", samples.item, item_vectors),
        )
        if found is not None
    }
    parts = [_part(samples, number) for number in range(len(PARTS))]
    uses = {"users": user_use, "items": item_use}
    columns_used = {name: uses[name] for name, side in described.items() if side.location}
    return Prepared(Inputs(users, items, *parts), without, columns_used)


def _part(samples: Samples, number: int) -> Part:
    rows = np.flatnonzero(samples.part == number)
    return Part(
        samples.user[rows] + 1,
        samples.item[rows] + 1,
        samples.sequence[rows] + 1,
        samples.label[rows],
    )


def _codes(count: int, known: LongArray) -> LongArray:
    codes = np.zeros(count + 1, np.int64)
    codes[known + 1] = np.arange(1, len(known) + 1)
    return codes


@dataclass(frozen=True, slots=True)
class _Described:
    """A file that describes the entities `ids`, None for none, its column of ids, and the columns
    to take of it."""

    location: str | None
    id_column: str
    columns: Seq[str] | None
    ids: Seq[str]

    def attributes(
        self, known: LongArray, rejects: Rejects | None
    ) -> tuple[tuple[Attribute, ...], ColumnUse]:
        if self.location is None:
            return (), ColumnUse()
        rows = read_rows(self.location, self.id_column, rejects)
        if rows.keys().isdisjoint(self.ids):
            raise DraftrecError(
                f"{self.location} has none of the interactions' {self.id_column} values, such as "
                f"{self.ids[0]!r}, but ids such as {next(iter(rows))!r}; check its ids"
            )
        join = Join(f"{self.id_column} values", "the interactions", self.location, next(iter(rows)))
        for entity in self.ids:
            join.saw(entity, known=entity in rows)
        join.check()
        return attributes(rows, self.columns, self.ids, known)


def _vectors(
    location: str | None, ids: Seq[str], known: LongArray
) -> tuple[FloatArray, LongArray] | None:
    """Standardised vectors by row, and the entities without one; mean and deviation of each
    dimension are those of the entities seen in training."""
    if location is None:
        return None
    read = read_vectors(location)
    places = {name: place for place, name in enumerate(read.ids)}
    found = np.array([places.get(name, -1) for name in ids], np.int64)
    fitted = read.vectors[found[known][found[known] >= 0]]
    if not len(fitted):
        raise DraftrecError(
            f"{location} has no vector for any entity that the models train on; check its ids"
        )
    deviation = fitted.std(axis=0)
    scaled = (read.vectors - fitted.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    table = np.zeros((len(ids) + 1, read.vectors.shape[1]), np.float32)
    table[1:][found >= 0] = scaled[found[found >= 0]]
    return table, np.flatnonzero(found < 0)
