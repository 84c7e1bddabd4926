"""Streaming readers: Parquet, Arrow, JSON, CSV and its kin; a file, a folder of parts, or a glob,
on this machine or at an address.

Nothing here holds more than one batch of rows, and rows are read only when they are asked for. They
are plain Python values, the same whoever wrote the file (`values`).
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from draftrec.data.files.places import (
    Place,
    RemotePath,
    arrow_path,
    natural,
    partitions_of,
    parts_of,
    place,
)
from draftrec.data.tables.text import (
    Layout,
    column_names,
    delimited_rows,
    json_lines,
    json_values,
)
from draftrec.data.tables.values import holds_texts, holds_uuids, holds_whole_numbers, python_rows
from draftrec.errors import DraftrecError

Kind = Literal["parquet", "arrow", "jsonl", "json", "csv", "tsv", "inter", "item", "user"]
#: A row's line and values.
Found = tuple[int, dict[str, Any]]
Read = Callable[[Place, Collection[str] | None], Iterator[Found]]

_KINDS: dict[str, Kind] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".inter": "inter",
    ".item": "item",
    ".user": "user",
}
_BINARY: tuple[Kind, ...] = ("parquet", "arrow")
_DELIMITED: tuple[Kind, ...] = ("csv", "tsv", "inter", "item", "user")
_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_READABLE = (
    ".parquet, .arrow, .jsonl, .json, .csv, .tsv or RecBole's .inter, .item and .user, all but the "
    "first two also as .gz or .zst"
)
_BATCH_ROWS = 256
_BUFFER_BYTES = 1 << 20
#: JSON lines carry no schema; a column exists if one of this many first rows has it.
_JSON_PEEK = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """One record as it was found. `line`, from 1: of a text file, or the row of a Parquet file."""

    values: dict[str, Any]
    file: str
    line: int


@dataclass(frozen=True)
class RecordSource:
    """Files of one kind, read in order as one stream of rows.

    Folders below `root`, if any, that are named as Hive names partitions (`group=g1`) are columns
    of the rows in them.
    """

    files: tuple[Place, ...]
    kind: Kind
    root: str = ""

    def rows(self, columns: Collection[str] | None = None) -> Iterator[Row]:
        """Every row, lazily. `columns` narrows what Parquet decodes; others may come along."""
        for path in self.files:
            spelt = partitions_of(path, self.root)
            name = str(path).removeprefix(self.root) if self.root else path.name
            with _explained(path):
                for line, values in _READERS[self.kind](path, columns):
                    yield Row({**spelt, **values} if spelt else values, name, line)

    def fingerprint(self) -> str:
        """SHA-256 over the files' contents in order (names and times do not count)."""
        whole = hashlib.sha256()
        for path in self.files:
            with _explained(path), path.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
            if spelt := partitions_of(path, self.root):
                whole.update(json.dumps(spelt).encode())
        return whole.hexdigest()

    def require(self, columns: Collection[str], mend: str) -> None:
        """Raise when a file lacks one of `columns`; `mend` says what the user can do about it."""
        for path, found in zip(self.files, self._columns, strict=True):
            missing = [name for name in columns if name not in found]
            if missing and found:
                self._refuse_headless(path, found)
                names = " and ".join(repr(name) for name in missing)
                what = "column" if len(missing) == 1 else "columns"
                raise DraftrecError(
                    f"{path} has no {what} {names}, it has {', '.join(found)}; {mend}"
                )

    @property
    def typed(self) -> bool:
        """Whether cells have types; otherwise all of them are texts, lists among them."""
        return self.kind not in _DELIMITED

    def columns(self) -> tuple[str, ...]:
        """The columns that all files have, in the order of the first one's. Files without rows, as
        Spark writes of empty parts, may say nothing of them."""
        names = list(filter(None, self._columns)) or [()]
        return tuple(name for name in names[0] if all(name in other for other in names))

    def has(self, column: str) -> bool:
        """Whether every file has the column."""
        return column in self.columns()

    def refuse_type(self, column: str, allowed: str) -> None:
        """Raise when a column is typed but neither text, UUIDs nor whole numbers."""
        for path in self.files if self.kind in _BINARY else ():
            with _explained(path):
                schema = self._schema_of(path)
            if column not in schema.names:
                continue
            kind = schema.field(column).type
            value = kind.value_type if pa.types.is_dictionary(kind) else kind
            plain = holds_texts(value) or pa.types.is_integer(value) or pa.types.is_null(value)
            if not (plain or holds_whole_numbers(value) or holds_uuids(value)):
                raise DraftrecError(
                    f"{path}: column {column!r} is {kind}, but must be {allowed}; convert it first"
                )

    @cached_property
    def _columns(self) -> tuple[tuple[str, ...], ...]:
        """Of each file; none of one without rows. Looked for once: of JSON, many rows are read."""
        return tuple(map(self._columns_of, self.files))

    def _columns_of(self, path: Place) -> tuple[str, ...]:
        with _explained(path):
            names = dict.fromkeys(self._columns_in(path))
        return tuple({**names, **dict.fromkeys(partitions_of(path, self.root))} if names else ())

    def _columns_in(self, path: Place) -> Iterable[str]:
        if self.kind in _BINARY:
            return self._schema_of(path).names
        if self.kind in _DELIMITED:
            return column_names(partial(_open_text, path), self.kind)
        rows = islice(_READERS[self.kind](path, None), _JSON_PEEK)
        return dict.fromkeys(name for _, values in rows for name in values)

    def _schema_of(self, path: Place) -> pa.Schema:
        if self.kind == "parquet":
            return pq.read_schema(arrow_path(path))
        with _arrow_file(path) as file:
            return file.schema

    def _refuse_headless(self, path: Place, columns: Seq[str]) -> None:
        """Raise where what stands in place of a header looks like a row."""
        cells = [cell for name in columns for cell in re.split(r"\t|\||;|,|::", name)]
        if self.kind in _DELIMITED and any(map(_CELL.fullmatch, cells)):
            first = ", ".join(name[:30] for name in columns[:5])
            raise DraftrecError(
                f"{path} seems to have no header, its first line is a row ({first}); name its "
                f"columns: {_as_table(path, '--columns user_id,item_id,...')}"
            )


def open_records(location: str | Place) -> RecordSource:
    """Find the files behind a path, a folder or a glob, and check that they hold rows."""
    files, root = _find_files(place(location))
    kinds: set[Kind | None] = {_kind_of(path) for path in files}
    if len(kinds) > 1:
        found = " and ".join(sorted(map(str, kinds)))
        raise DraftrecError(f"{location} mixes {found} files; name one kind with a glob")
    kind = kinds.pop()
    if kind is None and files[0].suffix in _ARRAYS:
        raise DraftrecError(
            f"{files[0]} is an array without ids; write Parquet of both, in Python with "
            'pandas.DataFrame({"item": ids, "vector": list(array)}).to_parquet("vectors.parquet")'
        )
    if kind is None:
        raise DraftrecError(
            f"{files[0]} is of no readable kind; give a file ending in {_READABLE}, or make one of "
            f"a text file: {_as_table(files[0], '--columns user_id,item_id,...')}"
        )
    source = RecordSource(tuple(files), kind, root)
    # A sum looks into every file, where any() would stop at the first good one.
    if sum(_has_rows(path, kind) for path in files) == 0:
        what = f"{location} holds no records" if len(files) > 1 else f"{files[0]} is empty"
        raise DraftrecError(f"{what}; give a file with at least one record")
    return source


#: Endings of files of arrays, which no text file has.
_ARRAYS = frozenset((".npy", ".npz", ".pt", ".pth", ".safetensors"))
#: What is in a row and hardly ever in a header: a number, a date, an address, a list.
_CELL = re.compile(r"[-+]?\d+(\.\d+)?|\d{4}-\d\d-\d\d.*|https?://.*|\[.*\]", re.DOTALL)


def _as_table(path: Place, more: str) -> str:
    """The command that makes a file readable."""
    return f"draftrec table {path} {more} --output {path.name.partition('.')[0]}-table.csv"


def text_rows(location: str | Place, layout: Layout, encoding: str) -> Iterator[Row]:
    """The rows of text files that any program wrote, whatever their names end in: cells in
    `encoding`, parted and named as `layout` says, or as they say themselves. An empty cell is null.

    Raises DraftrecError for no rows, a row that does not fit, and what is not in `encoding`.
    """
    found = False
    for path in _find_files(place(location))[0]:
        kind = _kind_of(path)
        kind = kind if kind in ("csv", "tsv") else "text"
        with _explained(path):
            opened = partial(_open_text, path, encoding)
            for line, values in delimited_rows(opened, kind, str(path), layout):
                found = True
                yield Row(values, path.name, line)
    if not found:
        raise DraftrecError(f"{location} is empty; give a file with at least one row")


def _find_files(path: Place) -> tuple[list[Place], str]:
    """The files, and the folder that their partitions are named under."""
    with _explained(path):
        if path.is_dir():
            run = run_manifest(path)  # first: one that is under way writes more parts
            files = parts_of(path, _kind_of, _READABLE)
            shards = run.get("shards", ()) if run else ()
            listed = [f"part-{i:05d}.parquet" for i in range(len(shards))]
            # A copy that was cut off would pass for fewer texts.
            if missing := sorted({*listed} - {file.name for file in files}):
                raise DraftrecError(
                    f"{path} is a run of {len(listed)} parts, of which {len(missing)} are missing, "
                    f"such as {missing[0]}; copy the folder again, or name the parts that are "
                    f"there with a glob"
                )
            return files, f"{path}/"
        if path.exists():
            return [path], ""
    location = str(path)
    on_web = isinstance(path, RemotePath) and not path.has_folders
    if on_web or not glob.has_magic(location):
        raise DraftrecError(f"{location} does not exist; check the path")
    files = _matching(path)
    if not files:
        raise DraftrecError(f"no file matches {location}; check the pattern")
    return sorted(files, key=natural), _fixed_part(location)


def run_manifest(folder: Place) -> dict[str, Any] | None:
    """What `draftrec generate` has written about its output in `folder`; None where that is no run,
    or its manifest is damaged, which is for those to say who go by it."""
    try:
        found = json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("format") == "draftrec-run" else None


def _matching(pattern: Place) -> list[Place]:
    if isinstance(pattern, RemotePath):
        with _explained(pattern):
            return [*pattern.glob()]
    found = [Path(name) for name in glob.glob(str(pattern), recursive=True)]  # noqa: PTH207 - absolute patterns too
    return [p for p in found if p.is_file()]


def _fixed_part(pattern: str) -> str:
    """The folder of a pattern in front of its first wildcard, which its partitions are part of."""
    folders = pattern.split("/")
    wild = next(i for i, name in enumerate(folders) if glob.has_magic(name))
    while wild and "=" in folders[wild - 1]:
        wild -= 1
    return "".join(f"{name}/" for name in folders[:wild])


def _kind_of(path: Place) -> Kind | None:
    name = PurePosixPath(path.name)
    inner = PurePosixPath(name.stem) if name.suffix in _COMPRESSION else name
    kind = _KINDS.get(inner.suffix.lower())
    return None if kind in _BINARY and inner != name else kind


def _has_rows(path: Place, kind: Kind) -> bool:
    """Whether there is a row. Opens every Parquet footer: a truncated file shows at once."""
    if kind != "parquet":
        with _explained(path):
            return any(True for _ in islice(_READERS[kind](path, None), 1))
    if path.stat().st_size == 0:
        raise DraftrecError(f"{path} is empty; write the file again or leave it out")
    with _explained(path), pq.ParquetFile(arrow_path(path)) as file:
        return file.metadata.num_rows > 0


def _read_parquet(path: Place, columns: Collection[str] | None) -> Iterator[Found]:
    # A buffered stream keeps whole column chunks of large row groups out of memory.
    with pq.ParquetFile(arrow_path(path), buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
        wanted = columns and [name for name in file.schema_arrow.names if name in columns]
        line = 0
        for batch in file.iter_batches(_BATCH_ROWS, columns=wanted, use_threads=False):
            for values in python_rows(batch):
                line += 1
                yield line, values


@contextmanager
def _arrow_file(path: Place) -> Iterator[Any]:
    """Arrow's own form: with a footer as pandas, Polars and DuckDB write it, or a stream as Hugging
    Face's datasets do."""
    with path.open_seekable() if isinstance(path, RemotePath) else path.open("rb") as raw:
        try:
            file = pa.ipc.open_file(raw)
        except pa.ArrowInvalid:
            raw.seek(0)
            file = pa.ipc.open_stream(raw)
        with file:
            yield file


def _read_arrow(path: Place, columns: Collection[str] | None) -> Iterator[Found]:
    line = 0
    with _arrow_file(path) as file:
        wanted = [name for name in file.schema.names if not columns or name in columns]
        whole = not hasattr(file, "num_record_batches")
        batches = file if whole else map(file.get_batch, range(file.num_record_batches))
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                for values in python_rows(batch.select(wanted).slice(start, _BATCH_ROWS)):
                    line += 1
                    yield line, values


def _read_jsonl(path: Place, columns: Collection[str] | None) -> Iterator[Found]:
    with _open_text(path) as file:
        yield from json_lines(file, str(path))


def _read_json(path: Place, columns: Collection[str] | None) -> Iterator[Found]:
    with _open_text(path) as file:
        yield from json_values(file, str(path))


def _read_delimited(kind: Kind) -> Read:
    def read(path: Place, columns: Collection[str] | None) -> Iterator[Found]:
        return delimited_rows(partial(_open_text, path), kind, str(path))

    return read


_READERS: dict[Kind, Read] = {
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "jsonl": _read_jsonl,
    "json": _read_json,
    **{kind: _read_delimited(kind) for kind in _DELIMITED},
}


def whole_json(path: Place) -> Any:
    """What a JSON file holds. Raises ValueError or RecursionError where that is not one value."""
    with _open_text(path) as file:
        return json.load(file)


@contextmanager
def _open_text(path: Place, encoding: str = "utf-8") -> Iterator[io.TextIOWrapper]:
    encoding = "utf-8-sig" if encoding in ("utf-8", "utf8") else encoding
    compression = _COMPRESSION.get(path.suffix)
    with (
        path.open("rb") as raw,
        pa.input_stream(raw, compression=compression) if compression else raw as stream,
        # utf-8-sig: spreadsheets put a byte-order mark in front.
        io.TextIOWrapper(stream, encoding=encoding, newline="") as text,  # type: ignore[arg-type]
        _not_cut(path, raw),
    ):
        yield text


@contextmanager
def _not_cut(path: Place, opened: Any) -> Iterator[None]:
    """Raise DraftrecError for a file of this machine that others cut while it is read, whatever is
    found wrong with its end. What stores hold stays as it is."""
    if not isinstance(path, Path):
        yield
        return
    size, error = os.fstat(opened.fileno()).st_size, None
    try:
        yield
    except Exception as found:  # noqa: BLE001 - raised again below
        error = found
    if os.fstat(opened.fileno()).st_size < size:
        raise DraftrecError(
            f"{path} became shorter while it was read; run the same command again when nobody "
            "writes to it"
        ) from error
    if error is not None:
        raise error


@contextmanager
def _explained(path: Place) -> Iterator[None]:
    """Turn whatever a reader raises into one sentence about the file."""
    try:
        yield
    except DraftrecError:
        raise
    except UnicodeError as error:
        reason = getattr(error, "reason", str(error))
        encoding = getattr(error, "encoding", "utf-16").upper()
        mend = "convert it first, as in iconv -f latin1 -t utf-8"
        if _kind_of(path) not in ("json", "jsonl"):
            mend = f"say in which encoding it is: {_as_table(path, '--encoding latin-1')}"
        raise DraftrecError(f"{path} is not {encoding} text ({reason}); {mend}") from error
    except (pa.ArrowException, csv.Error, OSError, EOFError, ValueError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise DraftrecError(f"cannot read {path}: {error.strerror}; check the file") from error
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DraftrecError(
            f"{path} cannot be read, it may be truncated ({reason}); write the file again"
        ) from error
