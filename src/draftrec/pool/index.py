"""The retrieval index: texts in, draft trees out."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from functools import cache

import numpy as np

from draftrec.core import EMPTY_TREE, SOURCES, DraftTree, IntArray
from draftrec.pool import ngrams
from draftrec.pool.ngrams import ORDER, START, Arrays


class NgramIndex:
    """Counts of what followed every context of up to 8 tokens, grown text by text.

    The same class serves a pool of thousands of texts and the prompt of one sequence.
    """

    def __init__(self, tokens: int = 64) -> None:
        nodes = max(64, tokens * (ORDER + 1) + 1)
        self.arrays = _allocate(nodes)
        self.texts = 0
        self.tokens = 0
        self._active = _fresh()

    def add_text(self, token_ids: IntArray) -> None:
        """Count a finished text, its beginning included."""
        self.begin()
        self.extend(np.concatenate((np.array([START], np.int32), token_ids)))
        self.texts += 1

    def begin(self) -> None:
        """Forget the running context: what comes next follows nothing."""
        self._active = _fresh()

    def extend(self, token_ids: IntArray) -> None:
        """Count tokens that continue the running text."""
        self._reserve(len(token_ids) * (ORDER + 1))
        ngrams.insert(self.arrays, token_ids, self._active, 1)
        self.tokens += len(token_ids)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays)

    def _reserve(self, nodes: int) -> None:
        needed = int(self.arrays.size[0]) + nodes
        if needed > len(self.arrays.nodes):
            self.arrays = _grow(self.arrays, max(needed, 3 * len(self.arrays.nodes) // 2))


class TreeBuilder:
    """Draws one merged draft tree from several indexes.

    `weights` say how much one observation in each source counts; `escape` how much the blend
    trusts short contexts; paths less likely than `least_prob` are not proposed.
    """

    def __init__(self, escape: float = 4.0, least_prob: float = 0.001) -> None:
        self._settings = np.array([escape, least_prob])

    def build(
        self,
        sources: Seq[tuple[NgramIndex, IntArray, float, int]],
        limit: int,
        depth: int,
    ) -> DraftTree:
        """A tree of at most `limit` nodes from (index, context tail, weight, source id) tuples.

        Raises ValueError for more sources than `SOURCES` names.
        """
        if not sources or limit <= 0 or depth <= 0:
            return EMPTY_TREE
        if len(sources) > len(SOURCES):
            raise ValueError(f"a tree is drawn from at most {len(SOURCES)} sources")
        # The kernel is compiled for one number of sources, so the missing ones are empty.
        sources = [*sources, *[_nothing()] * (len(SOURCES) - len(sources))]
        tokens, parents = np.empty(limit, np.int32), np.empty(limit, np.int32)
        probs, origin = np.empty(limit, np.float32), np.empty(limit, np.uint8)
        n = ngrams.draft(
            tuple(s[0].arrays for s in sources),
            np.array([s[2] for s in sources]),
            tuple(s[1] for s in sources),
            limit,
            depth,
            self._settings,
            (tokens, parents, probs, origin),
        )
        names = np.array([s[3] for s in sources], np.uint8)
        return DraftTree(tokens[:n], parents[:n], probs[:n], names[origin[:n]])


def tail_of_text(token_ids: IntArray) -> IntArray:
    """The context that pools are asked for: the last tokens of a text, or its beginning."""
    if len(token_ids) >= ORDER:
        return np.ascontiguousarray(token_ids[-ORDER:])
    return np.concatenate((np.array([START], np.int32), token_ids))


def warm_up() -> None:
    """Compile the kernels (seconds on first use, then cached on disk), so that no step pays."""
    index = NgramIndex()
    index.add_text(np.arange(4, dtype=np.int32))
    index.extend(np.arange(64, dtype=np.int32))
    TreeBuilder().build([(index, tail_of_text(np.arange(2, dtype=np.int32)), 1.0, 0)], 4, 4)


@cache
def _nothing() -> tuple[NgramIndex, IntArray, float, int]:
    return NgramIndex(), np.empty(0, np.int32), 0.0, 0


def _fresh() -> IntArray:
    active = np.full(ORDER + 1, -1, np.int32)
    active[0] = 0
    return active


def _allocate(nodes: int) -> Arrays:
    table = np.full(1 << (3 * nodes // 2).bit_length(), -1, np.int32)  # at most 2/3 full
    arrays = Arrays(np.zeros((nodes, 8), np.int32), table, np.ones(1, np.int64))
    arrays.nodes[0, ngrams.CHILD] = -1
    return arrays


def _grow(old: Arrays, nodes: int) -> Arrays:
    new = _allocate(nodes)
    used = int(old.size[0])
    new.nodes[:used] = old.nodes[:used]
    new.size[0] = used
    ngrams.rehash(new.nodes, new.table, used)
    return new
