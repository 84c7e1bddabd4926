"""Categorical columns of users and items as codes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from draftrec.core import LongArray
from draftrec.data.interactions import converted, label
from draftrec.data.records import Rejects
from draftrec.data.tables.columns import ENTITY, need_columns
from draftrec.data.tables.readers import open_records
from draftrec.data.tables.rows import as_list
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
    column that `data.tables.columns` knows.

    Rows without a usable id join `rejects`. Raises DraftrecError for a missing column, an entity
    listed twice and, without `rejects`, for the first row without an id.
    """
    source = open_records(location)
    if not source.has(id_column):
        what = f"rename the column of ids to {id_column} or entity_id"
        (id_column,) = need_columns(source, [(ENTITY.called("entity_id", _ID_OPTIONS), None)], what)
    found: dict[str, Mapping[str, Any]] = {}
    for row, name in converted(source.rows(), lambda row: (row, label(row, id_column)), rejects):
        if name in found:
            raise DraftrecError(
                f"{row.file} line {row.line}: {name!r} is listed before; keep one row for each"
            )
        found[name] = {key: v for key, v in row.values.items() if key != id_column}
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
