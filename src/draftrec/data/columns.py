"""Which column of a file holds what: named by the user, called as usual, or by a known synonym."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from draftrec.data.readers import RecordSource
from draftrec.errors import DraftrecError

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
    "businessid", "poiid", "isbn", "goodsid", "videoid", "gameid",
)  # fmt: skip

USER = ColumnKind("user_id", "--user-column", _USER)
ITEM = ColumnKind("item_id", "--item-column", _ITEM)
RATING = ColumnKind(
    "rating", "--rating-column", ("rating", "ratings", "stars", "overall", "rate", "score")
)
TIME = ColumnKind(
    "timestamp",
    "--time-column",
    ("timestamp", "timestamps", "time", "ts", "datetime", "date", "unixtime", "unixreviewtime",
     "eventtime", "createdat", "ratedat"),
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
