"""A user's search: what was asked, the tree that it grows, what each model knows of the tree, and
the beams that the target has kept. K beams, L levels, P prompt tokens.

The tree grows from pass to pass; nothing is ever renumbered. Target and draft model share it: which
nodes each of them has computed is theirs to know.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from draftrec.core import BoolArray, DoubleArray, FloatArray, IntArray, LongArray
from draftrec.engine.beams import select
from draftrec.engine.noise import FIRST, GOLDEN, SECOND
from draftrec.engine.packing import Segment
from draftrec.engine.tree import certain

if TYPE_CHECKING:
    from draftrec.items.trie import Filter


def _none() -> LongArray:
    return np.empty(0, np.int64)


@dataclass(frozen=True, eq=False, slots=True)
class BeamRequest:
    """One user: `prompt_ids` int32 `[P]`, P >= 1; `filter` says which items may be recommended.

    `key` names the user and seeds sampled searches. `history` int64 `[h]`: places of the user's
    items in the catalogue, oldest first, for drafters that go by items. `width`: beams to keep, at
    most as many as the engine's (None: as many), so that users who want lists of different lengths
    can run together: beam search with K beams is not the beginning of one with more. `beside` int64
    `[n]`: legal leaves of the trie whose scores are wanted whether or not beams end there.
    """

    key: int
    prompt_ids: IntArray
    filter: Filter | None = None
    history: LongArray = field(default_factory=_none)
    width: int | None = None
    beside: LongArray = field(default_factory=_none)


@dataclass(frozen=True, eq=False, slots=True)
class Beams:
    """The best beams of one user, best first; fewer than K where fewer are legal.

    `tokens` int32 `[k, L]`; `leaves` int64 `[k]`, trie nodes (-1: no item of the catalogue, which
    only an unconstrained search can return); `scores` float64 `[k]`, summed log-probabilities.
    `target_calls`: forward passes of the target, the prompt's included; `accepted_steps`: levels
    that needed no pass of their own; `drafted`: draft rows verified, `draft_calls`: forward passes
    of a draft model. `beside` float64 `[n]`: the scores of the leaves that the request names.
    `drawn` int64 `[k]`: their places in the order in which they were chosen, which is that of their
    scores but for samples.
    """

    key: int
    tokens: IntArray
    leaves: LongArray
    scores: DoubleArray
    target_calls: int
    accepted_steps: int
    draft_calls: int
    drafted: int
    beside: DoubleArray = field(default_factory=lambda: np.empty(0))
    drawn: LongArray = field(default_factory=_none)


_ROOT = -1
_SEED = np.uint64(GOLDEN)


class BeamTree:
    """Nodes are prefixes of items, the root (-1) is the empty one.

    Arrays by node, `size` of them in use: `tokens` and `parents` int32; `levels` int32, 1 for
    children of the root; `places` int64, the node's place in the item trie (-1: none); `paths`
    int32 `[capacity, L]`, the node at each level on the way down; `hashes` uint64, of the tokens on
    the path, for noise that depends on the prefix alone.
    """

    def __init__(self, levels: int, capacity: int = 128) -> None:
        self.size = 0
        self._known: dict[int, int] = {}
        self.tokens = np.empty(capacity, np.int32)
        self.parents = np.empty(capacity, np.int32)
        self.levels = np.empty(capacity, np.int32)
        self.places = np.empty(capacity, np.int64)
        self.hashes = np.empty(capacity, np.uint64)
        self.paths = np.full((capacity, levels), _ROOT, np.int32)

    def add(self, parents: IntArray, tokens: IntArray, places: LongArray) -> IntArray:
        """The nodes int32 `[n]` of `tokens` under `parents`; those that are missing are made."""
        found = np.empty(len(tokens), np.int32)
        fresh: list[int] = []
        for i, key in enumerate(((parents.astype(np.int64) + 1 << 32) | tokens).tolist()):
            node = self._known.get(key)
            if node is None:
                node = self._known[key] = self.size + len(fresh)
                fresh.append(i)
            found[i] = node
        if fresh:
            self._append(parents[fresh], tokens[fresh], places[fresh])
        return found

    def plant(self, tokens: IntArray, places: LongArray) -> IntArray:
        """The nodes int32 `[n]` at the ends of paths `tokens` int32 `[n, L]` with `places` int64
        `[n, L]`, each node on the way made where it is missing."""
        nodes = np.full(len(tokens), _ROOT, np.int32)
        for level in range(tokens.shape[1]):
            nodes = self.add(nodes, tokens[:, level], places[:, level])
        return nodes

    def closure(self, nodes: IntArray) -> IntArray:
        """`nodes` and their ancestors, each once, ancestors first."""
        every = np.unique(self.paths[nodes])
        return every[1:] if len(every) and every[0] == _ROOT else every

    def token_paths(self, nodes: IntArray) -> IntArray:
        """int32 `[n, level]`: the tokens on the way to `nodes`, all of one level (L for none)."""
        level = int(self.levels[nodes[0]]) if len(nodes) else self.paths.shape[1]
        return self.tokens[self.paths[nodes, :level]]

    def _append(self, parents: IntArray, tokens: IntArray, places: LongArray) -> None:
        first, last = self.size, self.size + len(tokens)
        while last > len(self.tokens):
            self._grow()
        new = slice(first, last)
        self.tokens[new], self.parents[new], self.places[new] = tokens, parents, places
        inner = parents >= 0
        self.levels[new] = np.where(inner, self.levels[parents], 0) + 1
        self.paths[new] = np.where(inner[:, None], self.paths[parents], _ROOT)
        self.paths[np.arange(first, last), self.levels[new] - 1] = np.arange(first, last)
        self.hashes[new] = mixed(np.where(inner, self.hashes[parents], _SEED), tokens)
        self.size = last

    def _grow(self) -> None:
        for name in ("tokens", "parents", "levels", "places", "hashes", "paths"):
            old = getattr(self, name)
            new = np.full((2 * len(old), *old.shape[1:]), 0, old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)


def mixed(
    hashes: npt.NDArray[np.uint64], tokens: npt.NDArray[np.integer]
) -> npt.NDArray[np.uint64]:
    """The hash of a path and one more token (the finaliser of SplitMix64)."""
    x = hashes + (tokens.astype(np.uint64) + np.uint64(1)) * _SEED
    x = (x ^ (x >> np.uint64(30))) * np.uint64(FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(SECOND)
    return x ^ (x >> np.uint64(31))


_PROMPT = np.array([-1], np.int32)


class Scored:
    """One user in one model: `slot` of its cache, which has the rows of the prompt's first `shared`
    tokens, `order` int32, the nodes whose rows lie behind the prompt's, and the candidates that
    follow every node it has rated.

    Candidates of all nodes lie one after another: `tokens` int32, `places` int64 (trie nodes, -1:
    none), `log_probs` float32; `spans` int64 `[nodes + 1, 2]` says where those of node i begin and
    end, in row i + 1 (the root is node -1); -1 where the node has not been rated.
    """

    def __init__(self, slot: int, request: BeamRequest, tree: BeamTree, shared: int = 0) -> None:
        self.slot, self.request, self.tree, self.shared = slot, request, tree, shared
        self.started = False
        self.order = np.empty(0, np.int32)
        self.spans = np.full((len(tree.tokens) + 1, 2), -1, np.int64)
        self.tokens = np.empty(0, np.int32)
        self.places = np.empty(0, np.int64)
        self.log_probs = np.empty(0, np.float32)

    def rates(self, nodes: IntArray) -> BoolArray:
        """bool: which of `nodes` have been rated."""
        self._fit()
        return self.spans[nodes + 1, 0] >= 0

    def missing(self, nodes: IntArray) -> IntArray:
        """Rows to compute so that all of `nodes` can be rated: ancestors first."""
        unknown = nodes[~self.rates(nodes)]
        wanted = self.tree.closure(unknown[unknown >= 0])
        return np.setdiff1d(wanted, self.order, assume_unique=True)

    def segment(self, nodes: IntArray) -> Segment:
        """A pass over the rows of `nodes`, and the prompt's if this is the first one."""
        tree, prompt = self.tree, self.request.prompt_ids
        order = np.concatenate((self.order, nodes))
        places = np.full(tree.size + 1, _ROOT, np.int32)  # the root's, behind all nodes', stays
        places[order] = np.arange(len(order))
        drawn = certain(tree.tokens[order], places[tree.parents[order]])
        if self.started:
            return Segment(self.slot, len(prompt), prompt[:0], drawn, past=len(self.order))
        return Segment(self.slot, self.shared, prompt[self.shared :], drawn)

    def rows(self, nodes: IntArray) -> int:
        """How many rows that pass has."""
        ahead = 0 if self.started else len(self.request.prompt_ids) - self.shared
        return len(nodes) + ahead

    def asked(self, nodes: IntArray) -> IntArray:
        """The nodes whose logits that pass returns, the root for the prompt's last row."""
        return nodes if self.started else np.concatenate((_PROMPT, nodes))

    def computed(self, nodes: IntArray) -> None:
        """Note that the rows of `nodes` (and the prompt's) lie in the cache now."""
        self.order = np.concatenate((self.order, nodes))
        self.started = True

    def learn(
        self,
        nodes: IntArray,
        offsets: LongArray,
        candidates: tuple[IntArray, LongArray, FloatArray],
    ) -> None:
        """Keep what follows `nodes`: tokens, places and log-probabilities, those of `nodes[i]`
        between offsets i and i + 1."""
        self._fit()
        base = len(self.tokens)
        self.spans[nodes + 1, 0] = base + offsets[:-1]
        self.spans[nodes + 1, 1] = base + offsets[1:]
        tokens, places, log_probs = candidates
        self.tokens = np.concatenate((self.tokens, tokens))
        self.places = np.concatenate((self.places, places))
        self.log_probs = np.concatenate((self.log_probs, log_probs))

    def spans_of(self, nodes: IntArray) -> LongArray:
        """int64 `[b, 2]`: where the candidates of `nodes`, all rated, begin and end."""
        return self.spans[nodes + 1]

    def summed(self, spans: LongArray, scores: DoubleArray) -> DoubleArray:
        """float64: for the candidates in `spans` one after another, the score of the node that they
        follow plus their log-probability."""
        return np.repeat(scores, spans[:, 1] - spans[:, 0]) + self.log_probs[ragged(spans)]

    def path_scores(self, nodes: IntArray) -> DoubleArray:
        """float64 `[n]`: summed log-probabilities of `nodes`, all of the last level, all of whose
        ancestors have been rated; added up as beams' are, so that equal paths have equal bits."""
        paths = self.tree.paths[nodes]
        scores, above = np.zeros(len(nodes)), np.full(len(nodes), _ROOT, np.int32)
        for here in paths.T:
            spans = self.spans_of(above)
            at = ragged(spans)
            wanted = np.repeat(self.tree.tokens[here], spans[:, 1] - spans[:, 0])
            scores = scores + self.log_probs[at[self.tokens[at] == wanted]]
            above = here
        return scores

    def forget(self, keep: IntArray) -> list[tuple[int, int, int]]:
        """Drop the cached rows of all nodes but `keep`; returns moves: slot, column, new column."""
        kept = np.isin(self.order, keep)
        if kept.all():
            return []
        start = len(self.request.prompt_ids)
        columns = np.flatnonzero(kept)
        moves = [
            (self.slot, start + column, start + i)
            for i, column in enumerate(columns.tolist())
            if i != column
        ]
        self.order = self.order[kept]
        return moves

    def _fit(self) -> None:
        """Room for every node of the tree."""
        more = len(self.tree.tokens) + 1 - len(self.spans)
        if more > 0:
            self.spans = np.concatenate((self.spans, np.full((more, 2), -1, np.int64)))


def ragged(spans: LongArray) -> LongArray:
    """int64: the places that ranges `[b, 2]` cover, one range after another."""
    counts = spans[:, 1] - spans[:, 0]
    ends = np.cumsum(counts)
    shift = np.repeat(spans[:, 0] - ends + counts, counts)
    return np.arange(len(shift)) + shift


def peaks(values: DoubleArray, counts: LongArray) -> DoubleArray:
    """float64 `[b]`: the largest of every range, -inf of an empty one; `values` of all ranges, of
    `counts` int64 `[b]` each, one after another."""
    found = np.full(len(counts), -np.inf)
    filled = counts > 0
    if filled.any():
        found[filled] = np.maximum.reduceat(values, (np.cumsum(counts) - counts)[filled])
    return found


def log_sums(values: DoubleArray, counts: LongArray) -> DoubleArray:
    """float64 `[b]`: log(sum(exp)) of every range, -inf of an empty one."""
    found = peaks(values, counts)
    filled = counts > 0
    if filled.any():
        shares = np.exp(values - np.repeat(found, counts))
        found[filled] += np.log(np.add.reduceat(shares, (np.cumsum(counts) - counts)[filled]))
    return found


@dataclass(frozen=True, eq=False, slots=True)
class Kept:
    """Beams of one level, best first: `nodes` int32 `[k]`, `scores` float64 `[k]`, `ranks` int64
    `[k]` (their order by token path, which settles ties), `noise` float64 `[k]`: the perturbed
    scores of a sampled search, the scores themselves otherwise.
    """

    nodes: IntArray
    scores: DoubleArray
    ranks: LongArray
    noise: DoubleArray


ROOT = Kept(np.array([-1], np.int32), np.zeros(1), np.zeros(1, np.int64), np.zeros(1))

#: Scores what follows beams: (who rates, the beams) -> spans int64 `[b, 2]` of the candidates, then
#: of all candidates one after another float64 scores and what they are chosen by.
Expansion = Callable[[Scored, Kept], tuple[LongArray, DoubleArray, DoubleArray]]


@dataclass(eq=False, slots=True)
class UserSearch:
    """`level` levels are decided; `kept` are the target's own beams there.

    `levels` holds what was drafted for the levels after it, in the order in which a narrower draft
    would have had them, and `complete` whether that is all that can follow; `trail` the beams that
    the target kept at these levels, as far as the last pass went. `beside` int32 `[n]`: the nodes
    of the request's leaves of that name. `began` is the clock's reading when the user got a slot.
    """

    order: int
    request: BeamRequest
    tree: BeamTree
    target: Scored
    kept: Kept = ROOT
    level: int = 0
    levels: list[IntArray] = field(default_factory=list[IntArray])
    complete: list[bool] = field(default_factory=list[bool])
    trail: list[IntArray] = field(default_factory=list[IntArray])
    beside: IntArray = field(default_factory=lambda: np.empty(0, np.int32))
    target_calls: int = 0
    draft_calls: int = 0
    drafted: int = 0
    accepted_steps: int = 0
    began: float = field(default_factory=time.perf_counter)

    @property
    def done(self) -> bool:
        """Are all levels decided, or is nothing legal?"""
        return self.level == self.tree.paths.shape[1] or not len(self.kept.nodes)

    def owed(self) -> IntArray:
        """The nodes above `beside`, each once: the first pass rates them, beside whatever is
        drafted, and they are as good as drafts."""
        if self.target.started or not len(self.beside):
            return self.beside[:0]
        return np.setdiff1d(self.tree.closure(self.beside), self.beside, assume_unique=True)

    def settle(self, kept: Kept) -> None:
        """Decide the next level."""
        self.kept = kept
        self.trail.append(kept.nodes)
        self.level += 1

    def result(self) -> Beams:
        """The kept beams as an answer, best first."""
        order = np.lexsort((self.kept.ranks, -self.kept.scores))
        nodes = self.kept.nodes[order]
        return Beams(
            self.request.key,
            self.tree.token_paths(nodes),
            self.tree.places[nodes],
            self.kept.scores[order],
            self.target_calls,
            self.accepted_steps,
            self.draft_calls,
            self.drafted,
            self.target.path_scores(self.beside),
            np.argsort(order),
        )


def plain(scored: Scored, kept: Kept) -> tuple[LongArray, DoubleArray, DoubleArray]:
    """Summed log-probabilities, by which beam search chooses."""
    spans = scored.spans_of(kept.nodes)
    scores = scored.summed(spans, kept.scores)
    return spans, scores, scores


def pick(expand: Expansion, scored: Scored, kept: Kept, most: int) -> Kept:
    """The `most` best continuations of `kept`: one step of beam search."""
    spans, scores, noise = expand(scored, kept)
    chosen = select.best(spans, kept.ranks, scored.tokens, noise, most)
    return grown(scored, kept, chosen, (scores, noise))


def grown(
    scored: Scored, kept: Kept, chosen: LongArray, values: tuple[DoubleArray, DoubleArray]
) -> Kept:
    """The chosen continuations (see `select.best`) as nodes of the tree, with their scores and
    noise out of those of all candidates."""
    beams, candidates, at = chosen.T
    tokens = scored.tokens[candidates]
    nodes = scored.tree.add(kept.nodes[beams], tokens, scored.places[candidates])
    ranks = np.empty(len(nodes), np.int64)
    ranks[np.lexsort((tokens, kept.ranks[beams]))] = np.arange(len(nodes))
    return Kept(nodes, values[0][at], ranks, values[1][at])
