"""Interactions in, groups out: the files around grouping."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import pyarrow as pa

from draftrec.data.files.places import Place
from draftrec.data.files.texts import read_yaml
from draftrec.data.files.writers import write_tables
from draftrec.data.records import Rejects, RowError
from draftrec.data.tables.columns import INTERACTIONS, ITEM, USER, float_hint, is_id, need_columns
from draftrec.data.tables.readers import Row, open_records
from draftrec.errors import DraftrecError

T = TypeVar("T")


def read_histories(
    location: str, user: str | None, item: str | None, rejects: Rejects | None = None
) -> dict[str, list[str]]:
    """User -> items, both as text, in file order, from the columns named or the usual ones. Rows
    that cannot be used join `rejects`; without it, the first one raises DraftrecError."""
    source = open_records(location)
    users, items = need_columns(source, [(USER, user), (ITEM, item)], INTERACTIONS)
    if rejects is not None and rejects.id_column not in (users, items):
        rejects.id_column = users
    found: dict[str, list[str]] = {}
    rows = source.rows([users, items])
    for one, other in converted(rows, lambda row: (label(row, users), label(row, items)), rejects):
        found.setdefault(one, []).append(other)
    return found


def turned(histories: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Item -> users, from user -> items."""
    found: dict[str, list[str]] = {}
    for user, items in histories.items():
        for item in items:
            found.setdefault(item, []).append(user)
    return found


def read_attribute(
    location: str, id_column: str, column: str | None, rejects: Rejects | None = None
) -> dict[str, Any]:
    """Entity -> value of a column, None where it is null or no column is asked for.

    Rows without a usable id join `rejects`; without it, the first one raises DraftrecError. So do a
    missing column and an entity listed twice.
    """
    source = open_records(location)
    columns = [id_column] if column is None else [id_column, column]
    source.require(columns, "name the columns with --id-column and --column")
    found: dict[str, Any] = {}
    for row, entity_id in converted(
        source.rows(columns), lambda row: (row, label(row, id_column)), rejects
    ):
        if entity_id in found:
            raise DraftrecError(
                f"{row.file} line {row.line}: {entity_id!r} is listed before; keep one row for each"
            )
        found[entity_id] = None if column is None else row.values.get(column)
    return found


def read_group_map(path: Place) -> dict[str, str]:
    """Value -> group from YAML: `value: group` lines, or `group: [values]` lists; "*" is the rest
    and `null` stands for missing values. Values are texts, as they are written.

    Raises DraftrecError for anything else, and for a value in two groups.
    """
    content = read_yaml(path, "the map")
    if not isinstance(content, dict) or not content:
        raise DraftrecError(f"the map {path} must hold `value: group` or `group: [values]` lines")
    found: dict[str, str] = {}
    for key, entry in content.items():
        pairs = [(v, key) for v in entry] if isinstance(entry, list) else [(key, entry)]
        for value, group in pairs:
            if group is None or group == "" or isinstance(group, dict):
                raise DraftrecError(f"the map {path} names no group for {value!r}; write one")
            if isinstance(value, list | dict):
                raise DraftrecError(f"the map {path} nests lists under {key!r}; write one list")
            name = "null" if value is None else str(value)
            if found.setdefault(name, str(group)) != str(group):
                raise DraftrecError(
                    f"the map {path} puts {name!r} into {found[name]!r} and into "
                    f"{str(group)!r}; choose one"
                )
    return found


def write_groups(path: Place, groups: Mapping[str, str | None]) -> None:
    """Write `entity_id, group` as `write_tables` does; entities without a group are left out."""
    pairs = [(entity, group) for entity, group in groups.items() if group is not None]
    table = pa.table(
        {
            "entity_id": pa.array([e for e, _ in pairs], pa.string()),
            "group": pa.array([g for _, g in pairs], pa.string()),
        }
    )
    write_tables(path, table.schema, [table])


def label(row: Row, column: str) -> str:
    """An id as text. Raises RowError for anything but a whole number or a text, and for texts that
    are empty or no Unicode."""
    value = row.values.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int):
        kind = "null" if value is None else type(value).__name__
        hint = float_hint(value)
        raise RowError(row, f"{column} is {kind}, not a string or an integer{hint}")
    if not is_id(value):
        raise RowError(row, f"{column} is {'not valid Unicode' if value else 'empty'}")
    return str(value)


def converted(
    rows: Iterable[Row], convert: Callable[[Row], T], rejects: Rejects | None
) -> Iterable[T]:
    """What `convert` makes of each row. Those for which it raises RowError join `rejects`."""
    return map(convert, rows) if rejects is None else rejects.usable(rows, convert)
