"""`draftrec table`: text files of any layout as the CSV that all other commands read."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

from draftrec.cli.command import DONE, command, print_json
from draftrec.cli.knobs import READ, REQUIRED, WRITTEN, argument, option
from draftrec.cli.messages import say
from draftrec.cli.options import JsonOptions, ReplaceOutput
from draftrec.data.files.places import Place
from draftrec.errors import DraftrecError

if TYPE_CHECKING:
    import pyarrow as pa

    from draftrec.data.tables.readers import Row
    from draftrec.data.tables.text import Layout

_BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TableOptions(JsonOptions):
    """The command line of `draftrec table`."""

    text: str = argument("TEXT", "A text file with a row per line, or a folder of its parts.", READ)
    output: Place = option(
        "CSV to write, with a header, commas and UTF-8.",
        metavar="FILE.csv",
        default=REQUIRED,
        place=WRITTEN,
    )
    columns: str | None = option(
        "Names of the columns of a file without a header, one for each.", metavar="A,B,..."
    )
    separator: str | None = option(
        "What parts cells, such as :: or \\t.", show_default="as the first lines look"
    )
    encoding: str = option("How letters are encoded: latin-1, utf-16, gbk ...", default="utf-8")
    overwrite: bool = ReplaceOutput()


@command(TableOptions, writes=["output"])
def table(options: TableOptions) -> int:
    """Make CSV that every command reads of a TEXT file in another layout.

    Files without a header get one, cells that are parted by other marks commas, letters in other
    encodings UTF-8. Cells stay as they are.
    """
    from draftrec.data.files.writers import check_new_table, write_tables
    from draftrec.data.tables.readers import text_rows

    if options.output.suffix != ".csv":
        raise DraftrecError(f"--output {options.output} must end in .csv, which it becomes")
    check_new_table(options.output, overwrite=options.overwrite)
    rows = text_rows(options.text, _layout(options), _encoding(options))
    first = next(rows)  # there is one
    counts: list[int] = []
    write_tables(options.output, _schema(first), _tables(chain([first], rows), first, counts))
    shown = ", ".join(f"{name} {value!r}" for name, value in first.values.items())
    say(f"{sum(counts):,} rows are in {options.output}, the first of them: {shown}")
    if options.json:
        columns = list(first.values)
        print_json({"rows": sum(counts), "columns": columns, "output": str(options.output)})
    return DONE


def _layout(options: TableOptions) -> Layout:
    from draftrec.data.tables.text import Layout

    names = None
    if options.columns is not None:
        names = tuple(name.strip() for name in options.columns.split(","))
        if not all(names) or len(set(names)) < len(names):
            raise DraftrecError("--columns must be names, each another, with commas between them")
    separator = options.separator and options.separator.replace("\\t", "\t")
    if separator is not None and (not separator or set(separator) & set('"\\\r\n')):
        raise DraftrecError("--separator must be one or several marks, no quotes and no line ends")
    return Layout(names, separator)


def _encoding(options: TableOptions) -> str:
    try:
        return codecs.lookup(options.encoding).name
    except LookupError:
        raise DraftrecError(
            f"--encoding {options.encoding} is none that is known; latin-1, cp1252, utf-16 and gbk "
            "are some"
        ) from None


def _schema(first: Row) -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in first.values])


def _tables(rows: Iterator[Row], first: Row, counts: list[int]) -> Iterator[pa.Table]:
    """The rows, some at a time, how many goes to `counts`. Raises DraftrecError for files whose
    columns differ."""
    import pyarrow as pa

    while batch := list(islice(rows, _BATCH_ROWS)):
        counts.append(len(batch))
        for row in batch:
            if row.values.keys() != first.values.keys():
                raise DraftrecError(
                    f"{row.file} has other columns than {first.file}; make a table of each"
                )
        yield pa.Table.from_pylist([row.values for row in batch], _schema(first))
