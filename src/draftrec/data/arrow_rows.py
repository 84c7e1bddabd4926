"""Rows of Arrow batches as plain Python values, the same whoever wrote the file."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


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
