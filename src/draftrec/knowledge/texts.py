"""What `Generator.generate` gives back where more than the words is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, overload

import pyarrow as pa

from draftrec.core import FinishReason, Generation, IntArray, Request
from draftrec.errors import DraftrecError

_COUNTS = ("target_calls", "drafted_tokens", "accepted_tokens", "relaxed_tokens")
#: What `as_frame` adds to a frame.
COLUMNS = ("text", "finish_reason", "prompt_tokens", "new_tokens")


@dataclass(frozen=True, slots=True)
class Text:
    """One text and what it cost. `token_ids` int32: new tokens, the end of text included if it was
    written; `target_calls`: forward passes in which it took part; `sample`: which of its record's
    texts it is, counted from 0."""

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
    sample: int = 0

    def __str__(self) -> str:
        return self.text


def text_of(done: Generation, request: Request, text: str) -> Text:
    """A finished generation of a request, with its words."""
    counts = {name: getattr(done.counts, name) for name in _COUNTS}
    return Text(
        done.entity_id, request.group, text, done.token_ids, done.finish_reason,
        done.prompt_tokens, len(done.token_ids), **counts, sample=request.sample,
    )  # fmt: skip


class Texts(Seq[Text]):
    """Texts in the order of their records, `samples` of each. `summary`: what they cost together,
    under the names of a job's `summary.json`."""

    def __init__(self, rows: Seq[Text], summary: dict[str, Any], samples: int = 1) -> None:
        self._rows, self.summary, self.samples = list(rows), summary, samples

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

    def per_record(self, names: Seq[str]) -> dict[str, pa.Array]:
        """The same with one value per record: its text's, or the list of its texts'."""
        flat = self.columns(names)
        if self.samples == 1:
            return flat
        ends = pa.array(range(0, len(self) + 1, self.samples), pa.int32())
        return {name: pa.ListArray.from_arrays(ends, values) for name, values in flat.items()}

    def to_arrow(self) -> pa.Table:
        """A row per text, a column per field; `sample` only where records have several texts."""
        return pa.table(self.columns([n for n in _TYPES if n != "sample" or self.samples > 1]))

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
    "sample": pa.int32(),
}
