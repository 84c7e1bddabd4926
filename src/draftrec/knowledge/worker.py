"""A worker: the records of one shard in, their texts out.

The local job has one, a cluster many; what a shard comes to depends on neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from draftrec.core import Generation, IntArray, Request
from draftrec.data.records import Entity, Rejected
from draftrec.knowledge.metrics import ShardCost, peak_memory
from draftrec.knowledge.plan import JobSpec
from draftrec.knowledge.prompts import unfit, unknown_token
from draftrec.knowledge.refresh import PreviousRun, unchanged
from draftrec.knowledge.shards import Written, prompt_hash
from draftrec.models.prompting import ChatTemplate, PromptForm

if TYPE_CHECKING:
    from draftrec.decoding.stats import StepStats, Timing
    from draftrec.pool.store import Pool

#: Token ids and group of each text of a shard, in order.
Texts = Seq[tuple[IntArray, str | None]]
#: The texts of a finished shard, by its index.
TextsOf = Callable[[int], Texts]
OnStep = Callable[["StepStats"], None]
ShouldStop = Callable[[], bool]


class TextGenerator(Protocol):
    """What a worker needs of a generator; `draftrec.Generator` is one."""

    pool: Any

    @property
    def fingerprint(self) -> dict[str, str]: ...
    @property
    def context_length(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def timing(self) -> Timing: ...
    @property
    def cost_state(self) -> dict[str, Any] | None: ...
    @property
    def has_chat_template(self) -> bool: ...
    @property
    def chat_template(self) -> ChatTemplate | None: ...
    def encode(self, prompts: list[str], *, form: PromptForm) -> list[IntArray]: ...
    def decode(self, token_ids: IntArray) -> str: ...
    def run(
        self,
        requests: Seq[Request],
        *,
        on_step: OnStep | None = None,
        should_stop: ShouldStop | None = None,
    ) -> list[Generation]: ...
    def commit(self, texts: Texts) -> None: ...


@dataclass(frozen=True, slots=True)
class Facts:
    """What a job records, and decides by, of the model that its workers have."""

    fingerprint: dict[str, str]
    device: str
    dtype: str
    has_chat_template: bool
    chat_template: ChatTemplate | None = None
    cost_state: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ShardTask:
    """The records of shard `index`, counted from 0, which draft from the first `known` shards.

    `form`: how prompts become what the model is sent; `keep`: leave the previous run's text where
    its prompt is unchanged.
    """

    index: int
    records: Seq[Entity | Rejected]
    known: int
    form: PromptForm
    keep: bool


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What a shard came to: `texts` in the order of its records, of which `new` were written now
    and `kept` are the previous run's, which had written for `earlier` of them; those rejected."""

    texts: list[Written]
    new: list[Generation]
    kept: int
    earlier: int
    rejected: list[Rejected]
    cost: ShardCost
    cost_state: dict[str, Any] | None


class ShardWorker:
    """Writes texts with one generator, from its own pool."""

    def __init__(self, generator: TextGenerator, previous: PreviousRun | None = None) -> None:
        self.generator, self.previous = generator, previous
        self.learned = 0

    @property
    def facts(self) -> Facts:
        """Of the model that this worker has."""
        it = self.generator
        return Facts(
            it.fingerprint,
            it.device,
            it.dtype,
            it.has_chat_template,
            it.chat_template,
            it.cost_state,
        )

    def learn(self, shards: int, texts_of: TextsOf) -> None:
        """Draft from the texts of the first `shards` shards from now on, if from any pool."""
        pool = self.generator.pool
        while pool is not None and self.learned < shards:
            if not pool.full:  # a full one need not even be told
                self.generator.commit(texts_of(self.learned))
            self.learned += 1

    def unlearn(self, pool: Any) -> None:
        """Draft from `pool` alone, which no shard has joined yet."""
        self.generator.pool, self.learned = pool, 0

    def work(
        self, task: ShardTask, on_step: OnStep | None = None, should_stop: ShouldStop | None = None
    ) -> ShardResult:
        """Do a shard, whose known shards have been learned. Raises Interrupted (of
        `decoding.generate`) once `should_stop()` is true."""
        before = _spent(self.generator)
        requests, rejected = self._requests(task)
        requests, kept = self._refresh(requests, keep=task.keep)
        asked = [r for r in requests if r.entity_id not in kept]
        new = []
        if asked:
            new = self.generator.run(asked, on_step=on_step, should_stop=should_stop)
        cost = _spent(self.generator, before)
        texts = list(self._texts(requests, new, kept))
        state = self.generator.cost_state
        earlier = sum(request.previous_ids is not None for request in requests)
        return ShardResult(texts, new, len(kept), earlier, rejected, cost, state)

    def _requests(self, task: ShardTask) -> tuple[list[Request], list[Rejected]]:
        """Prompts as token ids; those that do not fit join the rejected, in input order."""
        entities = [record for record in task.records if isinstance(record, Entity)]
        prompts = [entity.prompt for entity in entities]
        encoded = iter(self.generator.encode(prompts, form=task.form))
        requests: list[Request] = []
        rejected: list[Rejected] = []
        for record in task.records:
            if isinstance(record, Rejected):
                rejected.append(record)
                continue
            ids = next(encoded)
            reason = unfit(len(ids), self.generator.context_length)
            reason = reason or unknown_token(ids, self.generator.vocabulary)
            if reason:
                rejected.append(Rejected(record.entity_id, record.file, record.line, reason))
            else:
                key = key_of(record.entity_id)
                requests.append(Request(record.entity_id, ids, record.group, key=key))
        return requests, rejected

    def _refresh(
        self, requests: Seq[Request], *, keep: bool
    ) -> tuple[list[Request], dict[str, Written]]:
        """Requests with their entities' earlier texts, and the texts that stay, by entity."""
        if self.previous is None:
            return list(requests), {}
        found = self.previous.find([r.entity_id for r in requests])
        kept: dict[str, Written] = {}
        for request in requests:
            earlier = found.get(request.entity_id)
            if keep and earlier and unchanged(earlier, request.prompt_ids):
                generation = earlier.kept(request.entity_id, len(request.prompt_ids))
                kept[request.entity_id] = Written(
                    generation, request.group, earlier.text, earlier.prompt_hash
                )
        told = [
            replace(r, previous_ids=found[r.entity_id].token_ids) if r.entity_id in found else r
            for r in requests
        ]
        return told, kept

    def _texts(
        self, requests: Seq[Request], written: Seq[Generation], kept: dict[str, Written]
    ) -> Iterator[Written]:
        """Kept and new texts in the order of the requests."""
        new = iter(written)
        for request in requests:
            if (text := kept.get(request.entity_id)) is None:
                generation = next(new)
                decoded = self.generator.decode(generation.token_ids)
                hashed = prompt_hash(request.prompt_ids)
                text = Written(generation, request.group, decoded, hashed)
            yield text


def load_generator(spec: JobSpec, cost_state: dict[str, Any] | None) -> TextGenerator:
    """The generator that a job asks for, its pool opened. Takes seconds: it imports PyTorch."""
    from draftrec.knowledge.generator import Generator
    from draftrec.models import loading

    config, pool = spec.config.generate, None
    if spec.pool and config.draft.draft == "pool":
        # Before the model, which may take minutes to load only to find that the pool is not its.
        tokenizer = loading.load_tokenizer_of(config.target)
        pool = given_pool(spec, loading.tokenizer_fingerprint(tokenizer))
    made = Generator.from_pretrained(
        config.target.model, config=config, pool=pool, cost_state=cost_state
    )
    return cast(TextGenerator, made)  # pyright does not see that a cached property is one


def given_pool(spec: JobSpec, tokenizer: str) -> Pool:
    """What the first shard drafts from; `tokenizer`: its fingerprint."""
    from draftrec.pool.store import Pool

    return Pool.load(spec.pool, tokenizer) if spec.pool else Pool(tokenizer)


def key_of(entity_id: str) -> int:
    """Seeds one entity's sampling, wherever it stands in the input and whoever asks."""
    digest = hashlib.blake2b(entity_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


_NOTHING = ShardCost(0.0, 0.0, 0.0, 0)


def _spent(generator: TextGenerator, since: ShardCost = _NOTHING) -> ShardCost:
    """What the generator has taken, from a reading of its clocks on."""
    now = generator.timing
    return ShardCost(
        now.draft_seconds - since.draft_seconds,
        now.verify_seconds - since.verify_seconds,
        now.prefill_seconds - since.prefill_seconds,
        peak_memory(generator.device),
    )
