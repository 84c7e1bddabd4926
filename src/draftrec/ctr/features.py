"""From events, attributes and vectors to the arrays that click models read: categorical columns of
users and items become codes; and what stands in front of the cut as records for prompts, so that
prompts and samples agree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from draftrec.core import FloatArray, LongArray
from draftrec.data.events import PARTS, CutSettings, Events, Samples, histories
from draftrec.data.files.places import Place
from draftrec.data.files.writers import replace_file
from draftrec.data.interactions import converted, label
from draftrec.data.profiles import Items, entry_of, listed_before, rating_scale
from draftrec.data.records import Rejects
from draftrec.data.tables.columns import ENTITY, Join, need_columns
from draftrec.data.tables.readers import open_records
from draftrec.data.tables.values import as_list
from draftrec.data.vectors import read_vectors
from draftrec.errors import DraftrecError

#: Parts the values of a text such as `Action|Crime`.
_SEPARATOR = "|"
#: Columns of more distinct values are not taken unasked: titles and other free text.
_MOST_VALUES = 1000
_NUMBER = re.compile(r"[+-]?\d{1,18}(\.\d+)?")

_ID_OPTIONS = "--item-column or --user-column"

Rows = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, eq=False, slots=True)
class Attribute:
    """`codes` int64 `[entities + 1, w]`: the values of each entity, filled up with 0; row 0 is an
    unknown entity, and entity e of the events has row e + 1. Codes are below `size`."""

    name: str
    codes: LongArray
    size: int


@dataclass(frozen=True, slots=True)
class ColumnUse:
    """What became of a file's columns. `used`: attribute -> how many values of it are known;
    `left_out`: column -> why it is none."""

    used: Mapping[str, int] = field(default_factory=dict[str, int])
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])


def read_rows(location: str, id_column: str, rejects: Rejects | None = None) -> Rows:
    """Entity id -> all its columns. The id stands in `id_column`, or else in `entity_id` or a
    column that `data.tables.columns` knows. A row that is listed again as it was is passed over.

    Rows without a usable id join `rejects`. Raises DraftrecError for a missing column, an entity
    listed twice with other values and, without `rejects`, for the first row without an id.
    """
    source = open_records(location)
    if not source.has(id_column):
        what = f"rename the column of ids to {id_column} or entity_id"
        (id_column,) = need_columns(source, [(ENTITY.called(id_column, _ID_OPTIONS), None)], what)
    found: dict[str, Mapping[str, Any]] = {}
    for row, name in converted(source.rows(), lambda row: (row, label(row, id_column)), rejects):
        told = {key: v for key, v in row.values.items() if key != id_column}
        if found.setdefault(name, told) != told:
            raise listed_before(row, id_column)
    return found


def attributes(
    rows: Rows, columns: Seq[str] | None, ids: Seq[str], known: LongArray
) -> tuple[tuple[Attribute, ...], ColumnUse]:
    """The attributes of the entities `ids`, from all columns of categories (see `_why_left_out`),
    or from `columns`. A value that no entity of `known` (indices of `ids`) has counts as missing:
    nothing could be learnt of it.

    Raises DraftrecError for a column that no row has.
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    for name in columns or ():
        if name not in names:
            raise DraftrecError(
                f"there is no column {name!r} among {', '.join(names) or 'no columns'}; choose "
                "another"
            )
    reasons = {name: _why_left_out([row.get(name) for row in rows.values()]) for name in names}
    if columns is not None:
        reasons = {n: None if n in columns else reasons[n] or "not asked for" for n in names}
    chosen = columns if columns is not None else [n for n in names if reasons[n] is None]
    found = tuple(_attribute(name, rows, ids, known) for name in chosen)
    use = ColumnUse(
        {a.name: a.size - 1 for a in found}, {n: why for n, why in reasons.items() if why}
    )
    return found, use


def _attribute(name: str, rows: Rows, ids: Seq[str], known: LongArray) -> Attribute:
    values = [values_of(rows.get(entity, {}).get(name)) for entity in ids]
    codes: dict[str, int] = {}
    for entity in known.tolist():
        for value in values[entity]:
            codes.setdefault(value, len(codes) + 1)
    coded = [[codes[v] for v in line if v in codes] for line in values]
    table = np.zeros((len(ids) + 1, max(1, *map(len, coded)) if coded else 1), np.int64)
    for entity, line in enumerate(coded, 1):
        table[entity, : len(line)] = line
    return Attribute(name, table, len(codes) + 1)


def values_of(value: Any) -> list[str]:
    """The distinct values of a cell, in order: the members of a list, also of one that was written
    as text, and the parts of `Action|Crime`."""
    listed = as_list(value)
    if listed is None:
        listed = value.split(_SEPARATOR) if isinstance(value, str) else [value]
    return list(dict.fromkeys(text for part in listed if (text := _value(part))))


def _value(part: Any) -> str:
    """A whole number reads the same with and without `.0`."""
    whole = isinstance(part, float) and part.is_integer()
    return "" if part is None else str(int(part) if whole else part)


def _why_left_out(cells: Seq[Any]) -> str | None:
    """Why a column is no category, or None if it is one.

    Categories are texts, lists, booleans and whole numbers with few different values: at most half
    as many as there are rows, and at most 1,000, or a tenth of the rows. Numbers with fractions are
    measurements. Whole numbers may be written with `.0` where values are missing (pandas).
    """
    full = [cell for cell in cells if cell is not None and cell != ""]
    if not full:
        return "empty"
    lists = [as_list(cell) for cell in full]
    parts = [p for cell, parts in zip(full, lists, strict=True) for p in _parts(cell, parts)]
    kinds = {_kind(part) for part in parts if part is not None}
    if "object" in kinds or ("truth" in kinds and len(kinds) > 1):
        return f"values of several kinds or of none that is known ({_names(parts)})"
    fractions = "fraction" in kinds or ("float whole" in kinds and len(full) == len(cells))
    if fractions and "text" not in kinds:
        return "numbers with fractions"
    different = len({value for cell in full for value in values_of(cell)})
    if different > max(1, len(full) // 2) or different > max(_MOST_VALUES, len(full) // 10):
        return f"{different:,} different values in {len(full):,} rows"
    return None


def _parts(cell: Any, listed: list[Any] | None) -> list[Any]:
    return [cell] if listed is None else listed


def _kind(part: Any) -> str:
    if isinstance(part, bool):
        return "truth"
    if isinstance(part, str):
        if not _NUMBER.fullmatch(part):
            return "text"
        part = float(part) if "." in part else int(part)
    if isinstance(part, int):
        return "whole"
    if isinstance(part, float):
        return "float whole" if part.is_integer() else "fraction"
    return "object"


def _names(parts: Seq[Any]) -> str:
    return ", ".join(sorted({type(part).__name__ for part in parts if part is not None}))


@dataclass(frozen=True, slots=True)
class FeatureSources:
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
    sources: FeatureSources,
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
    # In float64: in float32 a number that is always 0.1 has a mean beside it, and a deviation.
    mean, deviation = fitted.mean(axis=0, dtype=np.float64), fitted.std(axis=0, dtype=np.float64)
    scaled = (read.vectors - mean) / np.where(deviation > 0, deviation, 1)
    table = np.zeros((len(ids) + 1, read.vectors.shape[1]), np.float32)
    table[1:][found >= 0] = scaled[found[found >= 0]]
    return table, np.flatnonzero(found < 0)


def save_histories(
    path: Place,
    events: Events,
    settings: CutSettings,
    items: Items | None,
    *,
    categories: bool = False,
) -> dict[str, int]:
    """Write a JSON line per user (`entity_id`, `history`, `rating_scale` where known), as the user
    templates of `draftrec generate` read them; how many `users`, and `untitled`, the events of
    items that `items` has no title of, which are left out. Without `items` ids stand for titles.
    `categories` are told if wanted: they make prompts half as long again.

    Raises DraftrecError for another kind of file.
    """
    if path.suffix != ".jsonl":
        raise DraftrecError(f"histories are JSON lines; let {path} end in .jsonl")
    known = None if items is None else {name: entry_of(row) for name, row in items.rows.items()}
    if known is not None:
        if not categories:
            for entry in known.values():
                entry.pop("category", None)
        join = Join("items", "the interactions", "the items with a title", next(iter(known), ""))
        for item in events.items:
            join.saw(item, known=item in known)
        join.check(refuse=False)
    records = list(histories(events, settings, known))
    scale = None if events.labelled else rating_scale(events)
    more = {} if scale is None else {"rating_scale": scale}
    lines = [json.dumps({**record, **more}, ensure_ascii=False) + "\n" for record in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, "".join(lines).encode(errors="surrogatepass"))
    shown, told = (
        sum(len(record["history"]) for record in found)
        for found in (histories(events, settings), records)
    )
    return {"users": len(records), "untitled": shown - told}
