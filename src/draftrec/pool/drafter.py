"""Drafts from the sequence's own prompt and text, and from pools of texts written before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from draftrec.core import ALL, GROUP, PREVIOUS, PROMPT, DraftTree, IntArray, SequenceView, Verdict
from draftrec.pool.index import NgramIndex, Noise, Source, TreeBuilder, tail_of_text
from draftrec.pool.ngrams import ORDER
from draftrec.pool.store import LevelName, Pool

# What one observation counts in each source. The text under way repeats its prompt's names, and an
# update its previous text; both weights were chosen by replaying recorded texts under another split
# than the reported one.
WEIGHTS = {PROMPT: 24.0, PREVIOUS: 40.0, GROUP: 1.0, ALL: 1.0}


class PoolDrafter:
    """One merged tree from the running text and its prompt, the entity's previous text, its
    group's pool and the pool of all.

    `pool` None drafts from the prompt, the text and the previous text only. Its texts are
    read, never grown here (a job adds finished ones between shards); its usage is counted.
    """

    def __init__(self, pool: Pool | None = None) -> None:
        self.pool = pool
        self.builder = TreeBuilder()
        self._running: dict[int, _Running] = {}

    def start(self, sequence: SequenceView) -> None:
        """Index the prompt and the entity's previous text."""
        prompt = sequence.request.prompt_ids
        own = NgramIndex(len(prompt) + 64)
        own.extend(prompt)
        previous = sequence.request.previous_ids
        index = None
        if previous is not None and len(previous):
            index = NgramIndex(len(previous) + 1)
            index.add_text(np.ascontiguousarray(previous, np.int32))
        self._running[id(sequence)] = _Running(own, index)

    def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        """One tree per sequence, at most `limit` nodes and `depth` levels."""
        noise = [_noise(s) for s in batch]
        # Another thread may add texts, and what is drawn from is borrowed as it is.
        with self.pool.turn if self.pool is not None else nullcontext():
            sources = [self._sources(s) for s in batch]
            trees = self.builder.build_many(sources, limit, depth, noise)
        for sequence, tree in zip(batch, trees, strict=True):
            # Of a few bytes Python has the largest sooner than numpy.
            from_pool = max(tree.sources.tobytes(), default=0) >= GROUP
            self._running[id(sequence)].from_pool = from_pool
        return trees

    def observe(self, batch: Seq[SequenceView], verdicts: Seq[Verdict]) -> None:
        """Index what was just written, and note what the pool's part in it was."""
        for sequence, verdict in zip(batch, verdicts, strict=True):
            running = self._running[id(sequence)]
            running.own.extend(verdict.token_ids)
            if self.pool is not None:
                running.note(len(sequence.context) - len(sequence.request.prompt_ids), verdict)

    def stop(self, sequence: SequenceView) -> None:
        """Forget the sequence; the pool learns what it was worth to it."""
        running = self._running.pop(id(sequence))
        if self.pool is not None and running.drafts:
            text = sequence.context[len(sequence.request.prompt_ids) :]
            self.pool.credit(sequence.request.group, text, running.drafts, running.hits)

    def _sources(self, sequence: SequenceView) -> list[Source]:
        context, request = sequence.context, sequence.request
        running = self._running[id(sequence)]
        tail = tail_of_text(context[len(request.prompt_ids) :])
        found: list[Source] = [(running.own, context[-ORDER:], WEIGHTS[PROMPT], PROMPT)]
        if running.previous is not None:
            found.append((running.previous, tail, WEIGHTS[PREVIOUS], PREVIOUS))
        if self.pool is not None:
            found.extend(pool_sources(self.pool.sources(request.group), tail))
        return found


def _noise(sequence: SequenceView) -> Noise | None:
    if sequence.noise is None:
        return None
    return sequence.noise, len(sequence.context) - len(sequence.request.prompt_ids)


def pool_sources(indexes: Iterable[tuple[LevelName, Any]], tail: IntArray) -> Iterator[Source]:
    """A pool's indexes, as `Pool.sources` gives them, for a text that ends in `tail`, int32."""
    for name, index in indexes:
        level = GROUP if name == "group" else ALL
        yield index, tail, WEIGHTS[level], level


@dataclass(slots=True)
class _Running:
    """A sequence's own indexes, and what was accepted of trees with nodes from the pool: how many
    tokens, and where in the text they end.
    """

    own: NgramIndex
    previous: NgramIndex | None
    from_pool: bool = False
    drafts: int = 0
    hits: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])

    def note(self, written: int, verdict: Verdict) -> None:
        """`written`: tokens of the text so far, those of the verdict included."""
        drafted, self.from_pool = self.from_pool, False
        if not drafted:
            return
        self.drafts += 1
        if accepted := len(verdict.path):
            self.hits.append((accepted, written - len(verdict.token_ids) + accepted))
