"""The prompts that `tune` works on: a sample of the records, and others for a pool."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from draftrec.config import RecordsConfig
from draftrec.core import Request
from draftrec.data.records import Entity, EntityReader, GroupTable, Layout
from draftrec.data.sides import fitted_to
from draftrec.data.tables.readers import open_records
from draftrec.data.templates import load_template
from draftrec.errors import DraftrecError
from draftrec.models.prompting import form_of

if TYPE_CHECKING:
    from draftrec.jobs.knowledge.generator import Generator


@dataclass(frozen=True, slots=True)
class Sample:
    """`timed` entities that every setting writes, `others` whose texts make a pool where none is
    given, and a fingerprint of the file that they come from."""

    timed: tuple[Entity, ...]
    others: tuple[Entity, ...]
    fingerprint: str


def draw_sample(
    location: str, records: RecordsConfig, groups: GroupTable | None, size: int, seed: int
) -> Sample:
    """Draw `size` records for timing and as many others, half of the file at most each.

    Both are in file order; records that would be rejected are passed over. Raises DraftrecError
    for input that cannot be read, and with fewer than two usable records.
    """
    source = open_records(location)
    records = fitted_to(source, records)
    template = load_template(records.template, records.side) if records.template else None
    layout = Layout(template, records.id_column, records.prompt_column, records.group_column)
    reader = EntityReader(source, layout, groups)
    reader.check_columns()
    total = reader.check_ids()
    order = np.random.default_rng(seed).permutation(total)
    wanted = set(order[: 2 * size].tolist())
    found = {i: e for i, e in _usable(reader) if i in wanted}
    drawn = [i for i in order[: 2 * size].tolist() if i in found]
    if len(drawn) < 2:
        raise DraftrecError(f"{location} has {len(drawn)} usable records; tuning needs two or more")
    half = min(size, (len(drawn) + 1) // 2)
    timed, others = sorted(drawn[:half]), sorted(drawn[half : 2 * half])
    own, rest = (tuple(found[i] for i in places) for places in (timed, others))
    return Sample(own, rest, source.fingerprint())


def requests_of(generator: Generator, entities: Seq[Entity], *, chat: bool | None) -> list[Request]:
    """The prompts as token ids; those that do not fit into the model's context are left out.

    Raises DraftrecError for a chat template that the tokenizer does not have, and if none fits.
    """
    form = form_of(RecordsConfig(chat=chat), has_template=generator.has_chat_template)
    encoded = generator.encode([e.prompt for e in entities], form=form)
    found = [
        Request(e.entity_id, ids, e.group)
        for e, ids in zip(entities, encoded, strict=True)
        if 0 < len(ids) < generator.context_length
    ]
    if not found:
        raise DraftrecError(
            f"no sampled prompt fits into the model's context of {generator.context_length} tokens"
        )
    return found


def _usable(reader: EntityReader) -> Iterator[tuple[int, Entity]]:
    for place, record in enumerate(reader):
        if isinstance(record, Entity):
            yield place, record
