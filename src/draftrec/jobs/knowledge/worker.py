"""A worker: the records of one shard in, their texts out.

The local job has one, a cluster many; what a shard comes to depends on neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from draftrec.core import Generation, IntArray, Request
from draftrec.data.records import Entity, Rejected
from draftrec.engine.text.stats import Spent
from draftrec.errors import DraftrecError
from draftrec.jobs.executor import Note, OnProgress, Share, ShouldStop, usual_window
from draftrec.jobs.knowledge.account import Endings, curve_seconds
from draftrec.jobs.knowledge.manifest import Facts
from draftrec.jobs.knowledge.metrics import ShardCost, peak_memory
from draftrec.jobs.knowledge.plan import JobSpec
from draftrec.jobs.knowledge.prompts import key_of, samples_of, unfit, unknown_token
from draftrec.jobs.knowledge.refresh import Earlier, PreviousRun, unchanged
from draftrec.jobs.knowledge.shards import (
    Clock,
    Entry,
    Journal,
    RunFolder,
    Written,
    pieces_of,
    prompt_hash,
)
from draftrec.models.prompting import PromptForm

if TYPE_CHECKING:
    from draftrec.engine.costs import PassCosts
    from draftrec.engine.text.stats import StepStats, Timing
    from draftrec.pool.store import Pool

#: Texts of a shard of which is kept where their words came from.
_SAMPLED = 16
#: Token ids and group of each text of a shard, in order.
Texts = Seq[tuple[IntArray, str | None]]
#: The texts of a finished shard, by its index.
TextsOf = Callable[[int], Texts]
OnStep = Callable[["StepStats"], None]
OnText = Callable[[Request, Generation], None]
#: Makes the generator; the state is what a run before this one knew of costs.
Loader = Callable[[JobSpec, dict[str, Any] | None], "TextGenerator"]
#: What the first shard drafts from; the text is the tokenizer's fingerprint.
Given = Callable[[JobSpec, str], Any]


class TextGenerator(Protocol):
    """What a worker needs of a generator; `draftrec.Generator` is one."""

    pool: Any

    @property
    def context_length(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def timing(self) -> Timing: ...
    @property
    def cost_state(self) -> dict[str, Any] | None: ...
    @property
    def facts(self) -> Facts: ...
    def render(self, prompts: list[str], form: PromptForm) -> list[str]: ...
    def encode(self, prompts: list[str], *, form: PromptForm) -> list[IntArray]: ...
    def decode(self, token_ids: IntArray) -> str: ...
    def run(
        self,
        requests: Seq[Request],
        *,
        on_step: OnStep | None = None,
        should_stop: ShouldStop | None = None,
        on_text: OnText | None = None,
    ) -> list[Generation]: ...
    def slots(self, longest: int) -> int: ...
    def cost_curve(self, longest: int, texts: int | None = None) -> PassCosts | None: ...
    def commit(self, texts: Texts) -> None: ...


@dataclass(frozen=True, slots=True)
class ShardTask:
    """The records of shard `index`, counted from 0, which draft from the first `known` shards.

    `form`: how prompts become what the model is sent; `keep`: leave the previous run's texts where
    their prompt is unchanged; `samples`: texts of each record.
    """

    index: int
    records: Seq[Entity | Rejected]
    known: int
    form: PromptForm
    keep: bool
    samples: int = 1


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What a shard came to: `texts` in the order of its records, of which `new` were written now;
    those of `kept` records are the previous run's, which had written for `earlier` records; the
    rejected; and how the texts ended."""

    texts: list[Written]
    new: list[Generation]
    kept: int
    earlier: int
    rejected: list[Rejected]
    cost: ShardCost
    cost_state: dict[str, Any] | None
    endings: Endings


class ShardWorker:
    """Writes texts with one generator, from its own pool.

    `joins_at_once`: its finished texts join the pool at once, and not when their shard is learned.
    `folder`: the run's, which finished shards are learned from and journals are kept in; None: none
    are. `given`: the pool before any shard, for a task that was begun when less was known; None:
    whatever is known may be drafted from. `alone`: no other worker does shards of the job.
    """

    def __init__(
        self,
        generator: TextGenerator,
        previous: PreviousRun | None = None,
        *,
        joins_at_once: bool = False,
        folder: RunFolder | None = None,
        given: Callable[[], Any] | None = None,
        alone: bool = True,
    ) -> None:
        self.generator, self.previous, self.folder = generator, previous, folder
        self.joins_at_once, self._given, self._alone = joins_at_once, given, alone
        self.learned = 0
        self._joined: set[int] = set()
        self._counted = generator.timing.spent

    @property
    def facts(self) -> Facts:
        """Of the model that this worker has."""
        facts = self.generator.facts
        return facts if self._alone else replace(facts, cost_state=None)  # devices may differ

    def __call__(
        self,
        task: ShardTask,
        on_step: OnProgress | None = None,
        should_stop: ShouldStop | None = None,
        /,
    ) -> ShardResult:
        """Learn what the shard may draft from, and do it; as `work`."""
        if task.known < self.learned and self._given is not None:
            # The shard of a lost worker, which was begun when less was known.
            self.unlearn(self._given())
        if self.folder is not None:
            self.learn(task.known, self.folder.texts)
        result = self.work(task, on_step, should_stop)
        if self._alone:
            return result
        # Shards of several workers go on side by side, so earlier lives' times would count twice.
        return replace(result, cost=replace(result.cost, earlier_seconds=0.0), cost_state=None)

    def merged(self, steps: list[StepStats], /) -> list[StepStats]:
        """All steps of a shard as one."""
        from draftrec.engine.text.stats import summed

        return [summed(steps)] if steps else []

    def learn(self, shards: int, texts_of: TextsOf) -> None:
        """Draft from the texts of the first `shards` shards from now on, if from any pool."""
        pool = self.generator.pool
        while pool is not None and self.learned < shards:
            # A full one need not even be told; and own texts joined when they were finished.
            if not pool.full and self.learned not in self._joined:
                self.generator.commit(texts_of(self.learned))
            self.learned += 1

    def unlearn(self, pool: Any) -> None:
        """Draft from `pool` alone, which no shard has joined yet."""
        self.generator.pool, self.learned = pool, 0
        self._joined.clear()

    def work(
        self, task: ShardTask, on_step: OnStep | None = None, should_stop: ShouldStop | None = None
    ) -> ShardResult:
        """Do a shard, whose known shards have been learned. Raises Interrupted once `should_stop()`
        is true."""
        requests, prompts, rejected = self._requests(task)
        requests, kept = self._refresh(requests, task)
        asked = [r for r in requests if r.entity_id not in kept]
        if self.joins_at_once:
            self._joined.add(task.index)
            stays = [text for texts in kept.values() for text in texts]
            self.generator.commit([(t.generation.token_ids, t.group) for t in stays])
        with self._journal(task.index) as journal:
            # From the last shard on, so that what learning from it took is drafting as well.
            since = self._counted
            writing = _Writing(self.generator, asked, since, self.joins_at_once, journal)
            new = writing.run(on_step, should_stop)
        self._counted = self.generator.timing.spent
        texts = list(self._texts(requests, new, kept))
        if self.folder and self.folder.keep_prompts:
            texts = [replace(t, prompt=p) for t, p in zip(texts, prompts, strict=True)]
        endings = Endings()
        for text in texts:
            endings.add(text.generation, text.text)
        earlier = sum(r.previous_ids is not None for r in requests if r.sample == 0)
        cost, state = writing.cost(), self.generator.cost_state
        return ShardResult(texts, new, len(kept), earlier, rejected, cost, state, endings)

    def _journal(self, index: int) -> AbstractContextManager[Journal | None]:
        return Journal(self.folder.journal(index)) if self.folder else nullcontext()

    def _requests(self, task: ShardTask) -> tuple[list[Request], list[str], list[Rejected]]:
        """Prompts as token ids, once for every text, and as the model is sent them where they are
        kept; those that do not fit join the rejected, in input order."""
        entities = [record for record in task.records if isinstance(record, Entity)]
        prompts = [entity.prompt for entity in entities]
        keeps = self.folder is not None and self.folder.keep_prompts
        # Not every tokenizer takes no prompts at all.
        encoded = iter(self.generator.encode(prompts, form=task.form) if prompts else [])
        wrapped = iter(self.generator.render(prompts, task.form) if prompts and keeps else [])
        requests: list[Request] = []
        sent: list[str] = []
        rejected: list[Rejected] = []
        for record in task.records:
            if isinstance(record, Rejected):
                rejected.append(record)
                continue
            ids, prompt = next(encoded), next(wrapped, "")
            reason = unfit(len(ids), self.generator.context_length)
            reason = reason or unknown_token(ids, self.generator.vocabulary)
            if reason:
                rejected.append(Rejected(record.entity_id, record.file, record.line, reason))
            else:
                made = Request(record.entity_id, ids, record.group, key=key_of(record.entity_id))
                requests += samples_of(made, task.samples)
                sent += [prompt] * task.samples
        return requests, sent, rejected

    def _refresh(
        self, requests: Seq[Request], task: ShardTask
    ) -> tuple[list[Request], dict[str, list[Written]]]:
        """Requests with their entities' earlier texts, and the texts that stay, by entity: all that
        it has, or none."""
        if self.previous is None:
            return list(requests), {}
        found = self.previous.find([r.entity_id for r in requests if r.sample == 0])
        kept: dict[str, list[Written]] = {}
        told: list[Request] = []
        for request in requests:
            name, earlier = request.entity_id, found.get(request.entity_id)
            if not earlier:
                told.append(request)
                continue
            if task.keep and unchanged(earlier[0], request):  # it has as many, or keep is false
                text = _kept(earlier[request.sample], request)
                kept.setdefault(name, []).append(text)
            ids = earlier[request.sample % len(earlier)].token_ids
            told.append(replace(request, previous_ids=ids))
        return told, kept

    def _texts(
        self, requests: Seq[Request], written: Seq[Generation], kept: dict[str, list[Written]]
    ) -> Iterator[Written]:
        """Kept and new texts in the order of the requests."""
        new, left = iter(written), _SAMPLED
        for request in requests:
            if request.entity_id in kept:
                yield kept[request.entity_id][request.sample]
                continue
            generation = next(new)
            decoded = self.generator.decode(generation.token_ids)
            hashed = prompt_hash(request.prompt_ids)
            sampled, left = left > 0, left - 1
            pieces = pieces_of(generation, decoded, self.generator.decode) if sampled else None
            sample = request.sample
            yield Written(generation, request.group, decoded, hashed, sample=sample, pieces=pieces)


@dataclass(frozen=True, slots=True)
class ShardWork:
    """Makes the worker that a job asks for. It reads finished shards from the run's folder: what a
    new worker has to catch up with, and what others wrote since its last shard."""

    spec: JobSpec
    load: Loader
    given: Given
    cost_state: dict[str, Any] | None = None
    previous: PreviousRun | None = None
    alone: bool = True

    def __call__(self) -> ShardWorker:
        spec, previous = self.spec, self.previous
        if not self.alone and not spec.output.is_dir():
            raise DraftrecError(
                f"a worker does not see {spec.output}; let --output be on storage that all nodes "
                f"of the cluster share"
            )
        if previous is None and spec.previous:
            previous = PreviousRun(spec.previous)
        generator = self.load(spec, self.cost_state)
        exact, tokenizer = spec.config.pool_lag != "auto", generator.facts.fingerprint["tokenizer"]
        return ShardWorker(
            generator,
            previous,
            joins_at_once=spec.config.joins_at_once,
            folder=spec.run_folder(),
            given=partial(self.given, spec, tokenizer) if exact else None,
            alone=self.alone,
        )

    def window(self, workers: int, note: Note, /) -> int:
        """As many shards as may be begun before an earlier one is finished, and that one."""
        lag = self.spec.config.pool_lag
        window = 1 + (usual_window(workers) if lag == "auto" else lag)
        if window < workers:
            note(f"with a pool lag of {lag} shards only {window} workers have work at a time")
        return window

    def placed(self, share: Share, /) -> ShardWork:
        """The same files, from wherever a worker runs, and its own device, whose passes it measures
        by itself."""
        spec = self.spec
        found = {
            name: path.resolve()
            for name in ("output", "pool", "previous")
            if (path := getattr(spec, name)) is not None
        }
        target = spec.config.generate.target
        folders = {
            name: str(Path(given).resolve())
            for name in ("model", "drafter")
            if (given := getattr(target, name)) is not None and Path(given).exists()
        }
        spec = spec.with_settings(device=share.device(target.device), **folders)
        return ShardWork(replace(spec, **found), self.load, self.given, alone=False)


class _Writing:
    """The texts of one shard that are to be written: what to do as they are.

    Those that the journal has are taken over. `at_once`: finished ones join the pool.
    """

    def __init__(
        self,
        generator: TextGenerator,
        requests: Seq[Request],
        since: Spent,
        at_once: bool,  # noqa: FBT001 - private
        journal: Journal | None,
    ) -> None:
        self._generator, self._journal, self._at_once = generator, journal, at_once
        self._requests = requests
        self._hashes = [prompt_hash(r.prompt_ids) for r in requests]
        self._key = {id(r): h for r, h in zip(requests, self._hashes, strict=True)}
        self._found = journal.found(requests, self._hashes) if journal else {}
        self._earlier = journal.clock if journal else Clock()
        self._start = time.perf_counter()
        self._before = since
        self._curve_seconds = Spent()
        self._told = Spent()
        self._curve: PassCosts | None = None
        self._together = 1
        self._endings = Endings()
        self._fresh: list[tuple[Request, Generation]] = []

    def run(self, on_step: OnStep | None, should_stop: ShouldStop | None) -> list[Generation]:
        """All texts, in the order of the requests."""
        for i, found in self._found.items():
            self._join(self._requests[i], found)
        left = [r for i, r in enumerate(self._requests) if i not in self._found]
        if not left:
            return [self._found[i] for i in range(len(self._requests))]
        longest = max(len(r.prompt_ids) for r in left)
        self._curve = self._generator.cost_curve(longest, len(left))
        self._together = min(len(left), self._generator.slots(longest))

        def step(stats: StepStats) -> None:
            told = self._step(stats)
            if on_step:
                on_step(told)

        written = iter(
            self._generator.run(left, on_step=step, should_stop=should_stop, on_text=self._finished)
        )
        return [
            self._found[i] if i in self._found else next(written)
            for i in range(len(self._requests))
        ]

    def cost(self) -> ShardCost:
        """What the shard took, in all its lives."""
        spent, earlier = self._spent(), self._earlier
        memory = peak_memory(self._generator.device)
        return ShardCost(earlier.spent + spent, memory, earlier.wall)

    def _join(self, request: Request, text: Generation) -> None:
        if self._at_once:
            self._generator.commit([(text.token_ids, request.group)])

    def _finished(self, request: Request, text: Generation) -> None:
        self._endings.add(text, self._generator.decode(text.token_ids))
        self._join(request, text)
        self._fresh.append((request, text))

    def _step(self, step: StepStats) -> StepStats:
        """The step with what it took and how its texts ended."""
        if self._curve is not None:
            passes, plain = curve_seconds(self._curve, step, self._together)
            self._curve_seconds += Spent(passes=passes, plain=plain)
        self._keep()
        spent, ends = self._spent(), self._endings
        told = replace(
            step,
            spent=spent - self._told,
            cut=ends.cut,
            empty=ends.empty,
            looping=ends.looping,
        )
        self._told, self._endings = spent, Endings()
        return told

    def _keep(self) -> None:
        """Enter the step's texts into the journal, with the clock after the step."""
        if self._journal:
            wall = self._earlier.wall + time.perf_counter() - self._start
            clock = Clock(wall, self._earlier.spent + self._spent())
            for request, text in self._fresh:
                self._journal.add(Entry(request.key, self._key[id(request)], text, clock))
            self._journal.tick()
        self._fresh.clear()

    def _spent(self) -> Spent:
        return self._generator.timing.spent - self._before + self._curve_seconds


def load_generator(spec: JobSpec, cost_state: dict[str, Any] | None) -> TextGenerator:
    """The generator that a job asks for, its pool opened. Takes seconds: it imports PyTorch."""
    from draftrec.jobs.knowledge.generator import Generator
    from draftrec.models import loading

    config, pool = spec.config.generate, None
    if spec.pool and config.draft.draft == "pool":
        # Before the model, which may take minutes to load only to find that the pool is not its.
        tokenizer = loading.load_tokenizer_of(config.target)
        pool = given_pool(spec, loading.tokenizer_fingerprint(tokenizer))
    return Generator.from_pretrained(config=config, pool=pool, cost_state=cost_state)


def given_pool(spec: JobSpec, tokenizer: str) -> Pool:
    """What the first shard drafts from; `tokenizer`: its fingerprint."""
    from draftrec.pool.store import Pool

    return Pool.load(spec.pool, tokenizer) if spec.pool else Pool(tokenizer)


def _kept(earlier: Earlier, request: Request) -> Written:
    generation = earlier.kept(request.entity_id, len(request.prompt_ids))
    hashed, sample = earlier.prompt_hash, request.sample
    return Written(generation, request.group, earlier.text, hashed, sample=sample)
