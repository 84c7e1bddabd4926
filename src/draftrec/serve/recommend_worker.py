"""Beam searches of many users in one running batch, as `Work` for an `EngineThread`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from draftrec.engine.beams import loop
from draftrec.engine.beams.state import BeamRequest, UserSearch
from draftrec.jobs.recommend.catalogue import Query, Recommendation
from draftrec.jobs.recommend.recommender import ItemRecommender

if TYPE_CHECKING:
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
        """Make the engine, its caches and its kernels ready."""
        self._take(self.recommender)
        first = self.recommender.catalogue.sids.items[:1]
        self.begin(0, Query(0, first))
        while not self.turn():
            pass

    def room(self) -> int:
        """Free slots of the batch."""
        return len(self._batch.free) - len(self._batch.waiting)

    def begin(self, number: int, question: Query) -> Recommended | None:
        """Let a user in. Those without a history get popular items at once, where there are any."""
        recommender = self.recommender
        if not len(question.history) and recommender.popular is not None:
            return self._told(Recommended(recommender.popular_answer(question)))
        request = recommender.request(question)
        self._asked[self._batch.add(request)] = number, question, request
        return None

    def turn(self) -> Mapping[int, Recommended]:
        """One step of the loop of `engine.beams.loop`."""
        start = time.perf_counter()
        passed = loop.step(self._engine, self._batch)
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
        return self._told(Recommended(self.recommender.quick_answer(question), partial=True))

    def may_change(self) -> bool:
        """Old and new searches would share the caches, and a search takes but a few passes."""
        return False

    def change(self, new: ItemRecommender) -> None:
        """Recommend from another catalogue."""
        self._take(new)

    def reset(self) -> None:
        """An engine of its own making, since the old one may still believe in lost searches."""
        recommender = self.recommender
        parts = recommender.parts
        self._take(recommender.swapped(recommender.catalogue, parts.retriever, recommender.popular))

    def _take(self, recommender: ItemRecommender) -> None:
        encoder = recommender.catalogue.encoder
        longest = len(encoder.encode(np.zeros(encoder.form.max_items, np.int64)))
        engine = recommender.engine(max(1, longest // 2))
        loop.reserve(engine, longest)
        self._engine = engine
        self._batch = loop.SearchBatch((), engine.slots)
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
        loop.drop(self._engine, self._batch, order)
        return self._asked.pop(order)[1]

    def _told(self, found: Recommended) -> Recommended:
        """Count an answer that no model gave."""
        self.metrics.observe_beams((), results=len(found.answer.items), partial=int(found.partial))
        return found
