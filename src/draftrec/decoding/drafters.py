"""Drafters: nothing, the sequence's own prompt and text, pools of texts written before."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from draftrec.core import EMPTY_TREE, SOURCES, DraftTree, IntArray, SequenceView, Verdict
from draftrec.pool.index import NgramIndex, TreeBuilder, tail_of_text
from draftrec.pool.ngrams import ORDER
from draftrec.pool.store import Pool

PROMPT, PREVIOUS, GROUP, ALL = range(len(SOURCES))
# What one observation counts in each source. The text under way repeats its own prompt's names;
# its weight was chosen by replaying recorded texts of entities that no reported figure uses. That
# of the previous text is a guess so far.
WEIGHTS = {PROMPT: 6.0, PREVIOUS: 12.0, GROUP: 1.0, ALL: 1.0}


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


class PoolDrafter:
    """One merged tree from the running text and its prompt, the entity's previous text, its
    group's pool and the pool of all.

    `pool` None drafts from the prompt, the text and the previous text only. The pool is read, never
    grown here: a job adds finished texts between shards.
    """

    def __init__(self, pool: Pool | None = None, builder: TreeBuilder | None = None) -> None:
        self.pool = pool
        self.builder = builder or TreeBuilder()
        self._own: dict[int, NgramIndex] = {}
        self._previous: dict[int, NgramIndex] = {}

    def start(self, sequence: SequenceView) -> None:
        """Index the prompt and the entity's previous text."""
        prompt = sequence.request.prompt_ids
        own = NgramIndex(len(prompt) + 64)
        own.extend(prompt)
        self._own[id(sequence)] = own
        previous = sequence.request.previous_ids
        if previous is not None and len(previous):
            index = NgramIndex(len(previous) + 1)
            index.add_text(np.ascontiguousarray(previous, np.int32))
            self._previous[id(sequence)] = index

    def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        """One tree per sequence, at most `limit` nodes and `depth` levels."""
        return [self.builder.build(self._sources(s), limit, depth) for s in batch]

    def observe(self, batch: Seq[SequenceView], verdicts: Seq[Verdict]) -> None:
        """Index what was just written."""
        for sequence, verdict in zip(batch, verdicts, strict=True):
            self._own[id(sequence)].extend(verdict.token_ids)

    def stop(self, sequence: SequenceView) -> None:
        """Forget the sequence."""
        del self._own[id(sequence)]
        self._previous.pop(id(sequence), None)

    def _sources(self, sequence: SequenceView) -> list[tuple[NgramIndex, IntArray, float, int]]:
        context, request = sequence.context, sequence.request
        own_tail = np.ascontiguousarray(context[-ORDER:])
        tail = tail_of_text(context[len(request.prompt_ids) :])
        found = [(self._own[id(sequence)], own_tail, WEIGHTS[PROMPT], PROMPT)]
        if (previous := self._previous.get(id(sequence))) is not None:
            found.append((previous, tail, WEIGHTS[PREVIOUS], PREVIOUS))
        if self.pool is None:
            return found
        if request.group is not None and len(self.pool.groups) > 1:
            group = self.pool.groups.get(request.group)
            if group is not None:
                found.append((group, tail, WEIGHTS[GROUP], GROUP))
        if self.pool.all.texts:
            found.append((self.pool.all, tail, WEIGHTS[ALL], ALL))
        return found
