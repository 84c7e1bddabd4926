"""Drafts without a model: the beginnings of items that a cheap retriever proposes."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

import numpy as np

from draftrec.beams.drafters import BeamDrafter
from draftrec.beams.pace import Pace, whole
from draftrec.beams.state import UserSearch
from draftrec.beams.values import BeamRequest
from draftrec.core import DoubleArray, IntArray, LongArray
from draftrec.tokens.item_trie import ItemTrie


class Proposer(Protocol):
    """Proposes items for a history: `pool.item_retriever.ItemRetriever` is one."""

    def propose(self, history: LongArray, most: int, /) -> tuple[LongArray, DoubleArray]:
        """Places int64 `[m]` in the catalogue and weights float64 `[m]`, at most `most`."""
        ...


class Offers:
    """Prefixes of the items proposed to running users, heaviest first: a prefix weighs what the
    items below it weigh together."""

    def __init__(self, trie: ItemTrie, proposer: Proposer, proposals: int = 256) -> None:
        self.trie, self.proposer, self.proposals = trie, proposer, proposals
        self._users: dict[int, list[tuple[LongArray, LongArray]]] = {}

    def stop(self, search: UserSearch) -> None:
        """Forget the user."""
        self._users.pop(search.order, None)

    def every(self, s: UserSearch, above: IntArray, most: int) -> IntArray | None:
        """All legal prefixes one level below `above`, as nodes int32 of the user's tree; None if
        there are more than `most`."""
        nodes = np.where(above < 0, 0, s.tree.places[above])
        if int((self.trie.first[nodes + 1] - self.trie.first[nodes]).sum()) > most:
            return None
        offsets, places = self.trie.children(nodes)
        parents = np.repeat(above, np.diff(offsets))
        if s.request.filter is not None:
            legal = s.request.filter.legal(places)
            parents, places = parents[legal], places[legal]
        return s.tree.add(parents, self.trie.tokens[places], places)

    def below(self, s: UserSearch, level: int, above: IntArray, most: int) -> IntArray:
        """The heaviest prefixes one level below `above`, nodes that all lie on `level`: at most
        `most` nodes int32 of the user's tree."""
        places, parents = self._levels(s)[level]
        if level == 0:
            under = np.full(min(most, len(places)), -1, np.int32)
            return s.tree.add(under, self.trie.tokens[places[:most]], places[:most])
        if not len(above):
            return np.empty(0, np.int32)
        order = np.argsort(s.tree.places[above])
        known = s.tree.places[above][order]
        at = np.minimum(np.searchsorted(known, parents), len(known) - 1)
        here = np.flatnonzero(known[at] == parents)[:most]
        chosen = places[here]
        return s.tree.add(above[order][at[here]], self.trie.tokens[chosen], chosen)

    def _levels(self, s: UserSearch) -> list[tuple[LongArray, LongArray]]:
        """Proposals are asked for when the first of them is wanted; many users never want one."""
        if s.order not in self._users:
            leaves, weights = self._legal(s.request)
            self._users[s.order] = _by_level(self.trie, leaves, weights)
        return self._users[s.order]

    def _legal(self, request: BeamRequest) -> tuple[LongArray, DoubleArray]:
        places, weights = self.proposer.propose(request.history, self.proposals)
        leaves = self.trie.leaves_of(places)
        if request.filter is None:
            return leaves, weights
        legal = request.filter.legal(leaves)
        return leaves[legal], weights[legal]


class ItemDrafter:
    """Drafts proposals alone, as many per level as `pace` says, and whole levels where prefixes
    hardly branch. No forward pass is needed, and strict verification stays exact."""

    def __init__(self, offers: Offers, pace: Pace) -> None:
        self.offers, self.pace = offers, pace

    @property
    def most_rows(self) -> int:
        return whole(self.pace.most) * self.offers.trie.levels

    def reserve(self, slots: int, longest: int) -> None:
        """Nothing to make room for."""

    def start(self, search: UserSearch) -> None:
        """Nothing to prepare."""

    def draft(self, running: Seq[UserSearch]) -> None:
        for s in running:
            s.levels = []
            above = s.kept.nodes
            for step, width in enumerate(self.pace.widths(s)):
                every = self.offers.every(s, above, whole(width))
                chosen = self.offers.below(s, s.level + step, above, width)
                above = chosen if every is None else _first(chosen, every)
                s.levels.append(above)

    def observe(self, running: Seq[UserSearch]) -> None:
        self.pace.observe(running)

    def stop(self, search: UserSearch) -> None:
        self.offers.stop(search)


class MixedDrafter:
    """Adds up to `extra` proposals to every level that another drafter drafts."""

    def __init__(self, inner: BeamDrafter, offers: Offers, extra: int = 16) -> None:
        self.inner, self.offers, self.extra = inner, offers, extra

    @property
    def most_rows(self) -> int:
        return self.inner.most_rows + self.extra * self.offers.trie.levels

    def reserve(self, slots: int, longest: int) -> None:
        self.inner.reserve(slots, longest)

    def start(self, search: UserSearch) -> None:
        self.inner.start(search)

    def draft(self, running: Seq[UserSearch]) -> None:
        self.inner.draft(running)
        for s in running:
            above = s.kept.nodes
            for step, level in enumerate(s.levels):
                more = self.offers.below(s, s.level + step, above, self.extra)
                above = s.levels[step] = _first(level, more)

    def observe(self, running: Seq[UserSearch]) -> None:
        self.inner.observe(running)

    def stop(self, search: UserSearch) -> None:
        self.inner.stop(search)
        self.offers.stop(search)


def _first(nodes: IntArray, others: IntArray) -> IntArray:
    """`nodes`, then those of `others` that are not among them."""
    return np.concatenate((nodes, others[~np.isin(others, nodes)]))


def _by_level(
    trie: ItemTrie, leaves: LongArray, weights: DoubleArray
) -> list[tuple[LongArray, LongArray]]:
    """For every level, the prefixes of `leaves` and the nodes above them, heaviest first."""
    found: list[tuple[LongArray, LongArray]] = []
    nodes, mass = leaves, weights
    for level in range(trie.levels, 0, -1):
        distinct, back = np.unique(nodes, return_inverse=True)
        mass = np.bincount(back, mass, len(distinct))
        parents = trie.parents(distinct, level)
        order = np.lexsort((distinct, -mass))
        found.append((distinct[order], parents[order]))
        nodes = parents
    return found[::-1]
