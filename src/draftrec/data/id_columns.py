"""Ids of items and users between Arrow columns, cells of a row, and arrays."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa

from draftrec.data.readers import Row
from draftrec.errors import DraftrecError
from draftrec.items.ids import Id, Ids, ids_array, is_text, plain


def arrow_type(*, text: bool) -> pa.DataType:
    """The type of a column of ids."""
    return pa.string() if text else pa.int64()


def arrow_ids(ids: Ids) -> pa.Array:
    """Ids as an Arrow column, in their own type."""
    return pa.array(ids.tolist(), pa.string()) if is_text(ids) else pa.array(ids, pa.int64())


def column_ids(column: Any) -> Ids | None:
    """Ids of an Arrow column; None for one that holds nulls, empty texts or anything but whole
    numbers of 64 bits and texts."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if column.null_count:
        return None
    if pa.types.is_integer(kind):
        try:
            return column.cast(pa.int64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            return None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        found = column.to_pylist()
        return ids_array(found) if all(found) else None
    return None


def cell_id(row: Row, column: str, *, typed: bool) -> Id:
    """The id in a cell: a whole number or a text. Where cells have no type (CSV, so not `typed`), a
    text that spells a whole number the usual way is one.

    Raises DraftrecError for anything else.
    """
    value = row.values.get(column)
    if is_id(value):
        return value if typed else plain(value)
    hint = ""
    if isinstance(value, float) and value.is_integer():
        hint = " (pandas turns whole numbers into these where one is missing: use Int64)"
    raise DraftrecError(
        f"{row.file} line {row.line}: {column} is {value!r}, not a whole number or a text{hint}; "
        "mend or remove the row"
    )


def cell_ids(row: Row, column: str, *, typed: bool) -> Ids:
    """The list of ids `[h]` in a cell. A text is read as a list too: `3 1 2`, `3,1,2`, `[3, 1, 2]`
    or `["a", "b"]`; its parts are then typed as those of CSV.

    Raises DraftrecError for anything else.
    """
    values = row.values.get(column)
    if isinstance(values, str):
        values, typed = _listed(values), False
    found = None
    if isinstance(values, Iterable) and not isinstance(values, dict | bytes):
        found = _array(list(values), typed=typed)
    elif values is None and not typed:
        found = np.empty(0, np.int64)  # an empty cell of CSV is an empty list
    if found is None:
        raise DraftrecError(
            f"{row.file} line {row.line}: {column} is no list of whole numbers or texts; mend or "
            "remove the row"
        )
    return found


def spelt_list(text: str) -> list[Any] | None:
    """The list that a text spells in JSON or as Python writes it, None if it spells none."""
    for read in (json.loads, ast.literal_eval) if text.lstrip().startswith("[") else ():
        try:
            found = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, list):
            return found
    return None


def _listed(text: str) -> list[Any]:
    """A list, or words between spaces and commas. NumPy writes texts in quotes without commas."""
    found = spelt_list(text)
    if found is not None:
        return found
    return [word.strip("'\"") for word in text.strip("[] \n").replace(",", " ").split()]


def _array(values: list[Any], *, typed: bool) -> Ids | None:
    if not all(is_id(value) for value in values):
        return None
    try:
        return ids_array(values if typed else [plain(value) for value in values])
    except OverflowError:
        return None


def is_id(value: Any) -> TypeGuard[Id]:
    """Whether a value is a whole number, or a text that is not empty."""
    if isinstance(value, str):
        return bool(value) and (value.isascii() or _encodable(value))
    return isinstance(value, int) and not isinstance(value, bool)


def _encodable(text: str) -> bool:
    """JSON can spell half a character, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
