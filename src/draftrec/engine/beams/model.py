"""A model that rates the next tokens of many users' trees in one forward pass.

Target and draft model are both one of these: what differs is who decides with the ratings.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from draftrec.core import FloatArray, IntArray, LongArray
from draftrec.engine import sampling
from draftrec.engine.beams.state import BeamRequest, BeamTree, Scored, log_sums
from draftrec.engine.costs import LearningCurve
from draftrec.engine.target import Target
from draftrec.errors import UnsupportedModelError

if TYPE_CHECKING:
    from draftrec.items.trie import Filter, ItemTrie

# Fewer rows are computed as fast as they are copied.
_LEAST_SHARED = 4


@dataclass(frozen=True, slots=True)
class Constraint:
    """Which tokens may follow. `trie` None: any token, of which the `most` best are looked at.

    `renormalise`: log-probabilities are of legal tokens only, so that a level with a single legal
    token costs nothing and asks no model. Otherwise they are the model's own (as in LC-Rec).
    """

    trie: ItemTrie | None
    levels: int
    renormalise: bool = False
    most: int = 64


class BeamModel:
    """`target` behind a cache of `slots` users; `constraint` says what is legal. `costs` are told
    what passes take, if anybody wants to know."""

    def __init__(self, target: Target, constraint: Constraint) -> None:
        self.target, self.constraint = target, constraint
        self.costs: LearningCurve | None = None

    def open(self, slot: int, request: BeamRequest, tree: BeamTree) -> Scored:
        """A search in a slot of the cache, whose rows are those of the prompt's beginning as far as
        they are known to be. One token at least is left to compute."""
        (shared,) = self.target.shared(request.prompt_ids, slot, slot + 1).tolist()
        return Scored(slot, request, tree, min(shared, len(request.prompt_ids) - 1))

    def slot_for(self, prompt: IntArray, free: Seq[int]) -> int:
        """Which of the `free` slots, the longest unused first, a prompt should have: the one that
        holds most of it. Where another slot holds more, its rows are copied there."""
        shared = self.target.shared(prompt)
        shared[shared < _LEAST_SHARED] = 0
        slot = max(free, key=lambda it: shared[it])
        source = int(shared.argmax())
        if (slab := self.target.slab) and shared[source] >= shared[slot] + _LEAST_SHARED:
            slab.copy_prefix(source, slot, int(shared[source]))
            self.target.hold(slot, prompt[: shared[source]])
        return slot

    def rate(self, work: Seq[tuple[Scored, IntArray]]) -> int:
        """One pass over the given rows of every user, none where there is nothing to compute; its
        rows."""
        work = [(s, nodes) for s, nodes in work if len(nodes) or not s.started]
        if not work:
            return 0
        self._check_lengths(work)
        start, rows = time.perf_counter(), sum(s.rows(nodes) for s, nodes in work)
        logits = self.target.score([s.segment(nodes) for s, nodes in work]).logits
        asked = [s.asked(nodes) for s, nodes in work]
        offsets, tokens, places, log_probs = self._candidates(work, asked, logits)
        if self.costs is not None:  # the device is done: what was asked of it is here
            self.costs.observe(rows, time.perf_counter() - start)
        first = 0
        for (scored, nodes), mine in zip(work, asked, strict=True):
            ends = offsets[first : first + len(mine) + 1]
            here = slice(int(ends[0]), int(ends[-1]))
            candidates = tokens[here], places[here], log_probs[here]
            self._teach(scored, mine, ends - ends[0], candidates)
            if not scored.started:
                self.target.hold(scored.slot, scored.request.prompt_ids)
            scored.computed(nodes)
            first += len(mine)
        return rows

    def knows(self, scored: Scored, nodes: IntArray) -> bool:
        """Are all of `nodes` rated, or is what follows certain?"""
        self.learn_forced(scored, nodes[nodes >= 0])
        return bool(scored.rates(nodes).all())

    def learn_forced(self, scored: Scored, nodes: IntArray) -> None:
        """Rate the nodes that have one legal child: with renormalised scores it is certain."""
        trie = self.constraint.trie
        if trie is None or not self.constraint.renormalise or not len(nodes):
            return
        nodes = nodes[~scored.rates(nodes)]
        offsets, places = trie.children(scored.tree.places[nodes])
        tokens, certain = trie.tokens[places], np.zeros(len(places), np.float32)
        offsets, (tokens, places, certain) = _kept(
            offsets, (tokens, places, certain), scored.request.filter
        )
        single = np.flatnonzero(np.diff(offsets) == 1)
        here = offsets[single]
        count = np.arange(len(single) + 1)
        scored.learn(nodes[single], count, (tokens[here], places[here], certain[here]))

    def move(self, moves: Seq[tuple[int, int, int]]) -> None:
        """Copy cached rows: (slot, from column, to column)."""
        if self.target.slab is not None:
            self.target.slab.move_rows(moves)

    def _check_lengths(self, work: Seq[tuple[Scored, IntArray]]) -> None:
        """Raise UnsupportedModelError for beams past the length where rotary factors change: their
        cached rows would have to be computed anew."""
        if not self.target.rule:
            return
        most = self.target.shared_length
        for scored, nodes in work:
            levels = scored.tree.levels[nodes]
            if len(scored.request.prompt_ids) + int(levels.max(initial=0)) > most:
                raise UnsupportedModelError(
                    f"{type(self.target.model).__name__} changes its rotary factors after {most} "
                    "tokens, and beams are not served beyond; use histories that are shorter than "
                    "that, or another model."
                )

    def _candidates(
        self, work: Seq[tuple[Scored, IntArray]], asked: Seq[IntArray], logits: torch.Tensor
    ) -> tuple[LongArray, IntArray, LongArray, FloatArray]:
        """Of all asked rows: offsets int64 `[R + 1]`, then tokens, places and log-probabilities."""
        trie = self.constraint.trie
        if trie is None:
            best, ids = sampling.most_probable(logits, self.constraint.most)
            offsets = np.arange(len(logits) + 1) * best.shape[1]
            tokens = ids.cpu().numpy().astype(np.int32).reshape(-1)
            return offsets, tokens, np.full(len(tokens), -1), best.cpu().numpy().reshape(-1)
        places = np.concatenate(
            [np.where(n < 0, 0, s.tree.places[n]) for (s, _), n in zip(work, asked, strict=True)]
        )
        offsets, children = trie.children(places)
        tokens = trie.tokens[children]
        rows = np.repeat(np.arange(len(places)), np.diff(offsets))
        return offsets, tokens, children, sampling.log_probs_of(logits, rows, tokens)

    def _teach(
        self,
        scored: Scored,
        rows: IntArray,
        offsets: LongArray,
        candidates: tuple[IntArray, LongArray, FloatArray],
    ) -> None:
        if self.constraint.trie is not None:
            offsets, candidates = _kept(offsets, candidates, scored.request.filter)
        tokens, places, log_probs = candidates
        if self.constraint.renormalise:
            log_probs = renormalised(log_probs, offsets)
        scored.learn(rows, offsets, (tokens, places, log_probs))


def renormalised(log_probs: FloatArray, offsets: LongArray) -> FloatArray:
    """float32: log-probabilities of every range made to sum to one."""
    counts, wide = np.diff(offsets), log_probs.astype(np.float64)
    return (wide - np.repeat(log_sums(wide, counts), counts)).astype(np.float32)


def _kept(
    offsets: LongArray,
    candidates: tuple[IntArray, LongArray, FloatArray],
    allowed: Filter | None,
) -> tuple[LongArray, tuple[IntArray, LongArray, FloatArray]]:
    """The candidates that a request's filter lets through."""
    if allowed is None:
        return offsets, candidates
    tokens, places, log_probs = candidates
    keep = allowed.legal(places)
    before = np.concatenate(([0], np.cumsum(keep)))
    return before[offsets], (tokens[keep], places[keep], log_probs[keep])
