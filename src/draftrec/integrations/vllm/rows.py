"""Which text stands in which row of vLLM's batch, and to which group its prompt belongs.

A proposer sees rows of token ids and no request: rows are swapped when others finish, taken over by
new requests, set aside by preemption and brought back. So a text is known by its content, which
costs a comparison of two arrays per row and step, and its group is told from its prompt's first
tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from draftrec.core import IntArray
from draftrec.data.files.places import arrow_path
from draftrec.data.files.writers import replace_parquet
from draftrec.errors import DraftrecError
from draftrec.pool.index import NgramIndex

# Steps that a text may be out of the batch before it counts as finished.
_PATIENCE = 256


class RunningText:
    """A prompt and the text so far, indexed as it grows; `group` is the prompt's."""

    def __init__(self, prompt_ids: IntArray, group: str | None) -> None:
        self.group = group
        self.prompt_tokens = len(prompt_ids)
        self.own = NgramIndex(len(prompt_ids) + 64)
        self.seen = 0
        self._ids = np.empty(2 * len(prompt_ids) + 64, np.int32)
        self._length = 0
        self.extend(prompt_ids)

    @property
    def context(self) -> IntArray:
        """int32: prompt and text, a view."""
        return self._ids[: self._length]

    @property
    def text(self) -> IntArray:
        """int32: what was written so far, a view."""
        return self._ids[self.prompt_tokens : self._length]

    def extend(self, ids: IntArray) -> None:
        """Take over what was written."""
        length = self._length + len(ids)
        if length > len(self._ids):
            longer = np.empty(2 * length, np.int32)
            longer[: self._length] = self.context
            self._ids = longer
        self._ids[self._length : length] = ids
        self._length = length
        self.own.extend(self._ids[length - len(ids) : length])

    def goes_on_as(self, ids: IntArray, new: int) -> bool:
        """Whether `ids` is this text and `new` more tokens."""
        return len(ids) == self._length + new and np.array_equal(ids[: self._length], self.context)


class Keeper(Protocol):
    """Whom texts are told to."""

    def group_of(self, prompt_ids: IntArray) -> str | None: ...

    def finished(self, text: RunningText) -> None: ...


class Rows:
    """Follows the rows of a batch from step to step.

    `eos_ids` end texts; one that is gone for a while has ended otherwise. At most twice `rows`
    texts are remembered.
    """

    def __init__(self, keeper: Keeper, eos_ids: frozenset[int], rows: int) -> None:
        self.keeper = keeper
        self._eos_ids = np.array(sorted(eos_ids), np.int32)
        self._most = 2 * rows
        self._by_row: dict[int, RunningText] = {}
        self._away: list[RunningText] = []
        self._step = 0

    def follow(self, contexts: Seq[IntArray], new: Seq[int]) -> list[RunningText | None]:
        """The text of each row after a step, None where nothing is to be drafted.

        `contexts` int32: prompt and text of each row; `new`: how many of its last tokens the step
        wrote, 0 for a row that wrote none (its prompt is being read).
        """
        self._step += 1
        before, self._by_row = self._by_row, {}
        moved: list[int] = []
        for row, (ids, count) in enumerate(zip(contexts, new, strict=True)):
            if count == 0:
                continue
            if row in before and before[row].goes_on_as(ids, count):
                self._by_row[row] = before.pop(row)
            else:
                moved.append(row)
        self._away += before.values()
        for row in moved:
            self._by_row[row] = self._found(contexts[row], new[row])
        self._tidy()
        return [
            self._written(row, contexts[row], count) if count else None
            for row, count in enumerate(new)
        ]

    def _found(self, ids: IntArray, count: int) -> RunningText:
        """A text that stood elsewhere before, or a new one."""
        for place, text in enumerate(self._away):
            if text.goes_on_as(ids, count):
                return self._away.pop(place)
        prompt = ids[: len(ids) - count]
        return RunningText(prompt, self.keeper.group_of(prompt))

    def _written(self, row: int, ids: IntArray, count: int) -> RunningText | None:
        """The row's text with what was added to it; None if that has ended it.

        vLLM accepts draft tokens behind an EOS as well and cuts the text later.
        """
        text, added = self._by_row[row], ids[len(ids) - count :]
        text.seen = self._step
        ends = np.flatnonzero(np.isin(added, self._eos_ids))
        if not len(ends):
            text.extend(added)
            return text
        text.extend(added[: ends[0] + 1])
        del self._by_row[row]
        self.keeper.finished(text)
        return None

    def _tidy(self) -> None:
        """Take texts for finished that have been away for long, or the oldest of too many."""
        if not self._away:
            return
        self._away.sort(key=lambda text: text.seen)
        over = max(0, len(self._away) + len(self._by_row) - self._most)
        late = sum(self._step - text.seen > _PATIENCE for text in self._away)
        gone = max(over, late)
        for text in self._away[:gone]:
            self.keeper.finished(text)
        del self._away[:gone]


_BYTES = 16
_SCHEMA = pa.schema([("prefix", pa.binary(_BYTES)), ("tokens", pa.int32()), ("group", pa.string())])


class PromptGroups:
    """Groups by the hash of a prompt's first tokens; the longest known prefix decides."""

    def __init__(self, groups: Mapping[bytes, str], lengths: Iterable[int]) -> None:
        self._groups = groups
        self._lengths = sorted(set(lengths))
        self._tokens: dict[bytes, int] = {}

    @classmethod
    def of(cls, prefixes: Iterable[tuple[Seq[int], str]]) -> PromptGroups:
        """From (token ids, group). Raises DraftrecError if one is empty or has two groups."""
        groups: dict[bytes, str] = {}
        tokens: dict[bytes, int] = {}
        for ids, group in prefixes:
            if not len(ids):
                raise DraftrecError(f"The prompt prefix of group {group!r} is empty; leave it out.")
            key = _hash(np.asarray(ids, np.int32))
            if groups.setdefault(key, group) != group:
                raise DraftrecError(
                    f"A prompt prefix of {len(ids)} tokens is given the groups {groups[key]!r} and "
                    f"{group!r}; keep one of them, or tell them apart by longer prefixes."
                )
            tokens[key] = len(ids)
        found = cls(groups, tokens.values())
        found._tokens = tokens
        return found

    def of_prompt(self, prompt_ids: IntArray) -> str | None:
        """The group of a prompt, or None."""
        found = None
        for key in _hashes(prompt_ids, self._lengths):
            found = self._groups.get(key, found)
        return found

    def save(self, path: Path) -> None:
        """Write the hashes and their groups as Parquet, in the order they were given."""
        keys = list(self._groups)
        columns = [keys, [self._tokens[key] for key in keys], list(self._groups.values())]
        arrays = [pa.array(c, field.type) for c, field in zip(columns, _SCHEMA, strict=True)]
        replace_parquet(path, pa.table(arrays, schema=_SCHEMA))

    @classmethod
    def load(cls, path: Path) -> PromptGroups:
        """Read what `save` wrote. Raises DraftrecError for anything else."""
        try:
            table = pq.read_table(arrow_path(path), schema=_SCHEMA)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise DraftrecError(
                f"The file of prompt groups {path} cannot be read "
                f"({str(error).splitlines()[0]}); write it with "
                "draftrec.integrations.vllm.write_groups."
            ) from error
        keys, lengths, groups = (table.column(name).to_pylist() for name in _SCHEMA.names)
        return cls(dict(zip(keys, groups, strict=True)), lengths)


def _hashes(ids: IntArray, lengths: Seq[int]) -> Iterator[bytes]:
    """Hashes of the first tokens, in one pass over them, shortest first."""
    digest, done = hashlib.blake2b(digest_size=_BYTES), 0
    for length in lengths:
        if length > len(ids):
            return
        digest.update(ids[done:length].tobytes())
        done = length
        yield digest.copy().digest()


def _hash(ids: IntArray) -> bytes:
    return hashlib.blake2b(ids.tobytes(), digest_size=_BYTES).digest()
