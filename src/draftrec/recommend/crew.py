"""Who answers the shards of a job. The local crew is one recommender in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from draftrec.data.sequences import History
from draftrec.recommend.recommender import ItemRecommender
from draftrec.recommend.values import Query, Recommendation

#: Told how many more users are done.
OnDone = Callable[[int], None]
ShouldStop = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Fingerprints of the models: what a job records of them. `draft`: or `items`, or `none`."""

    target: str
    draft: str


@dataclass(frozen=True, eq=False, slots=True)
class ShardAnswers:
    """Answers for the users of one shard. `walltime` in seconds; `same`: of users answered again by
    plain search, whether the items were the same; `gap`: the largest difference of a score."""

    answers: list[Recommendation]
    walltime: float
    same: list[bool]
    gap: float

    def facts(self) -> dict[str, Any]:
        """What the summary needs of a shard."""
        searched = [a for a in self.answers if not a.popular]
        return {
            "users": len(self.answers),
            "popular": len(self.answers) - len(searched),
            "walltime_seconds": self.walltime,
            "ms": [round(1e3 * a.seconds, 3) for a in searched],
            "target_calls": sum(a.target_calls for a in searched),
            "accepted_steps": sum(a.accepted_steps for a in searched),
            "draft_calls": sum(a.draft_calls for a in searched),
            "drafted": sum(a.drafted for a in searched),
            "invalid": sum(a.invalid for a in self.answers),
            "beams": sum(len(a.items) + a.invalid for a in self.answers),
            "shadow_users": len(self.same),
            "shadow_same": sum(self.same),
            "shadow_gap": self.gap,
        }


class Crew(Protocol):
    """Answers shards in any order, and gives them back in theirs."""

    @property
    def facts(self) -> ModelFacts: ...

    def results(
        self,
        shards: Iterator[Seq[History]],
        on_done: OnDone | None,
        should_stop: ShouldStop | None,
    ) -> Iterator[ShardAnswers]:
        """Raises Interrupted once `should_stop()` is true."""
        ...

    def close(self) -> None: ...


class LocalRecommender:
    """One recommender, in this process. `shadow`: the share of users answered twice."""

    def __init__(self, recommender: ItemRecommender, facts: ModelFacts, shadow: float) -> None:
        self.recommender, self._facts, self._shadow = recommender, facts, shadow

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    def results(
        self,
        shards: Iterator[Seq[History]],
        on_done: OnDone | None,
        should_stop: ShouldStop | None,
    ) -> Iterator[ShardAnswers]:
        for shard in shards:
            yield self.answer(shard, on_done, should_stop)

    def answer(
        self,
        shard: Seq[History],
        on_done: OnDone | None = None,
        should_stop: ShouldStop | None = None,
    ) -> ShardAnswers:
        """Recommend for the users of one shard, and again for some of them."""
        queries = [Query(h.user, h.items) for h in shard]
        start = time.perf_counter()
        answers = self.recommender.recommend(queries, on_done, should_stop)
        walltime = time.perf_counter() - start
        chosen = np.linspace(0, len(queries) - 1, round(self._shadow * len(queries)))
        again = [queries[i] for i in chosen.astype(np.int64)]
        plain = self.recommender.plain().recommend(again, None, should_stop)
        pairs = [(answers[int(i)], other) for i, other in zip(chosen, plain, strict=True)]
        same = [np.array_equal(a.items, b.items) for a, b in pairs]
        equal = [(a.scores, b.scores) for a, b in pairs if len(a.scores) == len(b.scores)]
        gaps = [float(np.abs(a - b).max(initial=0.0)) for a, b in equal]
        return ShardAnswers(answers, walltime, same, max(gaps, default=0.0))

    def close(self) -> None:
        pass
