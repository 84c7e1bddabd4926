"""Rows as plain Python values, the same whoever wrote the file, lists that a table without lists
wrote as text included: `["a", "b"]`, `['a', 'b']`, `['a' 'b']`.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import pyarrow as pa

#: An element as JSON, Python or NumPy prints it, and the comma behind it, which NumPy leaves out.
_ELEMENT = re.compile(
    r"""\s*(?:('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|([^\s,'"\[\]]+))\s*(,?)\s*""", re.DOTALL
)
_WORDS = {"None": None, "null": None, "nan": None, "NaN": None, "<NA>": None}
_BOOLEANS = {"True": True, "False": False, "true": True, "false": False}


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
        quoted, bare, _ = element.groups()
        try:
            found.append(ast.literal_eval(quoted) if quoted else _bare(bare))
        except (ValueError, SyntaxError):
            return None
        place = element.end()
    return found


def _bare(word: str) -> Any:
    if word in _WORDS:
        return _WORDS[word]
    if word in _BOOLEANS:
        return _BOOLEANS[word]
    try:
        return int(word)
    except ValueError:
        return float(word)


def python_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """A dictionary per row.

    NaN is null, as pandas means it; bytes that are UTF-8 are texts, which some writers do not mark
    as such; a moment finer than microseconds is its ISO text, as Python's own type cannot hold it.
    """
    names = batch.schema.names
    columns = [_plain(batch.column(i)) for i in range(len(names))]
    floats = [n for n, c in zip(names, columns, strict=True) if pa.types.is_floating(c.type)]
    rows = pa.RecordBatch.from_arrays(columns, names=names).to_pylist()
    for name in floats:
        for row in rows:
            if row[name] != row[name]:
                row[name] = None
    return rows


def _plain(column: Any) -> Any:
    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
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
