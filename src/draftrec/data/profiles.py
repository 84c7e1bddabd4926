"""Records to write texts about, from interactions and the items they are with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from draftrec.core import LongArray
from draftrec.data.events import Events
from draftrec.data.phrasing import (
    CATEGORIES,
    category_of,
    flat,
    listed,
    usual_scale,
    year_in_words,
)
from draftrec.data.records import Rejects
from draftrec.data.tables.columns import (
    ENTITY,
    ColumnKind,
    cell_id,
    find_column,
    need_columns,
)
from draftrec.data.tables.readers import RecordSource, Row, open_records
from draftrec.data.tables.values import with_lists
from draftrec.errors import DraftrecError
from draftrec.items.ids import Id, ids_array
from draftrec.knobs import encodable

TITLE = ColumnKind(
    "title",
    "--title-column",
    ("title", "name", "movietitle", "itemname", "itemtitle", "productname", "producttitle",
     "prodname", "booktitle", "trackname", "songtitle", "headline"),
)  # fmt: skip
CATEGORY = ColumnKind(
    "category",
    "--category-column",
    ("category", "categories", "genre", "genres", "maincategory", "categoryname", "genrenames"),
)
_DESCRIPTION = ColumnKind(
    "description", "", ("description", "about", "overview", "plot", "synopsis", "summary")
)
_BRAND = ColumnKind("brand", "", ("brand", "store", "manufacturer", "brandname"))
_YEAR = ColumnKind("year", "", ("year", "releaseyear", "publicationyear", "yearofpublication"))


@dataclass(frozen=True, slots=True)
class ItemColumns:
    """Names of the columns of an items file; None: the usual one or a synonym. `shared`: what the
    interactions call items, which holds here too if there is such a column."""

    item: str | None = None
    title: str | None = None
    category: str | None = None
    shared: str | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Items:
    """`rows`: each item's columns by its id as text, under the names that templates know; `ids`:
    the same ids as they are in the file; `untitled`: how many rows had no title or no id."""

    rows: Mapping[str, Mapping[str, Any]]
    ids: Mapping[str, Id]
    untitled: int


def read_items(location: str, columns: ItemColumns, rejects: Rejects) -> Items:
    """All items that have a title, in file order; one that is listed again as it was counts once.
    Lists that CSV has as texts are lists; rows with a text that is not Unicode go to `rejects`.

    Raises DraftrecError for missing columns, an item listed twice with other values, and when none
    has a title.
    """
    source = open_records(location)
    kind = ENTITY.called("item_id", "--id-column")
    named = columns.item
    if named is None and columns.shared is not None and source.has(columns.shared):
        named = columns.shared
    wanted = [(kind, named), (TITLE, columns.title)]
    item, title = need_columns(source, wanted, "items have a row each, with a title")
    names = _renamed(source, {title: "title"}, columns.category)
    # What is named to be the title is it, whatever else the file calls so.
    hidden = {item, "entity_id", *names.values()} - names.keys()
    rows: dict[str, Mapping[str, Any]] = {}
    ids: dict[str, Id] = {}
    untitled = 0
    for row in source.rows():
        values = with_lists(row.values, typed=source.typed)
        if values.get(item) is None or not flat(values.get(title)):
            untitled += 1
            continue
        if (name := next((n for n, v in values.items() if not encodable(v)), None)) is not None:
            rejects.add(row, f"{name} holds half of a surrogate pair, which is no Unicode", item)
            continue
        found = cell_id(row, item, typed=source.typed)
        told = {names.get(n, n): v for n, v in values.items() if n not in hidden}
        if rows.setdefault(str(found), told) != told:
            raise listed_before(row, item)
        ids.setdefault(str(found), found)
    if not rows:
        raise DraftrecError(
            f"no row of {location} has a title in column {title!r}; name another with "
            "--title-column"
        )
    return Items(rows, ids, untitled)


def listed_before(row: Row, id_column: str) -> DraftrecError:
    """What to raise for a second row of an item that says something else."""
    return DraftrecError(
        f"{row.file} line {row.line}: {row.values[id_column]!r} is listed before, with other "
        f"values; keep one row for each, as pandas does with drop_duplicates({id_column!r})"
    )


def _renamed(source: RecordSource, names: dict[str, str], category: str | None) -> dict[str, str]:
    """Columns under the names that templates know, where the file has not these already."""
    there = source.columns()
    if category is not None:
        source.require([category], "name another with --category-column")
        names[category] = "category"
    elif not set(CATEGORIES) & set(there):
        names |= _synonym(source, CATEGORY)
    for kind in (_DESCRIPTION, _BRAND, _YEAR):
        names |= _synonym(source, kind)
    return names


def _synonym(source: RecordSource, kind: ColumnKind) -> dict[str, str]:
    try:
        name = find_column(source, kind)
    except DraftrecError:  # two that could be meant: nobody asked for either
        return {}
    return {} if name is None else {name: kind.usual}


def user_records(
    events: Events, items: Items, history: int, kept: np.ndarray
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Records `entity_id, history` of all users who took an item with a title, as the user
    templates of `draftrec generate` read them, and counts of what was left out.

    `history`: how many of the latest items with a title; entries are oldest first, with `title`
    and, where known, `category`, `year` and `rating`. `kept` bool `[n]`: the events that count. A
    record of rated items has `rating_scale`, the highest rating that the file seems to allow.
    """
    shown = [
        None if (row := items.rows.get(name)) is None else entry_of(row) for name in events.items
    ]
    titled = np.array([entry is not None for entry in shown], np.bool_)
    rows = np.flatnonzero(kept)
    counted = rows[titled[events.item[rows]]]
    scale = rating_scale(events)
    ids = events.user_ids.tolist()
    records: list[dict[str, Any]] = []
    for user, mine in _by_user(events, counted):
        entries: list[dict[str, Any]] = []
        for event in mine[-history:].tolist():
            entry = dict(shown[events.item[event]] or {})
            if events.rating is not None and not np.isnan(events.rating[event]):
                entry["rating"] = _plain(events.rating[event])
            entries.append(entry)
        record: dict[str, Any] = {"entity_id": ids[user], "history": entries}
        records.append(record if scale is None else {**record, "rating_scale": scale})
    return records, {
        "users_without_history": len(events.users) - len(records),
        "interactions_without_title": len(rows) - len(counted),
    }


def item_records(events: Events, items: Items, kept: np.ndarray) -> list[dict[str, Any]]:
    """Records of all items with a title, in file order: `entity_id`, the file's columns, and from
    the interactions `kept` `popularity`, how many there are, and `mean_rating`, if they are
    rated."""
    rows = np.flatnonzero(kept)
    counts = np.bincount(events.item[rows], minlength=len(events.items))
    sums, rated = None, counts
    if events.rating is not None:
        rows = rows[~np.isnan(events.rating[rows])]
        rated = np.bincount(events.item[rows], minlength=len(events.items))
        sums = np.bincount(events.item[rows], events.rating[rows], minlength=len(events.items))
    places = {name: place for place, name in enumerate(events.items)}
    records: list[dict[str, Any]] = []
    for name, values in items.rows.items():
        place = places.get(name)
        count = 0 if place is None else int(counts[place])
        record: dict[str, Any] = {"entity_id": items.ids[name], **values, "popularity": count}
        if sums is not None:
            given = 0 if place is None else int(rated[place])
            record["mean_rating"] = round(float(sums[place]) / given, 4) if given else None
        records.append(record)
    return records


def record_table(records: Seq[Mapping[str, Any]]) -> pa.Table:
    """Records as a table. Columns whose values have no common type, or one that files cannot hold,
    become texts."""
    names = dict.fromkeys(name for record in records for name in record)
    columns: dict[str, Any] = {}
    for name in names:
        values = [record.get(name) for record in records]
        if name == "entity_id":
            values = ids_array([v for v in values if v is not None]).tolist()
        try:
            columns[name] = pa.array(values)
            if _is_bare(columns[name].type):
                raise pa.ArrowTypeError
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            columns[name] = pa.array([None if v is None else listed(v) for v in values])
    return pa.table(columns)


def _is_bare(kind: Any) -> bool:
    """Whether there is an object without a field in it (`"details": {}`), which Parquet has not."""
    if pa.types.is_struct(kind):
        return not kind.num_fields or any(_is_bare(field.type) for field in kind)
    return pa.types.is_list(kind) and _is_bare(kind.value_type)


def _by_user(events: Events, rows: LongArray) -> Iterator[tuple[int, LongArray]]:
    """The rows of each user who has any; `rows` int64 `[m]` are ascending."""
    bounds = np.searchsorted(rows, events.starts)
    for user in np.flatnonzero(np.diff(bounds)).tolist():
        yield user, rows[bounds[user] : bounds[user + 1]]


def entry_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a history says of an item that has this row of `Items.rows`."""
    entry: dict[str, Any] = {"title": flat(row["title"])}
    if category := category_of(row):
        entry["category"] = category
    if (year := row.get("year")) is not None:
        entry["year"] = year_in_words(year)
    return entry


def rating_scale(events: Events) -> int | None:
    """The highest rating that the file seems to allow."""
    if events.rating is None:
        return None
    given = events.rating[~np.isnan(events.rating)]
    return usual_scale(float(given.min()), float(given.max())) if len(given) else None


def _plain(rating: Any) -> float:
    """A float32 as people would write it: 4.7, not 4.699999809."""
    return float(str(rating))
