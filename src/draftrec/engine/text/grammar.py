"""Texts of a given form: every token is one that a grammar allows after its own path.

llguidance follows the text with a matcher that can take tokens back, so that one matcher per text
walks its whole draft tree, depth first, and leaves a bitmask at every node that it can reach. The
rules of acceptance then see the masked scores alone: what is written is what decoding one token at
a time under the same masks writes, whatever was drafted.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch

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
from draftrec.engine.text.batch import RunningSequence
from draftrec.engine.tree import depths, make_tree, trim
from draftrec.errors import DraftrecError

if TYPE_CHECKING:
    from llguidance import LLMatcher

# Rows whose masks are spread to bytes at once: 64 of a vocabulary of 256 thousand are 16 MB.
_ROWS = 64


class Grammar:
    """A compiled grammar over a tokenizer. `start`: a matcher that has read nothing, of which every
    text gets a copy; `words`: int32 words of a bitmask; `eos_ids`: what ends a text."""

    def __init__(self, start: LLMatcher, vocabulary: int, eos_ids: frozenset[int]) -> None:
        self.start, self.eos_ids = start, eos_ids
        self.words = (vocabulary + 31) // 32


class GrammarStates:
    """Where running texts stand in the grammar. A text that nobody holds any more is forgotten."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self._running: WeakKeyDictionary[SequenceView, _State] = WeakKeyDictionary()

    def at(self, sequence: SequenceView) -> LLMatcher:
        """The matcher after the sequence's committed tokens; whoever moves it on takes that back.

        Raises GrammarLostError where the text has left the grammar, or the grammar its limits.
        """
        state = self._running.get(sequence)
        if state is None:
            state = self._running[sequence] = _State(self.grammar.start.deep_copy())
        first = len(sequence.request.prompt_ids) + state.consumed
        fresh = sequence.context[first:].tolist()
        if fresh and state.matcher.try_consume_tokens(fresh) < len(fresh):
            raise _lost(sequence, state.matcher)
        state.consumed += len(fresh)
        return state.matcher

    def __len__(self) -> int:
        return len(self._running)


class _State:
    """A matcher, and how many tokens of the text it has read."""

    def __init__(self, matcher: LLMatcher) -> None:
        self.matcher, self.consumed = matcher, 0


class GrammarControl:
    """A `Control` that leaves every row the tokens that the grammar allows there.

    EOS is among them exactly where the text may end, and alone where it must. Where other controls
    have forbidden all that the grammar allows, the grammar wins.
    """

    def __init__(self, states: GrammarStates) -> None:
        self.states = states

    def apply(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> torch.Tensor:
        """Masks `logits` float32 `[R, V]` in place. Rows that no text of the grammar reaches stay
        as they are: nothing before them can be accepted. Raises as `GrammarStates.at` does."""
        masks = np.full((len(logits), self.states.grammar.words), -1, np.int32)
        row = 0
        for sequence, tree in zip(batch, trees, strict=True):
            after = row + 1 + len(tree)
            matcher = self.states.at(sequence)
            _fill(matcher, tree, masks[row:after], self.states.grammar.eos_ids)
            if matcher.is_error():
                raise _lost(sequence, matcher)
            row = after
        for first in range(0, len(logits), _ROWS):
            _mask(logits[first : first + _ROWS], masks[first : first + _ROWS])
        return logits


def _fill(matcher: LLMatcher, tree: DraftTree, masks: IntArray, eos_ids: frozenset[int]) -> None:
    """Bitmasks, one bit per token, for the root and every node that the grammar can reach."""
    from llguidance.numpy import fill_next_token_bitmask

    fill_next_token_bitmask(matcher, masks, 0)
    tokens, parents = tree.token_ids.tolist(), tree.parents.tolist()
    walk = Walk(matcher, parents)
    for node in walk:
        allowed = _bit(masks[parents[node] + 1], tokens[node])
        if allowed and tokens[node] not in eos_ids and walk.enter(node, tokens[node]):
            fill_next_token_bitmask(matcher, masks, node + 1)


class Walk:
    """Nodes of a tree, depth first, each with the matcher where its parent is; what lies below a
    node comes up only if it was entered. The matcher ends where it began."""

    def __init__(self, matcher: LLMatcher, parents: Seq[int]) -> None:
        self._matcher = matcher
        self._below: dict[int, list[int]] = {}
        for node in range(len(parents) - 1, -1, -1):
            self._below.setdefault(parents[node], []).append(node)
        self._waiting = [(node, 0) for node in self._below.get(-1, ())]
        self._level = 0

    def __iter__(self) -> Walk:
        return self

    def __next__(self) -> int:
        node, level = self._waiting.pop() if self._waiting else (-1, 0)
        if self._level > level:
            self._matcher.rollback(self._level - level)
            self._level = level
        if node < 0:
            raise StopIteration
        return node

    def enter(self, node: int, token: int) -> bool:
        """Go on to what lies below the node that came up last; False if the grammar refuses it."""
        if self._matcher.try_consume_tokens([token]) != 1:
            return False
        self._level += 1
        self._waiting += [(child, self._level) for child in self._below.get(node, ())]
        return True


def _bit(mask: IntArray, token: int) -> bool:
    return token >> 5 < len(mask) and bool(int(mask[token >> 5]) >> (token & 31) & 1)


def _mask(logits: torch.Tensor, masks: IntArray) -> None:
    """-inf where the bit of `masks` int32 `[R, W]` is 0, in `logits` `[R, V]` itself."""
    width = logits.shape[-1]
    packed = torch.as_tensor(masks.view(np.uint8), device=logits.device)
    shifts = torch.arange(8, dtype=torch.uint8, device=logits.device)
    forbidden = ((packed[:, :, None] >> shifts) & 1).flatten(1)[:, :width] == 0
    if forbidden.shape[-1] < width:  # rows of the embedding that stand for no token
        logits[:, forbidden.shape[-1] :] = -torch.inf
        logits = logits[:, : forbidden.shape[-1]]
    logits.masked_fill_(forbidden, -torch.inf)
    nothing_left = logits.amax(-1) == -torch.inf
    if bool(nothing_left.any()):
        logits.masked_fill_(nothing_left[:, None] & ~forbidden, 0.0)


class GrammarLostError(DraftrecError):
    """A grammar cannot follow the text of `sequence`, which other texts need not suffer from."""

    def __init__(self, sequence: SequenceView, message: str) -> None:
        super().__init__(message)
        self.sequence = sequence


def _lost(sequence: SequenceView, matcher: LLMatcher) -> DraftrecError:
    reason = " ".join(matcher.get_error().split()) or "a token was written that it does not allow"
    return GrammarLostError(
        sequence,
        f"the grammar cannot follow the text of {sequence.request.entity_id!r}: {reason[:200]}; "
        f"simplify the schema or grammar",
    )


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
