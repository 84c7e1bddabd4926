"""Compiled kernels of the n-gram index: a suffix trie of bounded depth in flat arrays.

Node 0 is the root. A node stands for the n-gram on its path and holds how often it occurred, how
often anything followed it, and its children as a linked list kept roughly in order of count. A hash
table maps (node, token) to the child. All functions work on an `Arrays` tuple and allocate nothing
of the index's size, release the GIL, and take time bounded by the depth and the budget, never by
the number of texts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

#: Longest context that predicts a next token.
ORDER = 8
#: Stands before the first token of every text: what texts begin with is learned like the rest.
START = -2

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


# Columns of a node.
TOKEN, COUNT, FOLLOWS, KINDS, CHILD, AFTER, BEFORE, PARENT = range(8)


class Arrays(NamedTuple):
    """The index. `nodes` int32 `[capacity, 8]`, one row per node, so that a look at a node touches
    one cache line; `table` int32 `[2**k]`, nodes hashed by parent and token, -1 where empty;
    `size` int64 `[1]`, nodes in use.
    """

    nodes: Ints
    table: Ints
    size: Longs


@njit(cache=True, nogil=True, inline="always")
def _slot(nodes, table, parent, token):
    """The table place of the child of `parent` for `token`, or the empty one where it belongs."""
    key = (np.uint64(parent) << np.uint64(32)) | np.uint64(np.uint32(token))
    mixed = key * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mask = np.uint64(len(table) - 1)
    place = mixed & mask
    node = table[place]
    while node >= 0 and (nodes[node, PARENT] != parent or nodes[node, TOKEN] != token):
        place = (place + np.uint64(1)) & mask
        node = table[place]
    return place


@njit(cache=True, nogil=True)
def find(index, parent, token):
    """The child of `parent` for `token`, or -1."""
    return index.table[_slot(index.nodes, index.table, parent, token)]


@njit(cache=True, nogil=True)
def _increment(index, parent, token, weight):
    """Count `token` after `parent`; returns the child's node."""
    place = _slot(index.nodes, index.table, parent, token)
    node = index.table[place]
    if node < 0:
        node = np.int32(index.size[0])
        index.size[0] += 1
        index.table[place] = node
        index.nodes[node, PARENT] = parent
        index.nodes[node, TOKEN] = token
        index.nodes[node, COUNT] = 0
        index.nodes[node, FOLLOWS] = 0
        index.nodes[node, KINDS] = 0
        index.nodes[node, CHILD] = -1
        head = index.nodes[parent, CHILD]
        # A newcomer goes behind the head: what is frequent stays near the front.
        if head < 0:
            index.nodes[parent, CHILD] = node
            index.nodes[node, AFTER] = -1
            index.nodes[node, BEFORE] = -1
        else:
            index.nodes[node, AFTER] = index.nodes[head, AFTER]
            index.nodes[node, BEFORE] = head
            if index.nodes[head, AFTER] >= 0:
                index.nodes[index.nodes[head, AFTER], BEFORE] = node
            index.nodes[head, AFTER] = node
        index.nodes[parent, KINDS] += 1
    index.nodes[node, COUNT] += weight
    index.nodes[parent, FOLLOWS] += weight
    ahead = index.nodes[node, BEFORE]
    if ahead >= 0 and index.nodes[node, COUNT] > index.nodes[ahead, COUNT]:
        _swap(index, parent, ahead, node)
    return node


@njit(cache=True, nogil=True)
def _swap(index, parent, ahead, node):
    """Exchange two neighbours in the list of children, `node` right behind `ahead`."""
    left, right = index.nodes[ahead, BEFORE], index.nodes[node, AFTER]
    index.nodes[node, BEFORE], index.nodes[node, AFTER] = left, ahead
    index.nodes[ahead, BEFORE], index.nodes[ahead, AFTER] = node, right
    if left >= 0:
        index.nodes[left, AFTER] = node
    else:
        index.nodes[parent, CHILD] = node
    if right >= 0:
        index.nodes[right, BEFORE] = ahead


@njit(cache=True, nogil=True)
def insert(index, tokens, active, weight):
    """Append `tokens` to a text whose last contexts are `active` int32 `[ORDER + 1]` (-1: none).

    `active[j]` is the node of the last j tokens; updated in place, so a text may grow piecewise.
    """
    for t in range(len(tokens)):
        for j in range(ORDER, -1, -1):
            if active[j] >= 0:
                node = _increment(index, active[j], tokens[t], weight)
                if j < ORDER:
                    active[j + 1] = node
        active[0] = 0


@njit(cache=True, nogil=True)
def contexts(index, tail, out):
    """Nodes of the last 1 .. ORDER tokens of `tail` into `out` `[ORDER + 1]`; -1 where unseen."""
    out[:] = -1
    out[0] = 0
    for j in range(1, min(ORDER, len(tail)) + 1):
        node = 0
        for k in range(len(tail) - j, len(tail)):
            node = find(index, node, tail[k])
            if node < 0:
                break
        if node < 0:
            break  # a longer suffix cannot have been seen either
        out[j] = node


@njit(cache=True, nogil=True)
def rehash(nodes, table, size):
    """Enter the first `size` nodes, but the root, into an empty table."""
    for node in range(1, size):
        table[_slot(nodes, table, nodes[node, PARENT], nodes[node, TOKEN])] = node
