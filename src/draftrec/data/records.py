"""Entities in: which columns a record needs, which inputs are refused, and which rows are left out,
counted and listed, so that one of them does not stop a job.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from draftrec.core import BoolArray, IntArray
from draftrec.data.files.places import Place
from draftrec.data.files.writers import replace_file
from draftrec.data.tables.columns import Join, KnownIds
from draftrec.data.tables.readers import RecordSource, Row, open_records
from draftrec.data.tables.values import with_lists
from draftrec.data.templates import Template
from draftrec.errors import DraftrecError
from draftrec.knobs import encodable

_ID_TYPES = "a string or an integer"
_HASH_BLOCK = 1 << 16
#: What to do with a run that has more than one text per record, where one is needed.
SEVERAL_TEXTS = (
    "these are several texts of one record (generate --n), numbered in the column sample; write "
    "the rows with sample 0 to a file of their own"
)
#: The code of an entity that a groups file lists without a group.
_NO_GROUP = -1


@dataclass(frozen=True, slots=True)
class Entity:
    """One text to write: who it is about, the prompt, and who it shares a pool with."""

    entity_id: str
    prompt: str
    group: str | None
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that cannot be served. The job goes on without it."""

    entity_id: str | None
    file: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the values of an entity are found. Without a template, `prompt` is a column.

    `noun` is what messages call it: a job that reads finished texts has no prompts.
    """

    template: Template | None = None
    entity_id: str = "entity_id"
    prompt: str = "prompt"
    group: str = "group"
    noun: str = "prompt"

    @property
    def required(self) -> tuple[str, ...]:
        fields = self.template.required_fields if self.template else (self.prompt,)
        return (self.entity_id, *(name for name in fields if name != self.entity_id))

    @property
    def columns(self) -> tuple[str, ...] | None:
        """What to read; None = everything, as a template may use fields it does not require."""
        return None if self.template else (self.entity_id, self.prompt, self.group)


class _RejectError(Exception):
    """Raised with the reason why a record is rejected."""


@dataclass(frozen=True, slots=True)
class EntityReader:
    """Streams a source as entities, rejecting single records and refusing unusable inputs."""

    source: RecordSource
    layout: Layout = Layout()
    groups: GroupTable | None = None
    limit: int | None = None
    skip: int = 0

    def check_columns(self) -> None:
        """Raise when the input as a whole lacks what every record needs."""
        layout = self.layout
        self.source.require([layout.entity_id], "rename it, or name it with --id-column")
        if layout.template:
            need = f"template {layout.template.name!r} needs it"
            self.source.require(
                layout.required, f"{need}; rename a column or choose another template"
            )
        else:
            self.source.require(
                layout.required, "name it with --prompt-column, or choose a --template"
            )
        self.source.refuse_type(layout.entity_id, _ID_TYPES)

    def check_ids(self, others: Seq[KnownIds] = ()) -> int:
        """Read all ids once; the number of records, or an error naming a repeated id.

        Warns where most of them are not in the groups file, or in one of `others`. None at all in
        the groups file is an error, unless a few records are read only.

        Holds 8 bytes per record: the ids' hashes. Where two are equal a second pass compares the
        ids themselves, so the answer is exact.
        """
        files = [*([self.groups] if self.groups else []), *others]
        joins = [Join("records", self._name, other.name, other.example) for other in files]
        blocks = [np.empty(0, np.uint64)]
        rows = self._rows(only_id=True)
        while block := [row.values.get(self.layout.entity_id) for row in islice(rows, _HASH_BLOCK)]:
            blocks.append(np.array([_short_hash(value) for value in block], np.uint64))
            ids = [str(value) for value in block if value is not None] if joins else []
            for join, other in zip(joins, files, strict=True):
                join.saw_all(ids, other.knows(ids))
        for join, other in zip(joins, files, strict=True):
            join.check(refuse=other is self.groups and self.limit is None)
        hashes = np.concatenate(blocks)
        hashes.sort()
        known = hashes[hashes > 0]
        repeated = known[1:][known[1:] == known[:-1]]
        if len(repeated):
            self._find_repeated(set(repeated.tolist()))
        return len(hashes)

    def __iter__(self) -> Iterator[Entity | Rejected]:
        for row in self._rows():
            entity_id = None
            try:
                entity_id = _as_id(row.values.get(self.layout.entity_id), self.layout.entity_id)
                prompt, group = self._prompt(row), self._group(row, entity_id)
                yield Entity(entity_id, prompt, group, row.file, row.line)
            except _RejectError as error:
                yield Rejected(entity_id, row.file, row.line, str(error))

    def blocks(
        self, total: int, first: int, size_of: Callable[[int], int]
    ) -> Iterator[tuple[int, list[Entity | Rejected]]]:
        """Of `total` records those that are not skipped, in blocks numbered from `first`, each of
        the size that its number has. What was added to the input since they were counted is left
        alone. Raises DraftrecError where there are fewer now."""
        records, done = iter(replace(self, limit=total)), self.skip
        for number in count(first):
            size = max(0, min(size_of(number), total - done))
            block = list(islice(records, size))
            done += len(block)
            if len(block) < size:
                raise DraftrecError(
                    f"{self._name} held {total:,} records when it was counted, and {done:,} now; "
                    "put back what it was and run the same command again to continue"
                )
            if not block:
                return
            yield number, block

    @property
    def _name(self) -> str:
        files = self.source.files
        return str(files[0]) if len(files) == 1 else f"the {len(files):,} files of the input"

    def _rows(self, *, only_id: bool = False) -> Iterator[Row]:
        columns = [self.layout.entity_id] if only_id else self.layout.columns
        return islice(self.source.rows(columns), self.skip, self.limit)

    def _prompt(self, row: Row) -> str:
        layout = self.layout
        for name in layout.required:
            if row.values.get(name) is None:
                raise _RejectError(f"{name} is null")
        if layout.template is None:
            prompt = row.values[layout.prompt]
            if not isinstance(prompt, str):
                raise _RejectError(f"{layout.prompt} is {type(prompt).__name__}, not text")
        else:
            try:
                prompt = layout.template.render(with_lists(row.values, typed=self.source.typed))
            except DraftrecError as error:
                raise _RejectError(str(error)) from error
        if not prompt:
            raise _RejectError(f"the {layout.noun} is empty")
        if not encodable(prompt):
            raise _RejectError(
                f"the {layout.noun} holds half of a surrogate pair, which is not valid Unicode"
            )
        return prompt

    def _group(self, row: Row, entity_id: str) -> str | None:
        if self.groups is not None:
            return self.groups.get(entity_id)
        group = row.values.get(self.layout.group)
        return None if group is None else _as_id(group, self.layout.group)

    def _find_repeated(self, hashes: set[int]) -> None:
        """Raise for the first id that really occurs twice among those with these hashes."""
        seen: dict[str, Row] = {}
        name = self.layout.entity_id
        for row in self._rows(only_id=True):
            value = row.values.get(name)
            if _short_hash(value) not in hashes:
                continue
            first = seen.setdefault(str(value), row)
            if first is not row:
                mend = "ids must be unique, remove or rename one"
                if self.source.has("sample"):
                    mend = f"ids must be unique, and {SEVERAL_TEXTS}"
                raise DraftrecError(
                    f"{name} {str(value)!r} is repeated in {first.file} line {first.line} and "
                    f"{row.file} line {row.line}; {mend}"
                )


class GroupTable:
    """Entity -> group from a file with `entity_id, group`. About 20 bytes per entity.

    Ids are kept as 128-bit hashes, so that even a thousand million of them do not collide.
    `example` is one of them.
    """

    def __init__(self, source: RecordSource) -> None:
        self.name, self.example = str(source.root or source.files[0]).rstrip("/"), ""
        self.fingerprint = source.fingerprint()
        self._names: dict[str, int] = {}
        blocks = list(self._blocks(source))
        keys = np.concatenate([keys for keys, _ in blocks])
        codes = np.concatenate([codes for _, codes in blocks])
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        self._keys, self._codes = keys[order], codes[order]
        if (self._keys[1:] == self._keys[:-1]).all(axis=1).any():
            raise DraftrecError(
                f"{source.files[0]} lists an entity more than once; keep one row per entity_id"
            )
        self._labels = list(self._names)

    @classmethod
    def load(cls, location: str | Place) -> GroupTable:
        """Read a groups file (Parquet, JSON, CSV and its kin)."""
        source = open_records(location)
        source.require(["entity_id", "group"], "a groups file has the columns entity_id and group")
        return cls(source)

    def get(self, entity_id: str) -> str | None:
        """The entity's group, or None where the file does not name one."""
        place = self._place(entity_id)
        code = _NO_GROUP if place is None else self._codes[place]
        return None if code == _NO_GROUP else self._labels[code]

    def knows(self, ids: list[str]) -> BoolArray:
        """Which of `ids` the file lists, with a group or without."""
        hashed = [_long_hash(entity_id) for entity_id in ids if encodable(entity_id)]
        if len(hashed) < len(ids) or not len(self._keys):
            return np.array([self._place(entity_id) is not None for entity_id in ids], np.bool_)
        wanted = np.array(hashed, np.uint64).reshape(-1, 2)
        places = np.searchsorted(self._keys[:, 0], wanted[:, 0])
        nearest = self._keys[np.minimum(places, len(self._keys) - 1)]
        found = (nearest == wanted).all(axis=1)
        # Equal in one half and not in the other: another one of that half may follow.
        for i in np.flatnonzero(~found & (nearest[:, 0] == wanted[:, 0])).tolist():
            found[i] = self._place(ids[i]) is not None
        return found

    def _place(self, entity_id: str) -> int | None:
        try:
            high, low = _long_hash(entity_id)
        except UnicodeEncodeError:
            return None
        start = int(np.searchsorted(self._keys[:, 0], high, "left"))
        stop = int(np.searchsorted(self._keys[:, 0], high, "right"))
        return next((i for i in range(start, stop) if self._keys[i, 1] == low), None)

    def _blocks(self, source: RecordSource) -> Iterator[tuple[npt.NDArray[np.uint64], IntArray]]:
        rows = source.rows(["entity_id", "group"])
        while block := list(islice(rows, _HASH_BLOCK)):
            keys, codes = [], []
            for row in block:
                group = row.values.get("group")
                try:
                    entity_id = _as_id(row.values.get("entity_id"), "entity_id")
                    name = None if group is None else _as_id(group, "group")
                except _RejectError as error:
                    raise DraftrecError(
                        f"{row.file} line {row.line}: {error}; mend the groups file"
                    ) from error
                self.example = self.example or entity_id
                keys.append(_long_hash(entity_id))
                known = self._names.setdefault(name, len(self._names)) if name else _NO_GROUP
                codes.append(known)
            yield np.array(keys, np.uint64).reshape(-1, 2), np.array(codes, np.int32)


def _as_id(value: Any, name: str) -> str:
    if value is None:
        raise _RejectError(f"{name} is null")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _RejectError(f"{name} is {type(value).__name__}, not {_ID_TYPES}")
    if not encodable(value):
        raise _RejectError(f"{name} is not valid Unicode")
    return str(value)


def _short_hash(value: Any) -> int:
    """64 bits, never 0; 0 stands for a missing id, which may repeat."""
    if value is None:
        return 0
    digest = hashlib.blake2b(str(value).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def _long_hash(entity_id: str) -> tuple[np.uint64, np.uint64]:
    digest = hashlib.blake2b(entity_id.encode(), digest_size=16).digest()
    high, low = np.frombuffer(digest, np.uint64)
    return high, low


T = TypeVar("T")


class RowError(DraftrecError):
    """A row cannot be used, for a `reason` that fits behind its place."""

    def __init__(self, row: Row, reason: str) -> None:
        super().__init__(f"{row.file} line {row.line}: {reason}; mend or remove the row")
        self.reason = reason


@dataclass(slots=True)
class Rejects:
    """The rows left out. `id_column` holds what they are listed under, where it can be read."""

    id_column: str | None = None
    rows: list[Rejected] = field(default_factory=list[Rejected])

    def __len__(self) -> int:
        return len(self.rows)

    def usable(self, rows: Iterable[Row], convert: Callable[[Row], T]) -> Iterator[T]:
        """What `convert` makes of each row, without those for which it raises RowError.

        Raises DraftrecError, with the first reason, where no row is left.
        """
        taken = 0
        for row in rows:
            try:
                found = convert(row)
            except RowError as error:
                self.add(row, error.reason)
            else:
                taken += 1
                yield found
        if self.rows and not taken:
            first = self.rows[0]
            raise DraftrecError(
                f"no row can be used; {first.file} line {first.line}: {first.reason}; mend the "
                "rows, or name other columns"
            )

    def write(self, path: Place) -> None:
        """Write the list to `path`, or remove one of an earlier run where nothing was left out."""
        if self.rows:
            replace_file(path, rejected_lines(self.rows))
        else:
            path.unlink(missing_ok=True)

    def words(self, path: Place) -> str:
        """One sentence about them."""
        return f"{len(self):,} rows were rejected, see {path}; the first: {self.rows[0].reason}"

    def add(self, row: Row, reason: str, id_column: str | None = None) -> None:
        """Note a row that is left out; `id_column`: of a file whose ids are called otherwise."""
        name = id_column or self.id_column
        value = row.values.get(name) if name else None
        shown = str(value) if isinstance(value, str | int) else None
        self.rows.append(Rejected(shown, row.file, row.line, reason))


def rejected_lines(rejected: Iterable[Rejected]) -> bytes:
    """The lines of a rejected.jsonl, one object per record."""
    lines = (
        {"entity_id": r.entity_id, "line": r.line, "reason": r.reason, "file": r.file}
        for r in rejected
    )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return text.encode(errors="backslashreplace")
