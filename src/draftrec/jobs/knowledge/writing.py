"""`Generator.generate`: whatever holds records in, their texts out, in the caller's form.

Records become prompts as a job makes them, by the same reader and in the same form. Where more than
the words is wanted, they come as `Texts`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, cast, overload

import pyarrow as pa
from pydantic import ValidationError

from draftrec.config import RecordsConfig
from draftrec.core import FinishReason, Generation, IntArray, Request
from draftrec.data.records import Entity, EntityReader, Layout
from draftrec.data.tables.given import OneRow, records_of
from draftrec.data.tables.readers import RecordSource
from draftrec.data.templates import TEMPLATE_SCHEMA, load_template, schema_of
from draftrec.errors import DraftrecError
from draftrec.jobs.knowledge.manifest import Totals
from draftrec.jobs.knowledge.prompts import key_of, samples_of
from draftrec.knobs import not_allowed
from draftrec.models.prompting import form_of

if TYPE_CHECKING:
    from draftrec.jobs.knowledge.generator import Generator


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


# Records that are read before their texts are written.
_TOGETHER, _STREAMED = 4096, 128
_SUMS = (
    "entities", "texts", "new_tokens", "target_calls", "drafted_tokens", "accepted_tokens",
    "relaxed_tokens", "wall_seconds",
)  # fmt: skip


def write(
    generator: Generator,
    records: Any,
    settings: Mapping[str, Any],
    *,
    full: bool = False,
    as_frame: bool = False,
) -> Any:
    """The texts of `records`, under `settings` by name: see `Generator.generate`."""
    given = records_of(records)
    if as_frame and given.add is None:
        raise DraftrecError(
            "as_frame needs a data frame to add texts to; use full=True and to_pandas(), "
            "to_polars() or to_arrow() of what it gives"
        )
    if as_frame and (taken := [name for name in COLUMNS if name in given.columns]):
        raise DraftrecError(
            f"the data frame has a column {taken[0]!r} already, which as_frame would add; rename it"
        )
    call = Call(generator, settings)
    began = time.perf_counter()
    found = [text for block in call.blocks(given.rows, _TOGETHER) for text in block]
    texts = Texts(found, call.summary(time.perf_counter() - began), call.samples)
    if as_frame:
        assert given.add is not None
        return given.add(cast("Mapping[str, Seq[Any]]", texts.per_record(COLUMNS)))
    if full:
        return texts
    words: list[Any] = texts.per_record(["text"])["text"].to_pylist()
    return words[0] if given.one else words


def stream(generator: Generator, records: Any, settings: Mapping[str, Any]) -> Iterator[Text]:
    """Texts one after another, of records that are read as they are needed."""
    given, call = records_of(records), Call(generator, settings)
    return (text for block in call.blocks(given.rows, _STREAMED) for text in block)


class Call:
    """One call's settings, and what its texts cost."""

    def __init__(self, generator: Generator, settings: Mapping[str, Any]) -> None:
        asked = {n: v for n, v in settings.items() if n in RecordsConfig.model_fields}
        try:
            self.records = RecordsConfig(**asked)
        except ValidationError as error:
            raise DraftrecError(not_allowed(error)) from error
        rest = {n: v for n, v in settings.items() if n not in asked}
        if rest.get("json_schema") == TEMPLATE_SCHEMA:
            rest["json_schema"] = schema_of(self.records.template, self.records.side)
        self.generator = generator.with_settings(**rest) if rest else generator
        form = form_of(self.records, has_template=generator.has_chat_template)
        # A text is its caller's own words, as it is for a tokenizer; a record is somebody else's.
        obeys = "special_tokens" not in asked
        self.forms = {False: form, True: replace(form, special_tokens="obey") if obeys else form}
        template = self.records.template
        made = load_template(template, self.records.side) if template else None
        names = (self.records.id_column, self.records.prompt_column, self.records.group_column)
        self.layout = Layout(made, *names)
        self.totals, self.samples = Totals(), self.generator.config.accept.n

    def blocks(self, rows: Iterator[dict[str | None, Any]], size: int) -> Iterator[list[Text]]:
        """Texts of the rows, about `size` at a time; each block's join the pool before the next."""
        numbered = enumerate(islice(rows, self.records.limit), 1)
        while block := list(islice(numbered, -(-size // self.samples))):
            entities = [self._entity(number, row) for number, row in block]
            requests = self._requests(entities, [None in row for _, row in block])
            # Strict texts do not depend on drafts, so that each may join when it is finished.
            at_once = self.generator.config.accept.accept == "strict"
            done = self.generator.run(requests, on_text=self._join if at_once else None)
            for request, text in zip(requests, done, strict=True) if not at_once else ():
                self._join(request, text)
            if self.generator.cost_state is not None:
                self.generator.costs[self.generator.config.batch] = self.generator.cost_state
            self.totals.add(done, rejected=0, kept=0, samples=self.samples)
            yield [
                text_of(g, r, self.generator.decode(g.token_ids))
                for g, r in zip(done, requests, strict=True)
            ]

    def _join(self, request: Request, text: Generation) -> None:
        self.generator.commit([(text.token_ids, request.group)])

    def summary(self, seconds: float) -> dict[str, Any]:
        """The sums and rates that a job's summary has."""
        self.totals.wall_seconds = seconds
        totals, config = self.totals.model_dump(), self.generator.config
        named = {"accept": config.accept.accept, "draft": config.draft.draft}
        where = {"device": self.generator.device, "dtype": self.generator.dtype}
        return {
            **{name: totals[name] for name in _SUMS},
            **self.totals.rates(),
            **where,
            "model": config.target.model,
            **named,
        }

    def _entity(self, number: int, row: dict[str | None, Any]) -> tuple[Entity, bool]:
        """The record as a job reads it, and whether its id is its own."""
        layout = self.layout
        if None in row:
            if layout.template is not None:
                raise DraftrecError(
                    f"record {number} is a text, and template {layout.template.name!r} needs "
                    f"records of fields; leave template= out, or give records"
                )
            values = {layout.prompt: row[None]}
        else:
            values = cast("dict[str, Any]", row)
        named = values.get(layout.entity_id) is not None or layout.entity_id in values
        source = OneRow(values if named else {**values, layout.entity_id: str(number - 1)}, number)
        found = next(iter(EntityReader(cast(RecordSource, source), layout)))
        if isinstance(found, Entity):
            return found, named
        reason = found.reason
        if layout.template is None and layout.prompt not in values:
            reason = (
                f"it has no {layout.prompt!r}, but {', '.join(values) or 'nothing'}; name the "
                f"field with prompt_column=, or choose a template="
            )
        elif values.get("title") and values.get("history") is None and self._of_users():
            reason = f"{reason}; for a record of an item, give side='item'"
        place = f"record {number}" + (
            f" ({found.entity_id!r})" if found.entity_id and named else ""
        )
        raise DraftrecError(f"{place} cannot be served: {reason}")

    def _of_users(self) -> bool:
        template = self.layout.template
        return template is not None and "history" in template.required_fields

    def _requests(self, entities: Seq[tuple[Entity, bool]], are_texts: Seq[bool]) -> list[Request]:
        ids: dict[int, Any] = {}
        for texts, form in self.forms.items():
            places = [i for i, is_text in enumerate(are_texts) if is_text == texts]
            prompts = [entities[i][0].prompt for i in places]
            ids |= zip(places, self.generator.encode(prompts, form=form), strict=True)
        found: list[Request] = []
        for i, (e, named) in enumerate(entities):
            # Its line is its number among all records of the call, from 1.
            key = key_of(e.entity_id) if named else e.line - 1
            found += samples_of(Request(e.entity_id, ids[i], e.group, key=key), self.samples)
        return found
