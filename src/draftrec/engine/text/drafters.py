"""Drafters that need no texts: none at all, and what a grammar forces."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from draftrec.core import (
    EMPTY_TREE,
    GRAMMAR,
    Drafter,
    DraftTree,
    IntArray,
    SequenceProxy,
    SequenceView,
    Verdict,
)
from draftrec.engine.text.grammar import GrammarStates, Walk
from draftrec.engine.tree import depths, make_tree, trim


class NoDrafter:
    """Proposes nothing: plain decoding."""

    def start(self, sequence: SequenceView) -> None:
        """Nothing to prepare."""

    def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        """Empty trees."""
        return [EMPTY_TREE] * len(batch)

    def observe(self, batch: Seq[SequenceView], verdicts: Seq[Verdict]) -> None:
        """Nothing to learn."""

    def stop(self, sequence: SequenceView) -> None:
        """Nothing to forget."""


class GrammarDrafter:
    """Drafts forced tokens with certainty, and lets `inner` draft what follows them.

    What the grammar refuses is left out, which saves its rows of the pass. Where a text must end,
    its end is all that is drafted. `states`: of texts without rules of their own; None: these have
    no grammar, and are what `inner` drafts.
    """

    def __init__(self, inner: Drafter, states: GrammarStates | None = None) -> None:
        self.inner, self.states = inner, states
        self._views: dict[int, _Ahead] = {}

    def start(self, sequence: SequenceView) -> None:
        """Tell the inner drafter."""
        view = self._views[id(sequence)] = _Ahead(sequence)
        self.inner.start(view)

    def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        """Forced tokens and the inner drafter's trees behind them, at most `limit` nodes and
        `depth` levels together."""
        heads = self.certain(batch, limit, depth)
        views = [self._views[id(s)] for s in batch]
        for view, head in zip(views, heads, strict=True):
            view.ahead = head.token_ids
        tails = self.inner.draft(views, limit, depth)
        for view in views:
            view.ahead = EMPTY_TREE.token_ids
        return [
            self._legal(s, self._joined(s, head, tail, limit, depth))
            for s, head, tail in zip(batch, heads, tails, strict=True)
        ]

    def certain(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        """Forced tokens alone, which cost no search: worth verifying when drafting rests."""
        return [self._forced(s, min(limit, depth)) for s in batch]

    def observe(self, batch: Seq[SequenceView], verdicts: Seq[Verdict]) -> None:
        """Tell the inner drafter."""
        self.inner.observe([self._views[id(s)] for s in batch], verdicts)

    def stop(self, sequence: SequenceView) -> None:
        """Tell the inner drafter, and forget the sequence."""
        self.inner.stop(self._views.pop(id(sequence)))

    def _states(self, sequence: SequenceView) -> GrammarStates | None:
        rules = sequence.request.wishes.rules
        return rules.states if rules else self.states

    def _forced(self, sequence: SequenceView, most: int) -> DraftTree:
        """A chain of forced tokens, and the ids that may end the text where it is over then."""
        states = self._states(sequence)
        if states is None:
            return EMPTY_TREE
        matcher = states.at(sequence)
        tokens = matcher.compute_ff_tokens()[:most]
        read = matcher.try_consume_tokens(tokens) if tokens else 0
        over = matcher.is_stopped()
        if read:
            matcher.rollback(read)
        n = len(tokens)
        ends = sorted(states.grammar.eos_ids)[: most - n] if over else []
        return make_tree(
            [*tokens, *ends],
            [*range(-1, n - 1), *[n - 1] * len(ends)],
            [1.0] * n + [1 / len(ends)] * len(ends) if ends else [1.0] * n,
            [GRAMMAR] * (n + len(ends)),
        )

    def _joined(
        self, sequence: SequenceView, head: DraftTree, tail: DraftTree, limit: int, depth: int
    ) -> DraftTree:
        """`tail` behind the last node of `head`, cut to what both may be together."""
        n, states = len(head), self._states(sequence)
        if not n or states is None:
            return tail
        if n == limit or int(head.token_ids[-1]) in states.grammar.eos_ids:
            return head
        tail = trim(tail, (depths(tail) < depth - n) & (np.arange(len(tail)) < limit - n))
        below = np.where(tail.parents < 0, n - 1, tail.parents + n).astype(np.int32)
        return DraftTree(
            np.concatenate([head.token_ids, tail.token_ids]),
            np.concatenate([head.parents, below]),
            np.concatenate([head.probs, tail.probs]),
            np.concatenate([head.sources, tail.sources]),
        )

    def _legal(self, sequence: SequenceView, tree: DraftTree) -> DraftTree:
        """The tree without what the grammar refuses."""
        states = self._states(sequence)
        if states is None or not len(tree) or int(tree.sources.min()) == GRAMMAR:
            return tree
        keep = np.zeros(len(tree), np.bool_)
        tokens, ends = tree.token_ids.tolist(), states.grammar.eos_ids
        matcher = states.at(sequence)
        walk = Walk(matcher, tree.parents.tolist())
        for node in walk:
            is_end = tokens[node] in ends
            keep[node] = matcher.is_accepting() if is_end else walk.enter(node, tokens[node])
        return trim(tree, keep)


class _Ahead(SequenceProxy):
    """A sequence as it will be if the tokens `ahead`, int32, are accepted, as they are bound to."""

    def __init__(self, sequence: SequenceView) -> None:
        super().__init__(sequence)
        self.ahead: IntArray = EMPTY_TREE.token_ids

    @property
    def context(self) -> IntArray:
        context = super().context
        return np.concatenate([context, self.ahead]) if len(self.ahead) else context

    @property
    def room(self) -> int:
        return super().room - len(self.ahead)
