"""Models and catalogue behind one method: histories in, items out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any, Literal

import numpy as np

from draftrec.config import RecommendConfig, make_recommend_config
from draftrec.core import DoubleArray, LongArray
from draftrec.data.files.places import here, place
from draftrec.data.sequences import USUAL, SequenceColumns, read_semantic_ids
from draftrec.engine.beams.loop import BeamEngine, search
from draftrec.engine.beams.state import BeamRequest, Beams, UserSearch
from draftrec.engine.target import Target
from draftrec.errors import DraftrecError
from draftrec.items.ids import number_of
from draftrec.items.retriever import ItemRetriever, ItemScorer
from draftrec.items.trie import Filter
from draftrec.jobs.recommend.catalogue import Catalogue, Query, Recommendation
from draftrec.jobs.recommend.engines import Curves, Parts, check_config, make_engine
from draftrec.jobs.recommend.item_model import ItemModel
from draftrec.jobs.recommend.loading import Loaded, Sources, load_parts
from draftrec.models.recommender import IDS_FILE, read_info

#: Of so many allowed items each is rated; of more, the best are proposed until enough are allowed.
_FEW = 10_000


def _scorers(
    config: RecommendConfig, items: ItemRetriever | None, item_model: ItemModel | None
) -> tuple[ItemScorer, ...]:
    """Who has a share in a blend. Raises DraftrecError where one is missing."""
    found: list[ItemScorer] = []
    if config.blend is not None:
        if items is None:
            raise DraftrecError(
                "a blend needs item-item co-occurrence; name the sequences that it is fitted to, "
                "or leave blend out"
            )
        found.append(items)
    if (config.blend_item_model is None) != (item_model is None):
        raise DraftrecError(
            "an item model and its share in the ranking belong together; give --item-model and "
            "--blend-item-model, or neither"
        )
    if item_model is not None:
        found.append(item_model)
    return tuple(found)


class ItemRecommender:
    """Recommends items by beam search over their semantic ids.

    What drafts (see `Parts`) changes the speed and, under strict verification, never the answer.
    `popular` answers with its most popular items for users without a history (None: the model
    does, from a bare prompt), and is what a blend blends in, as `item_model` is. Raises
    DraftrecError for settings that contradict each other.
    """

    def __init__(
        self,
        parts: Parts,
        catalogue: Catalogue,
        config: RecommendConfig,
        popular: ItemRetriever | None = None,
        item_model: ItemModel | None = None,
    ) -> None:
        catalogue.check_width(config.k)
        check_config(config, parts)
        self.parts, self.catalogue, self.config, self.popular = parts, catalogue, config, popular
        self.item_model = item_model
        #: What is blended in, as `config.shares` has it.
        self.scorers = _scorers(config, popular, item_model)
        self._engine: BeamEngine | None = None
        self._curves = Curves()

    @classmethod
    def of(cls, loaded: Loaded, config: RecommendConfig) -> ItemRecommender:
        """One of what its files hold."""
        items, item_model = loaded.items, loaded.item_model
        return cls(loaded.parts, loaded.catalogue, config, items, item_model)

    @classmethod
    def from_pretrained(  # noqa: PLR0913
        cls,
        target: str | Path,
        sids: str | Path | None = None,
        sequences: str | Path | None = None,
        *,
        draft: str | Path | None = None,
        item_model: str | Path | None = None,
        device: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        exact: bool = False,
        columns: SequenceColumns = USUAL,
        **settings: Any,
    ) -> ItemRecommender:
        """Load a target's folder and what goes with it, as `draftrec genrec recommend` takes it.

        `sids` None: those that the target was trained on. `sequences`: what everybody took, of
        which items are proposed, and which answers where there is no history. `draft`: a draft
        model's folder, `items` or `none`; None: `items` where there are sequences. `settings` are
        the fields of `RecommendConfig` by name (`k=10`, `beams=40`, `exclude_seen=True` ...).
        Raises DraftrecError for unknown or impossible settings and unusable files.
        """
        config = make_recommend_config(**settings)
        file = place(target) / IDS_FILE if sids is None else place(sids)
        proposed = "items" if sequences is not None and config.constraint == "trie" else "none"
        sources = Sources(
            target=here(target, "target"),
            sids=file,
            sequences=None if sequences is None else str(sequences),
            draft=proposed if draft is None else str(draft),
            item_model=None if item_model is None else here(item_model, "item_model"),
            device=device,
            dtype=dtype,
            exact=exact,
            columns=columns,
        )
        if sources.draft == "items" and sequences is None:
            raise DraftrecError(
                "draft='items' proposes what others took together; give sequences, or draft='none'"
            )
        if sids is None and not file.is_file():
            read_info(sources.target)
            raise DraftrecError(
                f"{target} keeps no semantic ids; give those it was trained on, sids="
            )
        return cls.of(load_parts(sources, config, read_semantic_ids(file, columns)), config)

    def variant(
        self,
        config: RecommendConfig | None = None,
        draft: Target | None = None,
        retriever: ItemRetriever | None = None,
    ) -> ItemRecommender:
        """The same target and catalogue with other settings, and other or no drafts."""
        parts = Parts(self.parts.target, self.catalogue.trie, draft, retriever)
        return ItemRecommender(
            parts, self.catalogue, config or self.config, self.popular, self.item_model
        )

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
        item_model = self.item_model and self.item_model.over(catalogue.sids)
        other = ItemRecommender(parts, catalogue, self.config, popular, item_model)
        other._curves = self._curves
        return other

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
        keep: Callable[[int, Recommendation], None] | None = None,
    ) -> list[Recommendation]:
        """Answers in the order of `queries`; `on_done` is told of users as they are finished, and
        `keep` is given their answers then, by the places of their queries.

        Items of a history that the catalogue does not have are left out of it, and counted. Raises
        DraftrecError for more items than the settings allow, Interrupted once `should_stop()` is
        true.
        """
        queries = [self.catalogue.known(query) for query in queries]
        found: dict[int, Recommendation] = {}
        asked = [i for i, q in enumerate(queries) if len(q.history) or self.popular is None]

        def take(i: int, answer: Recommendation) -> None:
            found[i] = answer
            if keep:
                keep(i, answer)

        for i in sorted(set(range(len(queries))) - set(asked)):
            take(i, self.popular_answer(queries[i]))
        if on_done and found:
            on_done(len(found))

        def answered(place: int, request: BeamRequest, beams: Beams, seconds: float) -> None:
            i = asked[place]
            take(i, self.answer(queries[i], request, beams, seconds))

        self.search([queries[i] for i in asked], on_done, should_stop, answered)
        return [found[i] for i in range(len(queries))]

    def search(
        self,
        queries: Seq[Query],
        on_done: Callable[[int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        on_found: Callable[[int, BeamRequest, Beams, float], None] | None = None,
    ) -> list[tuple[BeamRequest, Beams, float]]:
        """What the engine was asked for each query, the beams that it found, and the seconds that
        this took; `on_found` is told the same, and the query's place, at once. Raises as
        `recommend` does."""
        if not queries:
            return []
        lengths = [self.catalogue.encoder.length(len(query.history)) for query in queries]
        requests: list[BeamRequest] = []
        seconds: dict[int, float] = {}

        def asked() -> Iterator[BeamRequest]:
            for query in queries:
                requests.append(self.request(query))
                yield requests[-1]

        def note(done: Seq[UserSearch]) -> None:
            now = time.perf_counter()
            for s in done:
                seconds[s.order] = now - s.began
                if on_found:
                    on_found(s.order, requests[s.order], s.result(), seconds[s.order])
            if on_done and done:
                on_done(len(done))

        with self.parts.target.turn:  # calls of other threads wait
            # The engine is made at the first call, when the usual length of a prompt is known.
            engine = self.engine(int(np.median(lengths)))
            beams = search(engine, asked(), note, should_stop, max(lengths))
        return [(r, b, seconds[i]) for i, (r, b) in enumerate(zip(requests, beams, strict=True))]

    def engine(self, prompt: int) -> BeamEngine:
        """The engine. The first call makes it for prompts of about `prompt` tokens, and measures
        passes where the pace is auto, unless the recommender that this one was swapped for has."""
        if self._engine is None:
            self._engine = make_engine(self.parts, self.config, prompt, self._curves)
        return self._engine

    def request(self, query: Query) -> BeamRequest:
        """The query for an engine. Raises DraftrecError for an item of its history that the
        catalogue does not have, where it has none of the allowed ones, and for more items than the
        settings allow."""
        if query.k is not None and not 0 < query.k <= self.config.k:
            raise DraftrecError(
                f"{query.k} items are asked for, the recommender gives 1 to {self.config.k}; ask "
                "for fewer, or let its k be larger"
            )
        places = self.catalogue.sids.places(query.history)
        allowed = self.catalogue.filter_of(query, exclude_seen=self.config.exclude_seen)
        prompt = self.catalogue.encoder.encode(places)
        # A setting of beams holds for whatever number of items is asked for.
        width = query.k if self.config.beams is None else None
        most = self.config.blend_candidates
        proposed = [self._proposed(query, places, allowed, most, it)[0] for it in self.scorers]
        beside = np.unique(self.catalogue.trie.leaves_of(np.concatenate([places[:0], *proposed])))
        return BeamRequest(number_of(query.user), prompt, allowed, places, width, beside)

    def answer(
        self, query: Query, request: BeamRequest, beams: Beams, seconds: float
    ) -> Recommendation:
        """The items that an engine's beams stand for; `seconds`: what the search took."""
        k = query.k or self.config.k
        if self.scorers:
            candidates = self.catalogue.candidates(request, beams, self.scorers)
            (places, scores), invalid = candidates.best(self.config.shares, k), 0
        else:
            places, scores, invalid = self.catalogue.places_of(beams, request.filter, k)
        return Recommendation(
            query.user,
            self.catalogue.sids.items[places],
            scores,
            self.catalogue.sids.sids_at(places),
            beams.target_calls,
            beams.accepted_steps,
            beams.draft_calls,
            beams.drafted,
            len(beams.leaves),
            invalid,
            seconds,
            unknown=query.unknown,
        )

    def popular_answer(self, query: Query) -> Recommendation:
        """The most popular items that the query allows, those of its history among them."""
        assert self.popular is not None
        allowed = self.catalogue.filter_of(query, exclude_seen=False)
        nothing = np.empty(0, np.int64)
        found = self._proposed(query, nothing, allowed, query.k or self.config.k, self.popular)
        return self._without_model(query, *found)

    def quick_answer(self, query: Query) -> Recommendation:
        """What usually follows the query's last items, without asking a model: an answer for those
        who cannot wait. Empty if there is no `popular`; scores are logs of proposals' shares.

        Raises DraftrecError as `request` does.
        """
        allowed = self.catalogue.filter_of(query, exclude_seen=self.config.exclude_seen)
        history = self.catalogue.sids.places(query.history)
        if self.popular is None:
            none = np.empty(0)
            return self._without_model(query, np.empty(0, np.int64), none)
        found = self._proposed(query, history, allowed, query.k or self.config.k, self.popular)
        return self._without_model(query, *found)

    def proposed(self, query: Query, scorer: ItemScorer) -> tuple[LongArray, DoubleArray]:
        """The items that `scorer` alone would recommend, at most k: places int64 `[m]`, best first,
        and shares float64 `[m]`. Raises DraftrecError as `request` does."""
        allowed = self.catalogue.filter_of(query, exclude_seen=self.config.exclude_seen)
        history = self.catalogue.sids.places(query.history)
        return self._proposed(query, history, allowed, query.k or self.config.k, scorer)

    def _proposed(
        self,
        query: Query,
        history: LongArray,
        allowed: Filter | None,
        most: int,
        scorer: ItemScorer,
    ) -> tuple[LongArray, DoubleArray]:
        """At most the `most` best items that follow `history`, places int64 `[h]`, as `scorer` has
        it, among those that the query allows: places int64 `[m]` and shares float64 `[m]`."""
        listed = None if allowed is None else allowed.listed
        if allowed is not None and listed is not None and len(listed) <= _FEW:
            listed = listed[allowed.keeps(listed)]
            shares = scorer.shares(history, listed)
            best = np.lexsort((listed, -shares))[:most]
            best = best[shares[best] > 0]
            return listed[best], shares[best]
        if allowed is None:
            return scorer.propose(history, most)
        # As many as may be left out, at first; where that is a long list, few of the best are.
        left_out = len(query.history) + (0 if query.deny is None else len(query.deny))
        enough = most + min(max(left_out, most * (listed is not None)), 4 * most)
        while True:
            places, weights = scorer.propose(history, enough)
            kept = allowed.keeps(places)
            if kept.sum() >= most or len(places) < enough:
                return places[kept][:most], weights[kept][:most]
            enough *= 8

    def _without_model(
        self, query: Query, places: LongArray, weights: DoubleArray
    ) -> Recommendation:
        """The items at `places` int64 `[m]`, best first; `weights` float64 `[m]`."""
        sids = self.catalogue.sids
        items, names = sids.items[places], sids.sids_at(places)
        return Recommendation(
            query.user, items, np.log(weights), names, popular=True, unknown=query.unknown
        )
