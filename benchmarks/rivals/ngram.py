"""A plain n-gram drafter, the rival that everybody has: the continuations of the longest match.

It looks for the longest run of last tokens that occurred before, in the texts taken in and in the
prompt and text so far, and drafts what followed there, most frequent first. No blending of shorter
matches, no estimate beyond the counts.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable
from collections.abc import Sequence as Seq

import numpy as np

from draftrec.core import EMPTY_TREE, DraftTree, IntArray, LongArray, SequenceView, Verdict
from draftrec.engine.tree import make_tree

# n-grams under which places are found; longer matches are found among the places of the longest.
_KEYS = (4, 2, 1)
_LONGEST = 16
# Most recent places looked at per lookup.
_MOST = 4096
_BREAK = -1


class Occurrences:
    """Token runs, and where every 1-, 2- and 4-gram of them ended. Texts do not run together."""

    def __init__(self) -> None:
        self._tokens = np.full(1024, _BREAK, np.int32)
        # Breaks in front, so that looking back from the first token stays inside.
        self._size = _LONGEST
        self._first = self._size
        self._places: dict[tuple[int, ...], list[int]] = {}

    def __len__(self) -> int:
        return self._size - _LONGEST

    def begin(self) -> None:
        """What comes next follows nothing."""
        self._put(np.array([_BREAK], np.int32))
        self._first = self._size

    def extend(self, token_ids: IntArray) -> None:
        """Go on with the running text."""
        start = self._size
        self._put(token_ids)
        for end in range(start + 1, self._size + 1):
            last = tuple(self._tokens[max(self._first, end - _KEYS[0]) : end].tolist())
            for n in _KEYS:
                if n <= len(last):
                    self._places.setdefault(last[-n:], []).append(end)

    def longest_match(self, context: IntArray) -> tuple[int, LongArray]:
        """Length of the longest match of the end of `context`, and where its matches end."""
        last = context[-_KEYS[0] :].tolist()
        size = self._size
        for n in _KEYS:
            found = self._places.get(tuple(last[-n:])) if len(last) >= n else None
            if not found:
                continue
            # The last place is the end of the running text itself: nothing follows it yet.
            places = np.array(found[-_MOST:], np.int64)
            places = places[places < size]
            if not len(places):
                continue
            while n < min(_LONGEST, len(context)):
                longer = places[self._tokens[places - n - 1] == context[-n - 1]]
                if not len(longer):
                    break
                places, n = longer, n + 1
            return n, places
        return 0, np.empty(0, np.int64)

    def continuations(self, places: LongArray, depth: int) -> IntArray:
        """int32 `[m, depth]`: what followed each place; past an end -1, and nothing after it."""
        columns = places[:, None] + np.arange(depth)
        rows = self._tokens[np.minimum(columns, self._size - 1)]
        over = (columns >= self._size) | (rows == _BREAK)
        return np.where(np.logical_or.accumulate(over, axis=1), _BREAK, rows)

    def _put(self, token_ids: IntArray) -> None:
        end = self._size + len(token_ids)
        if end > len(self._tokens):
            grown = np.full(2 * end, _BREAK, np.int32)
            grown[: self._size] = self._tokens[: self._size]
            self._tokens = grown
        self._tokens[self._size : end] = token_ids
        self._size = end


class NgramDrafter:
    """Longest match among finished texts and the running one; a tie counts both. What its tokens
    mean, which `tokenizer` knows, makes no difference."""

    names_sources = False
    nbytes = None

    def __init__(self, tokenizer: object = None) -> None:
        self.texts = Occurrences()
        self.tokens = 0
        self._own: dict[int, Occurrences] = {}

    def add(self, texts: Iterable[tuple[IntArray, str | None]]) -> None:
        """Add finished texts; groups make no difference."""
        for ids, _ in texts:
            self.texts.begin()
            self.texts.extend(ids)
            self.tokens += len(ids)
        self.texts.begin()

    def start(self, sequence: SequenceView) -> None:
        """Index the prompt, and the previous text as if it stood before it."""
        own = Occurrences()
        if sequence.request.previous_ids is not None:
            own.extend(sequence.request.previous_ids)
            own.begin()
        own.extend(sequence.request.prompt_ids)
        self._own[id(sequence)] = own

    def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        """One tree per sequence, at most `limit` nodes and `depth` levels."""
        return [self._tree(s, limit, depth) for s in batch]

    def observe(self, batch: Seq[SequenceView], verdicts: Seq[Verdict]) -> None:
        """Index what was just written."""
        for sequence, verdict in zip(batch, verdicts, strict=True):
            self._own[id(sequence)].extend(verdict.token_ids)

    def stop(self, sequence: SequenceView) -> None:
        """Forget the sequence."""
        del self._own[id(sequence)]

    def _tree(self, sequence: SequenceView, limit: int, depth: int) -> DraftTree:
        if limit <= 0 or depth <= 0:
            return EMPTY_TREE
        stores = (self._own[id(sequence)], self.texts)
        matches = [store.longest_match(sequence.context) for store in stores]
        longest = max(length for length, _ in matches)
        if not longest:
            return EMPTY_TREE
        rows = [
            store.continuations(places, depth)
            for store, (length, places) in zip(stores, matches, strict=True)
            if length == longest
        ]
        return most_frequent(np.concatenate(rows), limit)


def most_frequent(rows: IntArray, limit: int) -> DraftTree:
    """The `limit` most frequent prefixes of the rows of int32 `[m, depth]`, -1 = over, as a tree.

    Among equally frequent ones the shorter come first.
    """
    tokens: list[int] = []
    parents: list[int] = []
    probs: list[float] = []
    heap: list[tuple[int, int, int, int, LongArray]] = []
    number = itertools.count()  # decides ties, so that arrays are never compared

    def offer(members: LongArray, level: int, parent: int) -> None:
        if level == rows.shape[1]:
            return
        column = rows[members, level]
        for token in np.unique(column[column != _BREAK]).tolist():
            mine = members[column == token]
            heapq.heappush(heap, (-len(mine), level, next(number), parent, mine))

    offer(np.arange(len(rows)), 0, -1)
    while heap and len(tokens) < limit:
        negative, level, _, parent, members = heapq.heappop(heap)
        tokens.append(int(rows[members[0], level]))
        parents.append(parent)
        probs.append(-negative / len(rows))
        offer(members, level + 1, len(tokens) - 1)
    return make_tree(tokens, parents, probs)
