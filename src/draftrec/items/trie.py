"""All prefixes of the catalogue's semantic ids as flat arrays, so that a mask is one gather;
and what one request may be recommended of them.

Nodes are numbered breadth first and siblings lie together, sorted by token: the children of a node
are a range, a level is a range, and no node stores a pointer to its parent, which a binary search
among the nodes of the level above finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from draftrec.core import BoolArray, IntArray, LongArray
from draftrec.errors import DraftrecError

Array = npt.NDArray[Any]


@njit(cache=True, nogil=True)
def _sort_by_column(column: Array, low: int, high: int, order: Array) -> Array:
    """`order` int32 or int64 `[n]`, rows of `column` int32, sorted by it; equal ones stay put.

    All values lie in `low` .. `high`: one count per value, so that time and memory do not depend on
    how rows are spread.
    """
    starts = np.zeros(high - low + 2, np.int64)
    for value in column:
        starts[value - low + 1] += 1
    for kind in range(1, len(starts)):
        starts[kind] += starts[kind - 1]
    out = np.empty_like(order)
    for row in order:
        kind = column[row] - low
        out[starts[kind]] = row
        starts[kind] += 1
    return out


@njit(cache=True, nogil=True)
def _count_nodes(token_ids: Array, order: Array) -> Array:
    """Nodes int64 `[L + 1]` per level of the trie over rows `token_ids` int32 `[n, L]`."""
    levels = token_ids.shape[1]
    counts = np.zeros(levels + 1, np.int64)
    counts[0] = 1
    for i in range(len(order)):
        for level in range(_shared(token_ids, order, i), levels):
            counts[level + 1] += 1
    return counts


@njit(cache=True, nogil=True)
def _fill_nodes(
    token_ids: Array,
    order: Array,
    level_start: Array,
    first: Array,
    tokens: Array,
    item_start: Array,
) -> None:
    """Write children, tokens and the items' ranges of all nodes, breadth first."""
    levels = token_ids.shape[1]
    free = level_start[:-1].copy()  # the next node of every level
    first[0] = 1
    tokens[0] = -1
    free[0] = 1
    for i in range(len(order)):
        for level in range(_shared(token_ids, order, i), levels):
            node = free[level + 1]
            free[level + 1] += 1
            tokens[node] = token_ids[order[i], level]
            if level + 1 < levels:
                first[node] = free[level + 2]
            else:
                item_start[node - level_start[levels]] = i
    item_start[-1] = len(order)
    first[level_start[levels] :] = len(tokens)


@njit(cache=True, nogil=True, inline="always")
def _shared(token_ids: Array, order: Array, i: int) -> int:
    """Leading tokens that rows i and i - 1 of the order have in common."""
    levels = token_ids.shape[1]
    if i == 0:
        return 0
    row, before = order[i], order[i - 1]
    shared = 0
    while shared < levels and token_ids[row, shared] == token_ids[before, shared]:
        shared += 1
    return shared


@njit(cache=True, nogil=True)
def _walk(first: Array, tokens: Array, token_ids: Array) -> Array:
    """Nodes int64 `[k, l]` after each prefix of `token_ids` int32 `[k, l]`, -1 off the trie."""
    rows, length = token_ids.shape
    found = np.full((rows, length), -1, np.int64)
    for row in range(rows):
        node = 0
        for level in range(length):
            token = token_ids[row, level]
            low, end = first[node], first[node + 1]
            high = end
            while low < high:
                middle = (low + high) // 2
                if tokens[middle] < token:
                    low = middle + 1
                else:
                    high = middle
            if low == end or tokens[low] != token:
                break
            node = low
            found[row, level] = node
    return found


@njit(cache=True, nogil=True)
def _children(first: Array, nodes: Array) -> tuple[Array, Array]:
    """Offsets int64 `[r + 1]` and child nodes int64 `[c]`; a negative node has none."""
    offsets = np.empty(len(nodes) + 1, np.int64)
    offsets[0] = 0
    for row, node in enumerate(nodes):
        offsets[row + 1] = offsets[row] + (first[node + 1] - first[node] if node >= 0 else 0)
    found = np.empty(offsets[-1], np.int64)
    for row, node in enumerate(nodes):
        for i in range(offsets[row + 1] - offsets[row]):
            found[offsets[row] + i] = first[node] + i
    return offsets, found


@njit(cache=True, nogil=True)
def _mark_children(first: Array, tokens: Array, nodes: Array, mask: Array) -> int:
    """Set `mask` bool `[r, V]` where a token leads on from a node; the largest token met."""
    largest = -1
    width = mask.shape[1]
    for row, node in enumerate(nodes):
        if node < 0:
            continue
        for child in range(first[node], first[node + 1]):
            token = tokens[child]
            largest = max(largest, token)
            if token < width:
                mask[row, token] = True
    return largest


#: Column values are sorted by counting while their range is below this many, or below the rows.
_COUNTABLE = 1 << 22
_INT32 = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False)
class ItemTrie:
    """The trie over `n` items of `L` tokens each; node 0 is the root, level l holds l tokens.

    `first` int32 (int64 for 2**31 nodes or more) `[nodes + 1]`: the children of node v are nodes
    `first[v]` .. `first[v + 1] - 1`. `tokens` int32 `[nodes]`: the token on the edge into a node,
    -1 for the root. `level_start` int64 `[L + 2]`: the nodes of level l are `level_start[l]` ..
    `level_start[l + 1] - 1`. `item_start` int64 `[leaves + 1]`: the items of leaf i (leaf 0 is node
    `level_start[L]`) are `items[item_start[i] : item_start[i + 1]]`. `items` int64 `[n]`: ids by
    leaf, ascending inside. `positions` int32 or int64 `[n]`: where in `items` the item of every
    *place* lies, a place being an item's row when all are sorted by id, as in `SemanticIds`.
    """

    first: npt.NDArray[Any]
    tokens: IntArray
    level_start: LongArray
    item_start: LongArray
    items: LongArray
    positions: npt.NDArray[Any]

    @classmethod
    def build(cls, items: LongArray, token_ids: IntArray) -> ItemTrie:
        """The trie of `items` int64 `[n]`, distinct, in any order, with `token_ids` int32 `[n, L]`
        in the model's vocabulary; items may share all their tokens.

        Takes time in proportion to n and, beside the result, three times the memory of the items.
        Raises DraftrecError for no items, and ValueError for shapes that do not fit, negative
        tokens and repeated items.
        """
        items, token_ids = np.asarray(items, np.int64), np.asarray(token_ids, np.int32)
        if token_ids.ndim != 2 or len(token_ids) != len(items) or not token_ids.shape[1]:
            raise ValueError(f"{len(items)} items do not fit tokens of shape {token_ids.shape}")
        if not len(items):
            raise DraftrecError("the catalogue has no items, so nothing can be recommended from it")
        if token_ids.min() < 0:
            raise ValueError("token ids must not be negative")
        items, token_ids = _ascending(items, token_ids)
        order = _sorted_rows(token_ids)
        counts = _count_nodes(token_ids, order)
        level_start = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        nodes = int(level_start[-1])
        first = np.empty(nodes + 1, np.int32 if nodes < _INT32 else np.int64)
        tokens = np.empty(nodes, np.int32)
        item_start = np.empty(int(counts[-1]) + 1, np.int64)
        _fill_nodes(token_ids, order, level_start, first, tokens, item_start)
        positions = np.empty_like(order)
        positions[order] = np.arange(len(order), dtype=order.dtype)
        return cls(first, tokens, level_start, item_start, items[order], positions)

    @property
    def levels(self) -> int:
        """Tokens per item."""
        return len(self.level_start) - 2

    @property
    def nodes(self) -> int:
        """How many nodes there are, the root included."""
        return len(self.tokens)

    @property
    def leaves(self) -> int:
        """How many distinct tuples of tokens there are."""
        return len(self.item_start) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.first, self.tokens, self.level_start, self.item_start)
        return sum(a.nbytes for a in (*arrays, self.items, self.positions))

    def walk(self, token_ids: IntArray) -> LongArray:
        """The node int64 `[k, l]` after each prefix of `token_ids` int32 `[k, l]`, l <= L; -1 where
        it begins no item."""
        return _walk(self.first, self.tokens, np.asarray(token_ids, np.int32))

    def parents(self, nodes: LongArray, level: int) -> LongArray:
        """The nodes int64 `[k]` above `nodes`, all of them on `level` >= 1."""
        start, end = self.level_start[level - 1], self.level_start[level]
        # Of one type, or NumPy would convert the whole level to the other one first.
        wanted = np.asarray(nodes).astype(self.first.dtype, copy=False)
        return np.searchsorted(self.first[start:end], wanted, side="right") - 1 + start

    def paths(self, leaves: LongArray) -> IntArray:
        """The token ids int32 `[k, L]` that lead to `leaves` int64 `[k]`, given as node numbers."""
        nodes = self._checked_leaves(leaves)
        found = np.empty((len(nodes), self.levels), np.int32)
        for level in range(self.levels, 0, -1):
            found[:, level - 1] = self.tokens[nodes]
            nodes = self.parents(nodes, level)
        return found

    def children(self, nodes: LongArray) -> tuple[LongArray, LongArray]:
        """Offsets int64 `[r + 1]` and child nodes int64 `[c]`: those of `nodes[i]` lie between
        offsets i and i + 1, sorted by token. A leaf has none, nor has -1."""
        return _children(self.first, np.asarray(nodes, np.int64))

    def followed(self) -> tuple[float, ...]:
        """Continuations of the prefixes of an item, by their level: the mean over items, so that
        prefixes that many items share count for as many."""
        items, found = np.diff(self.item_start), list[float]()
        for level in range(self.levels - 1, -1, -1):
            first = self.first[self.level_start[level] : self.level_start[level + 1] + 1]
            items = np.add.reduceat(items, first[:-1] - first[0])
            found.append(float((items * np.diff(first)).sum() / items.sum()))
        return tuple(found[::-1])

    def masks(self, nodes: LongArray, vocabulary: int) -> BoolArray:
        """bool `[r, vocabulary]`: which tokens lead on from each node, the dense form of
        `children`. Raises ValueError for a token beyond the vocabulary."""
        mask = np.zeros((len(nodes), vocabulary), np.bool_)
        nodes = np.asarray(nodes, np.int64)
        largest = _mark_children(self.first, self.tokens, nodes, mask)
        if largest >= vocabulary:
            raise ValueError(f"token {largest} lies beyond a vocabulary of {vocabulary}")
        return mask

    def items_at(self, leaf_node: int) -> LongArray:
        """The items int64 `[m]` of a leaf, ascending."""
        leaf = int(self._checked_leaves(np.array([leaf_node]))[0] - self.level_start[-2])
        return self.items[self.item_start[leaf] : self.item_start[leaf + 1]]

    def leaves_of(self, places: LongArray) -> LongArray:
        """The leaf nodes int64 `[k]` of the items at `places` int64 `[k]`."""
        positions = self.positions[places].astype(np.int64)
        leaves = np.searchsorted(self.item_start, positions, side="right") - 1
        return leaves + self.level_start[-2]

    def _checked_leaves(self, nodes: LongArray) -> LongArray:
        nodes = np.asarray(nodes, np.int64)
        if len(nodes) and (nodes.min() < self.level_start[-2] or nodes.max() >= self.nodes):
            raise ValueError("only leaves have items and whole paths")
        return nodes


def _ascending(items: LongArray, token_ids: IntArray) -> tuple[LongArray, IntArray]:
    """Both sorted by item. Raises ValueError for a repeated item."""
    if (items[1:] > items[:-1]).all():
        return items, token_ids
    order = np.argsort(items)
    items = items[order]
    if (items[1:] == items[:-1]).any():
        raise ValueError("the items of a trie must be distinct")
    return items, token_ids[order]


def _sorted_rows(token_ids: IntArray) -> npt.NDArray[Any]:
    """The rows in the order of their tokens, equal ones in the order given."""
    n = len(token_ids)
    order: npt.NDArray[Any] = np.arange(n, dtype=np.int32 if n < _INT32 else np.int64)
    for level in range(token_ids.shape[1] - 1, -1, -1):
        column = np.ascontiguousarray(token_ids[:, level])  # read in random order, so kept dense
        low, high = int(column.min()), int(column.max())
        if high - low < max(_COUNTABLE, n):
            order = _sort_by_column(column, low, high, order)
        else:
            order = order[np.argsort(column[order], kind="stable")]
    return order


#: Questions are looked up in a table of all numbers between them while it has at most this many
#: entries for each; beyond that, clearing it takes longer than searching.
_TABLE_PER_QUESTION = 32


@dataclass(frozen=True, eq=False)
class Filter:
    """Either `blocked` or `allowed` is set, the other is None.

    `blocked` int64 `[b]`, sorted: nodes that must not be entered, since all items below them are
    denied. `allowed` int64 `[a]`, sorted: nodes that may be entered, since an item below them is
    allowed. `items` int64 `[m]`, sorted: the denied or allowed items themselves, for those that
    share a leaf with others. `base`: what holds besides.
    """

    blocked: LongArray | None
    allowed: LongArray | None
    items: LongArray
    base: Filter | None = None

    @classmethod
    def deny(cls, trie: ItemTrie, places: LongArray, base: Filter | None = None) -> Filter:
        """Leave out the items at `places` int64 `[k]`, in any order, repeated or not; negative
        ones (items that the catalogue does not have) are ignored. With a `base` they are left out
        of what that one leaves, in a time that follows `places` alone.

        With all items denied, the root is blocked.
        """
        places = _known(places)
        if base is not None:
            places = places[base.keeps(_items(trie, places))]
        nodes, counts = np.unique(trie.leaves_of(places), return_counts=True)
        blocked = [nodes[counts == _held(trie, nodes, base)]]
        for level in range(trie.levels, 0, -1):
            nodes, counts = np.unique(trie.parents(blocked[-1], level), return_counts=True)
            blocked.append(nodes[counts == _followed(trie, nodes, base)])
        return cls(np.concatenate(blocked[::-1]), None, _items(trie, places), base)

    @classmethod
    def allow(cls, trie: ItemTrie, places: LongArray, denied: LongArray | None = None) -> Filter:
        """Offer only the items at `places` int64 `[k]`, in any order, repeated or not, but those at
        `denied`; negative ones are ignored. With all of them denied, nothing is legal.

        Raises DraftrecError when `places` names no item.
        """
        places = _known(places)
        if not len(places):
            raise DraftrecError(
                "none of the allowed items is in the catalogue; allow at least one that is"
            )
        if denied is not None:
            places = places[~_among(_known(denied), places)]
        allowed = [_distinct(np.sort(trie.leaves_of(places)))]
        for level in range(trie.levels, 0, -1):
            allowed.append(_distinct(trie.parents(allowed[-1], level)))
        return cls(None, np.concatenate(allowed[::-1]), _items(trie, places))

    @property
    def listed(self) -> LongArray | None:
        """The only items that may be, int64 `[m]`, but for those that are left out of them; None
        where there is no such list."""
        if self.allowed is not None:
            return self.items
        return self.base.listed if self.base is not None else None

    def legal(self, nodes: LongArray) -> BoolArray:
        """bool `[r]`: whether each of `nodes` int64 `[r]` may be entered; -1 may not."""
        nodes = np.asarray(nodes, np.int64)
        if self.allowed is not None:
            return _among(self.allowed, nodes)
        assert self.blocked is not None
        legal = ~_among(self.blocked, nodes) & (nodes >= 0)
        return legal if self.base is None else legal & self.base.legal(nodes)

    def keeps(self, items: LongArray) -> BoolArray:
        """bool `[m]`: whether each item, given by id, may be recommended."""
        items = np.asarray(items, np.int64)
        kept = _among(self.items, items) == (self.allowed is not None)
        return kept if self.base is None else kept & self.base.keeps(items)


def _held(trie: ItemTrie, nodes: LongArray, base: Filter | None) -> LongArray:
    """How many items int64 `[k]` of each leaf of `nodes` the base keeps."""
    if base is not None:
        return np.array([int(base.keeps(trie.items_at(node)).sum()) for node in nodes.tolist()])
    leaves = nodes - trie.level_start[-2]
    return trie.item_start[leaves + 1] - trie.item_start[leaves]


def _followed(trie: ItemTrie, nodes: LongArray, base: Filter | None) -> LongArray:
    """How many children int64 `[k]` of each of `nodes` may be entered by the base."""
    if base is None or not len(nodes):
        return trie.first[nodes + 1] - trie.first[nodes]
    offsets, children = trie.children(nodes)
    return np.add.reduceat(base.legal(children).astype(np.int64), offsets[:-1])


def _known(places: LongArray) -> LongArray:
    distinct = _distinct(np.sort(np.asarray(places, np.int64)))
    return distinct[np.searchsorted(distinct, 0) :]


def _distinct(ascending: LongArray) -> LongArray:
    """Each once. `np.unique` would sort again, or hash, what is sorted, as parents of sorted nodes
    are, and long allow lists come with every request."""
    return ascending[np.concatenate(([True], ascending[1:] != ascending[:-1]))[: len(ascending)]]


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
