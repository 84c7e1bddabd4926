"""Item histories of users, and the semantic ids of items: readers and writers."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, field
from string import ascii_lowercase
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from draftrec.core import BoolArray, IntArray, LongArray
from draftrec.data.files.places import Place, arrow_path, place
from draftrec.data.files.writers import replace_file, replace_parquet
from draftrec.data.tables.columns import (
    ITEM,
    ITEMS,
    PART,
    SID,
    USER,
    arrow_ids,
    candidates,
    cell_id,
    cell_ids,
    column_ids,
    need_columns,
    spelt_list,
    words_of,
)
from draftrec.data.tables.readers import RecordSource, Row, open_records, whole_json
from draftrec.errors import DraftrecError
from draftrec.items.ids import Id, Ids, as_text, ids_array, is_text, joined_ids, plain
from draftrec.items.semantic_ids import SemanticIds
from draftrec.items.side_by_side import Share

_LOG = logging.getLogger("draftrec")
PARTS = ("train", "valid", "test")
#: Stands for everything that is known of a user: nothing is held back as a target.
ALL = "all"
_SEQUENCES = "sequences have the columns user, items and part"
_MAKE = (
    "this looks like interactions: make sequences of them with `draftrec sequences`, or name the "
    "column of the lists with --items-column"
)
_KINDS = (".parquet", ".jsonl")
_BATCH_ROWS = 65_536
#: Where Parquet keeps what semantic ids were made of.
_SHARES = b"draftrec.vectors"


@dataclass(frozen=True, slots=True)
class SequenceColumns:
    """Names of the columns of sequences (`user`, `items`, `part`) and of semantic ids (`item`,
    `sid`); None: the usual one, or a synonym that `columns` knows."""

    user: str | None = None
    items: str | None = None
    part: str | None = None
    item: str | None = None
    sid: str | None = None


USUAL = SequenceColumns()


@dataclass(frozen=True, eq=False, slots=True)
class UserSequence:
    """What a user took, in order: `items` `[h]` of one part (train, valid or test), int64 or texts
    (see `items.ids`)."""

    user: Id
    items: Ids
    part: str


@dataclass(frozen=True, eq=False, slots=True)
class History:
    """What is known of a user, `items` `[h]`, and what came next, `targets` `[t]`, ids as they are
    in the file: int64, or texts if any item of the file is one."""

    user: Id
    items: Ids
    targets: Ids


def read_sequences(
    location: str | Place, part: str | None, limit: int | None, columns: SequenceColumns = USUAL
) -> Iterator[UserSequence]:
    """The rows of one part, or of all, in file order, at most `limit` of them, one at a time.

    Raises DraftrecError, when the iterator is first asked, for a missing column, and at an
    unusable row.
    """
    _check_part(part)
    source = open_records(location)
    names = _columns(source, columns)
    typed = source.typed
    taken = 0
    for row in source.rows(names):
        if limit is not None and taken >= limit:
            return
        found = _part(row, names[2])
        if part in (None, found):
            taken += 1
            user = cell_id(row, names[0], typed=typed)
            yield UserSequence(user, cell_ids(row, names[1], typed=typed), found)


def two_rows(location: str | Place, row: UserSequence) -> DraftrecError:
    """What to raise for a second row of a user's part: which of them counts, nobody can know."""
    return DraftrecError(
        f"{location}: user {row.user} has two rows of part {row.part!r}; join them"
    )


def read_histories(
    location: str | Place, part: str, max_items: int | None, columns: SequenceColumns = USUAL
) -> list[History]:
    """What `part` asks to predict, for every user who has something to predict.

    test: from train and valid items, the test items; valid: from train items, the valid items;
    train: the last train item from those before it; all: nothing, from everything, for every user
    of the file. Only the `max_items` most recent items are
    kept of a history (all for None), targets always whole. Users come in the order of their first
    rows. Raises DraftrecError as `read_sequences` does, for a user with two rows of one part, and
    when nobody has anything to predict.
    """
    found = [h for h in _everyones(location, part, max_items, columns)
             if part == ALL or len(h.targets)]  # fmt: skip
    if not found:
        raise DraftrecError(f"{location} holds no items of part {part!r}; choose another part")
    return found


def read_known(location: str | Place, part: str, columns: SequenceColumns = USUAL) -> Iterator[Ids]:
    """The items of every user that are known when `part` is to be predicted, oldest first: all
    that `read_histories` has as histories, whole, of users with nothing to predict too.

    Raises DraftrecError as `read_sequences` does, and for a user with two rows of one part.
    """
    return (history.items for history in _everyones(location, part, None, columns))


def _everyones(
    location: str | Place, part: str, max_items: int | None, columns: SequenceColumns
) -> list[History]:
    """As `read_histories`, of users with nothing to predict too."""
    if part != ALL:
        _check_part(part)
    users: dict[Id, _User] = {}
    before = PARTS if part == ALL else PARTS[: PARTS.index(part)]
    spelt = [False, False]  # are any users, any items texts?
    for row in read_sequences(location, None, None, columns):
        user = users.setdefault(plain(row.user), _User())
        spelt = [spelt[0] or isinstance(row.user, str), spelt[1] or is_text(row.items)]
        if row.part in user.seen:
            raise two_rows(location, row)
        user.seen.append(row.part)
        if row.part == part:
            user.targets = row.items
        elif row.part in before:
            # A copy of the end, so that the rest of a long history is not held.
            user.before[row.part] = _recent(row.items, max_items).copy()
    histories = (_history(name, user, part, max_items) for name, user in users.items())
    return [_typed(history, *spelt) for history in histories]


@dataclass(slots=True)
class LeftOut:
    """Items of users' histories that have no semantic id: `items` of them, of `users`, such as
    `example`. `kept`: items that have one."""

    items: int = 0
    users: set[Id] = field(default_factory=set[Id])
    example: str = ""
    kept: int = 0

    def known(self, user: Id, items: Ids, places: LongArray) -> BoolArray:
        """bool `[h]`: which of a user's `items` have a place, int64 `[h]`; the others are noted."""
        known = places >= 0
        self.kept += int(known.sum())
        if not known.all():
            self.items += int((~known).sum())
            self.users.add(plain(user))
            self.example = self.example or f"item {items[~known][0]} of user {user}"
        return known

    def tell(self) -> None:
        """Warn of what was left out. Raises DraftrecError where nothing is left."""
        if self.items and not self.kept:
            raise DraftrecError(
                f"no item of any history has a semantic id, such as {self.example}; give the "
                "semantic ids of this catalogue"
            )
        if self.items:
            _LOG.warning(
                "%s items in the histories of %s users have no semantic id and are left out, such "
                "as %s",
                f"{self.items:,}",
                f"{len(self.users):,}",
                self.example,
            )


def usual_part(location: str | Place, columns: SequenceColumns = USUAL) -> str:
    """What to recommend for: the part test, or all where nobody has anything to predict there.

    Raises DraftrecError as `read_sequences` does.
    """
    tested = any(len(row.items) for row in read_sequences(location, "test", None, columns))
    return "test" if tested else ALL


def read_semantic_ids(location: str | Place, columns: SequenceColumns = USUAL) -> SemanticIds:
    """The semantic ids of a catalogue: rows of `item` and `sid`, a list of tokens or of integer
    codes (code 12 of the first level becomes `<a_12>`, of the second `<b_12>`) or a text of them
    (`<a_1><b_2>`, `1 2`, `1-2`), or LC-Rec's `index.json`: one object of `"item": [tokens]`.

    Raises DraftrecError for a missing column, unusable rows and whatever `SemanticIds` refuses.
    """
    source = open_records(location)
    one = source.files[0] if source.kind == "json" and len(source.files) == 1 else None
    if one is not None and (index := _index(one)) is not None:
        return index
    wanted = [(ITEM.called("item"), columns.item), (SID, columns.sid)]
    item, name = need_columns(source, wanted, "semantic ids have the columns item and sid")
    if source.kind == "parquet" and (found := _by_column(source, item, name)) is not None:
        return found
    items: list[Id] = []
    known: dict[str, int] = {}
    codes: list[IntArray] = []
    for row in source.rows([item, name]):
        items.append(cell_id(row, item, typed=source.typed))
        sid = _texts(row, name)
        if codes and len(sid) != len(codes[0]):
            raise DraftrecError(
                f"{row.file} line {row.line}: the semantic id has {len(sid)} tokens, those before "
                f"have {len(codes[0])}; give all items equally many"
            )
        codes.append(np.array([known.setdefault(t, len(known)) for t in sid], np.int32))
    return SemanticIds.from_codes(ids_array(items), np.stack(codes), list(known))


def read_items(location: str | Place, columns: SequenceColumns = USUAL) -> Ids:
    """The items of a file, one in a row: of its only column, or of that called `item`, a synonym of
    it or what `columns` says.

    Raises DraftrecError for a missing column and a cell that is no id.
    """
    source = open_records(location)
    names = source.columns()
    named = columns.item if columns.item in names else None
    what = "a list of items has one column, or one called item"
    name = names[0] if len(names) == 1 else need_columns(source, [(ITEM, named)], what)[0]
    return ids_array(cell_id(row, name, typed=source.typed) for row in source.rows([name]))


def check_semantic_ids_file(path: Place) -> None:
    """Raise DraftrecError for a name that `write_semantic_ids` would refuse."""
    if path.suffix not in _KINDS:
        raise DraftrecError(f"the semantic ids file {path} must end in {' or '.join(_KINDS)}")


def write_semantic_ids(path: Place, sids: SemanticIds, shares: Seq[Share] = ()) -> None:
    """Write `item, sid` as Parquet or JSONL, by the file's ending; it appears when it is complete.
    Parquet keeps the `shares` of vectors of several kinds that they were made of: `read_shares`.

    Raises DraftrecError for another ending.
    """
    check_semantic_ids_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        table = _table(sids)
        if shares:
            kept = json.dumps([asdict(share) for share in shares])
            table = table.replace_schema_metadata({_SHARES: kept})
        replace_parquet(path, table)
        return
    lines: list[str] = []
    for item, codes in zip(sids.given.tolist(), sids.codes.tolist(), strict=True):
        row = {"item": item, "sid": [sids.tokens[code] for code in codes]}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    replace_file(path, "".join(lines).encode())


def read_shares(location: str | Place) -> tuple[Share, ...]:
    """The kinds of vectors that semantic ids were made of, in order, where that is known, as it is
    of Parquet that `write_semantic_ids` wrote with them.

    Raises DraftrecError where that cannot be read.
    """
    where = place(location)
    if where.suffix != ".parquet" or where.is_dir():
        return ()
    with pq.ParquetFile(arrow_path(where)) as file:
        kept = (file.schema_arrow.metadata or {}).get(_SHARES)
    if kept is None:
        return ()
    try:
        return tuple(Share(int(it["dim"]), float(it["weight"])) for it in json.loads(kept))
    except (ValueError, TypeError, KeyError):
        raise DraftrecError(
            f"{location}: what is kept of the vectors that its ids were made of is damaged; make "
            "the ids anew with `draftrec sid fit`"
        ) from None


@dataclass(slots=True)
class _User:
    """What was read of one user so far."""

    seen: list[str] = field(default_factory=list[str])
    before: dict[str, Ids] = field(default_factory=dict[str, Ids])
    targets: Ids = field(default_factory=lambda: np.empty(0, np.int64))


def _history(name: Id, user: _User, part: str, most: int | None) -> History:
    if part == "train":
        return History(name, _recent(user.targets[:-1], most), user.targets[-1:])
    known = joined_ids(user.before[name] for name in PARTS if name in user.before)
    return History(name, _recent(known, most), user.targets)


def _typed(history: History, users: bool, items: bool) -> History:  # noqa: FBT001
    """The same with `users`, `items` as texts where others of the file are."""
    user = str(history.user) if users else history.user
    if not items:
        return History(user, history.items, history.targets)
    return History(user, as_text(history.items), as_text(history.targets))


def _recent(items: Ids, most: int | None) -> Ids:
    return items if most is None else items[max(0, len(items) - most) :]


def _columns(source: RecordSource, columns: SequenceColumns) -> list[str]:
    """The names of user, items and part."""
    lists = columns.items or candidates(source, ITEMS)
    mend = _MAKE if not lists and candidates(source, ITEM) else _SEQUENCES
    wanted = [
        (USER.called("user"), columns.user), (ITEMS, columns.items), (PART, columns.part)
    ]  # fmt: skip
    return need_columns(source, wanted, mend)


def _index(path: Place) -> SemanticIds | None:
    """LC-Rec's form: one object with a list of tokens for every item; None for other JSON."""
    try:
        content = whole_json(path)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not content:
        return None
    joined = all(isinstance(sid, str) and _JOINED.fullmatch(sid) for sid in content.values())
    if not joined and not all(isinstance(sid, list) for sid in content.values()):
        return None
    if any(isinstance(token, list | dict) for sid in content.values() for token in sid):
        return None  # columns of a table
    rows = [Row({"sid": sid}, f"{path.name}, item {item!r},", 1) for item, sid in content.items()]
    return SemanticIds.of([plain(item) for item in content], [_texts(row, "sid") for row in rows])


def _by_column(source: RecordSource, name: str, sid_name: str) -> SemanticIds | None:
    """Semantic ids of Parquet files without a Python object per row, for catalogues of millions;
    None at anything unusual, which reading row by row can name."""
    items: list[Ids] = []
    codes: list[IntArray] = []
    known: dict[str, int] = {}
    for path in source.files:
        with pq.ParquetFile(arrow_path(path)) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=[name, sid_name]):
                levels = codes[0].shape[1] if codes else None
                coded = _codes(batch.column(sid_name), levels, known)
                found = column_ids(batch.column(name))
                if coded is None or found is None:
                    return None
                items.append(found)
                codes.append(coded)
    return SemanticIds.from_codes(joined_ids(items), np.concatenate(codes), list(known))


def _codes(column: Any, levels: int | None, known: dict[str, int]) -> IntArray | None:
    """int32 `[rows, L]`, numbers of tokens in `known`, which grows; None for what is no list of
    `levels` texts (as many as the first has, if None)."""
    kind = column.type
    if column.null_count or not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return None
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    levels = int(lengths[0]) if levels is None else levels
    flat = column.flatten()
    if not levels or (lengths != levels).any() or flat.null_count:
        return None
    if not (pa.types.is_string(flat.type) or pa.types.is_large_string(flat.type)):
        return None
    coded = flat.dictionary_encode()
    numbers = [known.setdefault(token, len(known)) for token in coded.dictionary.to_pylist()]
    places = coded.indices.to_numpy(zero_copy_only=False)
    return np.array(numbers, np.int32)[places].reshape(-1, levels)


def _table(sids: SemanticIds) -> pa.Table:
    n, levels = sids.codes.shape
    # Through a dictionary, so that ten million items need no Python object each.
    flat = pa.DictionaryArray.from_arrays(sids.codes.ravel(), pa.array(sids.tokens, pa.string()))
    offsets = np.arange(n + 1, dtype=np.int64) * levels
    return pa.table(
        {
            "item": arrow_ids(sids.given),
            "sid": pa.LargeListArray.from_arrays(offsets, flat.cast(pa.string())),
        }
    )


def _check_part(part: str | None) -> None:
    if part is not None and part not in PARTS:
        raise DraftrecError(f"there is no part {part!r}; choose one of {', '.join(PARTS)}")


def _part(row: Row, column: str) -> str:
    part = row.values.get(column)
    if part not in PARTS:
        raise DraftrecError(
            f"{row.file} line {row.line}: {column} is {part!r}, not one of {', '.join(PARTS)}; "
            "mend or remove the row"
        )
    return part


#: Ids of several levels in one word: `<a_12><b_3>`, and codes as `12-3`.
_JOINED = re.compile(r"(?:<[^<>\s]+>){2,}")
_JOINED_CODES = re.compile(r"\d+(?:[-_]\d+)+", re.ASCII)


def _spelt(text: str) -> list[Any] | None:
    """The list that a text spells, or its words; whole codes where it has nothing else. None where
    it is a shortened list."""
    text = text.strip()
    if _JOINED.fullmatch(text):
        return re.findall(r"<[^<>]+>", text)
    if _JOINED_CODES.fullmatch(text):
        return [int(code) for code in re.split("[-_]", text)]
    found = spelt_list(text)
    words = words_of(text) if found is None else found
    whole = all(isinstance(w, str) and w.isascii() and w.isdigit() for w in words or ())
    if words and whole and not ("'" in text or '"' in text):
        return [int(word) for word in words]
    return words if found is not None or words is None else text.split()


def _texts(row: Row, column: str) -> list[str]:
    """The tokens of a semantic id, from tokens or codes; a text is read as a list of them."""
    sid = row.values.get(column)
    values = _spelt(sid) if isinstance(sid, str) else sid
    tokens: list[Any] = values if isinstance(values, list) else []
    if tokens and all(isinstance(t, int) and not isinstance(t, bool) for t in tokens):
        if len(tokens) <= len(ascii_lowercase) and min(tokens) >= 0:
            marks = ascii_lowercase[: len(tokens)]
            return [f"<{mark}_{code}>" for mark, code in zip(marks, tokens, strict=True)]
        tokens = []
    if not tokens or not all(isinstance(t, str) and t for t in tokens):
        raise DraftrecError(
            f"{row.file} line {row.line}: {column} is no list of tokens (or of whole codes from 0, "
            f"at most {len(ascii_lowercase)}); mend or remove the row"
        )
    return tokens
