"""Tables as text: CSV and its kin, and JSON. A file says by itself how it was written.

CSV: the delimiter is the one under which header and first row have equally many cells. Quotes
inside quotes are doubled (RFC 4180), or written behind a backslash as Spark and MySQL do, or,
where neither commas nor semicolons part cells, mean nothing: the first reading under which every
row of the file fits its header.
JSON: a record per line, a list of records, or what pandas makes of a table.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, cast

from draftrec.errors import DraftrecError

#: Opens the file anew, as text whose line ends are left alone.
Open = Callable[[], AbstractContextManager[io.TextIOBase]]

_DELIMITERS = ("::", ",", ";", "\t", "|")
#: Stands for a delimiter of several characters, of which the csv module knows none.
_UNIT = "\x1f"
#: Kinds of files whose cells are parted by tabs; all but the first are RecBole's "atomic files".
_BY_TAB = ("tsv", "inter", "item", "user")
#: How Hive, MySQL and IMDb write a missing value.
_MISSING = "\\N"
#: Characters that are read at once.
_CHUNK = 1 << 16
#: What Excel puts in front of a file to name its delimiter.
_HINT = re.compile(r'"?sep=(.)"?\s*')
_TYPED = re.compile(r"(.+):(token|float|token_seq|float_seq)")
#: Columns of words that are one text and no list of values, by a part of their names.
_PROSE = ("title", "name", "text", "description", "review", "summary", "overview")


@dataclass(frozen=True, slots=True)
class Layout:
    """What somebody says of a file: the `names` of its columns, which then has no header, and the
    `separator` of its cells; None: as it looks."""

    names: tuple[str, ...] | None = None
    separator: str | None = None


_AS_IT_LOOKS = Layout()


@dataclass(frozen=True, slots=True)
class Dialect:
    """`quoted`: quotes hold a cell together; `escaped`: a backslash takes the meaning of the mark
    behind it; `spaced`: a space follows each delimiter; `hinted`: the first line is no row."""

    delimiter: str
    quoted: bool = True
    escaped: bool = False
    spaced: bool = False
    hinted: bool = False


def column_names(opened: Open, kind: str) -> tuple[str, ...]:
    """The header's cells; of RecBole's `user_id:token` the name alone."""
    with opened() as file:
        names, _ = _header(_reader(file, _of_header(opened, kind)))
    return names


def delimited_rows(
    opened: Open, kind: str, place: str, layout: Layout = _AS_IT_LOOKS
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and cells of each row. Cells are texts, an empty one is null; those of RecBole's typed
    columns are what their type says. `kind`: the ending of the file's name, or `text`.

    Raises DraftrecError, with `place` for the file's name, for a repeated column and a row that
    does not fit the header, and csv.Error.
    """
    dialect = _of_file(opened, kind, layout.separator)
    with opened() as file:
        reader = _reader(file, dialect)
        names, types = (layout.names, {}) if layout.names else _header(reader)
        if len(set(names)) < len(names):
            raise DraftrecError(f"{place} names a column twice in its header; rename one")
        for cells in reader:
            if not cells:
                continue
            line = reader.line_num + dialect.hinted
            if len(cells) != len(names):
                raise DraftrecError(
                    f"{place} line {line} has {len(cells)} cells where there are {len(names)} "
                    "columns; mend or remove the line"
                )
            values: dict[str, Any] = {
                name: None if cell in ("", _MISSING) else cell
                for name, cell in zip(names, cells, strict=True)
            }
            for name, convert in types.items():
                if values[name] is not None:
                    values[name] = convert(values[name])
            yield line, values


def _of_header(opened: Open, kind: str, separator: str | None = None) -> Dialect:
    """What the first lines tell: the delimiter, and whether a space follows it."""
    with opened() as file:
        first = list(islice(file, 2))
    head = first[0] if first else ""
    usual = "\t" if kind in _BY_TAB else "::" if kind == "text" else ","
    hint = _HINT.fullmatch(head)
    if hint:
        return Dialect(hint[1], hinted=True)
    if kind in _BY_TAB[1:]:
        return Dialect(usual, quoted=False)
    delimiter = separator or _delimiter(first, usual)
    others = head.split(delimiter)[1:]
    return Dialect(delimiter, spaced=bool(others) and all(n[:1] == " " for n in others))


def _delimiter(first: Seq[str], usual: str) -> str:
    bare = re.sub(r'"[^"]*"', "", first[0]) if first else ""
    found = {d: bare.count(d) for d in _DELIMITERS if d in bare}
    likely = sorted(found, key=lambda d: (d != usual, -found[d]))
    for delimiter in likely:
        parted = [line.replace(delimiter, _UNIT) for line in first]
        rows = list(csv.reader(parted, delimiter=_UNIT))
        if len(rows) == 2 and len(rows[0]) == len(rows[1]):
            return delimiter
    return max(likely, key=found.__getitem__) if likely else usual


def _of_file(opened: Open, kind: str, separator: str | None = None) -> Dialect:
    """The first dialect that the whole file fits. It is read for that only if it holds marks that
    two dialects read differently."""
    dialect = _of_header(opened, kind, separator)
    if not dialect.quoted:
        return dialect
    loose = dialect.delimiter not in (",", ";")
    backslash = rf'\\["{re.escape(dialect.delimiter)}\r\n]'
    if not _holds(opened, re.compile(f'{backslash}|"' if loose else backslash)):
        return dialect
    candidates = [dialect, replace(dialect, escaped=True)]
    if loose:
        candidates.append(replace(dialect, quoted=False))
    return next((found for found in candidates if _fits(opened, found)), dialect)


def _holds(opened: Open, pattern: re.Pattern[str]) -> bool:
    last = ""
    with opened() as file:
        while chunk := file.read(_CHUNK):
            if pattern.search(last + chunk):
                return True
            last = chunk[-1]
    return False


def _fits(opened: Open, dialect: Dialect) -> bool:
    """Whether every row has as many cells as the header."""
    with opened() as file:
        reader = _reader(file, dialect)
        try:
            width = len(next(reader, []))
            return all(len(cells) in (0, width) for cells in reader)
        except csv.Error:
            return False


def _reader(file: io.TextIOBase, dialect: Dialect) -> Any:
    csv.field_size_limit(sys.maxsize)
    if dialect.hinted:
        next(file, None)
    lines: Iterable[str] = file
    delimiter = dialect.delimiter
    if len(delimiter) > 1:
        lines, delimiter = (line.replace(dialect.delimiter, _UNIT) for line in file), _UNIT
    if dialect.escaped:
        lines = _only_needed(lines, delimiter)
    return csv.reader(
        lines,
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE,
        escapechar="\\" if dialect.escaped else None,
        skipinitialspace=dialect.spaced,
        strict=True,
    )


def _only_needed(lines: Iterable[str], delimiter: str) -> Iterator[str]:
    """Lines in which a backslash that takes no mark's meaning (`C:\\new`) is doubled, so that the
    csv module leaves it in."""
    marks = f'\\"{delimiter}\r\n'

    def kept(found: re.Match[str]) -> str:
        # Of a missing value the backslash is a part, and it stays one.
        return found[0] if found[1] in marks else f"\\\\{found[1]}"

    for line in lines:
        yield re.sub(r"\\(.)", kept, line, flags=re.DOTALL) if "\\" in line else line


def _header(reader: Any) -> tuple[tuple[str, ...], dict[str, Callable[[str], Any]]]:
    """Names of the columns, and how cells of typed ones are read."""
    cells = [cell.strip() for cell in next(reader, [])]
    typed = [_TYPED.fullmatch(cell) for cell in cells]
    if not cells or not all(typed):
        return tuple(cells), {}
    pairs = [(str(found[1]), str(found[2])) for found in typed if found]
    types = {name: _convert(name, kind) for name, kind in pairs if kind != "token"}
    return tuple(name for name, _ in pairs), types


def _convert(name: str, kind: str) -> Callable[[str], Any]:
    if kind == "float":
        return _number
    if kind == "float_seq":
        return lambda cell: [_number(part) for part in cell.split()]
    return str if any(word in name.casefold() for word in _PROSE) else str.split


def _number(cell: str) -> float | str:
    """Whoever needs a number says what is wrong with a text."""
    try:
        return float(cell)
    except ValueError:
        return cell


#: Longer than any record: what cannot be read after as many characters will not be.
_LONGEST = 1 << 28
_SPACE = " \t\r\n"


def json_lines(file: io.TextIOBase, place: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and record of a file with one record per line; empty lines are passed over.

    Raises DraftrecError, with `place` for the file's name, at a line that is no JSON object.
    """
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        yield line, _object(_line(text, place, line), place, line)


def json_values(file: io.TextIOBase, place: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and record of a `.json` file: a list of records, records one after another, or one
    table as `pandas.DataFrame.to_json` writes it (its lines are its rows). Only a table is held in
    memory whole.

    Raises DraftrecError as `json_lines` does, and for an object that is neither record nor table.
    """
    stream = _Stream(file, place)
    if stream.skip("["):
        while not stream.skip("]"):
            line = stream.line
            yield line, _object(stream.value(), place, line)
            if not stream.skip(","):
                stream.expect("]")
                return
        return
    line, first = stream.line, None
    if stream.ended():
        return
    first = _object(stream.value(), place, line)
    if stream.ended():
        yield from enumerate(_rows(first, place), 1)
        return
    yield line, first
    while not stream.ended():
        stream.skip(",")
        line = stream.line
        yield line, _object(stream.value(), place, line)


class _Stream:
    """JSON values one after another, of a text that is read piece by piece."""

    def __init__(self, file: io.TextIOBase, place: str) -> None:
        self._file, self._place = file, place
        self._text, self._at, self._whole = "", 0, False
        self.line = 1

    def skip(self, mark: str) -> bool:
        """Whether `mark` comes next; then it is passed over."""
        found = not self.ended() and self._text[self._at] == mark
        if found:
            self._at += 1
            self._spaces()
        return found

    def expect(self, mark: str) -> None:
        if not self.skip(mark):
            raise self._wrong(f"{mark!r} is missing")

    def ended(self) -> bool:
        """Whether nothing but space is left."""
        self._spaces()
        return self._at >= len(self._text)

    def value(self) -> Any:
        size = _CHUNK
        while True:
            self._spaces()
            try:
                found, end = _DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if self._whole or size > _LONGEST:
                    loose = self._loose()
                    if loose is not None:
                        return loose
                    raise self._wrong(str(error)) from error
                if self._at < len(self._text) and (loose := self._loose()) is not None:
                    return loose
                self._read(size)
                size *= 2
                continue
            self._pass(end)
            return found

    def _loose(self) -> Any:
        """The rest of the line as Python writes a dictionary, or None."""
        end = self._text.find("\n", self._at)
        text = self._text[self._at :] if end < 0 else self._text[self._at : end]
        found = _literal(text)
        if found is not None:
            self._pass(self._at + len(text))
        return found

    def _spaces(self) -> None:
        while True:
            end = self._at
            while end < len(self._text) and self._text[end] in _SPACE:
                end += 1
            self._pass(end)
            if end < len(self._text) or self._whole:
                return
            self._read(_CHUNK)

    def _pass(self, end: int) -> None:
        self.line += self._text.count("\n", self._at, end)
        self._at = end

    def _read(self, size: int) -> None:
        chunk = self._file.read(size)
        self._whole = not chunk
        self._text, self._at = self._text[self._at :] + chunk, 0

    def _wrong(self, reason: str) -> DraftrecError:
        return DraftrecError(
            f"{self._place} line {self.line} is not JSON ({reason}); mend or remove it"
        )


def _line(text: str, place: str, line: int) -> Any:
    try:
        return json.loads(text) if "NaN" not in text else _DECODER.decode(text.strip())
    except (ValueError, RecursionError) as error:
        loose = _literal(text.strip())
        if loose is not None:
            return loose
        raise DraftrecError(
            f"{place} line {line} is not JSON ({error}); mend or remove the line"
        ) from error


def _literal(text: str) -> Any:
    """A dictionary as Python prints it, Python 2 with a u before texts, which older review data
    sets hold; None for anything else."""
    if not text.startswith(("{'", "{u'", '{u"')):
        return None
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _object(value: Any, place: str, line: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DraftrecError(
            f"{place} line {line} is not a JSON object; write one record per line, or a list of "
            "records"
        )
    return cast("dict[str, Any]", value)


def _rows(whole: dict[str, Any], place: str) -> list[dict[str, Any]]:
    """The rows of a file that is one object: a table in one of its forms, or a single record."""
    names, data = whole.get("columns"), whole.get("data")
    if isinstance(data, list) and isinstance(names, list):  # orient="split"
        return [dict(zip(map(str, names), row, strict=True)) for row in data]
    cells = list(whole.values())
    only = cells[0] if len(cells) == 1 else data  # orient="table", and what many services answer
    if isinstance(only, list) and only and all(isinstance(row, dict) for row in only):
        return only
    if cells and all(isinstance(column, dict) for column in cells):
        return _by_column(whole, place)
    lengths = {len(column) if isinstance(column, list) else -1 for column in cells}
    if len(cells) > 1 and len(lengths) == 1 and -1 not in lengths:
        return [dict(zip(whole, row, strict=True)) for row in zip(*cells, strict=True)]
    return [whole]


def _by_column(whole: Mapping[str, Mapping[str, Any]], place: str) -> list[dict[str, Any]]:
    """Column -> row number -> cell, as pandas writes a table unasked."""
    numbers = list(dict.fromkeys(key for column in whole.values() for key in column))
    if not all(key.isdecimal() for key in numbers) or all(key.isdecimal() for key in whole):
        raise DraftrecError(
            f"{place} holds one object of objects; write a list of records, each with its id in a "
            "field of its own (in pandas: to_json(path, orient='records'))"
        )
    return [{name: column.get(key) for name, column in whole.items()} for key in numbers]


def _constant(name: str) -> float | None:
    """What is no number is missing, as pandas means it; infinity stays."""
    return None if name == "NaN" else float(name.replace("Infinity", "inf"))


_DECODER = json.JSONDecoder(parse_constant=_constant)
