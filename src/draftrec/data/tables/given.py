"""Records as Python programs hold them: texts, dictionaries, data frames, Arrow tables, data sets.

Frames are told by their type's name, so that none of their libraries is needed, or loaded, here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from draftrec.data.tables.readers import Row
from draftrec.data.tables.values import python_rows
from draftrec.errors import DraftrecError

_WANTED = "a text, a record with its fields, several of these, or a data frame"
#: Names of columns, their Arrow types and values -> the caller's frame with them at its end.
AddColumns = Callable[[Mapping[str, Seq[Any]]], Any]


@dataclass(frozen=True)
class GivenRecords:
    """What a caller gave. `rows` are read once, as they are asked for; a text is a row whose only
    field is None. `one`: it was a single record. `columns` of a frame, and how it gets more."""

    rows: Iterator[dict[str | None, Any]]
    one: bool = False
    columns: tuple[str, ...] = ()
    add: AddColumns | None = None


@dataclass(frozen=True, slots=True)
class OneRow:
    """A record as a source of rows, for an `EntityReader`."""

    values: dict[str, Any]
    number: int
    typed: bool = True

    def rows(self, _columns: Any = None) -> Iterator[Row]:
        """The record alone; its line is its number, from 1."""
        yield Row(self.values, "the records", self.number)


def records_of(given: Any) -> GivenRecords:
    """What can be read of `given`. Raises DraftrecError for what holds no records; for a single
    such element when it is reached."""
    for is_kind, read in _KINDS:
        if is_kind(given):
            return read(given)
    if isinstance(given, str | Mapping):
        return GivenRecords(iter([_row(given, 1)]), one=True)
    refused = DraftrecError(f"{_named(given)} is given, where {_WANTED} is needed")
    if isinstance(given, bytes | bytearray) or not isinstance(given, Iterable):
        raise refused
    try:
        items = iter(given)
    except TypeError as error:  # arrays and tensors of no dimension
        raise refused from error
    return GivenRecords(_row(item, i) for i, item in enumerate(items, 1))


def plain(value: Any) -> Any:
    """The value in Python's own types: no NumPy, pandas or Arrow; NaN and its like are None."""
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, pa.Scalar):
        return plain(value.as_py())
    if isinstance(value, float) and value != value:
        return None
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    return value


def _row(item: Any, number: int) -> dict[str | None, Any]:
    item = plain(item)
    if isinstance(item, str):
        return {None: item}
    if not isinstance(item, Mapping):
        raise DraftrecError(f"record {number} is {_named(item)}; give a text or a record of fields")
    if "prompt" not in item and {"role", "content"} <= set(item):
        raise DraftrecError(
            f"record {number} is a message of a chat; give its text as the prompt, and what comes "
            f"before it as system="
        )
    return dict(item)


def _named(value: Any) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _of_type(*names: str) -> Callable[[Any], bool]:
    """Is it, or does it come from, a type of one of these modules and names?"""
    wanted = {tuple(name.split(":")) for name in names}

    def is_kind(value: Any) -> bool:
        return any(
            (c.__module__.partition(".")[0], c.__name__) in wanted for c in type(value).__mro__
        )

    return is_kind


def _numpy(column: pa.Array) -> np.ndarray:
    """The column as pandas takes it: lists stay lists."""
    if not pa.types.is_list(column.type):
        return column.to_numpy(zero_copy_only=False)
    found = np.empty(len(column), object)
    for i, values in enumerate(column.to_pylist()):
        found[i] = values
    return found


def _pandas(frame: Any) -> GivenRecords:
    names = tuple(map(str, frame.columns))
    if len(set(names)) < len(names):
        raise DraftrecError("the data frame has two columns of one name; rename one")

    def rows() -> Iterator[dict[str | None, Any]]:
        for number, values in enumerate(frame.itertuples(index=False, name=None), 1):
            yield _row(dict(zip(names, values, strict=True)), number)

    def add(columns: Mapping[str, Seq[Any]]) -> Any:
        return frame.assign(**{n: _numpy(pa.array(v)) for n, v in columns.items()})

    return GivenRecords(rows(), columns=names, add=add)


def _polars(frame: Any) -> GivenRecords:
    lazy = type(frame).__name__ == "LazyFrame"
    held = frame.collect() if lazy else frame
    rows = (_row(row, i) for i, row in enumerate(held.iter_rows(named=True), 1))

    def add(columns: Mapping[str, Seq[Any]]) -> Any:
        polars = sys.modules["polars"]
        made = held.with_columns(
            [polars.from_arrow(pa.array(v)).alias(n) for n, v in columns.items()]
        )
        return made.lazy() if lazy else made

    return GivenRecords(rows, columns=tuple(held.columns), add=add)


def _arrow(table: Any) -> GivenRecords:
    """Tables and batches of Arrow, and all that can be read as such."""
    held = table if isinstance(table, pa.Table) else pa.table(table)
    found = (row for batch in held.to_batches() for row in python_rows(batch))
    rows = (_row(row, i) for i, row in enumerate(found, 1))

    def add(columns: Mapping[str, Seq[Any]]) -> Any:
        made = held
        for name, values in columns.items():
            made = made.append_column(name, pa.array(values))
        return made

    return GivenRecords(rows, columns=tuple(held.column_names), add=add)


def _data_set(found: Any) -> GivenRecords:
    """Of Hugging Face's datasets."""
    rows = (_row(row, i) for i, row in enumerate(found, 1))
    if type(found).__name__ != "Dataset":
        return GivenRecords(rows)

    def add(columns: Mapping[str, Seq[Any]]) -> Any:
        made = found
        for name, values in columns.items():
            made = made.add_column(name, pa.array(values).to_pylist())
        return made

    return GivenRecords(rows, columns=tuple(found.column_names), add=add)


def _several_sets(found: Any) -> GivenRecords:
    raise DraftrecError(
        f"several data sets are given ({', '.join(map(str, found))}), where one is needed; name "
        f"one, as in data[{next(iter(found), 'train')!r}]"
    )


def _values(column: Any) -> GivenRecords:
    """Columns of frames, whose values are the texts."""
    values = column.to_pylist() if hasattr(column, "to_pylist") else column
    return GivenRecords(_row(value, i) for i, value in enumerate(values, 1))


_KINDS: tuple[tuple[Callable[[Any], bool], Callable[[Any], GivenRecords]], ...] = (
    (_of_type("pandas:DataFrame"), _pandas),
    (_of_type("polars:DataFrame", "polars:LazyFrame"), _polars),
    (_of_type("pandas:Series", "polars:Series", "pyarrow:Array", "pyarrow:ChunkedArray"), _values),
    (_of_type("datasets:DatasetDict", "datasets:IterableDatasetDict"), _several_sets),
    (_of_type("datasets:Dataset", "datasets:IterableDataset"), _data_set),
    (_of_type("pyarrow:Table", "pyarrow:RecordBatch"), _arrow),
    (lambda value: hasattr(type(value), "__arrow_c_stream__"), _arrow),
)
