"""Models and catalogue behind one method: histories in, items out."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq

import numpy as np

from draftrec.beams.search import BeamEngine, search
from draftrec.beams.state import UserSearch
from draftrec.beams.values import BeamRequest, Beams
from draftrec.config import RecommendConfig
from draftrec.models.recommender import Recommender, check_draft
from draftrec.models.selfcheck import checked_target
from draftrec.models.target import Target
from draftrec.pool.item_retriever import ItemRetriever
from draftrec.recommend.catalogue import Catalogue
from draftrec.recommend.engines import Parts, check_config, make_engine
from draftrec.recommend.values import Query, Recommendation


def parts_of(
    target: Recommender,
    catalogue: Catalogue,
    draft: Recommender | None = None,
    retriever: ItemRetriever | None = None,
) -> Parts:
    """Loaded models as parts of an engine. They serve engines only from here on.

    Raises DraftrecError for a draft of another vocabulary and architectures that cannot be served.
    """
    if draft is not None:
        check_draft(target, draft)
    small = checked_target(draft.model) if draft else None
    return Parts(checked_target(target.model), catalogue.trie, small, retriever)


class ItemRecommender:
    """Recommends items by beam search over their semantic ids.

    What drafts (see `Parts`) changes the speed and, under strict verification, never the answer.
    `popular` answers with its most popular items for users without a history (None: the model
    does, from a bare prompt). Raises DraftrecError for settings that contradict each other.
    """

    def __init__(
        self,
        parts: Parts,
        catalogue: Catalogue,
        config: RecommendConfig,
        popular: ItemRetriever | None = None,
    ) -> None:
        catalogue.check_width(config.k)
        check_config(config, parts)
        self.parts, self.catalogue, self.config, self.popular = parts, catalogue, config, popular
        self._engine: BeamEngine | None = None

    def variant(
        self,
        config: RecommendConfig | None = None,
        draft: Target | None = None,
        retriever: ItemRetriever | None = None,
    ) -> ItemRecommender:
        """The same target and catalogue with other settings, and other or no drafts."""
        parts = Parts(self.parts.target, self.catalogue.trie, draft, retriever)
        return ItemRecommender(parts, self.catalogue, config or self.config, self.popular)

    def swapped(
        self,
        catalogue: Catalogue,
        retriever: ItemRetriever | None = None,
        popular: ItemRetriever | None = None,
    ) -> ItemRecommender:
        """The same models over another catalogue, while this one may still be answering.

        Retrievers go by places in a catalogue, so new ones must come with it.
        """
        parts = Parts(self.parts.target, catalogue.trie, self.parts.draft, retriever)
        return ItemRecommender(parts, catalogue, self.config, popular)

    def plain(self) -> ItemRecommender:
        """The same without drafts: plain search, or the same sample. Relaxed verification has no
        answer without its draft, so the target's own best stand in for it."""
        strict = {"verify": "strict"} if self.config.verify == "relaxed" else {}
        return self.variant(self.config.model_copy(update=strict))

    def recommend(
        self,
        queries: Seq[Query],
        on_done: Callable[[int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Recommendation]:
        """Answers in the order of `queries`; `on_done` is told of users as they are finished.

        Raises DraftrecError for an item of a history that the catalogue does not have, Interrupted
        (of `beams.search`) once `should_stop()` is true.
        """
        found: dict[int, Recommendation] = {}
        asked = [i for i, q in enumerate(queries) if len(q.history) or self.popular is None]
        for i in set(range(len(queries))) - set(asked):
            found[i] = self._popular_items(queries[i])
        if on_done and found:
            on_done(len(found))
        requests = [self._request(queries[i]) for i in asked]
        seconds: dict[int, float] = {}

        def note(done: Seq[UserSearch]) -> None:
            now = time.perf_counter()
            seconds.update({s.order: now - s.began for s in done})
            if on_done and done:
                on_done(len(done))

        if requests:
            answers = search(self._ready(requests), requests, note, should_stop)
            for place, (i, beams) in enumerate(zip(asked, answers, strict=True)):
                found[i] = self._answer(queries[i], requests[place], beams, seconds[place])
        return [found[i] for i in range(len(queries))]

    def _ready(self, requests: Seq[BeamRequest]) -> BeamEngine:
        """The engine, made at the first call, when the usual length of a prompt is known."""
        if self._engine is None:
            usual = int(np.median([len(r.prompt_ids) for r in requests]))
            self._engine = make_engine(self.parts, self.config, usual)
        return self._engine

    def _request(self, query: Query) -> BeamRequest:
        places = self.catalogue.sids.places(query.history)
        allowed = self.catalogue.filter_of(query, exclude_seen=self.config.exclude_seen)
        prompt = self.catalogue.encoder.encode(places)
        return BeamRequest(query.user, prompt, allowed, places)

    def _answer(
        self, query: Query, request: BeamRequest, beams: Beams, seconds: float
    ) -> Recommendation:
        items, scores, invalid = self.catalogue.items_of(beams, request.filter, self.config.k)
        return Recommendation(
            query.user,
            items,
            scores,
            self.catalogue.sids.sids_of(items),
            beams.target_calls,
            beams.accepted_steps,
            beams.draft_calls,
            beams.drafted,
            invalid,
            seconds,
        )

    def _popular_items(self, query: Query) -> Recommendation:
        assert self.popular is not None
        allowed = self.catalogue.filter_of(query, exclude_seen=False)
        places = self.popular.popular
        items = self.catalogue.sids.items[places]
        if allowed is not None:
            kept = allowed.keeps(items)
            places, items = places[kept], items[kept]
        places, items = places[: self.config.k], items[: self.config.k]
        scores = np.log(self.popular.prior[places].astype(np.float64) / self.popular.prior.sum())
        sids = self.catalogue.sids.sids_of(items)
        return Recommendation(query.user, items, scores, sids, popular=True)
