"""Categorical columns of users and items as codes."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np

from draftrec.data.events import Int64Array
from draftrec.data.interactions import label
from draftrec.data.readers import open_records
from draftrec.errors import DraftrecError

#: Parts the values of a text such as `Action|Crime`.
_SEPARATOR = "|"
#: Columns of more distinct values are not taken unasked: titles and other free text.
_MOST_VALUES = 1000

Rows = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, eq=False, slots=True)
class Attribute:
    """`codes` int64 `[entities + 1, w]`: the values of each entity, filled up with 0; row 0 is an
    unknown entity, and entity e of the events has row e + 1. Codes are below `size`."""

    name: str
    codes: Int64Array
    size: int


def read_rows(location: str, id_column: str) -> Rows:
    """Entity id -> all its columns. The id stands in `id_column`, or else in `entity_id`.

    Raises DraftrecError for a missing column, a null id and an entity listed twice.
    """
    source = open_records(location)
    if not source.has(id_column):
        source.require(["entity_id"], f"rename the column of ids to {id_column} or entity_id")
        id_column = "entity_id"
    found: dict[str, Mapping[str, Any]] = {}
    for row in source.rows():
        name = label(row, id_column)
        if name in found:
            raise DraftrecError(
                f"{row.file} line {row.line}: {name!r} is listed before; keep one row for each"
            )
        found[name] = {key: v for key, v in row.values.items() if key != id_column}
    return found


def attributes(
    rows: Rows, columns: Seq[str] | None, ids: Seq[str], known: Int64Array
) -> tuple[Attribute, ...]:
    """The attributes of the entities `ids`, from all text and list columns with few distinct
    values, or from `columns`. A value that no entity of `known` (indices of `ids`) has counts as
    missing: nothing could be learnt of it.

    Raises DraftrecError for a column that no row has.
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    for name in columns or ():
        if name not in names:
            raise DraftrecError(
                f"there is no column {name!r} among {', '.join(names) or 'no columns'}; choose "
                "another"
            )
    chosen = columns if columns is not None else [n for n in names if _is_category(rows, n)]
    return tuple(_attribute(name, rows, ids, known) for name in chosen)


def _attribute(name: str, rows: Rows, ids: Seq[str], known: Int64Array) -> Attribute:
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
    """The distinct values of a cell, in order."""
    if value is None:
        return []
    parts = value.split(_SEPARATOR) if isinstance(value, str) else value
    parts = parts if isinstance(parts, list) else [parts]
    return list(dict.fromkeys(str(p) for p in parts if p is not None and str(p)))


def _is_category(rows: Rows, name: str) -> bool:
    cells = [row.get(name) for row in rows.values()]
    full = [cell for cell in cells if cell is not None]
    if not full or not all(_is_text(cell) for cell in full):
        return False
    distinct = {value for cell in full for value in values_of(cell)}
    return len(distinct) <= min(_MOST_VALUES, max(1, len(full) // 2))


def _is_text(cell: Any) -> bool:
    return isinstance(cell, str) or (
        isinstance(cell, list) and all(isinstance(part, str) for part in cell)
    )
