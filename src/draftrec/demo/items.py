"""Books for readers, six ways: the same users, recommended for in several ways.

All users once, many at a time, for what does not depend on the clock: lists, target calls, quality.
Then some of them one at a time, in rounds that the ways take in turn, for the time; and at growing
numbers of users at once, since that is what decides whether drafting pays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from draftrec.config import RecommendConfig
from draftrec.data.sequences import History
from draftrec.demo.shop import READERS, Shipped, histories, load_shipped, shipped_path
from draftrec.engine.costs import CostCurve
from draftrec.evaluate.beam_speed import (
    EngineRun,
    Spread,
    UserBeams,
    Watch,
    one_thread,
    paired_speedup,
    turns,
)
from draftrec.evaluate.ranking import RankingScores, multi_target
from draftrec.jobs.recommend.catalogue import Query, Recommendation
from draftrec.jobs.recommend.recommender import ItemRecommender

RECOMMENDING, TIMING, CROWDING = "recommending", "timing one at a time", "timing many at once"
PLAIN = "plain"
#: Ways of recommending: who drafts, how far ahead, who decides.
WAYS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "draft": {"draft": True},
    "items": {"items": True},
    "auto": {"items": True, "draft_steps": "auto"},
    "sample": {"draft": True, "verify": "sample"},
    "relaxed": {"draft": True, "verify": "relaxed"},
}
#: Only to see that a drafted sample is the one that the target alone draws.
UNDRAFTED = "undrafted sample"
_CROWD = (PLAIN, "draft", "items", "auto")
_CROWD_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Size:
    """The demo's size. `users` are recommended for, the first `timed` of them also against the
    clock, in at most `rounds` rounds (at least three) of about `seconds` in all; then in three
    rounds for every size of `crowds`."""

    users: int = 200
    timed: int = 32
    rounds: int = 5
    seconds: float = 20.0
    crowds: tuple[int, ...] = (4, 16)
    k: int = 10
    draft_beams: int = 20
    draft_items: int = 8
    readers: int = READERS
    shipped: Path = field(default_factory=shipped_path)

    def config(self, way: Mapping[str, Any], batch: int) -> RecommendConfig:
        """The settings of a way, for `batch` users at once."""
        return RecommendConfig(
            k=self.k,
            draft_beams=self.draft_beams,
            draft_steps=way.get("draft_steps", 3),
            draft_items=self.draft_items,
            verify=way.get("verify", "strict"),
            batch_size=batch,
            exclude_seen=True,
        )


#: Beside another story: less of everything but the ways.
SHORT = Size(users=60, timed=8, rounds=3, crowds=(8,))


@dataclass(frozen=True, slots=True)
class Crowd:
    """Speedups over plain search with `users` at once, by way."""

    users: int
    speedup: dict[str, Spread]


@dataclass(frozen=True, eq=False, slots=True)
class Story:
    """All that happened. `answers` of every user by way, `timed` runs of the timed ones, `costs` of
    passes of target and draft, `quality` of the target and of the baselines."""

    plan: Size
    shipped: Shipped
    asked: list[History]
    answers: dict[str, list[Recommendation]]
    timed: dict[str, EngineRun]
    crowds: list[Crowd]
    costs: dict[str, CostCurve]
    quality: dict[str, RankingScores]
    seconds: float


def tell(plan: Size, watch: Watch = lambda stage, done, total: None) -> Story:
    """Run the whole demo. Raises DraftrecError when the embedded models are not there."""
    start = time.perf_counter()
    with one_thread():
        shipped = load_shipped(plan.shipped, max(plan.readers, plan.users))
        asked = histories(shipped.readings[: plan.users], "test")
        queries = [Query(h.user, h.items) for h in asked]
        answers = _everyone(shipped, plan, queries, watch)
        few = queries[: plan.timed]
        recommenders, progress = ways(shipped, plan, 1), partial(watch, TIMING)
        timed = race(recommenders, few, plan.rounds, plan.seconds, progress)
        crowds = _crowds(shipped, plan, few, timed, watch)
        costs = _costs(shipped, plan)
        quality = _quality(shipped, asked, answers[PLAIN], plan.k)
    seconds = time.perf_counter() - start
    return Story(plan, shipped, asked, answers, timed, crowds, costs, quality, seconds)


def ways(shipped: Shipped, plan: Size, batch: int) -> dict[str, ItemRecommender]:
    """A recommender for every way, all around the same models."""
    parts, found = shipped.parts, {}
    base = ItemRecommender(parts, shipped.catalogue, plan.config({}, batch))
    for name, way in WAYS.items():
        draft = parts.draft if way.get("draft") else None
        items = parts.retriever if way.get("items") else None
        found[name] = base.variant(plan.config(way, batch), draft, items)
    return found


def race(
    recommenders: Mapping[str, ItemRecommender],
    queries: Seq[Query],
    rounds: int,
    seconds: float = float("inf"),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, EngineRun]:
    """Time all on the same users, in `turns`; a round before them is not counted."""
    names = list(recommenders)
    taken: dict[str, list[float]] = {name: [] for name in names}
    last: dict[str, list[Recommendation]] = {}
    total, done = len(names) * (rounds + 1), 0
    for turn, order in enumerate(chain([names], turns(names, rounds, seconds))):
        for name in order:
            began = time.perf_counter()
            last[name] = recommenders[name].recommend(queries)
            if turn:
                taken[name].append(time.perf_counter() - began)
            done += 1
            progress(done, total)
    progress(total, total)
    return {name: EngineRun(as_beams(last[name]), taken[name]) for name in names}


def as_beams(answers: Seq[Recommendation]) -> list[UserBeams]:
    """Answers as the figures of beam searches want them."""
    return [
        UserBeams(
            a.items,
            a.scores.tolist(),
            a.target_calls,
            a.accepted_steps,
            a.beams,
            a.invalid,
            a.drafted,
        )
        for a in answers
    ]


def _everyone(
    shipped: Shipped, plan: Size, queries: Seq[Query], watch: Watch
) -> dict[str, list[Recommendation]]:
    """Every way once, with many users at a time."""
    found = ways(shipped, plan, 32)
    found[UNDRAFTED] = found[PLAIN].variant(found["sample"].config)
    total, answers = len(found) * len(queries), {}
    watch(RECOMMENDING, 0, total)
    for name, recommender in found.items():
        answers[name] = recommender.recommend(queries)
        watch(RECOMMENDING, len(answers) * len(queries), total)
    return answers


def _crowds(
    shipped: Shipped,
    plan: Size,
    queries: Seq[Query],
    alone: Mapping[str, EngineRun],
    watch: Watch,
) -> list[Crowd]:
    """How speedups change with the users that are searched for at once."""
    found = [Crowd(1, {name: _speedup(alone, name) for name in _CROWD[1:]})]
    for place, size in enumerate(plan.crowds):

        def progress(done: int, total: int, before: int = place) -> None:
            watch(CROWDING, before * total + done, len(plan.crowds) * total)

        chosen = {n: r for n, r in ways(shipped, plan, size).items() if n in _CROWD}
        runs = race(chosen, queries, _CROWD_ROUNDS, progress=progress)
        speedups = {name: _speedup(runs, name) for name in _CROWD[1:]}
        found.append(Crowd(min(size, len(queries)), speedups))
    return found


def _speedup(runs: Mapping[str, EngineRun], name: str) -> Spread:
    return paired_speedup(runs[PLAIN].seconds, runs[name].seconds)


def _costs(shipped: Shipped, plan: Size) -> dict[str, CostCurve]:
    """What a pass of either model takes, by its rows, for one user."""
    from draftrec.engine.beams.model import BeamModel, Constraint
    from draftrec.engine.beams.pace import measure_passes

    trie = shipped.catalogue.trie
    constraint = Constraint(trie, trie.levels)
    most = plan.draft_beams * (trie.levels - 1) + plan.k
    models = {"target": shipped.parts.target, "draft": shipped.parts.draft}
    return {
        name: measure_passes(BeamModel(model, constraint), 1, 40, most, seconds=1.0)
        for name, model in models.items()
        if model is not None
    }


def _quality(
    shipped: Shipped, asked: Seq[History], plain: Seq[Recommendation], k: int
) -> dict[str, RankingScores]:
    """Recall and NDCG of the target and of what needs no model, on the same users."""
    known, targets = [h.items for h in asked], [h.targets for h in asked]
    proposed, _ = shipped.items.propose_many(known, k, exclude_seen=True)
    popular = shipped.items.popular
    lists = {
        "target": [a.items for a in plain],
        "item-item": list(proposed),
        "popularity": [popular[~np.isin(popular, items)][:k] for items in known],
    }
    ks = sorted({1, min(5, k), k})
    return {name: multi_target(found, targets, ks) for name, found in lists.items()}


def shown(story: Story, count: int) -> Iterator[int]:
    """Places of users to show, spread evenly: nobody is picked for looking good."""
    step = max(1, len(story.asked) // count)
    yield from range(0, len(story.asked), step)
