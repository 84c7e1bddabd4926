"""Item histories of users, and the semantic ids of items: readers and writers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from draftrec.data.arrow_path import arrow_path
from draftrec.data.places import Place
from draftrec.data.readers import RecordSource, Row, open_records
from draftrec.data.writers import replace_file, replace_parquet
from draftrec.errors import DraftrecError
from draftrec.tokens.semantic_ids import SemanticIds

Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]

PARTS = ("train", "valid", "test")
_SEQUENCES = "sequences have the columns user, items and part"
_KINDS = (".parquet", ".jsonl")
_BATCH_ROWS = 65_536


@dataclass(frozen=True, eq=False, slots=True)
class UserSequence:
    """What a user took, in order: `items` int64 `[h]` of one part (train, valid or test)."""

    user: int
    items: Int64Array
    part: str


@dataclass(frozen=True, eq=False, slots=True)
class History:
    """What is known of a user, `items` int64 `[h]`, and what came next, `targets` int64 `[t]`."""

    user: int
    items: Int64Array
    targets: Int64Array


def read_sequences(
    location: str | Place, part: str | None, limit: int | None
) -> Iterator[UserSequence]:
    """The rows of one part, or of all, in file order, at most `limit` of them, one at a time.

    Raises DraftrecError, when the iterator is first asked, for a missing column, and at an
    unusable row.
    """
    _check_part(part)
    source = open_records(location)
    columns = ["user", "items", "part"]
    source.require(columns, _SEQUENCES)
    taken = 0
    for row in source.rows(columns):
        if limit is not None and taken >= limit:
            return
        found = _part(row)
        if part in (None, found):
            taken += 1
            yield UserSequence(_whole(row, "user"), _items(row), found)


def read_histories(location: str | Place, part: str, max_items: int | None) -> list[History]:
    """What `part` asks to predict, for every user who has something to predict.

    test: from train and valid items, the test items; valid: from train items, the valid items;
    train: the last train item from those before it. Only the `max_items` most recent items are
    kept of a history (all for None), targets always whole. Users come in the order of their first
    rows. Raises DraftrecError as `read_sequences` does, for a user with two rows of one part, and
    when nobody has anything to predict.
    """
    _check_part(part)
    users: dict[int, _User] = {}
    before = PARTS[: PARTS.index(part)]
    for row in read_sequences(location, None, None):
        user = users.setdefault(row.user, _User())
        if row.part in user.seen:
            raise DraftrecError(
                f"{location}: user {row.user} has two rows of part {row.part!r}; join them"
            )
        user.seen.append(row.part)
        if row.part == part:
            user.targets = row.items
        elif row.part in before:
            # A copy of the end, so that the rest of a long history is not held.
            user.before[row.part] = _recent(row.items, max_items).copy()
    histories = [_history(number, user, part, max_items) for number, user in users.items()]
    found = [history for history in histories if len(history.targets)]
    if not found:
        raise DraftrecError(f"{location} holds no items of part {part!r}; choose another part")
    return found


def read_semantic_ids(location: str | Place) -> SemanticIds:
    """The semantic ids of a catalogue: rows of `item` and `sid`, a list of tokens.

    Raises DraftrecError for a missing column, unusable rows and whatever `SemanticIds` refuses.
    """
    source = open_records(location)
    source.require(["item", "sid"], "semantic ids have the columns item and sid")
    if source.kind == "parquet" and (found := _by_column(source)) is not None:
        return found
    items: list[int] = []
    known: dict[str, int] = {}
    codes: list[Int32Array] = []
    for row in source.rows(["item", "sid"]):
        items.append(_whole(row, "item"))
        sid = _texts(row)
        if codes and len(sid) != len(codes[0]):
            raise DraftrecError(
                f"{row.file} line {row.line}: the semantic id has {len(sid)} tokens, those before "
                f"have {len(codes[0])}; give all items equally many"
            )
        codes.append(np.array([known.setdefault(t, len(known)) for t in sid], np.int32))
    return SemanticIds.from_codes(np.array(items, np.int64), np.stack(codes), list(known))


def check_semantic_ids_file(path: Place) -> None:
    """Raise DraftrecError for a name that `write_semantic_ids` would refuse."""
    if path.suffix not in _KINDS:
        raise DraftrecError(f"the semantic ids file {path} must end in {' or '.join(_KINDS)}")


def write_semantic_ids(path: Place, sids: SemanticIds) -> None:
    """Write `item, sid` as Parquet or JSONL, by the file's ending; it appears when it is complete.

    Raises DraftrecError for another ending.
    """
    check_semantic_ids_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        replace_parquet(path, _table(sids))
        return
    lines: list[str] = []
    for item, codes in zip(sids.items.tolist(), sids.codes.tolist(), strict=True):
        row = {"item": item, "sid": [sids.tokens[code] for code in codes]}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    replace_file(path, "".join(lines).encode())


@dataclass(slots=True)
class _User:
    """What was read of one user so far."""

    seen: list[str] = field(default_factory=list[str])
    before: dict[str, Int64Array] = field(default_factory=dict[str, Int64Array])
    targets: Int64Array = field(default_factory=lambda: np.empty(0, np.int64))


def _history(number: int, user: _User, part: str, most: int | None) -> History:
    if part == "train":
        return History(number, _recent(user.targets[:-1], most), user.targets[-1:])
    pieces = [user.before[name] for name in PARTS if name in user.before]
    known = np.concatenate([np.empty(0, np.int64), *pieces])
    return History(number, _recent(known, most), user.targets)


def _recent(items: Int64Array, most: int | None) -> Int64Array:
    return items if most is None else items[max(0, len(items) - most) :]


def _by_column(source: RecordSource) -> SemanticIds | None:
    """Semantic ids of Parquet files without a Python object per row, for catalogues of millions;
    None at anything unusual, which reading row by row can name."""
    items: list[Int64Array] = []
    codes: list[Int32Array] = []
    known: dict[str, int] = {}
    for path in source.files:
        with pq.ParquetFile(arrow_path(path)) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=["item", "sid"]):
                item, sid = batch.column("item"), batch.column("sid")
                levels = codes[0].shape[1] if codes else None
                coded = _codes(sid, levels, known)
                if coded is None or item.null_count or not pa.types.is_integer(item.type):
                    return None
                items.append(item.to_numpy(zero_copy_only=False).astype(np.int64))
                codes.append(coded)
    return SemanticIds.from_codes(np.concatenate(items), np.concatenate(codes), list(known))


def _codes(column: Any, levels: int | None, known: dict[str, int]) -> Int32Array | None:
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
            "item": pa.array(sids.items, pa.int64()),
            "sid": pa.LargeListArray.from_arrays(offsets, flat.cast(pa.string())),
        }
    )


def _check_part(part: str | None) -> None:
    if part is not None and part not in PARTS:
        raise DraftrecError(f"there is no part {part!r}; choose one of {', '.join(PARTS)}")


def _part(row: Row) -> str:
    part = row.values.get("part")
    if part not in PARTS:
        raise DraftrecError(
            f"{row.file} line {row.line}: part is {part!r}, not one of {', '.join(PARTS)}; mend or "
            "remove the row"
        )
    return part


def _whole(row: Row, column: str) -> int:
    """A whole number; CSV holds them as text."""
    value = row.values.get(column)
    try:
        if isinstance(value, int | str) and not isinstance(value, bool):
            return int(value)
    except ValueError:
        pass
    raise DraftrecError(
        f"{row.file} line {row.line}: {column} is {value!r}, not a whole number; mend or remove "
        "the row"
    )


def _items(row: Row) -> Int64Array:
    """The list of items; in CSV a text such as `3 1 2` or `[3, 1, 2]`."""
    values = row.values.get("items")
    if isinstance(values, str):
        values = values.strip("[] ").replace(",", " ").split()
    found = _array(values)
    if found is None:
        raise DraftrecError(
            f"{row.file} line {row.line}: items is no list of whole numbers; mend or remove the row"
        )
    return found


def _array(values: Any) -> Int64Array | None:
    """int64 `[h]`, or None if that cannot be."""
    if not isinstance(values, Iterable):
        return None
    try:
        numbers = [int(v) if isinstance(v, str) else v for v in values]
        found = np.array(numbers or np.empty(0, np.int64))
    except (ValueError, OverflowError):
        return None
    return found.astype(np.int64) if found.ndim == 1 and found.dtype == np.int64 else None


def _texts(row: Row) -> list[str]:
    """The tokens of a semantic id; in CSV a text with spaces between them."""
    sid = row.values.get("sid")
    tokens = sid.split() if isinstance(sid, str) else sid
    if not isinstance(tokens, list) or not all(isinstance(t, str) and t for t in tokens):
        tokens = []
    if not tokens:
        raise DraftrecError(
            f"{row.file} line {row.line}: sid is no list of tokens; mend or remove the row"
        )
    return tokens
