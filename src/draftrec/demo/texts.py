"""Texts about readers, three ways: fill a pool with warm readers' texts, then race over held-out
ones."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftrec.core import Counts, Generation, Request
from draftrec.data.templates import load_template
from draftrec.demo.shop import demo_model_path, split_readers
from draftrec.errors import DraftrecError
from draftrec.evaluate.beam_speed import Spread, Watch, one_thread, paired_speedup, turns

if TYPE_CHECKING:
    from draftrec.engine.text.stats import StepStats
    from draftrec.jobs.knowledge.generator import Generator
    from draftrec.pool.store import Pool

WARMING = "filling the pool"
RACING = "writing the held-out texts"
#: Draft nodes per sequence while the pool is probed: fixed, so that the numbers depend on no clock.
PROBE_BUDGET = 16


@dataclass(frozen=True, slots=True)
class Size:
    """The demo's size; with `items.SHORT`, meant for two minutes on two cores."""

    seed: int = 0
    warm: int = 96
    held_out: int = 12
    repeats: int = 5
    race_seconds: float = 30.0
    max_new_tokens: int = 192
    template: str = "kar"
    model: Path = field(default_factory=demo_model_path)


@dataclass(frozen=True, slots=True)
class Growth:
    """Tokens per call on held-out prompts with a pool of `texts` texts."""

    texts: int
    tokens_per_call: dict[str, float]


@dataclass(slots=True)
class Contender:
    """One way of writing, and what it did: seconds and texts of each repeat.

    `accepted_per_call` counts, over all repeats, how many draft tokens a verification kept; it
    needs one text at a time, because a step reports the sum over its batch.
    """

    name: str
    generator: Generator
    seconds: list[float] = field(default_factory=list)
    repeats: list[list[Generation]] = field(default_factory=list)
    accepted_per_call: Counter[int] = field(default_factory=Counter)

    @property
    def texts(self) -> list[Generation]:
        """The first repeat's."""
        return self.repeats[0]

    @property
    def counts(self) -> Counts:
        """Of all texts and repeats together."""
        return sum((g.counts for run in self.repeats for g in run), Counts())

    @property
    def new_tokens(self) -> int:
        return sum(len(g.token_ids) for run in self.repeats for g in run)

    def identical_to(self, other: Contender) -> int:
        """Texts that equal the other's first ones, token for token, in every repeat."""
        return sum(
            all((run[i].token_ids.tolist() == text.token_ids.tolist()) for run in self.repeats)
            for i, text in enumerate(other.texts)
        )

    def speedup_over(self, other: Contender) -> Spread:
        """The other's seconds over ours, repeat by repeat."""
        return paired_speedup(other.seconds, self.seconds)


@dataclass(frozen=True, slots=True)
class Story:
    """All that happened. `contenders`: baseline, strict, relaxed."""

    plan: Size
    prompts: list[str]
    requests: list[Request]
    contenders: list[Contender]
    growth: list[Growth]
    warm_seconds: float
    seconds: float

    @property
    def pool(self) -> Pool:
        pool = self.contenders[1].generator.pool
        assert pool is not None
        return pool


def tell(plan: Size, watch: Watch = lambda stage, done, total: None) -> Story:
    """Run the whole demo. Raises DraftrecError when the embedded model is not there."""
    from draftrec.config import make_config
    from draftrec.jobs.knowledge.generator import Generator

    if not plan.model.is_dir():
        raise DraftrecError(
            f"The demo's model is missing from {plan.model}; install draftrec again."
        )
    start = time.perf_counter()
    with one_thread():
        strict = Generator.from_pretrained(config=make_config(str(plan.model), **_settings(plan)))
        warm, held_out = _split(plan)
        prompts = _prompts(plan, held_out)
        requests = _requests(strict, held_out, prompts)
        growth = _fill_pool(strict, plan, warm, requests, watch)
        warm_seconds = time.perf_counter() - start
        contenders = _contenders(strict, plan, requests)
        _race(contenders, requests, plan, watch)
    seconds = time.perf_counter() - start
    return Story(plan, prompts, requests, contenders, growth, warm_seconds, seconds)


def _settings(plan: Size, **others: Any) -> dict[str, Any]:
    same = {"device": "cpu", "dtype": "float32", "max_new_tokens": plan.max_new_tokens}
    return {**same, "batch_size": 1, **others}


def _contenders(strict: Generator, plan: Size, requests: list[Request]) -> list[Contender]:
    from draftrec.config import make_config

    strict.run(requests[:1])  # measures costs once, for all who need them
    model = str(plan.model)
    rules = {
        "baseline": make_config(model, **_settings(plan, draft="none")),
        "strict": strict.config,
        "relaxed": make_config(model, **_settings(plan, accept="relaxed")),
    }
    return [
        Contender(name, strict.with_config(rule, pool=strict.pool)) for name, rule in rules.items()
    ]


def _race(contenders: list[Contender], requests: list[Request], plan: Size, watch: Watch) -> None:
    total, done = len(requests) * len(contenders) * plan.repeats, 0

    def progress(texts: int) -> None:
        nonlocal done
        done += texts
        watch(RACING, done, total)

    race(contenders, requests, plan.repeats, plan.race_seconds, progress)


def race(
    contenders: Seq[Contender],
    requests: Seq[Request],
    repeats: int,
    seconds: float = float("inf"),
    progress: Callable[[int], None] = lambda texts: None,
) -> None:
    """Let every contender write all texts `repeats` times, taking turns in going first.

    On a slow machine fewer repeats are made, but at least three, so as to take about `seconds`.
    """
    for one in contenders:
        one.generator.run(requests[:1])  # measures costs, compiles, warms caches: not counted
        timing = one.generator.timing
        timing.draft_seconds = timing.verify_seconds = timing.prefill_seconds = 0.0
    for order in turns(contenders, repeats, seconds):
        for one in order:
            _run(one, requests, progress)


def _run(one: Contender, requests: Seq[Request], progress: Callable[[int], None]) -> None:
    def on_step(step: StepStats) -> None:
        if step.drafted_tokens:
            one.accepted_per_call[step.accepted_tokens] += 1
        if step.finished:
            progress(step.finished)

    start = time.perf_counter()
    texts = one.generator.run(requests, on_step=on_step)
    one.seconds.append(time.perf_counter() - start)
    one.repeats.append(texts)


def _split(plan: Size) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Warm and held-out readers, each the first of their kind."""
    warm, held_out = split_readers(plan.seed)
    return warm[: plan.warm], held_out[: plan.held_out]


def _prompts(plan: Size, records: Seq[dict[str, Any]]) -> list[str]:
    template = load_template(plan.template, "user")
    return [template.render(record) for record in records]


def _requests(
    generator: Generator, records: Seq[dict[str, Any]], prompts: list[str]
) -> list[Request]:
    encoded = generator.encode(prompts, chat=False)
    return [
        Request(record["entity_id"], ids, record["group"], key=i)
        for i, (record, ids) in enumerate(zip(records, encoded, strict=True))
    ]


def _fill_pool(
    generator: Generator,
    plan: Size,
    warm: list[dict[str, Any]],
    probes: list[Request],
    watch: Watch,
) -> list[Growth]:
    """Write warm readers' texts shard by shard, each drafting from those before it.

    Before each shard, and at the end, the held-out prompts show what the pool is worth by then.
    """
    requests = _requests(generator, warm, _prompts(plan, warm))
    writer = _batched(generator, plan, "strict")
    relaxed = _batched(generator, plan, "relaxed")
    growth: list[Growth] = []
    watch(WARMING, 0, plan.warm)
    done, size = 0, max(1, plan.warm // 16)
    while done < len(requests):
        growth.append(_probe(done, writer, relaxed, probes))
        shard = requests[done : done + size]
        texts = writer.run(shard)
        writer.commit([(g.token_ids, r.group) for g, r in zip(texts, shard, strict=True)])
        done += len(shard)
        size = done  # each shard doubles the pool
        watch(WARMING, done, len(requests))
    growth.append(_probe(done, writer, relaxed, probes))
    return growth


def _batched(generator: Generator, plan: Size, accept: str) -> Generator:
    """Same weights and pool, many texts at a time, a fixed budget: for counts, not for times."""
    from draftrec.config import make_config

    settings = _settings(plan, accept=accept, batch_size=16, budget=PROBE_BUDGET)
    config = make_config(str(plan.model), **settings)
    return generator.with_config(config, pool=generator.pool)


def _probe(texts: int, strict: Generator, relaxed: Generator, probes: list[Request]) -> Growth:
    values: dict[str, float] = {}
    for name, generator in (("strict", strict), ("relaxed", relaxed)):
        done = generator.run(probes[:8])
        calls = sum(g.counts.target_calls for g in done)
        values[name] = sum(len(g.token_ids) for g in done) / max(calls, 1)
    return Growth(texts, values)
