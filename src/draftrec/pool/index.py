"""The retrieval index: texts in, draft trees out."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import numpy as np

from draftrec.core import EMPTY_TREE, DraftTree, IntArray
from draftrec.pool import drafting, ngrams, views
from draftrec.pool.ngrams import ORDER, START, Arrays
from draftrec.pool.suffix_states import REACH
from draftrec.pool.suffixes import ClosedIndex


class NgramIndex:
    """Counts of what followed every context of up to 8 tokens, grown token by token.

    It serves the prompt and text of one sequence, and the fresh texts of a pool until they join the
    closed part. `handle` is what kernels know it by.
    """

    def __init__(self, tokens: int = 64) -> None:
        self._take(_allocate(max(64, 3 * tokens), max(64, tokens)))
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
        self._reserve(0, 1)
        self.arrays.size[1] += 1  # a place that stays empty, between this text and the next
        self._active = _fresh()

    def extend(self, token_ids: IntArray) -> None:
        """Count tokens that continue the running text."""
        self._reserve(len(token_ids) * (ORDER + 1), len(token_ids))
        ngrams.insert(self.arrays, token_ids, self._active)
        self.tokens += len(token_ids)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays)

    def _reserve(self, nodes: int, places: int) -> None:
        """Make room for so many more nodes and places of the text."""
        arrays = self.arrays
        used, written = arrays.size.tolist()
        grown = _grown(used + nodes, len(arrays.nodes))
        longer = _grown(written + places + 1, len(arrays.text))  # a break stays behind the text
        if grown > len(arrays.nodes) or longer > len(arrays.text):
            self._take(_move(arrays, grown, longer))

    def _take(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self.handle = views.trie_handle(arrays.nodes, arrays.table, arrays.text)


#: An index, the last tokens of the text to go on with, what one observation counts, a source id.
Source = tuple[NgramIndex | ClosedIndex, IntArray, float, int]
#: Of a text that is sampled: what its tokens are drawn by (`SequenceView.noise`), and the place in
#: the text of the first one to draft.
Noise = tuple[int, int]


class TreeBuilder:
    """Draws merged draft trees from several indexes, open and closed ones.

    `escape` is the weight of what has not been seen after a context (the larger, the more shorter
    contexts are trusted); it counts twice after a single token, which says little. `long_escape` is
    that of contexts of more than 8 tokens: one occurrence is as far as those go, and repeating it
    25 times over would make it a certainty. Where several sources know a context, each counts as
    `most` observations at most: a small group is heard beside a large pool. Paths less likely than
    `least_prob` are not proposed.
    """

    def __init__(
        self,
        escape: float = 5.0,
        long_escape: float = 32.0,
        least_prob: float = 0.001,
        most: float = 16.0,
    ) -> None:
        escapes = np.full(REACH + 1, escape)
        escapes[1] *= 2.0
        escapes[ORDER + 1 :] = long_escape
        self._settings = np.concatenate(([least_prob, most], escapes))

    def build(self, sources: Seq[Source], limit: int, depth: int) -> DraftTree:
        """A tree of at most `limit` nodes from (index, context tail, weight, source id) tuples.

        `weight` says how much one observation in that index counts.
        """
        return self.build_many([sources], limit, depth)[0]

    def build_many(
        self,
        batch: Seq[Seq[Source]],
        limit: int,
        depth: int,
        noise: Seq[Noise | None] | None = None,
    ) -> list[DraftTree]:
        """One tree per sequence, in one call that releases the GIL. `noise`, of each sequence that
        is sampled, has the tree prefer the tokens that will be drawn."""
        width = max((len(sources) for sources in batch), default=0)
        if width == 0 or limit <= 0 or depth <= 0:
            return [EMPTY_TREE] * len(batch)
        sources = _pack(batch, width)
        drawn_by, places = np.zeros(len(batch), np.uint64), np.full(len(batch), -1, np.int64)
        for b, known in enumerate(noise or ()):
            if known is not None:
                drawn_by[b], places[b] = known
        tokens, parents = np.empty((2, len(batch), limit), np.int32)
        probs = np.empty((len(batch), limit), np.float32)
        origins, sizes = np.empty((len(batch), limit), np.uint8), np.empty(len(batch), np.int64)
        drafting.draft(
            sources,
            (drawn_by, places),
            np.array([limit, depth]),
            self._settings,
            (tokens, parents, probs, origins, sizes),
        )
        return [
            DraftTree(tokens[b, :n], parents[b, :n], probs[b, :n], origins[b, :n])
            for b, n in enumerate(sizes.tolist())
        ]


def tail_of_text(token_ids: IntArray) -> IntArray:
    """The context that pools are asked for: the last tokens of a text, or its beginning."""
    if len(token_ids) >= REACH:
        return np.ascontiguousarray(token_ids[-REACH:])
    return np.concatenate((np.array([START], np.int32), token_ids))


def warm_up() -> None:
    """Compile the kernels (seconds on first use, then cached on disk), so that no step pays."""
    index = NgramIndex()
    index.add_text(np.arange(4, dtype=np.int32))
    index.extend(np.arange(64, dtype=np.int32))
    closed = ClosedIndex.build([np.arange(32, dtype=np.int32)] * 20)
    tail = tail_of_text(np.arange(2, dtype=np.int32))
    sources: list[Source] = [(index, tail, 1.0, 0), (closed, tail, 1.0, 3)]
    TreeBuilder().build_many([sources], 4, 4, [(1, 0)])


def _pack(batch: Seq[Seq[Source]], width: int) -> tuple[Any, Any, Any, Any, Any]:
    """Handles, weights, tails, their lengths and source ids as the kernel takes them; missing
    sources are empty."""
    handles = np.zeros((len(batch), width, views.FIELDS), np.int64)
    weights = np.zeros((len(batch), width))
    tails = np.empty((len(batch), width, REACH), np.int32)
    lengths = np.zeros((len(batch), width), np.int32)
    names = np.zeros((len(batch), width), np.uint8)
    for b, sources in enumerate(batch):
        for s, (index, tail, weight, name) in enumerate(sources):
            handles[b, s] = index.handle
            weights[b, s], names[b, s] = weight, name
            length = lengths[b, s] = min(len(tail), REACH)
            tails[b, s, :length] = tail[len(tail) - length :]
    return handles, weights, tails, lengths, names


def _fresh() -> IntArray:
    active = np.full(ORDER + 1, -1, np.int32)
    active[0] = 0
    return active


def _grown(needed: int, capacity: int) -> int:
    return capacity if needed <= capacity else max(needed, 3 * capacity // 2)


def _allocate(nodes: int, places: int) -> Arrays:
    table = np.full(1 << (5 * nodes // 4).bit_length(), -1, np.int32)  # at most 4/5 full
    text = np.full(places, ngrams.BREAK, np.int32)
    arrays = Arrays(np.zeros((nodes, 8), np.int32), table, text, np.array([1, 0]))
    arrays.nodes[0, ngrams.CHILD] = -1
    return arrays


def _move(old: Arrays, nodes: int, places: int) -> Arrays:
    """The same index with room for so many nodes and places."""
    new = _allocate(nodes, places)
    used, written = old.size.tolist()
    new.nodes[:used] = old.nodes[:used]
    new.text[:written] = old.text[:written]
    new.size[:] = old.size
    ngrams.rehash(new.nodes, new.table, used)
    return new
