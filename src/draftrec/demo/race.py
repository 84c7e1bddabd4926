"""Several ways of writing the same texts, timed in turns: a busy machine disturbs all alike."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from draftrec.core import SOURCES, Generation, Request
from draftrec.evaluate.report import Spread

if TYPE_CHECKING:
    from draftrec.engine.text.stats import StepStats
    from draftrec.jobs.knowledge.generator import Generator

Progress = Callable[[int], None]

_LEAST_REPEATS = 3


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

    def total(self, count: str) -> int:
        """A count of `core.Counts` summed over all texts and repeats."""
        return sum(getattr(g.counts, count) for run in self.repeats for g in run)

    @property
    def new_tokens(self) -> int:
        return sum(len(g.token_ids) for run in self.repeats for g in run)

    @property
    def accepted_by_source(self) -> tuple[int, ...]:
        rows = [g.counts.accepted_by_source for run in self.repeats for g in run]
        return tuple(sum(row[i] for row in rows) for i in range(len(SOURCES)))

    def identical_to(self, other: Contender) -> int:
        """Texts that equal the other's first ones, token for token, in every repeat."""
        return sum(
            all((run[i].token_ids.tolist() == text.token_ids.tolist()) for run in self.repeats)
            for i, text in enumerate(other.texts)
        )

    def speedup_over(self, other: Contender) -> Spread:
        """The other's seconds over ours, repeat by repeat."""
        return spread([a / b for a, b in zip(other.seconds, self.seconds, strict=True)])


def race(
    contenders: Seq[Contender],
    requests: Seq[Request],
    repeats: int,
    seconds: float = float("inf"),
    progress: Progress = lambda texts: None,
) -> None:
    """Let every contender write all texts `repeats` times, taking turns in going first.

    On a slow machine fewer repeats are made, but at least three, so as to take about `seconds`.
    """
    for one in contenders:
        one.generator.run(requests[:1])  # measures costs, compiles, warms caches: not counted
        timing = one.generator.timing
        timing.draft_seconds = timing.verify_seconds = timing.prefill_seconds = 0.0
    start = time.perf_counter()
    for repeat in range(repeats):
        expected = (time.perf_counter() - start) * (repeat + 1) / max(repeat, 1)
        if repeat >= _LEAST_REPEATS and expected > seconds:
            break
        turn = repeat % len(contenders)
        for one in [*contenders[turn:], *contenders[:turn]]:
            _run(one, requests, progress)


def spread(values: Seq[float]) -> Spread:
    """Median, lowest, highest."""
    return Spread(median(values), min(values), max(values))


def _run(one: Contender, requests: Seq[Request], progress: Progress) -> None:
    def on_step(step: StepStats) -> None:
        if step.drafted_tokens:
            one.accepted_per_call[step.accepted_tokens] += 1
        if step.finished:
            progress(step.finished)

    start = time.perf_counter()
    texts = one.generator.run(requests, on_step=on_step)
    one.seconds.append(time.perf_counter() - start)
    one.repeats.append(texts)
