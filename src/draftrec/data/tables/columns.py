"""Which column of a file holds what: named by the user, called as usual, or by a known synonym; ids
of items and users between Arrow columns, cells of a row, and arrays; and whether files that are
joined by them speak of the same ones, said before the work."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import numpy as np
import pyarrow as pa

from draftrec.core import BoolArray
from draftrec.data.tables.readers import RecordSource, Row
from draftrec.data.tables.values import (
    NO_WORDS,
    NUMPY_NUMBER,
    as_list,
    holds_texts,
    holds_uuids,
    holds_whole_numbers,
)
from draftrec.errors import DraftrecError
from draftrec.items.ids import Id, Ids, ids_array, is_text, plain
from draftrec.knobs import encodable

_LOG = logging.getLogger("draftrec")
_SAID: set[tuple[str, str, str]] = set()


@dataclass(frozen=True, slots=True)
class ColumnKind:
    """What a column holds: its usual name, the option that names another, and what else people
    call it, in lower case and without anything but letters and digits."""

    usual: str
    option: str
    synonyms: tuple[str, ...]

    def called(self, usual: str, option: str = "") -> ColumnKind:
        """The same under another usual name, and named by another option."""
        return ColumnKind(usual, option or self.option, self.synonyms)


_USER = (
    "user", "userid", "uid", "useridx", "customer", "customerid", "memberid", "visitorid",
    "reviewerid", "accountid", "clientid", "sessionid",
)  # fmt: skip
_ITEM = (
    "item", "itemid", "iid", "itemidx", "movie", "movieid", "product", "productid", "asin",
    "parentasin", "sku", "book", "bookid", "song", "songid", "trackid", "articleid", "newsid",
    "businessid", "poiid", "isbn", "goodsid", "videoid", "gameid", "appid", "animeid", "artistid",
    "gmapid", "placeid", "recipeid", "venueid",
)  # fmt: skip

USER = ColumnKind("user_id", "--user-column", _USER)
ITEM = ColumnKind("item_id", "--item-column", _ITEM)
RATING = ColumnKind(
    "rating",
    "--rating-column",
    ("rating", "ratings", "stars", "overall", "rate", "score", "bookrating"),
)
TIME = ColumnKind(
    "timestamp",
    "--time-column",
    ("timestamp", "timestamps", "time", "ts", "datetime", "date", "unixtime", "unixreviewtime",
     "eventtime", "eventdate", "createdat", "ratedat", "playedat", "dateadded", "timems", "tdat"),
)  # fmt: skip
ITEMS = ColumnKind(
    "items",
    "--items-column",
    ("items", "itemids", "itemidlist", "itemlist", "itemseq", "itemsequence", "history",
     "sequence"),
)  # fmt: skip
PART = ColumnKind("part", "--part-column", ("part", "split", "subset"))
SID = ColumnKind(
    "sid", "--sid-column", ("sid", "sids", "semanticid", "semanticids", "codes", "code")
)
VECTOR = ColumnKind(
    "vector", "--vector-column", ("vector", "vectors", "embedding", "embeddings", "emb")
)
TEXT = ColumnKind(
    "text", "--text-column", ("text", "texts", "generatedtext", "output", "response", "answer")
)
ENTITY = ColumnKind("entity_id", "--id-column", ("entity", "entityid", "id", *_USER, *_ITEM))


INTERACTIONS = "interactions have the columns user_id and item_id"


def find_column(source: RecordSource, kind: ColumnKind, named: str | None = None) -> str | None:
    """The column of this kind that every file has: `named`, else the usual one, else the only
    synonym, which is said in the log; None where there is none.

    Raises DraftrecError for a named column that is missing, and for several synonyms.
    """
    mend = f"name the column with {kind.option}"
    if named is not None:
        source.require([named], mend)
        return named
    if kind.usual in source.columns():
        return kind.usual
    close = candidates(source, kind)
    if len(close) > 1:
        raise DraftrecError(
            f"{source.files[0]} has no column {kind.usual!r}, and {' and '.join(map(repr, close))} "
            f"could both be meant; {mend}"
        )
    if not close:
        return None
    key = (str(source.files[0]), kind.usual, close[0])
    if key not in _SAID:
        _SAID.add(key)
        _LOG.info("%s: column %r is read as %s", key[0], close[0], kind.usual)
    return close[0]


def candidates(source: RecordSource, kind: ColumnKind) -> list[str]:
    """All columns that could be meant."""
    known = (*kind.synonyms, _bare(kind.usual))
    return [name for name in source.columns() if _bare(name) in known]


def need_columns(
    source: RecordSource, wanted: Seq[tuple[ColumnKind, str | None]], what: str
) -> list[str]:
    """`find_column` of every kind, with the name that was given. `what`: what such a file holds.

    Raises DraftrecError, naming the columns there are and the options, where one is missing.
    """
    found = [find_column(source, kind, named) for kind, named in wanted]
    missing = [kind for (kind, _), name in zip(wanted, found, strict=True) if name is None]
    if missing:
        options = " and ".join(dict.fromkeys(kind.option for kind in missing))
        usual = [kind.usual for kind in missing]
        source.require(usual, f"{what}; name other columns with {options}")
        # Every file has it, or has none at all: a file without rows says nothing of its columns.
        return [name or kind.usual for (kind, _), name in zip(wanted, found, strict=True)]
    return [name for name in found if name is not None]


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def arrow_type(*, text: bool) -> pa.DataType:
    """The type of a column of ids."""
    return pa.string() if text else pa.int64()


def arrow_ids(ids: Ids) -> pa.Array:
    """Ids as an Arrow column, in their own type."""
    return pa.array(ids.tolist(), pa.string()) if is_text(ids) else pa.array(ids, pa.int64())


def column_ids(column: Any) -> Ids | None:
    """Ids of an Arrow column; None for one that holds nulls, empty texts or anything but whole
    numbers of 64 bits, texts and UUIDs."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if column.null_count:
        return None
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        try:
            column = column.cast(pa.string())
        except pa.ArrowInvalid:
            return None
        kind = column.type
    if holds_uuids(kind):
        return ids_array([str(value) for value in column.to_pylist()])
    if pa.types.is_integer(kind) or holds_whole_numbers(kind):
        try:
            return column.cast(pa.int64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            return None
    if holds_texts(kind):
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
    raise DraftrecError(
        f"{row.file} line {row.line}: {column} is {value!r}, not a whole number or a text"
        f"{float_hint(value)}; mend or remove the row"
    )


def float_hint(value: Any) -> str:
    """Where whole numbers come from that are written as 12.0."""
    if not (isinstance(value, float) and value.is_integer()):
        return ""
    return " (pandas turns whole numbers into these where one is missing: use Int64)"


def cell_ids(row: Row, column: str, *, typed: bool) -> Ids:
    """The list of ids `[h]` in a cell. A text is read as a list too: `3 1 2`, `3,1,2`, `[3, 1, 2]`
    or `["a", "b"]`; its parts are then typed as those of CSV.

    Raises DraftrecError for anything else.
    """
    given = values = row.values.get(column)
    if isinstance(values, str):
        listed, typed = spelt_list(values), False
        if listed is None and (words := words_of(values)) is not None:
            listed = [word.strip("'\"") for word in words]
        values = listed
    found = None
    if isinstance(values, Iterable) and not isinstance(values, dict | bytes):
        found = _array(list(values), typed=typed)
    elif given is None and not typed:
        found = np.empty(0, np.int64)  # an empty cell of CSV is an empty list
    if found is None:
        hint = " (what wrote it has left some out: ...)" if "..." in str(given) else ""
        raise DraftrecError(
            f"{row.file} line {row.line}: {column} is no list of whole numbers or texts{hint}; "
            "mend or remove the row"
        )
    return found


_QUOTE = re.compile("[\"']")
_ENCLOSED = re.compile(r"\s*(?:\[[^\[\]]*\]|\([^()]*\)|\{[^{}]*\})\s*")


def spelt_list(text: str) -> list[Any] | None:
    """The list that a text in brackets spells in JSON or as Python, NumPy or pandas print it, as a
    tuple too; its words where they are in no quotes. None if it spells none, or a shortened one."""
    text = text.strip()
    if text[:1] + text[-1:] == "()":
        text = f"[{text[1:-1]}]"
    if text[:1] + text[-1:] != "[]":
        return None
    if _QUOTE.search(text):
        return as_list(text)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        words = words_of(NUMPY_NUMBER.sub(r"\1", text[1:-1]))
        return words and [None if word in NO_WORDS else word for word in words]
    return found if isinstance(found, list) else None


def words_of(text: str) -> list[str] | None:
    """What stands between spaces and commas; None for what something has shortened with `...`, and
    for what still has brackets around it."""
    words = text.replace(",", " ").split()
    return None if "..." in words or (len(words) > 1 and _ENCLOSED.fullmatch(text)) else words


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
        return bool(value) and encodable(value)
    return isinstance(value, int) and not isinstance(value, bool)


_AS_FLOAT = re.compile(r"[+-]?\d+\.0+")


class KnownIds(Protocol):
    """Ids that a file has: `name` of the file, one of them as an `example`."""

    @property
    def name(self) -> str: ...
    @property
    def example(self) -> str: ...
    def knows(self, ids: list[str]) -> BoolArray:
        """Which of `ids` it has."""
        ...


@dataclass(slots=True)
class Join:
    """Counts which `things` (plural, as in "entities") of the file `left` are in the file `right`,
    where an id looks like `example`."""

    things: str
    left: str
    right: str
    example: str = ""
    total: int = 0
    found: int = 0
    missing: str = ""

    def saw(self, entity_id: str, *, known: bool) -> None:
        """One more id of the left file."""
        self.total += 1
        self.found += known
        if not known and not self.missing:
            self.missing = entity_id

    def saw_all(self, ids: list[str], known: BoolArray) -> None:
        """As `saw`, for many."""
        self.total += len(ids)
        self.found += int(known.sum())
        if not self.missing and not known.all():
            self.missing = ids[int(known.argmin())]

    def check(self, *, refuse: bool = True) -> None:
        """Warn, with counts, where most ids are not in the other file.

        Raises DraftrecError where none is; without `refuse` that is a warning too.
        """
        if 2 * self.found >= self.total:
            return
        if not self.found and refuse:
            raise DraftrecError(
                f"none of the {self.total:,} {self.things} of {self.left} is in {self.right}; "
                f"{self._compared()}"
            )
        _LOG.warning(
            "%s of the %s %s of %s are not in %s; %s",
            f"{self.total - self.found:,}", f"{self.total:,}", self.things, self.left, self.right,
            self._compared(),
        )  # fmt: skip

    def _compared(self) -> str:
        """What to look at: an id of either side, and how they seem to differ."""
        words = f"ids are compared as texts, such as {self.missing!r} of {self.left}"
        if self.example:
            words += f" and {self.example!r} of {self.right}"
        sides = (self.missing, self.example)
        if len({_AS_FLOAT.fullmatch(side) is None for side in sides if side}) == 2:
            return words + " (whole numbers written with .0); write both as whole numbers"
        if len({side.isascii() and side.isdecimal() for side in sides if side}) == 2:
            return words + "; write them alike"
        return words
