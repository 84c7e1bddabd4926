"""Who drafts beams: nobody, a smaller model, a cheap retriever's items, or these together.

A drafter writes `search.levels`: for each level after the one decided, nodes of the user's tree in
the order in which a narrower draft would have had them; and `search.complete`: which of them are
all that can follow the level above.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Protocol

import numpy as np

from draftrec.core import DoubleArray, IntArray, LongArray
from draftrec.engine.beams import select
from draftrec.engine.beams.model import BeamModel
from draftrec.engine.beams.pace import Pace, whole
from draftrec.engine.beams.state import (
    BeamRequest,
    Expansion,
    Kept,
    Scored,
    UserSearch,
    grown,
    plain,
)

if TYPE_CHECKING:
    from draftrec.items.trie import ItemTrie


class BeamDrafter(Protocol):
    """The lifecycle of a search is start, (draft, observe)*, stop."""

    @property
    def most_rows(self) -> int:
        """Most rows that one draft adds to the target's pass, for one user."""
        ...

    def reserve(self, slots: int, longest: int) -> None:
        """Make room for `slots` users whose prompts have at most `longest` tokens."""
        ...

    def start(self, search: UserSearch) -> None: ...

    def draft(self, running: Seq[UserSearch]) -> None:
        """Set `levels` and `complete` of every search."""
        ...

    def observe(self, running: Seq[UserSearch]) -> None:
        """The target has decided: `level` and `kept` are new, `levels` still what was drafted."""
        ...

    def stop(self, search: UserSearch) -> None: ...


class NoBeamDrafter:
    """Drafts nothing: plain beam search."""

    most_rows = 0

    def reserve(self, slots: int, longest: int) -> None:
        """Nothing to make room for."""

    def start(self, search: UserSearch) -> None:
        """Nothing to prepare."""

    def draft(self, running: Seq[UserSearch]) -> None:
        """No levels."""

    def observe(self, running: Seq[UserSearch]) -> None:
        """Nothing to learn."""

    def stop(self, search: UserSearch) -> None:
        """Nothing to forget."""


class ModelDrafter:
    """A smaller model of the same vocabulary runs its own, wider beam search from the target's
    beams on (AtSpeed's N-to-K drafts).

    Its `kept` best beams (K) are always among those drafted, so that a draft model that agrees with
    the target is always accepted: the N best alone need not hold the ancestors of the K best. A
    level of few enough continuations is drafted whole.
    """

    def __init__(self, model: BeamModel, kept: int, pace: Pace, expand: Expansion = plain) -> None:
        self.model, self.kept, self.pace, self.expand = model, kept, pace, expand
        self._users: dict[int, Scored] = {}

    @property
    def most_rows(self) -> int:
        return self.pace.rows

    def reserve(self, slots: int, longest: int) -> None:
        rows = self.model.constraint.levels * self.kept + self.pace.rows
        self.model.target.reserve(slots, longest + rows)

    def start(self, search: UserSearch) -> None:
        self._users[search.order] = self.model.open(search.target.slot, search.request, search.tree)

    def draft(self, running: Seq[UserSearch]) -> None:
        """Level by level, one pass of the draft model over all users for each."""
        self._drop_rows(running)
        plans = {s.order: self.pace.widths(s, len(running)) for s in running}
        ahead = {s.order: (s.kept, len(s.kept.nodes)) for s in running}
        for s in running:
            s.levels, s.complete = [], []
        for step in range(max(map(len, plans.values()), default=0)):
            active = [s for s in running if len(plans[s.order]) > step]
            self._rate(active, {s.order: ahead[s.order][0].nodes for s in active})
            for s in active:
                wide, inner = self._widened(s, *ahead[s.order], plans[s.order][step])
                ahead[s.order] = wide, inner
                s.levels.append(wide.nodes)

    def observe(self, running: Seq[UserSearch]) -> None:
        self.pace.observe(running)

    def stop(self, search: UserSearch) -> None:
        del self._users[search.order]

    def _rate(self, active: Seq[UserSearch], nodes: dict[int, IntArray]) -> None:
        work: list[tuple[Scored, IntArray]] = []
        for s in active:
            scored, frontier = self._users[s.order], nodes[s.order]
            self.model.learn_forced(scored, frontier[frontier >= 0])
            missing = scored.missing(frontier)
            if len(missing) or not scored.started:
                work.append((scored, missing))
                s.draft_calls += 1
        self.model.rate(work)

    def _widened(self, s: UserSearch, kept: Kept, inner: int, width: int) -> tuple[Kept, int]:
        """The next level, and how many of its first nodes are the draft model's own K beams."""
        scored = self._users[s.order]
        spans, scores, noise = self.expand(scored, kept)
        s.complete.append(len(scores) <= whole(width))
        if s.complete[-1]:
            width = len(scores)
        wide = select.best(spans, kept.ranks, scored.tokens, noise, width)
        own = select.best(spans[:inner], kept.ranks, scored.tokens, noise, min(self.kept, width))
        others = wide[~np.isin(wide[:, 1], own[:, 1])]
        chosen = np.concatenate((own, others))[:width]
        return grown(scored, kept, chosen, (scores, noise)), len(own)

    def _drop_rows(self, running: Seq[UserSearch]) -> None:
        """Cached rows of beams that the target did not keep make room for new ones."""
        moves: list[tuple[int, int, int]] = []
        for s in running:
            if s.level:
                moves += self._users[s.order].forget(s.tree.closure(s.kept.nodes))
        self.model.move(moves)


class Proposer(Protocol):
    """Proposes items for a history: `items.retriever.ItemRetriever` is one."""

    def propose(self, history: LongArray, most: int, /) -> tuple[LongArray, DoubleArray]:
        """Places int64 `[m]` in the catalogue and weights float64 `[m]`, at most `most`."""
        ...


class Proposals:
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

    def __init__(self, proposals: Proposals, pace: Pace) -> None:
        self.proposals, self.pace = proposals, pace

    @property
    def most_rows(self) -> int:
        return self.pace.rows

    def reserve(self, slots: int, longest: int) -> None:
        """Nothing to make room for."""

    def start(self, search: UserSearch) -> None:
        """Nothing to prepare."""

    def draft(self, running: Seq[UserSearch]) -> None:
        for s in running:
            s.levels, s.complete = [], []
            above = s.kept.nodes
            for step, width in enumerate(self.pace.widths(s, len(running))):
                every = self.proposals.every(s, above, whole(width))
                chosen = self.proposals.below(s, s.level + step, above, width)
                above = chosen if every is None else _first(chosen, every)
                s.levels.append(above)
                s.complete.append(every is not None)

    def observe(self, running: Seq[UserSearch]) -> None:
        self.pace.observe(running)

    def stop(self, search: UserSearch) -> None:
        self.proposals.stop(search)


class MixedDrafter:
    """Adds up to `extra` proposals to every level that another drafter drafts; if `even`, no more
    than it has drafted: where few rows pay, they are to be the surest ones."""

    def __init__(
        self, inner: BeamDrafter, proposals: Proposals, extra: int = 16, *, even: bool = False
    ) -> None:
        self.inner, self.proposals, self.extra, self.even = inner, proposals, extra, even

    @property
    def most_rows(self) -> int:
        return self.inner.most_rows + self.extra * self.proposals.trie.levels

    def reserve(self, slots: int, longest: int) -> None:
        self.inner.reserve(slots, longest)

    def start(self, search: UserSearch) -> None:
        self.inner.start(search)

    def draft(self, running: Seq[UserSearch]) -> None:
        self.inner.draft(running)
        for s in running:
            above = s.kept.nodes
            for step, level in enumerate(s.levels):
                most = min(self.extra, len(level)) if self.even else self.extra
                more = self.proposals.below(s, s.level + step, above, most)
                above = s.levels[step] = _first(level, more)

    def observe(self, running: Seq[UserSearch]) -> None:
        self.inner.observe(running)

    def stop(self, search: UserSearch) -> None:
        self.inner.stop(search)
        self.proposals.stop(search)


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
