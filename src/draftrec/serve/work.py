"""What a `ModelThread` works on: texts, or beam searches, of many clients in one running batch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from draftrec.core import (
    Counts,
    Drafter,
    DraftTree,
    IntArray,
    Request,
    SequenceView,
    TokenScore,
    Verdict,
    Wishes,
)
from draftrec.engine.beams import loop as beam_loop
from draftrec.engine.beams.state import BeamRequest, UserSearch
from draftrec.engine.learned.drafter import HeadDrafter
from draftrec.engine.text import loop as text_loop
from draftrec.engine.text.grammar import GrammarDrafter, GrammarLostError
from draftrec.engine.text.loop import TextRules
from draftrec.engine.text.stats import Timing
from draftrec.errors import DraftrecError, PoolMismatchError, PoolOverwrittenError
from draftrec.jobs.knowledge.generator import Generator
from draftrec.jobs.knowledge.prompts import key_of
from draftrec.jobs.recommend.catalogue import Query, Recommendation
from draftrec.jobs.recommend.recommender import ItemRecommender
from draftrec.pool.drafter import PoolDrafter
from draftrec.pool.store import Pool

if TYPE_CHECKING:
    from draftrec.engine.text.batch import RunningSequence
    from draftrec.engine.text.stats import StepStats
    from draftrec.serve.metrics import ServiceMetrics


@dataclass(frozen=True, eq=False, slots=True)
class Recommended:
    """An answer; `partial`: the deadline came before the model's own, and what usually follows the
    history stands in for it."""

    answer: Recommendation
    partial: bool = False


class RecommendWork:
    """Answers queries with what `recommender` would answer each of them alone."""

    def __init__(self, recommender: ItemRecommender, metrics: ServiceMetrics) -> None:
        self.recommender, self.metrics = recommender, metrics
        self._asked: dict[int, tuple[int, Query, BeamRequest]] = {}

    def prepare(self) -> None:
        """Make the engine, its caches and its kernels ready. What that takes is counted nowhere."""
        self._take(self.recommender)
        recommender = self.recommender
        query = Query(0, recommender.catalogue.sids.items[:1])
        request = recommender.request(query)
        order = self._batch.add(request)
        while not beam_loop.step(self._engine, self._batch).done:
            pass
        recommender.answer(query, request, self._batch.results.pop(order), 0.0)

    def room(self) -> int:
        """Free slots of the batch."""
        return self._batch.room - len(self._batch.waiting)

    def begin(self, number: int, question: Query) -> Recommended | None:
        """Let a user in. Those without a history get popular items at once, where there are any."""
        recommender = self.recommender
        question = recommender.catalogue.known(question)
        if not len(question.history) and recommender.popular is not None:
            return self._told(Recommended(recommender.popular_answer(question)))
        request = recommender.request(question)
        self._asked[self._batch.add(request)] = number, question, request
        return None

    def turn(self) -> Mapping[int, Recommended]:
        """One step of the loop of `engine.beams.loop`."""
        start = time.perf_counter()
        passed = beam_loop.step(self._engine, self._batch)
        self.metrics.observe_beam_pass(passed.users, passed.rows, time.perf_counter() - start)
        return {self._asked[s.order][0]: self._finished(s) for s in passed.done}

    def stop(self, number: int) -> None:
        """Forget a user who has hung up."""
        self._drop(number)

    def cut(self, number: int) -> Recommended:
        """What usually follows the history, for a user who cannot wait for the model."""
        return self.late(self._drop(number))

    def late(self, question: Query) -> Recommended:
        """The same for a user who was never let in."""
        known = self.recommender.catalogue.known(question)
        return self._told(Recommended(self.recommender.quick_answer(known), partial=True))

    def may_change(self) -> bool:
        """Old and new searches would share the caches, and a search takes but a few passes."""
        return False

    def change(self, new: ItemRecommender) -> None:
        """Recommend from another catalogue."""
        self._take(new)

    def rest(self) -> None:
        """Nobody is being recommended for."""
        self.metrics.rest_beams()

    def reset(self) -> None:
        """An engine of its own making, since the old one may still believe in lost searches."""
        recommender = self.recommender
        parts = recommender.parts
        self._take(recommender.swapped(recommender.catalogue, parts.retriever, recommender.popular))

    def _take(self, recommender: ItemRecommender) -> None:
        encoder = recommender.catalogue.encoder
        longest = len(encoder.encode(np.zeros(encoder.form.max_items, np.int64)))
        engine = recommender.engine(max(1, longest // 2))
        beam_loop.reserve(engine, longest)
        self._engine = engine
        self._batch = beam_loop.SearchBatch((), engine.slots, engine.prefixes)
        self._asked.clear()
        self.recommender = recommender

    def _finished(self, s: UserSearch) -> Recommended:
        _, query, request = self._asked.pop(s.order)
        beams = self._batch.results.pop(s.order)
        answer = self.recommender.answer(query, request, beams, time.perf_counter() - s.began)
        self.metrics.observe_beams([beams], results=len(answer.items), invalid=answer.invalid)
        return Recommended(answer)

    def _drop(self, number: int) -> Query:
        order = next(o for o, (known, _, _) in self._asked.items() if known == number)
        beam_loop.drop(self._engine, self._batch, order)
        return self._asked.pop(order)[1]

    def _told(self, found: Recommended) -> Recommended:
        """Count an answer that no model gave."""
        self.metrics.observe_beams((), results=len(found.answer.items), partial=int(found.partial))
        return found


# Passes between two looks at what the pool was worth.
_LOOK = 64
# Settings of requests that are kept ready; a grammar of a large schema holds some megabytes.
_MOST_RULES = 64


@dataclass(frozen=True, eq=False, slots=True)
class Wanted:
    """A text to write: `prompt_ids` int32 `[p]`, special tokens included. `route` asked for it when
    `time.monotonic()` was `arrived`. `key` seeds its sampling; None: that of the entity."""

    entity_id: str
    prompt_ids: IntArray
    group: str | None = None
    route: str = "/v1/knowledge"
    arrived: float = field(default_factory=time.monotonic)
    key: int | None = None
    wishes: Wishes = field(default_factory=Wishes)
    on_tokens: Callable[[IntArray, Seq[TokenScore]], None] | None = None
    """Is told, by the model's thread, of new tokens and their scores, but for those of the pass
    that ends the text."""


@dataclass(frozen=True, slots=True)
class Written:
    """A text, and why it ended; `deadline`: it is what there was by then. `token_ids` int32: new
    ones. `scores`: of every token, where they were wished for."""

    entity_id: str
    text: str
    finish_reason: Literal["eos", "length", "stop", "deadline"]
    token_ids: IntArray
    counts: Counts = field(default_factory=Counts)
    scores: Seq[TokenScore] = ()


class SwitchingDrafter:
    """Drafts with `current` for texts that begin from now on; those under way keep the drafter
    with which they began."""

    def __init__(self, current: Drafter) -> None:
        self.current = current
        self._of: dict[int, Drafter] = {}

    def start(self, sequence: SequenceView) -> None:
        """Give the text to the drafter of these days."""
        self._of[id(sequence)] = self.current
        self.current.start(sequence)

    def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        """Every drafter's trees, in the order of `batch`."""
        trees: dict[int, DraftTree] = {}
        for drafter, mine in self._parted(batch):
            drafted = drafter.draft([batch[i] for i in mine], limit, depth)
            trees |= dict(zip(mine, drafted, strict=True))
        return [trees[i] for i in range(len(batch))]

    def observe(self, batch: Seq[SequenceView], verdicts: Seq[Verdict]) -> None:
        """Tell each drafter of its own texts."""
        for drafter, mine in self._parted(batch):
            drafter.observe([batch[i] for i in mine], [verdicts[i] for i in mine])

    def stop(self, sequence: SequenceView) -> None:
        """Forget a text; an old drafter goes with its last one."""
        self._of.pop(id(sequence)).stop(sequence)

    def pools(self) -> set[Pool]:
        """What texts under way, and later ones, draft from."""
        drafters = [self.current, *self._of.values()]
        return {d.pool for d in drafters if isinstance(d, PoolDrafter) and d.pool is not None}

    def _parted(self, batch: Seq[SequenceView]) -> list[tuple[Drafter, list[int]]]:
        """The drafters of the batch with the places of their texts."""
        found: dict[int, tuple[Drafter, list[int]]] = {}
        for i, sequence in enumerate(batch):
            drafter = self._of[id(sequence)]
            found.setdefault(id(drafter), (drafter, []))[1].append(i)
        return list(found.values())


def _switching(drafter: Drafter) -> tuple[Drafter, SwitchingDrafter]:
    """The drafter with what draws from the pool in it made exchangeable. What a grammar forces and
    what a head foretells do not change with the pool."""
    if isinstance(drafter, GrammarDrafter | HeadDrafter):
        drafter.inner, found = _switching(drafter.inner)
        return drafter, found
    found = SwitchingDrafter(drafter)
    return found, found


@dataclass(slots=True)
class _Underway:
    """A text in the batch. `told` of its tokens were handed over already; `first` ones came in one
    pass, when `time.monotonic()` was `began`; None: none came yet."""

    number: int
    question: Wanted
    told: int = 0
    began: float | None = None
    first: int = 0


class KnowledgeWork:
    """Writes the texts that `generator` would write of each prompt alone (strict), for prompts of
    at most `longest` tokens. The pool is read, never grown."""

    def __init__(self, generator: Generator, longest: int, metrics: ServiceMetrics) -> None:
        self.generator, self.longest, self.metrics = generator, longest, metrics
        self._texts: dict[int, _Underway] = {}  # by their order in the batch
        self._passes = 0
        #: Is told of what costs speed, but no text.
        self.on_error: Callable[[Exception], None] = lambda error: None
        # Texts with the same settings share their rules, and are judged together in a pass.
        self._rules = lru_cache(_MOST_RULES)(self._rules_of)

    def rules(self, settings: Mapping[str, Any]) -> TextRules | None:
        """As `Generator.text_rules`; safe to call from other threads."""
        return self._rules(json.dumps(settings, sort_keys=True))

    def _rules_of(self, settings: str) -> TextRules | None:
        return self.generator.text_rules(json.loads(settings))

    def prepare(self) -> None:
        """Measure what passes cost, take the memory, and write a few tokens, which may be all of a
        text and are counted nowhere."""
        self._build()
        first = Request("", self.generator.encode(["Hello"])[0][: self.longest])
        order = self._batch.add(first)
        with suppress(PoolOverwrittenError):  # the first request meets it again
            text_loop.step(self._engine, self._batch)
        text_loop.drop(self._engine, self._batch, order)
        self._batch.results.clear()
        self.generator.timing = self._engine.timing = Timing()

    def room(self) -> int:
        """Free slots of the batch."""
        batch = self._batch
        return self._engine.slots - len(batch.running) - len(batch.waiting)

    def begin(self, number: int, question: Wanted) -> Written | None:
        """Let a text in."""
        request = Request(
            question.entity_id,
            question.prompt_ids,
            self._group(question),
            key=key_of(question.entity_id) if question.key is None else question.key,
            wishes=question.wishes,
        )
        self._texts[self._batch.add(request)] = _Underway(number, question)
        return None

    def _group(self, question: Wanted) -> str | None:
        """Its group, where the pool knows that: it counts what groups got out of it, and clients
        may name whatever group they like."""
        pool = self.generator.pool
        return question.group if pool is not None and question.group in pool.groups else None

    def turn(self) -> Mapping[int, Written | DraftrecError]:
        """One step of the loop of `engine.text.loop`. A text that its grammar cannot follow fails
        alone; the others take the step again, as all do, without the pool, where that was
        overwritten."""
        try:
            text_loop.step(self._engine, self._batch, self._count)
        except PoolOverwrittenError as error:
            self.on_error(error)
            for pool in self._drafter.pools():
                pool.forget_files()
            return {}
        except GrammarLostError as error:
            order = next(s.order for s in self._batch.running if s is error.sequence)
            number = self._texts[order].number
            self.stop(number)
            return {number: error}
        self._tell()
        finished = list(self._batch.results)
        self._note_first_tokens(finished)
        return {self._texts[order].number: self._finished(order) for order in finished}

    def _tell(self) -> None:
        """Hand new tokens to whoever reads along."""
        for sequence in self._batch.running:
            text = self._texts[sequence.order]
            if text.question.on_tokens and sequence.new_tokens > text.told:
                fresh = sequence.context[sequence.prompt_tokens + text.told :].copy()
                text.question.on_tokens(fresh, sequence.scores[text.told :])
                text.told = sequence.new_tokens

    def stop(self, number: int) -> None:
        """Forget a text that nobody waits for."""
        self._drop(number)

    def cut(self, number: int) -> Written:
        """The text so far."""
        text, sequence = self._drop(number)
        if sequence is None:
            return self.late(text.question)
        self._note_token_time(text, sequence.new_tokens)
        tokens = sequence.context[sequence.prompt_tokens :].copy()
        return self._told(text.question, tokens, "deadline", sequence.counts, sequence.scores)

    def _drop(self, number: int) -> tuple[_Underway, RunningSequence | None]:
        order = next(order for order, text in self._texts.items() if text.number == number)
        return self._texts.pop(order), text_loop.drop(self._engine, self._batch, order)

    def late(self, question: Wanted) -> Written:
        """No text at all: there was no time to begin."""
        return self._told(question, question.prompt_ids[:0], "deadline")

    def may_change(self) -> bool:
        """Texts under way keep the pool with which they began."""
        return True

    def change(self, new: Pool) -> None:
        """Draft from another pool. Raises PoolMismatchError for one of another tokenizer."""
        if new.tokenizer_fingerprint != self.generator.fingerprint["tokenizer"]:
            raise PoolMismatchError(
                "the new pool was made with another tokenizer than the model's; the old one stays"
            )
        new.check_vocabulary(self.generator.vocabulary)
        self.generator.pool = new
        if self.generator.config.draft.draft == "pool":
            self._drafter.current = PoolDrafter(new)
        self._look()

    def rest(self) -> None:
        """No text is being written."""
        self.metrics.rest_texts()

    def reset(self) -> None:
        """A new engine over the same model."""
        self._build()

    def _build(self) -> None:
        engine = self.generator.engine(self.longest)
        engine.drafter, self._drafter = _switching(engine.drafter)
        self._engine, self._batch = engine, text_loop.empty_batch(engine, self.longest)
        if self.generator.config.draft.draft != "none" and not self.generator.grammar:
            engine.drafter = GrammarDrafter(engine.drafter)  # for texts that come with one
            engine.certain = engine.drafter.certain
        self._texts.clear()
        slab = engine.target.slab
        assert slab is not None
        rows = slab.slots * slab.capacity
        self.metrics.set_kv_capacity(rows, rows * engine.target.bytes_per_token)
        if self.generator.learned:
            learned = self.generator.learned.learned
            self.metrics.set_drafter(learned.info.form, learned.info.levels, learned.fingerprint)
        self._look()

    def _finished(self, order: int) -> Written:
        text, found = self._texts.pop(order), self._batch.results.pop(order)
        self._note_token_time(text, len(found.token_ids))
        reason, counts, scores = found.finish_reason, found.counts, found.scores
        return self._told(text.question, found.token_ids, reason, counts, scores)

    def _note_first_tokens(self, finished: Seq[int]) -> None:
        now = time.monotonic()
        new = [(s.order, s.new_tokens) for s in self._batch.running if s.new_tokens]
        new += [(order, len(self._batch.results[order].token_ids)) for order in finished]
        for order, tokens in new:
            text = self._texts[order]
            if text.began is None:
                text.began, text.first = now, tokens
                self.metrics.observe_first_token(text.question.route, now - text.question.arrived)

    def _note_token_time(self, text: _Underway, tokens: int) -> None:
        """Of the tokens that came after those of the pass that brought the first."""
        if text.began is not None and tokens > text.first:
            seconds = (time.monotonic() - text.began) / (tokens - text.first)
            self.metrics.observe_token_time(text.question.route, seconds)

    def _told(
        self,
        question: Wanted,
        tokens: IntArray,
        reason: Literal["eos", "length", "stop", "deadline"],
        counts: Counts | None = None,
        scores: Seq[TokenScore] = (),
    ) -> Written:
        self.metrics.observe_text(reason, len(tokens))
        text = self.generator.decode(tokens, question.wishes.rules) if len(tokens) else ""
        return Written(question.entity_id, text, reason, tokens, counts or Counts(), tuple(scores))

    def _count(self, step: StepStats) -> None:
        self.metrics.observe_step(step)
        self.metrics.observe_timing(self._engine.timing)
        self._passes += 1
        if self._passes % _LOOK == 0:
            self._look()

    def _look(self) -> None:
        pool = self.generator.pool
        self.metrics.name_groups(pool.groups if pool is not None else ())
        if pool is not None:
            self.metrics.set_pool(pool.nbytes, pool.usage.hit_rate, len(pool))
