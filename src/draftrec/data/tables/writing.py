"""Tables as files that people have programs for: Parquet, JSON lines or CSV, by the ending."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import pyarrow as pa

from draftrec.data.files.places import Place
from draftrec.data.files.writers import replacing, stream_parquet
from draftrec.errors import DraftrecError

Write = Callable[[Place, pa.Schema, Iterable[pa.Table]], None]


def check_table_name(path: Place) -> None:
    """Raise DraftrecError for a name that `write_tables` would refuse."""
    if path.suffix not in _WRITERS:
        raise DraftrecError(
            f"--output {path} must be a file whose name ends in {', '.join(_WRITERS)}; that is "
            "the kind of file it becomes"
        )


def check_new_table(path: Place, *, overwrite: bool) -> None:
    """The same, and for a file that exists, unless it may be replaced."""
    check_table_name(path)
    if path.exists() and not overwrite:
        raise DraftrecError(f"{path} exists; name another output, or replace it with --overwrite")


def write_tables(path: Place, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write tables one after another; the file appears when it is complete. Cells of CSV hold lists
    as JSON. Raises DraftrecError for another ending than those of `check_table_name`."""
    check_table_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _WRITERS[path.suffix](path, schema, tables)


def _parquet(path: Place, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    stream_parquet(path, schema, tables)


def _text(begin: Callable[[list[str]], str], line: Callable[[dict[str, Any]], str]) -> Write:
    def write(path: Place, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        file: BinaryIO
        with replacing(path) as file:
            file.write(begin(schema.names).encode())
            for table in tables:
                for row in table.to_pylist():
                    file.write(line(row).encode())

    return write


def _json_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _csv_line(cells: Iterable[Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(
        [json.dumps(c, ensure_ascii=False) if isinstance(c, list) else c for c in cells]
    )
    return out.getvalue()


_WRITERS: dict[str, Write] = {
    ".parquet": _parquet,
    ".jsonl": _text(lambda names: "", _json_line),
    ".csv": _text(_csv_line, lambda row: _csv_line(row.values())),
}
