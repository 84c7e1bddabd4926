"""What `Generator.generate` gives back where more than the words is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, overload

import pyarrow as pa

from draftrec.core import FinishReason, Generation, IntArray
from draftrec.errors import DraftrecError

_COUNTS = ("target_calls", "drafted_tokens", "accepted_tokens", "relaxed_tokens")
#: What `as_frame` adds to a frame.
COLUMNS = ("text", "finish_reason", "prompt_tokens", "new_tokens")


@dataclass(frozen=True, slots=True)
class Text:
    """One text and what it cost. `token_ids` int32: new tokens, the end of text included if it was
    written; `target_calls`: forward passes in which it took part."""

    entity_id: str
    group: str | None
    text: str
    token_ids: IntArray
    finish_reason: FinishReason
    prompt_tokens: int
    new_tokens: int
    target_calls: int
    drafted_tokens: int
    accepted_tokens: int
    relaxed_tokens: int

    def __str__(self) -> str:
        return self.text


def text_of(done: Generation, group: str | None, text: str) -> Text:
    """A finished generation with its words."""
    counts = {name: getattr(done.counts, name) for name in _COUNTS}
    return Text(
        done.entity_id, group, text, done.token_ids, done.finish_reason, done.prompt_tokens,
        len(done.token_ids), **counts,
    )  # fmt: skip


class Texts(Seq[Text]):
    """Texts in the order of their records. `summary`: what they cost together, under the names of
    a job's `summary.json`."""

    def __init__(self, rows: Seq[Text], summary: dict[str, Any]) -> None:
        self._rows, self.summary = list(rows), summary

    @property
    def texts(self) -> list[str]:
        """The words alone."""
        return [row.text for row in self._rows]

    @overload
    def __getitem__(self, index: int) -> Text: ...
    @overload
    def __getitem__(self, index: slice) -> list[Text]: ...
    def __getitem__(self, index: int | slice) -> Text | list[Text]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Text]:
        return iter(self._rows)

    def __repr__(self) -> str:
        rate = self.summary.get("tokens_per_call", 0.0)
        return f"<Texts: {len(self):,}, {rate:.2f} tokens per call>"

    def columns(self, names: Seq[str]) -> dict[str, pa.Array]:
        """Fields of `Text` as Arrow arrays of their types."""
        return {n: pa.array([getattr(r, n) for r in self._rows], _TYPES[n]) for n in names}

    def to_arrow(self) -> pa.Table:
        """A row per text, a column per field."""
        return pa.table(self.columns(list(_TYPES)))

    def to_pandas(self) -> Any:
        """The same as a pandas data frame."""
        return self.to_arrow().to_pandas()

    def to_polars(self) -> Any:
        """The same as a polars data frame. Raises DraftrecError without polars."""
        try:
            import polars
        except ModuleNotFoundError as error:
            raise DraftrecError("to_polars() needs polars; pip install polars") from error
        return polars.from_arrow(self.to_arrow())


_TYPES: dict[str, pa.DataType] = {
    "entity_id": pa.string(),
    "group": pa.string(),
    "text": pa.string(),
    "token_ids": pa.list_(pa.int32()),
    "finish_reason": pa.string(),
    "prompt_tokens": pa.int32(),
    "new_tokens": pa.int32(),
    **{name: pa.int32() for name in _COUNTS},
}
