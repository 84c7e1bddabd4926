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
# Children looked at per context, most frequent first; and most candidates per draft node.
_FANOUT = 12
_CANDIDATES = 32

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
def _contexts(index, tail, out):
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
def _candidates(  # noqa: C901, PLR0913 - one kernel: calls and tuples cost time here
    sources, weights, contexts, escape, tokens, probs, origin
):
    """Blended next-token estimates at one node: fills `tokens`, `probs`, `origin`, returns a count.

    Orders are interpolated from short to long, each with escape mass in proportion to the number
    of different continuations seen (method C of prediction by partial matching, as a blend).
    """
    found = 0
    share = np.zeros(_CANDIDATES)
    for j in range(1, ORDER + 1):
        total, kinds = 0.0, 0.0
        for s in range(len(sources)):
            node = contexts[s, j]
            if node >= 0 and sources[s].nodes[node, FOLLOWS] > 0:
                total += weights[s] * sources[s].nodes[node, FOLLOWS]
                kinds += weights[s] * sources[s].nodes[node, KINDS]
        if total <= 0.0:
            continue
        rest = escape * kinds / (total + escape * kinds)
        for i in range(found):
            probs[i] *= rest
            share[i] *= rest
        for s in range(len(sources)):
            node = contexts[s, j]
            if node < 0:
                continue
            child = sources[s].nodes[node, CHILD]
            looked = 0
            while child >= 0 and looked < _FANOUT:
                gain = weights[s] * sources[s].nodes[child, COUNT] / (total + escape * kinds)
                token = sources[s].nodes[child, TOKEN]
                i = 0
                while i < found and tokens[i] != token:
                    i += 1
                if i == found and found < _CANDIDATES:
                    tokens[i], probs[i], share[i] = token, 0.0, 0.0
                    found += 1
                if i < found:
                    probs[i] += gain
                    if gain > share[i]:
                        share[i] = gain
                        origin[i] = s
                child = sources[s].nodes[child, AFTER]
                looked += 1
    return found


@njit(cache=True, nogil=True)
def draft(  # noqa: PLR0913 - one kernel: calls and tuples cost time here
    sources, weights, tails, limit, depth, settings, out
):
    """Best-first expansion of the blended estimates to at most `limit` nodes; returns how many.

    `sources`: tuple of Arrays; `tails`: tuple of int32 contexts, one per source; `settings`
    float64 `[2]`: escape weight, least path probability. `out`: tokens, parents, probs, sources.
    """
    escape, least = settings[0], settings[1]
    out_tokens, out_parents, out_probs, out_sources = out
    n_sources = len(sources)
    contexts = np.full((limit + 1, n_sources, ORDER + 1), -1, np.int32)
    level = np.zeros(limit + 1, np.int32)
    for s in range(n_sources):
        _contexts(sources[s], tails[s], contexts[0, s])
    heap_p = np.empty(limit * _CANDIDATES + _CANDIDATES)
    heap_from = np.empty(len(heap_p), np.int32)
    heap_token = np.empty(len(heap_p), np.int32)
    heap_origin = np.empty(len(heap_p), np.int32)
    tokens = np.empty(_CANDIDATES, np.int32)
    probs = np.empty(_CANDIDATES)
    origin = np.zeros(_CANDIDATES, np.int32)
    order = np.empty(len(heap_p), np.int32)
    size, made, used = 0, 0, 0
    place, path_prob = 0, 1.0
    while True:
        if level[place] < depth:
            found = _candidates(sources, weights, contexts[place], escape, tokens, probs, origin)
            for i in range(found):
                p = path_prob * probs[i]
                if tokens[i] < 0 or p < least:
                    continue
                heap_p[used], heap_from[used] = p, place
                heap_token[used], heap_origin[used] = tokens[i], origin[i]
                order[size] = used
                _sift_up(order, heap_p, size)
                used += 1
                size += 1
        if size == 0 or made == limit:
            return made
        top = order[0]
        size -= 1
        order[0] = order[size]
        _sift_down(order, heap_p, size)
        out_tokens[made] = heap_token[top]
        out_parents[made] = heap_from[top] - 1
        out_probs[made] = heap_p[top]
        out_sources[made] = heap_origin[top]
        made += 1
        above, place, path_prob = heap_from[top], made, heap_p[top]
        level[place] = level[above] + 1
        for s in range(n_sources):
            contexts[place, s, 0] = 0
            for j in range(ORDER):
                node = contexts[above, s, j]
                if node >= 0:
                    contexts[place, s, j + 1] = find(sources[s], node, heap_token[top])


@njit(cache=True, nogil=True)
def _sift_up(order, value, i):
    while i > 0:
        parent = (i - 1) // 2
        if value[order[i]] <= value[order[parent]]:
            return
        order[i], order[parent] = order[parent], order[i]
        i = parent


@njit(cache=True, nogil=True)
def _sift_down(order, value, size):
    i = 0
    while True:
        best = i
        for child in (2 * i + 1, 2 * i + 2):
            if child < size and value[order[child]] > value[order[best]]:
                best = child
        if best == i:
            return
        order[i], order[best] = order[best], order[i]
        i = best


@njit(cache=True, nogil=True)
def rehash(nodes, table, size):
    """Enter the first `size` nodes, but the root, into an empty table."""
    for node in range(1, size):
        table[_slot(nodes, table, nodes[node, PARENT], nodes[node, TOKEN])] = node
