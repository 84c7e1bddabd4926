"""Recorded texts as token ids: from a run folder, or from any file with `entity_id` and `text`."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from draftrec.core import IntArray
from draftrec.data.records import GroupTable
from draftrec.data.tables.columns import ENTITY, TEXT, Join, need_columns
from draftrec.data.tables.readers import Row, open_records
from draftrec.errors import DraftrecError

_BLOCK = 256


@dataclass(frozen=True, slots=True)
class Recording:
    """A text that was written once.

    `token_ids` int32, EOS included if the text ended with it; `prompt_ids` int32, at least one;
    `previous_ids` int32, the same entity's text of the step before; `when`: its place in time.
    """

    entity_id: str
    token_ids: IntArray
    prompt_ids: IntArray
    group: str | None = None
    step: int | None = None
    when: float = 0.0
    previous_ids: IntArray | None = None


@dataclass(frozen=True, slots=True)
class TextFiles:
    """Where texts lie, and the names of their columns; None: the usual one, or a synonym."""

    location: str
    entity_id: str | None = None
    text: str | None = None

    def __str__(self) -> str:
        return self.location


def read_recordings(
    texts: str | Path | TextFiles,
    tokenizer: Any,
    groups: GroupTable | None = None,
    limit: int | None = None,
) -> list[Recording]:
    """The first `limit` texts in file order.

    A column `token_ids` is taken as it is; otherwise `text` is tokenised and EOS put behind it, as
    a model would emit it. `prompt`, `group`, `step` and `timestamp` are used where they are there;
    `groups` takes the place of the column. Raises DraftrecError for what cannot be read.
    """
    files = texts if isinstance(texts, TextFiles) else TextFiles(str(texts))
    source = open_records(files.location)
    ready = files.text is None and "token_ids" in next(source.rows()).values
    column = "token_ids" if ready else "text"
    kinds = [(ENTITY, files.entity_id), *([] if ready else [(TEXT, files.text)])]
    names = need_columns(source, kinds, "texts need the columns entity_id and text")
    wanted = [*names, column, "prompt", "group", "step", "timestamp"]
    found_rows = (_as_usual(row, names) for row in source.rows(wanted))
    rows = islice(found_rows, limit)
    reader = _Reader(tokenizer, groups, column)
    found: list[Recording] = []
    while block := list(islice(rows, _BLOCK)):
        found += reader.read(block)
    if groups:
        ids = list(dict.fromkeys(r.entity_id for r in found))
        join = Join("entities", files.location, groups.name, groups.example)
        join.saw_all(ids, groups.knows(ids))
        join.check(refuse=limit is None)
    return found


def _as_usual(row: Row, names: Seq[str]) -> Row:
    """The row with id and, if it is named, text under their usual names."""
    renamed = {
        usual: row.values.get(name)
        for usual, name in zip(("entity_id", "text"), names, strict=False)
        if usual != name
    }
    return replace(row, values={**row.values, **renamed}) if renamed else row


def in_order(recordings: Seq[Recording]) -> list[Recording]:
    """By `timestamp`, else by `step`; in file order where both are missing or equal."""
    return sorted(recordings, key=lambda r: r.when)


def link_steps(recordings: Seq[Recording], location: str | Path) -> list[Recording]:
    """The same texts, each with its entity's latest text of an earlier step as `previous_ids`.

    Raises DraftrecError for a text without a step, an entity with two texts of one step, and when
    no text has an earlier one.
    """
    chains: dict[str, dict[int, IntArray]] = {}
    for r in recordings:
        if r.step is None:
            raise DraftrecError(
                f"{location}: the text of {r.entity_id!r} has no step; --refresh replays chains of "
                f"texts and needs the column step (whole numbers)"
            )
        chain = chains.setdefault(r.entity_id, {})
        if r.step in chain:
            raise DraftrecError(
                f"{location} has two texts of {r.entity_id!r} with step {r.step}; keep one"
            )
        chain[r.step] = r.token_ids
    order = {entity: sorted(chain) for entity, chain in chains.items()}
    linked = [_linked(r, chains[r.entity_id], order[r.entity_id]) for r in recordings]
    if all(r.previous_ids is None for r in linked):
        raise DraftrecError(
            f"no entity in {location} has texts of two steps; --refresh needs such chains"
        )
    return linked


def opening(tokenizer: Any) -> IntArray:
    """What stands for a prompt that was not recorded: int32 `[1]`, BOS or EOS."""
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id, 0)
    return np.array([next(i for i in known if i is not None)], np.int32)


def _linked(recording: Recording, chain: dict[int, IntArray], steps: list[int]) -> Recording:
    place = steps.index(recording.step) if recording.step is not None else 0
    return replace(recording, previous_ids=chain[steps[place - 1]] if place else None)


class _Reader:
    """Turns rows into recordings, a block at a time, so that the tokenizer works on batches."""

    def __init__(self, tokenizer: Any, groups: GroupTable | None, column: str) -> None:
        self.tokenizer, self.groups, self.column = tokenizer, groups, column
        self._vocabulary = len(tokenizer)
        self._opening = opening(tokenizer)

    def read(self, rows: list[Row]) -> Iterator[Recording]:
        texts = self._ready_ids(rows) if self.column == "token_ids" else self._tokenise(rows)
        for row, ids, prompt in zip(rows, texts, self._prompts(rows), strict=True):
            entity_id = _label(row, "entity_id")
            if entity_id is None:
                raise _unusable(row, "entity_id is null")
            group = self.groups.get(entity_id) if self.groups else _label(row, "group")
            step = _number(row, "step")
            if step is not None and step != int(step):
                raise _unusable(row, f"step is {step}, not a whole number")
            time = _number(row, "timestamp")
            when = next((t for t in (time, step) if t is not None), 0.0)
            whole = None if step is None else int(step)
            yield Recording(entity_id, ids, prompt, group, whole, when)

    def _tokenise(self, rows: list[Row]) -> list[IntArray]:
        eos = self.tokenizer.eos_token_id
        end = [] if eos is None else [eos]
        texts = [_text(row, "text") for row in rows]
        ids = self.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
        return [np.array([*x, *end], np.int32) for x in ids]

    def _ready_ids(self, rows: list[Row]) -> list[IntArray]:
        found: list[IntArray] = []
        for row in rows:
            value = row.values.get("token_ids")
            if not isinstance(value, list) or not all(type(i) is int for i in value):
                raise _unusable(row, "token_ids is not a list of whole numbers")
            if value and not 0 <= min(value) <= max(value) < self._vocabulary:
                raise _unusable(
                    row,
                    f"a token id lies outside the tokenizer's {self._vocabulary} tokens",
                    "name the tokenizer of the model that wrote these texts",
                )
            found.append(np.array(value, np.int32))
        return found

    def _prompts(self, rows: list[Row]) -> list[IntArray]:
        prompts = ["" if r.values.get("prompt") is None else _text(r, "prompt") for r in rows]
        ids = self.tokenizer(prompts, verbose=False).input_ids
        # An array without tokens would be floats.
        return [np.array(x, np.int32) if x else self._opening for x in ids]


def _label(row: Row, column: str) -> str | None:
    value = row.values.get(column)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _unusable(row, f"{column} is {type(value).__name__}, not a string or an integer")
    return str(value)


def _text(row: Row, column: str) -> str:
    value = row.values.get(column)
    if not isinstance(value, str):
        raise _unusable(row, f"{column} is {_kind(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _unusable(row, f"{column} is not valid Unicode") from None
    return value


def _number(row: Row, column: str) -> float | None:
    value = row.values.get(column)
    try:
        number = None if value is None else float(value)
    except (TypeError, ValueError):
        raise _unusable(row, f"{column} is {value!r}, not a number") from None
    if number is not None and not np.isfinite(number):
        raise _unusable(row, f"{column} is {number}, not a number")
    return number


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _unusable(row: Row, reason: str, mend: str = "mend or remove the row") -> DraftrecError:
    return DraftrecError(f"{row.file} line {row.line}: {reason}; {mend}")
