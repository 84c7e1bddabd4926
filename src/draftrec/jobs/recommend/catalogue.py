"""What a recommender is asked and answers, and the items that it can name, swapped as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from draftrec.core import DoubleArray, LongArray
from draftrec.data.tables.columns import float_hint, is_id
from draftrec.engine.beams.state import BeamRequest, Beams
from draftrec.errors import DraftrecError
from draftrec.items.ids import Id, Ids, ids_array, is_text, is_whole, joined_ids
from draftrec.items.prompts import HistoryEncoder
from draftrec.items.retriever import ItemScorer
from draftrec.items.semantic_ids import SemanticIds
from draftrec.items.trie import Filter, ItemTrie
from draftrec.models.recommender import Recommender, check_ids


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Semantic ids, their trie in a model's vocabulary, and how histories become prompts. The
    trie's items are places in the catalogue, whatever the ids are. `lists`: what may be recommended
    to anybody, None: everything."""

    sids: SemanticIds
    trie: ItemTrie
    encoder: HistoryEncoder
    lists: Filter | None = None

    @classmethod
    def of(
        cls,
        sids: SemanticIds,
        model: Recommender,
        draft: Recommender | None = None,
        named: str = "the semantic ids",
    ) -> Catalogue:
        """The catalogue for `model`; another one can take its place while the model stays.

        Raises DraftrecError for ids of another length than the model's, unknown tokens, and, naming
        them `named`, for others than the model, or the `draft` beside it, was trained on.
        """
        if sids.levels != model.info.levels:
            raise DraftrecError(
                f"the semantic ids have {sids.levels} tokens, the model writes "
                f"{model.info.levels}; use the ids that it was trained with"
            )
        tokens = sids.token_ids(model.tokenizer.get_vocab())
        for one in (model, draft):
            if one is not None:
                check_ids(one.info, one.folder, sids, named)
        context = model.model.config.get_text_config().max_position_embeddings
        encoder = HistoryEncoder(model.format, model.tokenizer, tokens).fit(context)
        return cls(sids, ItemTrie.build(np.arange(len(sids)), tokens), encoder)

    def narrowed(self, allow: LongArray | None, deny: LongArray | None) -> Catalogue:
        """The same, of which nobody is recommended anything but the items at places `allow` int64
        `[k]` (None: all), nor those at `deny`; negative places are ignored. Turning a long list
        into nodes takes longer than the search for a user, so it is done here, once."""
        lists = None if allow is None else Filter.allow(self.trie, allow)
        lists = lists if deny is None else Filter.deny(self.trie, deny, lists)
        return replace(self, lists=lists)

    def check_width(self, k: int) -> None:
        """Raise DraftrecError if there are not `k` items."""
        if k > len(self.sids):
            raise DraftrecError(
                f"{k} items are asked for, but the catalogue has {len(self.sids)}; ask for fewer"
            )

    def known(self, query: Query) -> Query:
        """The query with a history of items that the catalogue has; the others are counted."""
        has = self.sids.find(query.history) >= 0
        if has.all():
            return query
        unknown = query.unknown + int((~has).sum())
        return replace(query, history=query.history[has], unknown=unknown)

    def filter_of(self, query: Query, *, exclude_seen: bool) -> Filter | None:
        """What the query forbids, applied before anything is drafted. Unknown items are ignored;
        raises DraftrecError where an allow list has no others."""
        denied = [] if query.deny is None else [query.deny]
        if exclude_seen:
            denied.append(query.history)
        deny = self.sids.find(joined_ids(denied))
        if query.allow is not None:
            allow = self.sids.find(query.allow)
            if self.lists is not None:
                allow = allow[self.lists.keeps(allow)]
            return Filter.allow(self.trie, allow, deny)
        return Filter.deny(self.trie, deny, self.lists) if (deny >= 0).any() else self.lists

    def places_of(
        self, beams: Beams, allowed: Filter | None, k: int
    ) -> tuple[LongArray, DoubleArray, int]:
        """The places of at most `k` items of the beams with their scores, and how many beams are no
        item.

        Items that share an id share its score and follow each other by their places. Where there
        are more than `k` items, those of the beams chosen first are taken: the likeliest of what
        was drawn would be no sample.
        """
        leaves, drawn = beams.leaves, beams.drawn
        if (leaves < 0).any():
            leaves = self.trie.walk(beams.tokens)[:, -1]
        found, beam = self._items_of(leaves[drawn], drawn, allowed, k)
        order = np.argsort(beam, kind="stable")
        return found[order], beams.scores[beam[order]], int((leaves < 0).sum())

    def candidates(
        self, request: BeamRequest, beams: Beams, scorers: Seq[ItemScorer]
    ) -> Candidates:
        """The items of the beams and of the leaves beside them, and what `scorers` say of them."""
        leaves = np.concatenate((beams.leaves, request.beside))
        first = np.sort(np.unique(leaves, return_index=True)[1])
        log_probs = np.concatenate((beams.scores, beams.beside))[first]
        every = np.arange(len(first))
        places, leaf = self._items_of(leaves[first], every, request.filter, len(self.sids))
        with np.errstate(divide="ignore"):  # of an item that is not known
            logs = [np.log(scorer.shares(request.history, places)) for scorer in scorers]
        return Candidates(places, np.stack([log_probs[leaf], *logs]))

    def _items_of(
        self, leaves: LongArray, names: LongArray, allowed: Filter | None, most: int
    ) -> tuple[LongArray, LongArray]:
        """The places of the first `most` items at `leaves` int64 `[n]` (-1: none) with their
        leaves' `names` int64 `[n]`."""
        items: list[LongArray] = []
        found: list[int] = []
        for leaf, name in zip(leaves.tolist(), names.tolist(), strict=True):
            if leaf < 0 or len(found) >= most:
                continue
            here = self.trie.items_at(leaf)
            here = here if allowed is None else here[allowed.keeps(here)]
            items.append(here)
            found += [name] * len(here)
        places = np.concatenate([np.empty(0, np.int64), *items])[:most]
        return places, np.array(found[:most], np.int64)


@dataclass(frozen=True, eq=False, slots=True)
class Candidates:
    """Items that a blend ranks: `places` int64 `[n]` in the catalogue, distinct, and `logs` float64
    `[1 + m, n]`: the target's summed log-probabilities, then the logs of the shares that each of
    the `m` others leaves to the items, -inf for one that it does not know."""

    places: LongArray
    logs: DoubleArray

    def best(self, weights: Seq[float], k: int) -> tuple[LongArray, DoubleArray]:
        """At most `k` places, best first, equal ones by place, and their scores: the logs of
        (1 - sum of `weights`) p + the sum of weight times s, p being the target's probabilities and
        s the others' shares, all among the candidates (linear interpolation of distributions).

        A mixture, as each side alone may name an item: a sum of logs would let a side that knows
        nothing of an item strike it out. Items of which nobody with a weight knows anything are
        left out; where that would be all, the target ranks alone.
        """
        every = np.array([_rest(weights), *weights])
        parts = np.stack([_normalised(row) for row in self.logs])
        with np.errstate(divide="ignore"):  # weights 0
            scores = np.logaddexp.reduce(np.log(every)[:, None] + parts, axis=0)
        if not np.isfinite(scores).any():
            scores = parts[0]
        order = np.lexsort((self.places, -scores))[:k]
        order = order[np.isfinite(scores[order])]
        return self.places[order], scores[order]


def _rest(weights: Seq[float]) -> float:
    """What the weights leave of one; rounded, so that 0.7 and 0.3 leave nothing."""
    return max(0.0, round(1.0 - sum(weights), 12))


def _normalised(logs: DoubleArray) -> DoubleArray:
    """Logs of what sums to one, or to nothing where nothing is known."""
    total = np.logaddexp.reduce(logs) if len(logs) else -np.inf
    return logs - total if total > -np.inf else logs


@dataclass(frozen=True, eq=False, slots=True, init=False)
class Query:
    """`history` `[h]`: the user's items, oldest first. `deny`: items not to recommend, `allow`: the
    only ones to recommend (None: all). `k`: items wanted, at most as many as the recommender's
    settings say (None: as many). Ids are whole numbers or texts (see `items.ids`), and lists, of
    whatever kind, become arrays of them. `unknown`: items that were left out of the history, as the
    catalogue does not have them.

    Raises DraftrecError for what is no id.
    """

    user: Id
    history: Ids
    deny: Ids | None
    allow: Ids | None
    k: int | None
    unknown: int

    def __init__(
        self,
        user: Id,
        history: Ids | Iterable[Id],
        deny: Ids | Iterable[Id] | None = None,
        allow: Ids | Iterable[Id] | None = None,
        k: int | None = None,
        unknown: int = 0,
    ) -> None:
        values = {
            "user": _values("user", [user])[0],
            "history": _ids("history", history),
            "deny": None if deny is None else _ids("deny", deny),
            "allow": None if allow is None else _ids("allow", allow),
            "k": k,
            "unknown": unknown,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)


def _ids(name: str, given: Any) -> Ids:
    """Ids as an array. Raises DraftrecError for anything but whole numbers and texts in a row."""
    if isinstance(given, np.ndarray) and given.ndim == 1:
        if is_text(given) or given.dtype.kind in "iu":
            return ids_array(given)
    elif isinstance(given, np.ndarray | str | bytes | Mapping) or not isinstance(given, Iterable):
        raise DraftrecError(f"{name}={given!r} is no list of ids; give whole numbers or texts")
    return ids_array(_values(name, given))


def _values(name: str, given: Iterable[Any]) -> list[Id]:
    found = [value.item() if isinstance(value, np.generic) else value for value in given]
    for value in found:
        if not (is_id(value) if isinstance(value, str) else is_whole(value)):
            raise DraftrecError(
                f"{name} holds {value!r}, which is no id: a whole number of 64 bits or a text"
                f"{float_hint(value)}"
            )
    return found


@dataclass(frozen=True, eq=False, slots=True)
class Recommendation:
    """`items` `[k]`, best first, ids as the catalogue has them, with `scores` float64 `[k]` (summed
    log-probabilities, or what a blend makes of them) and semantic ids; fewer than K where fewer may
    be recommended.

    `beams`: those that the search ended with; `invalid`: those that are no item, which only an
    unconstrained one has. `seconds`: from the user's admission to a slot to the answer. `popular`:
    without a history, the popular items answer, and scores are the logs of their shares. `unknown`:
    as in the query.
    """

    user: Id
    items: Ids
    scores: DoubleArray
    sids: list[list[str]]
    target_calls: int = 0
    accepted_steps: int = 0
    draft_calls: int = 0
    drafted: int = 0
    beams: int = 0
    invalid: int = 0
    seconds: float = 0.0
    popular: bool = False
    unknown: int = 0
