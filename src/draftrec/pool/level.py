"""A level of a pool: the texts of one group, or of all, under a closed index and an open one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq

import numpy as np

from draftrec.core import IntArray
from draftrec.pool.index import NgramIndex
from draftrec.pool.suffixes import ClosedIndex

# Fresh texts join the closed part when they are more than one in so many of its tokens: every token
# is then sorted some five times over a pool's life, and a lookup seldom asks two indexes.
_SHARE = 4


class Level:
    """Fresh texts are counted at once in the open index; when there are enough of them, all texts
    of the level are sorted anew into the closed one. When that happens depends on the texts and the
    calls of `add` alone, so that a job which is resumed drafts as an uninterrupted one does.
    """

    def __init__(self, closed: ClosedIndex | None = None) -> None:
        self.closed = closed
        self._open = NgramIndex()
        self._fresh: list[IntArray] = []
        self._fresh_tokens = 0

    @property
    def texts(self) -> int:
        return (self.closed.texts if self.closed else 0) + len(self._fresh)

    @property
    def tokens(self) -> int:
        return self._settled_tokens + self._fresh_tokens

    @property
    def nbytes(self) -> int:
        return (self.closed.nbytes if self.closed else 0) + (
            self._open.nbytes if self._fresh else 0
        )

    @property
    def indexes(self) -> list[ClosedIndex | NgramIndex]:
        """The parts that hold something."""
        found: list[ClosedIndex | NgramIndex] = [self.closed] if self.closed else []
        return [*found, self._open] if self._fresh else found

    def add(self, texts: Seq[IntArray]) -> None:
        """Add non-empty int32 texts."""
        new = sum(len(t) for t in texts)
        if new == 0:
            return
        self._fresh += texts
        self._fresh_tokens += new
        if _SHARE * self._fresh_tokens > self._settled_tokens:
            self.settle()
            return
        for text in texts:
            self._open.add_text(text)

    def settle(self) -> None:
        """Sort all texts into the closed index."""
        if self._fresh:
            self.closed = ClosedIndex.build([*self._settled(), *self._fresh])
            self._open, self._fresh, self._fresh_tokens = NgramIndex(), [], 0

    @property
    def _settled_tokens(self) -> int:
        return len(self.closed.tokens) - self.closed.texts if self.closed else 0

    def _settled(self) -> Iterator[IntArray]:
        return self.closed.texts_in_order() if self.closed else iter(())


def level_of(texts: Iterable[IntArray]) -> Level:
    """A level that holds `texts` settled; empty ones are left out."""
    level = Level()
    level.add([np.ascontiguousarray(t, np.int32) for t in texts if len(t)])
    return level
