"""What a model is asked about a record, and what seeds the answer; and what a job would send,
without sending it: the same reader, the same form, the same refusals.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Any

import numpy as np

from draftrec.config import MOST_RECORDS, RecordsConfig
from draftrec.core import IntArray, Request
from draftrec.data.records import Entity, EntityReader, Rejected
from draftrec.engine.text.batch import shared_tokens
from draftrec.errors import DraftrecError
from draftrec.models.prompting import PromptEncoder, form_of


def key_of(entity_id: str) -> int:
    """Seeds one entity's sampling, wherever it stands in the input and whoever asks."""
    return _digest(entity_id.encode())


def samples_of(first: Request, count: int) -> list[Request]:
    """Requests for `count` texts of a record, of which `first` is the first. The key of each is a
    matter of that of the first and of its own number, not of how many there are."""
    return [replace(first, key=_key_of_sample(first.key, i), sample=i) for i in range(count)]


def _key_of_sample(key: int, sample: int) -> int:
    if sample == 0:
        return key
    return _digest(key.to_bytes(8, "little") + sample.to_bytes(8, "little"))


def _digest(content: bytes) -> int:
    """63 bits."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1


_TOGETHER = 256
#: Settings that mean nothing until a tokenizer is known.
_OF_CHATS = ("chat", "system", "chat_template_kwargs", "chat_date")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What would be sent for one record. `tokens`: with those that the tokenizer adds by itself;
    None without a tokenizer."""

    entity_id: str
    text: str
    tokens: int | None


class PromptPreview:
    """Prompts of records as the model that `tokenizer` belongs to would be sent them, and what
    they come to; without a tokenizer, as the template leaves them.

    `context`: most tokens of prompt and text together. Raises DraftrecError for settings that need
    a tokenizer, or a chat template, without one.
    """

    def __init__(
        self, reader: EntityReader, records: RecordsConfig, tokenizer: Any, context: int
    ) -> None:
        self.reader, self.context = reader, context
        self.encoder = None
        if tokenizer is not None:
            has_template = bool(getattr(tokenizer, "chat_template", None))
            form = form_of(records, has_template=has_template, began=datetime.now())
            self.encoder = PromptEncoder(tokenizer, form)
        elif given := [name for name in _OF_CHATS if getattr(records, name)]:
            raise DraftrecError(
                f"--{given[0].replace('_', '-')} needs --model, whose chats it is for"
            )
        self._sizes: list[int] = []
        self._shard: list[IntArray] = []
        self._shared = 0
        self._reasons: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Prompt | Rejected]:
        records = iter(self.reader)
        while block := list(islice(records, _TOGETHER)):
            entities = [record for record in block if isinstance(record, Entity)]
            prompts = iter(self._prompts(entities))
            for record in block:
                found = (
                    record if isinstance(record, Rejected) else self._checked(record, next(prompts))
                )
                self._count(found)
                yield found

    def summary(self) -> dict[str, Any]:
        """What has been read so far: counts, reasons, sizes; of tokens, how many begin a prompt as
        they begin another of its shard, and so are computed once for all."""
        sizes = np.array(self._sizes or [0])
        found = {
            "min": int(sizes.min()),
            "median": float(np.median(sizes)),
            "max": int(sizes.max()),
            "total": int(sizes.sum()),
        }
        rejected = self._reasons.total()
        shared = {"shared_tokens": self._shared + shared_tokens(self._shard)}
        return {
            "records": len(self._sizes) + rejected,
            "prompts": len(self._sizes),
            "rejected": rejected,
            "reasons": dict(self._reasons.most_common()),
            "tokens" if self.encoder else "characters": found,
            **(shared if self.encoder else {}),
            "chat": bool(self.encoder and self.encoder.form.chat),
            "special_tokens": sorted(self.encoder.found) if self.encoder else [],
        }

    def _prompts(self, entities: Seq[Entity]) -> list[Prompt]:
        texts = [entity.prompt for entity in entities]
        if self.encoder is None:
            return [Prompt(e.entity_id, e.prompt, None) for e in entities]
        sent, ids = self.encoder.render(texts), self.encoder.encode(texts)
        self._shard += [x for x in ids if not unfit(len(x), self.context)]
        if len(self._shard) >= MOST_RECORDS:
            self._shared += shared_tokens(self._shard)
            self._shard.clear()
        return [
            Prompt(entity.entity_id, text, len(found))
            for entity, text, found in zip(entities, sent, ids, strict=True)
        ]

    def _checked(self, entity: Entity, prompt: Prompt) -> Prompt | Rejected:
        """The prompt, if a job would not reject it."""
        reason = None if prompt.tokens is None else unfit(prompt.tokens, self.context)
        if reason is None:
            return prompt
        return Rejected(entity.entity_id, entity.file, entity.line, reason)

    def _count(self, found: Prompt | Rejected) -> None:
        if isinstance(found, Rejected):
            # Of equal reasons with other numbers in them, one line.
            self._reasons[re.sub(r"\b\d+ tokens", "N tokens", found.reason)] += 1
        else:
            self._sizes.append(len(found.text) if found.tokens is None else found.tokens)


def unfit(tokens: int, context: int) -> str | None:
    """Why a prompt of so many tokens cannot be served in a context of `context`, if it cannot."""
    if tokens > context - 1:
        return f"the prompt has {tokens} tokens, the model's context takes at most {context - 1}"
    return None if tokens else "the prompt is empty"


def unknown_token(ids: IntArray, vocabulary: int) -> str | None:
    """What is wrong with ids that a model of `vocabulary` tokens has no embedding for, if any."""
    largest = int(ids.max(initial=0))
    if largest < vocabulary:
        return None
    return (
        f"the prompt has token {largest}, which the model does not know (its embedding has "
        f"{vocabulary} rows)"
    )
