"""Which group a prompt belongs to, told from its first tokens: no request id reaches a proposer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from draftrec.core import IntArray
from draftrec.data.files.places import arrow_path
from draftrec.data.files.writers import replace_parquet
from draftrec.errors import DraftrecError

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
