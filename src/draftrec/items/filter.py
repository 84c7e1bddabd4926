"""What one request may be recommended: a list of items to leave out, or the only ones to offer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from draftrec.core import BoolArray, LongArray
from draftrec.errors import DraftrecError
from draftrec.items.trie import ItemTrie

#: Questions are looked up in a table of all numbers between them while it has at most this many
#: entries for each; beyond that, clearing it takes longer than searching.
_TABLE_PER_QUESTION = 32


@dataclass(frozen=True, eq=False)
class Filter:
    """Either `blocked` or `allowed` is set, the other is None.

    `blocked` int64 `[b]`, sorted: nodes that must not be entered, since all items below them are
    denied. `allowed` int64 `[a]`, sorted: nodes that may be entered, since an item below them is
    allowed. `items` int64 `[m]`, sorted: the denied or allowed items themselves, for those that
    share a leaf with others.
    """

    blocked: LongArray | None
    allowed: LongArray | None
    items: LongArray

    @classmethod
    def deny(cls, trie: ItemTrie, places: LongArray) -> Filter:
        """Leave out the items at `places` int64 `[k]`, in any order, repeated or not; negative
        ones (items that the catalogue does not have) are ignored.

        With all items denied, the root is blocked.
        """
        places = _known(places)
        nodes, counts = np.unique(trie.leaves_of(places), return_counts=True)
        leaves = nodes - trie.level_start[-2]
        held = trie.item_start[leaves + 1] - trie.item_start[leaves]
        blocked = [nodes[counts == held]]
        for level in range(trie.levels, 0, -1):
            nodes, counts = np.unique(trie.parents(blocked[-1], level), return_counts=True)
            held = trie.first[nodes + 1] - trie.first[nodes]
            blocked.append(nodes[counts == held])
        return cls(np.concatenate(blocked[::-1]), None, _items(trie, places))

    @classmethod
    def allow(cls, trie: ItemTrie, places: LongArray) -> Filter:
        """Offer only the items at `places` int64 `[k]`, in any order, repeated or not; negative
        ones are ignored. To deny some of them, leave them out of `places`.

        Raises DraftrecError when no item is left.
        """
        places = _known(places)
        if not len(places):
            raise DraftrecError(
                "none of the allowed items is in the catalogue; allow at least one that is"
            )
        allowed = [np.unique(trie.leaves_of(places))]
        for level in range(trie.levels, 0, -1):
            allowed.append(np.unique(trie.parents(allowed[-1], level)))
        return cls(None, np.concatenate(allowed[::-1]), _items(trie, places))

    def legal(self, nodes: LongArray) -> BoolArray:
        """bool `[r]`: whether each of `nodes` int64 `[r]` may be entered; -1 may not."""
        nodes = np.asarray(nodes, np.int64)
        if self.allowed is not None:
            return _among(self.allowed, nodes)
        assert self.blocked is not None
        return ~_among(self.blocked, nodes) & (nodes >= 0)

    def keeps(self, items: LongArray) -> BoolArray:
        """bool `[m]`: whether each item, given by id, may be recommended."""
        return _among(self.items, np.asarray(items, np.int64)) == (self.allowed is not None)


def _known(places: LongArray) -> LongArray:
    distinct = np.unique(np.asarray(places, np.int64))
    return distinct[distinct >= 0]


def _items(trie: ItemTrie, places: LongArray) -> LongArray:
    """The ids, sorted, since places are in the order of ids."""
    return trie.items[trie.positions[places]]


def _among(known: LongArray, wanted: LongArray) -> BoolArray:
    """bool, like `wanted`: what occurs in `known`, which is sorted."""
    found = np.zeros(wanted.shape, np.bool_)
    if not wanted.size:
        return found
    # A step asks about one level, and few of the known nodes lie there, often none.
    low, high = int(wanted.min()), int(wanted.max())
    near = known[np.searchsorted(known, low) : np.searchsorted(known, high, side="right")]
    if not len(near):
        return found
    if high - low < _TABLE_PER_QUESTION * wanted.size:
        table = np.zeros(high - low + 1, np.bool_)
        table[near - low] = True
        return table[wanted - low]
    places = np.minimum(np.searchsorted(near, wanted), len(near) - 1)
    return near[places] == wanted
