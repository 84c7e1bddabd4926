"""JSON as it is found: a record per line, a list of records, or what pandas makes of a table."""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from draftrec.errors import DraftrecError

_CHUNK = 1 << 16
#: Longer than any record: what cannot be read after as many characters will not be.
_LONGEST = 1 << 28
_SPACE = " \t\r\n"


def read_lines(file: io.TextIOBase, place: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and record of a file with one record per line; empty lines are passed over.

    Raises DraftrecError, with `place` for the file's name, at a line that is no JSON object.
    """
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        yield line, _object(_line(text, place, line), place, line)


def read_values(file: io.TextIOBase, place: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and record of a `.json` file: a list of records, records one after another, or one
    table as `pandas.DataFrame.to_json` writes it (its lines are its rows). Only a table is held in
    memory whole.

    Raises DraftrecError as `read_lines` does, and for an object that is neither record nor table.
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
    """A dictionary as Python prints it, which older review data sets hold; None for anything
    else."""
    if not text.startswith("{'"):
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
