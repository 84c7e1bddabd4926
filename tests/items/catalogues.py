"""Catalogues that hypothesis draws, and what a trie over them must say, from plain sets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from draftrec.items.trie import ItemTrie

VOCABULARY = 12


@dataclass(frozen=True)
class Catalogue:
    """Item -> its path of tokens, in the order in which they are given to the trie."""

    paths: dict[int, tuple[int, ...]]

    @property
    def levels(self) -> int:
        return len(next(iter(self.paths.values())))

    def trie(self) -> ItemTrie:
        rows = np.array(list(self.paths.values()), np.int32)
        return ItemTrie.build(np.array(list(self.paths), np.int64), rows)

    def prefixes(self, level: int) -> list[tuple[int, ...]]:
        """All distinct prefixes of one length, sorted."""
        return sorted({path[:level] for path in self.paths.values()})

    def nodes(self) -> dict[tuple[int, ...], int]:
        """Prefix -> number of its node: breadth first, siblings by token."""
        every = [p for level in range(self.levels + 1) for p in self.prefixes(level)]
        return {prefix: number for number, prefix in enumerate(every)}

    def below(self, prefix: tuple[int, ...]) -> set[int]:
        """The items whose paths begin with `prefix`."""
        return {item for item, path in self.paths.items() if path[: len(prefix)] == prefix}

    def places(self, items: set[int]) -> np.ndarray:
        """Rows of items among all, sorted by id; -1 for others."""
        rows = {item: row for row, item in enumerate(sorted(self.paths))}
        return np.array([rows.get(item, -1) for item in items], np.int64)


@st.composite
def catalogues(draw: st.DrawFn) -> Catalogue:
    """Up to 30 items in any order; few or many tokens, so that paths are shared or not; some
    tokens are far from the others, as those of a large vocabulary are."""
    levels = draw(st.integers(1, 4))
    few = draw(st.sampled_from([1, 2, 5]))
    token = st.integers(0, few).map(lambda t: t if t < 5 else VOCABULARY - 1)
    path = st.tuples(*[token] * levels)
    items = draw(st.lists(st.integers(-5, 40), min_size=1, max_size=30, unique=True))
    return Catalogue({item: draw(path) for item in items})
