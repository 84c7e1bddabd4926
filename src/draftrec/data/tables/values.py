"""Cells of tables as plain Python values, the same whoever wrote the file: of Arrow's types, and of
lists that a table without lists wrote as text: `["a", "b"]`, `['a', 'b']`, `['a' 'b']`.
"""

from __future__ import annotations

import ast
import json
import re
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa

_QUOTED = r"""[uU]?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
#: An element as JSON, Python or NumPy prints it, and the comma behind it, which NumPy leaves out.
_ELEMENT = re.compile(
    rf"""\s*(?:np\.str_\(({_QUOTED})\)|({_QUOTED})|([^\s,'"\[\]]+))\s*(,?)\s*""", re.DOTALL
)
#: A number as NumPy 2 prints it within a list of Python's.
NUMPY_NUMBER = re.compile(r"np\.(?:u?int|float)\d+\(([^()]*)\)")
#: What is printed for a missing value.
NO_WORDS = ("None", "null", "nan", "NaN", "<NA>")
_BOOLEANS = {"True": True, "False": False, "true": True, "false": False}


def with_lists(values: dict[str, Any], *, typed: bool) -> dict[str, Any]:
    """A row's values with lists in place of the texts that a table without types has for them; of
    other tables that is done for the history alone."""
    texts = {name: v for name, v in values.items() if isinstance(v, str) and v.startswith("[")}
    if typed:
        texts = {name: v for name, v in texts.items() if name == "history"}
    lists = {name: found for name, v in texts.items() if (found := as_list(v)) is not None}
    return {**values, **lists} if lists else values


def as_list(value: Any) -> list[Any] | None:
    """The list that a cell is or was written from; None for any other value, texts in brackets
    (`[REC]`) among them. What NumPy shortened with `...` is none either."""
    if isinstance(value, list):
        return value
    text = value.strip() if isinstance(value, str) else ""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = _nested(text) if re.search(r"[{(\[]", text[1:]) else None
        # A flat list is not left to Python, which would join NumPy's 'a' 'b' to 'ab'.
        return found if found is not None else _flat(text[1:-1])
    return found if isinstance(found, list) else None


def _nested(text: str) -> list[Any] | None:
    try:
        found = ast.literal_eval(re.sub(r"\bnan\b", "None", text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    ordered = isinstance(found, list) and all(isinstance(e, dict | list | tuple) for e in found)
    return found if ordered else None


def _flat(inner: str) -> list[Any] | None:
    found: list[Any] = []
    place = 0
    while place < len(inner):
        element = _ELEMENT.match(inner, place)
        if element is None:
            return None
        scalar, quoted, bare, _ = element.groups()
        try:
            found.append(_bare(bare) if bare else ast.literal_eval(scalar or quoted))
        except (ValueError, SyntaxError):
            return None
        place = element.end()
    return found


def _bare(word: str) -> Any:
    word = NUMPY_NUMBER.sub(r"\1", word)
    if word in NO_WORDS:
        return None
    if word in _BOOLEANS:
        return _BOOLEANS[word]
    try:
        return int(word)
    except ValueError:
        return float(word)


def python_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """A dictionary per row.

    NaN is null, as pandas means it; bytes that are UTF-8 are texts, which some writers do not mark
    as such; a moment finer than microseconds is its ISO text, as Python's own type cannot hold it;
    decimals without a place behind the point are whole numbers, UUIDs texts, in lists too.
    """
    names = batch.schema.names
    columns = [_plain(batch.column(i)) for i in range(len(names))]
    rows = pa.RecordBatch.from_arrays(columns, names=names).to_pylist()
    for name, column in zip(names, columns, strict=True):
        if pa.types.is_floating(column.type):
            for row in rows:
                if row[name] != row[name]:
                    row[name] = None
        elif _is_odd(column.type):
            for row in rows:
                row[name] = _usual(row[name])
    return rows


def holds_texts(kind: pa.DataType) -> bool:
    """Whether these are texts."""
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def holds_whole_numbers(kind: pa.DataType) -> bool:
    """Whether these are decimals that have no place behind the point, as Snowflake writes integers
    and Spark unsigned ones."""
    return pa.types.is_decimal(kind) and kind.scale <= 0


def holds_uuids(kind: pa.DataType) -> bool:
    """Whether these are UUIDs by type, as DuckDB and Iceberg write them."""
    return isinstance(kind, pa.UuidType)


def _is_odd(kind: pa.DataType) -> bool:
    """Whether Python's values of it are not those that other columns of the same have."""
    if pa.types.is_dictionary(kind):
        return _is_odd(kind.value_type)
    if _is_list(kind):
        return _is_odd(kind.value_type) or _is_binary(kind.value_type)
    return holds_whole_numbers(kind) or holds_uuids(kind)


def _is_binary(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_binary(value) or pa.types.is_large_binary(value)


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _usual(value: Any) -> Any:
    if isinstance(value, list):
        return [_usual(element) for element in value]
    if isinstance(value, Decimal):
        return int(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return str(value) if isinstance(value, UUID) else value


def _plain(column: Any) -> Any:
    kind = column.type
    if pa.types.is_dictionary(kind) and not holds_texts(kind.value_type):
        column = column.dictionary_decode()
        kind = column.type
    if _is_binary(kind):
        return _cast(column, pa.string(), column)
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return _cast(column, pa.timestamp("us", kind.tz), None)
    return column


def _cast(column: Any, kind: pa.DataType, otherwise: Any) -> Any:
    """The column as `kind` if nothing is lost by it, else `otherwise`, or as text."""
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        return column.cast(pa.string()) if otherwise is None else otherwise
